//! What jobs do reaches hooks and people, with a clock that is set by hand.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use knarr_core::Timestamp;
use knarr_core::alert::Rule;
use knarr_engine::announce::{Announcer, AnnouncerOptions, Credential, Followed, JobHooks};
use knarr_engine::node::Looks;
use knarr_engine::observer::Collecting;
use knarr_engine::oneshot::Environment;
use knarr_engine::outbox::shape::RuleShape;
use knarr_engine::outbox::{Target, WebhookOptions, WebhookTarget};
use knarr_engine::pickup::{Cause, PickupJob};
use knarr_store::endpoints::Reachable;
use knarr_store::outbox::{OutboxFilter, OutboxId};
use knarr_store::secrets::SecretValue;
use knarr_testkit::receiver::HttpReceiver;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::outbox::support::{Office, Running};
use crate::support::{local, watch_job};

/// A job `invoices` that takes what lies in `in`, on the office's clock.
fn pickup(office: &Office, announcer: &Announcer) -> (PickupJob, Environment) {
    for name in ["in", "out"] {
        std::fs::create_dir_all(office.path(name)).unwrap();
    }
    let (from, to) = (office.path("in"), office.path("out"));
    let mut job = watch_job("invoices", &from, local(&to));
    job.looks = Looks::InRuns;
    job.sources = Vec::new();
    job.settle = Duration::ZERO;
    let pickup = PickupJob {
        job: Arc::new(job),
        source: local(&from),
    };
    let environment = Environment {
        store: office.store.clone(),
        locks: office.path("locks"),
        keep_unfinished: knarr_engine::KEEP_UNFINISHED,
        clock: office.clock(),
        observer: Arc::new(Collecting::default()),
        announcer: announcer.clone(),
        cancel: CancellationToken::new(),
    };
    (pickup, environment)
}

fn rule(name: &str, shape: serde_json::Value) -> Rule {
    let shape: RuleShape = serde_json::from_value(shape).unwrap();
    shape.make(name).unwrap()
}

fn announcer(rules: Vec<Rule>, running: Option<&Running>) -> Announcer {
    Announcer::new(AnnouncerOptions {
        rules,
        waker: running
            .map(|running| running.waker.clone())
            .unwrap_or_default(),
        followed: Followed::No,
        followers: Vec::new(),
    })
}

/// `problem prices`, `recovered prices` and so on, as they stand in the outbox.
fn told(office: &Office) -> Vec<String> {
    let rows = office.rows(OutboxFilter::All);
    rows.iter()
        .map(|row| {
            let facts: serde_json::Value = serde_json::from_str(&row.message.payload).unwrap();
            let word = |name: &str| facts[name].as_str().unwrap().to_owned();
            format!("{} {}", word("event"), word("name"))
        })
        .collect()
}

#[tokio::test]
async fn k8_a_target_that_is_down_for_an_hour_delays_no_run_and_misses_nothing() {
    let office = Office::new();
    let mut receiver = HttpReceiver::down();
    let options = WebhookOptions {
        url: SecretValue::new(receiver.url("/").into_bytes()),
        secret: None,
        token: None,
        certificates: None,
        limit: Duration::from_secs(5),
    };
    let target: Arc<dyn Target> = Arc::new(WebhookTarget::new(options, office.clock()).unwrap());
    let running = office.start(&[("chat", target)]);
    let announcer = announcer(Vec::new(), Some(&running));
    let hooks = JobHooks {
        before: Vec::new(),
        after_file: vec!["chat".to_owned()],
        after_run: vec!["chat".to_owned()],
    };
    announcer.set_job("invoices", Looks::InRuns, hooks);
    let (pickup, environment) = pickup(&office, &announcer);
    for minute in 0..60 {
        std::fs::write(office.path("in").join(format!("{minute}.xml")), "x").unwrap();
        let ended = pickup.run(&environment, Cause::Schedule).await.unwrap();
        assert_eq!(ended.report.created, 1, "{minute}");
        office.pass(&running, 1).await;
    }
    assert!(receiver.received().is_empty());
    let waiting = office.rows(OutboxFilter::Waiting);
    assert_eq!(waiting.len(), 120, "a file and a run each minute");
    assert_eq!(office.rows(OutboxFilter::Parked), []);
    receiver.restart();
    office
        .pass_until(&running, "everything", || {
            office.rows(OutboxFilter::All).is_empty()
        })
        .await;
    running.stop().await;
    let received = receiver.received();
    let keys: BTreeSet<_> = received
        .iter()
        .map(|request| request.header("knarr-id").unwrap().to_owned())
        .collect();
    let written: BTreeSet<_> = waiting.iter().map(|row| row.message.key.clone()).collect();
    assert_eq!(keys, written);
    // In the order in which it happened.
    let runs: Vec<u64> = received
        .iter()
        .map(|request| serde_json::from_str::<serde_json::Value>(&request.body).unwrap())
        .filter(|body| body["kind"] == "after_run")
        .map(|body| body["run"].as_u64().unwrap())
        .collect();
    assert!(runs.is_sorted(), "{runs:?}");
}

#[tokio::test]
async fn k3_k8_a_record_that_is_not_written_is_not_told() {
    let office = Office::new();
    let announcer = announcer(Vec::new(), None);
    let hooks = JobHooks {
        after_file: vec!["chat".to_owned()],
        ..JobHooks::default()
    };
    announcer.set_job("invoices", Looks::InRuns, hooks);
    let (pickup, environment) = pickup(&office, &announcer);
    std::fs::write(office.path("in/a"), "x").unwrap();
    let database = office.path("state/knarr.db");
    // Nothing more can be recorded: the table refuses.
    let refusing =
        "CREATE TRIGGER no_more BEFORE INSERT ON custody BEGIN SELECT RAISE(ABORT, 'no'); END;";
    let sqlite = |sql: &str| {
        let script = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).executescript(sys.argv[2])";
        let mut python = std::process::Command::new("python3");
        let done = python
            .args(["-c", script])
            .arg(&database)
            .arg(sql)
            .output()
            .unwrap();
        assert!(done.status.success(), "{done:?}");
    };
    sqlite(refusing);
    let failed = pickup.run(&environment, Cause::Manual).await;
    assert!(failed.is_err(), "{failed:?}");
    let rows = office
        .store
        .read(|reader| reader.outbox(OutboxFilter::All, None, OutboxId::FIRST, 10));
    assert_eq!(rows.unwrap(), []);
    sqlite("DROP TRIGGER no_more;");
    let ended = pickup.run(&environment, Cause::Manual).await.unwrap();
    assert!(ended.message.is_none(), "{ended:?}");
    let rows = office.rows(OutboxFilter::All);
    assert_eq!(
        rows.len(),
        1,
        "what lies there since is told once it is on record"
    );
}

#[tokio::test]
async fn k8_that_nothing_came_by_a_time_is_told_once_however_often_it_is_looked() {
    let office = Office::new();
    // 2027-01-15 08:00 UTC, a Friday.
    let rules = vec![rule(
        "no-prices",
        json!({ "on": { "nothing_by": { "time": "06:00", "since": "00:00" } }, "about": ["prices"], "to": ["ops"] }),
    )];
    let announcer = announcer(rules, None);
    announcer.set_job("prices", Looks::InRuns, JobHooks::default());
    announcer.set_job("other", Looks::InRuns, JobHooks::default());
    let mut counts = Vec::new();
    for _half_hour in 0..96 {
        announcer.round(&office.store).await.unwrap();
        counts.push(told(&office).len());
        office.clock.advance(Duration::from_secs(1_800));
    }
    assert_eq!(counts[..44], [0; 44], "until six of the next morning");
    assert_eq!(counts[45..], [1; 51], "{counts:?}");
    assert_eq!(told(&office), ["problem prices"]);
    // A job that is taken out of the configuration is not missed any more.
    announcer.remove_job("prices");
    announcer.round(&office.store).await.unwrap();
    assert_eq!(told(&office), ["problem prices", "recovered prices"]);
}

#[tokio::test]
async fn what_arrives_is_judged_with_its_record() {
    let office = Office::new();
    let rules = vec![rule(
        "silent",
        json!({ "on": { "nothing_for": "1h" }, "to": ["ops"] }),
    )];
    let announcer = announcer(rules, None);
    announcer.set_job("invoices", Looks::InRuns, JobHooks::default());
    let (pickup, environment) = pickup(&office, &announcer);
    announcer.round(&office.store).await.unwrap();
    office.clock.advance(Duration::from_secs(3_700));
    announcer.round(&office.store).await.unwrap();
    assert_eq!(told(&office), ["problem invoices"]);
    // A run that finds nothing is no arrival.
    pickup.run(&environment, Cause::Manual).await.unwrap();
    assert_eq!(told(&office).len(), 1);
    std::fs::write(office.path("in/a"), "x").unwrap();
    pickup.run(&environment, Cause::Manual).await.unwrap();
    assert_eq!(told(&office), ["problem invoices", "recovered invoices"]);
}

#[tokio::test]
async fn an_endpoint_that_is_down_for_long_and_a_key_that_expires_are_told_and_so_is_the_end() {
    let office = Office::new();
    let rules = vec![
        rule(
            "down",
            json!({ "on": { "endpoint_down": "15m" }, "to": ["ops"] }),
        ),
        rule(
            "keys",
            json!({ "on": { "expiring": "14d" }, "to": ["ops"] }),
        ),
    ];
    let announcer = announcer(rules, None);
    announcer.name_endpoint("sftp://acme@host:22", "partner");
    let credential = |days: u64| Credential {
        name: "/etc/knarr/partner.asc".to_owned(),
        expires: Some(Timestamp::from_seconds(
            1_800_000_000 + i64::try_from(days * 86_400).unwrap(),
        )),
    };
    announcer.set_credentials(vec![credential(15)]);
    let set = |state: Reachable| {
        let noted = office.store.transact(move |tx| {
            tx.set_endpoint("sftp://acme@host:22", state, Some("no route"), None)
        });
        noted.wait().unwrap();
    };
    set(Reachable::Down);
    for _ in 0..14 {
        announcer.round(&office.store).await.unwrap();
        office.clock.advance(Duration::from_secs(60));
    }
    assert_eq!(told(&office), [] as [&str; 0]);
    office.clock.advance(Duration::from_secs(120));
    announcer.round(&office.store).await.unwrap();
    assert_eq!(told(&office), ["problem partner"]);
    set(Reachable::Up);
    announcer.round(&office.store).await.unwrap();
    assert_eq!(told(&office), ["problem partner", "recovered partner"]);
    office.clock.advance(Duration::from_secs(86_400));
    announcer.round(&office.store).await.unwrap();
    announcer.round(&office.store).await.unwrap();
    assert_eq!(told(&office)[2..], ["problem /etc/knarr/partner.asc"]);
    announcer.set_credentials(vec![credential(400)]);
    announcer.round(&office.store).await.unwrap();
    assert_eq!(told(&office)[3..], ["recovered /etc/knarr/partner.asc"]);
}
