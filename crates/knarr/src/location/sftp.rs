//! Opens directories on SFTP servers, as `~/.ssh/config` and the configuration say.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use knarr_remote::sftp::{SftpEndpoint, SftpOptions, SftpRemote};
use knarr_remote::ssh::config::Destination;
use knarr_remote::ssh::{
    Authentication, ConfigContext, HostKeyPolicy, KeyFile, Prompter, Secret, SshConfig, SshOptions,
};

use crate::command_error::CommandError;
use crate::config::network::Origin;
use crate::config::{Limits, SftpSettings};
use crate::environment::Environment;
use crate::location::Asking;
use crate::secrets::Secrets;
use crate::terminal::{AtTerminal, GivenAnswer};

/// What the machine says about SSH servers.
pub(super) struct Ssh {
    config: SshConfig,
    /// Says nothing but where the known hosts are: for endpoints that came over the network.
    nothing: SshConfig,
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
        let nothing = SshConfig::empty(context.clone());
        let config = tokio::task::spawn_blocking(move || SshConfig::load(context))
            .await
            .map_err(CommandError::failed)?
            .map_err(CommandError::usage)?;
        Ok(Self {
            config,
            nothing,
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
        let mut ssh = self.options(settings, authentication)?;
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

    /// How to connect and log in, but for the host keys of the settings.
    fn options(
        &self,
        settings: &SftpSettings,
        authentication: Authentication,
    ) -> Result<SshOptions, CommandError> {
        let destination = Destination {
            host: settings.host.clone(),
            port: settings.port,
            user: settings.user.clone(),
        };
        let config = match settings.origin {
            Origin::File => &self.config,
            Origin::Network => &self.nothing,
        };
        let mut ssh = config
            .options(&destination, &authentication)
            .map_err(CommandError::usage)?;
        if settings.origin == Origin::Network {
            // Neither the usual keys of the node's user, nor an agent's, nor what a person at a terminal
            // would say: only the secrets that the endpoint names (K12).
            ssh.authentication = authentication;
        }
        Ok(ssh)
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
            (None, Asking::Person) if settings.origin == Origin::Network => None,
            (None, Asking::Person) => Some(Arc::new(AtTerminal)),
            (None, Asking::Nobody) => None,
        };
        Ok(Authentication {
            agent: match (settings.agent, settings.origin) {
                (Some(false), _) | (_, Origin::Network) => None,
                (Some(true) | None, Origin::File) => self.agent.clone(),
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
    use std::collections::HashMap;
    use std::path::PathBuf;
    use std::sync::Mutex;

    use knarr_remote::ssh::{Authentication, ConfigContext, SshConfig};

    use super::{Ssh, root_on_server};
    use crate::config::SftpSettings;
    use crate::config::network::Origin;

    #[expect(
        clippy::disallowed_methods,
        reason = "a file of the test, which nothing has to survive"
    )]
    #[test]
    fn k12_an_endpoint_that_came_over_the_network_logs_in_with_nothing_of_the_nodes_user() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("config");
        std::fs::write(
            &file,
            "Host partner\n HostName inside.example\n IdentityFile ~/.ssh/secret\n ProxyJump gate\n",
        )
        .unwrap();
        let context = ConfigContext {
            home: home.path().to_owned(),
            local_user: "knarr".to_owned(),
            user_file: Some(file),
            system_file: None,
            system_known_hosts: None,
        };
        let ssh = Ssh {
            nothing: SshConfig::empty(context.clone()),
            config: SshConfig::load(context).unwrap(),
            agent: Some(PathBuf::from("/run/agent")),
            endpoints: Mutex::new(HashMap::new()),
        };
        let options = |origin, host: &str| {
            let settings = SftpSettings {
                host: host.to_owned(),
                origin,
                ..SftpSettings::default()
            };
            let made = ssh.options(&settings, Authentication::default());
            made.unwrap_or_else(|error| panic!("{error:?}"))
        };
        let own = options(Origin::File, "partner");
        assert_eq!((own.host.as_str(), own.jumps.len()), ("inside.example", 1));
        assert_eq!(own.authentication.keys.len(), 1);
        for host in ["partner", "other"] {
            let foreign = options(Origin::Network, host);
            assert_eq!((foreign.host.as_str(), foreign.jumps.len()), (host, 0));
            assert!(
                foreign.authentication.keys.is_empty(),
                "not even the usual ones"
            );
            assert!(foreign.authentication.agent.is_none());
        }
        assert_eq!(options(Origin::File, "other").authentication.keys.len(), 3);
    }

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
