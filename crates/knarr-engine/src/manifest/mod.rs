//! Jobs that take what manifests list: all that one of them lists, or nothing of it.
//!
//! A manifest is read when the run begins. It is complete if each file that it lists is at the source, is
//! meant by the job, and has the size that it says; what it says of their contents is compared while they are
//! staged. Constraints: [`MANIFEST_BYTES`] and [`LISTED`] names a manifest, [`LISTED_IN_ALL`] names a run;
//! further manifests wait for the next run.

mod read;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use knarr_core::entry::{Entry, Kind};
use knarr_core::job::ManifestFormat;
use knarr_core::tree::TreeItem;
use knarr_core::{RelPath, Timestamp};
use knarr_remote::{ErrorKind, ListOptions, ReadOptions, Remote, RemoteError};
use knarr_steps::ChecksumAlgorithm;

use crate::batch::{Member, MemberKind};
use crate::conditions::Marker;
use crate::error::EngineError;
use crate::journal::Journal;

/// The longest manifest, in bytes.
const MANIFEST_BYTES: u64 = 4 << 20;
/// The most files that one manifest lists.
pub(crate) const LISTED: usize = 20_000;
/// The most files that the manifests of a run list.
const LISTED_IN_ALL: usize = 100_000;
/// The most manifests that a run reads; the others wait for the next one.
const MANIFESTS: usize = 10_000;

/// The files that list what a job takes.
#[derive(Debug, Clone)]
pub struct ManifestSpec {
    /// Which they are.
    pub file: Marker,
    /// How they are written.
    pub format: ManifestFormat,
}

/// What a manifest says of a file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Expected {
    pub(crate) size: Option<u64>,
    /// In lower-case hexadecimal digits.
    pub(crate) checksum: Option<(ChecksumAlgorithm, String)>,
}

impl Expected {
    /// The checksum with its name.
    pub(crate) fn text(&self) -> Option<String> {
        let (algorithm, checksum) = self.checksum.as_ref()?;
        Some(format!("{algorithm:?} {checksum}"))
    }
}

/// A manifest, and what it lists.
#[derive(Debug)]
pub(crate) struct Manifest {
    pub(crate) entry: Entry,
    pub(crate) listed: BTreeMap<RelPath, Expected>,
    /// How many files have to be staged, itself among them; the others were delivered before, as they are.
    pub(crate) due: usize,
}

/// What the manifests at the source say.
#[derive(Debug, Default)]
pub(crate) struct Manifests {
    /// Those that are complete.
    pub(crate) complete: Vec<Manifest>,
    /// Those that are not, each with the reason.
    pub(crate) waiting: Vec<(RelPath, String)>,
    /// Those that cannot be used, each with the reason.
    pub(crate) broken: Vec<(RelPath, String)>,
    /// Files that a manifest lists of which nothing is taken now, with the place of that in `waiting`.
    kept_back: BTreeMap<RelPath, usize>,
}

/// Whether it is waited for a manifest that was written just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Until it has been at rest.
    Settles,
    /// Not at all.
    None,
}

/// Where manifests are looked for.
pub(crate) struct Looking<'a> {
    pub(crate) source: &'a dyn Remote,
    pub(crate) journal: &'a Journal,
    pub(crate) spec: &'a ManifestSpec,
    /// How long a manifest has to be at rest.
    pub(crate) settle: Duration,
    /// What the clock says.
    pub(crate) now: &'a (dyn Fn() -> Timestamp + Send + Sync),
    /// Why the job does not take a file, if it does not.
    pub(crate) why_not: &'a (dyn Fn(&Entry) -> Option<String> + Send + Sync),
}

impl Looking<'_> {
    /// Reads the manifests and looks for what they list.
    ///
    /// # Errors
    /// If the source cannot be listed to its end, or the state cannot be read.
    pub(crate) async fn look(&self, patience: Patience) -> Result<Manifests, EngineError> {
        let mut found = Manifests::default();
        let mut read = Vec::new();
        let (mut listed, mut taken) = (0, BTreeSet::new());
        for entry in self.manifests(patience, &mut found).await? {
            let path = entry.path.clone();
            match self.read(&entry).await {
                Ok(None) => {
                    let reason = format!("it is longer than {} MiB", MANIFEST_BYTES >> 20);
                    found.broken.push((path, reason));
                }
                Ok(Some(text)) => match read::listed(&text, &path, self.spec.format) {
                    Ok(names) if listed + names.len() > LISTED_IN_ALL => {
                        let reason =
                            "other manifests of this run list enough; the next run takes it";
                        found.waiting.push((path, reason.to_owned()));
                    }
                    Ok(names) => match names.keys().find(|name| taken.contains(*name)) {
                        Some(name) => {
                            let reason = format!(
                                "another manifest lists \"{name}\", too; the next run looks again"
                            );
                            // What else it lists may be more than is kept in memory; what nobody else lists
                            // is not taken, either.
                            found.keep_back(path, reason, std::iter::empty());
                        }
                        None => {
                            listed += names.len();
                            taken.extend(names.keys().cloned());
                            read.push(Manifest {
                                entry,
                                listed: names,
                                due: 0,
                            });
                        }
                    },
                    Err(reason) => found.broken.push((path, reason)),
                },
                Err(error) if error.kind == ErrorKind::Changed => {
                    let reason = "it is still being written".to_owned();
                    found.waiting.push((path, reason));
                }
                Err(source) => return Err(self.failed(source)),
            }
        }
        let there = self.what_is_there(&taken).await?;
        for mut manifest in read {
            match missing(&manifest, &there) {
                None => {
                    manifest.due = self.due(&manifest, &there).await?;
                    found.complete.push(manifest);
                }
                Some(reason) => {
                    let names = manifest.listed.into_keys();
                    found.keep_back(manifest.entry.path, reason, names);
                }
            }
        }
        Ok(found)
    }

    fn failed(&self, source: RemoteError) -> EngineError {
        EngineError::Look {
            location: self.source.describe().location.clone(),
            source,
        }
    }

    /// The manifests that were not delivered yet, as they are.
    async fn manifests(
        &self,
        patience: Patience,
        found: &mut Manifests,
    ) -> Result<Vec<Entry>, EngineError> {
        let mut all = Vec::new();
        self.each_entry(|entry| {
            let is_one = self.spec.file.is(&entry.path) && (self.why_not)(&entry).is_none();
            if is_one && all.len() < MANIFESTS {
                all.push(entry);
            }
        })
        .await?;
        let mut new = Vec::new();
        for entry in all {
            if !self.is_delivered(&entry).await? {
                new.push(entry);
            }
        }
        let young = |entry: &Entry| {
            let now = (self.now)();
            let ready = entry.mtime.map(|mtime| mtime.after(self.settle));
            // A time in the far future must not hold it back for ever.
            ready.map_or(Duration::ZERO, |ready| ready.since(now).min(self.settle))
        };
        let longest = new.iter().map(young).max().unwrap_or_default();
        if longest > Duration::ZERO && patience == Patience::Settles {
            tokio::time::sleep(longest).await;
        }
        let mut settled = Vec::with_capacity(new.len());
        for entry in new {
            if longest.is_zero() {
                settled.push(entry);
                continue;
            }
            let now = self.source.stat(&entry.path).await;
            let now = now.map_err(|error| self.failed(error))?;
            match now {
                Some(now)
                    if entry.fingerprint().still_describes(&now)
                        && (patience == Patience::Settles || young(&now).is_zero()) =>
                {
                    settled.push(entry);
                }
                Some(_) => {
                    let reason = "it is still being written".to_owned();
                    found.waiting.push((entry.path, reason));
                }
                None => {}
            }
        }
        Ok(settled)
    }

    async fn each_entry(&self, mut take: impl FnMut(Entry) + Send) -> Result<(), EngineError> {
        let listing = self.source.list(ListOptions::default()).await;
        let mut listing = listing.map_err(|error| self.failed(error))?;
        while let Some(items) = listing.next_batch().await {
            for item in items {
                match item {
                    TreeItem::Entry(entry) if entry.kind == Kind::File => take(entry),
                    TreeItem::Incomplete(part) => {
                        let message =
                            format!("the source cannot be listed completely: {}", part.reason);
                        let error = RemoteError::new(ErrorKind::Other, "list", message);
                        return Err(self.failed(error));
                    }
                    TreeItem::Entry(_) | TreeItem::Problem(_) | TreeItem::Excluded { .. } => {}
                }
            }
        }
        Ok(())
    }

    /// Nothing if it is too long.
    async fn read(&self, entry: &Entry) -> Result<Option<Vec<u8>>, RemoteError> {
        if entry.size > MANIFEST_BYTES {
            return Ok(None);
        }
        let options = ReadOptions {
            offset: 0,
            expected: Some(entry.fingerprint()),
        };
        let mut reader = self.source.read(&entry.path, options).await?;
        let mut text = Vec::new();
        while let Some(chunk) = reader.next().await? {
            text.extend_from_slice(&chunk);
        }
        let now = reader.finish().await?;
        if entry.fingerprint().still_describes(&now) {
            return Ok(Some(text));
        }
        let message = "it was changed while it was read";
        Err(RemoteError::new(ErrorKind::Changed, "read", message).at(&entry.path))
    }

    async fn due(
        &self,
        manifest: &Manifest,
        there: &BTreeMap<RelPath, Result<Entry, String>>,
    ) -> Result<usize, EngineError> {
        let mut due = 1;
        for path in manifest.listed.keys() {
            let Some(Ok(entry)) = there.get(path) else {
                continue;
            };
            due += usize::from(!self.is_delivered(entry).await?);
        }
        Ok(due)
    }

    /// Whether it was delivered before, as it is.
    async fn is_delivered(&self, entry: &Entry) -> Result<bool, EngineError> {
        let synced = self.journal.synced(&entry.path).await?;
        Ok(synced.is_some_and(|synced| {
            synced.source.still_describes(entry) && synced.source.identity == entry.identity
        }))
    }

    /// Of what is listed that which is there; a reason for what the job does not take.
    async fn what_is_there(
        &self,
        listed: &BTreeSet<RelPath>,
    ) -> Result<BTreeMap<RelPath, Result<Entry, String>>, EngineError> {
        let mut there = BTreeMap::new();
        if listed.is_empty() {
            return Ok(there);
        }
        self.each_entry(|entry| {
            if listed.contains(&entry.path) {
                let known = match (self.why_not)(&entry) {
                    Some(reason) => Err(reason),
                    None => Ok(entry.clone()),
                };
                there.insert(entry.path, known);
            }
        })
        .await?;
        Ok(there)
    }
}

fn missing(
    manifest: &Manifest,
    there: &BTreeMap<RelPath, Result<Entry, String>>,
) -> Option<String> {
    manifest.listed.iter().find_map(|(path, expected)| {
        Some(match (there.get(path), expected.size) {
            (None, _) => format!("it waits for \"{path}\", which is not there"),
            (Some(Err(reason)), _) => {
                format!("it waits for \"{path}\", which the job does not take: {reason}")
            }
            (Some(Ok(entry)), Some(expected)) if entry.size != expected => {
                let size = entry.size;
                format!("it waits for \"{path}\", which has {size} of {expected} bytes")
            }
            (Some(Ok(_)), _) => return None,
        })
    })
}

impl Manifests {
    fn keep_back(
        &mut self,
        manifest: RelPath,
        reason: String,
        names: impl Iterator<Item = RelPath>,
    ) {
        let place = self.waiting.len();
        self.kept_back.extend(names.map(|name| (name, place)));
        self.waiting.push((manifest, reason));
    }

    /// The only files that a run takes.
    pub(crate) fn only(&self) -> BTreeSet<RelPath> {
        let complete = self.complete.iter();
        complete
            .flat_map(|manifest| {
                let listed = manifest.listed.keys().cloned();
                listed.chain([manifest.entry.path.clone()])
            })
            .collect()
    }

    /// What belongs to which manifest, by the place of that in `complete`.
    pub(crate) fn into_members(self) -> BTreeMap<RelPath, Member> {
        let mut members = BTreeMap::new();
        for (group, manifest) in self.complete.into_iter().enumerate() {
            for (path, expected) in manifest.listed {
                let what = MemberKind::Listed(expected);
                members.insert(path, Member { group, what });
            }
            let path = manifest.entry.path.clone();
            let what = MemberKind::Manifest(Box::new(manifest.entry));
            members.insert(path, Member { group, what });
        }
        members
    }

    /// Why a file that is new is not taken, if it is not.
    pub(crate) fn why_left(&self, path: &RelPath) -> Option<String> {
        let is_complete = self
            .complete
            .iter()
            .any(|manifest| manifest.entry.path == *path || manifest.listed.contains_key(path));
        if is_complete {
            return None;
        }
        let is_it = |(manifest, _): &&(RelPath, String)| manifest == path;
        if let Some((_, reason)) = self.waiting.iter().find(is_it) {
            return Some(reason.clone());
        }
        if let Some((_, reason)) = self.broken.iter().find(is_it) {
            return Some(format!("it cannot be used: {reason}"));
        }
        match self
            .kept_back
            .get(path)
            .and_then(|at| self.waiting.get(*at))
        {
            Some((manifest, reason)) => Some(format!("manifest \"{manifest}\": {reason}")),
            None => Some("no manifest lists it".to_owned()),
        }
    }
}
