//! Where secrets come from: the store of `knarr secret set`, or the environment.
//!
//! Constraints: nothing here shows a secret; the key of the store lies outside of the state directory;
//! the state is opened only when a secret in it is needed.

use std::path::{Path, PathBuf};

use knarr_store::Store;
use knarr_store::secrets::{KeySource, SecretValue};
use tokio::sync::OnceCell;
use zeroize::Zeroizing;

use crate::cli::context::Context;
use crate::command_error::CommandError;
use crate::config::{Config, SecretSource};
use crate::environment::Environment;

/// The variable that may hold the key of the secrets, as 64 hexadecimal digits.
const KEY_VARIABLE: &str = "KNARR_SECRET_KEY";
/// The name of the key as a systemd credential.
const KEY_CREDENTIAL: &str = "knarr-secret-key";

/// Fetches secrets.
pub(crate) struct Secrets<'c> {
    context: &'c Context,
    state: Result<PathBuf, String>,
    store: OnceCell<Store>,
}

/// Why a secret cannot be had.
#[derive(Debug, thiserror::Error)]
enum MissingSecret {
    #[error("the environment variable {0}, which the configuration names as a secret, is not set")]
    Variable(String),
    #[error("the secret `{0}` is not UTF-8")]
    NotText(String),
    #[error("there is no place for Knarr's state: {0}")]
    NoState(String),
}

impl<'c> Secrets<'c> {
    pub(crate) fn new(context: &'c Context, config: &Config) -> Self {
        Self {
            context,
            state: context.state_of(config).map_err(|error| error.to_string()),
            store: OnceCell::new(),
        }
    }

    /// The store, opened when it is first needed.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub(crate) async fn store(&self) -> Result<&Store, CommandError> {
        self.store
            .get_or_try_init(|| async {
                let state = self.state.as_ref().map_err(|reason| {
                    CommandError::usage(MissingSecret::NoState(reason.clone()))
                })?;
                self.context.open_store(state)
            })
            .await
    }

    /// The secret, if one is named.
    ///
    /// # Errors
    /// If it cannot be had.
    pub(crate) async fn get_if(
        &self,
        source: Option<&SecretSource>,
    ) -> Result<Option<Zeroizing<String>>, CommandError> {
        match source {
            Some(source) => self.get(source).await.map(Some),
            None => Ok(None),
        }
    }

    /// The secret.
    ///
    /// # Errors
    /// If it cannot be had.
    pub(crate) async fn get(
        &self,
        source: &SecretSource,
    ) -> Result<Zeroizing<String>, CommandError> {
        let name = match source {
            SecretSource::Env(name) => {
                return Environment::variable(name)
                    .map(Zeroizing::new)
                    .ok_or_else(|| CommandError::usage(MissingSecret::Variable(name.clone())));
            }
            SecretSource::Secret(name) => name,
        };
        let store = self.store().await?;
        let secrets =
            knarr_store::secrets::Secrets::new(store.clone(), key_source(self.context, store));
        // Small and rare: one row and one small file.
        let value = secrets.get(name).map_err(CommandError::usage)?;
        let text = value
            .as_text()
            .ok_or_else(|| CommandError::usage(MissingSecret::NotText(name.clone())))?;
        Ok(Zeroizing::new(text.to_owned()))
    }
}

/// Where the key of the secrets is: given in the environment, given by systemd, or in a file beside
/// the configuration.
pub(crate) fn key_source(context: &Context, store: &Store) -> KeySource {
    if let Some(digits) = Environment::variable(KEY_VARIABLE) {
        return KeySource::Given(SecretValue::new(digits.into_bytes()));
    }
    if let Some(directory) = Environment::variable("CREDENTIALS_DIRECTORY") {
        let path = Path::new(&directory).join(KEY_CREDENTIAL);
        if path.is_file() {
            return KeySource::Credential(path);
        }
    }
    let system = Path::new("/var/lib/knarr");
    let directory = match context.environment.config_home() {
        Some(home) if store.directory() != system => home.join("knarr"),
        _ => PathBuf::from("/etc/knarr"),
    };
    KeySource::File(directory.join("secret.key"))
}
