//! Names for what is kept beside something else.

use crate::entry::Entry;
use crate::hash::ContentHash;
use crate::path::RelPath;

/// The longest component a common file system takes, in bytes.
const MAX_NAME_BYTES: usize = 255;

/// The name under which the loser of a conflict is kept: `report.conflict-20261121T090000Z-1a2b3c4d.txt`.
///
/// Deterministic: made from the loser's path, mtime, size and hash alone, so that both sides and every
/// repetition arrive at the same name.
#[must_use]
pub fn conflict_path(loser: &Entry) -> RelPath {
    let when = loser.mtime.map_or_else(String::new, |mtime| {
        format!("{}-", mtime.to_calendar().strftime("%Y%m%dT%H%M%SZ"))
    });
    let mut facts = loser.path.as_bytes().to_vec();
    facts.extend_from_slice(&loser.size.to_le_bytes());
    match (loser.hash, loser.mtime) {
        (Some(hash), _) => facts.extend_from_slice(hash.as_bytes()),
        (None, Some(mtime)) => facts.extend_from_slice(&mtime.nanoseconds().to_le_bytes()),
        (None, None) => {}
    }
    let digest = ContentHash::of(&facts).to_string();
    let digest = digest.get(..8).unwrap_or(&digest);
    insert_before_extension(&loser.path, &format!(".conflict-{when}{digest}"))
}

/// The `number`th name beside `path`: `report (2).txt`.
#[must_use]
pub fn numbered_path(path: &RelPath, number: u32) -> RelPath {
    insert_before_extension(path, &format!(" ({number})"))
}

fn insert_before_extension(path: &RelPath, insertion: &str) -> RelPath {
    let name = path.name();
    // A leading dot does not start an extension.
    let dot = name
        .iter()
        .skip(1)
        .rposition(|byte| *byte == b'.')
        .map(|position| position + 1);
    let (stem, extension) = name.split_at(dot.unwrap_or(name.len()));
    let extension = if extension.len() + insertion.len() < MAX_NAME_BYTES {
        extension
    } else {
        b""
    };
    let room = MAX_NAME_BYTES - extension.len() - insertion.len();
    let stem = truncate_at_character(stem, room);
    let name = [stem, insertion.as_bytes(), extension].concat();
    // Only a path at the very limit of length can refuse; its own name is then as good as any.
    path.with_name(&name)
        .unwrap_or_else(|_too_long| path.clone())
}

/// The first `room` bytes, without cutting a UTF-8 character in two.
fn truncate_at_character(bytes: &[u8], room: usize) -> &[u8] {
    let mut end = bytes.len().min(room);
    while end > 0 && end < bytes.len() && bytes.get(end).is_some_and(|byte| byte & 0xc0 == 0x80) {
        end -= 1;
    }
    bytes.get(..end).unwrap_or(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Timestamp;

    fn path(text: &str) -> RelPath {
        RelPath::new(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_conflict_name_keeps_directory_and_extension() {
        let mut entry = Entry::file(path("a.b/report.txt"), 3);
        entry.mtime = Some(Timestamp::from_seconds(1_795_251_600));
        let name = conflict_path(&entry).to_string();
        assert!(name.starts_with("a.b/report.conflict-2026"), "{name}");
        assert!(name.ends_with(".txt"), "{name}");
        assert_eq!(name, conflict_path(&entry).to_string());
        entry.size = 4;
        assert_ne!(name, conflict_path(&entry).to_string());
    }

    #[test]
    fn numbered_names_stay_within_the_limit_of_a_name() {
        assert_eq!(
            numbered_path(&path("x/a.tar.gz"), 2),
            path("x/a.tar (2).gz")
        );
        assert_eq!(numbered_path(&path(".profile"), 2), path(".profile (2)"));
        let long = path(&"ä".repeat(127));
        let numbered = numbered_path(&long, 3);
        assert!(numbered.name().len() <= 255);
        assert!(numbered.as_utf8().is_some());
    }
}
