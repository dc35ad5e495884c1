//! Lists a tree in tree order, reading directories ahead.
//!
//! Constraints: at most [`DIRECTORIES_AHEAD`] directories are read or wait to be told about at a time,
//! and a directory has at most [`crate::sftp::SftpOptions::names_per_directory`] names and
//! [`NAME_BYTES_LIMIT`] bytes of them. Directories are told about in order, whatever the order in
//! which their contents arrive.

use std::collections::VecDeque;
use std::sync::Arc;

use futures::StreamExt as _;
use knarr_core::entry::Kind;
use knarr_core::path::{printable, tree_order};
use knarr_core::tree::{Incomplete, Problem, TreeItem};
use knarr_core::{Entry, RelPath};
use knarr_sftp::client::DirectoryOptions;
use knarr_sftp::{Client, NameEntry};
use tokio_util::task::AbortOnDropHandle;

use crate::error::{ErrorKind, RemoteError, Retry};
use crate::listing::{BATCH_ENTRIES, ListOptions, Listing, ListingClosed, ListingSender};
use crate::sftp::connection::Connection;
use crate::sftp::{Place, Root, entries, error, full_path};

/// Directories that are read ahead.
const DIRECTORIES_AHEAD: usize = 16;

/// Links and types that are asked for at once.
const QUESTIONS_AT_ONCE: usize = 64;

/// Bytes of names that one directory may have.
const NAME_BYTES_LIMIT: usize = 512 * 1024 * 1024;

type Reading = AbortOnDropHandle<Result<Vec<TreeItem>, RemoteError>>;

/// Starts a listing.
pub(super) async fn start(place: &Place, options: ListOptions) -> Result<Listing, RemoteError> {
    let connection = place.endpoint.connection().await?;
    let reader = Arc::new(DirectoryReader {
        connection,
        root: place.root(),
        names: place.endpoint.options().names_per_directory,
        options,
    });
    // The first directory decides whether there is anything to list at all.
    let first = reader.read(reader.options.below.clone()).await?;
    let (sender, listing) = Listing::channel();
    let mut walk = Walk {
        reader,
        sender,
        batch: Vec::new(),
        frames: Vec::new(),
        reading: 0,
    };
    tokio::spawn(async move {
        walk.enter(first);
        // If nobody reads any more, nobody has to be told.
        if walk.run().await.is_ok() {
            let Walk { sender, .. } = walk;
            sender.end().await;
        }
    });
    Ok(listing)
}

/// Reads single directories.
struct DirectoryReader {
    connection: Arc<Connection>,
    root: Root,
    names: u64,
    options: ListOptions,
}

/// One directory whose content is being told.
struct Frame {
    /// What is in it, in order, reversed.
    items: Vec<TreeItem>,
    /// The readings of its directories, in order, as far as they were begun, the first first.
    readings: VecDeque<Reading>,
    /// How many of the items, from the end, have been looked through for directories to read.
    looked_through: usize,
}

struct Walk {
    reader: Arc<DirectoryReader>,
    sender: ListingSender,
    batch: Vec<TreeItem>,
    frames: Vec<Frame>,
    /// Readings that were begun and not yet told.
    reading: usize,
}

impl Walk {
    fn enter(&mut self, mut items: Vec<TreeItem>) {
        items.reverse();
        let readings = VecDeque::new();
        self.frames.push(Frame {
            items,
            readings,
            looked_through: 0,
        });
    }

    async fn run(&mut self) -> Result<(), ListingClosed> {
        while let Some(frame) = self.frames.last_mut() {
            let Some(item) = frame.items.pop() else {
                self.frames.pop();
                continue;
            };
            let directory = self.directory_to_enter(&item);
            self.tell(item).await?;
            let Some(directory) = directory else {
                self.passed();
                continue;
            };
            // The reading of this directory is the first that is waiting in its frame, or new.
            let reading = match self
                .frames
                .last_mut()
                .and_then(|frame| frame.readings.pop_front())
            {
                Some(reading) => {
                    self.reading -= 1;
                    reading
                }
                None => self.begin(directory.clone()),
            };
            self.passed();
            self.read_ahead();
            let content = reading.await.unwrap_or_else(|broken| {
                Err(RemoteError::new(
                    ErrorKind::Other,
                    "list",
                    broken.to_string(),
                ))
            });
            match content {
                Ok(items) => self.enter(items),
                Err(error) if broke_off(&error) => {
                    let reason = error::told(&error);
                    self.tell(TreeItem::Incomplete(Incomplete {
                        below: None,
                        reason,
                    }))
                    .await?;
                    break;
                }
                Err(error) => {
                    let reason = error::told(&error);
                    let below = Some(directory);
                    self.tell(TreeItem::Incomplete(Incomplete { below, reason }))
                        .await?;
                }
            }
        }
        self.sender.send(std::mem::take(&mut self.batch)).await
    }

    /// An item was taken from the end of the innermost frame.
    fn passed(&mut self) {
        if let Some(frame) = self.frames.last_mut() {
            frame.looked_through = frame.looked_through.saturating_sub(1);
        }
    }

    fn directory_to_enter(&self, item: &TreeItem) -> Option<RelPath> {
        match item {
            TreeItem::Entry(entry)
                if entry.kind == Kind::Directory && !self.reader.options.shallow =>
            {
                Some(entry.path.clone())
            }
            _ => None,
        }
    }

    async fn tell(&mut self, item: TreeItem) -> Result<(), ListingClosed> {
        if self.batch.capacity() == 0 {
            self.batch.reserve(BATCH_ENTRIES);
        }
        self.batch.push(item);
        if self.batch.len() >= BATCH_ENTRIES {
            self.sender.send(std::mem::take(&mut self.batch)).await?;
        }
        Ok(())
    }

    /// Begins to read what comes next in order: in the innermost directory first.
    fn read_ahead(&mut self) {
        for index in (0..self.frames.len()).rev() {
            while self.reading < DIRECTORIES_AHEAD {
                let frame = &mut self.frames[index];
                let left = frame.items.len().saturating_sub(frame.looked_through);
                let Some(item) = left.checked_sub(1).and_then(|last| frame.items.get(last)) else {
                    break;
                };
                frame.looked_through += 1;
                let TreeItem::Entry(Entry {
                    path,
                    kind: Kind::Directory,
                    ..
                }) = item
                else {
                    continue;
                };
                let path = path.clone();
                let reading = self.begin(path);
                self.frames[index].readings.push_back(reading);
                self.reading += 1;
            }
        }
    }

    fn begin(&self, directory: RelPath) -> Reading {
        let reader = Arc::clone(&self.reader);
        let task = tokio::spawn(async move { reader.read(Some(directory)).await });
        AbortOnDropHandle::new(task)
    }
}

/// Whether nothing more can be listed at all.
fn broke_off(error: &RemoteError) -> bool {
    error.retry == Retry::EndpointDown
        || matches!(error.kind, ErrorKind::Unreachable | ErrorKind::Protocol)
}

impl DirectoryReader {
    /// What is in a directory, in tree order.
    async fn read(&self, directory: Option<RelPath>) -> Result<Vec<TreeItem>, RemoteError> {
        let full = match &directory {
            Some(directory) => self.root.full(directory),
            None if self.root.0.is_empty() => b".".to_vec(),
            None => self.root.0.to_vec(),
        };
        let failed = |source| {
            let error = error::translate(&self.connection, "list", source);
            match &directory {
                Some(directory) => error.at(directory),
                None => error,
            }
        };
        let client = self.connection.client();
        // `.` and `..` are counted by the limit, too.
        let options = DirectoryOptions {
            name_limit: self.names.saturating_add(2),
        };
        let mut names = client
            .open_directory(&full, options)
            .await
            .map_err(failed)?;
        let mut found = Found {
            directory: directory.as_ref(),
            items: Vec::new(),
            name_bytes: 0,
        };
        while let Some(batch) = names.next_batch().await.map_err(failed)? {
            for name in batch {
                found.add(name, &self.options)?;
            }
        }
        let mut items = found.items;
        self.complete(client, &mut items).await.map_err(failed)?;
        items.sort_by(|a, b| tree_order(key(a), key(b)));
        refuse_duplicates(&mut items);
        Ok(items)
    }

    /// Asks for what the listing did not say: targets of links, and types.
    async fn complete(
        &self,
        client: &Client,
        items: &mut Vec<TreeItem>,
    ) -> Result<(), knarr_sftp::Error> {
        let is_complete = |item: &TreeItem| match item {
            TreeItem::Entry(entry) => entry.kind != Kind::Symlink && !is_unsaid(entry),
            _ => true,
        };
        if items.iter().all(is_complete) {
            return Ok(());
        }
        let (complete, open): (Vec<_>, Vec<_>) =
            std::mem::take(items).into_iter().partition(is_complete);
        *items = complete;
        let mut asked = futures::stream::iter(open)
            .map(|item| self.ask(client, item))
            .buffer_unordered(QUESTIONS_AT_ONCE);
        while let Some(answer) = asked.next().await {
            items.extend(answer?);
        }
        Ok(())
    }

    async fn ask(
        &self,
        client: &Client,
        item: TreeItem,
    ) -> Result<Option<TreeItem>, knarr_sftp::Error> {
        let TreeItem::Entry(mut entry) = item else {
            return Ok(Some(item));
        };
        let full = full_path(&self.root.0, &entry.path);
        if is_unsaid(&entry) {
            match client.lstat(&full).await {
                Ok(attributes) => entry = entries::entry(entry.path, &attributes),
                Err(source) if source.is_not_found() => return Ok(None),
                Err(source) if source.is_connection_lost() => return Err(source),
                Err(source) => return Ok(Some(problem(entry, &source.to_string()))),
            }
            if !self.options.takes(&entry.path, entry.kind) {
                return Ok(None);
            }
        }
        if entry.kind == Kind::Symlink {
            match client.read_link(&full).await {
                Ok(target) => entry.link_target = Some(target.as_ref().into()),
                // It was removed meanwhile.
                Err(source) if source.is_not_found() => return Ok(None),
                Err(source) if source.is_connection_lost() => return Err(source),
                Err(source) => return Ok(Some(problem(entry, &source.to_string()))),
            }
        }
        Ok(Some(TreeItem::Entry(entry)))
    }
}

/// What a directory was found to hold so far.
struct Found<'a> {
    directory: Option<&'a RelPath>,
    items: Vec<TreeItem>,
    name_bytes: usize,
}

impl Found<'_> {
    fn add(&mut self, listed: NameEntry, options: &ListOptions) -> Result<(), RemoteError> {
        let name: &[u8] = &listed.name;
        if matches!(name, b"." | b"..") {
            return Ok(());
        }
        self.name_bytes += name.len();
        if self.name_bytes > NAME_BYTES_LIMIT {
            let message = format!("its names are longer than {NAME_BYTES_LIMIT} bytes in all");
            let error = RemoteError::new(ErrorKind::Other, "list", message);
            return Err(error.with_retry(Retry::Never));
        }
        let path = match self.directory {
            Some(directory) => RelPath::from_name(name).and_then(|_| directory.join_name(name)),
            None => RelPath::from_name(name),
        };
        match path {
            Ok(path) => {
                let mut entry = entries::entry(path, &listed.attributes);
                if entries::kind(&listed.attributes).is_none() {
                    mark_unsaid(&mut entry);
                } else if !options.takes(&entry.path, entry.kind) {
                    return Ok(());
                }
                self.items.push(TreeItem::Entry(entry));
                Ok(())
            }
            Err(reason) => {
                let shown: String = printable(name).to_string().chars().take(200).collect();
                let message = format!(
                    "the server lists the name \"{shown}\", which is none ({reason}); it was left alone"
                );
                let (path, kind) = self.place_for(&shown);
                self.items.push(TreeItem::Problem(Problem {
                    path,
                    kind,
                    message,
                }));
                Ok(())
            }
        }
    }

    /// Where to report a name that is none: at its directory; at the root, which has no path, under
    /// what can be shown of the name.
    fn place_for(&self, shown: &str) -> (RelPath, Kind) {
        if let Some(directory) = self.directory {
            return (directory.clone(), Kind::Directory);
        }
        let text = shown.replace('/', "\\x2f").replace('.', "\\x2e");
        let text = if text.is_empty() {
            "(empty name)".to_owned()
        } else {
            text
        };
        let path = RelPath::from_name(text.as_bytes())
            .expect("it is not empty and has no slash, dot or control character");
        (path, Kind::Special)
    }
}

/// An entry whose type the listing did not say is marked by a mode that no file has.
const UNSAID: u32 = u32::MAX;

const fn mark_unsaid(entry: &mut Entry) {
    entry.mode = Some(UNSAID);
}

fn is_unsaid(entry: &Entry) -> bool {
    entry.mode == Some(UNSAID)
}

fn key(item: &TreeItem) -> (&RelPath, Kind) {
    match item {
        TreeItem::Entry(entry) => (&entry.path, entry.kind),
        TreeItem::Problem(problem) => (&problem.path, problem.kind),
        TreeItem::Excluded { path, kind } => (path, *kind),
        TreeItem::Incomplete(_) => unreachable!("a directory that was read is complete"),
    }
}

fn problem(entry: Entry, message: &str) -> TreeItem {
    TreeItem::Problem(Problem {
        path: entry.path,
        kind: entry.kind,
        message: printable(message.as_bytes()).to_string(),
    })
}

/// A name that is listed twice is no name that can be worked with, whatever is said about it. `items`
/// are in tree order.
fn refuse_duplicates(items: &mut Vec<TreeItem>) {
    let is_entry = |item: &TreeItem| matches!(item, TreeItem::Entry(_));
    let mut repeated = Vec::new();
    for (index, item) in items.iter().enumerate().filter(|(_, item)| is_entry(item)) {
        let (path, kind) = key(item);
        let next = items.get(index + 1).filter(|next| is_entry(next));
        if next.is_some_and(|next| tree_order(key(item), key(next)).is_eq()) {
            repeated.extend([index, index + 1]);
        }
        // What is a directory and something else at once stands in two places.
        if kind == Kind::Directory
            && let Ok(other) =
                items.binary_search_by(|item| tree_order(key(item), (path, Kind::File)))
        {
            repeated.extend([other, index]);
        }
    }
    if repeated.is_empty() {
        return;
    }
    repeated.sort_unstable();
    repeated.dedup();
    for index in repeated {
        if let TreeItem::Entry(entry) = &items[index] {
            items[index] = problem(entry.clone(), "the server lists this name more than once");
        }
    }
    items.dedup_by(|next, item| {
        let both = [&*item, &*next]
            .iter()
            .all(|item| matches!(item, TreeItem::Problem(_)));
        both && item == next
    });
}
