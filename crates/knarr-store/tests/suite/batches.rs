//! What a run stages to publish it together.

use knarr_core::Timestamp;
use knarr_store::batches::{BatchFile, BatchId, BatchState, Claim, NewBatchFile, Turn};
use knarr_store::runs::RunId;
use knarr_store::{PairId, Store};

use crate::fixture::{Fixture, pair, path};

fn file(batch: BatchId, source: &str, to: &str, turn: Turn) -> NewBatchFile {
    NewBatchFile {
        batch,
        source: path(source),
        path: path(to),
        staged: Some(path(&format!(".staged-{to}"))),
        turn,
    }
}

fn claim(store: &Store, pair: PairId, new: NewBatchFile) -> Claim {
    store
        .transact(move |tx| tx.claim(pair, &new))
        .wait()
        .unwrap()
}

fn stage(store: &Store, pair: PairId, to: &str, item: &'static str) {
    let to = path(to);
    store
        .transact(move |tx| tx.set_staged(pair, &to, item))
        .wait()
        .unwrap();
}

fn begin(store: &Store, pair: PairId, run: u64) -> BatchId {
    store
        .transact(move |tx| tx.begin_batch(pair, RunId(run)))
        .wait()
        .unwrap()
}

fn names(files: &[BatchFile]) -> Vec<String> {
    files.iter().map(|f| f.begun_as.path.to_string()).collect()
}

#[test]
fn a_path_belongs_to_one_file_of_a_run_and_what_is_whole_is_known_to_the_next_run() {
    let fixture = Fixture::new();
    let (store, pair) = (&fixture.store, pair(&fixture.store, "batches"));
    let first = begin(store, pair, 1);
    let claimed = claim(store, pair, file(first, "a", "x", Turn::First));
    assert!(matches!(claimed, Claim::Free { earlier: None, .. }));
    let other = claim(store, pair, file(first, "b", "x", Turn::First));
    assert_eq!(other, Claim::Taken { by: path("a") });
    stage(store, pair, "x", "whole");
    // The next run finds it, and another file may go there now.
    let second = begin(store, pair, 2);
    let claimed = claim(store, pair, file(second, "a", "x", Turn::First));
    assert!(
        matches!(&claimed, Claim::Free { earlier: Some(item), .. } if item == "whole"),
        "{claimed:?}"
    );
    let third = begin(store, pair, 3);
    let claimed = claim(store, pair, file(third, "b", "x", Turn::First));
    assert!(
        matches!(claimed, Claim::Free { earlier: None, .. }),
        "{claimed:?}"
    );
}

#[test]
fn the_last_ones_come_when_all_others_are_through_and_a_decision_is_kept() {
    let fixture = Fixture::new();
    let (store, pair) = (&fixture.store, pair(&fixture.store, "batches"));
    let batch = begin(store, pair, 1);
    for (name, turn) in [("m", Turn::Last), ("a", Turn::First), ("b", Turn::First)] {
        claim(store, pair, file(batch, name, name, turn));
        stage(store, pair, name, "item");
    }
    let staged = |after| {
        store
            .read(|reader| reader.batch_files(batch, BatchState::Staged, after, 10))
            .unwrap()
    };
    let files = staged(None);
    assert_eq!(names(&files), ["a", "b"]);
    let last = files.last().unwrap();
    assert_eq!(names(&staged(Some((Turn::First, last.id)))), ["m"]);
    assert_eq!(
        store.read(|reader| reader.decided_batches(pair)).unwrap(),
        []
    );
    let ids: Vec<_> = files.iter().map(|file| file.id).collect();
    store
        .transact(move |tx| {
            tx.decide_batch(batch)?;
            ids.into_iter().try_for_each(|id| tx.set_published(id))
        })
        .wait()
        .unwrap();
    assert_eq!(names(&staged(None)), ["m"]);
    let decided = store.read(|reader| reader.decided_batches(pair)).unwrap();
    assert_eq!(decided, [batch]);
    let later = Timestamp::from_seconds(1 << 40);
    let abandoned = || {
        store
            .read(|reader| reader.abandoned_files(pair, RunId(2), later, 10))
            .unwrap()
    };
    assert_eq!(abandoned(), [], "what is decided is never given up");
    store
        .transact(move |tx| tx.undecide_batch(batch))
        .wait()
        .unwrap();
    let left = abandoned();
    assert_eq!(left.len(), 3);
    store
        .transact(move |tx| {
            tx.forget_batch_files(left.into_iter().map(|file| file.id))?;
            tx.forget_empty_batches(pair, RunId(2))?;
            tx.forget_pair(pair)
        })
        .wait()
        .unwrap();
    assert_eq!(abandoned(), []);
}
