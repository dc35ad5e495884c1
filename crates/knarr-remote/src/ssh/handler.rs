//! Judges the server during the key exchange, and notes why a session ended.

use std::sync::{Arc, Mutex, PoisonError};

use knarr_core::Clock;
use russh::client::{DisconnectReason, Session};
use russh::keys::{Algorithm, PublicKey, PublicKeyOrCertificate};
use russh::{Names, client};

use crate::ssh::SshError;
use crate::ssh::algorithms::weakness;
use crate::ssh::host_key::HostKeyFingerprint;
use crate::ssh::known_hosts::{KnownHosts, Verdict, host_with_port, shown};

/// Why a session ended, once it has.
pub(super) type Ending = Arc<Mutex<Option<String>>>;

/// What a server is judged by.
#[derive(Debug)]
pub(super) enum Judge {
    Known { hosts: KnownHosts, files: String },
    Pinned(Vec<HostKeyFingerprint>),
}

/// Where a key was presented that is not pinned: another type may be.
pub(super) type Presented = Arc<Mutex<Option<Algorithm>>>;

#[derive(Debug)]
pub(super) struct Handler {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) target: String,
    pub(super) judge: Judge,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) ending: Ending,
    pub(super) presented: Presented,
}

/// An error inside a session: ours keeps its own words.
#[derive(Debug)]
pub(super) enum HandlerError {
    Ours(Box<SshError>),
    Russh(russh::Error),
}

impl From<russh::Error> for HandlerError {
    fn from(error: russh::Error) -> Self {
        Self::Russh(error)
    }
}

impl Handler {
    fn judge(&self, presented: &PublicKeyOrCertificate) -> Result<(), SshError> {
        let key = presented.public_key();
        if let Ok(mut slot) = self.presented.lock() {
            *slot = Some(key.algorithm());
        }
        let host = host_with_port(&self.host, self.port);
        let shown_key = shown(key.key_data());
        let (verdict, files) = match &self.judge {
            Judge::Pinned(pins) => return self.judge_pinned(&key, pins, host, shown_key),
            Judge::Known { hosts, files } => (self.look_up(hosts, presented, &key), files),
        };
        match verdict {
            Verdict::Trusted => Ok(()),
            Verdict::Unknown => Err(SshError::UnknownHostKey {
                host,
                key: shown_key,
                files: files.clone(),
            }),
            Verdict::Changed { place, known } => Err(SshError::HostKeyChanged {
                remedy: format!(
                    "remove the old key with `ssh-keygen -R '{host}'` and add the new one"
                ),
                host,
                key: shown_key,
                expected: format!("{place} knows it with {known}"),
            }),
            Verdict::Revoked { place } => {
                let place = place.to_string();
                Err(SshError::HostKeyRevoked {
                    host,
                    key: shown_key,
                    place,
                })
            }
            Verdict::BadCertificate { reason } => Err(SshError::HostCertificate { host, reason }),
        }
    }

    fn look_up(
        &self,
        hosts: &KnownHosts,
        presented: &PublicKeyOrCertificate,
        key: &PublicKey,
    ) -> Verdict {
        match presented.certificate() {
            Some(certificate) => {
                let now = u64::try_from(self.clock.now().seconds()).unwrap_or(0);
                hosts.check_certificate(&self.host, self.port, certificate, now)
            }
            None => hosts.check(&self.host, self.port, key),
        }
    }

    fn judge_pinned(
        &self,
        key: &PublicKey,
        pins: &[HostKeyFingerprint],
        host: String,
        shown_key: String,
    ) -> Result<(), SshError> {
        if pins.iter().any(|pin| pin.is_of(key)) {
            return Ok(());
        }
        let pinned: Vec<String> = pins.iter().map(ToString::to_string).collect();
        Err(SshError::HostKeyChanged {
            host,
            key: shown_key,
            expected: format!("{} is pinned", pinned.join(" or ")),
            remedy: "change the pinned `host_key`".to_owned(),
        })
    }
}

impl client::Handler for Handler {
    type Error = HandlerError;

    async fn check_server_key(
        &mut self,
        presented: &PublicKeyOrCertificate,
    ) -> Result<bool, HandlerError> {
        match self.judge(presented) {
            Ok(()) => Ok(true),
            Err(error) => Err(HandlerError::Ours(Box::new(error))),
        }
    }

    async fn kex_done(
        &mut self,
        _shared_secret: Option<&[u8]>,
        names: &Names,
        _session: &mut Session,
    ) -> Result<(), HandlerError> {
        tracing::debug!(
            target = self.target,
            kex = names.kex.as_ref(),
            cipher = names.cipher.as_ref(),
            key = %names.key,
            strict = names.strict_kex(),
            "keys exchanged"
        );
        match weakness(names) {
            None => Ok(()),
            Some(weak) => {
                let target = self.target.clone();
                Err(HandlerError::Ours(Box::new(SshError::Weak {
                    target,
                    weak,
                })))
            }
        }
    }

    async fn auth_banner(
        &mut self,
        banner: &str,
        _session: &mut Session,
    ) -> Result<(), HandlerError> {
        let shown: String = banner
            .chars()
            .take(1_024)
            .flat_map(char::escape_debug)
            .collect();
        tracing::debug!(target = self.target, banner = shown, "banner");
        Ok(())
    }

    async fn disconnected(
        &mut self,
        reason: DisconnectReason<HandlerError>,
    ) -> Result<(), HandlerError> {
        let text = match reason {
            DisconnectReason::ReceivedDisconnect(info) => {
                let message: String = info
                    .message
                    .chars()
                    .take(512)
                    .flat_map(char::escape_debug)
                    .collect();
                format!("the server disconnected ({message})")
            }
            DisconnectReason::Error(HandlerError::Russh(error)) => match error {
                russh::Error::KeepaliveTimeout | russh::Error::InactivityTimeout => {
                    "the server was silent, also when asked whether it is still there".to_owned()
                }
                russh::Error::Disconnect | russh::Error::HUP => {
                    "the connection was closed".to_owned()
                }
                error => error.to_string(),
            },
            DisconnectReason::Error(HandlerError::Ours(error)) => error.to_string(),
        };
        tracing::debug!(target = self.target, reason = text, "session ended");
        *self.ending.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
        Ok(())
    }
}
