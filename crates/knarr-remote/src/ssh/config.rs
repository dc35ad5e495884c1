//! Reads `ssh_config` as far as it says how to reach a server.
//!
//! What is read: `Host` and `Match` (criteria `all`, `host`, `originalhost`, `user`, `localuser`,
//! negated or not), `Include`, `HostName`, `Port`, `User`, `IdentityFile`, `IdentitiesOnly`,
//! `ProxyJump`, `UserKnownHostsFile`, `GlobalKnownHostsFile`. Everything else is skipped: it says how
//! to behave, which Knarr decides itself. A `Match` with any other criterion (`exec` above all) never
//! applies, and a warning says so: nothing is run because a configuration file says it.
//!
//! As in OpenSSH the first value of a keyword wins, but every `IdentityFile` counts.

use std::path::{Path, PathBuf};

use crate::ssh::auth::{AgentKeys, Authentication, KeyFile};
use crate::ssh::pattern::{ListMatch, list_matches, matches};
use crate::ssh::{HostKeyPolicy, SshOptions};

mod lines;

use lines::{Line, split_line};

/// How deep files may include each other, and jump hosts each other.
const DEPTH_LIMIT: usize = 16;

/// Files that one `Include` may name.
const INCLUDE_LIMIT: usize = 1_000;

/// The longest file, in bytes.
const FILE_LIMIT_BYTES: u64 = 16 * 1024 * 1024;

/// Where the configuration lies, and who asks.
#[derive(Debug, Clone)]
pub struct ConfigContext {
    /// The user's home directory.
    pub home: PathBuf,
    /// The name of the local user, who is also the remote one unless something says otherwise.
    pub local_user: String,
    /// The user's file, `~/.ssh/config` as a rule; may be missing.
    pub user_file: Option<PathBuf>,
    /// The system's file, `/etc/ssh/ssh_config` as a rule; may be missing.
    pub system_file: Option<PathBuf>,
    /// The system's known hosts, `/etc/ssh/ssh_known_hosts` as a rule; may be missing.
    pub system_known_hosts: Option<PathBuf>,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file is there and cannot be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A line cannot be understood.
    #[error("{}:{line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// Files include each other, or jump hosts each other, without end.
    #[error("{what} lead to each other without end")]
    Loop {
        /// `Include` lines or `ProxyJump` hosts.
        what: &'static str,
    },
}

/// What some `ssh_config` files say.
#[derive(Debug, Clone)]
pub struct SshConfig {
    context: ConfigContext,
    lines: Vec<Line>,
}

/// What they say about one host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostSettings {
    /// The name or address to connect to.
    pub host_name: Option<String>,
    /// The port.
    pub port: Option<u16>,
    /// The user to log in as.
    pub user: Option<String>,
    /// Key files, in order.
    pub identity_files: Vec<PathBuf>,
    /// Whether only those may be offered.
    pub identities_only: Option<bool>,
    /// The servers to go through, nearest first, as `[user@]host[:port]`.
    pub proxy_jump: Option<Vec<String>>,
    /// The user's known hosts.
    pub user_known_hosts: Option<Vec<PathBuf>>,
    /// The system's known hosts.
    pub global_known_hosts: Option<Vec<PathBuf>>,
}

/// What a location says about a server, before the configuration is asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Destination {
    /// A host name, an address, or a `Host` of the configuration.
    pub host: String,
    /// The port, if it was given.
    pub port: Option<u16>,
    /// The user, if it was given.
    pub user: Option<String>,
}

impl SshConfig {
    /// Reads the files of `context`. Blocks.
    ///
    /// # Errors
    /// A [`ConfigError`].
    pub fn load(context: ConfigContext) -> Result<Self, ConfigError> {
        let mut config = Self {
            context,
            lines: Vec::new(),
        };
        let files = [
            config.context.user_file.clone(),
            config.context.system_file.clone(),
        ];
        for file in files.into_iter().flatten() {
            // Each file starts outside of any block.
            config.lines.push(Line::everywhere());
            config.read(&file, 0)?;
        }
        Ok(config)
    }

    /// An empty configuration: everything has its default.
    #[must_use]
    pub const fn empty(context: ConfigContext) -> Self {
        Self {
            context,
            lines: Vec::new(),
        }
    }

    fn read(&mut self, path: &Path, depth: usize) -> Result<(), ConfigError> {
        if depth >= DEPTH_LIMIT {
            return Err(ConfigError::Loop {
                what: "Include lines",
            });
        }
        let unreadable = |source| ConfigError::Unreadable {
            path: path.to_path_buf(),
            source,
        };
        let text = match lines::read_limited(path, FILE_LIMIT_BYTES) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(unreadable(error)),
        };
        for (index, text) in text.lines().enumerate() {
            let at = |reason| ConfigError::Line {
                path: path.to_path_buf(),
                line: index + 1,
                reason,
            };
            let Some((keyword, arguments)) = split_line(text).map_err(at)? else {
                continue;
            };
            if keyword == "include" {
                // What is included stands inside the block of its line, and changes no block after it.
                for pattern in arguments {
                    for file in self.included(&pattern) {
                        self.lines.push(Line::BlockStart);
                        self.read(&file, depth + 1)?;
                        self.lines.push(Line::BlockEnd);
                    }
                }
                continue;
            }
            let line = Line::from_parts(&keyword, arguments).map_err(at)?;
            self.lines.extend(line);
        }
        Ok(())
    }

    fn included(&self, pattern: &str) -> Vec<PathBuf> {
        let expanded = self.expand_home(pattern);
        let full = if expanded.is_absolute() {
            expanded
        } else {
            self.context.home.join(".ssh").join(expanded)
        };
        lines::glob(&full, INCLUDE_LIMIT)
    }

    fn expand_home(&self, text: &str) -> PathBuf {
        match text.strip_prefix("~/") {
            Some(rest) => self.context.home.join(rest),
            None if text == "~" => self.context.home.clone(),
            None => PathBuf::from(text),
        }
    }

    /// What the files say about `destination`.
    #[must_use]
    pub fn settings(&self, destination: &Destination) -> HostSettings {
        let mut settings = HostSettings::default();
        let mut raw_identities: Vec<String> = Vec::new();
        let (mut user_known, mut global_known) = (None, None);
        // Whether the present block applies, and those around an include.
        let mut applies = true;
        let mut around: Vec<bool> = Vec::new();
        for line in &self.lines {
            match line {
                Line::Host(patterns) => {
                    let patterns = patterns.iter().map(String::as_str);
                    applies = list_matches(patterns, &destination.host) == ListMatch::Yes
                        && around.iter().all(|outer| *outer);
                }
                Line::Match(criteria) => {
                    applies = around.iter().all(|outer| *outer)
                        && self.criteria_hold(criteria, destination, &settings);
                }
                Line::BlockStart => around.push(applies),
                Line::BlockEnd => applies = around.pop().unwrap_or(true),
                _ if !applies => {}
                Line::HostName(name) => set(&mut settings.host_name, || {
                    percent(name, |token| {
                        (token == 'h').then(|| destination.host.clone())
                    })
                }),
                Line::Port(port) => set(&mut settings.port, || *port),
                Line::User(user) => set(&mut settings.user, || user.clone()),
                Line::IdentityFile(path) => raw_identities.push(path.clone()),
                Line::IdentitiesOnly(only) => set(&mut settings.identities_only, || *only),
                Line::ProxyJump(jumps) => set(&mut settings.proxy_jump, || jumps.clone()),
                Line::UserKnownHosts(files) => set(&mut user_known, || files.clone()),
                Line::GlobalKnownHosts(files) => set(&mut global_known, || files.clone()),
            }
        }
        let path = |text: &String| self.path(text, destination, &settings);
        let identity_files = raw_identities
            .iter()
            .filter(|text| *text != "none")
            .map(path);
        let identity_files: Vec<PathBuf> = identity_files.collect();
        let user_known_hosts = user_known.map(|files| {
            files
                .iter()
                .filter(|text| *text != "none")
                .map(path)
                .collect()
        });
        let global_known_hosts = global_known.map(|files| {
            files
                .iter()
                .filter(|text| *text != "none")
                .map(path)
                .collect()
        });
        HostSettings {
            identity_files,
            user_known_hosts,
            global_known_hosts,
            ..settings
        }
    }

    fn criteria_hold(
        &self,
        criteria: &[lines::Criterion],
        destination: &Destination,
        so_far: &HostSettings,
    ) -> bool {
        criteria.iter().all(|criterion| {
            let host = so_far.host_name.as_deref().unwrap_or(&destination.host);
            let user = destination.user.as_deref().or(so_far.user.as_deref());
            let subject = match criterion.what {
                lines::What::All => return !criterion.negated,
                lines::What::Host => host,
                lines::What::OriginalHost => &destination.host,
                lines::What::User => user.unwrap_or(&self.context.local_user),
                lines::What::LocalUser => &self.context.local_user,
            };
            let patterns = criterion.patterns.iter().map(String::as_str);
            (list_matches(patterns, subject) == ListMatch::Yes) != criterion.negated
        })
    }

    /// Expands `~` and the tokens of a path.
    fn path(&self, text: &str, destination: &Destination, settings: &HostSettings) -> PathBuf {
        let expanded = percent(text, |token| match token {
            'd' => Some(self.context.home.display().to_string()),
            'h' => Some(
                settings
                    .host_name
                    .clone()
                    .unwrap_or_else(|| destination.host.clone()),
            ),
            'n' => Some(destination.host.clone()),
            'p' => Some(destination.port.or(settings.port).unwrap_or(22).to_string()),
            'r' => Some(self.user(destination, settings)),
            'u' => Some(self.context.local_user.clone()),
            _ => None,
        });
        self.expand_home(&expanded)
    }

    fn user(&self, destination: &Destination, settings: &HostSettings) -> String {
        let user = destination.user.as_ref().or(settings.user.as_ref());
        user.unwrap_or(&self.context.local_user).clone()
    }

    /// How to connect to `destination`, logging in as `authentication` says. Key files of the
    /// configuration are added to it; if neither names any, the usual ones are tried.
    ///
    /// # Errors
    /// [`ConfigError::Loop`] if jump hosts lead to each other.
    pub fn options(
        &self,
        destination: &Destination,
        authentication: &Authentication,
    ) -> Result<SshOptions, ConfigError> {
        self.options_at(destination, authentication, JumpHosts::Followed, 0)
    }

    fn options_at(
        &self,
        destination: &Destination,
        authentication: &Authentication,
        jump_hosts: JumpHosts,
        depth: usize,
    ) -> Result<SshOptions, ConfigError> {
        if depth >= DEPTH_LIMIT {
            return Err(ConfigError::Loop {
                what: "ProxyJump hosts",
            });
        }
        let settings = self.settings(destination);
        let mut authentication = authentication.clone();
        let configured = settings.identity_files.iter().map(KeyFile::optional);
        authentication.keys.extend(configured);
        if authentication.keys.is_empty() {
            let usual = ["id_ed25519", "id_ecdsa", "id_rsa"];
            let directory = self.context.home.join(".ssh");
            let usual = usual
                .iter()
                .map(|name| KeyFile::optional(directory.join(name)));
            authentication.keys.extend(usual);
        }
        if settings.identities_only == Some(true) {
            authentication.agent_keys = AgentKeys::OfKeyFiles;
        }
        let mut options = SshOptions::new(
            settings
                .host_name
                .clone()
                .unwrap_or_else(|| destination.host.clone()),
            destination.port.or(settings.port).unwrap_or(22),
            self.user(destination, &settings),
            authentication.clone(),
            HostKeyPolicy::KnownHosts {
                files: self.known_hosts(&settings),
            },
        );
        if jump_hosts == JumpHosts::Followed {
            // A password is for the destination, not for whoever is on the way there.
            let for_jumps = Authentication {
                agent: authentication.agent,
                prompter: authentication.prompter,
                ..Authentication::default()
            };
            for (index, jump) in settings.proxy_jump.iter().flatten().enumerate() {
                // The chain says how to go on from its first host; only that one has a way of its own.
                let follow = if index == 0 {
                    JumpHosts::Followed
                } else {
                    JumpHosts::Ignored
                };
                let jump = parse_jump(jump);
                let mut hop = self.options_at(&jump, &for_jumps, follow, depth + 1)?;
                options.jumps.append(&mut hop.jumps);
                options.jumps.push(hop);
            }
        }
        Ok(options)
    }
}

impl SshConfig {
    fn known_hosts(&self, settings: &HostSettings) -> Vec<PathBuf> {
        let user_files = settings.user_known_hosts.clone().unwrap_or_else(|| {
            let directory = self.context.home.join(".ssh");
            vec![
                directory.join("known_hosts"),
                directory.join("known_hosts2"),
            ]
        });
        let global_files = settings
            .global_known_hosts
            .clone()
            .unwrap_or_else(|| self.context.system_known_hosts.iter().cloned().collect());
        [user_files, global_files].concat()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum JumpHosts {
    Followed,
    Ignored,
}

fn set<T>(slot: &mut Option<T>, value: impl FnOnce() -> T) {
    if slot.is_none() {
        *slot = Some(value());
    }
}

/// Replaces `%x` by what `token` gives; unknown tokens stay as they are.
fn percent(text: &str, token: impl Fn(char) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        match characters.next() {
            Some('%') => out.push('%'),
            Some(letter) => match token(letter) {
                Some(value) => out.push_str(&value),
                None => out.extend(['%', letter]),
            },
            None => out.push('%'),
        }
    }
    out
}

/// `[ssh://][user@]host[:port]`, where an address with colons stands in brackets.
fn parse_jump(text: &str) -> Destination {
    let text = text
        .strip_prefix("ssh://")
        .unwrap_or(text)
        .trim_end_matches('/');
    let (user, rest) = match text.rsplit_once('@') {
        Some((user, rest)) => (Some(user.to_owned()), rest),
        None => (None, text),
    };
    let (host, port) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) => (host, port.strip_prefix(':')),
        None => match rest.split_once(':') {
            Some((host, port)) if !port.contains(':') => (host, Some(port)),
            _ => (rest, None),
        },
    };
    Destination {
        host: host.to_owned(),
        port: port.and_then(|port| port.parse().ok()),
        user,
    }
}

/// Whether a name in a directory is meant by the last component of an `Include`.
fn name_matches(pattern: &str, name: &str) -> bool {
    // A leading dot is never matched by a star.
    (pattern.starts_with('.') || !name.starts_with('.'))
        && matches(pattern.as_bytes(), name.as_bytes())
}

#[cfg(test)]
mod tests;
