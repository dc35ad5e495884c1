//! What is found when the state is opened.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use knarr_core::entry::Kind;
use knarr_core::record::{Action, CustodyRecord, Evidence};
use knarr_core::tree::Synced;
use knarr_store::chain::{ChainDefect, ChainVerdict};
use knarr_store::dirty::{DirtyFilter, Mark, Seen};
use knarr_store::synced::Recognise;
use knarr_store::{OpenError, OpenState, SCHEMA_VERSION};
use rusqlite::Connection;
use tempfile::TempDir;

use crate::fixture::{
    Fixture, START, copy_state, fill, fingerprint, open, pair, path, record, synced, try_open,
};

#[test]
fn a_new_state_is_fresh_then_existing_and_nobody_else_can_read_it() {
    let directory = TempDir::new().unwrap();
    let state = directory.path().join("a/b/state");
    let opened = try_open(&state).unwrap();
    assert_eq!(opened.state, OpenState::Fresh);
    opened
        .store
        .transact(|tx| tx.set_setting("a", "b"))
        .wait()
        .unwrap();
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&state), 0o700);
    for entry in std::fs::read_dir(&state).unwrap() {
        let entry = entry.unwrap().path();
        assert_eq!(mode(&entry), 0o600, "{}", entry.display());
    }
    drop(opened);
    let opened = try_open(&state).unwrap();
    assert_eq!(opened.state, OpenState::Existing);
    assert_eq!(opened.store.check().unwrap(), None);
}

#[test]
fn r15_a_deleted_state_is_a_first_contact() {
    let fixture = Fixture::new();
    fill(&fixture.store, 10);
    let state = fixture.state();
    let Fixture {
        store, directory, ..
    } = fixture;
    drop(store);
    std::fs::remove_file(state.join("knarr.db")).unwrap();
    let opened = try_open(&state).unwrap();
    assert_eq!(opened.state, OpenState::Fresh);
    assert_eq!(opened.store.read(|reader| reader.pairs()).unwrap(), []);
    drop(directory);
}

#[test]
fn r15_yesterdays_copy_opens_and_the_noted_end_of_the_chain_tells() {
    let fixture = Fixture::new();
    fill(&fixture.store, 10);
    let state = fixture.state();
    let Fixture {
        store, directory, ..
    } = fixture;
    drop(store);
    let yesterday = directory.path().join("yesterday");
    copy_state(&state, &yesterday);
    let store = open(&state);
    let noted = store
        .transact(|tx| tx.append_custody(&[record("later", Action::Created)]))
        .wait()
        .unwrap();
    drop(store);
    copy_state(&yesterday, &state);
    let opened = try_open(&state).unwrap();
    assert_eq!(opened.state, OpenState::Existing);
    assert_eq!(
        opened.store.verify_chain(Some(&noted)).unwrap(),
        ChainVerdict::Broken {
            seq: noted.count,
            defect: ChainDefect::Removed
        }
    );
}

#[test]
fn r19_a_newer_state_is_refused_and_left_alone() {
    let fixture = Fixture::new();
    let state = fixture.state();
    let Fixture {
        store, directory, ..
    } = fixture;
    drop(store);
    let newer = SCHEMA_VERSION + 1;
    Connection::open(state.join("knarr.db"))
        .unwrap()
        .execute_batch(&format!(
            "UPDATE settings SET value = CAST('{newer}' AS BLOB) WHERE key = 'schema_version'; \
             PRAGMA user_version = {newer};"
        ))
        .unwrap();
    let before = std::fs::read(state.join("knarr.db")).unwrap();
    let error = try_open(&state).unwrap_err();
    assert!(
        matches!(error, OpenError::Newer { found, supported } if found == newer && supported == SCHEMA_VERSION)
    );
    assert!(error.to_string().contains("newer knarr"), "{error}");
    assert_eq!(std::fs::read(state.join("knarr.db")).unwrap(), before);
    drop(directory);
}

/// What every golden file holds.
fn golden_content(directory: &Path) {
    let store = open(directory);
    let pair = pair(&store, "golden");
    store
        .transact(move |tx| {
            tx.upsert_synced(pair, Recognise::Both, &golden_tree())?;
            let mark = Mark {
                path: path("new.csv"),
                kind: Kind::File,
                observed: Some(fingerprint(Kind::File, 5, 4)),
                seen: Seen::Event,
                at: START,
                ready_at: START,
                complete_because: Some("closed after write".to_owned()),
                renamed_from: Some(path("old.csv")),
            };
            tx.mark_dirty(pair, &[mark])?;
            tx.append_custody(&golden_records())?;
            tx.set_setting("colour", "red")
        })
        .wait()
        .unwrap();
}

fn golden_tree() -> [Synced; 3] {
    [
        synced("docs", Kind::Directory, 1),
        synced("docs/a.txt", Kind::File, 2),
        synced("docs/link", Kind::Symlink, 3),
    ]
}

fn golden_records() -> [CustodyRecord; 2] {
    let mut failed = record("b.txt", Action::Failed);
    failed.message = Some("connection refused".to_owned());
    failed.seen_at = Some(START);
    failed.source_hash = None;
    failed.evidence = Evidence::None;
    [record("docs/a.txt", Action::Created), failed]
}

fn holds_golden_content(directory: &Path) {
    let opened = try_open(directory).unwrap();
    assert_eq!(opened.state, OpenState::Existing);
    let store = opened.store;
    assert_eq!(store.check().unwrap(), None);
    let pair = store
        .read(|reader| reader.find_pair("golden"))
        .unwrap()
        .unwrap()
        .id;
    let tree: Vec<_> = store.synced_cursor(pair, b"").map(Result::unwrap).collect();
    assert_eq!(tree, golden_tree());
    let queue = store
        .read(|reader| reader.list_dirty(pair, DirtyFilter::All, b"", 10))
        .unwrap();
    assert_eq!((queue.len(), &queue[0].path), (1, &path("new.csv")));
    assert_eq!(queue[0].renamed_from, Some(path("old.csv")));
    let ChainVerdict::Intact(head) = store.verify_chain(None).unwrap() else {
        panic!("the chain of the golden file is broken");
    };
    assert_eq!(
        (head.count, head.hash.to_string().as_str()),
        (2, GOLDEN_HEAD.trim())
    );
    let records: Vec<_> = store
        .custody_cursor(1)
        .map(|record| record.unwrap().record)
        .collect();
    assert_eq!(records, golden_records());
    let colour = store.read(|reader| reader.setting("colour")).unwrap();
    assert_eq!(colour.as_deref(), Some("red"));
}

/// Computed by `testdata/chain_head.py`, another program, from the documented format.
const GOLDEN_HEAD: &str = include_str!("../../testdata/schema-1.head");

#[test]
fn a_state_of_any_version_can_be_read_for_ever() {
    for version in 1..=SCHEMA_VERSION {
        let golden = format!("testdata/schema-{version}.db");
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join(golden);
        let directory = TempDir::new().unwrap();
        std::fs::copy(golden, directory.path().join("knarr.db")).unwrap();
        holds_golden_content(directory.path());
    }
}

/// With `KNARR_STORE_GOLDEN=FILE` it leaves the file there, for a new version of the schema.
#[test]
fn a_golden_state_made_today_holds_the_same() {
    let directory = TempDir::new().unwrap();
    golden_content(directory.path());
    if let Some(path) = std::env::var_os("KNARR_STORE_GOLDEN") {
        std::fs::copy(directory.path().join("knarr.db"), path).unwrap();
    }
    holds_golden_content(directory.path());
}

#[test]
fn two_stores_of_one_directory_see_each_other() {
    let fixture = Fixture::new();
    let second = try_open(&fixture.state()).unwrap();
    assert_eq!(second.state, OpenState::Existing);
    fixture
        .store
        .transact(|tx| tx.set_setting("from", "first"))
        .wait()
        .unwrap();
    let read = second.store.read(|reader| reader.setting("from")).unwrap();
    assert_eq!(read.as_deref(), Some("first"));
    second
        .store
        .transact(|tx| tx.set_setting("from", "second"))
        .wait()
        .unwrap();
    let read = fixture.store.read(|reader| reader.setting("from")).unwrap();
    assert_eq!(read.as_deref(), Some("second"));
}

#[test]
fn many_openings_at_once_make_one_state() {
    let directory = TempDir::new().unwrap();
    let state = directory.path().join("state");
    let ids: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| open(&state).node_id().unwrap()))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert!(ids.windows(2).all(|pair| pair[0] == pair[1]), "{ids:?}");
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "in the way").unwrap();
    let error = try_open(&file.join("state")).unwrap_err();
    assert!(error.to_string().contains("file"), "{error}");
}
