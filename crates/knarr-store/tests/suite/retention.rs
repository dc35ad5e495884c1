//! What is old goes, in small steps; the chain stays one, and what is needed stays.

use std::path::Path;
use std::time::Duration;

use knarr_core::record::{Action, CustodyRecord};
use knarr_core::{ContentHash, Timestamp};
use knarr_store::chain::{ChainDefect, ChainHead, ChainVerdict, Going};
use knarr_store::events::{EventId, FileEvent, NewEvent};
use knarr_store::pairs::PairKey;
use knarr_store::retention::{BATCH, Pruned};
use knarr_store::runs::{NewRun, RunCounts, RunFilter};
use knarr_store::synced::Recognise;
use knarr_store::{PairId, Store};
use rusqlite::Connection;

use crate::fixture::{Fixture, path, record};

const DAY: Duration = Duration::from_secs(86_400);

fn day(number: u64) -> Timestamp {
    Timestamp::from_seconds(1_700_000_000).after(DAY * u32::try_from(number).unwrap())
}

/// The record of a delivery on a day.
fn delivered(name: &str, on: u64) -> CustodyRecord {
    CustodyRecord {
        at: day(on),
        source: format!("/from/{name}"),
        job: "invoices".to_owned(),
        ..record(name, Action::Created)
    }
}

fn append(store: &Store, records: Vec<CustodyRecord>) -> ChainHead {
    let appended = store.transact(move |tx| tx.append_custody(&records));
    appended.wait().unwrap()
}

fn prune(store: &Store, before: Timestamp) -> Pruned {
    let mut all = Pruned::default();
    loop {
        let step = store
            .transact(move |tx| tx.prune_custody(before))
            .wait()
            .unwrap();
        if step.records == 0 {
            return all;
        }
        assert!(step.records <= BATCH as u64);
        // At every moment in between the chain is one.
        assert!(matches!(
            store.verify_chain(None).unwrap(),
            ChainVerdict::Intact(_)
        ));
        all.records += step.records;
        all.carried += step.carried;
    }
}

fn ledger(store: &Store, names: &[&str]) -> PairId {
    let key = PairKey {
        key: "invoices".to_owned(),
        source: "/from".to_owned(),
        destination: "/to".to_owned(),
        job: Some("invoices".to_owned()),
    };
    let synced: Vec<_> = names
        .iter()
        .zip(1..)
        .map(|(name, inode)| crate::fixture::synced(name, knarr_core::Kind::File, inode))
        .collect();
    let made = store.transact(move |tx| {
        let pair = tx.pair(&key)?;
        tx.upsert_synced(pair, Recognise::Source, &synced)?;
        Ok(pair)
    });
    made.wait().unwrap()
}

/// Does something to the file that Knarr would never do.
fn tamper(state: &Path, sql: &str) {
    let connection = Connection::open(state.join("knarr.db")).unwrap();
    let all = format!(
        "DROP TRIGGER custody_is_never_changed; DROP TRIGGER custody_is_never_deleted; \
         DROP TRIGGER custody_is_only_appended_to; {sql}"
    );
    connection.execute_batch(&all).unwrap();
}

#[test]
fn k11_a_chain_that_was_pruned_is_verified_from_its_checkpoint() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let old = (0..2_500).map(|number| delivered(&format!("o{number}"), 1));
    let noted_early = append(store, old.collect());
    let new = (0..50).map(|number| delivered(&format!("n{number}"), 100));
    let noted = append(store, new.collect());
    assert_eq!(
        prune(store, day(50)),
        Pruned {
            records: 2_500,
            carried: 0
        }
    );
    let base = store.read(|reader| reader.chain_base()).unwrap();
    assert_eq!(base.pruned, noted_early);
    assert_eq!(base.kept_since, Some(day(100)));
    let ChainVerdict::Intact(head) = store.verify_chain(Some(&noted)).unwrap() else {
        panic!("the noted end is still part of the chain");
    };
    // Three steps, each with its checkpoint.
    assert_eq!(head.count, 2_553);
    assert_eq!(
        store
            .custody_cursor(1)
            .map(|record| record.unwrap().seq)
            .min(),
        Some(2_501)
    );
    let too_old = ChainHead {
        count: 10,
        hash: ContentHash::of(b"10"),
    };
    assert_eq!(
        store.verify_chain(Some(&too_old)).unwrap(),
        ChainVerdict::Broken {
            seq: 10,
            defect: ChainDefect::Pruned
        }
    );
    // The end at which it was cut can still be compared.
    let forged = ChainHead {
        hash: ContentHash::of(b"x"),
        ..noted_early
    };
    assert_eq!(
        store.verify_chain(Some(&forged)).unwrap(),
        ChainVerdict::Broken {
            seq: 0,
            defect: ChainDefect::Rewritten
        }
    );
    // Nothing is left that is old: another time is no step.
    assert_eq!(prune(store, day(50)), Pruned::default());
}

#[test]
fn k11_a_checkpoint_that_was_tampered_with_is_found() {
    for (sql, seq) in [
        // More is taken away than the checkpoint says, and the base is moved to hide it.
        (
            "UPDATE custody_base SET count = 12, hash = (SELECT hash FROM custody WHERE seq = 12); \
             DELETE FROM custody WHERE seq <= 12;",
            12,
        ),
        // The base says another hash.
        ("UPDATE custody_base SET hash = zeroblob(32);", 11),
        // The base names another record as its checkpoint.
        ("UPDATE custody_base SET checkpoint = 13;", 10),
        ("UPDATE custody_base SET checkpoint = 0;", 10),
        // The base is set back: what was pruned was removed.
        (
            "UPDATE custody_base SET count = 0, hash = zeroblob(32), checkpoint = 0;",
            1,
        ),
        // The checkpoint itself is changed.
        (
            "UPDATE custody SET body = (SELECT body FROM custody WHERE seq = 14) WHERE seq = 21;",
            21,
        ),
        // One record of those that are left is taken away.
        ("DELETE FROM custody WHERE seq = 15;", 15),
    ] {
        let fixture = Fixture::new();
        append(
            &fixture.store,
            (0..10).map(|n| delivered(&format!("o{n}"), 1)).collect(),
        );
        append(
            &fixture.store,
            (0..10).map(|n| delivered(&format!("n{n}"), 100)).collect(),
        );
        prune(&fixture.store, day(50));
        tamper(&fixture.state(), sql);
        let verdict = fixture.store.verify_chain(None).unwrap();
        let ChainVerdict::Broken { seq: found, .. } = verdict else {
            panic!("{sql}: {verdict:?}");
        };
        assert_eq!(found, seq, "{sql}: {verdict:?}");
    }
}

#[test]
fn the_database_itself_refuses_to_delete_what_no_checkpoint_covers() {
    let fixture = Fixture::new();
    append(
        &fixture.store,
        (0..10).map(|n| delivered(&format!("o{n}"), 1)).collect(),
    );
    append(
        &fixture.store,
        (0..10).map(|n| delivered(&format!("n{n}"), 100)).collect(),
    );
    prune(&fixture.store, day(50));
    let connection = Connection::open(fixture.state().join("knarr.db")).unwrap();
    let refused = connection.execute("DELETE FROM custody WHERE seq = 11", []);
    assert!(refused.is_err());
}

#[test]
fn what_the_ledger_needs_is_carried_over_once_and_nothing_else_is() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    ledger(store, &["kept", "again"]);
    append(
        store,
        vec![
            delivered("kept", 1),
            // Delivered anew later: the old record says nothing any more.
            delivered("again", 1),
            // The job does not watch over it any more.
            delivered("gone", 1),
            CustodyRecord {
                action: Action::Failed,
                ..delivered("kept", 2)
            },
            delivered("again", 100),
        ],
    );
    assert_eq!(
        prune(store, day(50)),
        Pruned {
            records: 4,
            carried: 1
        }
    );
    let last = |name: &str| {
        let exact = knarr_store::history::TracePath::Exact(path(name));
        store.read(|reader| reader.trace(&exact, 10)).unwrap()
    };
    let kept = last("kept");
    assert_eq!(kept.len(), 1);
    let carried = &kept[0].record;
    assert_eq!(carried.action, Action::Created);
    assert_eq!(
        (carried.size, carried.mtime),
        (delivered("kept", 1).size, delivered("kept", 1).mtime)
    );
    let said = carried.message.as_deref().unwrap();
    assert!(
        said.starts_with("carried over: it was recorded at 2023-11-1"),
        "{said}"
    );
    assert_eq!((last("again").len(), last("gone").len()), (1, 0));
    // When that is old, too, it is carried over again, and says still when it was first recorded.
    let now = store.clock().now().after(Duration::from_millis(1));
    let step = store
        .transact(move |tx| tx.prune_custody(now))
        .wait()
        .unwrap();
    assert_eq!(step.carried, 2, "`again`, too, by now");
    let again = last("kept").remove(0);
    assert_eq!(again.record.message.as_deref(), Some(said));
    assert!(matches!(
        store.verify_chain(None).unwrap(),
        ChainVerdict::Intact(_)
    ));
}

#[test]
fn old_runs_go_but_for_the_newest_of_each_job_and_old_events_go() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let run = |job: &'static str| {
        let begun = store.transact(move |tx| {
            let new = NewRun {
                pair: None,
                job: job.to_owned(),
                kind: "pickup".to_owned(),
                cause: "schedule".to_owned(),
            };
            let run = tx.begin_run(&new)?;
            let event = knarr_core::run::RunEvent::Finished { failed: 0 };
            tx.finish_run(run, event, &RunCounts::default(), None)?;
            tx.set_event_cursor("reader", EventId::FIRST)?;
            tx.append_events(&[NewEvent {
                at: tx.now(),
                what: FileEvent::Enqueued,
                job: job.to_owned(),
                run: Some(run),
                path: path("a"),
                size: None,
            }])
        });
        begun.wait().unwrap();
    };
    for job in ["a", "a", "b", "a"] {
        run(job);
    }
    let far = store.clock().now().after(DAY);
    let runs = store.transact(move |tx| tx.prune_runs(far)).wait().unwrap();
    assert_eq!(runs, 2);
    let left = store
        .read(|reader| reader.runs(&RunFilter::default(), 10))
        .unwrap();
    let left: Vec<_> = left.iter().map(|run| run.begun_as.job.as_str()).collect();
    assert_eq!(left, ["a", "b"]);
    let events = store
        .transact(move |tx| tx.prune_events(far))
        .wait()
        .unwrap();
    assert_eq!(events, 4);
    let none = store
        .transact(move |tx| tx.prune_events(far))
        .wait()
        .unwrap();
    assert_eq!(none, 0);
}

#[test]
fn k11_a_chain_that_is_pruned_while_it_is_checked_is_not_called_broken() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    // More than two pages; the first half is old.
    for page in 0..10 {
        let records = (0..1_000).map(|number| delivered(&format!("{page}-{number}"), page));
        append(store, records.collect());
    }
    let (mut pages, mut begun_anew, mut last) = (0, 0, 0);
    let checked = store.check_chain(None, &mut |walked| {
        pages += 1;
        if walked < last {
            begun_anew += 1;
        }
        last = walked;
        if pages == 1 {
            // What was checked last goes, and what comes next.
            assert_eq!(prune(store, day(6)).records, 6_000);
        }
        Going::On
    });
    let checked = checked.unwrap().expect("it was not given up");
    assert!(
        matches!(checked.verdict, ChainVerdict::Intact(_)),
        "{checked:?}"
    );
    assert_eq!(checked.base.pruned.count, 6_000);
    assert!(begun_anew <= 1 && pages >= 2, "{pages}");
    let given_up = store.check_chain(None, &mut |_walked| Going::Away);
    assert_eq!(given_up.unwrap(), None);
    // What is really missing is found all the same.
    let file = fixture.state().join("knarr.db");
    let raw = Connection::open(file).unwrap();
    raw.execute_batch(
        "DROP TRIGGER custody_is_never_deleted; DELETE FROM custody WHERE seq = 9000",
    )
    .unwrap();
    let verdict = store.verify_chain(None).unwrap();
    let defect = ChainDefect::Removed;
    assert_eq!(verdict, ChainVerdict::Broken { seq: 9_000, defect });
}
