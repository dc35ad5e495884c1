//! What a server says about files, as entries.

use knarr_core::entry::{Fingerprint, Kind};
use knarr_core::{Entry, RelPath, Timestamp};
use knarr_sftp::codec::Times;
use knarr_sftp::{Attributes, FileType};

use crate::error::{ErrorKind, RemoteError};
use crate::sftp::connection::Connection;
use crate::sftp::error;

/// The kind of thing, if the server said.
pub(super) fn kind(attributes: &Attributes) -> Option<Kind> {
    Some(match attributes.file_type()? {
        FileType::Regular => Kind::File,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        FileType::Other => Kind::Special,
    })
}

/// The kind as well as it can be told: what has a size and no type is a file on simple servers.
pub(super) fn kind_or_guess(attributes: &Attributes) -> Kind {
    kind(attributes).unwrap_or(if attributes.size.is_some() {
        Kind::File
    } else {
        Kind::Special
    })
}

/// The entry of `path`; the target of a link is for the caller to fill in.
pub(super) fn entry(path: RelPath, attributes: &Attributes) -> Entry {
    let kind = kind_or_guess(attributes);
    Entry {
        path,
        kind,
        size: if kind == Kind::File {
            attributes.size.unwrap_or(0)
        } else {
            0
        },
        mtime: attributes
            .modified_seconds()
            .map(|seconds| Timestamp::from_seconds(i64::from(seconds))),
        identity: None,
        hash: None,
        mode: attributes
            .permissions
            .map(|permissions| permissions & 0o7777),
        link_target: None,
    }
}

/// The whole seconds that the protocol can carry; what lies outside becomes its nearest end.
pub(super) fn times(mtime: Timestamp) -> Times {
    let seconds = mtime.seconds().clamp(0, i64::from(u32::MAX));
    let modified_seconds = u32::try_from(seconds).unwrap_or(u32::MAX);
    Times {
        accessed_seconds: modified_seconds,
        modified_seconds,
    }
}

/// What lies at a path, links not followed; nothing if nothing is there.
pub(super) async fn look(
    connection: &Connection,
    full: &[u8],
    path: &RelPath,
) -> Result<Option<Entry>, RemoteError> {
    let attributes = match connection.client().lstat(full).await {
        Ok(attributes) => attributes,
        Err(source) if source.is_not_found() => return Ok(None),
        Err(source) => return Err(error::at(connection, "look at", path, source)),
    };
    let mut entry = entry(path.clone(), &attributes);
    if entry.kind == Kind::Symlink {
        match connection.client().read_link(full).await {
            Ok(target) => entry.link_target = Some(target.as_ref().into()),
            Err(source) if source.is_not_found() => return Ok(None),
            Err(source) => return Err(error::at(connection, "read the link", path, source)),
        }
    }
    Ok(Some(entry))
}

/// Refuses what is not what was seen before.
pub(super) fn check_seen(
    operation: &str,
    path: &RelPath,
    found: Option<&Entry>,
    seen: &Fingerprint,
) -> Result<(), RemoteError> {
    let message = match found {
        None => "what was seen there is gone",
        Some(found) if !seen.still_describes(found) => "it is not the version that was seen before",
        Some(_) => return Ok(()),
    };
    Err(RemoteError::new(ErrorKind::Changed, operation, message).at(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_outside_of_the_protocol_become_its_ends() {
        let modified = |seconds| times(Timestamp::from_seconds(seconds)).modified_seconds;
        assert_eq!(modified(-5), 0);
        assert_eq!(modified(7), 7);
        assert_eq!(modified(i64::from(u32::MAX) + 1), u32::MAX);
    }

    #[test]
    fn a_server_that_does_not_say_the_type_is_believed_to_have_files() {
        let attributes = Attributes {
            size: Some(3),
            ..Attributes::default()
        };
        assert_eq!(kind_or_guess(&attributes), Kind::File);
        assert_eq!(kind_or_guess(&Attributes::default()), Kind::Special);
    }
}
