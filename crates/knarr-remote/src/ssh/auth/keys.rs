//! Key files: OpenSSH's own format and PEM, encrypted or not.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use russh::keys::{Certificate, PrivateKey, PublicKey, decode_secret_key};
use zeroize::Zeroizing;

use super::{LoadedKey, Prompter, Secret};
use crate::ssh::SshError;

/// The longest key file, in bytes.
const KEY_LIMIT_BYTES: u64 = 1024 * 1024;

/// Whether a key file has to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// Somebody asked for it: if it cannot be used, that is an error.
    Required,
    /// It is tried if it is there (`~/.ssh/id_ed25519`).
    Optional,
}

/// A private key in a file.
#[derive(Debug, Clone)]
pub struct KeyFile {
    /// The file. Its public half (`.pub`) and certificate (`-cert.pub`) are used if they are there.
    pub path: PathBuf,
    /// Its passphrase, if it is encrypted and the passphrase is known.
    pub passphrase: Option<Secret>,
    /// Whether it has to be there.
    pub presence: Presence,
}

impl KeyFile {
    /// A key file that has to be there.
    #[must_use]
    pub fn required(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            passphrase: None,
            presence: Presence::Required,
        }
    }

    /// A key file that is tried if it is there.
    #[must_use]
    pub fn optional(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            passphrase: None,
            presence: Presence::Optional,
        }
    }

    /// The key, or nothing if it is not there and need not be.
    pub(super) async fn load(
        &self,
        prompter: Option<&dyn Prompter>,
    ) -> Result<Option<LoadedKey>, SshError> {
        match self.try_load(prompter).await {
            Ok(key) => Ok(Some(key)),
            Err(reason) => match self.presence {
                Presence::Required => Err(SshError::Key {
                    path: self.path.display().to_string(),
                    reason,
                }),
                Presence::Optional => {
                    tracing::debug!(path = %self.path.display(), reason, "key not used");
                    Ok(None)
                }
            },
        }
    }

    async fn try_load(&self, prompter: Option<&dyn Prompter>) -> Result<LoadedKey, String> {
        let path = self.path.clone();
        let text = Zeroizing::new(read(path).await.map_err(|error| error.to_string())?);
        let mut passphrase = self.passphrase.clone();
        if passphrase.is_none() && is_encrypted(&text) {
            passphrase = match prompter {
                Some(prompter) => prompter.passphrase(&self.path).await,
                None => None,
            };
            if passphrase.is_none() {
                let advice = "it is encrypted, and its passphrase was not given: store it as a secret, or load the key into an agent";
                return Err(advice.to_owned());
            }
        }
        // Deriving the key from a passphrase is slow on purpose.
        let decoded = tokio::task::spawn_blocking(move || {
            let passphrase = passphrase.filter(|_| is_encrypted(&text));
            decode_secret_key(&text, passphrase.as_ref().map(Secret::expose))
        });
        let key: PrivateKey = match decoded.await {
            Ok(Ok(key)) => key,
            Ok(Err(error)) if self.passphrase.is_some() => {
                return Err(format!("{error}; is the passphrase right?"));
            }
            Ok(Err(error)) => return Err(error.to_string()),
            Err(error) => return Err(error.to_string()),
        };
        let certificate = read(with_ending(&self.path, "-cert.pub")).await.ok();
        let certificate = certificate.and_then(|text| Certificate::from_openssh(text.trim()).ok());
        Ok(LoadedKey {
            key: Arc::new(key),
            certificate,
        })
    }

    /// The public half, if it can be read without a passphrase.
    pub(super) async fn public_half(&self) -> Option<PublicKey> {
        if let Ok(text) = read(with_ending(&self.path, ".pub")).await
            && let Ok(key) = PublicKey::from_openssh(text.trim())
        {
            return Some(key);
        }
        // OpenSSH's own format keeps the public half in the clear.
        let text = Zeroizing::new(read(self.path.clone()).await.ok()?);
        PrivateKey::from_openssh(text.as_bytes())
            .ok()
            .map(|key| key.public_key().clone())
    }
}

fn is_encrypted(text: &str) -> bool {
    match PrivateKey::from_openssh(text) {
        Ok(key) => key.is_encrypted(),
        // The headers of PEM say so in words.
        Err(_) => text.lines().take(4).any(|line| line.contains("ENCRYPTED")),
    }
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

async fn read(path: PathBuf) -> std::io::Result<String> {
    let reading = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        std::fs::File::open(path)?
            .take(KEY_LIMIT_BYTES)
            .read_to_string(&mut text)?;
        Ok(text)
    });
    reading
        .await
        .unwrap_or_else(|error| Err(std::io::Error::other(error)))
}
