//! whatever happens to the file, it opens or is set aside; nothing panics, nothing is deleted.

use std::path::Path;

use knarr_core::record::Action;
use knarr_store::chain::ChainVerdict;
use knarr_store::dirty::DirtyFilter;
use knarr_store::{OpenError, OpenState, Store};
use tempfile::TempDir;

use crate::fixture::{Fixture, copy_state, fill, open, path, record, try_open};

const PAGE: usize = 4_096;

/// A closed store's file with something in every table.
fn sound_file(files: u64) -> Vec<u8> {
    let fixture = Fixture::new();
    fill(&fixture.store, files);
    let state = fixture.state();
    let Fixture {
        store, directory, ..
    } = fixture;
    drop(store);
    let bytes = std::fs::read(state.join("knarr.db")).unwrap();
    drop(directory);
    bytes
}

/// Asks everything. Errors are fine, panics are not.
fn use_it(store: &Store) {
    let pairs = store.read(|reader| reader.pairs()).unwrap_or_default();
    for pair in pairs {
        store.synced_cursor(pair.id, b"").for_each(drop);
        drop(store.read(|reader| reader.list_dirty(pair.id, DirtyFilter::All, b"", 1_000)));
    }
    drop(store.verify_chain(None));
    store.custody_cursor(1).for_each(drop);
    drop(
        store
            .transact(|tx| tx.append_custody(&[record("x", Action::Created)]))
            .wait(),
    );
    drop(store.transact(|tx| tx.set_setting("a", "b")).wait());
}

/// Opens `bytes` as a state of its own and says whether it was taken as sound.
fn survives(bytes: &[u8], what: &str) -> bool {
    let directory = TempDir::new().unwrap();
    std::fs::write(directory.path().join("knarr.db"), bytes).unwrap();
    match try_open(directory.path()) {
        Ok(opened) => {
            use_it(&opened.store);
            match opened.state {
                OpenState::Recovered {
                    quarantined,
                    reason,
                } => {
                    assert!(!reason.is_empty());
                    assert_eq!(std::fs::read(quarantined).unwrap(), bytes, "{what}");
                    assert_eq!(opened.store.read(|reader| reader.pairs()).unwrap(), []);
                    false
                }
                state => {
                    assert!(
                        state == OpenState::Existing || bytes.is_empty(),
                        "{what}: {state:?}"
                    );
                    true
                }
            }
        }
        Err(OpenError::Newer { .. }) => false,
        Err(error) => panic!("{what}: {error:?}"),
    }
}

#[test]
fn r14_flipped_bytes_are_survived() {
    let bytes = sound_file(150);
    let mut set_aside = 0;
    for page in 0..bytes.len() / PAGE {
        // The page's own header, its array of cells, and somewhere in its content.
        for offset in [if page == 0 { 40 } else { 0 }, 9, 1_500 + page % 2_000] {
            let mut damaged = bytes.clone();
            damaged[page * PAGE + offset] ^= 0x5a;
            let sound = survives(&damaged, &format!("page {page}, byte {offset} flipped"));
            set_aside += usize::from(!sound);
        }
    }
    assert!(
        set_aside > bytes.len() / PAGE,
        "only {set_aside} were noticed"
    );
}

#[test]
fn r14_every_byte_of_the_header_may_be_wrong() {
    let bytes = sound_file(5);
    for offset in 0..108 {
        let mut damaged = bytes.clone();
        damaged[offset] ^= 0xff;
        survives(&damaged, &format!("byte {offset} flipped"));
    }
}

#[test]
fn r14_a_truncated_file_is_set_aside() {
    let bytes = sound_file(150);
    for pages in 1..bytes.len() / PAGE {
        let what = format!("cut off after {pages} pages");
        assert!(!survives(&bytes[..pages * PAGE], &what), "{what}");
        let what = format!("cut off in page {pages}");
        assert!(!survives(&bytes[..pages * PAGE - 100], &what), "{what}");
    }
    assert!(!survives(&bytes[..50], "cut off in the header"));
    assert!(survives(&[], "empty"));
}

#[test]
fn r14_a_zeroed_page_is_set_aside() {
    let bytes = sound_file(150);
    for page in 0..bytes.len() / PAGE {
        let mut damaged = bytes.clone();
        damaged[page * PAGE..(page + 1) * PAGE].fill(0);
        let what = format!("page {page} zeroed");
        assert!(!survives(&damaged, &what), "{what}");
    }
}

#[test]
fn r14_a_log_of_another_database_does_no_harm() {
    let ours = Fixture::new();
    fill(&ours.store, 100);
    let other = Fixture::new();
    fill(&other.store, 3_000);
    for (database, log) in [(&ours, &other), (&other, &ours)] {
        let mixed = TempDir::new().unwrap();
        let of = |fixture: &Fixture, name: &str| fixture.state().join(name);
        std::fs::copy(of(database, "knarr.db"), mixed.path().join("knarr.db")).unwrap();
        std::fs::copy(of(log, "knarr.db-wal"), mixed.path().join("knarr.db-wal")).unwrap();
        let opened = try_open(mixed.path()).unwrap();
        assert_ne!(opened.state, OpenState::Fresh);
        use_it(&opened.store);
        assert_eq!(opened.store.check().unwrap(), None);
    }
}

#[test]
fn r14_a_missing_log_leaves_an_older_but_sound_state_or_none() {
    let fixture = Fixture::new();
    fill(&fixture.store, 100);
    let copy = TempDir::new().unwrap();
    copy_state(&fixture.state(), copy.path());
    std::fs::remove_file(copy.path().join("knarr.db-wal")).unwrap();
    let opened = try_open(copy.path()).unwrap();
    use_it(&opened.store);
    assert_eq!(opened.store.check().unwrap(), None);
}

#[test]
fn r14_a_log_without_its_database_is_set_aside() {
    let fixture = Fixture::new();
    fill(&fixture.store, 10);
    let copy = TempDir::new().unwrap();
    copy_state(&fixture.state(), copy.path());
    std::fs::remove_file(copy.path().join("knarr.db")).unwrap();
    let log = std::fs::read(copy.path().join("knarr.db-wal")).unwrap();
    let OpenState::Recovered { quarantined, .. } = try_open(copy.path()).unwrap().state else {
        panic!("taken for a fresh state");
    };
    let mut name = quarantined.into_os_string();
    name.push("-wal");
    assert_eq!(std::fs::read(Path::new(&name)).unwrap(), log);
}

#[test]
fn r04_of_a_torn_log_a_whole_prefix_of_the_commits_is_there() {
    let fixture = Fixture::new();
    let commits = 12_u64;
    for number in 0..commits {
        fixture
            .store
            .transact(move |tx| {
                tx.append_custody(&[record(&format!("f{number}"), Action::Created)])
            })
            .wait()
            .unwrap();
    }
    let log = std::fs::read(fixture.state().join("knarr.db-wal")).unwrap();
    let frame = PAGE + 24;
    let mut seen = std::collections::BTreeSet::new();
    let mut examine = |log: &[u8], what: &str| {
        let torn = TempDir::new().unwrap();
        copy_state(&fixture.state(), torn.path());
        std::fs::write(torn.path().join("knarr.db-wal"), log).unwrap();
        let opened = try_open(torn.path()).unwrap();
        assert!(
            !matches!(opened.state, OpenState::Recovered { .. }),
            "{what}: {:?}",
            opened.state
        );
        let ChainVerdict::Intact(head) = opened.store.verify_chain(None).unwrap() else {
            panic!("{what}: the chain is broken");
        };
        let records = opened.store.custody_cursor(1).map(Result::unwrap);
        for (number, record) in records.enumerate() {
            assert_eq!(record.record.path, path(&format!("f{number}")));
        }
        seen.insert(head.count);
    };
    for length in (0..=log.len()).step_by(frame / 2) {
        examine(&log[..length], &format!("log of {length} bytes"));
    }
    for start in (32..log.len()).step_by(frame * 3) {
        let mut torn = log.clone();
        let end = (start + 600).min(torn.len());
        torn[start..end].fill(0);
        examine(&torn, &format!("log with a hole at {start}"));
    }
    assert!(seen.len() as u64 > commits / 2, "{seen:?}");
}

#[test]
fn r14_damage_in_a_large_file_is_met_at_use_and_set_aside_at_the_next_start() {
    let mut bytes = sound_file(20_000);
    assert!(bytes.len() > 4 << 20, "not a large file: {}", bytes.len());
    // A page in the middle belongs to the synced tree or the custody record.
    for page in (300..bytes.len() / PAGE).step_by(5) {
        bytes[page * PAGE..page * PAGE + 8].fill(0xee);
    }
    let directory = TempDir::new().unwrap();
    std::fs::write(directory.path().join("knarr.db"), &bytes).unwrap();
    let opened = try_open(directory.path()).unwrap();
    assert_eq!(
        opened.state,
        OpenState::Existing,
        "a large file is not looked through"
    );
    use_it(&opened.store);
    assert!(directory.path().join("knarr.suspect").exists());
    // Somebody else still has it open: it is not taken away from under them.
    assert_eq!(
        try_open(directory.path()).unwrap().state,
        OpenState::Existing
    );
    drop(opened);
    let opened = try_open(directory.path()).unwrap();
    assert!(
        matches!(opened.state, OpenState::Recovered { .. }),
        "{:?}",
        opened.state
    );
    drop(opened);
    assert_eq!(
        try_open(directory.path()).unwrap().state,
        OpenState::Existing
    );
}

#[test]
fn r14_a_row_that_cannot_be_read_is_an_error_and_ends_in_quarantine() {
    let fixture = Fixture::new();
    let pair = fill(&fixture.store, 10);
    let state = fixture.state();
    let Fixture {
        store, directory, ..
    } = fixture;
    drop(store);
    rusqlite::Connection::open(state.join("knarr.db"))
        .unwrap()
        .execute_batch("UPDATE synced SET value = x'0102' WHERE key = CAST('d1/f000001' AS BLOB)")
        .unwrap();
    let opened = try_open(&state).unwrap();
    assert_eq!(opened.state, OpenState::Existing);
    let errors: Vec<_> = opened
        .store
        .synced_cursor(pair, b"")
        .filter_map(Result::err)
        .collect();
    assert_eq!(errors.len(), 1);
    assert!(
        errors[0].to_string().contains("d1/f000001"),
        "{}",
        errors[0]
    );
    drop(opened);
    assert!(matches!(
        try_open(&state).unwrap().state,
        OpenState::Recovered { .. }
    ));
    drop(open(&state));
    drop(directory);
}
