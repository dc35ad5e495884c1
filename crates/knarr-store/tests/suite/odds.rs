//! The smaller tables.

use std::time::Duration;

use knarr_core::ContentHash;
use knarr_core::entry::Kind;
use knarr_store::deletions::{Deletion, Direction};
use knarr_store::endpoints::Reachable;
use knarr_store::holds::{Approved, NewHold};
use knarr_store::in_flight::InFlight;
use knarr_store::partials::Partial;
use knarr_store::runs::RunId;
use knarr_store::synced::{Recognise, Side};
use knarr_store::uploads::{NewUpload, Part};
use knarr_store::{PAGE_ROWS, Tx};

use crate::fixture::{Fixture, START, fingerprint, open, pair, path, synced};

#[test]
fn a_pair_keeps_its_number_and_a_forgotten_one_leaves_nothing() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let one = pair(store, "one");
    assert_eq!(pair(store, "one"), one);
    store
        .transact(move |tx| tx.upsert_synced(one, Recognise::Source, &[synced("a", Kind::File, 1)]))
        .wait()
        .unwrap();
    store
        .transact(move |tx| tx.forget_pair(one))
        .wait()
        .unwrap();
    assert_eq!(store.read(|reader| reader.find_pair("one")).unwrap(), None);
    assert_eq!(store.read(|reader| reader.count_synced(one)).unwrap(), 0);
    assert_ne!(pair(store, "one"), one);
}

#[test]
fn k9_an_upload_is_found_again_with_every_part_that_was_acknowledged() {
    let fixture = Fixture::new();
    let one = pair(&fixture.store, "one");
    let new = NewUpload {
        pair: Some(one),
        endpoint: "s3://bucket".to_owned(),
        destination: b"raw//odd/../key".to_vec(),
        upload: "server-id".to_owned(),
        part_bytes: 8 << 20,
        total_bytes: 100 << 20,
        source: fingerprint(Kind::File, 100 << 20, 5),
        expires_at: START.after(Duration::from_secs(3_600)),
    };
    let begun = new.clone();
    let id = fixture
        .store
        .transact(move |tx| tx.begin_upload(&begun))
        .wait()
        .unwrap();
    let part = |number: u32| Part {
        number,
        receipt: format!("etag{number}"),
        checksum: (number == 2).then(|| "crc".to_owned()),
        size: 8 << 20,
    };
    for number in [3, 1, 2] {
        fixture
            .store
            .transact(move |tx| tx.add_parts(id, &[part(number)]))
            .wait()
            .unwrap();
    }
    let state = fixture.state();
    let Fixture {
        store, directory, ..
    } = fixture;
    drop(store);
    let store = open(&state);
    let found = store
        .read(|reader| reader.uploads_to("s3://bucket", b"raw//odd/../key"))
        .unwrap();
    assert_eq!((found.len(), &found[0].begun_as), (1, &new));
    assert_eq!(
        store.read(|reader| reader.parts(id)).unwrap(),
        [part(1), part(2), part(3)]
    );
    let expired = |seconds| {
        let now = START.after(Duration::from_secs(seconds));
        store
            .read(|reader| reader.expired_uploads(now, 10))
            .unwrap()
            .len()
    };
    assert_eq!((expired(3_599), expired(3_600)), (0, 1));
    store
        .transact(move |tx| tx.extend_upload(id, START.after(Duration::from_secs(9_000))))
        .wait()
        .unwrap();
    assert_eq!(expired(3_600), 0);
    assert_eq!(store.read(|reader| reader.uploads(10)).unwrap().len(), 1);
    store
        .transact(move |tx| tx.remove_upload(id))
        .wait()
        .unwrap();
    assert_eq!(store.read(|reader| reader.parts(id)).unwrap(), []);
    let late = store
        .transact(move |tx| tx.add_parts(id, &[part(4)]))
        .wait();
    assert!(late.is_err(), "a part of an upload that is gone");
    drop(directory);
}

#[test]
fn k9_a_partial_file_is_found_with_its_offset() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let partial = |acknowledged_bytes| Partial {
        endpoint: "sftp://host".to_owned(),
        path: path("a/b"),
        staged: path("a/.knarr-1.part"),
        source: fingerprint(Kind::File, 100, 1),
        total_bytes: 100,
        acknowledged_bytes,
        updated_at: START,
    };
    for bytes in [10, 50] {
        store
            .transact(move |tx| tx.upsert_partial(&partial(bytes)))
            .wait()
            .unwrap();
    }
    let find = || {
        store
            .read(|reader| reader.partial("sftp://host", &path("a/b")))
            .unwrap()
    };
    assert_eq!(find(), Some(partial(50)));
    assert_eq!(
        store
            .read(|reader| reader.partial("sftp://other", &path("a/b")))
            .unwrap(),
        None
    );
    fixture.clock.advance(Duration::from_secs(10));
    let old = |seconds| {
        let before = START.after(Duration::from_secs(seconds));
        store
            .read(|reader| reader.expired_partials(before, 10))
            .unwrap()
            .len()
    };
    assert_eq!((old(0), old(1)), (0, 1));
    store
        .transact(|tx| tx.remove_partial("sftp://host", &path("a/b")))
        .wait()
        .unwrap();
    assert_eq!(find(), None);
}

#[test]
fn the_spool_of_deletions_is_walked_both_ways() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let (run, count) = (RunId(5), PAGE_ROWS + 10);
    let deletion = |number: usize| Deletion {
        side: Side::Destination,
        path: path(&format!("{number:05}")),
        seen: fingerprint(Kind::File, number as u64, 1),
    };
    for half in [0..count / 2, count / 2..count] {
        let deletions: Vec<_> = half.map(deletion).collect();
        store
            .transact(move |tx| tx.spool_deletions(run, &deletions))
            .wait()
            .unwrap();
    }
    store
        .transact(move |tx| tx.spool_deletions(RunId(6), &[deletion(1)]))
        .wait()
        .unwrap();
    assert_eq!(
        store.read(|reader| reader.count_deletions(run)).unwrap(),
        count as u64
    );
    let walk = |direction| {
        store
            .deletion_cursor(run, direction)
            .map(Result::unwrap)
            .collect::<Vec<_>>()
    };
    let mut expected: Vec<_> = (0..count).map(deletion).collect();
    assert_eq!(walk(Direction::Forwards), expected);
    expected.reverse();
    assert_eq!(walk(Direction::Backwards), expected);
    store
        .transact(move |tx| tx.clear_deletions(run))
        .wait()
        .unwrap();
    assert_eq!(walk(Direction::Forwards), []);
    // Run 6 was never begun, so its spool is stale.
    assert_eq!(
        store
            .transact(|tx| tx.clear_stale_deletions())
            .wait()
            .unwrap(),
        1
    );
}

#[test]
fn k5_an_approval_is_for_the_plan_that_was_seen() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let pair = pair(store, "one");
    let plan = |text: &str| NewHold {
        kind: "mass deletion".to_owned(),
        deletes: 500,
        total: 600,
        reason: "500 of 600 files".to_owned(),
        digest: ContentHash::of(text.as_bytes()),
    };
    let hold = |text: &'static str| {
        store
            .transact(move |tx| tx.hold(pair, &plan(text)))
            .wait()
            .unwrap();
    };
    let approve = |text: &'static str| {
        store
            .transact(move |tx| tx.approve(pair, &plan(text).digest, "anna"))
            .wait()
            .unwrap()
    };
    let held = || store.read(|reader| reader.held(pair)).unwrap();
    assert_eq!(approve("a"), Approved::NothingHeld);
    hold("a");
    assert_eq!(approve("b"), Approved::AnotherPlan);
    assert_eq!(held().unwrap().approval, None);
    assert_eq!(approve("a"), Approved::Done);
    hold("a");
    assert_eq!(held().unwrap().approval.unwrap().by, "anna");
    hold("b");
    assert_eq!(held().unwrap().approval, None, "another plan");
    assert_eq!(store.read(|reader| reader.holds()).unwrap().len(), 1);
    store
        .transact(move |tx| tx.clear_hold(pair))
        .wait()
        .unwrap();
    assert_eq!(held(), None);
}

#[test]
fn roots_endpoints_and_settings_are_kept() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let pair = pair(store, "one");
    let set = |state| {
        store
            .transact(move |tx: &mut Tx<'_>| {
                tx.set_known_root(pair, Side::Source, "ext4 1234", Some("marker"))?;
                tx.set_endpoint("partner", state, Some("refused"), Some(START))
            })
            .wait()
            .unwrap();
        store
            .read(|reader| reader.endpoint("partner"))
            .unwrap()
            .unwrap()
    };
    assert_eq!(set(Reachable::Down).since, START);
    fixture.clock.advance(Duration::from_secs(5));
    let still = set(Reachable::Down);
    assert_eq!(
        (still.since, still.seen_at),
        (START, START.after(Duration::from_secs(5)))
    );
    assert_eq!(
        set(Reachable::Up).since,
        START.after(Duration::from_secs(5))
    );
    let all = store.read(|reader| reader.endpoints()).unwrap();
    assert_eq!((all.len(), all[0].0.as_str()), (1, "partner"));
    let root = |side| store.read(|reader| reader.known_root(pair, side)).unwrap();
    assert_eq!(
        root(Side::Source).unwrap().marker.as_deref(),
        Some("marker")
    );
    assert_eq!(root(Side::Destination), None);
    store
        .transact(|tx| tx.set_setting("schema_version", "mine"))
        .wait()
        .unwrap();
    store
        .transact(|tx| tx.remove_setting("nothing"))
        .wait()
        .unwrap();
    let id = store.node_id().unwrap();
    let second = open(&fixture.state());
    assert_eq!(second.node_id().unwrap(), id);
    assert_eq!(id.to_string().len(), 32);
}

#[test]
fn what_is_in_flight_is_replaced_as_a_whole() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let pair = pair(store, "one");
    let file = |name: &str, done_bytes| InFlight {
        path: path(name),
        done_bytes,
        total_bytes: 100,
        started_at: START,
    };
    let set = |files: Vec<InFlight>| {
        store
            .transact(move |tx| tx.set_in_flight(pair, &files))
            .wait()
            .unwrap();
        store.read(|reader| reader.in_flight(pair)).unwrap()
    };
    assert_eq!(set(vec![file("a", 1), file("b", 2)]).len(), 2);
    assert_eq!(set(vec![file("b", 50)]), [file("b", 50)]);
    assert_eq!(set(Vec::new()), []);
}
