//! The answers to questions, from a real store.
#![expect(
    clippy::unwrap_used,
    reason = "in tests, in their helpers too, a panic is the failure"
)]

use std::sync::Arc;

use knarr_core::path::RelPath;
use knarr_core::record::{Action, CustodyRecord, Evidence};
use knarr_core::run::RunEvent;
use knarr_core::time::ManualClock;
use knarr_core::{Kind, Timestamp};
use knarr_node::v1::log_event::What;
use knarr_node::{events_page, query, v1};
use knarr_store::dirty::{Mark, Seen};
use knarr_store::pairs::PairKey;
use knarr_store::runs::{NewRun, RunCounts, RunId};
use knarr_store::{PairId, Store, StoreOptions};

const START: Timestamp = Timestamp::from_seconds(1_800_000_000);

fn store() -> (Store, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::at(START));
    let options = StoreOptions::new(directory.path().join("state"), clock);
    (Store::open(options).unwrap().store, directory)
}

fn begin(store: &Store, job: &str) -> RunId {
    let new = NewRun {
        pair: None,
        job: job.to_owned(),
        kind: "pickup".to_owned(),
        cause: "manual".to_owned(),
    };
    store.transact(move |tx| tx.begin_run(&new)).wait().unwrap()
}

fn end(store: &Store, run: RunId) {
    let ended = store.transact(move |tx| {
        let event = RunEvent::Finished { failed: 0 };
        tx.finish_run(run, event, &RunCounts::default(), None)
    });
    ended.wait().unwrap();
}

fn record(store: &Store, run: RunId, name: &str) {
    let record = CustodyRecord {
        at: START,
        run: run.0,
        job: "invoices".to_owned(),
        path: RelPath::new(name.as_bytes()).unwrap(),
        action: Action::Created,
        source: "/in".to_owned(),
        destination: "/out".to_owned(),
        size: 1,
        mtime: None,
        source_hash: None,
        evidence: Evidence::None,
        seen_at: None,
        complete_because: None,
        steps: Vec::new(),
        attempt: 1,
        moved_bytes: 1,
        duration_microseconds: 1,
        message: None,
        decided_by: "plan".to_owned(),
    };
    let appended = store.transact(move |tx| tx.append_custody([&record]).map(drop));
    appended.wait().unwrap();
}

/// What an event is about, for comparing.
fn told(event: &v1::LogEvent) -> Option<String> {
    Some(match event.what.as_ref()? {
        What::Begun(run) => format!("begun {}", run.run),
        What::File(record) => format!("file {} of {}", record.number, record.run),
        What::Ended(run) => format!("ended {}", run.run),
        What::CaughtUp(_) => return None,
    })
}

/// Everything behind a cursor, and the cursor behind that.
fn all(store: &Store, cursor: &str) -> (Vec<v1::LogEvent>, String) {
    let (mut events, mut cursor) = (Vec::new(), cursor.to_owned());
    loop {
        let page = events_page(store, &cursor).unwrap();
        cursor.clone_from(&page.last().unwrap().cursor);
        let is_end = matches!(page.last().unwrap().what, Some(What::CaughtUp(_)));
        events.extend(page);
        if is_end {
            return (events, cursor);
        }
    }
}

#[test]
fn k11_a_reader_that_is_cut_behind_any_event_misses_none_and_sees_none_twice() {
    let (store, _directory) = store();
    let mut open = Vec::new();
    // More than fits on a page, runs side by side, some of them without an end.
    for number in 0..300 {
        let run = begin(&store, "invoices");
        record(&store, run, &format!("file-{number}"));
        open.push(run);
        if number % 3 != 0 {
            end(&store, open.remove(usize::from(open.len() > 1)));
        }
    }
    let (events, last) = all(&store, "");
    let whole: Vec<String> = events.iter().filter_map(told).collect();
    let unique: std::collections::BTreeSet<&String> = whole.iter().collect();
    assert_eq!(unique.len(), whole.len(), "nothing twice");
    assert_eq!(whole.len(), 300 + 300 + (300 - open.len()));
    for event in events.iter().step_by(5) {
        let (rest, _) = all(&store, &event.cursor);
        let at = told(event).map(|name| whole.iter().position(|other| *other == name).unwrap() + 1);
        let rest: std::collections::BTreeSet<String> = rest.iter().filter_map(told).collect();
        let expected = whole.iter().skip(at.unwrap_or(whole.len())).cloned();
        assert_eq!(rest, expected.collect(), "behind {event:?}");
    }
    // A run ends behind all its files, and what was open is told later.
    for (index, name) in whole.iter().enumerate() {
        if let Some(run) = name.strip_prefix("ended ") {
            let of_run = format!(" of {run}");
            assert!(
                !whole[index..].iter().any(|later| later.ends_with(&of_run)),
                "{name}"
            );
        }
    }
    let left = open.len();
    for run in open {
        end(&store, run);
    }
    let (rest, _) = all(&store, &last);
    assert_eq!(rest.iter().filter_map(told).count(), left);
    let (behind_now, _) = all(&store, "now");
    assert_eq!(behind_now.iter().filter_map(told).count(), 0);
}

fn pair(store: &Store, job: &str) -> PairId {
    let known_as = PairKey {
        key: job.to_owned(),
        source: "/in".to_owned(),
        destination: "/out".to_owned(),
        job: Some(job.to_owned()),
    };
    store.transact(move |tx| tx.pair(&known_as)).wait().unwrap()
}

#[test]
fn k10_the_queue_is_told_page_by_page_over_all_jobs() {
    let (store, _directory) = store();
    for job in ["first", "second", "third"] {
        let pair = pair(&store, job);
        let marks: Vec<Mark> = (0..1_700)
            .map(|number| Mark {
                path: RelPath::new(format!("{number}").as_bytes()).unwrap(),
                kind: Kind::File,
                observed: None,
                seen: Seen::Scan,
                at: START,
                ready_at: START,
                complete_because: None,
                renamed_from: None,
            })
            .collect();
        let marked = store.transact(move |tx| tx.mark_dirty(pair, &marks));
        marked.wait().unwrap();
    }
    let now = store.clock().now();
    let (mut request, mut seen) = (v1::ListQueueRequest::default(), Vec::new());
    loop {
        let reply = query::queue(&store, &request, now).unwrap();
        assert!(reply.paths.len() <= 1_000);
        seen.extend(reply.paths.into_iter().map(|path| (path.job, path.path)));
        if reply.next.is_empty() {
            break;
        }
        request.from = reply.next;
    }
    assert_eq!(seen.len(), 5_100);
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 5_100, "each once");
    let status = query::status(&store, now).unwrap();
    assert!(
        status.pairs.iter().all(|pair| pair.ready == 1_700),
        "{status:?}"
    );
    let unknown = query::retry_queue(&store, "fourth").unwrap_err();
    assert!(
        unknown.to_string().contains("nothing is known"),
        "{unknown}"
    );
}

#[test]
fn what_a_question_gets_wrong_is_said() {
    let (store, _directory) = store();
    let history = v1::HistoryRequest {
        action: "vanished".to_owned(),
        ..v1::HistoryRequest::default()
    };
    assert!(query::history(&store, &history).is_err());
    let runs = v1::ListRunsRequest {
        state: "asleep".to_owned(),
        ..v1::ListRunsRequest::default()
    };
    assert!(query::runs(&store, &runs).is_err());
    assert!(query::run(&store, 1).is_err());
    let approve = v1::ApproveRequest {
        pair: 1,
        digest: vec![0; 31],
    };
    assert!(query::approve(&store, &approve, "anna").is_err());
    let nothing = v1::ApproveRequest {
        pair: 1,
        digest: vec![0; 32],
    };
    assert!(!query::approve(&store, &nothing, "anna").unwrap().approved);
}
