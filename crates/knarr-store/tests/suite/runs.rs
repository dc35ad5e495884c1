//! Runs begin, end once, and do not outlive their process.

use knarr_core::run::{RunEvent, RunState};
use knarr_store::runs::{NewRun, RunCounts, RunFilter, RunId};
use knarr_store::{Store, StoreError};
use rusqlite::Connection;

use crate::fixture::{Fixture, START, open};

fn begin(store: &Store, job: &str) -> RunId {
    let new = NewRun {
        pair: None,
        job: job.to_owned(),
        kind: "copy".to_owned(),
        cause: "command".to_owned(),
    };
    store.transact(move |tx| tx.begin_run(&new)).wait().unwrap()
}

fn finish(store: &Store, id: RunId, failed: u64) -> Result<RunState, StoreError> {
    let counts = RunCounts {
        created: 5,
        failed,
        ..RunCounts::default()
    };
    store
        .transact(move |tx| tx.finish_run(id, RunEvent::Finished { failed }, &counts, Some("bye")))
        .wait()
}

#[test]
fn a_run_ends_once_and_says_what_it_did() {
    let fixture = Fixture::new();
    let id = begin(&fixture.store, "one");
    let stored = || {
        fixture
            .store
            .read(|reader| reader.stored_run(id))
            .unwrap()
            .unwrap()
    };
    assert_eq!(
        (stored().state, stored().process),
        (RunState::Running, std::process::id())
    );
    assert_eq!(finish(&fixture.store, id, 2).unwrap(), RunState::Partial);
    assert!(matches!(
        finish(&fixture.store, id, 0),
        Err(StoreError::Transition { .. })
    ));
    assert!(matches!(
        finish(&fixture.store, RunId(99), 0),
        Err(StoreError::Unknown { .. })
    ));
    let run = stored();
    assert_eq!(
        run.counts,
        RunCounts {
            created: 5,
            failed: 2,
            ..RunCounts::default()
        }
    );
    assert_eq!(
        (run.finished_at, run.message.as_deref()),
        (Some(START), Some("bye"))
    );
}

#[test]
fn r05_the_number_of_a_run_is_never_used_again() {
    let fixture = Fixture::new();
    begin(&fixture.store, "one");
    let last = begin(&fixture.store, "one");
    let state = fixture.state();
    Connection::open(state.join("knarr.db"))
        .unwrap()
        .execute("DELETE FROM runs", [])
        .unwrap();
    let Fixture {
        store, directory, ..
    } = fixture;
    drop(store);
    assert!(begin(&open(&state), "one") > last);
    drop(directory);
}

#[test]
fn runs_are_listed_with_filters() {
    let fixture = Fixture::new();
    let ids: Vec<RunId> = ["one", "two", "one", "two"]
        .map(|job| begin(&fixture.store, job))
        .to_vec();
    finish(&fixture.store, ids[2], 0).unwrap();
    let list = |filter: RunFilter| {
        let runs = fixture
            .store
            .read(|reader| reader.runs(&filter, 10))
            .unwrap();
        runs.into_iter().map(|run| run.id).collect::<Vec<_>>()
    };
    let any = RunFilter::default;
    assert_eq!(list(any()), [ids[3], ids[2], ids[1], ids[0]]);
    assert_eq!(
        list(RunFilter {
            job: Some("one".to_owned()),
            ..any()
        }),
        [ids[2], ids[0]]
    );
    assert_eq!(
        list(RunFilter {
            state: Some(RunState::Done),
            ..any()
        }),
        [ids[2]]
    );
    assert_eq!(
        list(RunFilter {
            before: Some(ids[1]),
            ..any()
        }),
        [ids[0]]
    );
    assert_eq!(
        list(RunFilter {
            until: Some(START),
            ..any()
        }),
        []
    );
    assert_eq!(
        list(RunFilter {
            since: Some(START),
            ..any()
        })
        .len(),
        4
    );
}

#[test]
fn a_run_whose_process_is_gone_is_interrupted_at_the_next_opening() {
    let fixture = Fixture::new();
    let ours = begin(&fixture.store, "ours");
    let dead = begin(&fixture.store, "dead");
    let connection = Connection::open(fixture.state().join("knarr.db")).unwrap();
    connection
        .execute(
            "UPDATE runs SET process = replace(process, ' ', ' another-boot-') WHERE id = ?1",
            [dead.0.cast_signed()],
        )
        .unwrap();
    let second = open(&fixture.state());
    let state = |id| {
        second
            .read(|reader| reader.stored_run(id))
            .unwrap()
            .unwrap()
            .state
    };
    assert_eq!(
        (state(ours), state(dead)),
        (RunState::Running, RunState::Interrupted)
    );
}
