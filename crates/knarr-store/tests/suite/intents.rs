//! What is about to be done, and is not on record yet.

use knarr_core::ContentHash;
use knarr_core::entry::Kind;
use knarr_store::intents::{Intended, IntentId, Verb};
use knarr_store::runs::RunId;
use knarr_store::synced::Side;

use crate::fixture::{Fixture, START, fingerprint, open, pair, path};

fn items() -> Vec<Intended> {
    vec![
        Intended {
            verb: Verb::Deliver,
            to: Side::Destination,
            path: path("docs/a.txt"),
            written_as: None,
            seen: fingerprint(Kind::File, 10, 7),
            replaces: Some(fingerprint(Kind::File, 9, 8)),
            hash: Some(ContentHash::of(b"content")),
        },
        Intended {
            verb: Verb::Deliver,
            to: Side::Source,
            path: path("b"),
            written_as: Some(path("b (2)")),
            seen: fingerprint(Kind::Symlink, 3, 9),
            replaces: None,
            hash: None,
        },
        Intended {
            verb: Verb::Remove,
            to: Side::Destination,
            path: path("gone"),
            written_as: None,
            seen: fingerprint(Kind::File, 0, 10),
            replaces: None,
            hash: None,
        },
    ]
}

#[test]
fn k11_what_was_meant_reads_back_until_it_is_forgotten_and_also_after_a_restart() {
    let fixture = Fixture::new();
    let (mine, other) = (pair(&fixture.store, "mine"), pair(&fixture.store, "other"));
    let (first, second) = fixture
        .store
        .transact(move |tx| {
            let first = tx.intend(mine, RunId(7), &items())?;
            tx.intend(other, RunId(8), &items())?;
            Ok((first, tx.intend(mine, RunId(9), &[])?))
        })
        .wait()
        .unwrap();
    let state = fixture.state();
    let directory = fixture.directory;
    drop(fixture.store);
    let store = open(&state);
    let found = store
        .read(|reader| reader.intents(mine, IntentId::FIRST, 10))
        .unwrap();
    assert_eq!(found.len(), 2);
    assert_eq!(
        (found[0].id, found[0].run, found[0].at),
        (first, RunId(7), START)
    );
    assert_eq!(found[0].items, items());
    assert_eq!(found[0].items[1].at(), &path("b (2)"));
    assert!(found[1].items.is_empty());
    let rest = store
        .read(|reader| reader.intents(mine, first, 10))
        .unwrap();
    assert_eq!(
        rest.iter().map(|intent| intent.id).collect::<Vec<_>>(),
        [second]
    );
    store
        .transact(move |tx| tx.narrow_intent(first, &items()[..1]))
        .wait()
        .unwrap();
    let narrowed = store
        .read(|reader| reader.intents(mine, IntentId::FIRST, 1))
        .unwrap();
    assert_eq!((narrowed[0].id, narrowed[0].run), (first, RunId(7)));
    assert_eq!(narrowed[0].items, items()[..1]);
    store
        .transact(move |tx| {
            tx.remove_intent(first)?;
            tx.remove_intent(second)
        })
        .wait()
        .unwrap();
    let none = store
        .read(|reader| reader.intents(mine, IntentId::FIRST, 10))
        .unwrap();
    assert!(none.is_empty());
    store
        .transact(move |tx| tx.forget_pair(other))
        .wait()
        .unwrap();
    let none = store
        .read(|reader| reader.intents(other, IntentId::FIRST, 10))
        .unwrap();
    assert!(none.is_empty());
    drop(directory);
}
