//! What clients of the SFTP server do, as lines of the log.

use knarr_core::path::printable;
use knarr_serve::event::{FileEnd, LogIn, ServeEvent, ServeObserver, UploadedAt};

/// Logs what clients do.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Logged;

impl ServeObserver for Logged {
    fn observe(&self, event: &ServeEvent<'_>) {
        match event {
            ServeEvent::Refused { peer, reason } => {
                tracing::debug!(%peer, ?reason, "connection refused");
            }
            ServeEvent::LogIn { .. } => log_in(event),
            ServeEvent::Operation { .. } => operation(event),
            ServeEvent::Closed { .. } | ServeEvent::Uploaded { .. } => file(event),
            ServeEvent::Ended {
                session,
                user,
                reason,
            } => {
                let (peer, number) = (session.peer, session.number);
                let reason = shown(reason.as_bytes());
                tracing::debug!(%peer, session = number, user, reason, "connection ended");
            }
            _ => {}
        }
    }
}

fn log_in(event: &ServeEvent<'_>) {
    let ServeEvent::LogIn {
        session,
        user,
        method,
        fingerprint,
        outcome,
    } = event
    else {
        return;
    };
    let (peer, number, user) = (session.peer, session.number, shown(user.as_bytes()));
    let (method, text) = (method.name(), outcome.text());
    if matches!(outcome, LogIn::Accepted | LogIn::Partial) {
        tracing::info!(%peer, session = number, user, method, key = fingerprint, "log-in: {text}");
    } else {
        tracing::warn!(%peer, session = number, user, method, key = fingerprint, "log-in refused: {text}");
    }
}

fn operation(event: &ServeEvent<'_>) {
    let ServeEvent::Operation {
        session,
        user,
        operation,
        path,
        other,
        outcome,
    } = event
    else {
        return;
    };
    let (operation, number, path) = (operation.name(), session.number, shown(path));
    let other = other.map(shown);
    match outcome {
        Ok(()) => tracing::debug!(session = number, user, path, other, "{operation}"),
        Err(error) => {
            tracing::info!(session = number, user, path, other, %error, "{operation} refused");
        }
    }
}

fn file(event: &ServeEvent<'_>) {
    match event {
        ServeEvent::Closed {
            session,
            user,
            path,
            read_bytes,
            written_bytes,
            end,
            ..
        } => {
            let (number, path) = (session.number, shown(path));
            let text = match end {
                FileEnd::Closed => "closed",
                FileEnd::Failed => "could not be closed",
                FileEnd::Abandoned => "left open",
            };
            tracing::info!(
                session = number,
                user,
                path,
                read_bytes,
                written_bytes,
                "{text}"
            );
        }
        ServeEvent::Uploaded {
            session,
            user,
            path,
            at,
            length_bytes,
            verdict,
        } => {
            let at = match at {
                UploadedAt::Local(path) => shown(path.as_os_str().as_encoded_bytes()),
                UploadedAt::Remote { location, path } => format!("{location}/{}", printable(path)),
            };
            let (number, path) = (session.number, shown(path));
            tracing::info!(
                session = number,
                user,
                path,
                at,
                length_bytes,
                ?verdict,
                "uploaded"
            );
        }
        _ => {}
    }
}

fn shown(bytes: &[u8]) -> String {
    printable(bytes).to_string()
}
