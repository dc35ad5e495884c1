//! What to do about one path, given what the three trees say of it.

use crate::entry::{Entry, Fingerprint, Kind, same_content};
use crate::plan::{
    Beside, Compare, Conflict, Decision, IfExists, Mode, Operation, Phase, Policy, RenameIndex,
    Side, SymlinkPolicy, conflict_path,
};
use crate::tree::{Problem, Synced};

/// What one listing says of one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Seen {
    /// This is there.
    Entry(Entry),
    /// Nothing is there.
    Absent,
    /// It could not be seen, or cannot be handled.
    Unknown,
}

impl Seen {
    const fn entry(&self) -> Option<&Entry> {
        match self {
            Self::Entry(entry) => Some(entry),
            Self::Absent | Self::Unknown => None,
        }
    }
}

/// What the three trees say of one path (and kind).
#[derive(Debug, Clone)]
pub(crate) struct Views {
    pub(crate) source: Seen,
    pub(crate) destination: Seen,
    pub(crate) synced: Option<Synced>,
}

impl Views {
    pub(crate) const fn has_source(&self) -> bool {
        matches!(self.source, Seen::Entry(_))
    }

    pub(crate) const fn has_destination(&self) -> bool {
        matches!(self.destination, Seen::Entry(_))
    }
}

/// Decides about one path. At most one decision.
pub(crate) fn decide(views: Views, policy: &Policy, renames: &dyn RenameIndex) -> Option<Decision> {
    if matches!(views.source, Seen::Unknown) || matches!(views.destination, Seen::Unknown) {
        return None;
    }
    if let Some(early) = refuse_kind(&views, policy) {
        return early;
    }
    match policy.mode {
        Mode::Copy | Mode::Mirror => one_way(views, policy, renames),
        Mode::TwoWay => two_way(views, policy, renames),
    }
}

/// Links and special files that are not handled: `Some(None)` to leave them out silently.
fn refuse_kind(views: &Views, policy: &Policy) -> Option<Option<Decision>> {
    let from_destination = match policy.mode {
        Mode::TwoWay => views.destination.entry(),
        Mode::Copy | Mode::Mirror => None,
    };
    for entry in [views.source.entry(), from_destination]
        .into_iter()
        .flatten()
    {
        let message = match (entry.kind, policy.symlinks) {
            (Kind::Special, _) => "a FIFO, socket or device is not copied",
            (Kind::Symlink, SymlinkPolicy::Skip) => return Some(None),
            (Kind::Symlink, SymlinkPolicy::Unsupported) => {
                "the destination has no symbolic links: exclude the path, or copy what it points to"
            }
            (Kind::Directory, _) if !policy.directories => return Some(None),
            (Kind::File | Kind::Directory, _) | (Kind::Symlink, SymlinkPolicy::Keep) => continue,
        };
        return Some(Some(Decision::Problem(Problem {
            path: entry.path.clone(),
            kind: entry.kind,
            message: message.to_owned(),
        })));
    }
    None
}

fn one_way(views: Views, policy: &Policy, renames: &dyn RenameIndex) -> Option<Decision> {
    let Views {
        source,
        destination,
        synced,
    } = views;
    match (source, destination) {
        (Seen::Entry(source), Seen::Entry(destination)) => {
            let delivered = synced.as_ref().is_some_and(|synced| {
                // What was kept beside lies elsewhere: what is here was never ours.
                let here = synced.destination_path.is_none();
                synced.source.still_describes(&source)
                    && (!here || synced.destination.still_describes(&destination))
            });
            if delivered && !policy.checksum {
                return None;
            }
            decide_existing(source, destination, policy)
        }
        (Seen::Entry(source), Seen::Absent) => {
            if policy.renames
                && synced.is_none()
                && source.kind == Kind::File
                && let Some(from) = renames.renamed_from(Side::Source, &source)
            {
                let from = Box::new(from);
                return operation(Operation::Rename {
                    to: Side::Destination,
                    from,
                    entry: source,
                });
            }
            put(Side::Destination, source, None)
        }
        (Seen::Absent, Seen::Entry(seen)) if policy.mode == Mode::Mirror => {
            if seen.kind == Kind::Directory && !policy.directories {
                return None;
            }
            operation(Operation::Remove {
                to: Side::Destination,
                seen,
                blocking: false,
            })
        }
        (Seen::Absent, _) => synced.and_then(forget),
        (Seen::Unknown, _) | (_, Seen::Unknown) => None,
    }
}

/// What to do about a file that both sides have, when the synced tree does not settle it; used by
/// the planner and, for destinations that are looked at one path at a time, by the mover.
#[must_use]
pub fn decide_existing(source: Entry, destination: Entry, policy: &Policy) -> Option<Decision> {
    if source.kind != destination.kind {
        return wrong_kind(&source, &destination);
    }
    if source.kind == Kind::Directory {
        return None;
    }
    let same = same_content(&source, &destination, policy.mtime_tolerance);
    let hashes_known = source.hash.is_some() && destination.hash.is_some();
    let same =
        if policy.checksum && same == Some(true) && !hashes_known && source.kind == Kind::File {
            None
        } else if same.is_none() && !policy.mtimes_comparable && !policy.checksum {
            // The destination has a time of its own: as `aws s3 sync`, what was written there after the
            // source last changed, with the same length, is taken for the same.
            match (source.mtime, destination.mtime) {
                (Some(changed), Some(written)) if written >= changed => Some(true),
                _ => None,
            }
        } else {
            same
        };
    if same == Some(true) {
        if policy.adopt {
            return operation(Operation::Adopt {
                source,
                destination,
            });
        }
        return None;
    }
    let compare = if same.is_none() {
        Compare::First
    } else {
        Compare::No
    };
    let replace = |compare, beside| {
        let (source, destination) = (source.clone(), destination.clone());
        operation(Operation::Put {
            to: Side::Destination,
            entry: source,
            replaces: Some(destination),
            beside,
            compare,
            phase: Phase::Normal,
        })
    };
    match policy.if_exists {
        IfExists::Skip => None,
        IfExists::Overwrite if policy.checksum => replace(compare, Beside::No),
        IfExists::Overwrite => replace(Compare::No, Beside::No),
        IfExists::Differs => replace(compare, Beside::No),
        IfExists::KeepBoth => replace(compare, Beside::Numbered),
        IfExists::Newer => match (source.mtime, destination.mtime) {
            (Some(ours), Some(theirs))
                if ours > theirs && ours.distance(theirs) > policy.mtime_tolerance =>
            {
                replace(compare, Beside::No)
            }
            _ => None,
        },
        IfExists::Fail => Some(Decision::Problem(Problem {
            message: "the destination has another file of this name, and if_exists is `fail`"
                .to_owned(),
            kind: source.kind,
            path: source.path,
        })),
    }
}

/// Whether nothing is to be done about a file that both sides have, whatever the synced tree says of it.
pub(crate) fn settled_without_record(source: &Entry, destination: &Entry, policy: &Policy) -> bool {
    policy.mode != Mode::TwoWay
        && !policy.adopt
        && !policy.checksum
        && same_content(source, destination, policy.mtime_tolerance) == Some(true)
}

fn two_way(views: Views, policy: &Policy, renames: &dyn RenameIndex) -> Option<Decision> {
    let Views {
        source,
        destination,
        synced,
    } = views;
    match (source, destination, synced) {
        (Seen::Entry(source), Seen::Entry(destination), synced) => {
            both_present(source, destination, synced.as_ref(), policy)
        }
        (Seen::Entry(entry), Seen::Absent, synced) => {
            let before = synced.as_ref().map(|synced| &synced.source);
            one_present(Side::Source, entry, before, policy, renames)
        }
        (Seen::Absent, Seen::Entry(entry), synced) => {
            let before = synced.as_ref().map(|synced| &synced.destination);
            one_present(Side::Destination, entry, before, policy, renames)
        }
        (Seen::Absent, Seen::Absent, Some(synced)) => forget(synced),
        (Seen::Absent, Seen::Absent, None) | (Seen::Unknown, _, _) | (_, Seen::Unknown, _) => None,
    }
}

fn both_present(
    source: Entry,
    destination: Entry,
    synced: Option<&Synced>,
    policy: &Policy,
) -> Option<Decision> {
    if source.kind == Kind::Directory {
        return match synced {
            Some(_) => None,
            None => operation(Operation::Adopt {
                source,
                destination,
            }),
        };
    }
    if let Some(synced) = synced {
        let source_same = synced.source.still_describes(&source);
        let destination_same = synced.destination.still_describes(&destination);
        match (source_same, destination_same) {
            (true, true) => return None,
            (false, true) => return put(Side::Destination, source, Some(destination)),
            (true, false) => return put(Side::Source, destination, Some(source)),
            (false, false) => {}
        }
    }
    if same_content(&source, &destination, policy.mtime_tolerance) == Some(true)
        && (policy.mtimes_comparable || source.hash.is_some())
    {
        return operation(Operation::Adopt {
            source,
            destination,
        });
    }
    let winner = winner(&source, &destination);
    let loser = match winner {
        Side::Source => &destination,
        Side::Destination => &source,
    };
    let conflict_path = conflict_path(loser);
    Some(Decision::Conflict(Conflict {
        winner,
        source,
        destination,
        conflict_path,
    }))
}

/// The newer version keeps the name; then the larger; then the source's.
fn winner(source: &Entry, destination: &Entry) -> Side {
    let rank = |entry: &Entry| (entry.mtime, entry.size, entry.hash);
    if rank(destination) > rank(source) {
        Side::Destination
    } else {
        Side::Source
    }
}

fn one_present(
    side: Side,
    entry: Entry,
    before: Option<&Fingerprint>,
    policy: &Policy,
    renames: &dyn RenameIndex,
) -> Option<Decision> {
    match before {
        // The other side removed what this side did not touch.
        Some(before) if before.still_describes(&entry) => operation(Operation::Remove {
            to: side,
            seen: entry,
            blocking: false,
        }),
        // Removed there, edited here: the edit wins.
        Some(_) => put(side.other(), entry, None),
        None => {
            if policy.renames
                && entry.kind == Kind::File
                && let Some(from) = renames.renamed_from(side, &entry)
            {
                let from = Box::new(from);
                return operation(Operation::Rename {
                    to: side.other(),
                    from,
                    entry,
                });
            }
            put(side.other(), entry, None)
        }
    }
}

fn put(to: Side, entry: Entry, replaces: Option<Entry>) -> Option<Decision> {
    operation(Operation::Put {
        to,
        entry,
        replaces,
        beside: Beside::No,
        compare: Compare::No,
        phase: Phase::Normal,
    })
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "every arm of the decision returns an Option"
)]
const fn operation(operation: Operation) -> Option<Decision> {
    Some(Decision::Operation(operation))
}

fn forget(synced: Synced) -> Option<Decision> {
    let kind = synced.kind();
    operation(Operation::Forget {
        path: synced.path,
        kind,
    })
}

/// A file against a directory, where nothing may be removed.
pub(crate) fn wrong_kind(source: &Entry, destination: &Entry) -> Option<Decision> {
    Some(Decision::Problem(Problem {
        path: source.path.clone(),
        kind: source.kind,
        message: format!(
            "it is a {} at the source and a {} at the destination: remove or rename one of them",
            source.kind, destination.kind
        ),
    }))
}
