//! Reading the file again while the node runs.
//!
//! Everything that could fail is done first: what is wrong with the new file leaves the old one in force as a
//! whole. What is bound at the start (addresses, host keys, the log, the state, how long things are kept)
//! counts from the next one, and is named.

use std::collections::BTreeMap;

use knarr_core::Clock as _;
use knarr_node::{Reread, v1};

use crate::cli::credentials;
use crate::cli::host::{NodeHost, endpoints_of, in_protocol, problem, stands_in};
use crate::cli::telling::Receivers;
use crate::config::network::Origin;
use crate::config::{Config, Job, find};

/// What says who may come to the SFTP server: that is taken over.
const OF_USERS: [&str; 2] = ["sftp_server.users", "sftp_server.home"];

impl NodeHost<'_> {
    pub(super) async fn read_again(&mut self) -> Result<Reread, Vec<v1::Problem>> {
        let file = self.new_file()?;
        let receivers = self.other_receivers(&file).await?;
        let mut reread = self.difference(&file);
        let (config, broken) = self.merged(&file);
        // From here on nothing fails.
        let differs = |place: &str| self.file.written.get(place) != file.written.get(place);
        let users_differ = OF_USERS.iter().any(|place| differs(place));
        if self.file.rules != file.rules {
            reread.taken_over.push("alerts".to_owned());
        }
        self.announcer.set_rules(file.rules.clone());
        if let Some(uploads) = &self.uploads {
            uploads.replace(&file);
        }
        self.opener.change(|present| *present = config);
        self.file = file;
        self.broken = broken;
        if let Some(receivers) = receivers {
            self.exchange_receivers(receivers).await;
            reread.taken_over.push("targets".to_owned());
        }
        let expiring = credentials::read(self.opener.config(), self.context.clock.now());
        if expiring != self.credentials {
            reread.taken_over.push("credentials".to_owned());
            self.announcer.set_credentials(expiring.clone());
            self.credentials = expiring;
        }
        if let Some(let_in) = &mut self.let_in {
            self.left_out = let_in.replace(&self.opener).await;
            if users_differ {
                reread.taken_over.push("sftp_server.users".to_owned());
            }
        }
        reread.needs_restart = needs_restart(&self.started, &self.file.written);
        Ok(reread)
    }

    /// The file as it is now, if nothing is wrong with it.
    fn new_file(&self) -> Result<Config, Vec<v1::Problem>> {
        let loaded = find::load(
            self.context.global.config.as_deref(),
            &self.context.environment,
        );
        let file = match loaded {
            Ok(Some(file)) => file,
            Ok(None) => return Err(problem("the file is gone".to_owned())),
            Err(find::FindError::Wrong(problems)) => return Err(in_protocol(&problems)),
            Err(error) => return Err(problem(knarr_engine::chain(&error))),
        };
        for key in self.added.keys() {
            let (kind, name) = key;
            if stands_in(&file, *kind, name) && !self.broken.contains_key(key) {
                return Err(problem(format!(
                    "`{name}` was added to the running node: `knarr job rm`, `knarr endpoint rm` or `knarr user rm` it first"
                )));
            }
        }
        Ok(file)
    }

    /// The targets of the new file, if they are others.
    async fn other_receivers(&self, file: &Config) -> Result<Option<Receivers>, Vec<v1::Problem>> {
        let place = "targets";
        if self.file.written.get(place) == file.written.get(place) {
            return Ok(None);
        }
        let Some(exchange) = &self.exchange else {
            return Ok(None);
        };
        let prepared = async {
            let store = self.opener.secrets().store().await?;
            exchange.prepare(self.context, file, store).await
        };
        let prepared = prepared.await;
        prepared
            .map(Some)
            .map_err(|error| problem(error.on_one_line()))
    }

    async fn exchange_receivers(&self, receivers: Receivers) {
        let Some(exchange) = &self.exchange else {
            return;
        };
        let exchanged = async {
            let store = self.opener.secrets().store().await?;
            exchange.replace(receivers, &self.announcer, store).await
        };
        if let Err(error) = exchanged.await {
            tracing::error!("{}", error.on_one_line());
        }
    }

    /// What another file changes about jobs.
    fn difference(&self, file: &Config) -> Reread {
        let mut reread = Reread::default();
        let differs = |place: &str| self.file.written.get(place) != file.written.get(place);
        let is_other = |job: &Job| {
            differs(&format!("jobs.{}", job.name))
                || endpoints_of(job).any(|endpoint| differs(&format!("endpoints.{endpoint}")))
        };
        for job in file.jobs.values().filter(|job| self.is_chosen(&job.name)) {
            if !self.file.jobs.contains_key(&job.name) {
                reread.added.push(job.name.clone());
            } else if is_other(job) {
                reread.changed.push(job.name.clone());
            }
        }
        for name in self.file.jobs.keys() {
            if !file.jobs.contains_key(name) {
                reread.removed.push(name.clone());
            }
        }
        let present = self.opener.config().jobs.values();
        let added = present.filter(|job| job.origin == Origin::Network);
        reread.changed.extend(
            added
                .filter(|job| {
                    endpoints_of(job).any(|endpoint| differs(&format!("endpoints.{endpoint}")))
                })
                .map(|job| job.name.clone()),
        );
        // What was broken may be right now.
        for (kind, name) in self.broken.keys() {
            if *kind == knarr_store::definitions::DefinitionKind::Job
                && !stands_in(file, *kind, name)
                && !reread.removed.contains(name)
            {
                reread.changed.push(name.clone());
            }
        }
        reread
    }
}

/// What counts from the next start, and is not what it was at this one.
fn needs_restart(
    started: &BTreeMap<String, String>,
    file: &BTreeMap<String, String>,
) -> Vec<String> {
    let keys: std::collections::BTreeSet<&String> = started.keys().chain(file.keys()).collect();
    let is_bound = |key: &&&String| {
        let of_section = |section: &str| {
            key.strip_prefix(section)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        (of_section("node") || of_section("sftp_server")) && !OF_USERS.contains(&key.as_str())
    };
    let differs = |key: &&&String| started.get(**key) != file.get(**key);
    keys.iter()
        .filter(is_bound)
        .filter(differs)
        .map(|key| (*key).clone())
        .collect()
}
