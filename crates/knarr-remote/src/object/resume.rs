//! What an earlier attempt left at the store: gone on from, found completed, or given up.
//!
//! Why this is safe:
//!
//! 1. A part on record is not sent again (K9); the store gave its receipt for these very bytes.
//! 2. A part that the store lists and that is not on record is not sent again either, if the store
//!    says enough to prove that it holds the same bytes ([`super::proof`]); it is put on record first.
//! 3. An upload is gone when the store says so, or lists none of the parts that it has to have. Some
//!    stores say "access denied" of an upload that is gone, where others mean that a policy denies it
//!    for a while: their list of parts decides. And some go on listing the parts of one that was
//!    completed. So an upload all of whose parts are on record, and which may hence have been
//!    completed, is looked for under its final name first: there it carries its mark.

use std::collections::BTreeMap;

use bytes::Bytes;
use knarr_core::RelPath;
use object_store::path::Path;

use super::error::Failure;
use super::http::backoff;
use super::parts::{MAX_PARTS, SavedUpload, has_mark};
use super::s3::{Condition, S3Api};
use super::{Head, Inner, xml};
use crate::error::{ErrorKind, RemoteError};
use crate::upload::{PartDone, ResumeState};

/// How often a listing of parts is asked for.
const ATTEMPTS: u32 = 5;
/// How often an object that may be about to appear is looked for again: within some six seconds.
const LOOKS: u32 = 6;
/// Stores list at most 1,000 parts a page.
const MAX_PAGES: usize = 2 * (MAX_PARTS as usize / 1_000);

/// What became of an earlier attempt.
#[derive(Debug)]
pub(super) enum Earlier {
    /// There is nothing to go on from; what was saved is to be forgotten.
    Gone,
    /// It was completed, and nobody heard of it.
    Finished(SavedUpload),
    /// It can be gone on from.
    Parts {
        saved: SavedUpload,
        /// What is on record.
        done: BTreeMap<u32, PartDone>,
        /// What the store has besides that, by number from 0.
        listed: BTreeMap<u32, ListedPart>,
    },
}

/// A part as the store lists it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct ListedPart {
    pub(super) size: u64,
    /// As it is listed, with or without quotes.
    pub(super) etag: String,
    pub(super) crc64nvme: Option<String>,
}

impl ListedPart {
    /// What completing needs to know of it, as the adapter would have kept it.
    pub(super) fn receipt(&self) -> String {
        let etag = xml::escape(&self.etag);
        match &self.crc64nvme {
            Some(checksum) => format!(
                "<PartMetadata><e_tag>{etag}</e_tag><checksum_crc64nvme>{}</checksum_crc64nvme>\
                 </PartMetadata>",
                xml::escape(checksum)
            ),
            None => format!("<PartMetadata><e_tag>{etag}</e_tag></PartMetadata>"),
        }
    }
}

/// The answer to which parts a multipart upload has.
#[derive(Debug, PartialEq, Eq)]
enum PartsThere {
    /// These, by number from 0; all of them.
    Listed(BTreeMap<u32, ListedPart>),
    /// None: it was completed, aborted or has expired.
    Gone,
    /// The store does not answer that.
    Unknown,
}

/// Looks what became of the upload of `resume`, which was to bring `size` bytes to `key`.
pub(super) async fn look(
    inner: &Inner,
    path: &RelPath,
    key: &Path,
    size: Option<u64>,
    resume: ResumeState,
) -> Result<Earlier, RemoteError> {
    let failed = |failure: Failure| failure.into_remote("write", Some(path));
    let Ok(saved) = serde_json::from_str::<SavedUpload>(&resume.state) else {
        tracing::warn!(%path, "an upload's saved state cannot be read, starting over");
        return Ok(Earlier::Gone);
    };
    if saved.key != key.as_ref() || saved.plan.size() != size {
        if let Err(error) = abort(inner, &saved).await {
            tracing::warn!(%path, %error, "an outdated upload is left at the store");
        }
        return Ok(Earlier::Gone);
    }
    let there = match &inner.s3 {
        Some(s3) => s3
            .parts_there(key, &saved.upload_id)
            .await
            .map_err(failed)?,
        None => PartsThere::Unknown,
    };
    let done: BTreeMap<u32, PartDone> = resume
        .parts
        .into_iter()
        .filter(|part| part.number < MAX_PARTS && part.size > 0)
        .filter(|part| part.size == saved.plan.length(part.number))
        .map(|part| (part.number, part))
        .collect();
    let gone = match &there {
        PartsThere::Gone => true,
        PartsThere::Listed(listed) => listed.is_empty() && !done.is_empty(),
        PartsThere::Unknown => false,
    };
    let on_record: u64 = done.values().map(|part| part.size).sum();
    if gone || size == Some(on_record) {
        // Only what has all its parts may have been completed, and may be about to appear.
        let looks = if gone && size == Some(on_record) {
            Looks::WhileItMayAppear
        } else {
            Looks::Once
        };
        let length = size.unwrap_or(on_record);
        let finished = find_completed(inner, key, &saved.mark, length, looks).await;
        if size.is_some() && finished.map_err(failed)?.is_some() {
            return Ok(Earlier::Finished(saved));
        }
    }
    if gone {
        return Ok(Earlier::Gone);
    }
    let mut listed = match there {
        PartsThere::Listed(listed) => listed,
        PartsThere::Gone | PartsThere::Unknown => BTreeMap::new(),
    };
    listed.retain(|number, part| !done.contains_key(number) && !part.etag.is_empty());
    Ok(Earlier::Parts {
        saved,
        done,
        listed,
    })
}

/// How often an object is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Looks {
    /// Once.
    Once,
    /// For some seconds: an earlier process may have asked for its completion, which goes on at the
    /// store although nobody waits for its answer, and during which some stores do not know the upload
    /// any more and the object not yet.
    WhileItMayAppear,
}

/// The object at `key`, if it is what the upload with this mark made.
pub(super) async fn find_completed(
    inner: &Inner,
    key: &Path,
    mark: &str,
    length: u64,
    looks: Looks,
) -> Result<Option<Head>, Failure> {
    let more = match looks {
        Looks::Once => 0,
        Looks::WhileItMayAppear => LOOKS,
    };
    let mut looked = 0;
    loop {
        let found = inner.head(key).await?;
        let ours =
            found.filter(|head| head.meta.size == length && has_mark(&head.attributes, mark));
        if ours.is_some() || looked == more {
            return Ok(ours);
        }
        tokio::time::sleep(backoff(looked)).await;
        looked += 1;
    }
}

/// Whether an upload that is denied is gone: the store knows none of its parts. What the store does not
/// tell counts as no: access may be denied for a while only, and what was sent is not to be sent again.
pub(super) async fn is_lost(inner: &Inner, key: &Path, saved: &SavedUpload) -> bool {
    let Some(s3) = &inner.s3 else { return false };
    match s3.parts_there(key, &saved.upload_id).await {
        Ok(PartsThere::Gone) => true,
        Ok(PartsThere::Listed(listed)) => listed.is_empty(),
        Ok(PartsThere::Unknown) | Err(_) => false,
    }
}

/// Gives up an upload of which only the saved text is left.
pub(super) async fn abandon(inner: &Inner, path: &RelPath, state: &str) -> Result<(), RemoteError> {
    let saved: SavedUpload = serde_json::from_str(state).map_err(|error| {
        let message = "what was saved about the upload cannot be read";
        RemoteError::new(ErrorKind::InvalidName, "give up an upload for", message)
            .at(path)
            .caused_by(error)
    })?;
    abort(inner, &saved).await.map_err(|error| error.at(path))
}

/// Removes a multipart upload with its parts. One that is gone is removed.
pub(super) async fn abort(inner: &Inner, saved: &SavedUpload) -> Result<(), RemoteError> {
    let Ok(key) = Path::parse(&saved.key) else {
        let message = "the key of the upload is not valid";
        return Err(RemoteError::new(
            ErrorKind::InvalidName,
            "give up an upload",
            message,
        ));
    };
    let Err(error) = inner.store.abort_multipart(&key, &saved.upload_id).await else {
        return Ok(());
    };
    let failure = Failure::store(&error);
    if failure.is_upload_gone() {
        return Ok(());
    }
    // Some stores say "access denied" of an upload that is gone; one that lists no parts of it keeps
    // none for us.
    if failure.is_denied() && is_lost(inner, &key, saved).await {
        return Ok(());
    }
    Err(failure.into_remote("give up an upload", None))
}

impl S3Api {
    /// Which parts the store has of an upload.
    async fn parts_there(&self, key: &Path, upload_id: &str) -> Result<PartsThere, Failure> {
        let mut parts = BTreeMap::new();
        let mut marker: Option<u32> = None;
        for _ in 0..MAX_PAGES {
            let from = marker.map(|marker| marker.to_string());
            let answer = match self.parts_page(key, upload_id, from.as_deref()).await {
                Ok(answer) => answer,
                Err(failure) if failure.is_upload_gone() => return Ok(PartsThere::Gone),
                Err(failure)
                    if failure.is_passing() || failure.kind() == ErrorKind::Authentication =>
                {
                    return Err(failure);
                }
                Err(_refused) => return Ok(PartsThere::Unknown),
            };
            let Some(page) = read_page(&answer) else {
                return Ok(PartsThere::Unknown);
            };
            parts.extend(page.parts);
            match page.next {
                None => return Ok(PartsThere::Listed(parts)),
                Some(next) if marker.is_none_or(|marker| next > marker) => marker = Some(next),
                Some(_backwards) => break,
            }
        }
        Ok(PartsThere::Unknown)
    }

    async fn parts_page(
        &self,
        key: &Path,
        upload_id: &str,
        marker: Option<&str>,
    ) -> Result<Bytes, Failure> {
        let mut query = Vec::with_capacity(2);
        if let Some(marker) = marker {
            query.push(("part-number-marker", marker));
        }
        query.push(("uploadId", upload_id));
        let url = self.object_query(key, &query);
        let mut attempt = 0;
        loop {
            let failure = match self.call("GET", &url, Bytes::new(), &Condition::None).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            attempt += 1;
            if attempt == ATTEMPTS || !failure.is_passing() {
                return Err(failure);
            }
            tokio::time::sleep(backoff(attempt)).await;
        }
    }
}

#[derive(Debug, Default)]
struct PartsPage {
    parts: BTreeMap<u32, ListedPart>,
    /// Behind which part the next page begins, if there is one.
    next: Option<u32>,
}

/// Reads a page of parts; nothing if it is none.
fn read_page(answer: &[u8]) -> Option<PartsPage> {
    let mut page = PartsPage::default();
    let (mut is_listing, mut truncated, mut sound) = (false, false, true);
    let mut next = None;
    let mut number: Option<u32> = None;
    let mut size: Option<u64> = None;
    let mut part = ListedPart::default();
    let walked = xml::walk(answer, |open, text| {
        // Not every server calls it "ListPartsResult".
        is_listing |= open
            .first()
            .is_some_and(|root| root.starts_with("ListParts"));
        match (open, text) {
            ([_, "IsTruncated"], Some(text)) => truncated = text.trim() == "true",
            ([_, "NextPartNumberMarker"], Some(text)) => next = text.trim().parse().ok(),
            ([_, "Part", "PartNumber"], Some(text)) => number = text.trim().parse().ok(),
            ([_, "Part", "Size"], Some(text)) => size = text.trim().parse().ok(),
            ([_, "Part", "ETag"], Some(text)) => part.etag = text.into_owned(),
            ([_, "Part", "ChecksumCRC64NVME"], Some(text)) => {
                part.crc64nvme = Some(text.into_owned()).filter(|text| !text.is_empty());
            }
            ([_, "Part"], _) => {
                let mut ended = std::mem::take(&mut part);
                match (
                    number.take().and_then(|number| number.checked_sub(1)),
                    size.take(),
                ) {
                    (Some(number), Some(size)) if number < MAX_PARTS => {
                        ended.size = size;
                        page.parts.insert(number, ended);
                    }
                    _ => sound = false,
                }
            }
            _ => {}
        }
    });
    if truncated {
        sound &= next.is_some();
        page.next = next;
    }
    (walked.is_ok() && is_listing && sound).then_some(page)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::s3::Receipt;

    const PART: &str = "<Part><PartNumber>2</PartNumber><ETag>&quot;ab&quot;</ETag><Size>7</Size>\
                        <ChecksumCRC64NVME>x=</ChecksumCRC64NVME></Part>";

    fn page(inner: &str) -> Option<PartsPage> {
        read_page(format!("<ListPartsResult>{inner}</ListPartsResult>").as_bytes())
    }

    #[test]
    fn parts_are_read_and_make_the_receipts_that_completing_needs() {
        let text = format!(
            "<PartNumberMarker>0</PartNumberMarker><IsTruncated>true</IsTruncated>{PART}\
             <Part><PartNumber>3</PartNumber><Size>1</Size></Part>\
             <NextPartNumberMarker>3</NextPartNumberMarker>"
        );
        let page = page(&text).unwrap();
        assert_eq!(page.next, Some(3));
        assert_eq!(page.parts[&2].etag, "");
        let part = &page.parts[&1];
        assert_eq!((part.size, part.etag.as_str()), (7, "\"ab\""));
        let text = part.receipt();
        let receipt = Receipt::read(&text);
        assert_eq!(
            (&*receipt.etag, receipt.crc64nvme.as_deref()),
            ("\"ab\"", Some("x="))
        );
    }

    #[test]
    fn h60_what_is_no_whole_list_of_parts_is_none() {
        for text in [
            "<Part><Size>1</Size></Part>",
            "<Part><PartNumber>0</PartNumber><Size>1</Size></Part>",
            "<Part><PartNumber>10001</PartNumber><Size>1</Size></Part>",
            "<Part><PartNumber>1</PartNumber><Size>-1</Size></Part>",
            "<IsTruncated>true</IsTruncated>",
            "<Part>",
        ] {
            assert!(page(text).is_none(), "{text}");
        }
        assert!(read_page(b"<Error><Code>X</Code></Error>").is_none());
        assert!(page("").unwrap().parts.is_empty());
    }
}
