//! The queue: what it keeps, what it gives out and when.

use std::time::Duration;

use knarr_core::entry::Kind;
use knarr_store::Store;
use knarr_store::dirty::{Dirty, DirtyCounts, DirtyFilter, Mark, Next, Seen, Settled};
use knarr_store::pairs::PairId;

use crate::fixture::{Fixture, START, fingerprint, pair, path};

pub(crate) fn mark(text: &str, size: Option<u64>) -> Mark {
    Mark {
        path: path(text),
        kind: Kind::File,
        observed: size.map(|size| fingerprint(Kind::File, size, 1)),
        seen: Seen::Event,
        at: START,
        ready_at: START,
        complete_because: None,
        renamed_from: None,
    }
}

pub(crate) fn put(store: &Store, pair: PairId, mark: Mark) {
    store
        .transact(move |tx| tx.mark_dirty(pair, &[mark]))
        .wait()
        .unwrap();
}

pub(crate) fn row(store: &Store, pair: PairId, text: &str) -> Option<Dirty> {
    store
        .read(|reader| reader.dirty(pair, &path(text)))
        .unwrap()
}

fn settle(store: &Store, pair: PairId, dirty: &Dirty) -> Settled {
    let (path, generation) = (dirty.path.clone(), dirty.generation);
    store
        .transact(move |tx| tx.settle(pair, &path, generation))
        .wait()
        .unwrap()
}

#[test]
fn an_edit_that_arrives_in_flight_stays_dirty_even_if_it_looks_the_same() {
    let fixture = Fixture::new();
    let pair = pair(&fixture.store, "one");
    put(&fixture.store, pair, mark("a", Some(1)));
    let taken = row(&fixture.store, pair, "a").unwrap();
    put(&fixture.store, pair, mark("a", Some(1)));
    assert_eq!(settle(&fixture.store, pair, &taken), Settled::Newer);
    let taken = row(&fixture.store, pair, "a").unwrap();
    put(
        &fixture.store,
        pair,
        Mark {
            seen: Seen::Scan,
            ..mark("a", Some(1))
        },
    );
    assert_eq!(
        settle(&fixture.store, pair, &taken),
        Settled::Done,
        "a scan saw nothing new"
    );
    assert_eq!(settle(&fixture.store, pair, &taken), Settled::Absent);
}

#[test]
fn a_late_answer_about_a_path_that_came_back_means_nothing() {
    let fixture = Fixture::new();
    let pair = pair(&fixture.store, "one");
    put(&fixture.store, pair, mark("a", Some(1)));
    let first = row(&fixture.store, pair, "a").unwrap();
    assert_eq!(settle(&fixture.store, pair, &first), Settled::Done);
    put(&fixture.store, pair, mark("a", Some(1)));
    assert_eq!(settle(&fixture.store, pair, &first), Settled::Newer);
    let path = path("a");
    let failed = fixture
        .store
        .transact(move |tx| {
            tx.fail(
                pair,
                &path,
                first.generation,
                "late",
                &Next::Park("x".to_owned()),
            )
        })
        .wait()
        .unwrap();
    assert_eq!(failed, Settled::Newer);
    assert_eq!(row(&fixture.store, pair, "a").unwrap().parked, None);
}

#[test]
fn a_path_stands_once_whatever_kind_it_becomes() {
    let fixture = Fixture::new();
    let pair = pair(&fixture.store, "one");
    put(&fixture.store, pair, mark("a", Some(1)));
    put(
        &fixture.store,
        pair,
        Mark {
            kind: Kind::Directory,
            observed: Some(fingerprint(Kind::Directory, 0, 9)),
            ..mark("a", None)
        },
    );
    let all = |filter| {
        fixture
            .store
            .read(|reader| reader.list_dirty(pair, filter, b"", 10))
            .unwrap()
    };
    assert_eq!(all(DirtyFilter::All).len(), 1);
    assert_eq!(all(DirtyFilter::All)[0].kind, Kind::Directory);
}

#[test]
fn a_parked_path_waits_for_a_change_or_a_person() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let pair = pair(store, "one");
    put(store, pair, mark("a", Some(1)));
    let park = || {
        let taken = row(store, pair, "a").unwrap();
        store
            .transact(move |tx| {
                let next = Next::Park("permission denied".to_owned());
                tx.fail(pair, &taken.path, taken.generation, "denied", &next)
            })
            .wait()
            .unwrap()
    };
    assert_eq!(park(), Settled::Done);
    assert_eq!(
        store.read(|reader| reader.next_ready_at(pair)).unwrap(),
        None
    );
    assert_eq!(
        store
            .read(|reader| reader.ready(pair, START, b"", 10))
            .unwrap(),
        []
    );
    put(store, pair, mark("a", Some(1)));
    let same = row(store, pair, "a").unwrap();
    assert_eq!(
        (same.parked.as_deref(), same.attempts),
        (Some("permission denied"), 1)
    );
    put(store, pair, mark("a", Some(2)));
    let changed = row(store, pair, "a").unwrap();
    assert_eq!(
        (changed.parked, changed.attempts, changed.last_error),
        (None, 0, None)
    );
    park();
    let freed = store
        .transact(move |tx| tx.retry_now(pair, Some(&path("a"))))
        .wait()
        .unwrap();
    assert_eq!(freed, 1);
    assert_eq!(
        store.read(|reader| reader.next_ready_at(pair)).unwrap(),
        Some(START)
    );
}

#[test]
fn a_path_is_taken_when_it_settled_and_when_its_time_came_after_a_failure() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let pair = pair(store, "one");
    let seconds = |count| START.after(Duration::from_secs(count));
    put(
        store,
        pair,
        Mark {
            ready_at: seconds(2),
            ..mark("a", Some(1))
        },
    );
    let ready = |now| {
        store
            .read(|reader| reader.ready(pair, now, b"", 10))
            .unwrap()
            .len()
    };
    assert_eq!((ready(seconds(1)), ready(seconds(2))), (0, 1));
    // A scan that sees the same does not put it off; an event does.
    put(
        store,
        pair,
        Mark {
            seen: Seen::Scan,
            ready_at: seconds(9),
            ..mark("a", Some(1))
        },
    );
    assert_eq!(ready(seconds(2)), 1);
    put(
        store,
        pair,
        Mark {
            ready_at: seconds(5),
            ..mark("a", Some(1))
        },
    );
    assert_eq!((ready(seconds(4)), ready(seconds(5))), (0, 1));
    let taken = row(store, pair, "a").unwrap();
    store
        .transact(move |tx| {
            let next = Next::Retry(START.after(Duration::from_secs(60)));
            tx.fail(pair, &taken.path, taken.generation, "refused", &next)
        })
        .wait()
        .unwrap();
    assert_eq!((ready(seconds(59)), ready(seconds(60))), (0, 1));
    let counts = |now| store.read(|reader| reader.count_dirty(pair, now)).unwrap();
    assert_eq!(
        counts(seconds(59)),
        DirtyCounts {
            ready: 0,
            waiting: 1,
            parked: 0
        }
    );
    let next = store.read(|reader| reader.next_ready_at(pair)).unwrap();
    assert_eq!(next, Some(seconds(60)));
    let after = |now| {
        store
            .read(|reader| reader.next_ready_after(pair, now))
            .unwrap()
    };
    assert_eq!(
        (after(START), after(seconds(60))),
        (Some(seconds(60)), None)
    );
}

#[test]
fn a_path_that_is_put_off_waits_without_an_attempt_being_counted() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let pair = pair(store, "one");
    put(store, pair, mark("a", Some(1)));
    let taken = row(store, pair, "a").unwrap();
    let until = START.after(Duration::from_secs(5));
    let postpone = |taken: Dirty| {
        store
            .transact(move |tx| tx.postpone(pair, &taken.path, taken.generation, until))
            .wait()
            .unwrap()
    };
    assert_eq!(postpone(taken.clone()), Settled::Done);
    let waiting = row(store, pair, "a").unwrap();
    assert_eq!(
        (waiting.attempts, waiting.next_attempt_at),
        (0, Some(until))
    );
    put(store, pair, mark("a", Some(2)));
    assert_eq!(postpone(taken), Settled::Newer);
    assert_eq!(row(store, pair, "a").unwrap().next_attempt_at, None);
}

#[test]
fn what_is_gone_is_counted_but_for_directories() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let pair = pair(store, "one");
    put(store, pair, mark("gone", None));
    put(store, pair, mark("there", Some(1)));
    put(
        store,
        pair,
        Mark {
            kind: Kind::Directory,
            ..mark("directory", None)
        },
    );
    assert_eq!(store.read(|reader| reader.count_gone(pair)).unwrap(), 1);
}

#[test]
fn a_rename_stays_known_until_the_path_is_gone() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let pair = pair(store, "one");
    put(
        store,
        pair,
        Mark {
            renamed_from: Some(path("old")),
            ..mark("new", Some(1))
        },
    );
    put(store, pair, mark("new", Some(2)));
    assert_eq!(
        row(store, pair, "new").unwrap().renamed_from,
        Some(path("old"))
    );
    put(store, pair, mark("new", None));
    let gone = row(store, pair, "new").unwrap();
    assert_eq!((gone.renamed_from, gone.observed), (None, None));
}

#[test]
fn what_is_due_comes_in_tree_order_page_by_page() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let pair = pair(store, "one");
    store
        .transact(move |tx| {
            let marks: Vec<Mark> = (0..1_000)
                .rev()
                .map(|number| {
                    let later = START.after(Duration::from_secs(60));
                    let ready_at = if number % 10 == 0 { START } else { later };
                    Mark {
                        ready_at,
                        ..mark(&format!("{number:04}"), Some(number))
                    }
                })
                .collect();
            tx.mark_dirty(pair, &marks)
        })
        .wait()
        .unwrap();
    // Pages so small that most is due, and so large that little is.
    for page in [3, 70, 1_000] {
        let mut after = Vec::new();
        let mut seen = Vec::new();
        loop {
            let rows = store
                .read(|reader| reader.ready(pair, START, &after, page))
                .unwrap();
            let Some(last) = rows.last() else { break };
            after = last.path.order_key(last.kind).into_owned();
            seen.extend(rows.into_iter().map(|dirty| dirty.path.to_string()));
        }
        let expected: Vec<String> = (0..100)
            .map(|number| format!("{:04}", number * 10))
            .collect();
        assert_eq!(seen, expected);
    }
}

#[test]
fn settling_a_directory_leaves_what_was_seen_later() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let pair = pair(store, "one");
    for text in ["d/a", "d/b", "d!", "e"] {
        put(store, pair, mark(text, Some(1)));
    }
    let up_to = row(store, pair, "e").unwrap().generation;
    put(store, pair, mark("d/b", Some(2)));
    let gone = store
        .transact(move |tx| tx.settle_tree(pair, &path("d"), up_to))
        .wait()
        .unwrap();
    assert_eq!(gone, 1);
    assert!(row(store, pair, "d/a").is_none() && row(store, pair, "d/b").is_some());
}

#[test]
fn a_hundred_thousand_marks_at_once_are_all_there() {
    let fixture = Fixture::new();
    let pair = pair(&fixture.store, "one");
    let total = 100_000_u64;
    let pending: Vec<_> = (0..10)
        .map(|batch| {
            fixture.store.transact(move |tx| {
                let marks: Vec<Mark> = (batch * total / 10..(batch + 1) * total / 10)
                    .map(|number| mark(&format!("burst/{number:06}"), Some(number)))
                    .collect();
                tx.mark_dirty(pair, &marks)
            })
        })
        .collect();
    for pending in pending {
        pending.wait().unwrap();
    }
    let counts = fixture
        .store
        .read(|reader| reader.count_dirty(pair, START))
        .unwrap();
    assert_eq!(
        counts,
        DirtyCounts {
            ready: total,
            waiting: 0,
            parked: 0
        }
    );
}
