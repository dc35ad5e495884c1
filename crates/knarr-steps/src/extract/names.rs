//! Which names, links and amounts an archive may bring.
//!
//! Constraints: every name becomes a [`RelPath`] or the whole archive is refused; nothing is repaired, since two
//! programs that repair differently see two different archives. What is remembered of a name is 32 bytes,
//! so that the most that [`ExtractOptions::max_entries`] allows by default take 5 MiB.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use knarr_core::RelPath;

use crate::decompress::RATIO_GRACE_BYTES;
use crate::faults::ArchiveFault;
use crate::spec::ExtractOptions;

/// The longest target of a symbolic link, in bytes.
pub(super) const MAX_LINK_BYTES: usize = 4096;

/// What a name was used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    File,
    Link,
    Directory,
    /// A directory that was not mentioned itself so far.
    ImpliedDirectory,
}

/// The names of one archive so far.
#[derive(Debug)]
pub(super) struct Names {
    options: ExtractOptions,
    /// By the hash of the name in lower case: the hash of the name as it is, and its use.
    seen: HashMap<u128, (u128, Use)>,
    output_bytes: u64,
}

impl Names {
    pub(super) fn new(options: ExtractOptions) -> Self {
        Self {
            options,
            seen: HashMap::new(),
            output_bytes: 0,
        }
    }

    /// Accepts a name as an archive writes it. Nothing comes back for the root, `./`, which tar puts
    /// first.
    pub(super) fn admit(&mut self, raw: &[u8], used: Use) -> Result<Option<RelPath>, ArchiveFault> {
        let Some(path) = path_of(raw, used)? else {
            return Ok(None);
        };
        let depth = path.components().count();
        if depth > self.options.max_depth as usize {
            return Err(limit("max_depth", u64::from(self.options.max_depth)));
        }
        let longest = self.options.max_name as usize;
        if path.components().any(|component| component.len() > longest) {
            return Err(limit("max_name", u64::from(self.options.max_name)));
        }
        let mut ancestor = path.parent();
        while let Some(directory) = ancestor {
            self.register(&directory, Use::ImpliedDirectory)?;
            ancestor = directory.parent();
        }
        self.register(&path, used)?;
        Ok(Some(path))
    }

    fn register(&mut self, path: &RelPath, used: Use) -> Result<(), ArchiveFault> {
        let exact = hash(path.as_bytes());
        let folded = match path.as_utf8() {
            Some(text) => hash(text.to_lowercase().as_bytes()),
            None => hash(&path.as_bytes().to_ascii_lowercase()),
        };
        let count = self.seen.len();
        match self.seen.entry(folded) {
            Entry::Vacant(vacant) => {
                if count >= self.options.max_entries as usize {
                    return Err(limit("max_entries", u64::from(self.options.max_entries)));
                }
                vacant.insert((exact, used));
                Ok(())
            }
            Entry::Occupied(mut occupied) => {
                let (known, known_use) = *occupied.get();
                if known != exact {
                    return Err(ArchiveFault::CaseCollision);
                }
                match (known_use, used) {
                    (Use::Directory, Use::ImpliedDirectory)
                    | (Use::ImpliedDirectory, Use::ImpliedDirectory) => Ok(()),
                    (Use::ImpliedDirectory, Use::Directory) => {
                        occupied.insert((exact, used));
                        Ok(())
                    }
                    (Use::Directory, Use::Directory)
                    | (Use::File | Use::Link, Use::File | Use::Link) => {
                        Err(ArchiveFault::Duplicate)
                    }
                    _ => Err(ArchiveFault::Conflict),
                }
            }
        }
    }

    /// Whether a file of this name came before.
    pub(super) fn has_file(&self, path: &RelPath) -> bool {
        let folded = match path.as_utf8() {
            Some(text) => hash(text.to_lowercase().as_bytes()),
            None => hash(&path.as_bytes().to_ascii_lowercase()),
        };
        let exact = hash(path.as_bytes());
        self.seen.get(&folded) == Some(&(exact, Use::File))
    }

    /// Counts output before it is handed out, or a length before it is believed.
    pub(super) fn count(&mut self, bytes: u64, input_bytes: u64) -> Result<(), ArchiveFault> {
        self.output_bytes = self.output_bytes.saturating_add(bytes);
        if self.output_bytes > self.options.max_output {
            return Err(limit("max_output", self.options.max_output));
        }
        let most = input_bytes
            .saturating_mul(u64::from(self.options.max_ratio))
            .max(RATIO_GRACE_BYTES);
        if self.output_bytes > most {
            return Err(limit("max_ratio", u64::from(self.options.max_ratio)));
        }
        Ok(())
    }
}

pub(super) fn limit(option: &'static str, allowed: u64) -> ArchiveFault {
    ArchiveFault::Limit { option, allowed }
}

fn hash(bytes: &[u8]) -> u128 {
    let digest = blake3::hash(bytes);
    let mut half = [0; 16];
    half.iter_mut()
        .zip(digest.as_bytes())
        .for_each(|(slot, byte)| *slot = *byte);
    u128::from_le_bytes(half)
}

/// The path that a name of an archive stands for.
fn path_of(raw: &[u8], used: Use) -> Result<Option<RelPath>, ArchiveFault> {
    let mut name = raw;
    while let Some(rest) = name.strip_prefix(b"./") {
        name = rest;
    }
    if used == Use::Directory {
        name = name.strip_suffix(b"/").unwrap_or(name);
        if name.is_empty() || name == b"." {
            return if raw.is_empty() {
                Err(ArchiveFault::Name(knarr_core::path::PathError::Empty))
            } else {
                Ok(None)
            };
        }
    }
    let path = RelPath::new(name)?;
    if name.get(1) == Some(&b':') && name.first().is_some_and(u8::is_ascii_alphabetic) {
        return Err(ArchiveFault::AmbiguousName("it begins with a drive letter"));
    }
    if name.first() == Some(&b'\\') {
        return Err(ArchiveFault::AmbiguousName("it begins with a backslash"));
    }
    let is_parent = |part: &[u8]| part == b"..";
    if name
        .split(|byte| matches!(byte, b'\\' | b'/'))
        .any(is_parent)
    {
        return Err(ArchiveFault::AmbiguousName("`..` between backslashes"));
    }
    Ok(Some(path))
}

/// Whether a symbolic link at `path` can lead only to what is below the root of the archive.
///
/// `..` is accepted at the beginning only: there it is resolved from the directories above the link, which
/// are real ones, as no entry may lie below a link. Behind a name it could be resolved from wherever another
/// link leads.
pub(super) fn stays_inside(path: &RelPath, target: &[u8]) -> Result<(), ArchiveFault> {
    if target.is_empty() || target.len() > MAX_LINK_BYTES || target.contains(&0) {
        return Err(ArchiveFault::Link("its target is no path"));
    }
    if target.first() == Some(&b'/') {
        return Err(ArchiveFault::Link("its target is absolute"));
    }
    if target.contains(&b'\\') || target.get(1) == Some(&b':') {
        return Err(ArchiveFault::Link(
            "its target would mean something else on another system",
        ));
    }
    let above = path.components().count() - 1;
    let mut climbed = 0;
    let mut has_descended = false;
    for component in target.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." if has_descended => {
                return Err(ArchiveFault::Link("`..` behind a name in its target"));
            }
            b".." => climbed += 1,
            _ => has_descended = true,
        }
    }
    if climbed > above {
        return Err(ArchiveFault::Link("its target lies outside of the archive"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{ArchiveFault, Names, Use, stays_inside};
    use crate::spec::ExtractOptions;
    use knarr_core::RelPath;

    fn admit(names: &[(&str, Use)]) -> Result<(), ArchiveFault> {
        let mut known = Names::new(ExtractOptions::default());
        for (name, used) in names {
            known.admit(name.as_bytes(), *used)?;
        }
        Ok(())
    }

    #[test]
    fn h10_names_that_collide_or_contradict_each_other_are_refused() {
        use ArchiveFault::{CaseCollision, Conflict, Duplicate};
        use Use::{Directory, File, Link};
        for (names, wanted) in [
            ([("a", File), ("a", File)], Duplicate),
            ([("a", File), ("A", File)], CaseCollision),
            ([("\u{e9}", File), ("\u{c9}", File)], CaseCollision),
            ([("d/a", File), ("D/b", File)], CaseCollision),
            ([("d", File), ("d/a", File)], Conflict),
            ([("d/a", File), ("d", File)], Conflict),
            ([("d", Link), ("d/a", File)], Conflict),
            ([("d/a", File), ("d", Link)], Conflict),
            ([("d", File), ("d/", Directory)], Conflict),
            ([("d/", Directory), ("d/", Directory)], Duplicate),
        ] {
            assert_eq!(admit(&names), Err(wanted), "{names:?}");
        }
        assert_eq!(admit(&[("./", Directory), ("./d/a", File)]), Ok(()));
        assert_eq!(admit(&[("d/a", File), ("d/", Directory)]), Ok(()));
    }

    #[test]
    fn h11_a_link_may_climb_only_before_it_descends() {
        let inside = |path: &str, target: &str| {
            let path = RelPath::new(path.as_bytes()).unwrap();
            stays_inside(&path, target.as_bytes()).is_ok()
        };
        assert!(inside("a", "b") && inside("a", "./b/c") && inside("d/e/a", "../../b"));
        for (path, target) in [
            ("a", ".."),
            ("a", "../b"),
            ("d/a", "../../b"),
            ("a", "/etc/passwd"),
            ("a", "b/../../c"),
            ("d/a", "b/../c"),
            ("a", ""),
            ("a", "C:x"),
            ("a", "..\\x"),
        ] {
            assert!(!inside(path, target), "{path} -> {target}");
        }
    }
}
