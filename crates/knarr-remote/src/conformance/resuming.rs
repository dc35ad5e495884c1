//! K9: what was brought over once is not sent again.

use std::sync::Arc;

use bytes::Bytes;
use knarr_core::ContentHash;

use super::Fixture;
use super::support::{
    ODD_CHUNK, RecordingSink, assert_content, chain, commit_one, file_options, listed_files,
    pattern, relative, stat,
};
use crate::remote::{Remote, Replace};
use crate::upload::{CheckpointSink, ResumeState, Upload};

const LENGTH: usize = 24 << 20;
/// Where the first attempt ends: beyond two parts of 8 MiB, in the middle of a third.
const CUT: usize = 20_000_003;

async fn begin(
    remote: &dyn Remote,
    sink: &Arc<RecordingSink>,
    resume: Option<ResumeState>,
) -> Box<dyn Upload> {
    let path = relative("in/big");
    let mut options = file_options(&path, LENGTH, Replace::Nothing);
    let sink = Arc::clone(sink);
    let sink: Arc<dyn CheckpointSink> = sink;
    options.checkpoints = Some(sink);
    options.resume = resume;
    match remote.write(&path, options).await {
        Ok(upload) => upload,
        Err(error) => panic!("an upload could not be begun: {}", chain(&error)),
    }
}

async fn feed(upload: &mut dyn Upload, mut rest: Bytes) {
    while !rest.is_empty() {
        let chunk = rest.split_to(ODD_CHUNK.min(rest.len()));
        if let Err(error) = upload.write(chunk).await {
            panic!("a chunk was not taken: {}", chain(&error));
        }
    }
}

/// Feeds everything into a second attempt, commits, and checks the result and what was sent.
async fn finish(remote: &dyn Remote, upload: Box<dyn Upload>, content: &Bytes) {
    finish_with(remote, upload, content, content.clone()).await;
}

/// The same with only `rest` fed in.
async fn finish_with(
    remote: &dyn Remote,
    mut upload: Box<dyn Upload>,
    content: &Bytes,
    rest: Bytes,
) {
    let resumed = upload.resumed_at();
    assert!(
        resumed <= CUT as u64,
        "{resumed} bytes count as arrived of the {CUT} handed in"
    );
    feed(&mut *upload, rest).await;
    assert!(
        upload.sent() <= LENGTH as u64 - resumed,
        "{} bytes went over the wire, though {resumed} of {LENGTH} were there",
        upload.sent()
    );
    let staged = match upload.stage(LENGTH as u64, ContentHash::of(content)).await {
        Ok(staged) => staged,
        Err(error) => panic!("the second attempt could not be staged: {}", chain(&error)),
    };
    assert_eq!(
        stat(remote, "in/big").await,
        None,
        "a staged file is visible"
    );
    if let Err(error) = commit_one(staged).await {
        panic!(
            "the second attempt could not be committed: {}",
            chain(&error)
        );
    }
    assert_content(remote, "in/big", content).await;
    assert_eq!(
        listed_files(remote).await,
        ["in/big"],
        "what is left after a resume"
    );
}

pub(super) async fn k9_a_suspended_upload_goes_on_where_it_was(fixture: Fixture) {
    let remote = &*fixture.subject;
    let content = pattern(1, LENGTH);
    let sink = RecordingSink::new();
    let mut first = begin(remote, &sink, None).await;
    assert_eq!(first.resumed_at(), 0, "a first attempt finds nothing");
    feed(&mut *first, content.slice(..CUT)).await;
    first.suspend().await;
    assert!(
        listed_files(remote).await.is_empty(),
        "a suspended upload is listed"
    );

    let state = sink
        .state()
        .expect("a suspended upload saved what a later attempt needs");
    let second = begin(remote, &sink, Some(state)).await;
    assert!(
        second.resumed_at() > 0,
        "of {CUT} bytes nothing was found again"
    );
    finish(remote, second, &content).await;
}

pub(super) async fn k9_what_is_there_need_not_be_read_again_where_the_place_hashes_it(
    fixture: Fixture,
) {
    let remote = &*fixture.subject;
    let content = pattern(4, LENGTH);
    let sink = RecordingSink::new();
    let mut first = begin(remote, &sink, None).await;
    feed(&mut *first, content.slice(..CUT)).await;
    first.suspend().await;

    let mut second = begin(remote, &sink, sink.state()).await;
    let resumed = usize::try_from(second.resumed_at()).expect("it is less than was handed in");
    let rest = match second.resumed_hash().await {
        Ok(Some(hasher)) => {
            assert!(
                hasher.finalize() == blake3::hash(&content[..resumed]),
                "the hash of the {resumed} bytes that arrived is not theirs"
            );
            content.slice(resumed..)
        }
        Ok(None) => content.clone(),
        Err(error) => panic!("what arrived cannot be hashed: {}", chain(&error)),
    };
    finish_with(remote, second, &content, rest).await;
}

pub(super) async fn k9_a_dropped_upload_ends_whole(fixture: Fixture) {
    let remote = &*fixture.subject;
    let content = pattern(2, LENGTH);
    let sink = RecordingSink::new();
    let mut first = begin(remote, &sink, None).await;
    feed(&mut *first, content.slice(..CUT)).await;
    drop(first);
    assert!(
        listed_files(remote).await.is_empty(),
        "a dropped upload is listed"
    );

    // Whatever was saved: never more than had arrived, so the result is whole.
    let second = begin(remote, &sink, sink.state()).await;
    finish(remote, second, &content).await;
}

pub(super) async fn a_resume_state_of_something_gone_starts_over(fixture: Fixture) {
    let remote = &*fixture.subject;
    let content = pattern(3, LENGTH);
    let sink = RecordingSink::new();
    let mut first = begin(remote, &sink, None).await;
    feed(&mut *first, content.slice(..CUT)).await;
    first.suspend().await;
    let state = sink
        .state()
        .expect("a suspended upload saved what a later attempt needs");

    // Another attempt gives up and cleans up; the state is a lie from here on.
    begin(remote, &sink, Some(state.clone()))
        .await
        .abort()
        .await;
    let second = begin(remote, &RecordingSink::new(), Some(state)).await;
    finish(remote, second, &content).await;
}

pub(super) async fn what_an_earlier_attempt_left_can_be_given_up_by_what_it_saved(
    fixture: Fixture,
) {
    let remote = &*fixture.subject;
    let content = pattern(5, LENGTH);
    let sink = RecordingSink::new();
    let mut first = begin(remote, &sink, None).await;
    feed(&mut *first, content.slice(..CUT)).await;
    first.suspend().await;
    let saved = sink
        .state()
        .expect("a suspended upload saved what a later attempt needs");

    // Twice: what is gone is given up.
    for _ in 0..2 {
        if let Err(error) = remote.abandon(&relative("in/big"), &saved.state).await {
            panic!("what is staged could not be given up: {}", chain(&error));
        }
    }
    let second = begin(remote, &RecordingSink::new(), Some(saved)).await;
    assert_eq!(second.resumed_at(), 0, "what was given up is still there");
    finish(remote, second, &content).await;
}
