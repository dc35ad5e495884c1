//! The PostgreSQL notifier, against a real server.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use knarr_core::record::{Action, CustodyRecord, Evidence};
use knarr_engine::observer::{Event, Observer as _};
use knarr_engine::outbox::notifier::{
    Notifier, NotifierOptions, PostgresSecurity, Recorder, event_of, forget_others,
};
use knarr_store::events::{EventId, FileEvent, NewEvent};
use knarr_store::secrets::SecretValue;
use knarr_testkit::postgres::{PASSWORD, Postgres, USER};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::support::{Office, START, path, until};

fn options(port: u16) -> NotifierOptions {
    NotifierOptions {
        host: "127.0.0.1".to_owned(),
        port,
        database: "knarr".to_owned(),
        user: USER.to_owned(),
        password: Some(SecretValue::new(PASSWORD.as_bytes().to_vec())),
        security: PostgresSecurity::None,
        certificates: None,
        batch: 50,
    }
}

struct Sending {
    cancel: CancellationToken,
    task: JoinHandle<()>,
    notify: Arc<Notify>,
}

impl Sending {
    async fn start(office: &Office, options: NotifierOptions) -> Self {
        let cancel = CancellationToken::new();
        let store = office.store.clone();
        let notifier = Notifier::new("monitor", "edge-1", options, store, cancel.clone())
            .await
            .unwrap();
        let notify = notifier.notify();
        let task = tokio::spawn(notifier.run());
        Self {
            cancel,
            task,
            notify,
        }
    }

    async fn stop(self) {
        self.cancel.cancel();
        self.task.await.unwrap();
    }
}

fn record(name: &str, action: Action) -> CustodyRecord {
    CustodyRecord {
        at: START,
        run: 7,
        job: "sensors".to_owned(),
        path: path(name.as_bytes()),
        action,
        source: format!("/in/{name}"),
        destination: format!("/out/{name}"),
        size: 3_000,
        mtime: None,
        source_hash: None,
        evidence: Evidence::None,
        seen_at: None,
        complete_because: None,
        steps: Vec::new(),
        attempt: 1,
        moved_bytes: 3_000,
        duration_microseconds: 1,
        message: Some("no\0route".to_owned()),
        decided_by: "plan".to_owned(),
    }
}

async fn append(office: &Office, events: Vec<NewEvent>) {
    office
        .store
        .transact(move |tx| tx.append_events(&events))
        .await
        .unwrap();
}

fn left(office: &Office) -> usize {
    let look = |reader: &knarr_store::Reader<'_>| reader.events_after(EventId::FIRST, 100_000);
    office.store.read(look).unwrap().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_action_appears_as_a_row_and_progress_once_a_second() {
    let office = Office::new();
    let server = Postgres::start();
    let sending = Sending::start(&office, options(server.port())).await;
    let name = path(b"odd \xff name");
    append(
        &office,
        vec![NewEvent {
            at: START,
            what: FileEvent::Enqueued,
            job: "sensors".to_owned(),
            run: None,
            path: name.clone(),
            size: Some(3_000),
        }],
    )
    .await;
    let recorder = Recorder::new("sensors", None, office.clock());
    recorder.event(&Event::Started {
        path: &name,
        size: 3_000,
    });
    for _ in 0..30 {
        office.clock.advance(Duration::from_millis(100));
        recorder.event(&Event::Progress {
            path: Some(&name),
            bytes: 100,
        });
    }
    recorder.write(&office.store, &sending.notify).await;
    let completed = CustodyRecord {
        path: name.clone(),
        ..record("x", Action::Created)
    };
    let events = vec![event_of(&completed), event_of(&record("b", Action::Failed))];
    append(&office, events).await;
    sending.notify.notify_one();
    until("all are sent", || left(&office) == 0).await;
    sending.stop().await;
    let rows = server.sql("SELECT event, done, action, message FROM knarr_events ORDER BY id");
    let rows: Vec<&str> = rows.lines().collect();
    assert_eq!(
        rows,
        [
            "enqueued|||",
            "started|||",
            "progress|1000||",
            "progress|2000||",
            "progress|3000||",
            "completed||created|",
            "failed|||no\u{fffd}route",
        ]
    );
    let latest = server.sql("SELECT event, size, node_name FROM knarr_files ORDER BY path");
    assert_eq!(latest, "failed|3000|edge-1\ncompleted|3000|edge-1");
    let at = server.sql("SELECT extract(epoch FROM min(at))::bigint FROM knarr_events");
    assert_eq!(at, START.seconds().to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn k8_an_outage_of_the_server_loses_nothing_and_doubles_nothing() {
    let mut office = Office::new();
    let mut server = Postgres::start();
    let names: Vec<String> = (0..2_000).map(|number| format!("f{number:05}")).collect();
    let mut sending = Sending::start(&office, options(server.port())).await;
    for (number, batch) in names.chunks(100).enumerate() {
        let events = batch
            .iter()
            .map(|name| event_of(&record(name, Action::Created)));
        append(&office, events.collect()).await;
        sending.notify.notify_one();
        match number {
            // In the middle of a batch or not: nobody knows.
            5 => server.kill(),
            8 => server.restart(),
            12 => {
                sending.stop().await;
                office = office.reopened();
                sending = Sending::start(&office, options(server.port())).await;
            }
            _ => {}
        }
    }
    until("all are sent", || {
        sending.notify.notify_one();
        left(&office) == 0
    })
    .await;
    sending.stop().await;
    let rows = server.sql("SELECT path, count(*) FROM knarr_events GROUP BY path ORDER BY path");
    let expected: Vec<String> = names.iter().map(|name| format!("{name}|1")).collect();
    assert_eq!(rows.lines().collect::<Vec<_>>(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn k8_what_was_sent_and_not_noted_is_sent_again_and_taken_once() {
    let office = Office::new();
    let server = Postgres::start();
    let sending = Sending::start(&office, options(server.port())).await;
    // As if another follower needs them, too, so that they stay.
    let keep = |tx: &mut knarr_store::Tx<'_>| tx.set_event_cursor("other", EventId::FIRST);
    office.store.transact(keep).await.unwrap();
    let events = ["a", "b"].map(|name| event_of(&record(name, Action::Created)));
    append(&office, events.to_vec()).await;
    let rows = || {
        server
            .try_sql("SELECT count(*) FROM knarr_events")
            .unwrap_or_default()
    };
    until("they are sent", || rows() == "2").await;
    sending.stop().await;
    // The crash came before the cursor was written.
    let back = |tx: &mut knarr_store::Tx<'_>| {
        tx.set_event_cursor("postgres.monitor", EventId::FIRST)?;
        tx.append_events(&[event_of(&record("c", Action::Created))])
    };
    office.store.transact(back).await.unwrap();
    let sending = Sending::start(&office, options(server.port())).await;
    until("the third is sent", || rows() == "3").await;
    sending.stop().await;
    let rows = server.sql("SELECT path, count(*) FROM knarr_events GROUP BY path");
    let counts: BTreeMap<&str, &str> = rows
        .lines()
        .map(|line| line.split_once('|').unwrap())
        .collect();
    assert_eq!(counts, BTreeMap::from([("a", "1"), ("b", "1"), ("c", "1")]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_no_more_keeps_no_events() {
    let office = Office::new();
    for follower in ["postgres.old", "postgres.monitor"] {
        let first =
            move |tx: &mut knarr_store::Tx<'_>| tx.set_event_cursor(follower, EventId::FIRST);
        office.store.transact(first).await.unwrap();
    }
    let record = record("a", Action::Created);
    append(&office, vec![event_of(&record); 3]).await;
    forget_others(&office.store, &["monitor".to_owned()])
        .await
        .unwrap();
    assert_eq!(left(&office), 3);
    forget_others(&office.store, &[]).await.unwrap();
    assert_eq!(left(&office), 0);
    let followers = office
        .store
        .read(|reader| reader.event_followers())
        .unwrap();
    assert!(followers.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_may_only_insert_is_enough_once_the_table_is_there() {
    let office = Office::new();
    let server = Postgres::start();
    for statement in [
        knarr_engine::outbox::notifier::SCHEMA,
        "CREATE ROLE writer LOGIN PASSWORD 'writer'",
        "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
        "GRANT INSERT, SELECT ON knarr_events TO writer",
    ] {
        assert_eq!(server.sql(statement), "");
    }
    let writer = NotifierOptions {
        user: "writer".to_owned(),
        password: Some(SecretValue::new(b"writer".to_vec())),
        ..options(server.port())
    };
    let sending = Sending::start(&office, writer).await;
    append(&office, vec![event_of(&record("a", Action::Created))]).await;
    sending.notify.notify_one();
    until("it is sent", || left(&office) == 0).await;
    sending.stop().await;
    assert_eq!(server.sql("SELECT count(*) FROM knarr_events"), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_go_over_tls_to_a_server_that_is_known_and_to_no_other() {
    let office = Office::new();
    let server = Postgres::start();
    append(&office, vec![event_of(&record("a", Action::Created))]).await;
    let encrypted = |certificates| NotifierOptions {
        security: PostgresSecurity::Tls,
        certificates,
        ..options(server.port())
    };
    let unknown = Sending::start(&office, encrypted(None)).await;
    let refused = || server.log().contains("SSL");
    until("the server was refused", refused).await;
    unknown.stop().await;
    assert_eq!(left(&office), 1);
    let certificate = std::fs::read(server.certificate().path()).unwrap();
    let sending = Sending::start(&office, encrypted(Some(certificate))).await;
    until("it is sent", || left(&office) == 0).await;
    sending.stop().await;
    assert_eq!(server.sql("SELECT count(*) FROM knarr_events"), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_in_the_clear_go_to_this_machine_only_and_no_password_is_shown() {
    let office = Office::new();
    let far = NotifierOptions {
        host: "db.example".to_owned(),
        ..options(5_432)
    };
    assert!(!format!("{far:?}").contains("sentinel"));
    let cancel = CancellationToken::new();
    let made = Notifier::new("m", "edge-1", far, office.store.clone(), cancel).await;
    assert!(made.is_err());
}
