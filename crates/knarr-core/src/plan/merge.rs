//! The streaming merge over three ordered trees.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::iter::Peekable;

use crate::entry::{Entry, Kind};
use crate::path::{RelPath, tree_order};
use crate::plan::decide::{Seen, Views, decide, settled_without_record, wrong_kind};
use crate::plan::{
    Beside, Compare, Conflict, Decision, Mode, Operation, Phase, Policy, RenameIndex, Side,
    conflict_path,
};
use crate::tree::{Incomplete, Problem, Synced, TreeItem};

/// Plans what makes of these trees what `policy` wants. The three have to be in tree order.
pub fn plan<'a, S, D, Z>(
    source: S,
    destination: D,
    synced: Z,
    policy: &'a Policy,
    renames: &'a dyn RenameIndex,
) -> Plan<'a, S::IntoIter, D::IntoIter, Z::IntoIter>
where
    S: IntoIterator<Item = TreeItem>,
    D: IntoIterator<Item = TreeItem>,
    Z: IntoIterator<Item = Synced>,
{
    Plan {
        source: Listed::new(source.into_iter()),
        destination: Listed::new(destination.into_iter()),
        synced: synced.into_iter().peekable(),
        policy,
        renames,
        waiting: Vec::new(),
        out: VecDeque::new(),
        skip_below: None,
        counts: Counts::default(),
    }
}

/// How much a plan has looked at so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Entries the source's listing had.
    pub source_entries: u64,
    /// Entries the destination's listing had.
    pub destination_entries: u64,
    /// Entries of the synced tree.
    pub synced_entries: u64,
    /// Bytes in the files of the source's listing.
    pub source_bytes: u64,
    /// Parts of the source's listing that were incomplete.
    pub source_incomplete: u64,
    /// Parts of the destination's listing that were incomplete.
    pub destination_incomplete: u64,
}

/// The decisions, as they come out of the merge.
pub struct Plan<
    'a,
    S: Iterator<Item = TreeItem>,
    D: Iterator<Item = TreeItem>,
    Z: Iterator<Item = Synced>,
> {
    source: Listed<S>,
    destination: Listed<D>,
    synced: Peekable<Z>,
    policy: &'a Policy,
    renames: &'a dyn RenameIndex,
    /// What is no directory waits until no directory of the same name can come any more. Each is a
    /// prefix of the one behind it, so there are never more than a path has bytes.
    waiting: Vec<(RelPath, Kind, Views)>,
    out: VecDeque<Decision>,
    /// Nothing below this directory is decided: it stands against a file that may not be removed.
    skip_below: Option<RelPath>,
    counts: Counts,
}

impl<S, D, Z> std::fmt::Debug for Plan<'_, S, D, Z>
where
    S: Iterator<Item = TreeItem>,
    D: Iterator<Item = TreeItem>,
    Z: Iterator<Item = Synced>,
{
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plan")
            .field("counts", &self.counts)
            .finish_non_exhaustive()
    }
}

impl<S, D, Z> Plan<'_, S, D, Z>
where
    S: Iterator<Item = TreeItem>,
    D: Iterator<Item = TreeItem>,
    Z: Iterator<Item = Synced>,
{
    /// How much was looked at so far; final when the iterator has ended.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            source_entries: self.source.entries,
            source_bytes: self.source.bytes,
            source_incomplete: self.source.incomplete,
            destination_entries: self.destination.entries,
            destination_incomplete: self.destination.incomplete,
            ..self.counts
        }
    }

    /// Takes the next path from the three trees and decides about it, or lets it wait.
    fn step(&mut self) -> bool {
        self.source.take_reports(&mut self.out);
        self.destination.take_reports(&mut self.out);
        let Some((path, kind)) = self.next_key() else {
            while let Some((_, _, views)) = self.waiting.pop() {
                self.settle(views);
            }
            return false;
        };
        self.release_waiting(&path, kind);
        let source = self.source.take(&path, kind);
        let destination = self.destination.take(&path, kind);
        let synced = self
            .synced
            .next_if(|synced| tree_order((&synced.path, synced.kind()), (&path, kind)).is_eq());
        self.counts.synced_entries += u64::from(synced.is_some());
        if self
            .skip_below
            .as_ref()
            .is_some_and(|directory| path.is_below(directory))
        {
            return true;
        }
        let views = Views {
            source,
            destination,
            synced,
        };
        if kind == Kind::Directory {
            let clash = self
                .waiting
                .iter()
                .position(|(waiting, _, _)| *waiting == path);
            match clash.map(|position| self.waiting.remove(position)) {
                Some((_, _, file)) => self.clash(path, file, views),
                None => self.settle(views),
            }
        } else {
            self.waiting.push((path, kind, views));
        }
        true
    }

    /// Passes the next path if both sides have the same file there and nothing remembered or waiting
    /// could make anything of it: nearly every path of nearly every run, without a copy of its name.
    fn pass_same(&mut self) -> bool {
        if !self.waiting.is_empty() || self.skip_below.is_some() {
            return false;
        }
        let Some((source, destination)) = self.source.file().zip(self.destination.file()) else {
            return false;
        };
        if source.path != destination.path
            || !settled_without_record(source, destination, self.policy)
        {
            return false;
        }
        let remembered = self
            .synced
            .peek()
            .map(|synced| tree_order((&synced.path, synced.kind()), (&source.path, Kind::File)));
        match remembered {
            Some(Ordering::Less) => return false,
            Some(Ordering::Equal) => {
                self.synced.next();
                self.counts.synced_entries += 1;
            }
            Some(Ordering::Greater) | None => {}
        }
        self.source.pass_file();
        self.destination.pass_file();
        true
    }

    /// All decisions, without passing anything quickly.
    #[cfg(test)]
    pub(crate) fn step_by_step(mut self) -> Vec<Decision> {
        while self.step() {}
        self.out.into()
    }

    fn settle(&mut self, views: Views) {
        self.out.extend(decide(views, self.policy, self.renames));
    }

    /// Decides about what waited and cannot meet a directory of its name any more.
    fn release_waiting(&mut self, path: &RelPath, kind: Kind) {
        while let Some((waiting, _, _)) = self.waiting.last() {
            let may_still_come = path.as_bytes().starts_with(waiting.as_bytes())
                && tree_order((path, kind), (waiting, Kind::Directory)).is_le();
            if may_still_come {
                return;
            }
            if let Some((_, _, views)) = self.waiting.pop() {
                self.settle(views);
            }
        }
    }

    fn next_key(&mut self) -> Option<(RelPath, Kind)> {
        let mut least: Option<(&RelPath, Kind)> = None;
        let synced = self
            .synced
            .peek()
            .map(|synced| (&synced.path, synced.kind()));
        for key in [self.source.key(), self.destination.key(), synced]
            .into_iter()
            .flatten()
        {
            if least.is_none_or(|least| tree_order(key, least) == Ordering::Less) {
                least = Some(key);
            }
        }
        least.map(|(path, kind)| (path.clone(), kind))
    }

    /// A file (or link) and a directory of the same name, in different trees.
    fn clash(&mut self, path: RelPath, file: Views, directory: Views) {
        let unknown = |views: &Views| {
            matches!(views.source, Seen::Unknown) || matches!(views.destination, Seen::Unknown)
        };
        if unknown(&file) || unknown(&directory) {
            self.skip_below = Some(path);
            return;
        }
        if file.has_source() && directory.has_destination() {
            self.file_against_directory(Side::Source, file, directory);
        } else if directory.has_source() && file.has_destination() {
            self.file_against_directory(Side::Destination, file, directory);
        } else {
            // One of them is only remembered.
            self.settle(file);
            self.settle(directory);
        }
    }

    /// The file is at `file_side`, the directory at the other.
    fn file_against_directory(&mut self, file_side: Side, file: Views, directory: Views) {
        let pick = |views: &Views, side: Side| match (side, &views.source, &views.destination) {
            (Side::Source, Seen::Entry(entry), _) | (Side::Destination, _, Seen::Entry(entry)) => {
                Some(entry.clone())
            }
            _ => None,
        };
        let (Some(file_entry), Some(directory_entry)) =
            (pick(&file, file_side), pick(&directory, file_side.other()))
        else {
            return;
        };
        match self.policy.mode {
            Mode::Copy => {
                self.skip_below = Some(file_entry.path.clone());
                self.out.extend(match file_side {
                    Side::Source => wrong_kind(&file_entry, &directory_entry),
                    Side::Destination => wrong_kind(&directory_entry, &file_entry),
                });
            }
            Mode::Mirror => match file_side {
                // The directory's content is removed by itself, then the file follows.
                Side::Source => {
                    self.remove(Side::Destination, directory_entry, false);
                    self.out.push_back(Decision::Operation(Operation::Put {
                        to: Side::Destination,
                        entry: file_entry,
                        replaces: None,
                        beside: Beside::No,
                        compare: Compare::No,
                        phase: Phase::AfterRemovals,
                    }));
                }
                Side::Destination => {
                    self.remove(Side::Destination, file_entry, true);
                    self.settle(Views {
                        destination: Seen::Absent,
                        ..directory
                    });
                }
            },
            Mode::TwoWay => {
                self.two_way_clash(file_side, file, file_entry, directory, directory_entry);
            }
        }
    }

    fn two_way_clash(
        &mut self,
        file_side: Side,
        file: Views,
        file_entry: Entry,
        directory: Views,
        directory_entry: Entry,
    ) {
        let agreed = file.synced.as_ref().map(|synced| match file_side {
            Side::Source => &synced.source,
            Side::Destination => &synced.destination,
        });
        if agreed.is_some_and(|agreed| agreed.still_describes(&file_entry)) {
            // The other side replaced a file, untouched here, by a directory.
            self.remove(file_side, file_entry, true);
            self.settle(directory);
            return;
        }
        // Both are legitimate: the directory keeps the name, the file moves aside.
        let conflict_path = conflict_path(&file_entry);
        let (winner, source, destination) = match file_side {
            Side::Source => (Side::Destination, file_entry, directory_entry),
            Side::Destination => (Side::Source, directory_entry, file_entry),
        };
        self.out.push_back(Decision::Conflict(Conflict {
            winner,
            source,
            destination,
            conflict_path,
        }));
    }

    fn remove(&mut self, to: Side, seen: Entry, blocking: bool) {
        self.out.push_back(Decision::Operation(Operation::Remove {
            to,
            seen,
            blocking,
        }));
    }
}

impl<S, D, Z> Iterator for Plan<'_, S, D, Z>
where
    S: Iterator<Item = TreeItem>,
    D: Iterator<Item = TreeItem>,
    Z: Iterator<Item = Synced>,
{
    type Item = Decision;

    fn next(&mut self) -> Option<Decision> {
        loop {
            if let Some(decision) = self.out.pop_front() {
                return Some(decision);
            }
            if !self.pass_same() && !self.step() {
                return self.out.pop_front();
            }
        }
    }
}

/// A listing with what is unknown in it kept in mind.
struct Listed<I: Iterator<Item = TreeItem>> {
    items: Peekable<I>,
    /// The directories whose content could not be seen and that may still contain what comes.
    unknown_below: Vec<RelPath>,
    /// Everything from here on could not be seen.
    broke_off: bool,
    reports: Vec<Problem>,
    entries: u64,
    bytes: u64,
    incomplete: u64,
}

impl<I: Iterator<Item = TreeItem>> Listed<I> {
    fn new(items: I) -> Self {
        Self {
            items: items.peekable(),
            unknown_below: Vec::new(),
            broke_off: false,
            reports: Vec::new(),
            entries: 0,
            bytes: 0,
            incomplete: 0,
        }
    }

    /// Problems that were passed and not reported yet.
    fn take_reports(&mut self, out: &mut VecDeque<Decision>) {
        self.pass_incomplete();
        out.extend(self.reports.drain(..).map(Decision::Problem));
    }

    /// The key of the next item that has one.
    fn key(&mut self) -> Option<(&RelPath, Kind)> {
        match self.items.peek()? {
            TreeItem::Entry(entry) => Some((&entry.path, entry.kind)),
            TreeItem::Problem(problem) => Some((&problem.path, problem.kind)),
            TreeItem::Excluded { path, kind } => Some((path, *kind)),
            TreeItem::Incomplete(_) => None,
        }
    }

    /// The next item, if it is a file.
    fn file(&mut self) -> Option<&Entry> {
        match self.items.peek()? {
            TreeItem::Entry(entry) if entry.kind == Kind::File => Some(entry),
            _ => None,
        }
    }

    /// Leaves the next item behind, which is a file.
    fn pass_file(&mut self) {
        let Some(TreeItem::Entry(passed)) = self.items.next() else {
            return;
        };
        self.entries += 1;
        self.bytes = self.bytes.saturating_add(passed.size);
        // As in `take`: a hostile listing may name a path twice.
        let again = |item: &TreeItem| match item {
            TreeItem::Entry(entry) => entry.kind == passed.kind && entry.path == passed.path,
            _ => false,
        };
        while self.items.next_if(again).is_some() {}
    }

    fn pass_incomplete(&mut self) {
        while let Some(TreeItem::Incomplete(Incomplete { below, .. })) = self
            .items
            .next_if(|item| matches!(item, TreeItem::Incomplete(_)))
        {
            self.incomplete += 1;
            match below {
                Some(directory) => self.unknown_below.push(directory),
                None => self.broke_off = true,
            }
        }
    }

    /// What the listing says of `path`, which is the least of all that is left.
    fn take(&mut self, path: &RelPath, kind: Kind) -> Seen {
        let same = |item: &TreeItem| match item {
            TreeItem::Entry(entry) => entry.kind == kind && entry.path == *path,
            TreeItem::Problem(problem) => problem.kind == kind && problem.path == *path,
            TreeItem::Excluded {
                path: excluded,
                kind: its_kind,
            } => *its_kind == kind && excluded == path,
            TreeItem::Incomplete(_) => false,
        };
        let mut seen = None;
        // A hostile listing may name a path twice: the first counts.
        while let Some(item) = self.items.next_if(same) {
            match item {
                TreeItem::Entry(entry) => {
                    self.entries += 1;
                    self.bytes = self.bytes.saturating_add(entry.size);
                    seen.get_or_insert(Seen::Entry(entry));
                }
                TreeItem::Problem(problem) => {
                    if problem.kind == Kind::Directory {
                        self.unknown_below.push(problem.path.clone());
                    }
                    self.reports.push(problem);
                    seen = Some(Seen::Unknown);
                }
                TreeItem::Excluded { .. } => seen = Some(Seen::Unknown),
                TreeItem::Incomplete(_) => {}
            }
        }
        self.pass_incomplete();
        seen.unwrap_or_else(|| {
            if self.is_unknown(path) {
                Seen::Unknown
            } else {
                Seen::Absent
            }
        })
    }

    fn is_unknown(&mut self, path: &RelPath) -> bool {
        if self.broke_off {
            return true;
        }
        self.unknown_below.retain(|directory| {
            path.is_below(directory) || path.as_bytes() <= directory.as_bytes()
        });
        self.unknown_below
            .iter()
            .any(|directory| path.is_below(directory))
    }
}
