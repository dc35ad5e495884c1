//! Opens directories on SFTP servers, as `~/.ssh/config` and the configuration say.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use knarr_remote::sftp::{SftpEndpoint, SftpOptions, SftpRemote};
use knarr_remote::ssh::config::Destination;
use knarr_remote::ssh::{
    Authentication, ConfigContext, HostKeyPolicy, KeyFile, Prompter, Secret, SshConfig,
};

use crate::command_error::CommandError;
use crate::config::{Limits, SftpSettings};
use crate::environment::Environment;
use crate::location::Asking;
use crate::secrets::Secrets;
use crate::terminal::{AtTerminal, GivenAnswer};

/// What the machine says about SSH servers.
pub(super) struct Ssh {
    config: SshConfig,
    agent: Option<PathBuf>,
    /// The servers that were opened, so that all who talk to one share its connections.
    endpoints: Mutex<HashMap<String, SftpEndpoint>>,
}

impl Ssh {
    /// Reads the user's and the system's `ssh_config`.
    ///
    /// # Errors
    /// If one cannot be understood.
    pub(super) async fn load(environment: &Environment) -> Result<Self, CommandError> {
        let home = environment
            .home
            .clone()
            .unwrap_or_else(|| PathBuf::from("/"));
        let context = ConfigContext {
            user_file: Some(home.join(".ssh/config")),
            system_file: Some(PathBuf::from("/etc/ssh/ssh_config")),
            system_known_hosts: Some(PathBuf::from("/etc/ssh/ssh_known_hosts")),
            local_user: environment
                .user
                .clone()
                .unwrap_or_else(|| "root".to_owned()),
            home,
        };
        let config = tokio::task::spawn_blocking(move || SshConfig::load(context))
            .await
            .map_err(CommandError::failed)?
            .map_err(CommandError::usage)?;
        Ok(Self {
            config,
            agent: environment.ssh_agent.clone(),
            endpoints: Mutex::default(),
        })
    }

    /// Opens a directory. Does not connect yet.
    ///
    /// # Errors
    /// If a secret is not known, or the settings contradict each other.
    pub(super) async fn open(
        &self,
        settings: &SftpSettings,
        limits: Limits,
        secrets: &Secrets<'_>,
        asking: Asking,
    ) -> Result<SftpRemote, CommandError> {
        let root = root_on_server(&settings.path);
        // What the settings show are names of secrets, never secrets.
        let server = SftpSettings {
            path: String::new(),
            ..settings.clone()
        };
        let key = format!("{server:?} {limits:?}");
        let known = self
            .endpoints
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&key)
            .cloned();
        if let Some(endpoint) = known {
            return Ok(SftpRemote::new(&endpoint, root.as_bytes()));
        }
        let authentication = self.authentication(settings, secrets, asking).await?;
        let destination = Destination {
            host: settings.host.clone(),
            port: settings.port,
            user: settings.user.clone(),
        };
        let mut ssh = self
            .config
            .options(&destination, &authentication)
            .map_err(CommandError::usage)?;
        if !settings.host_keys.is_empty() {
            let pinned = settings.host_keys.iter().map(|text| text.parse());
            let pinned = pinned
                .collect::<Result<Vec<_>, _>>()
                .map_err(CommandError::usage)?;
            ssh.host_key = HostKeyPolicy::Pinned(pinned);
        } else if let Some(file) = &settings.known_hosts {
            ssh.host_key = HostKeyPolicy::KnownHosts {
                files: vec![file.clone()],
            };
        }
        let mut options = SftpOptions::new(ssh);
        options.connections = limits.connections;
        let endpoint = SftpEndpoint::new(options);
        let remote = SftpRemote::new(&endpoint, root.as_bytes());
        self.endpoints
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(key, endpoint);
        Ok(remote)
    }

    async fn authentication(
        &self,
        settings: &SftpSettings,
        secrets: &Secrets<'_>,
        asking: Asking,
    ) -> Result<Authentication, CommandError> {
        let secret =
            |text: Option<zeroize::Zeroizing<String>>| text.map(|text| Secret::new(text.as_str()));
        let passphrase = secret(secrets.get_if(settings.passphrase.as_ref()).await?);
        let answer = secret(
            secrets
                .get_if(settings.keyboard_interactive.as_ref())
                .await?,
        );
        let prompter: Option<Arc<dyn Prompter>> = match (answer, asking) {
            (Some(answer), _) => Some(Arc::new(GivenAnswer(answer))),
            (None, Asking::Person) => Some(Arc::new(AtTerminal)),
            (None, Asking::Nobody) => None,
        };
        Ok(Authentication {
            agent: match settings.agent {
                Some(false) => None,
                Some(true) | None => self.agent.clone(),
            },
            keys: settings
                .keys
                .iter()
                .map(|path| KeyFile {
                    passphrase: passphrase.clone(),
                    ..KeyFile::required(path)
                })
                .collect(),
            password: secret(secrets.get_if(settings.password.as_ref()).await?),
            prompter,
            ..Authentication::default()
        })
    }
}

/// The directory in the form in which the server takes it: `/~/x` and `/./x` are below the home.
fn root_on_server(path: &str) -> &str {
    ["/~/", "/./", "~/", "./"]
        .into_iter()
        .find_map(|home| path.strip_prefix(home))
        .unwrap_or(match path {
            "/~" | "/." | "~" | "." => "",
            other => other,
        })
}

#[cfg(test)]
mod tests {
    use super::root_on_server;

    #[test]
    fn the_home_of_the_user_has_several_names() {
        for (path, root) in [
            ("", ""),
            ("/~/in", "in"),
            ("/./in", "in"),
            ("~/in", "in"),
            ("/~", ""),
            ("/srv/in", "/srv/in"),
            ("in", "in"),
        ] {
            assert_eq!(root_on_server(path), root, "{path}");
        }
    }
}
