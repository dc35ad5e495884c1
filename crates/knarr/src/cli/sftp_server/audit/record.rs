//! From events of the SFTP server to records.
//!
//! Names come from clients: as a path stands only what is one, everything else is text of a limited length.

use std::net::SocketAddr;

use knarr_core::path::printable;
use knarr_core::record::{Action, CustodyRecord, Evidence};
use knarr_core::{RelPath, Timestamp};
use knarr_serve::event::{FileEnd, LogIn, ServeEvent, SessionName, UploadedAt, Verdict};
use knarr_serve::files::{FileError, Operation};

use crate::cli::sftp_server::audit::tally::{Counts, Who};

/// What stands where the job stands.
pub(super) const JOB: &str = "sftp-server";
/// Characters of a name that is only text: of a user who may be none, of what is no path.
const LONGEST: usize = 64;
/// The longest path of a request that was refused, in bytes: whoever is let in could make them at will.
const LONGEST_REFUSED: usize = 512;

fn blank(action: Action, path: RelPath, at: Timestamp) -> CustodyRecord {
    CustodyRecord {
        at,
        run: 0,
        job: JOB.to_owned(),
        path,
        action,
        source: String::new(),
        destination: String::new(),
        size: 0,
        mtime: None,
        source_hash: None,
        evidence: Evidence::None,
        seen_at: None,
        complete_because: None,
        steps: Vec::new(),
        attempt: 1,
        moved_bytes: 0,
        duration_microseconds: 0,
        message: None,
        decided_by: JOB.to_owned(),
    }
}

/// About no path; a record has one.
fn about_none() -> RelPath {
    RelPath::from_name(b"*").expect("a star is a name")
}

fn short(bytes: &[u8]) -> String {
    let text = printable(bytes).to_string();
    if text.chars().count() <= LONGEST {
        return text;
    }
    let mut cut: String = text.chars().take(LONGEST).collect();
    cut.push('…');
    cut
}

/// The path that a client means, from its root; if it is none, it is told as text.
fn path_of(written: &[u8]) -> (RelPath, Option<String>) {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in written.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    match RelPath::new(parts.join(&b'/')) {
        Ok(path) => (path, None),
        Err(_) => (about_none(), Some(format!("\"{}\"", short(written)))),
    }
}

fn client(user: &str, peer: SocketAddr) -> String {
    format!("{}@{peer}", short(user.as_bytes()))
}

fn told(parts: impl IntoIterator<Item = Option<String>>, session: &SessionName) -> Option<String> {
    let mut parts: Vec<String> = parts.into_iter().flatten().collect();
    parts.push(format!("session {}", session.number));
    Some(parts.join(", "))
}

pub(super) fn log_in(event: &ServeEvent<'_>, at: Timestamp) -> Option<CustodyRecord> {
    let ServeEvent::LogIn {
        session,
        user,
        method,
        fingerprint,
        outcome,
    } = event
    else {
        return None;
    };
    let action = match outcome {
        LogIn::Accepted | LogIn::Partial => Action::LoggedIn,
        _ => Action::LogInRefused,
    };
    let mut record = blank(action, about_none(), at);
    record.source = client(user, session.peer);
    record.decided_by = short(user.as_bytes());
    let by = fingerprint.map_or_else(
        || format!("by {}", method.name()),
        |key| format!("by {} {key}", method.name()),
    );
    let why = (*outcome != LogIn::Accepted).then(|| outcome.text().to_owned());
    record.message = told([why, Some(by)], session);
    Some(record)
}

/// What an operation is in the record; nothing for those that change nothing or are told when the file is closed.
const fn action_of(operation: Operation) -> Option<Action> {
    match operation {
        Operation::Remove | Operation::Rmdir => Some(Action::Removed),
        Operation::Rename | Operation::PosixRename => Some(Action::Moved),
        Operation::Mkdir
        | Operation::Setstat
        | Operation::Fsetstat
        | Operation::Lsetstat
        | Operation::Symlink
        | Operation::Hardlink
        | Operation::CopyData => Some(Action::Changed),
        _ => None,
    }
}

/// Whether a refusal is one: that something is not there, or is there already, is how clients find out.
pub(super) fn is_worth_telling(event: &ServeEvent<'_>) -> bool {
    let ServeEvent::Operation {
        outcome: Err(error),
        ..
    } = event
    else {
        return false;
    };
    match error {
        FileError::NotFound => false,
        FileError::System { source } => !matches!(
            source.kind(),
            std::io::ErrorKind::NotFound
                | std::io::ErrorKind::NotADirectory
                | std::io::ErrorKind::AlreadyExists
        ),
        _ => true,
    }
}

pub(super) fn operation(event: &ServeEvent<'_>, at: Timestamp) -> Option<CustodyRecord> {
    let ServeEvent::Operation {
        session,
        user,
        operation,
        path,
        other,
        outcome,
    } = event
    else {
        return None;
    };
    let action = match outcome {
        Ok(()) => action_of(*operation)?,
        Err(_) => Action::Refused,
    };
    // A link is the new name; what it leads to is only text.
    let (about, second) = match (operation, other) {
        (Operation::Symlink | Operation::Hardlink, Some(link)) => (*link, Some(*path)),
        (_, other) => (*path, *other),
    };
    let (path, odd) = if action == Action::Refused && about.len() > LONGEST_REFUSED {
        (about_none(), Some(format!("\"{}\"", short(about))))
    } else {
        path_of(about)
    };
    let mut record = blank(action, path, at);
    record.source = client(user, session.peer);
    record.decided_by = short(user.as_bytes());
    let mut words = operation.name().to_owned();
    if let Some(second) = second {
        let to = match operation {
            Operation::Symlink => "leads to",
            Operation::Hardlink => "of",
            _ => "to",
        };
        words.push_str(&format!(" {to} \"{}\"", short(second)));
    }
    let why = outcome.err().map(ToString::to_string);
    record.message = told([Some(words), odd, why], session);
    Some(record)
}

pub(super) fn closed(event: &ServeEvent<'_>, at: Timestamp) -> Option<CustodyRecord> {
    let ServeEvent::Closed {
        session,
        user,
        path,
        read_bytes,
        written_bytes,
        uploaded_bytes,
        end,
    } = event
    else {
        return None;
    };
    let client = client(user, session.peer);
    let (about, odd) = path_of(path);
    let mut record = match (end, written_bytes, uploaded_bytes) {
        // It is told by the upload.
        (_, _, Some(_)) => return None,
        (FileEnd::Abandoned | FileEnd::Failed, 0, None) => return None,
        (FileEnd::Failed, _, None) => {
            let mut record = blank(Action::UploadCut, about, at);
            let words =
                format!("{written_bytes} bytes were written, and it could not be completed");
            record.message = told([Some(words), odd], session);
            record
        }
        (FileEnd::Abandoned, _, None) => {
            let mut record = blank(Action::UploadCut, about, at);
            let words = format!("{written_bytes} bytes were written before the connection ended");
            record.message = told([Some(words), odd], session);
            record
        }
        (FileEnd::Closed, 0, None) => {
            let mut record = blank(Action::Downloaded, about, at);
            record.destination.clone_from(&client);
            (record.size, record.moved_bytes) = (*read_bytes, *read_bytes);
            record.message = told([odd], session);
            record.decided_by = short(user.as_bytes());
            return Some(record);
        }
        (FileEnd::Closed, _, None) => {
            let mut record = blank(Action::Changed, about, at);
            let words = format!("{written_bytes} bytes were written into it");
            record.message = told([Some(words), odd], session);
            record
        }
    };
    record.source = client;
    record.decided_by = short(user.as_bytes());
    (record.size, record.moved_bytes) = (*written_bytes, *written_bytes);
    Some(record)
}

pub(super) fn uploaded(event: &ServeEvent<'_>, at: Timestamp) -> Option<CustodyRecord> {
    let ServeEvent::Uploaded {
        session,
        user,
        path,
        at: place,
        length_bytes,
        verdict: Verdict::Closed,
    } = event
    else {
        // One that was renamed was told when it was closed, and so is its new name.
        return None;
    };
    let (about, odd) = path_of(path);
    let mut record = blank(Action::Uploaded, about, at);
    record.source = client(user, session.peer);
    record.destination = match place {
        UploadedAt::Local(path) => printable(path.as_os_str().as_encoded_bytes()).to_string(),
        UploadedAt::Remote { location, path } => format!("{location}/{}", printable(path)),
    };
    record.size = length_bytes.unwrap_or(0);
    record.moved_bytes = record.size;
    record.complete_because = Some("closed by the client".to_owned());
    record.message = told([odd], session);
    record.decided_by = short(user.as_bytes());
    Some(record)
}

pub(super) fn counted(counts: Counts, at: Timestamp) -> CustodyRecord {
    let action = match &counts.who {
        Who::User(_) => Action::Refused,
        Who::Source(_) | Who::Others(_) => Action::LogInRefused,
    };
    let mut record = blank(action, about_none(), at);
    record.message = Some(counts.text());
    match counts.who {
        Who::User(user) => record.decided_by = short(user.as_bytes()),
        Who::Source(source) => record.source = source,
        Who::Others(_) => {}
    }
    record
}

pub(super) fn unrecorded(count: u64, at: Timestamp) -> CustodyRecord {
    let mut record = blank(Action::Unrecorded, about_none(), at);
    record.message = Some(format!(
        "{count} things that clients did before this were not recorded: the state database did not take them in time"
    ));
    record
}
