//! The object store remote when answers fail, lie or do not come.

use bytes::Bytes;
use knarr_core::entry::Kind;
use knarr_core::tree::TreeItem;
use knarr_remote::conformance::{RecordingSink, pattern, put, read_all, relative, try_put};
use knarr_remote::object::{ObjectOptions, ObjectRemote};
use knarr_remote::{ErrorKind, ListOptions, ReadOptions, Remote as _, Removal, Replace, Retry};
use knarr_testkit::http_fault::{Answer, HttpAction, HttpFaultProxy, Rule};
use knarr_testkit::s3::{Moto, S3Server, S3sFs};

use crate::object_support::{begin, feed, finish, open, options, settled, write_options};

const LENGTH: usize = 30 << 20;

async fn through(server: &(impl S3Server + Sync), proxy: &HttpFaultProxy) -> ObjectRemote {
    open(options_through(server, proxy)).await
}

fn options_through(server: &(impl S3Server + Sync), proxy: &HttpFaultProxy) -> ObjectOptions {
    options(server, proxy.endpoint_url(), "in")
}

async fn assert_content(remote: &ObjectRemote, path: &str, content: &Bytes) {
    let read = read_all(remote, &relative(path), ReadOptions::default())
        .await
        .unwrap();
    assert!(
        read == content[..],
        "\"{path}\" holds {} other bytes",
        read.len()
    );
}

/// The numbers of the parts that were sent whole and taken.
async fn parts_taken(proxy: &HttpFaultProxy) -> Vec<String> {
    let mut numbers = Vec::new();
    for request in settled(proxy).await {
        if let Some((_, rest)) = request.target.split_once("partNumber=")
            && request.status == Some(200)
        {
            numbers.push(rest.split('&').next().unwrap().to_owned());
        }
    }
    numbers
}

async fn resumes_without_sending_a_finished_part_twice(
    server: &mut (impl S3Server + Send + Sync),
    restart: bool,
) {
    let proxy = HttpFaultProxy::start(server.address());
    let content = pattern(1, LENGTH);
    let sink = RecordingSink::new();
    {
        let remote = through(server, &proxy).await;
        let mut upload = begin(&remote, "big", LENGTH, &sink, None).await.unwrap();
        proxy.rule(
            Rule::on("PUT", HttpAction::DropRequest)
                .containing("partNumber=3")
                .always(),
        );
        // The third part never gets through; what was sent besides it is dropped with everything.
        let fed = feed(&mut *upload, &content).await;
        let staged = match fed {
            Ok(()) => finish(upload, &content).await.map(|_| ()),
            Err(error) => Err(error),
        };
        let error = staged.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unreachable, "{error}");
    }
    if restart {
        server.kill();
        server.restart();
    }
    proxy.clear_rules();
    let state = sink.state().expect("an upload in parts is saved");
    let before = state.parts.len();
    assert!(before >= 1, "parts were sent before");
    settled(&proxy).await;
    proxy.clear_requests();

    let remote = through(server, &proxy).await;
    let mut upload = begin(&remote, "big", LENGTH, &sink, Some(state.clone()))
        .await
        .unwrap();
    assert!(upload.resumed_at() >= 8 << 20, "{}", upload.resumed_at());
    feed(&mut *upload, &content).await.unwrap();
    finish(upload, &content).await.unwrap();
    let sent_again = parts_taken(&proxy).await;
    assert_eq!(
        sent_again.len(),
        4 - before,
        "{sent_again:?} after {:?}",
        state.parts
    );
    for part in state.parts {
        assert!(
            !sent_again.contains(&(part.number + 1).to_string()),
            "{sent_again:?}"
        );
    }
    assert_content(&remote, "big", &content).await;
}

#[tokio::test]
async fn k9_no_finished_part_is_sent_twice_after_everything_was_dropped() {
    resumes_without_sending_a_finished_part_twice(&mut Moto::start(), false).await;
}

#[tokio::test]
async fn k9_no_finished_part_is_sent_twice_after_the_server_was_killed_too() {
    resumes_without_sending_a_finished_part_twice(&mut S3sFs::start(), true).await;
}

#[tokio::test]
async fn k9_r40_a_completed_upload_whose_answer_was_lost_is_found_by_the_next_attempt() {
    let server = Moto::start();
    let proxy = HttpFaultProxy::start(server.address());
    let content = pattern(1, LENGTH);
    let sink = RecordingSink::new();
    let remote = through(&server, &proxy).await;
    let mut upload = begin(&remote, "big", LENGTH, &sink, None).await.unwrap();
    feed(&mut *upload, &content).await.unwrap();
    proxy.rule(Rule::on("POST", HttpAction::DropResponse).containing("uploadId"));
    proxy.rule(Rule::on("HEAD", HttpAction::DropRequest).always());
    finish(upload, &content).await.unwrap_err();
    proxy.clear_rules();
    settled(&proxy).await;
    proxy.clear_requests();

    let state = sink.state().expect("the upload is still noted");
    let mut upload = begin(&remote, "big", LENGTH, &sink, Some(state))
        .await
        .unwrap();
    assert_eq!(upload.resumed_at(), LENGTH as u64);
    feed(&mut *upload, &content).await.unwrap();
    finish(upload, &content).await.unwrap();
    let requests = settled(&proxy).await;
    assert!(
        requests.iter().all(|request| request.method != "PUT"),
        "sent again: {requests:?}"
    );
    assert_content(&remote, "big", &content).await;
}

async fn put_large_with(rule: Rule) -> (HttpFaultProxy, Moto) {
    let server = Moto::start();
    let proxy = HttpFaultProxy::start(server.address());
    let remote = through(&server, &proxy).await;
    proxy.rule(rule);
    let content = pattern(3, LENGTH);
    let committed = put(&remote, "big", content.clone()).await;
    assert_eq!(committed.entry.size, LENGTH as u64);
    assert_content(&remote, "big", &content).await;
    settled(&proxy).await;
    (proxy, server)
}

#[tokio::test]
async fn r40_a_completion_with_an_error_in_its_body_is_no_success() {
    let rule = Rule::on("POST", HttpAction::Answer(Answer::ok_with_error()));
    let (proxy, _server) = put_large_with(rule.containing("uploadId=")).await;
    assert_eq!(
        proxy.requests_like("POST", "uploadId=").len(),
        2,
        "it was tried again"
    );
}

#[tokio::test]
async fn r40_a_completion_that_was_done_under_an_error_is_found() {
    let rule = Rule::on(
        "POST",
        HttpAction::AnswerAfterwards(Answer::ok_with_error()),
    );
    let (proxy, _server) = put_large_with(rule.containing("uploadId=")).await;
    assert_eq!(
        proxy.requests_like("POST", "uploadId=").len(),
        1,
        "it was not tried again"
    );
}

#[tokio::test]
async fn r40_a_completion_whose_answer_was_lost_is_found() {
    let rule = Rule::on("POST", HttpAction::DropResponse).containing("uploadId=");
    put_large_with(rule).await;
}

#[tokio::test]
async fn r40_no_such_upload_after_the_completion_was_done_is_a_success() {
    let rule = Rule::on(
        "POST",
        HttpAction::AnswerAfterwards(Answer::no_such_upload()),
    );
    put_large_with(rule.containing("uploadId=")).await;
}

#[tokio::test]
async fn r40_an_upload_that_is_gone_starts_over() {
    let server = Moto::start();
    let proxy = HttpFaultProxy::start(server.address());
    let remote = through(&server, &proxy).await;
    let content = pattern(4, LENGTH);
    let sink = RecordingSink::new();
    let mut upload = begin(&remote, "big", LENGTH, &sink, None).await.unwrap();
    proxy.rule(
        Rule::on("PUT", HttpAction::Answer(Answer::no_such_upload()))
            .containing("partNumber=")
            .always(),
    );
    let outcome = match feed(&mut *upload, &content).await {
        Ok(()) => finish(upload, &content).await.map(|_| ()),
        Err(error) => Err(error),
    };
    let error = outcome.unwrap_err();
    assert_ne!(error.retry, Retry::Never, "{error}");
    assert_eq!(sink.state(), None, "the next attempt begins anew");
    proxy.clear_rules();
    let mut upload = begin(&remote, "big", LENGTH, &sink, None).await.unwrap();
    feed(&mut *upload, &content).await.unwrap();
    finish(upload, &content).await.unwrap();
    assert_content(&remote, "big", &content).await;
}

#[tokio::test]
async fn r40_answers_that_ask_to_wait_are_repeated_and_then_reported() {
    let server = Moto::start();
    let proxy = HttpFaultProxy::start(server.address());
    let remote = through(&server, &proxy).await;
    for answer in [
        Answer::slow_down(),
        Answer::internal_error(),
        Answer::too_many_requests(1),
    ] {
        proxy.rule(Rule::any(HttpAction::Answer(answer)).times(2));
        put(&remote, "data", pattern(1, 1_000)).await;
        proxy.clear_rules();
    }
    for (answer, kind) in [
        (Answer::slow_down(), ErrorKind::Throttled),
        (Answer::too_many_requests(1), ErrorKind::Throttled),
        (Answer::internal_error(), ErrorKind::Other),
    ] {
        proxy.rule(Rule::on("PUT", HttpAction::Answer(answer)).always());
        proxy.clear_requests();
        let path = relative("data");
        let options = write_options(&path, Some(10), Replace::Anything);
        let error = try_put(&remote, &path, options, &pattern(2, 10))
            .await
            .unwrap_err();
        assert_eq!((error.kind, error.retry), (kind, Retry::Later), "{error}");
        assert!(
            settled(&proxy).await.len() <= 12,
            "the repetitions are bounded"
        );
        proxy.clear_rules();
    }
    assert_content(&remote, "data", &pattern(1, 1_000)).await;
}

#[tokio::test]
async fn r40_a_new_file_whose_answer_was_lost_is_not_taken_for_somebody_elses() {
    let server = Moto::start();
    let proxy = HttpFaultProxy::start(server.address());
    let remote = through(&server, &proxy).await;
    for name in ["first", "second"] {
        proxy.rule(Rule::on("PUT", HttpAction::DropResponse).containing(name));
        let path = relative(name);
        let options = write_options(&path, Some(1_000), Replace::Nothing);
        let committed = try_put(&remote, &path, options, &pattern(1, 1_000))
            .await
            .unwrap();
        assert_eq!(committed.entry.size, 1_000);
        proxy.clear_rules();
    }
}

#[tokio::test]
async fn r40_a_connection_cut_in_a_part_is_repaired() {
    let server = Moto::start();
    let proxy = HttpFaultProxy::start(server.address());
    let remote = through(&server, &proxy).await;
    proxy.rule(
        Rule::on(
            "PUT",
            HttpAction::CutRequest {
                after_body_bytes: 3_000_000,
            },
        )
        .containing("partNumber=2")
        .times(2),
    );
    let content = pattern(5, LENGTH);
    put(&remote, "big", content.clone()).await;
    assert_content(&remote, "big", &content).await;
}

#[tokio::test]
async fn a_store_that_refuses_conditions_is_looked_at_instead() {
    let server = Moto::start();
    let proxy = HttpFaultProxy::start(server.address());
    let remote = through(&server, &proxy).await;
    proxy.rule(Rule::on(
        "PUT",
        HttpAction::Answer(Answer::s3_error(501, "NotImplemented")),
    ));
    let path = relative("data");
    let nothing = || write_options(&path, Some(100), Replace::Nothing);
    try_put(&remote, &path, nothing(), &pattern(1, 100))
        .await
        .unwrap();
    let error = try_put(&remote, &path, nothing(), &pattern(2, 100))
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::AlreadyExists);
    assert_content(&remote, "data", &pattern(1, 100)).await;
}

fn page(inner: &str) -> Answer {
    Answer {
        status: 200,
        headers: vec![("Content-Type".to_owned(), "application/xml".to_owned())],
        body: format!("<?xml version=\"1.0\"?><ListBucketResult>{inner}</ListBucketResult>"),
    }
}

fn listed(key: &str) -> String {
    format!("<Contents><Key>{key}</Key><Size>1</Size></Contents>")
}

async fn list(remote: &ObjectRemote) -> Vec<String> {
    let items = remote
        .list(ListOptions::default())
        .await
        .unwrap()
        .collect()
        .await;
    let show = |item: TreeItem| match item {
        TreeItem::Entry(entry) => entry.path.to_string(),
        TreeItem::Incomplete(incomplete) => {
            assert_eq!(incomplete.below, None);
            format!("incomplete: {}", incomplete.reason)
        }
        other => panic!("{other:?}"),
    };
    items.into_iter().map(show).collect()
}

#[tokio::test]
async fn r21_a_page_without_its_continuation_makes_the_listing_incomplete() {
    let server = Moto::start();
    let proxy = HttpFaultProxy::start(server.address());
    let remote = through(&server, &proxy).await;
    let answer = page(&format!(
        "<IsTruncated>true</IsTruncated>{}",
        listed("in/a")
    ));
    proxy.rule(
        Rule::on("GET", HttpAction::Answer(answer))
            .containing("list-type=2")
            .always(),
    );
    let items = list(&remote).await;
    assert!(
        items.last().unwrap().starts_with("incomplete: "),
        "{items:?}"
    );
}

#[tokio::test]
async fn r21_a_second_page_that_fails_makes_the_listing_incomplete() {
    let server = Moto::start();
    let proxy = HttpFaultProxy::start(server.address());
    let remote = through(&server, &proxy).await;
    for answer in [
        Answer::s3_error(403, "AccessDenied"),
        Answer::internal_error(),
        page(&format!(
            "<IsTruncated>false</IsTruncated>{}",
            listed("in/0")
        )),
        page("<IsTruncated>false</IsTruncated><Contents>"),
        Answer {
            status: 200,
            headers: Vec::new(),
            body: "<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>".to_owned(),
        },
    ] {
        let first = page(&format!(
            "<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>{}",
            listed("in/a")
        ));
        proxy.rule(
            Rule::on("GET", HttpAction::Answer(answer.clone()))
                .containing("continuation-token")
                .always(),
        );
        proxy.rule(Rule::on("GET", HttpAction::Answer(first)).containing("list-type=2"));
        let items = list(&remote).await;
        assert_eq!(items.first().map(String::as_str), Some("a"), "{answer:?}");
        assert!(
            items.last().unwrap().starts_with("incomplete: "),
            "{items:?} after {answer:?}"
        );
        assert_eq!(items.len(), 2);
        proxy.clear_rules();
    }
}

#[tokio::test]
async fn r21_a_first_page_that_is_refused_is_an_error() {
    let server = Moto::start();
    let proxy = HttpFaultProxy::start(server.address());
    let remote = through(&server, &proxy).await;
    proxy.rule(
        Rule::on(
            "GET",
            HttpAction::Answer(Answer::s3_error(403, "AccessDenied")),
        )
        .always(),
    );
    let error = remote.list(ListOptions::default()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::PermissionDenied);
}

#[tokio::test]
async fn r46_two_versions_are_never_spliced() {
    // Twice as long as what is asked for ahead, so the later ranges are asked for after the object was
    // replaced by one of the same length.
    const LONG: usize = 64 << 20;
    let server = S3sFs::start();
    let remote = open(options(&server, server.endpoint_url(), "in")).await;
    let old = pattern(1, LONG);
    put(&remote, "data", old.clone()).await;
    let mut reader = remote
        .read(&relative("data"), ReadOptions::default())
        .await
        .unwrap();
    let first = reader.next().await.unwrap().unwrap();
    assert!(first[..] == old[..first.len()]);
    let other = open(options(&server, server.endpoint_url(), "in")).await;
    put(&other, "data", pattern(2, LONG)).await;
    let mut position = first.len();
    let error = loop {
        match reader.next().await {
            Ok(Some(chunk)) => {
                assert!(
                    chunk[..] == old[position..position + chunk.len()],
                    "spliced at {position}"
                );
                position += chunk.len();
            }
            Ok(None) => panic!("a mixture was read to its end"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind, ErrorKind::Changed, "{error}");
}

#[tokio::test]
async fn an_answer_cut_in_the_middle_is_read_on_where_it_was() {
    let server = Moto::start();
    let proxy = HttpFaultProxy::start(server.address());
    let remote = through(&server, &proxy).await;
    let content = pattern(1, LENGTH);
    put(&remote, "data", content.clone()).await;
    proxy.rule(
        Rule::on(
            "GET",
            HttpAction::CutResponse {
                after_body_bytes: 1_000_000,
            },
        )
        .containing("data")
        .times(3),
    );
    assert_content(&remote, "data", &content).await;
}

#[tokio::test]
async fn a_store_that_has_another_checksum_than_was_sent_has_not_got_the_file() {
    let server = Moto::start();
    let proxy = HttpFaultProxy::start(server.address());
    let remote = through(&server, &proxy).await;
    for length in [1_000, LENGTH] {
        let answer = Answer {
            status: 200,
            headers: vec![
                ("ETag".to_owned(), "\"0\"".to_owned()),
                (
                    "x-amz-checksum-crc64nvme".to_owned(),
                    "AAAAAAAAAAA=".to_owned(),
                ),
            ],
            body: String::new(),
        };
        proxy.rule(Rule::on("PUT", HttpAction::AnswerAfterwards(answer)).always());
        let path = relative("data");
        let options = write_options(&path, Some(length as u64), Replace::Anything);
        let error = try_put(&remote, &path, options, &pattern(1, length))
            .await
            .unwrap_err();
        assert_eq!(
            (error.kind, error.retry),
            (ErrorKind::Protocol, Retry::Later),
            "{error}"
        );
        assert!(error.to_string().contains("checksum"), "{error}");
        proxy.clear_rules();
    }
}

#[tokio::test]
async fn h60_a_report_on_keys_that_were_not_removed_is_an_error_and_no_panic() {
    let server = Moto::start();
    let proxy = HttpFaultProxy::start(server.address());
    let remote = through(&server, &proxy).await;
    let removal = |path: &str| Removal {
        path: relative(path),
        kind: Kind::File,
        seen: None,
    };
    let removals = [removal("a"), removal("b")];
    for body in [
        "<DeleteResult><Error><Key>in/other</Key><Code>X</Code><Message>m</Message></Error></DeleteResult>",
        "<DeleteResult>",
        "no answer",
    ] {
        let answer = Answer {
            status: 200,
            headers: Vec::new(),
            body: body.to_owned(),
        };
        proxy.rule(
            Rule::on("POST", HttpAction::Answer(answer))
                .containing("delete")
                .always(),
        );
        for result in remote.remove(&removals).await {
            result.unwrap_err();
        }
        proxy.clear_rules();
    }
    let body = "<DeleteResult><Deleted><Key>in/a</Key></Deleted><Error><Key>in/b</Key>\
                <Code>AccessDenied</Code><Message>m</Message></Error></DeleteResult>";
    let answer = Answer {
        status: 200,
        headers: Vec::new(),
        body: body.to_owned(),
    };
    proxy.rule(Rule::on("POST", HttpAction::Answer(answer)).containing("delete"));
    let results = remote.remove(&removals).await;
    results[0].as_ref().unwrap();
    assert_eq!(
        results[1].as_ref().unwrap_err().kind,
        ErrorKind::PermissionDenied
    );
}
