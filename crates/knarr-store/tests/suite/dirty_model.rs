//! The queue against a model: no observation is ever lost, none is ever settled by a stale answer.

use std::collections::HashMap;

use knarr_core::entry::Fingerprint;
use knarr_core::{RelPath, Timestamp};
use knarr_store::Store;
use knarr_store::dirty::{DirtyFilter, Generation, Next, Seen, Settled};
use knarr_store::pairs::PairId;
use proptest::prelude::*;

use crate::dirty::{mark, put, row};
use crate::fixture::{Fixture, open, pair};

#[derive(Debug, Clone)]
enum Step {
    Mark {
        name: usize,
        size: Option<u64>,
        seen: Seen,
        ready_at: i64,
    },
    Take(usize),
    Settle(usize),
    Retry(usize, i64),
    Park(usize),
    Reopen,
}

fn steps() -> impl Strategy<Value = Step> {
    let seen = prop_oneof![Just(Seen::Event), Just(Seen::Scan)];
    let sizes = proptest::option::weighted(0.8, 0_u64..3);
    prop_oneof![
        4 => (0_usize..4, sizes, seen, 0_i64..10)
            .prop_map(|(name, size, seen, ready_at)| Step::Mark { name, size, seen, ready_at }),
        3 => (0_usize..4).prop_map(Step::Take),
        2 => (0_usize..8).prop_map(Step::Settle),
        1 => (0_usize..8, 0_i64..10).prop_map(|(answer, at)| Step::Retry(answer, at)),
        1 => (0_usize..8).prop_map(Step::Park),
        1 => Just(Step::Reopen),
    ]
}

/// What the queue must know of one path.
#[derive(Debug, Clone, PartialEq)]
struct Known {
    observed: Option<Fingerprint>,
    /// Counts observations; what the store calls generation has other numbers.
    observation: u64,
    ready_at: i64,
    attempts: u32,
    next_attempt_at: Option<i64>,
    parked: bool,
}

/// An attempt in flight.
#[derive(Debug, Clone)]
struct Taken {
    path: RelPath,
    generation: Generation,
    observation: u64,
}

#[derive(Default)]
struct Model {
    rows: HashMap<RelPath, Known>,
    observations: u64,
}

impl Model {
    fn mark(&mut self, path: &RelPath, observed: Option<Fingerprint>, seen: Seen, ready_at: i64) {
        self.observations += 1;
        let fresh = Known {
            observed: observed.clone(),
            observation: self.observations,
            ready_at,
            attempts: 0,
            next_attempt_at: None,
            parked: false,
        };
        match self.rows.get_mut(path) {
            Some(known) if known.observed == observed => match seen {
                Seen::Event => {
                    known.observation = self.observations;
                    known.ready_at = ready_at;
                }
                Seen::Scan => known.ready_at = known.ready_at.min(ready_at),
            },
            _ => drop(self.rows.insert(path.clone(), fresh)),
        }
    }

    fn answer(&mut self, taken: &Taken, act: impl FnOnce(&mut Self, &RelPath)) -> Settled {
        match self.rows.get(&taken.path) {
            None => Settled::Absent,
            Some(known) if known.observation != taken.observation => Settled::Newer,
            Some(_) => {
                act(self, &taken.path);
                Settled::Done
            }
        }
    }
}

fn compare(store: &Store, pair: PairId, model: &Model) -> Result<(), TestCaseError> {
    let rows = store
        .read(|reader| reader.list_dirty(pair, DirtyFilter::All, b"", 100))
        .unwrap();
    prop_assert_eq!(rows.len(), model.rows.len());
    for dirty in &rows {
        let known = &model.rows[&dirty.path];
        prop_assert_eq!(&dirty.observed, &known.observed);
        prop_assert_eq!(dirty.ready_at.nanoseconds(), known.ready_at);
        prop_assert_eq!(dirty.attempts, known.attempts);
        prop_assert_eq!(
            dirty.next_attempt_at.map(Timestamp::nanoseconds),
            known.next_attempt_at
        );
        prop_assert_eq!(dirty.parked.is_some(), known.parked);
    }
    let due = |known: &Known| {
        known
            .next_attempt_at
            .map_or(known.ready_at, |at| at.max(known.ready_at))
    };
    for now in [0_i64, 3, 6, 10] {
        let at = Timestamp::from_nanoseconds(now);
        let ready = store
            .read(|reader| reader.ready(pair, at, b"", 100))
            .unwrap();
        let mut names: Vec<RelPath> = ready.into_iter().map(|dirty| dirty.path).collect();
        names.sort();
        let mut expected: Vec<RelPath> = model
            .rows
            .iter()
            .filter(|(_, known)| !known.parked && due(known) <= now)
            .map(|(path, _)| path.clone())
            .collect();
        expected.sort();
        prop_assert_eq!(names, expected);
    }
    let next = store.read(|reader| reader.next_ready_at(pair)).unwrap();
    let expected = model
        .rows
        .values()
        .filter(|known| !known.parked)
        .map(due)
        .min();
    prop_assert_eq!(next.map(Timestamp::nanoseconds), expected);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn the_queue_loses_no_observation_over_edits_stale_answers_and_restarts(
        steps in proptest::collection::vec(steps(), 1..30)
    ) {
        let fixture = Fixture::new();
        let pair = pair(&fixture.store, "one");
        let state = fixture.state();
        let Fixture { store, directory, .. } = fixture;
        let mut store = Some(store);
        let mut model = Model::default();
        let mut flying: Vec<Taken> = Vec::new();
        for step in steps {
            let now = store.as_ref().unwrap();
            match step {
                Step::Mark { name, size, seen, ready_at } => {
                    let text = ["a", "a/b", "a!", "b"][name];
                    let mut mark = mark(text, size);
                    mark.seen = seen;
                    mark.ready_at = Timestamp::from_nanoseconds(ready_at);
                    model.mark(&mark.path, mark.observed.clone(), seen, ready_at);
                    put(now, pair, mark);
                }
                Step::Take(name) => {
                    let text = ["a", "a/b", "a!", "b"][name];
                    if let Some(dirty) = row(now, pair, text) {
                        let observation = model.rows[&dirty.path].observation;
                        flying.push(Taken { path: dirty.path, generation: dirty.generation, observation });
                    }
                }
                Step::Settle(answer) if answer < flying.len() => {
                    let taken = flying[answer].clone();
                    let expected = model.answer(&taken, |model, path| drop(model.rows.remove(path)));
                    let settled = now
                        .transact(move |tx| tx.settle(pair, &taken.path, taken.generation)).wait().unwrap();
                    prop_assert_eq!(settled, expected);
                }
                Step::Retry(answer, at) if answer < flying.len() => {
                    let taken = flying[answer].clone();
                    let expected = model.answer(&taken, |model, path| {
                        let known = model.rows.get_mut(path).unwrap();
                        known.attempts += 1;
                        known.next_attempt_at = Some(at);
                        known.parked = false;
                    });
                    let next = Next::Retry(Timestamp::from_nanoseconds(at));
                    let failed = now
                        .transact(move |tx| tx.fail(pair, &taken.path, taken.generation, "e", &next)).wait().unwrap();
                    prop_assert_eq!(failed, expected);
                }
                Step::Park(answer) if answer < flying.len() => {
                    let taken = flying[answer].clone();
                    let expected = model.answer(&taken, |model, path| {
                        let known = model.rows.get_mut(path).unwrap();
                        known.attempts += 1;
                        known.next_attempt_at = None;
                        known.parked = true;
                    });
                    let next = Next::Park("reason".to_owned());
                    let failed = now
                        .transact(move |tx| tx.fail(pair, &taken.path, taken.generation, "e", &next)).wait().unwrap();
                    prop_assert_eq!(failed, expected);
                }
                Step::Settle(_) | Step::Retry(..) | Step::Park(_) => {}
                Step::Reopen => {
                    drop(store.take());
                    store = Some(open(&state));
                }
            }
        }
        compare(store.as_ref().unwrap(), pair, &model)?;
        drop(store);
        drop(directory);
    }
}
