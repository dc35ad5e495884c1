//! Renames files and directories.

use knarr_core::entry::Kind;
use knarr_core::{Entry, RelPath};

use crate::error::{ErrorKind, RemoteError};
use crate::remote::Replace;
use crate::sftp::commit::Flip;
use crate::sftp::{Place, entries};

pub(super) async fn rename(
    place: &Place,
    from: &RelPath,
    to: &RelPath,
    replace: &Replace,
) -> Result<Entry, RemoteError> {
    if to.is_below(from) {
        let message = format!("it cannot be moved into itself (\"{to}\")");
        return Err(RemoteError::new(ErrorKind::InvalidName, "rename", message).at(from));
    }
    let connection = place.endpoint.connection().await?;
    let full = place.root().full(from);
    let found = entries::look(&connection, &full, from).await?;
    let Some(found) = found else {
        let message = "nothing is there";
        return Err(RemoteError::new(ErrorKind::NotFound, "rename", message).at(from));
    };
    let kind = if found.kind == Kind::Special {
        Kind::File
    } else {
        found.kind
    };
    let flip = Flip {
        operation: "rename to",
        from: &full,
        to,
        kind,
        replace,
    };
    place.committer.flip(&connection, flip).await?;
    Ok(Entry {
        path: to.clone(),
        ..found
    })
}
