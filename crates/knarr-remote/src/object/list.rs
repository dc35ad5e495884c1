//! Listing a bucket in tree order.
//!
//! A bucket lists in the order of the bytes of its keys, which is the order of trees for files. A
//! shallow listing has its directories apart; they are merged by the same bytes. Nothing is trusted:
//! a key out of order, a page that does not say how it ends, or one that cannot be had ends the
//! listing as incomplete, so that nothing behind it is taken for absent (K5, R-21).

use std::cmp::Ordering;
use std::sync::Arc;

use knarr_core::entry::{Identity, Kind};
use knarr_core::path::printable;
use knarr_core::tree::{Incomplete, TreeItem};
use knarr_core::{Entry, RelPath};
use object_store::list::PaginatedListOptions;

use super::Inner;
use super::error::Failure;
use super::keys::{Key, read_key};
use super::s3::{ListedObject, Page, PageRequest, bare};
use crate::error::{ErrorKind, RemoteError};
use crate::listing::{BATCH_ENTRIES, ListOptions, Listing, ListingSender};

/// Starts a listing; the first page tells whether there is anything to list.
pub(super) async fn list(inner: Arc<Inner>, options: ListOptions) -> Result<Listing, RemoteError> {
    let (sender, listing) = Listing::channel();
    let Some(prefix) = inner.prefix.below(options.below.as_ref()) else {
        // No key can lie below a name that no key can have.
        tokio::spawn(sender.end());
        return Ok(listing);
    };
    let request = PageRequest {
        prefix,
        shallow: options.shallow,
        token: None,
    };
    let first = match inner.page(&request).await {
        Ok(page) => page,
        Err(failure) if failure.kind() == ErrorKind::Protocol => {
            let reason = failure.into_remote("list", options.below.as_ref()).message;
            let incomplete = TreeItem::Incomplete(Incomplete {
                below: None,
                reason,
            });
            tokio::spawn(async move {
                if sender.send(vec![incomplete]).await.is_ok() {
                    sender.end().await;
                }
            });
            return Ok(listing);
        }
        Err(failure) => return Err(failure.into_remote("list", options.below.as_ref())),
    };
    let lister = Lister {
        items: Items::new(inner.prefix.as_str().len(), &request.prefix, options),
        inner,
        request,
        sender,
    };
    tokio::spawn(lister.run(first));
    Ok(listing)
}

impl Inner {
    async fn page(&self, request: &PageRequest) -> Result<Page, Failure> {
        if let Some(s3) = &self.s3 {
            return s3.list_page(request).await;
        }
        let options = PaginatedListOptions {
            delimiter: request.shallow.then_some("/".into()),
            page_token: request.token.clone(),
            ..PaginatedListOptions::default()
        };
        let prefix = Some(request.prefix.as_str()).filter(|prefix| !prefix.is_empty());
        let listed = self
            .store
            .list_paginated(prefix, options)
            .await
            .map_err(|error| {
                match Failure::store(&error) {
                    // One such key spoils the page, and nothing tells what else was on it.
                    failure if failure.kind() == ErrorKind::InvalidName => Failure::of(
                        ErrorKind::Protocol,
                        "the bucket holds a key that is no path; rename it there",
                    ),
                    failure => failure,
                }
            })?;
        let object = |meta: object_store::ObjectMeta| ListedObject {
            key: meta.location.as_ref().as_bytes().to_vec(),
            size: meta.size,
            modified: super::entry_of(root_stand_in(), &meta).mtime,
            etag: meta.e_tag.as_deref().map(|etag| bare(etag).to_owned()),
        };
        let mut page = Page {
            objects: listed.result.objects.into_iter().map(object).collect(),
            directories: Vec::new(),
            next: listed.page_token,
        };
        for directory in listed.result.common_prefixes {
            page.directories.push(format!("{directory}/").into_bytes());
        }
        drop_placeholders(&mut page.objects);
        Ok(page)
    }
}

fn root_stand_in() -> RelPath {
    RelPath::new(*b"-").expect("one letter is a path")
}

/// The adapter takes the `/` from the end of keys: what is empty and stands out of order, or right
/// before what lies below it, was the placeholder of a directory.
fn drop_placeholders(objects: &mut Vec<ListedObject>) {
    let is_below = |directory: &[u8], key: &[u8]| {
        key.strip_prefix(directory)
            .is_some_and(|rest| rest.first() == Some(&b'/'))
    };
    let mut last: Vec<u8> = Vec::new();
    let mut kept = Vec::with_capacity(objects.len());
    let mut rest = objects.drain(..).peekable();
    while let Some(object) = rest.next() {
        let before_its_content = rest
            .peek()
            .is_some_and(|next| is_below(&object.key, &next.key));
        if object.size == 0 && (object.key <= last || before_its_content) {
            continue;
        }
        last.clone_from(&object.key);
        kept.push(object);
    }
    drop(rest);
    *objects = kept;
}

struct Lister {
    inner: Arc<Inner>,
    request: PageRequest,
    items: Items,
    sender: ListingSender,
}

impl Lister {
    async fn run(mut self, first: Page) {
        let mut page = first;
        loop {
            let next = page.next.take();
            let batches = self.items.take(page);
            let broken = self.items.broken;
            self.request.token = next;
            // The next page is under way while this one is handed over.
            let fetch = async {
                match &self.request.token {
                    Some(_) if !broken => Some(self.inner.page(&self.request).await),
                    _ => None,
                }
            };
            let hand_over = async {
                for batch in batches {
                    self.sender.send(batch).await?;
                }
                Ok::<(), crate::listing::ListingClosed>(())
            };
            let (handed_over, fetched) = tokio::join!(hand_over, fetch);
            if handed_over.is_err() {
                return;
            }
            match fetched {
                None => break,
                Some(Ok(next)) => page = next,
                Some(Err(failure)) => {
                    let error = failure.into_remote("list", self.items.options.below.as_ref());
                    let incomplete = Incomplete {
                        below: None,
                        reason: error.message,
                    };
                    if self
                        .sender
                        .send(vec![TreeItem::Incomplete(incomplete)])
                        .await
                        .is_err()
                    {
                        return;
                    }
                    break;
                }
            }
        }
        self.sender.end().await;
    }
}

/// Makes items of keys.
struct Items {
    /// How many bytes of each key are not part of the path.
    strip: usize,
    /// What all keys begin with.
    prefix: Vec<u8>,
    options: ListOptions,
    last: Vec<u8>,
    broken: bool,
    /// The directory (with its `/`) that was looked at last, and whether it is left out.
    directory: (Vec<u8>, bool),
}

impl Items {
    fn new(strip: usize, prefix: &str, options: ListOptions) -> Self {
        Self {
            strip,
            prefix: prefix.as_bytes().to_vec(),
            options,
            last: Vec::new(),
            broken: false,
            directory: (Vec::new(), false),
        }
    }

    /// The items of a page, in batches and in order.
    fn take(&mut self, page: Page) -> Vec<Vec<TreeItem>> {
        let count = page.objects.len() + page.directories.len();
        let mut batches = Vec::with_capacity(count / BATCH_ENTRIES + 1);
        let mut batch = Vec::with_capacity(count.min(BATCH_ENTRIES));
        let mut objects = page.objects.into_iter().peekable();
        let mut directories = page.directories.into_iter().peekable();
        loop {
            let directory_first = match (objects.peek(), directories.peek()) {
                (None, None) => break,
                (Some(_), None) => false,
                (None, Some(_)) => true,
                (Some(object), Some(directory)) => directory.cmp(&object.key) == Ordering::Less,
            };
            let item = if directory_first {
                directories
                    .next()
                    .and_then(|directory| self.directory(directory))
            } else {
                objects.next().and_then(|object| self.object(object))
            };
            batch.extend(item);
            if self.broken {
                break;
            }
            if batch.len() == BATCH_ENTRIES {
                batches.push(std::mem::replace(
                    &mut batch,
                    Vec::with_capacity(BATCH_ENTRIES),
                ));
            }
        }
        batches.push(batch);
        batches
    }

    fn break_off(&mut self, key: &[u8], why: &str) -> TreeItem {
        self.broken = true;
        let reason = format!("the store lists \"{}\" {why}", printable(key));
        TreeItem::Incomplete(Incomplete {
            below: None,
            reason,
        })
    }

    /// Checks that `key` comes next; gives the fault if it does not.
    fn advance(&mut self, key: &[u8]) -> Option<TreeItem> {
        if !key.starts_with(&self.prefix) {
            return Some(self.break_off(key, "which was not asked for"));
        }
        if !self.last.is_empty() && key <= self.last.as_slice() {
            return Some(self.break_off(key, "out of order"));
        }
        self.last.clear();
        self.last.extend_from_slice(key);
        None
    }

    fn object(&mut self, object: ListedObject) -> Option<TreeItem> {
        if let Some(fault) = self.advance(&object.key) {
            return Some(fault);
        }
        let key = object.key.get(self.strip..)?;
        match read_key(key, object.size) {
            Key::Placeholder => None,
            Key::Problem(problem) => self
                .takes(&problem.path, Kind::File)
                .then_some(TreeItem::Problem(problem)),
            Key::File(path) => {
                if !self.takes(&path, Kind::File) {
                    return None;
                }
                let mut entry = Entry::file(path, object.size);
                entry.mtime = object.modified;
                entry.identity = object.etag.map(|etag| Identity::Tag(etag.into_boxed_str()));
                Some(TreeItem::Entry(entry))
            }
        }
    }

    fn directory(&mut self, key: Vec<u8>) -> Option<TreeItem> {
        if let Some(fault) = self.advance(&key) {
            return Some(fault);
        }
        let name = key.get(self.strip..)?.strip_suffix(b"/")?;
        match RelPath::new(name) {
            Ok(path) if path.as_utf8().is_some() => self
                .takes(&path, Kind::Directory)
                .then(|| TreeItem::Entry(Entry::directory(path))),
            _ => match read_key(key.get(self.strip..)?, 1) {
                Key::Problem(problem) => Some(TreeItem::Problem(problem)),
                _ => None,
            },
        }
    }

    /// Whether the listing is to contain `path`: by itself, and by all directories above it.
    fn takes(&mut self, path: &RelPath, kind: Kind) -> bool {
        let bytes = path.as_bytes();
        let parent = bytes
            .iter()
            .rposition(|byte| *byte == b'/')
            .map_or(0, |slash| slash + 1);
        let directory = bytes.get(..parent).unwrap_or_default();
        if directory != self.directory.0.as_slice() {
            let left_out = self.leaves_out(directory);
            self.directory.0.clear();
            self.directory.0.extend_from_slice(directory);
            self.directory.1 = left_out;
        }
        !self.directory.1 && self.options.takes(path, kind)
    }

    fn leaves_out(&self, directory: &[u8]) -> bool {
        let from = self
            .options
            .below
            .as_ref()
            .map_or(0, |below| below.as_bytes().len() + 1);
        let ends = directory
            .iter()
            .enumerate()
            .skip(from)
            .filter(|(_, byte)| **byte == b'/');
        for (end, _) in ends {
            let above = directory.get(..end).map(RelPath::new);
            if let Some(Ok(above)) = above
                && !self.options.takes(&above, Kind::Directory)
            {
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(key: &str, size: u64) -> ListedObject {
        ListedObject {
            key: key.as_bytes().to_vec(),
            size,
            modified: None,
            etag: None,
        }
    }

    fn items(keys: &[&str]) -> Vec<String> {
        let mut items = Items::new(2, "p/", ListOptions::default());
        let page = Page {
            objects: keys.iter().map(|key| object(key, 1)).collect(),
            ..Page::default()
        };
        let shown = |item: TreeItem| match item {
            TreeItem::Entry(entry) => entry.path.to_string(),
            TreeItem::Problem(problem) => format!("problem {}", problem.path),
            TreeItem::Incomplete(incomplete) => format!("incomplete: {}", incomplete.reason),
            TreeItem::Excluded { path, .. } => format!("excluded {path}"),
        };
        items.take(page).into_iter().flatten().map(shown).collect()
    }

    #[test]
    fn k5_a_listing_out_of_order_or_of_something_else_is_incomplete() {
        assert_eq!(items(&["p/a", "p/b"]), ["a", "b"]);
        assert_eq!(
            items(&["p/b", "p/a"]),
            ["b", "incomplete: the store lists \"p/a\" out of order"]
        );
        assert_eq!(items(&["p/b", "p/b"]).len(), 2);
        assert_eq!(
            items(&["p/b", "q/c"]),
            [
                "b",
                "incomplete: the store lists \"q/c\" which was not asked for"
            ]
        );
        assert_eq!(
            items(&["p"]),
            ["incomplete: the store lists \"p\" which was not asked for"]
        );
    }

    #[test]
    fn placeholders_of_stores_that_hide_the_slash_are_left_out() {
        let mut objects = vec![
            object("a", 0),
            object("a/b", 1),
            object("b-c", 1),
            object("b", 0),
            object("d", 0),
        ];
        drop_placeholders(&mut objects);
        let keys: Vec<&[u8]> = objects.iter().map(|object| object.key.as_slice()).collect();
        assert_eq!(keys, [b"a/b".as_slice(), b"b-c", b"d"]);
    }
}
