//! The requests to S3 that the adapter cannot make as Knarr needs them.
//!
//! * Listing: the adapter's keys cannot hold `a//b` or a `/` at the end, so one such key makes a
//!   bucket unlistable, or an empty directory a file; and it takes a page without its continuation
//!   for the last one. Here keys are bytes, and a page says how it ended.
//! * Completing a multipart upload: with a condition, and without the blind repetition after which
//!   nobody knows whether the first attempt worked.
//! * Asking what is there of a multipart upload (in [`super::resume`]).
//!
//! Constraints: an answer has a size limit (H-60), and reading it ends (a black hole is an error).

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use knarr_core::Timestamp;
use object_store::HeaderValue;
use object_store::aws::{AwsAuthorizer, AwsCredential};
use object_store::client::{HttpClient, HttpRequest, HttpRequestBody};
use object_store::path::Path;

use super::error::Failure;
use super::http::backoff;
use super::xml;
use crate::error::ErrorKind;

/// A page of 1,000 keys of 1,024 bytes, each byte as three, is 3 MB; more is not an answer.
const ANSWER_LIMIT: usize = 16 << 20;
/// How often a request that changes nothing is repeated.
const ATTEMPTS: u32 = 5;
/// How long S3 may take to put the parts of a large upload together.
const COMPLETION_LIMIT: Duration = Duration::from_mins(10);

/// A bucket and how to talk to it.
#[derive(Debug)]
pub(super) struct S3Api {
    pub(super) client: HttpClient,
    /// With the bucket, without a `/` at the end.
    pub(super) bucket_url: String,
    pub(super) region: String,
    pub(super) credentials: Arc<dyn object_store::CredentialProvider<Credential = AwsCredential>>,
    /// How long to wait for the next bytes of an answer.
    pub(super) patience: Duration,
}

/// One object of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ListedObject {
    pub(super) key: Vec<u8>,
    pub(super) size: u64,
    pub(super) modified: Option<Timestamp>,
    pub(super) etag: Option<String>,
}

/// One page of a listing.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) objects: Vec<ListedObject>,
    /// Common prefixes, with the `/` at the end.
    pub(super) directories: Vec<Vec<u8>>,
    /// How to go on, or nothing at the end.
    pub(super) next: Option<String>,
}

/// Which objects a page should have.
#[derive(Debug, Clone)]
pub(super) struct PageRequest {
    pub(super) prefix: String,
    pub(super) shallow: bool,
    pub(super) token: Option<String>,
}

/// On what condition an object may be replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Condition {
    /// On none.
    None,
    /// Nothing is there.
    Absent,
    /// This version is there.
    Is(String),
}

/// What completing an upload gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Completed {
    /// The ETag without quotes.
    pub(super) etag: Option<String>,
    /// The checksum over the whole object, as the store computed it.
    pub(super) crc64nvme: Option<String>,
}

impl S3Api {
    /// Gets a page; repeats what may pass.
    pub(super) async fn list_page(&self, request: &PageRequest) -> Result<Page, Failure> {
        // Not `encoding-type=url`: some servers say that they encode, and do not. What XML cannot hold
        // comes as a reference, and is a problem in a name anyhow.
        let mut query = vec![("list-type", "2")];
        if let Some(token) = &request.token {
            query.push(("continuation-token", token));
        }
        if request.shallow {
            query.push(("delimiter", "/"));
        }
        if !request.prefix.is_empty() {
            query.push(("prefix", &request.prefix));
        }
        let url = url(&self.bucket_url, &query);
        let mut attempt = 0;
        loop {
            let failure = match self.call("GET", &url, Bytes::new(), &Condition::None).await {
                Ok(body) => match parse_page(&body) {
                    Ok(page) => return Ok(page),
                    Err(failure) => failure,
                },
                Err(failure) => failure,
            };
            attempt += 1;
            if attempt == ATTEMPTS || !failure.is_passing() && failure.kind() != ErrorKind::Protocol
            {
                return Err(failure);
            }
            tokio::time::sleep(backoff(attempt)).await;
        }
    }

    /// Completes a multipart upload, once.
    pub(super) async fn complete(
        &self,
        key: &Path,
        upload_id: &str,
        receipts: &[&str],
        condition: &Condition,
    ) -> Result<Completed, Failure> {
        let mut body = String::with_capacity(64 + receipts.len() * 160);
        body.push_str(
            "<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">",
        );
        for (index, receipt) in receipts.iter().enumerate() {
            let receipt = Receipt::read(receipt);
            body.push_str("<Part>");
            for (element, value) in [
                ("ETag", Some(receipt.etag)),
                ("ChecksumCRC64NVME", receipt.crc64nvme),
                ("ChecksumSHA256", receipt.sha256),
            ] {
                if let Some(value) = value {
                    // Writing to a string does not fail.
                    write!(body, "<{element}>{}</{element}>", xml::escape(&value)).unwrap_or(());
                }
            }
            write!(body, "<PartNumber>{}</PartNumber></Part>", index + 1).unwrap_or(());
        }
        body.push_str("</CompleteMultipartUpload>");
        let url = self.object_query(key, &[("uploadId", upload_id)]);
        let call = self.call("POST", &url, body.into(), condition);
        let answer = match tokio::time::timeout(COMPLETION_LIMIT, call).await {
            Ok(answer) => answer?,
            Err(_elapsed) => {
                return Err(Failure::of(ErrorKind::Protocol, "completing did not end"));
            }
        };
        // 200 comes before the work is done; what came of it stands in the body.
        let mut is_result = false;
        let parsed = xml::walk(&answer, |open, _| {
            is_result |= open.first() == Some(&"CompleteMultipartUploadResult");
        });
        if parsed.is_err() || !is_result {
            return Err(Failure::answer(200, &answer));
        }
        Ok(Completed {
            etag: xml::find(&answer, "ETag").map(|etag| bare(&etag).to_owned()),
            crc64nvme: xml::find(&answer, "ChecksumCRC64NVME"),
        })
    }

    fn object_url(&self, key: &Path) -> String {
        let mut url = format!("{}/", self.bucket_url);
        encode(key.as_ref(), Slash::Keep, &mut url);
        url
    }

    /// The address of a question about `key`.
    pub(super) fn object_query(&self, key: &Path, query: &[(&str, &str)]) -> String {
        url(&self.object_url(key), query)
    }

    /// One signed request; the whole body of the answer, if it says yes.
    pub(super) async fn call(
        &self,
        method: &str,
        url: &str,
        body: Bytes,
        condition: &Condition,
    ) -> Result<Bytes, Failure> {
        let invalid = |what: &str| Failure::of(ErrorKind::Other, format!("{what} is not valid"));
        let length = body.len();
        let mut request = HttpRequest::new(HttpRequestBody::from(body));
        *request.method_mut() = method.parse().map_err(|_invalid| invalid("the method"))?;
        *request.uri_mut() = url.parse().map_err(|_invalid| invalid("the address"))?;
        if method == "POST" {
            request
                .headers_mut()
                .insert("content-length", HeaderValue::from(length));
            request
                .headers_mut()
                .insert("content-type", HeaderValue::from_static("application/xml"));
        }
        match condition {
            Condition::None => {}
            Condition::Absent => {
                request
                    .headers_mut()
                    .insert("if-none-match", HeaderValue::from_static("*"));
            }
            Condition::Is(etag) => {
                let value = HeaderValue::from_str(&quoted(etag));
                let value = value.map_err(|_invalid| invalid("the ETag"))?;
                request.headers_mut().insert("if-match", value);
            }
        }
        let credential = self.credentials.get_credential().await?;
        // These bodies are small: they are always signed.
        AwsAuthorizer::new(&credential, "s3", &self.region).try_authorize(&mut request, None)?;
        let response = self
            .client
            .execute(request)
            .await
            .map_err(|error| Failure::transport(&error))?;
        let status = response.status();
        let body = self.collect(response.into_body().bytes_stream()).await;
        if status.is_success() {
            body
        } else {
            Err(Failure::answer(status.as_u16(), &body.unwrap_or_default()))
        }
    }

    async fn collect(
        &self,
        mut stream: futures::stream::BoxStream<
            'static,
            Result<Bytes, object_store::client::HttpError>,
        >,
    ) -> Result<Bytes, Failure> {
        let mut collected: Vec<u8> = Vec::new();
        loop {
            match tokio::time::timeout(self.patience, stream.next()).await {
                Err(_elapsed) => {
                    return Err(Failure::of(
                        ErrorKind::Protocol,
                        "the answer stopped in the middle",
                    ));
                }
                Ok(None) => return Ok(collected.into()),
                Ok(Some(Err(error))) => return Err(Failure::transport(&error)),
                Ok(Some(Ok(chunk))) => {
                    if collected.len() + chunk.len() > ANSWER_LIMIT {
                        return Err(Failure::of(ErrorKind::Protocol, "the answer has no end"));
                    }
                    collected.extend_from_slice(&chunk);
                }
            }
        }
    }
}

/// What the adapter keeps of a finished part.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Receipt<'a> {
    pub(super) etag: Cow<'a, str>,
    pub(super) crc64nvme: Option<Cow<'a, str>>,
    pub(super) sha256: Option<Cow<'a, str>>,
}

impl<'a> Receipt<'a> {
    /// Reads a receipt: an ETag alone, or an element with an ETag and checksums.
    pub(super) fn read(text: &'a str) -> Self {
        let mut receipt = Self {
            etag: Cow::Borrowed(text),
            crc64nvme: None,
            sha256: None,
        };
        if text.starts_with('<') {
            let _plain: Result<(), xml::XmlError> =
                xml::walk(text.as_bytes(), |open, value| match (open.last(), value) {
                    (Some(&"e_tag"), Some(value)) => receipt.etag = value,
                    (Some(&"checksum_crc64nvme"), value) => receipt.crc64nvme = value,
                    (Some(&"checksum_sha256"), value) => receipt.sha256 = value,
                    _ => {}
                });
        }
        receipt
    }
}

/// An ETag without quotes and weakness: servers write it differently in lists and headers.
pub(super) fn bare(etag: &str) -> &str {
    let etag = etag.trim();
    let etag = etag.strip_prefix("W/").unwrap_or(etag);
    etag.trim_matches('"')
}

/// An ETag as a header wants it.
pub(super) fn quoted(etag: &str) -> String {
    format!("\"{}\"", bare(etag))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Slash {
    Keep,
    Encode,
}

fn encode(text: &str, slash: Slash, into: &mut String) {
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                into.push(char::from(byte));
            }
            b'/' if slash == Slash::Keep => into.push('/'),
            // Writing to a string does not fail.
            _ => write!(into, "%{byte:02X}").unwrap_or(()),
        }
    }
}

fn url(base: &str, query: &[(&str, &str)]) -> String {
    let mut url = base.to_owned();
    for (number, (name, value)) in query.iter().enumerate() {
        url.push(if number == 0 { '?' } else { '&' });
        url.push_str(name);
        url.push('=');
        encode(value, Slash::Encode, &mut url);
    }
    url
}

/// Decodes `%xx` and `+` as the stores encode keys in listings.
fn decode(text: &str) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            b'+' => b' ',
            other => other,
        });
    }
    Some(decoded)
}

#[derive(Default)]
struct PageParser {
    page: Page,
    encoded: bool,
    truncated: Option<bool>,
    key: Option<String>,
    size: Option<u64>,
    modified: Option<Timestamp>,
    etag: Option<String>,
    keys: Vec<String>,
    prefixes: Vec<String>,
    fault: Option<&'static str>,
}

impl PageParser {
    fn leaf(&mut self, open: &[&str], text: Option<Cow<'_, str>>) {
        match (open, text) {
            ([_, "IsTruncated"], Some(text)) => self.truncated = Some(text.trim() == "true"),
            ([_, "NextContinuationToken"], Some(text)) if !text.is_empty() => {
                self.page.next = Some(text.into_owned());
            }
            ([_, "EncodingType"], Some(text)) => self.encoded = text.trim() == "url",
            ([_, "CommonPrefixes", "Prefix"], Some(text)) => self.prefixes.push(text.into_owned()),
            ([_, "Contents", "Key"], Some(text)) => self.key = Some(text.into_owned()),
            ([_, "Contents", "Size"], Some(text)) => self.size = text.trim().parse().ok(),
            ([_, "Contents", "LastModified"], Some(text)) => {
                let time: Option<jiff::Timestamp> = text.trim().parse().ok();
                // Whole seconds, as in the header that a look at the object gives.
                self.modified = time.map(|time| Timestamp::from_seconds(time.as_second()));
            }
            ([_, "Contents", "ETag"], Some(text)) => self.etag = Some(bare(&text).to_owned()),
            ([_, "Contents"], _) => match (self.key.take(), self.size.take()) {
                (Some(key), Some(size)) => {
                    self.keys.push(key);
                    self.page.objects.push(ListedObject {
                        key: Vec::new(),
                        size,
                        modified: self.modified.take(),
                        etag: self.etag.take(),
                    });
                }
                _ => self.fault = Some("an object in the listing has no key or no size"),
            },
            _ => {}
        }
    }

    fn finish(mut self) -> Result<Page, &'static str> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        // The type of encoding may stand behind the keys, so they are decoded at the end.
        let encoded = self.encoded;
        let read = |text: String| {
            let key = if encoded {
                decode(&text)
            } else {
                Some(text.into_bytes())
            };
            key.ok_or("a key in the listing is not encoded as the listing says")
        };
        for (object, key) in self.page.objects.iter_mut().zip(self.keys) {
            object.key = read(key)?;
        }
        for prefix in self.prefixes {
            self.page.directories.push(read(prefix)?);
        }
        match (self.truncated, self.page.next.is_some()) {
            (Some(true), false) => Err("the listing goes on, but the store does not say where"),
            (None, false) => Err("the listing does not say whether it is complete"),
            (Some(false), true) => {
                self.page.next = None;
                Ok(self.page)
            }
            _ => Ok(self.page),
        }
    }
}

fn parse_page(body: &[u8]) -> Result<Page, Failure> {
    let mut parser = PageParser::default();
    let mut root = None;
    let walked = xml::walk(body, |open, text| {
        root = root.or_else(|| open.first().copied());
        parser.leaf(open, text);
    });
    if let Err(error) = walked {
        return Err(Failure::of(ErrorKind::Protocol, error.to_string()));
    }
    if root == Some("Error") {
        return Err(Failure::answer(200, body));
    }
    parser
        .finish()
        .map_err(|fault| Failure::of(ErrorKind::Protocol, fault))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(inner: &str) -> Result<Page, Failure> {
        parse_page(format!("<ListBucketResult>{inner}</ListBucketResult>").as_bytes())
    }

    const OBJECT: &str = "<Contents><Key>a%20b+c%2B%0A</Key><LastModified>2024-01-02T03:04:05.678Z\
        </LastModified><ETag>&quot;abc-2&quot;</ETag><Size>7</Size><Owner><ID>x</ID></Owner></Contents>";

    #[test]
    fn a_page_is_read_with_encoded_keys() {
        let text = format!(
            "<IsTruncated>true</IsTruncated>{OBJECT}<CommonPrefixes><Prefix>d%2F</Prefix>\
             </CommonPrefixes><EncodingType>url</EncodingType>\
             <NextContinuationToken>t</NextContinuationToken>"
        );
        let page = page(&text).unwrap();
        let object = &page.objects[0];
        assert_eq!(object.key, b"a b c+\n");
        assert_eq!((object.size, object.etag.as_deref()), (7, Some("abc-2")));
        assert_eq!(
            object.modified.unwrap().to_string(),
            "2024-01-02T03:04:05.000Z"
        );
        assert_eq!(page.directories, [b"d/"]);
        assert_eq!(page.next.as_deref(), Some("t"));
    }

    #[test]
    fn r21_a_page_that_does_not_say_how_it_ends_is_no_page() {
        for text in [
            OBJECT.to_owned(),
            format!("{OBJECT}<IsTruncated>true</IsTruncated>"),
            "<IsTruncated>true</IsTruncated><NextContinuationToken></NextContinuationToken>".to_owned(),
            "<IsTruncated>false</IsTruncated><Contents><Size>1</Size></Contents>".to_owned(),
            "<IsTruncated>false</IsTruncated><Contents><Key>a</Key></Contents>".to_owned(),
            "<IsTruncated>false</IsTruncated><EncodingType>url</EncodingType><Contents><Key>%4</Key>\
             <Size>1</Size></Contents>".to_owned(),
        ] {
            assert_eq!(page(&text).unwrap_err().kind(), ErrorKind::Protocol, "{text}");
        }
        parse_page(b"<Error><Code>InternalError</Code></Error>").unwrap_err();
    }

    #[test]
    fn receipts_are_read_with_and_without_checksums() {
        assert_eq!(Receipt::read("\"abc\"").etag, "\"abc\"");
        let receipt = Receipt::read(
            "<PartMetadata><e_tag>\"abc\"</e_tag><checksum_crc64nvme>x=</checksum_crc64nvme></PartMetadata>",
        );
        assert_eq!(
            (&*receipt.etag, receipt.crc64nvme.as_deref()),
            ("\"abc\"", Some("x="))
        );
    }

    #[test]
    fn addresses_are_encoded_strictly() {
        assert_eq!(
            url("http://h/b", &[("prefix", "a/b c+é")]),
            "http://h/b?prefix=a%2Fb%20c%2B%C3%A9"
        );
        let mut path = String::new();
        encode("a/b c%2F+'(*", Slash::Keep, &mut path);
        assert_eq!(path, "a/b%20c%252F%2B%27%28%2A");
    }
}
