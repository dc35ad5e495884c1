//! Logs in: agent, key files, password, questions, in this order.
//!
//! Constraints: what the server does not accept is not tried. Each step has a limit of time; what a
//! person is asked has none. The log-in ends with a list of everything that was tried, and why each
//! failed, without any secret.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use russh::MethodKind;
use russh::client::{AuthResult, Handle, KeyboardInteractiveAuthResponse, Prompt};
use russh::keys::agent::AgentIdentity;
use russh::keys::agent::client::{AgentClient, AgentStream};
use russh::keys::{Algorithm, Certificate, HashAlg, PrivateKey, PrivateKeyWithHashAlg};
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::ssh::handler::Handler;
use crate::ssh::{SshError, SshOptions};

mod keys;

pub use keys::{KeyFile, Presence};

/// How often a server may ask for more, before it is taken for a trap.
const QUESTION_ROUNDS: usize = 16;

/// How many questions a server may ask at a time.
const QUESTIONS: usize = 16;

/// A text that is wiped when it is dropped and never shown.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes a text.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The text.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// A question that a server asks during the log-in. Its texts come from the server: show them
/// escaped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// `user@host:port`.
    pub target: String,
    /// What the server says before its questions; may be empty.
    pub instructions: String,
    /// The question.
    pub prompt: String,
    /// Whether the answer may be seen while it is typed.
    pub echo: bool,
}

/// Asks a person, or a store of secrets. `None` is a refusal to answer.
#[async_trait]
pub trait Prompter: Send + Sync + fmt::Debug {
    /// The passphrase of an encrypted key file.
    async fn passphrase(&self, key: &Path) -> Option<Secret>;
    /// The password for `target` (`user@host:port`).
    async fn password(&self, target: &str) -> Option<Secret>;
    /// The answer to a question of the server.
    async fn answer(&self, question: &Question) -> Option<Secret>;
}

/// How to log in.
#[derive(Debug, Clone, Default)]
pub struct Authentication {
    /// The socket of the agent (on Windows its named pipe), if there is one.
    pub agent: Option<PathBuf>,
    /// Key files, in the order in which they are tried.
    pub keys: Vec<KeyFile>,
    /// Which of the agent's keys may be offered.
    pub agent_keys: AgentKeys,
    /// The password, also for a single hidden question.
    pub password: Option<Secret>,
    /// Whom to ask for what is not given.
    pub prompter: Option<Arc<dyn Prompter>>,
}

/// Which of the agent's keys may be offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AgentKeys {
    /// All of them.
    #[default]
    All,
    /// Only those of [`Authentication::keys`] (`IdentitiesOnly yes`); their public halves have to be
    /// readable.
    OfKeyFiles,
}

/// What one attempt came to.
enum Outcome {
    In,
    /// Accepted, but the server wants more.
    Partly,
    Refused,
}

struct LogIn<'a> {
    handle: &'a mut Handle<Handler>,
    options: &'a SshOptions,
    /// What the server accepts, as it said last.
    accepted: Vec<MethodKind>,
    /// Whether it said anything yet.
    heard: bool,
    tried: Vec<String>,
}

/// Logs in, or says what was tried.
pub(super) async fn log_in(
    handle: &mut Handle<Handler>,
    options: &SshOptions,
) -> Result<(), SshError> {
    let mut log_in = LogIn {
        handle,
        options,
        accepted: Vec::new(),
        heard: false,
        tried: Vec::new(),
    };
    log_in.run().await
}

impl LogIn<'_> {
    async fn run(&mut self) -> Result<(), SshError> {
        let mut used: Vec<MethodKind> = Vec::new();
        if self.begins_with_keys() {
            // To ask first what is accepted costs a round trip, and a refused key tells as much.
            match self.try_keys().await? {
                Outcome::In => return Ok(()),
                Outcome::Partly | Outcome::Refused => used.push(MethodKind::PublicKey),
            }
        }
        if !self.heard {
            // Nobody is let in by this, but the refusal says what else there is.
            let user = self.options.user.clone();
            let asked = self.handle.authenticate_none(user);
            let result = within(self.options, asked).await?;
            if let Outcome::In = self.take("no credentials", result, Noting::No)? {
                return Ok(());
            }
        }
        loop {
            let mut partly = false;
            for method in [
                MethodKind::PublicKey,
                MethodKind::Password,
                MethodKind::KeyboardInteractive,
            ] {
                if used.contains(&method) || !self.accepted.contains(&method) {
                    continue;
                }
                used.push(method);
                let outcome = match method {
                    MethodKind::PublicKey => self.try_keys().await?,
                    MethodKind::Password => self.try_password().await?,
                    _ => self.try_questions().await?,
                };
                match outcome {
                    Outcome::In => return Ok(()),
                    Outcome::Partly => {
                        // More is wanted: what failed before may now be what is asked for.
                        used = vec![method];
                        partly = true;
                        break;
                    }
                    Outcome::Refused => {}
                }
            }
            if !partly {
                return Err(self.refusal());
            }
        }
    }

    /// Whether there are keys, and nobody who would be asked for a passphrase that may not be needed.
    const fn begins_with_keys(&self) -> bool {
        let authentication = &self.options.authentication;
        let has_keys = authentication.agent.is_some() || !authentication.keys.is_empty();
        has_keys && authentication.prompter.is_none()
    }

    /// Whether the server said that it takes no keys (any more).
    fn takes_no_keys(&self) -> bool {
        self.heard && !self.accepted.contains(&MethodKind::PublicKey)
    }

    fn refusal(&mut self) -> SshError {
        let accepted: Vec<&str> = self.accepted.iter().map(<&str>::from).collect();
        SshError::Refused {
            target: self.options.target(),
            tried: std::mem::take(&mut self.tried),
            accepted: if accepted.is_empty() {
                "nothing more (it ended the log-in)".to_owned()
            } else {
                accepted.join(", ")
            },
        }
    }

    async fn try_keys(&mut self) -> Result<Outcome, SshError> {
        if let Some(socket) = self.options.authentication.agent.clone() {
            match self.try_agent(&socket).await? {
                Outcome::Refused => {}
                done => return Ok(done),
            }
        }
        for file in &self.options.authentication.keys {
            if self.takes_no_keys() {
                break;
            }
            let prompter = self.options.authentication.prompter.as_deref();
            let Some(key) = file.load(prompter).await? else {
                continue;
            };
            let what = format!("key {}", file.path.display());
            if let Some(certificate) = key.certificate {
                let user = self.options.user.clone();
                let asked =
                    self.handle
                        .authenticate_openssh_cert(user, Arc::clone(&key.key), certificate);
                let result = within(self.options, asked).await?;
                match self.take(&format!("{what} with its certificate"), result, Noting::Yes)? {
                    Outcome::Refused => {}
                    done => return Ok(done),
                }
            }
            match self.try_key(&what, key.key).await? {
                Outcome::Refused => {}
                done => return Ok(done),
            }
        }
        Ok(Outcome::Refused)
    }

    async fn try_key(&mut self, what: &str, key: Arc<PrivateKey>) -> Result<Outcome, SshError> {
        let Some(hash) = self.hash_for(&key.algorithm(), what).await? else {
            return Ok(Outcome::Refused);
        };
        let key = PrivateKeyWithHashAlg::new(key, hash);
        let asked = self
            .handle
            .authenticate_publickey(self.options.user.clone(), key);
        let result = within(self.options, asked).await?;
        self.take(what, result, Noting::Yes)
    }

    async fn try_agent(&mut self, socket: &Path) -> Result<Outcome, SshError> {
        let connecting = async {
            let mut agent = connect_agent(socket).await?;
            let identities = agent.request_identities().await?;
            Ok::<_, russh::keys::Error>((agent, identities))
        };
        let (mut agent, identities) = match timeout(self.options.connect_timeout, connecting).await
        {
            Ok(Ok(connected)) => connected,
            Ok(Err(error)) => {
                self.tried
                    .push(format!("agent at {} ({error})", socket.display()));
                return Ok(Outcome::Refused);
            }
            Err(_elapsed) => {
                self.tried.push(format!(
                    "agent at {} (it does not answer)",
                    socket.display()
                ));
                return Ok(Outcome::Refused);
            }
        };
        let identities = self.chosen(identities).await;
        if identities.is_empty() {
            self.tried
                .push("agent (it has no key that may be used)".to_owned());
        }
        for identity in identities {
            if self.takes_no_keys() {
                break;
            }
            let key = identity.public_key().into_owned();
            let what = format!("agent's key {}", key.fingerprint(HashAlg::Sha256));
            let Some(hash) = self.hash_for(&key.algorithm(), &what).await? else {
                continue;
            };
            let user = self.options.user.clone();
            // A person may have to confirm at the agent, so this waits longer than the network may.
            let result = match identity {
                AgentIdentity::PublicKey { key, .. } => {
                    self.handle
                        .authenticate_publickey_with(user, key, hash, &mut agent)
                        .await
                }
                AgentIdentity::Certificate { certificate, .. } => {
                    let handle = &mut *self.handle;
                    handle
                        .authenticate_certificate_with(user, certificate, hash, &mut agent)
                        .await
                }
            };
            match result {
                Ok(result) => match self.take(&what, result, Noting::Yes)? {
                    Outcome::Refused => {}
                    done => return Ok(done),
                },
                Err(error) => self.tried.push(format!("{what} (the agent: {error})")),
            }
        }
        Ok(Outcome::Refused)
    }

    /// The agent's keys in the order of OpenSSH: those of the key files first.
    async fn chosen(&self, identities: Vec<AgentIdentity>) -> Vec<AgentIdentity> {
        let mut wanted = Vec::new();
        for file in &self.options.authentication.keys {
            wanted.extend(file.public_half().await);
        }
        let place = |identity: &AgentIdentity| {
            let key = identity.public_key().into_owned();
            wanted
                .iter()
                .position(|wanted| wanted.key_data() == key.key_data())
        };
        let mut placed: Vec<(usize, AgentIdentity)> = identities
            .into_iter()
            .map(|identity| (place(&identity).unwrap_or(usize::MAX), identity))
            .collect();
        if self.options.authentication.agent_keys == AgentKeys::OfKeyFiles {
            placed.retain(|(place, _)| *place != usize::MAX);
        }
        placed.sort_by_key(|(place, _)| *place);
        placed.into_iter().map(|(_, identity)| identity).collect()
    }

    /// The hash to sign with; the outer `None` if this server takes only SHA-1.
    async fn hash_for(
        &mut self,
        algorithm: &Algorithm,
        what: &str,
    ) -> Result<Option<Option<HashAlg>>, SshError> {
        if !matches!(algorithm, Algorithm::Rsa { .. }) {
            return Ok(Some(None));
        }
        let offered = within(self.options, self.handle.best_supported_rsa_hash()).await?;
        match offered {
            Some(Some(hash)) => Ok(Some(Some(hash))),
            Some(None) => {
                self.tried
                    .push(format!("{what} (the server takes RSA only with SHA-1)"));
                Ok(None)
            }
            // It does not say; every server of the last ten years takes this.
            None => Ok(Some(Some(HashAlg::Sha512))),
        }
    }

    async fn try_password(&mut self) -> Result<Outcome, SshError> {
        let Some(password) = self.password().await else {
            return Ok(Outcome::Refused);
        };
        let user = self.options.user.clone();
        let asked = self.handle.authenticate_password(user, password.expose());
        let result = within(self.options, asked).await?;
        self.take("password", result, Noting::Yes)
    }

    async fn password(&self) -> Option<Secret> {
        let authentication = &self.options.authentication;
        if let Some(password) = &authentication.password {
            return Some(password.clone());
        }
        match &authentication.prompter {
            Some(prompter) => prompter.password(&self.options.target()).await,
            None => None,
        }
    }

    async fn try_questions(&mut self) -> Result<Outcome, SshError> {
        let authentication = &self.options.authentication;
        if authentication.password.is_none() && authentication.prompter.is_none() {
            return Ok(Outcome::Refused);
        }
        let user = self.options.user.clone();
        let asked = self
            .handle
            .authenticate_keyboard_interactive_start(user, None::<String>);
        let mut response = within(self.options, asked).await?;
        for _round in 0..QUESTION_ROUNDS {
            match response {
                KeyboardInteractiveAuthResponse::Success => return Ok(Outcome::In),
                KeyboardInteractiveAuthResponse::Failure {
                    remaining_methods,
                    partial_success,
                } => {
                    let result = AuthResult::Failure {
                        remaining_methods,
                        partial_success,
                    };
                    return self.take("keyboard-interactive", result, Noting::Yes);
                }
                KeyboardInteractiveAuthResponse::InfoRequest {
                    instructions,
                    prompts,
                    ..
                } => {
                    let Some(answers) = self.answers(&instructions, prompts).await else {
                        self.tried
                            .push("keyboard-interactive (a question has no answer)".into());
                        return Ok(Outcome::Refused);
                    };
                    let asked = self
                        .handle
                        .authenticate_keyboard_interactive_respond(answers);
                    response = within(self.options, asked).await?;
                }
            }
        }
        self.tried
            .push("keyboard-interactive (the server asks without end)".to_owned());
        Ok(Outcome::Refused)
    }

    async fn answers(&self, instructions: &str, prompts: Vec<Prompt>) -> Option<Vec<String>> {
        if prompts.len() > QUESTIONS {
            return None;
        }
        let authentication = &self.options.authentication;
        // One hidden question is the password under another name.
        if let ([Prompt { echo: false, .. }], Some(password)) =
            (prompts.as_slice(), &authentication.password)
        {
            return Some(vec![password.expose().to_owned()]);
        }
        let mut answers = Vec::with_capacity(prompts.len());
        for prompt in prompts {
            let question = Question {
                target: self.options.target(),
                instructions: instructions.to_owned(),
                prompt: prompt.prompt,
                echo: prompt.echo,
            };
            let answer = authentication.prompter.as_ref()?.answer(&question).await?;
            answers.push(answer.expose().to_owned());
        }
        Some(answers)
    }

    fn take(
        &mut self,
        what: &str,
        result: AuthResult,
        noting: Noting,
    ) -> Result<Outcome, SshError> {
        match result {
            AuthResult::Success => Ok(Outcome::In),
            AuthResult::Failure {
                remaining_methods,
                partial_success,
            } => {
                self.accepted = remaining_methods.to_vec();
                self.heard = true;
                if partial_success {
                    self.tried
                        .push(format!("{what} (accepted, but not enough)"));
                    return Ok(Outcome::Partly);
                }
                if noting == Noting::Yes {
                    self.tried.push(what.to_owned());
                }
                if self.handle.is_closed() {
                    self.tried
                        .push("the server then ended the connection".to_owned());
                    return Err(self.refusal());
                }
                Ok(Outcome::Refused)
            }
        }
    }
}

type Agent = AgentClient<Box<dyn AgentStream + Send + Unpin>>;

#[cfg(unix)]
async fn connect_agent(socket: &Path) -> Result<Agent, russh::keys::Error> {
    Ok(AgentClient::connect_uds(socket).await?.dynamic())
}

#[cfg(windows)]
async fn connect_agent(pipe: &Path) -> Result<Agent, russh::keys::Error> {
    Ok(AgentClient::connect_named_pipe(pipe).await?.dynamic())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Noting {
    Yes,
    No,
}

/// A step of the log-in, with its limit.
async fn within<T>(
    options: &SshOptions,
    step: impl Future<Output = Result<T, russh::Error>> + Send,
) -> Result<T, SshError> {
    match timeout(options.connect_timeout, step).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(SshError::Unreachable {
            target: options.target(),
            source: Box::new(source),
        }),
        Err(_elapsed) => Err(SshError::Silent {
            target: options.target(),
            doing: "logging in",
            limit: options.connect_timeout,
        }),
    }
}

/// Until when an OpenSSH certificate is valid: nothing in it if it is for ever, nothing at all if `text` is
/// none.
#[must_use]
pub fn certificate_expiry(text: &str) -> Option<Option<knarr_core::Timestamp>> {
    let certificate = Certificate::from_openssh(text.trim()).ok()?;
    let seconds = i64::try_from(certificate.valid_before()).ok();
    Some(seconds.map(knarr_core::Timestamp::from_seconds))
}

/// A key that is ready to be used.
struct LoadedKey {
    key: Arc<PrivateKey>,
    certificate: Option<Certificate>,
}
