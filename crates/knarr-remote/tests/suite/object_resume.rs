//! The object store remote after a process died in the middle of an upload in parts.

use std::sync::Arc;

use bytes::Bytes;
use knarr_core::ContentHash;
use knarr_core::job::Verify;
use knarr_remote::conformance::{RecordingSink, pattern, read_all, relative};
use knarr_remote::object::ObjectRemote;
use knarr_remote::{
    CheckpointSink, Committed, ErrorKind, ReadOptions, Remote as _, RemoteError, Replace,
    ResumeState, Retry,
};
use knarr_testkit::http_fault::{Answer, HttpAction, HttpFaultProxy, Rule};
use knarr_testkit::s3::{Moto, S3Server, S3sFs};

use crate::object_support::{begin, feed, finish, open, options, settled, write_options};

/// Four parts of 8 MiB, the last one shorter.
const LENGTH: usize = 30 << 20;
const PART: usize = 8 << 20;

/// A server, the way to it, and the place of one large file.
struct World<S> {
    _server: S,
    proxy: HttpFaultProxy,
    remote: ObjectRemote,
    sink: Arc<RecordingSink>,
}

impl<S: S3Server + Sync> World<S> {
    async fn new(server: S) -> Self {
        let proxy = HttpFaultProxy::start(server.address());
        let remote = open(options(&server, proxy.endpoint_url(), "in")).await;
        Self {
            _server: server,
            proxy,
            remote,
            sink: RecordingSink::new(),
        }
    }

    /// An attempt that ends after `length` bytes, at the end of a part.
    async fn cut_after(&self, content: &Bytes, length: usize) -> ResumeState {
        let mut upload = begin(&self.remote, "big", LENGTH, &self.sink, None)
            .await
            .unwrap();
        feed(&mut *upload, &content.slice(..length)).await.unwrap();
        upload.suspend().await;
        let state = self.sink.state().unwrap();
        assert_eq!(state.parts.len(), length / PART);
        settled(&self.proxy).await;
        self.proxy.clear_requests();
        state
    }

    /// An attempt that goes on from `state`, or begins; the bytes that it sent.
    async fn attempt(
        &self,
        content: &Bytes,
        state: Option<ResumeState>,
    ) -> Result<u64, RemoteError> {
        let mut upload = begin(&self.remote, "big", LENGTH, &self.sink, state).await?;
        if let Err(error) = feed(&mut *upload, content).await {
            upload.suspend().await;
            return Err(error);
        }
        let sent = upload.sent();
        finish(upload, content).await?;
        Ok(sent)
    }

    /// An attempt whose content is read back, and is not what it should be.
    async fn verified(
        &self,
        content: &Bytes,
        state: Option<ResumeState>,
    ) -> Result<Committed, RemoteError> {
        let path = relative("big");
        let mut options = write_options(&path, Some(LENGTH as u64), Replace::Anything);
        let sink: Arc<dyn CheckpointSink> = Arc::<RecordingSink>::clone(&self.sink);
        options.checkpoints = Some(sink);
        options.resume = state;
        options.verify = Verify::Full;
        let mut upload = self.remote.write(&path, options).await?;
        feed(&mut *upload, content).await?;
        let hash = ContentHash::of(b"what it should be");
        let staged = upload.stage(LENGTH as u64, hash).await?;
        let committer = Arc::clone(&staged.committer);
        committer.commit(vec![staged]).await.pop().unwrap()
    }

    /// The numbers of the parts that were sent, in order.
    async fn parts_sent(&self) -> Vec<String> {
        let mut numbers: Vec<String> = settled(&self.proxy)
            .await
            .into_iter()
            .filter(|request| request.method == "PUT")
            .filter_map(|request| {
                let (_, rest) = request.target.split_once("partNumber=")?;
                rest.split('&').next().map(str::to_owned)
            })
            .collect();
        numbers.sort_unstable();
        numbers
    }

    fn answer(&self, method: &str, containing: &str, action: HttpAction) {
        let rule = match method {
            "" => Rule::any(action),
            method => Rule::on(method, action),
        };
        let rule = rule.containing(containing);
        self.proxy.rule(rule.always());
    }

    async fn assert_content(&self, content: &Bytes) {
        let path = relative("big");
        let read = read_all(&self.remote, &path, ReadOptions::default()).await;
        assert!(read.unwrap() == content[..], "other bytes are there");
    }
}

fn denied() -> Answer {
    Answer::s3_error(403, "AccessDenied")
}

#[tokio::test]
async fn k9_parts_that_were_answered_but_not_yet_on_record_are_not_sent_again() {
    let world = World::new(Moto::start()).await;
    let content = pattern(1, LENGTH);
    let mut state = world.cut_after(&content, 3 * PART).await;
    // As if the process had died before it could save the last two receipts.
    state.parts.truncate(1);
    world.attempt(&content, Some(state)).await.unwrap();
    assert_eq!(world.parts_sent().await, ["4"]);
    world.assert_content(&content).await;
}

#[tokio::test]
async fn k3_a_part_with_other_bytes_than_ours_is_not_taken_for_ours() {
    let world = World::new(Moto::start()).await;
    let mut state = world.cut_after(&pattern(1, LENGTH), 3 * PART).await;
    state.parts.clear();
    let content = pattern(2, LENGTH);
    world.attempt(&content, Some(state)).await.unwrap();
    assert_eq!(world.parts_sent().await, ["1", "2", "3", "4"]);
    world.assert_content(&content).await;
}

#[tokio::test]
async fn k9_a_store_that_lists_parts_without_saying_what_is_in_them_gets_them_by_the_record() {
    let world = World::new(S3sFs::start()).await;
    let content = pattern(1, LENGTH);
    let mut state = world.cut_after(&content, 3 * PART).await;
    state.parts.truncate(2);
    world.attempt(&content, Some(state)).await.unwrap();
    assert_eq!(world.parts_sent().await, ["3", "4"]);
    world.assert_content(&content).await;
}

#[tokio::test]
async fn k9_where_parts_may_not_be_listed_the_record_is_gone_by() {
    let world = World::new(Moto::start()).await;
    let content = pattern(1, LENGTH);
    let state = world.cut_after(&content, 2 * PART).await;
    world.answer("GET", "uploadId=", HttpAction::Answer(denied()));
    world.attempt(&content, Some(state)).await.unwrap();
    assert_eq!(world.parts_sent().await, ["3", "4"]);
    world.proxy.clear_rules();
    world.assert_content(&content).await;
}

async fn finds_what_was_completed_without_anybody_hearing_of_it(
    server: impl S3Server + Sync,
    listing: Option<Answer>,
) {
    let world = World::new(server).await;
    let content = pattern(1, LENGTH);
    world.answer("POST", "uploadId=", HttpAction::DropResponse);
    world.answer("HEAD", "big", HttpAction::DropRequest);
    world.attempt(&content, None).await.unwrap_err();
    world.proxy.clear_rules();
    settled(&world.proxy).await;
    world.proxy.clear_requests();
    let state = world.sink.state().expect("the upload is still noted");
    if let Some(listing) = listing {
        world.answer("GET", "uploadId=", HttpAction::Answer(listing));
    }
    world.attempt(&content, Some(state)).await.unwrap();
    assert_eq!(world.parts_sent().await, Vec::<String>::new());
    world.proxy.clear_rules();
    world.assert_content(&content).await;
}

#[tokio::test]
async fn k9_r40_what_was_completed_is_found_at_a_server_that_denies_access_to_what_is_gone() {
    finds_what_was_completed_without_anybody_hearing_of_it(S3sFs::start(), None).await;
}

#[tokio::test]
async fn k9_r40_what_was_completed_is_found_where_the_list_of_its_parts_is_denied() {
    let listing = Some(denied());
    finds_what_was_completed_without_anybody_hearing_of_it(Moto::start(), listing).await;
}

#[tokio::test]
async fn k9_r40_what_was_completed_is_found_where_its_parts_are_still_listed() {
    let part = "<Part><PartNumber>1</PartNumber><Size>8388608</Size></Part>";
    let listing = Answer {
        status: 200,
        headers: Vec::new(),
        body: format!("<ListPartsResult>{part}</ListPartsResult>"),
    };
    finds_what_was_completed_without_anybody_hearing_of_it(Moto::start(), Some(listing)).await;
}

/// The saved upload is refused under way; then everything begins anew.
async fn starts_over_after(method: &str, answer: Answer) {
    let world = World::new(Moto::start()).await;
    let content = pattern(1, LENGTH);
    let state = world.cut_after(&content, 2 * PART).await;
    let earlier = state.state.clone();
    let begun_earlier = if method == "PUT" {
        "partNumber="
    } else {
        "uploadId="
    };
    world.answer(method, begun_earlier, HttpAction::Answer(answer));
    let error = world.attempt(&content, Some(state)).await.unwrap_err();
    assert_eq!(error.retry, Retry::Later, "{error}");
    assert_eq!(world.sink.state(), None, "what was saved is forgotten");
    let aborted = settled(&world.proxy)
        .await
        .iter()
        .any(|request| request.method == "DELETE");
    assert!(aborted, "the store was not told: {earlier}");
    world.proxy.clear_rules();
    world.proxy.clear_requests();
    world.attempt(&content, None).await.unwrap();
    assert_eq!(world.parts_sent().await, ["1", "2", "3", "4"]);
    world.assert_content(&content).await;
}

#[tokio::test]
async fn r40_a_saved_upload_whose_parts_are_not_found_starts_over() {
    starts_over_after("PUT", Answer::s3_error(404, "NoSuchUpload")).await;
}

#[tokio::test]
async fn r40_a_saved_upload_whose_completion_is_not_found_starts_over() {
    starts_over_after("POST", Answer::s3_error(404, "NoSuchUpload")).await;
}

#[tokio::test]
async fn r40_a_saved_upload_whose_parts_are_not_the_stores_any_more_starts_over() {
    starts_over_after("POST", Answer::s3_error(400, "InvalidPart")).await;
}

/// Access is denied for a while; then it is gone on with.
async fn is_kept_while_denied(method: &str, containing: &str, sent: &[&str], sent_after: &[&str]) {
    let world = World::new(Moto::start()).await;
    let content = pattern(1, LENGTH);
    let state = world.cut_after(&content, 2 * PART).await;
    world.answer(method, containing, HttpAction::Answer(denied()));
    let error = world.attempt(&content, Some(state)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::PermissionDenied, "{error}");
    assert_eq!(world.parts_sent().await, sent);
    let state = world.sink.state().expect("the upload is still noted");
    let requests = settled(&world.proxy).await;
    assert!(
        requests.iter().all(|request| request.method != "DELETE"),
        "it was aborted: {requests:?}"
    );
    world.proxy.clear_rules();
    world.proxy.clear_requests();
    world.attempt(&content, Some(state)).await.unwrap();
    assert_eq!(world.parts_sent().await, sent_after);
    world.assert_content(&content).await;
}

#[tokio::test]
async fn k9_a_saved_upload_whose_parts_are_denied_for_a_while_is_kept() {
    is_kept_while_denied("PUT", "partNumber=", &["3", "4"], &["3", "4"]).await;
}

#[tokio::test]
async fn k9_a_saved_upload_whose_completion_is_denied_for_a_while_is_kept() {
    is_kept_while_denied("POST", "uploadId=", &["3", "4"], &[]).await;
}

#[tokio::test]
async fn k9_a_saved_upload_is_kept_while_everything_about_it_is_denied() {
    is_kept_while_denied("", "uploadId=", &["3", "4"], &["3", "4"]).await;
}

/// Somebody removes the saved upload at a store that says "access denied" of what is gone, after
/// `length` bytes were handed in; then everything begins anew.
async fn starts_over_where_gone_is_denied(length: usize) {
    let world = World::new(S3sFs::start()).await;
    let content = pattern(1, LENGTH);
    let state = world.cut_after(&content, 2 * PART).await;
    let mut upload = begin(
        &world.remote,
        "big",
        LENGTH,
        &world.sink,
        Some(state.clone()),
    )
    .await
    .unwrap();
    feed(&mut *upload, &content.slice(..length)).await.unwrap();
    if length == LENGTH {
        // All parts are there before it goes.
        while world.sink.state().unwrap().parts.len() < 4 {
            tokio::task::yield_now().await;
        }
    }
    let path = relative("big");
    world.remote.abandon(&path, &state.state).await.unwrap();
    // The server says so before it has read the part, and the connection may break over that.
    world.answer("PUT", "partNumber=", HttpAction::Answer(denied()));
    let fed = feed(&mut *upload, &content.slice(length..)).await;
    let error = match fed {
        Ok(()) => finish(upload, &content).await.unwrap_err(),
        Err(error) => error,
    };
    assert_eq!(error.retry, Retry::Later, "{error}");
    assert_eq!(world.sink.state(), None, "what was saved is forgotten");
    world.proxy.clear_rules();
    settled(&world.proxy).await;
    world.proxy.clear_requests();
    world.attempt(&content, None).await.unwrap();
    assert_eq!(world.parts_sent().await, ["1", "2", "3", "4"]);
    world.assert_content(&content).await;
}

#[tokio::test]
async fn r40_a_saved_upload_that_is_gone_where_that_is_denied_starts_over() {
    starts_over_where_gone_is_denied(2 * PART).await;
    starts_over_where_gone_is_denied(LENGTH).await;
}

#[tokio::test]
async fn r22_what_is_read_back_damaged_is_sent_anew_by_the_next_attempt() {
    let world = World::new(Moto::start()).await;
    let content = pattern(1, LENGTH);
    // As if the store had damaged it: what it holds is not what it was to hold.
    let error = world.verified(&content, None).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Protocol, "{error}");
    assert_eq!(world.sink.state(), None, "its parts are of no use");
}

#[tokio::test]
async fn r22_what_an_earlier_attempt_completed_and_is_read_back_damaged_is_sent_anew() {
    let world = World::new(Moto::start()).await;
    let content = pattern(1, LENGTH);
    world.answer("POST", "uploadId=", HttpAction::DropResponse);
    world.answer("HEAD", "big", HttpAction::DropRequest);
    world.attempt(&content, None).await.unwrap_err();
    world.proxy.clear_rules();
    let state = world.sink.state().expect("the upload is still noted");
    settled(&world.proxy).await;
    world.proxy.clear_requests();
    let error = world.verified(&content, Some(state)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Protocol, "{error}");
    assert_eq!(world.parts_sent().await, Vec::<String>::new());
    assert_eq!(world.sink.state(), None, "its parts are of no use");
}

#[tokio::test]
async fn r40_a_denied_completion_that_was_done_is_a_success() {
    let world = World::new(Moto::start()).await;
    let content = pattern(1, LENGTH);
    let state = world.cut_after(&content, 2 * PART).await;
    world.answer("POST", "uploadId=", HttpAction::AnswerAfterwards(denied()));
    world.attempt(&content, Some(state)).await.unwrap();
    world.proxy.clear_rules();
    world.assert_content(&content).await;
}

#[tokio::test]
async fn who_may_not_upload_is_told_so_at_once() {
    let world = World::new(Moto::start()).await;
    let content = pattern(1, LENGTH);
    world.answer("PUT", "partNumber=", HttpAction::Answer(denied()));
    let error = world.attempt(&content, None).await.unwrap_err();
    assert_eq!(
        (error.kind, error.retry),
        (ErrorKind::PermissionDenied, Retry::Never),
        "{error}"
    );
}

#[tokio::test]
async fn an_upload_that_nobody_will_finish_is_given_up_by_its_saved_state() {
    let moto = World::new(Moto::start()).await;
    gives_up(&moto).await;
    let s3s = World::new(S3sFs::start()).await;
    gives_up(&s3s).await;
}

async fn gives_up<S: S3Server + Sync>(world: &World<S>) {
    let state = world.cut_after(&pattern(1, LENGTH), PART).await.state;
    let path = relative("big");
    world.remote.abandon(&path, &state).await.unwrap();
    world.remote.abandon(&path, &state).await.unwrap();
    let requests = settled(&world.proxy).await;
    let taken = requests
        .iter()
        .filter(|request| request.method == "DELETE" && request.status == Some(204));
    assert!(taken.count() >= 1, "{requests:?}");
    let error = world.remote.abandon(&path, "nonsense").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidName);
}
