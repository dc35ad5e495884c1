//! Webhooks, and what the worker makes of a target that is down, slow or strict.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use aws_lc_rs::hmac;
use knarr_engine::outbox::{Message, Receipt, Target, TargetError, WebhookOptions, WebhookTarget};
use knarr_store::outbox::OutboxFilter;
use knarr_store::secrets::SecretValue;
use knarr_testkit::http_fault::{Answer, HttpAction, HttpFaultProxy, Rule};
use knarr_testkit::receiver::{HttpReceiver, Received, TlsFront};

use super::support::{Office, START, message, until};

fn secret(text: &str) -> SecretValue {
    SecretValue::new(text.as_bytes().to_vec())
}

fn options(url: &str) -> WebhookOptions {
    WebhookOptions {
        url: secret(url),
        secret: Some(secret("sentinel-signing-secret")),
        token: None,
        certificates: None,
        limit: Duration::from_secs(30),
    }
}

fn webhook(office: &Office, url: &str) -> Arc<dyn Target> {
    Arc::new(WebhookTarget::new(options(url), office.clock()).unwrap())
}

fn ids(received: &[Received]) -> Vec<String> {
    received
        .iter()
        .map(|request| request.header("knarr-id").unwrap().to_owned())
        .collect()
}

/// Names of the files that were told of, in order.
fn names(received: &[Received], job: &str) -> Vec<String> {
    received
        .iter()
        .map(|request| serde_json::from_str::<serde_json::Value>(&request.body).unwrap())
        .filter(|body| body["job"] == job)
        .map(|body| body["data"]["path"].as_str().unwrap().to_owned())
        .collect()
}

fn numbered(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("f{number:03}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn k8_a_message_arrives_signed_with_its_key_and_goes() {
    let office = Office::new();
    let receiver = HttpReceiver::start();
    let running = office.start(&[("erp", webhook(&office, &receiver.url("/in")))]);
    let sent = message("a.csv", "sensors", "erp");
    office.enqueue(vec![sent.clone()]).await;
    running.waker.wake();
    until("the message is gone", || {
        office.rows(OutboxFilter::All).is_empty()
    })
    .await;
    running.stop().await;
    let received = receiver.received();
    assert_eq!(received.len(), 1);
    let request = &received[0];
    assert_eq!(request.line, "POST /in HTTP/1.1");
    assert_eq!(request.header("knarr-id"), Some(sent.key.as_str()));
    let timestamp = request.header("knarr-timestamp").unwrap();
    assert_eq!(timestamp, START.seconds().to_string());
    let signature = request.header("knarr-signature").unwrap();
    let digits = signature.strip_prefix("v1=").unwrap();
    let tag: Vec<u8> = (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(digits.get(at..at + 2).unwrap(), 16).unwrap())
        .collect();
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"sentinel-signing-secret");
    hmac::verify(
        &key,
        format!("{timestamp}.{}", request.body).as_bytes(),
        &tag,
    )
    .unwrap();
    let body: serde_json::Value = serde_json::from_str(&request.body).unwrap();
    assert_eq!(body["id"], sent.key);
    assert_eq!(body["kind"], "after_file");
    assert_eq!(body["node"], "edge-1");
    assert_eq!(body["run"], 7);
    assert_eq!(body["data"]["at"], START.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn k8_an_answer_that_is_lost_brings_the_same_message_with_the_same_key() {
    let office = Office::new();
    let receiver = HttpReceiver::start();
    let proxy = HttpFaultProxy::start(receiver.address());
    proxy.rule(Rule::any(HttpAction::DropResponse));
    let running = office.start(&[("erp", webhook(&office, &proxy.endpoint_url()))]);
    office
        .enqueue(vec![message("a.csv", "sensors", "erp")])
        .await;
    office
        .pass_until(&running, "the message is gone", || {
            office.rows(OutboxFilter::All).is_empty()
        })
        .await;
    running.stop().await;
    let received = receiver.received();
    assert_eq!(received.len(), 2);
    assert_eq!(
        received[0].header("knarr-id"),
        received[1].header("knarr-id")
    );
    assert_eq!(received[0].body, received[1].body);
}

/// Delivers, and is then killed before anybody can write it down.
#[derive(Debug)]
struct Killed(Arc<dyn Target>);

#[async_trait]
impl Target for Killed {
    async fn deliver(&self, message: &Message) -> Result<Receipt, TargetError> {
        self.0.deliver(message).await?;
        std::future::pending().await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn k8_a_crash_between_a_delivery_and_its_record_repeats_it_with_the_same_key() {
    let mut office = Office::new();
    let receiver = HttpReceiver::start();
    let target = webhook(&office, &receiver.url("/"));
    office
        .enqueue(vec![message("a.csv", "sensors", "erp")])
        .await;
    let running = office.start(&[("erp", Arc::new(Killed(Arc::clone(&target))))]);
    until("it was delivered", || !receiver.received().is_empty()).await;
    running.stop().await;
    office = office.reopened();
    let running = office.start(&[("erp", target)]);
    until("the message is gone", || {
        office.rows(OutboxFilter::All).is_empty()
    })
    .await;
    running.stop().await;
    let ids = ids(&receiver.received());
    assert_eq!(ids.len(), 2);
    assert_eq!(ids[0], ids[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn k8_a_target_that_is_down_for_an_hour_loses_nothing_and_holds_up_nobody() {
    let office = Office::new();
    let (mut down, up) = (HttpReceiver::down(), HttpReceiver::start());
    let running = office.start(&[
        ("down", webhook(&office, &down.url("/"))),
        ("up", webhook(&office, &up.url("/"))),
    ]);
    let jobs = ["a", "b", "c"];
    for target in ["down", "up"] {
        for job in jobs {
            let names = numbered(30);
            let messages = names.iter().map(|name| message(name, job, target));
            office.enqueue(messages.collect()).await;
        }
    }
    running.waker.wake();
    until("the other target has all", || up.received().len() == 90).await;
    office.pass(&running, 60).await;
    assert_eq!(office.rows(OutboxFilter::Parked).len(), 0);
    let waiting = office.rows(OutboxFilter::Waiting);
    assert_eq!(waiting.len(), 90);
    assert!(waiting.iter().all(|stored| stored.attempts == 0));
    assert!(waiting.iter().any(|stored| {
        let error = stored.last_error.as_deref().unwrap_or_default();
        error.contains("cannot be reached")
    }));
    down.restart();
    office
        .pass_until(&running, "all arrived", || {
            office.rows(OutboxFilter::All).is_empty()
        })
        .await;
    running.stop().await;
    for receiver in [&down, &up] {
        let received = receiver.received();
        for job in jobs {
            assert_eq!(names(&received, job), numbered(30), "{job} in order");
        }
        let keys: BTreeSet<String> = ids(&received).into_iter().collect();
        assert_eq!(keys.len(), 90);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_who_knows_that_a_target_is_back_need_not_wait() {
    let office = Office::new();
    let mut receiver = HttpReceiver::down();
    let running = office.start(&[("erp", webhook(&office, &receiver.url("/")))]);
    office.enqueue(vec![message("a", "sensors", "erp")]).await;
    running.waker.wake();
    until("it is put off", || {
        office.rows(OutboxFilter::Waiting)[0].last_error.is_some()
    })
    .await;
    receiver.restart();
    let again = |tx: &mut knarr_store::Tx<'_>| tx.outbox_retry(None, None);
    assert_eq!(office.store.transact(again).await.unwrap(), 1);
    running.waker.ask_again();
    // The clock stands still.
    until("it arrived", || office.rows(OutboxFilter::All).is_empty()).await;
    running.stop().await;
    assert_eq!(receiver.received().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn k8_a_message_that_fails_is_parked_after_its_attempts_and_the_next_go_on() {
    let office = Office::new();
    let receiver = HttpReceiver::start();
    let proxy = HttpFaultProxy::start(receiver.address());
    proxy.rule(Rule::any(HttpAction::Answer(Answer::internal_error())).times(4));
    let running = office.start(&[("erp", webhook(&office, &proxy.endpoint_url()))]);
    let messages = ["first", "second"].map(|name| message(name, "sensors", "erp"));
    office.enqueue(messages.to_vec()).await;
    office
        .pass_until(&running, "the second arrived", || {
            !receiver.received().is_empty()
        })
        .await;
    until("it is recorded", || {
        office.rows(OutboxFilter::Waiting).is_empty()
    })
    .await;
    assert_eq!(names(&receiver.received(), "sensors"), ["second"]);
    let parked = office.rows(OutboxFilter::Parked);
    assert_eq!((parked.len(), parked[0].attempts), (1, 4));
    assert!(
        parked[0]
            .last_error
            .as_ref()
            .unwrap()
            .contains("answered 500")
    );
    // A person has it tried again.
    office
        .store
        .transact(|tx| tx.outbox_retry(None, None))
        .await
        .unwrap();
    running.waker.wake();
    until("the first arrived", || {
        office.rows(OutboxFilter::All).is_empty()
    })
    .await;
    running.stop().await;
    assert_eq!(names(&receiver.received(), "sensors"), ["second", "first"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_says_what_becomes_of_a_message() {
    let office = Office::new();
    let receiver = HttpReceiver::start();
    let elsewhere = HttpReceiver::start();
    let proxy = HttpFaultProxy::start(receiver.address());
    let target = webhook(&office, &proxy.endpoint_url());
    let stored = {
        office.enqueue(vec![message("a", "sensors", "erp")]).await;
        Message::of(&office.rows(OutboxFilter::All)[0], "edge-1")
    };
    let answer = |status: u16, header: Option<(&str, &str)>| {
        let headers = header.into_iter();
        Answer {
            status,
            headers: headers
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            body: "no".to_owned(),
        }
    };
    let mut given = Vec::new();
    for wanted in [
        answer(503, Some(("Retry-After", "120"))),
        answer(429, Some(("Retry-After", "999999"))),
        answer(500, None),
        answer(400, None),
        answer(401, None),
        answer(302, Some(("Location", &elsewhere.url("/")))),
    ] {
        proxy.clear_rules();
        proxy.rule(Rule::any(HttpAction::Answer(wanted)));
        given.push(target.deliver(&stored).await.unwrap_err());
    }
    let pause = |error: &TargetError| match error {
        TargetError::Unreachable { retry_after, .. } => *retry_after,
        other => panic!("not a matter of the target: {other:?}"),
    };
    assert_eq!(pause(&given[0]), Some(Duration::from_secs(120)));
    assert_eq!(pause(&given[1]), Some(Duration::from_secs(3_600)));
    assert!(matches!(given[2], TargetError::Failed { .. }));
    assert!(matches!(given[3], TargetError::Refused { .. }));
    assert_eq!(pause(&given[4]), None);
    assert!(matches!(given[5], TargetError::Refused { .. }));
    assert!(given[3].to_string().ends_with("answered 400: no"));
    assert!(
        elsewhere.received().is_empty(),
        "redirects are not followed"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn k8_a_target_that_never_answers_holds_up_neither_others_nor_the_end() {
    let office = Office::new();
    let receiver = HttpReceiver::start();
    let proxy = HttpFaultProxy::start(receiver.address());
    proxy.rule(Rule::any(HttpAction::Hang).always());
    let running = office.start(&[
        ("hangs", webhook(&office, &proxy.endpoint_url())),
        ("erp", webhook(&office, &receiver.url("/"))),
    ]);
    let mut messages: Vec<_> = numbered(20)
        .iter()
        .map(|name| message(name, name, "hangs"))
        .collect();
    messages.push(message("a", "sensors", "erp"));
    office.enqueue(messages).await;
    running.waker.wake();
    // Received is not recorded yet: a stop between the two would have it sent again.
    until("the other arrived and is recorded", || {
        office.rows(OutboxFilter::Waiting).len() == 20
    })
    .await;
    running.stop().await;
    assert_eq!(receiver.received().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_trusts_only_certificates_that_are_known() {
    let office = Office::new();
    let receiver = HttpReceiver::start();
    let front = TlsFront::start(receiver.address());
    let url = format!("https://{}/in", front.address());
    office.enqueue(vec![message("a", "sensors", "erp")]).await;
    let stored = Message::of(&office.rows(OutboxFilter::All)[0], "edge-1");
    let refused = webhook(&office, &url).deliver(&stored).await.unwrap_err();
    assert!(
        matches!(refused, TargetError::Unreachable { .. }),
        "{refused:?}"
    );
    assert!(refused.to_string().contains("certificate"), "{refused}");
    assert!(receiver.received().is_empty());
    let trusting = WebhookOptions {
        certificates: Some(std::fs::read(front.certificate().path()).unwrap()),
        ..options(&url)
    };
    let target = WebhookTarget::new(trusting, office.clock()).unwrap();
    target.deliver(&stored).await.unwrap();
    assert_eq!(receiver.received().len(), 1);
}

#[test]
fn a_webhook_in_the_clear_is_for_this_machine_only() {
    let office = Office::new();
    let make = |url: &str| WebhookTarget::new(options(url), office.clock());
    assert!(make("http://127.0.0.1:9/x").is_ok());
    assert!(make("https://hooks.example/x").is_ok());
    for url in [
        "http://hooks.example/x",
        "ftp://hooks.example",
        "hooks.example",
        "file:///etc",
    ] {
        assert!(make(url).is_err(), "{url}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn h25_a_receiver_that_repeats_secrets_gets_none_into_errors_or_debug() {
    let office = Office::new();
    let receiver = HttpReceiver::start();
    let proxy = HttpFaultProxy::start(receiver.address());
    let url = format!("{}/sentinel-url-secret", proxy.endpoint_url());
    let with_secrets = WebhookOptions {
        token: Some(secret("sentinel-token")),
        ..options(&url)
    };
    let target = WebhookTarget::new(with_secrets.clone(), office.clock()).unwrap();
    office.enqueue(vec![message("a", "sensors", "erp")]).await;
    let stored = Message::of(&office.rows(OutboxFilter::All)[0], "edge-1");
    assert!(!stored.body().contains("sentinel"));
    let mut shown = vec![format!("{target:?} {with_secrets:?}")];
    let body = format!(
        "you sent Bearer sentinel-token to {url} with sentinel-signing-secret: no /sentinel-url-secret here"
    );
    for action in [
        HttpAction::Answer(Answer {
            status: 500,
            headers: Vec::new(),
            body,
        }),
        HttpAction::DropRequest,
        HttpAction::DropResponse,
    ] {
        proxy.clear_rules();
        proxy.rule(Rule::any(action));
        let error = target.deliver(&stored).await.unwrap_err();
        shown.push(format!("{error} {error:?}"));
    }
    drop(proxy);
    let error = target.deliver(&stored).await.unwrap_err();
    shown.push(format!("{error} {error:?}"));
    for text in shown {
        assert!(!text.contains("sentinel"), "{text}");
    }
}
