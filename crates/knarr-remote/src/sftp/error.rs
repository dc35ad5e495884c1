//! What a server's refusal means.

use knarr_core::RelPath;
use knarr_sftp::codec::Extension;
use knarr_sftp::{Error, StatusCode};

use crate::error::{ErrorKind, RemoteError, Retry};
use crate::sftp::connection::Connection;

/// Space below which a failed write is put down to a full disk, in bytes.
const HARDLY_ANY_BYTES: u64 = 256 * 1024;

/// The error of an operation that has no path of its own.
pub(super) fn translate(connection: &Connection, operation: &str, source: Error) -> RemoteError {
    let operation = operation.to_owned();
    match &source {
        Error::Status { code, message, .. } => {
            let kind = status_kind(*code, message);
            let said = said(*code, message);
            let retry = match kind {
                // Version 3 has no better word: it may be anything.
                ErrorKind::Other => Retry::Later,
                kind => RemoteError::new(kind, "", "").retry,
            };
            RemoteError::new(kind, operation, said).with_retry(retry)
        }
        Error::ConnectionLost { reason } if reason.is_protocol_violation() => {
            let message = format!("{} broke the SFTP protocol", connection.endpoint());
            RemoteError::new(ErrorKind::Protocol, operation, message).caused_by(source)
        }
        // The line broke once; whether the server is down, the next attempt to connect will say.
        Error::ConnectionLost { .. } => {
            let message = format!("the connection to {} was lost", connection.endpoint());
            RemoteError::new(ErrorKind::Unreachable, operation, message)
                .with_retry(Retry::Later)
                .caused_by(source)
        }
        Error::ExtensionMissing { .. } => {
            RemoteError::new(ErrorKind::Unsupported, operation, source.to_string())
        }
        Error::Unsendable { .. } => {
            let message = "it cannot be asked about: is the path too long?";
            RemoteError::new(ErrorKind::InvalidName, operation, message).caused_by(source)
        }
        Error::EndedEarly { .. } | Error::Grew { .. } => {
            RemoteError::new(ErrorKind::Changed, operation, source.to_string())
        }
        Error::DirectoryTooLarge { .. } => {
            RemoteError::new(ErrorKind::Other, operation, source.to_string())
                .with_retry(Retry::Never)
        }
        _ => RemoteError::new(ErrorKind::Other, operation, source.to_string()),
    }
}

/// The error of an operation on a path.
pub(super) fn at(
    connection: &Connection,
    operation: &str,
    path: &RelPath,
    source: Error,
) -> RemoteError {
    translate(connection, operation, source).at(path)
}

/// The error of an operation that takes space: a bare failure is looked into.
pub(super) async fn while_writing(
    connection: &Connection,
    directory: &[u8],
    operation: &str,
    path: &RelPath,
    source: Error,
) -> RemoteError {
    let bare = source.is_failure();
    let error = at(connection, operation, path, source);
    if !bare || error.kind != ErrorKind::Other || !connection.has(Extension::Statvfs) {
        return error;
    }
    let directory: &[u8] = if directory.is_empty() {
        b"."
    } else {
        directory
    };
    match connection.client().filesystem_statistics(directory).await {
        Ok(space) if space.is_read_only() => {
            let message = "the file system of the server is read-only";
            RemoteError::new(ErrorKind::ReadOnly, operation, message).at(path)
        }
        Ok(space) if space.available_bytes() < HARDLY_ANY_BYTES => {
            let message = "the disk of the server is full";
            RemoteError::new(ErrorKind::NoSpace, operation, message).at(path)
        }
        Ok(space) if space.inodes > 0 && space.inodes_available == 0 => {
            let message = "the disk of the server has no room for another file (no inodes)";
            RemoteError::new(ErrorKind::NoSpace, operation, message).at(path)
        }
        _ => error,
    }
}

/// The error of a connection on which SFTP did not start.
pub(super) fn not_started(operation: String, source: Error) -> RemoteError {
    if source.is_protocol_violation() {
        let message = "the server does not speak SFTP as it should; does its shell print something at log-in?";
        return RemoteError::new(ErrorKind::Protocol, operation, message)
            .with_retry(Retry::Never)
            .caused_by(source);
    }
    let message = "the server did not start SFTP";
    RemoteError::new(ErrorKind::Unreachable, operation, message).caused_by(source)
}

/// An error with its causes on one line.
pub(super) fn told(error: &RemoteError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn status_kind(code: StatusCode, message: &str) -> ErrorKind {
    match code {
        StatusCode::NoSuchFile => ErrorKind::NotFound,
        StatusCode::PermissionDenied => ErrorKind::PermissionDenied,
        StatusCode::OperationUnsupported => ErrorKind::Unsupported,
        // OpenSSH says so to names that are too long.
        StatusCode::BadMessage => ErrorKind::InvalidName,
        // What later versions of the protocol added; some servers send it to everybody.
        StatusCode::Other(11) => ErrorKind::AlreadyExists,
        StatusCode::Other(12) => ErrorKind::ReadOnly,
        StatusCode::Other(14 | 15) => ErrorKind::NoSpace,
        StatusCode::Other(18) => ErrorKind::NotEmpty,
        StatusCode::Other(20) => ErrorKind::InvalidName,
        StatusCode::Other(24) => ErrorKind::WrongKind,
        _ => kind_by_words(message),
    }
}

/// A failure is told from others only by what the server says about it, if it says anything.
fn kind_by_words(message: &str) -> ErrorKind {
    let message = message.to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
    if says(&["no space", "disk full", "disk is full", "quota"]) {
        ErrorKind::NoSpace
    } else if says(&["read-only", "read only"]) {
        ErrorKind::ReadOnly
    } else if says(&["already exist", "file exists"]) {
        ErrorKind::AlreadyExists
    } else if says(&["not empty"]) {
        ErrorKind::NotEmpty
    } else if says(&["is a directory", "not a directory"]) {
        ErrorKind::WrongKind
    } else if says(&["name too long"]) {
        ErrorKind::InvalidName
    } else {
        ErrorKind::Other
    }
}

fn said(code: StatusCode, message: &str) -> String {
    let message = message.trim();
    let same = message.eq_ignore_ascii_case(&code.to_string());
    if message.is_empty() || same {
        format!("the server says: {code}")
    } else {
        let shown = knarr_core::path::printable(message.as_bytes()).to_string();
        format!("the server says: {shown} ({code})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r48_what_a_server_says_in_words_is_understood() {
        for (message, kind) in [
            ("Failure", ErrorKind::Other),
            ("No space left on device", ErrorKind::NoSpace),
            ("Disk quota exceeded", ErrorKind::NoSpace),
            ("File exists", ErrorKind::AlreadyExists),
            ("Directory not empty", ErrorKind::NotEmpty),
            ("Read-only file system", ErrorKind::ReadOnly),
        ] {
            assert_eq!(status_kind(StatusCode::Failure, message), kind, "{message}");
        }
        assert_eq!(
            status_kind(StatusCode::NoSuchFile, "whatever"),
            ErrorKind::NotFound
        );
    }

    #[test]
    fn h06_what_a_server_says_cannot_drive_a_terminal() {
        let text = said(StatusCode::Failure, "\u{1b}[31m\nok");
        assert!(!text.contains('\u{1b}') && !text.contains('\n'), "{text:?}");
    }
}
