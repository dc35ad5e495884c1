//! What the tests of the object store remote share.

use std::sync::Arc;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use knarr_core::{ContentHash, RelPath};
use knarr_remote::conformance::{RecordingSink, relative};
use knarr_remote::object::{ObjectOptions, ObjectPlace, ObjectRemote, S3Credentials, S3Place};
use knarr_remote::{
    CheckpointSink, Committed, NewNode, Remote as _, RemoteError, Replace, ResumeState, StagedId,
    Upload, WriteOptions,
};
use knarr_testkit::http_fault::{HttpFaultProxy, Request};
use knarr_testkit::s3::S3Server;

/// One crypto provider for the process, as the binary installs it.
pub(crate) fn install_crypto() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        rustls::crypto::aws_lc_rs::default_provider()
            .install_default()
            .expect("nobody else installs one");
    });
}

/// Options for a prefix of `server`'s bucket, through `endpoint`.
pub(crate) fn options(
    server: &(impl S3Server + Sync),
    endpoint: String,
    prefix: &str,
) -> ObjectOptions {
    let mut place = S3Place::new(server.bucket().to_owned());
    place.endpoint = Some(endpoint);
    place.region = Some(server.region().to_owned());
    place.credentials = S3Credentials::Given {
        access_key: server.access_key().to_owned(),
        secret_key: server.secret_key().to_owned().into(),
        session_token: None,
    };
    let mut options = ObjectOptions::new(ObjectPlace::S3(place));
    options.prefix = prefix.to_owned();
    options.patience = Duration::from_secs(10);
    options
}

pub(crate) async fn open(options: ObjectOptions) -> ObjectRemote {
    install_crypto();
    ObjectRemote::open(options).await.unwrap()
}

pub(crate) async fn remote(server: &(impl S3Server + Sync)) -> ObjectRemote {
    open(options(server, server.endpoint_url(), "")).await
}

/// A prefix that nobody else has.
pub(crate) fn fresh_prefix() -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    format!("case {}/root", NUMBER.fetch_add(1, Ordering::Relaxed))
}

pub(crate) fn write_options(path: &RelPath, size: Option<u64>, replace: Replace) -> WriteOptions {
    let mut options = WriteOptions::new(
        NewNode::File { size },
        StagedId::derive(b"object tests", path),
    );
    options.replace = replace;
    options
}

/// Begins an upload of `size` bytes that saves to `sink`.
pub(crate) async fn begin(
    remote: &ObjectRemote,
    path: &str,
    size: usize,
    sink: &Arc<RecordingSink>,
    resume: Option<ResumeState>,
) -> Result<Box<dyn Upload>, RemoteError> {
    let path = relative(path);
    let mut options = write_options(&path, Some(size as u64), Replace::Anything);
    let sink: Arc<dyn CheckpointSink> = Arc::<RecordingSink>::clone(sink);
    options.checkpoints = Some(sink);
    options.resume = resume;
    remote.write(&path, options).await
}

/// Hands in everything in odd pieces.
pub(crate) async fn feed(upload: &mut dyn Upload, content: &Bytes) -> Result<(), RemoteError> {
    let mut rest = content.clone();
    while !rest.is_empty() {
        upload.write(rest.split_to(rest.len().min(777_777))).await?;
    }
    Ok(())
}

/// Stages and commits.
pub(crate) async fn finish(
    upload: Box<dyn Upload>,
    content: &Bytes,
) -> Result<Committed, RemoteError> {
    let staged = upload
        .stage(content.len() as u64, ContentHash::of(content))
        .await?;
    let committer = Arc::clone(&staged.committer);
    committer.commit(vec![staged]).await.pop().unwrap()
}

/// The requests that came by, once no more come: the proxy notes a request after it was answered.
pub(crate) async fn settled(proxy: &HttpFaultProxy) -> Vec<Request> {
    let mut last = proxy.requests();
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(60)).await;
        let now = proxy.requests();
        if now.len() == last.len() {
            return now;
        }
        last = now;
    }
    panic!("requests keep coming: {}", last.len());
}

/// The error with all its causes, and its Debug output.
pub(crate) fn everything_about(error: &RemoteError) -> String {
    let mut text = format!("{error} {error:?}");
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text} {cause} {cause:?}");
        source = cause.source();
    }
    text
}
