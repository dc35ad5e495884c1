//! The chain of custody: whatever is done to it behind Knarr's back is found, and where.

use std::path::Path;

use knarr_core::record::{Action, CustodyRecord, Evidence};
use knarr_core::{ContentHash, RelPath, Timestamp};
use knarr_store::chain::{ChainDefect, ChainHead, ChainVerdict};
use knarr_store::{PAGE_ROWS, Store};
use proptest::prelude::*;
use rusqlite::Connection;

use crate::fixture::{Fixture, open, path, record};

fn append(store: &Store, records: Vec<CustodyRecord>) -> ChainHead {
    store
        .transact(move |tx| tx.append_custody(&records))
        .wait()
        .unwrap()
}

fn ten(store: &Store) -> ChainHead {
    append(
        store,
        (1..=10)
            .map(|number| record(&format!("d/f{number}"), Action::Created))
            .collect(),
    )
}

/// Does something to the file that Knarr would never do.
fn tamper(state: &Path, sql: &str) {
    Connection::open(state.join("knarr.db"))
        .unwrap()
        .execute_batch(&format!(
            "DROP TRIGGER custody_is_never_changed; DROP TRIGGER custody_is_never_deleted; \
             DROP TRIGGER custody_is_only_appended_to; {sql}"
        ))
        .unwrap();
}

#[test]
fn k11_an_untouched_chain_is_intact_and_reads_back() {
    let fixture = Fixture::new();
    assert_eq!(
        fixture.store.verify_chain(None).unwrap(),
        ChainVerdict::Intact(ChainHead::EMPTY)
    );
    let early = ten(&fixture.store);
    let count = PAGE_ROWS * 2;
    let records: Vec<_> = (0..count)
        .map(|number| record(&format!("n{number}"), Action::Updated))
        .collect();
    let head = append(&fixture.store, records.clone());
    assert_eq!(head.count, 10 + count as u64);
    for noted in [None, Some(&early), Some(&head), Some(&ChainHead::EMPTY)] {
        let verdict = fixture.store.verify_chain(noted).unwrap();
        assert_eq!(verdict, ChainVerdict::Intact(head));
    }
    let exported: Vec<_> = fixture
        .store
        .custody_cursor(11)
        .map(|record| record.unwrap().record)
        .collect();
    assert_eq!(exported, records);
}

#[test]
fn k11_the_database_itself_refuses_to_change_or_delete_records() {
    let fixture = Fixture::new();
    ten(&fixture.store);
    let connection = Connection::open(fixture.state().join("knarr.db")).unwrap();
    for sql in [
        "UPDATE custody SET run = 8 WHERE seq = 3",
        "DELETE FROM custody WHERE seq = 10",
        "INSERT INTO custody SELECT 20, format, at, run, job, action, directory, name, body, hash \
         FROM custody WHERE seq = 1",
        "INSERT OR REPLACE INTO custody SELECT 3, format, at, run, job, action, directory, name, \
         body, hash FROM custody WHERE seq = 1",
    ] {
        let error = connection.execute(sql, []).unwrap_err();
        assert!(
            error.to_string().contains("custody records are"),
            "{sql}: {error}"
        );
    }
}

#[test]
fn k11_every_kind_of_tampering_is_found_where_it_begins() {
    let hash = "(SELECT hash FROM custody WHERE seq = 5)";
    let cases = [
        (
            "UPDATE custody SET at = at + 1 WHERE seq = 4",
            4,
            ChainDefect::Changed,
        ),
        (
            "UPDATE custody SET run = 8 WHERE seq = 4",
            4,
            ChainDefect::Changed,
        ),
        (
            "UPDATE custody SET job = 'other' WHERE seq = 4",
            4,
            ChainDefect::Changed,
        ),
        (
            "UPDATE custody SET action = 2 WHERE seq = 4",
            4,
            ChainDefect::Changed,
        ),
        (
            "UPDATE custody SET name = CAST('g' AS BLOB) WHERE seq = 4",
            4,
            ChainDefect::Changed,
        ),
        (
            "UPDATE custody SET directory = x'' WHERE seq = 4",
            4,
            ChainDefect::Changed,
        ),
        (
            "UPDATE custody SET body = CAST(body || 'x' AS BLOB) WHERE seq = 4",
            4,
            ChainDefect::Changed,
        ),
        (
            "UPDATE custody SET hash = zeroblob(32) WHERE seq = 4",
            4,
            ChainDefect::Changed,
        ),
        (
            "UPDATE custody SET hash = x'00' WHERE seq = 4",
            4,
            ChainDefect::Unreadable,
        ),
        (
            "UPDATE custody SET format = 9 WHERE seq = 4",
            4,
            ChainDefect::Unreadable,
        ),
        ("DELETE FROM custody WHERE seq = 4", 4, ChainDefect::Removed),
        ("DELETE FROM custody WHERE seq = 1", 1, ChainDefect::Removed),
        ("DELETE FROM custody WHERE seq > 7", 8, ChainDefect::Removed),
        ("DELETE FROM custody", 1, ChainDefect::Removed),
        (
            "DELETE FROM custody WHERE seq = 4; UPDATE custody SET seq = seq - 1 WHERE seq > 4",
            4,
            ChainDefect::Changed,
        ),
        (
            "UPDATE custody SET seq = 100 WHERE seq = 4; UPDATE custody SET seq = 4 WHERE seq = 5; \
             UPDATE custody SET seq = 5 WHERE seq = 100",
            4,
            ChainDefect::Changed,
        ),
        (
            "INSERT INTO custody SELECT 11, format, at, run, job, action, directory, name, body, \
             hash FROM custody WHERE seq = 10",
            11,
            ChainDefect::Added,
        ),
        ("UPDATE custody_head SET count = 9", 9, ChainDefect::Changed),
        (
            "UPDATE custody_head SET hash = zeroblob(32)",
            10,
            ChainDefect::Changed,
        ),
    ];
    for (sql, seq, defect) in cases {
        let fixture = Fixture::new();
        let head = ten(&fixture.store);
        tamper(&fixture.state(), sql);
        let verdict = fixture.store.verify_chain(None).unwrap();
        assert_eq!(verdict, ChainVerdict::Broken { seq, defect }, "{sql}");
        assert_ne!(
            fixture.store.verify_chain(Some(&head)).unwrap(),
            ChainVerdict::Intact(head)
        );
    }
    // Cut at the end, and the end moved with it: only a noted end finds that.
    let fixture = Fixture::new();
    let head = ten(&fixture.store);
    tamper(
        &fixture.state(),
        &format!(
            "UPDATE custody_head SET count = 5, hash = {hash}; DELETE FROM custody WHERE seq > 5"
        ),
    );
    assert!(matches!(
        fixture.store.verify_chain(None).unwrap(),
        ChainVerdict::Intact(_)
    ));
    assert_eq!(
        fixture.store.verify_chain(Some(&head)).unwrap(),
        ChainVerdict::Broken {
            seq: 6,
            defect: ChainDefect::Removed
        }
    );
}

#[test]
fn k11_a_chain_that_was_made_anew_is_found_by_its_noted_end() {
    let fixture = Fixture::new();
    let noted = ten(&fixture.store);
    let forged = Fixture::new();
    let mut records: Vec<_> = (1..=12)
        .map(|number| record(&format!("d/f{number}"), Action::Created))
        .collect();
    records[3].size += 1;
    let head = append(&forged.store, records);
    assert_eq!(
        forged.store.verify_chain(None).unwrap(),
        ChainVerdict::Intact(head)
    );
    assert_eq!(
        forged.store.verify_chain(Some(&noted)).unwrap(),
        ChainVerdict::Broken {
            seq: 10,
            defect: ChainDefect::Rewritten
        }
    );
}

#[test]
fn two_stores_append_to_one_chain() {
    let fixture = Fixture::new();
    let second = open(&fixture.state());
    std::thread::scope(|scope| {
        for (name, store) in [("one", &fixture.store), ("two", &second)] {
            scope.spawn(move || {
                for number in 0..100 {
                    append(
                        store,
                        vec![record(&format!("{name}/{number}"), Action::Created); 3],
                    );
                }
            });
        }
    });
    let ChainVerdict::Intact(head) = second.verify_chain(None).unwrap() else {
        panic!("the chain is broken");
    };
    assert_eq!(head.count, 600);
}

#[test]
fn a_failed_append_leaves_no_gap() {
    let fixture = Fixture::new();
    let failed = fixture.store.transact(|tx| {
        tx.append_custody(&[record("a", Action::Created)])?;
        Err::<(), _>(knarr_store::StoreError::Unknown {
            what: "thing",
            id: 0,
        })
    });
    let kept = fixture
        .store
        .transact(|tx| tx.append_custody(&[record("b", Action::Created)]));
    assert!(failed.wait().is_err());
    let head = kept.wait().unwrap();
    assert_eq!(head.count, 1);
    assert_eq!(
        fixture.store.verify_chain(None).unwrap(),
        ChainVerdict::Intact(head)
    );
}

fn records() -> impl Strategy<Value = CustodyRecord> {
    let hashes = || any::<[u8; 32]>().prop_map(ContentHash::from_bytes);
    let evidence = prop_oneof![
        Just(Evidence::None),
        hashes().prop_map(|hash| Evidence::ReadBack { hash }),
        hashes().prop_map(|hash| Evidence::Written { hash }),
        ("\\PC{0,8}", "\\PC{0,8}")
            .prop_map(|(algorithm, value)| Evidence::ServerChecksum { algorithm, value }),
        "\\PC{0,8}".prop_map(|reason| Evidence::SizeOnly { reason }),
    ];
    let paths = proptest::collection::vec(any::<u8>(), 1..12)
        .prop_filter_map("a path", |bytes| RelPath::new(bytes).ok());
    let numbers = any::<(i64, u64, u64, u32, u64, u64)>();
    let optional = (
        any::<Option<i64>>(),
        proptest::option::of(hashes()),
        any::<Option<i64>>(),
        any::<Option<String>>(),
        any::<Option<String>>(),
    );
    let texts = any::<(String, String, String, String)>();
    (paths, evidence, numbers, optional, texts).prop_map(
        |(path, evidence, numbers, optional, texts)| {
            let mut record = record("x", Action::Conflict);
            record.path = path;
            record.evidence = evidence;
            record.at = Timestamp::from_nanoseconds(numbers.0);
            (record.run, record.size, record.attempt) = (numbers.1, numbers.2, numbers.3);
            (record.moved_bytes, record.duration_microseconds) = (numbers.4, numbers.5);
            record.mtime = optional.0.map(Timestamp::from_nanoseconds);
            record.source_hash = optional.1;
            record.seen_at = optional.2.map(Timestamp::from_nanoseconds);
            (record.complete_because, record.message) = (optional.3, optional.4);
            (
                record.job,
                record.source,
                record.destination,
                record.decided_by,
            ) = texts;
            record
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn any_record_reads_back(records in proptest::collection::vec(records(), 1..20)) {
        let fixture = Fixture::new();
        let head = append(&fixture.store, records.clone());
        let back: Vec<_> =
            fixture.store.custody_cursor(1).map(|record| record.unwrap().record).collect();
        prop_assert_eq!(back, records);
        prop_assert_eq!(fixture.store.verify_chain(None).unwrap(), ChainVerdict::Intact(head));
    }
}

#[test]
fn a_chained_record_is_plain_json() {
    let fixture = Fixture::new();
    append(&fixture.store, vec![record("d/f", Action::Created)]);
    let exported = fixture.store.custody_cursor(1).next().unwrap().unwrap();
    let json = serde_json::to_value(&exported).unwrap();
    assert_eq!(json["seq"], 1);
    assert_eq!(json["path"], "d/f");
    assert_eq!(json["hash"].as_str().unwrap().len(), 64);
    assert_eq!(exported.record.path, path("d/f"));
}
