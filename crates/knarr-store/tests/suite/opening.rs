//! What is found when the state is opened.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use knarr_core::entry::Kind;
use knarr_core::record::Action;
use knarr_store::chain::{ChainDefect, ChainVerdict};
use knarr_store::dirty::DirtyFilter;
use knarr_store::{OpenError, OpenState, SCHEMA_VERSION};
use rusqlite::Connection;
use tempfile::TempDir;

use crate::fixture::{Fixture, copy_state, fill, open, path, record, synced, try_open};

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

#[test]
fn a_state_of_version_1_can_be_read_for_ever() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/schema-1.db");
    let directory = TempDir::new().unwrap();
    std::fs::copy(golden, directory.path().join("knarr.db")).unwrap();
    let opened = try_open(directory.path()).unwrap();
    assert_eq!(opened.state, OpenState::Existing);
    let store = opened.store;
    assert_eq!(store.check().unwrap(), None);
    let pair = store
        .read(|reader| reader.find_pair("golden"))
        .unwrap()
        .unwrap();
    let tree: Vec<_> = store
        .synced_cursor(pair.id, b"")
        .map(Result::unwrap)
        .collect();
    assert_eq!(
        tree,
        [
            synced("docs", Kind::Directory, 1),
            synced("docs/a.txt", Kind::File, 2),
            synced("docs/link", Kind::Symlink, 3),
        ]
    );
    let queue = store
        .read(|reader| reader.list_dirty(pair.id, DirtyFilter::All, b"", 10))
        .unwrap();
    assert_eq!(
        queue.iter().map(|dirty| &dirty.path).collect::<Vec<_>>(),
        [&path("new.csv")]
    );
    let ChainVerdict::Intact(head) = store.verify_chain(None).unwrap() else {
        panic!("the chain of the golden file is broken");
    };
    // Computed once by another program from the documented format.
    assert_eq!(
        (head.count, head.hash.to_string().as_str()),
        (2, GOLDEN_HEAD)
    );
    let records: Vec<_> = store
        .custody_cursor(1)
        .map(|record| record.unwrap().record)
        .collect();
    assert_eq!(
        records,
        [
            record("docs/a.txt", Action::Created),
            record("docs/b.txt", Action::Failed)
        ]
    );
}

const GOLDEN_HEAD: &str = include_str!("../../testdata/schema-1.head");

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
