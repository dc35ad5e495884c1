//! The records of many files in one transaction.
//!
//! Who records leaves its changes here and waits. The first one has a transaction begun, which takes along
//! all that waits when the store's thread comes to it. So thousands of files share a savepoint and one
//! move of the chain's end, instead of paying for each. If such a transaction fails, its members are
//! tried one by one, so that only that one fails which is at fault.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use knarr_store::intents::{Intended, IntentId};
use knarr_store::runs::RunId;
use knarr_store::{Store, StoreError, Tx};
use tokio::sync::oneshot;

use super::Change;
use crate::announce::Announcing;
use crate::apply::Applying;
use crate::error::EngineError;

/// How many changes share a transaction; the last member may exceed it.
const CHANGES: usize = 2_048;

type Answer = Result<Vec<IntentId>, StoreError>;

/// What belongs together, and who waits for it.
struct Member {
    changes: Vec<Change>,
    /// What is about to be done: an intent for each.
    intended: Vec<Intended>,
    reply: oneshot::Sender<Answer>,
}

/// Members that share a transaction.
#[derive(Default)]
struct Shared {
    members: Vec<Member>,
    intents: Vec<Vec<IntentId>>,
    /// Whether somebody waits for another transaction.
    is_more_waiting: bool,
}

/// Records of one run on their way into the store.
pub(super) struct Group {
    store: Store,
    run: RunId,
    applying: Applying,
    announcing: Announcing,
    /// As long as there is something in it, a transaction is on its way that takes it.
    waiting: Mutex<Vec<Member>>,
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group")
            .field("run", &self.run)
            .finish_non_exhaustive()
    }
}

impl Group {
    pub(super) const fn new(
        store: Store,
        run: RunId,
        applying: Applying,
        announcing: Announcing,
    ) -> Self {
        let waiting = Mutex::new(Vec::new());
        Self {
            store,
            run,
            applying,
            announcing,
            waiting,
        }
    }

    /// Makes all of `changes` and notes each of `intended`, together or not at all; durable when this
    /// returns. What was handed in is carried out also if nobody waits any more.
    ///
    /// # Errors
    /// If that could not be made durable; then nothing of it was made.
    pub(super) async fn record(
        self: &Arc<Self>,
        changes: Vec<Change>,
        intended: Vec<Intended>,
    ) -> Result<Vec<IntentId>, EngineError> {
        let (reply, answer) = oneshot::channel();
        let member = Member {
            changes,
            intended,
            reply,
        };
        if self.add(member) {
            // Not by the caller, who may be given up while others wait for it.
            tokio::spawn(Arc::clone(self).write());
        }
        let answer = answer.await;
        answer
            .unwrap_or(Err(StoreError::Closed))
            .map_err(EngineError::Store)
    }

    /// Returns whether it is the first.
    fn add(&self, member: Member) -> bool {
        let mut waiting = lock(&self.waiting);
        waiting.push(member);
        waiting.len() == 1
    }

    async fn write(self: Arc<Self>) {
        loop {
            let shared = Arc::new(Mutex::new(Shared::default()));
            let (group, taking) = (Arc::clone(&self), Arc::clone(&shared));
            let written = self.store.transact(move |tx| {
                let mut shared = lock(&taking);
                group.take(&mut shared);
                shared.intents = group.apply_all(tx, &shared.members)?;
                Ok(())
            });
            let written = written.await;
            let mut shared = std::mem::take(&mut *lock(&shared));
            if written.is_err() && shared.members.is_empty() {
                // There was no transaction at all.
                self.take(&mut shared);
            }
            self.answer(shared.members, shared.intents, written).await;
            if !shared.is_more_waiting {
                return;
            }
        }
    }

    fn take(&self, shared: &mut Shared) {
        let mut waiting = lock(&self.waiting);
        let mut changes = 0;
        let fits = |member: &Member| {
            let before = changes;
            changes += member.changes.len() + member.intended.len();
            before < CHANGES
        };
        let count = waiting.iter().map(fits).take_while(|fits| *fits).count();
        shared.members = waiting.drain(..count).collect();
        shared.is_more_waiting = !waiting.is_empty();
    }

    fn apply_all(
        &self,
        tx: &mut Tx<'_>,
        members: &[Member],
    ) -> Result<Vec<Vec<IntentId>>, StoreError> {
        let mut intents = Vec::with_capacity(members.len());
        for member in members {
            self.applying.apply_to_tree(tx, &member.changes)?;
            let intend = |item| tx.intend(self.applying.pair, self.run, std::slice::from_ref(item));
            let made: Result<Vec<_>, _> = member.intended.iter().map(intend).collect();
            intents.push(made?);
        }
        let changes = members.iter().flat_map(|member| &member.changes);
        Applying::append_custody(tx, changes.clone())?;
        self.announcing.record(tx, changes)?;
        Ok(intents)
    }

    async fn answer(
        self: &Arc<Self>,
        members: Vec<Member>,
        intents: Vec<Vec<IntentId>>,
        written: Result<(), StoreError>,
    ) {
        let error = match written {
            Ok(()) => {
                self.announcing
                    .recorded(members.iter().flat_map(|member| &member.changes));
                for (member, intents) in members.into_iter().zip(intents) {
                    // Who was given up meanwhile needs no answer.
                    member.reply.send(Ok(intents)).ok();
                }
                return;
            }
            Err(error) => error,
        };
        let alone = members.len() == 1;
        for member in members {
            let Member {
                changes,
                intended,
                reply,
            } = member;
            let answer = if alone || is_everybodys(&error) {
                Err(error.clone())
            } else {
                self.write_alone(changes, intended).await
            };
            reply.send(answer).ok();
        }
    }

    async fn write_alone(
        self: &Arc<Self>,
        changes: Vec<Change>,
        intended: Vec<Intended>,
    ) -> Answer {
        let (group, (reply, _)) = (Arc::clone(self), oneshot::channel());
        let members = Arc::new([Member {
            changes,
            intended,
            reply,
        }]);
        let taking = Arc::clone(&members);
        let written = self
            .store
            .transact(move |tx| group.apply_all(tx, taking.as_slice()))
            .await;
        if written.is_ok() {
            self.announcing
                .recorded(members.iter().flat_map(|member| &member.changes));
        }
        written.map(|intents| intents.into_iter().flatten().collect())
    }
}

/// Whether it would have struck each of the members.
const fn is_everybodys(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::Full { .. }
            | StoreError::Busy { .. }
            | StoreError::Corrupt { .. }
            | StoreError::ReadOnly { .. }
            | StoreError::Undone
            | StoreError::Closed
    )
}

/// A panic under the lock leaves nothing half done: vectors are moved in and out whole.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use knarr_core::time::SystemClock;
    use knarr_core::{Kind, RelPath};
    use knarr_store::StoreOptions;
    use knarr_store::pairs::PairKey;
    use knarr_store::synced::Recognise;
    use tempfile::TempDir;

    use super::*;
    use crate::journal::PairLabel;

    fn path(text: &str) -> RelPath {
        RelPath::new(text.as_bytes()).unwrap()
    }

    async fn group(state: &TempDir) -> Arc<Group> {
        let options = StoreOptions::new(state.path(), Arc::new(SystemClock));
        let store = Store::open(options).unwrap().store;
        let key = PairKey {
            key: "pair".to_owned(),
            source: "/from".to_owned(),
            destination: "/to".to_owned(),
            job: None,
        };
        let pair = store.transact(move |tx| tx.pair(&key)).await.unwrap();
        let label = PairLabel {
            job: "copy".to_owned(),
            source: "/from".to_owned(),
            destination: "/to".to_owned(),
        };
        let applying = Applying {
            pair,
            recognise: Recognise::Source,
            label: Arc::new(label),
        };
        Arc::new(Group::new(store, RunId(1), applying, Announcing::default()))
    }

    fn intended(name: &str) -> Intended {
        use knarr_store::intents::Verb;
        let entry = knarr_core::Entry::file(path(name), 1);
        Intended {
            verb: Verb::Deliver,
            to: knarr_store::synced::Side::Destination,
            path: entry.path.clone(),
            written_as: None,
            seen: entry.fingerprint(),
            replaces: None,
            hash: None,
        }
    }

    fn forget(name: &str) -> Vec<Change> {
        let (path, kind) = (path(name), Kind::File);
        vec![Change::Forget { path, kind }]
    }

    /// Cannot be carried out.
    fn impossible() -> Vec<Change> {
        vec![Change::RenameSynced {
            from: path("a"),
            to: path("a/b"),
            source: None,
            destination: None,
        }]
    }

    fn noted(group: &Group) -> Vec<RelPath> {
        let open = group
            .store
            .read(|reader| reader.intents(group.applying.pair, IntentId::FIRST, 1_000))
            .unwrap();
        let mut paths: Vec<_> = open
            .into_iter()
            .flat_map(|intent| intent.items)
            .map(|item| item.path)
            .collect();
        paths.sort();
        paths
    }

    #[tokio::test]
    async fn k11_one_that_cannot_be_recorded_fails_alone() {
        let state = TempDir::new().unwrap();
        let group = group(&state).await;
        // Before the store's thread can take the first, all of them wait.
        let (go, wait) = std::sync::mpsc::channel();
        let held = group.store.transact(move |_| {
            wait.recv().unwrap();
            Ok(())
        });
        let records = (0..100).map(|number| {
            let changes = if number == 50 {
                impossible()
            } else {
                forget("x")
            };
            let group = Arc::clone(&group);
            async move {
                let intended = vec![intended(&format!("{number:03}"))];
                group.record(changes, intended).await
            }
        });
        let all = futures::future::join_all(records);
        let (answers, ()) = tokio::join!(all, async { go.send(()).unwrap() });
        held.await.unwrap();
        for (number, answer) in answers.iter().enumerate() {
            assert_eq!(answer.is_ok(), number != 50, "{number}: {answer:?}");
        }
        let ids: std::collections::BTreeSet<_> = answers.iter().flatten().flatten().collect();
        assert_eq!(ids.len(), 99, "each has an intent of its own");
        let expected: Vec<_> = (0..100)
            .filter(|number| *number != 50)
            .map(|number| path(&format!("{number:03}")))
            .collect();
        assert_eq!(noted(&group), expected);
    }

    #[tokio::test]
    async fn k11_who_is_given_up_takes_nobody_along() {
        let state = TempDir::new().unwrap();
        let group = group(&state).await;
        let mut first = Box::pin(group.record(Vec::new(), vec![intended("first")]));
        assert!(futures::poll!(first.as_mut()).is_pending());
        let second = group.record(Vec::new(), vec![intended("second")]);
        let (second, ()) = tokio::join!(second, async { drop(first) });
        assert_eq!(second.unwrap().len(), 1);
        assert_eq!(noted(&group), [path("first"), path("second")]);
    }

    #[tokio::test]
    async fn more_than_one_transaction_holds_are_recorded_one_after_the_other() {
        let state = TempDir::new().unwrap();
        let group = group(&state).await;
        let records = (0..3 * CHANGES / 1_000).map(|_| {
            let changes: Vec<_> = (0..1_000).flat_map(|_| forget("x")).collect();
            group.record(changes, vec![intended("y")])
        });
        let answers = futures::future::join_all(records).await;
        assert!(answers.iter().all(Result::is_ok), "{answers:?}");
        assert_eq!(noted(&group).len(), 3 * CHANGES / 1_000);
    }
}
