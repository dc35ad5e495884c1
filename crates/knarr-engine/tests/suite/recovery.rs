//! What an interrupted run did and could not record.

mod meddling;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use knarr_core::job::{After, Verify};
use knarr_core::plan::Mode;
use knarr_core::record::{Action, Evidence};
use knarr_core::{ContentHash, RelPath};
use knarr_engine::observer::{Event, Observer};
use knarr_engine::oneshot::OneShot;
use knarr_remote::memory::{Fault, MemoryRemote};
use knarr_remote::operation::Operation;
use knarr_remote::{ErrorKind, Remote};
use knarr_store::PairId;
use knarr_store::intents::{Intended, IntentId, Verb};
use knarr_store::runs::RunId;
use knarr_store::synced::Side;

use self::meddling::Meddling;
use crate::node::records;
use crate::support::{World, command, local};

/// Longer than what a store in the network is trusted with by its length alone.
const LARGE_BYTES: usize = 9 << 20;

fn path(text: &str) -> RelPath {
    RelPath::new(text.as_bytes()).unwrap()
}

fn pair(world: &World) -> PairId {
    let pairs = world.store().read(|reader| reader.pairs()).unwrap();
    assert_eq!(pairs.len(), 1);
    pairs[0].id
}

fn open_intents(world: &World) -> usize {
    let pair = pair(world);
    let found = world
        .store()
        .read(|reader| reader.intents(pair, IntentId::FIRST, 100));
    found.unwrap().len()
}

/// What a run notes before it delivers `name` from `a` to `b`, or removes it at `b`.
async fn intended(world: &World, verb: Verb, name: &str, hash: Option<ContentHash>) -> Intended {
    let side = match verb {
        Verb::Deliver => "a",
        Verb::Remove => "b",
    };
    let entry = local(&world.path(side)).stat(&path(name)).await.unwrap();
    Intended {
        verb,
        to: Side::Destination,
        path: path(name),
        written_as: None,
        seen: entry.unwrap().fingerprint(),
        replaces: None,
        hash,
    }
}

async fn intend(world: &World, items: Vec<Intended>) {
    let pair = pair(world);
    let noted = world
        .store()
        .transact(move |tx| tx.intend(pair, RunId(1), &items));
    noted.await.unwrap();
}

fn set_time(world: &World, below: &str, time: SystemTime) {
    let file = std::fs::File::options()
        .write(true)
        .open(world.path(below))
        .unwrap();
    file.set_modified(time).unwrap();
}

/// The same name, length and time on both sides.
fn on_both_sides(world: &World, name: &str, here: &[u8], there: &[u8]) {
    world.write(&format!("a/{name}"), here);
    world.write(&format!("b/{name}"), there);
    let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000);
    for side in ["a", "b"] {
        set_time(world, &format!("{side}/{name}"), time);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k11_what_was_delivered_and_not_recorded_is_recorded_by_the_next_run() {
    let mut world = World::new();
    world.run(world.command(Mode::Copy)).await;
    on_both_sides(&world, "small", b"content", b"content");
    on_both_sides(&world, "large", b"CONTENT", b"CONTENT");
    let hash = Some(ContentHash::of(b"CONTENT"));
    let items = vec![
        intended(&world, Verb::Deliver, "small", None).await,
        intended(&world, Verb::Deliver, "large", hash).await,
    ];
    intend(&world, items).await;
    world.restart();
    let report = world.run(world.command(Mode::Copy)).await;
    assert_eq!(
        (report.adopted, report.created, report.sent_bytes),
        (2, 0, 0)
    );
    for (name, content) in [("small", b"content"), ("large", b"CONTENT")] {
        let found = records(&world, name);
        assert_eq!(found.len(), 1, "{found:?}");
        let hash = ContentHash::of(content);
        assert_eq!(found[0].action, Action::Created);
        assert_eq!(found[0].evidence, Evidence::ReadBack { hash });
        assert_eq!(found[0].source_hash, Some(hash));
        let message = found[0].message.as_deref().unwrap();
        assert!(
            message.contains("interrupted before the record"),
            "{message}"
        );
    }
    assert_eq!(open_intents(&world), 0);
    let again = world.run(world.command(Mode::Copy)).await;
    assert_eq!((again.adopted, again.created), (0, 0));
    assert_eq!(records(&world, "small").len(), 1);
    world.assert_chain();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k3_k11_what_was_meant_and_not_done_gets_no_record() {
    let world = World::new();
    world.run(world.command(Mode::Copy)).await;
    on_both_sides(&world, "other", b"content", b"CONTENT");
    on_both_sides(&world, "was-there", b"content", b"content");
    world.write("a/missing", b"content");
    let mut items = Vec::new();
    for name in ["other", "was-there", "missing"] {
        items.push(intended(&world, Verb::Deliver, name, None).await);
    }
    // What is there is still what the delivery was to replace.
    let there = local(&world.path("b")).stat(&path("was-there")).await;
    items[1].replaces = Some(there.unwrap().unwrap().fingerprint());
    intend(&world, items).await;
    let report = world.run(world.command(Mode::Copy)).await;
    assert_eq!((report.adopted, report.created), (0, 1));
    assert!(records(&world, "other").is_empty() && records(&world, "was-there").is_empty());
    let missing = records(&world, "missing");
    assert_eq!((missing.len(), missing[0].message.as_ref()), (1, None));
    assert_eq!(open_intents(&world), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k11_what_was_deleted_and_not_recorded_is_recorded_by_the_next_run() {
    let world = World::new();
    world.write("a/kept", b"1");
    world.write("a/gone", b"2");
    world.run(world.command(Mode::Mirror)).await;
    let item = intended(&world, Verb::Remove, "gone", None).await;
    intend(&world, vec![item]).await;
    for side in ["a", "b"] {
        std::fs::remove_file(world.path(side).join("gone")).unwrap();
    }
    let report = world.run(world.command(Mode::Mirror)).await;
    assert_eq!(report.deleted, 1);
    let actions: Vec<_> = records(&world, "gone").iter().map(|r| r.action).collect();
    assert!(actions.contains(&Action::Deleted), "{actions:?}");
    assert_eq!(open_intents(&world), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k11_a_run_that_ends_well_leaves_nothing_meant() {
    for (mode, after) in [
        (Mode::Copy, After::Keep),
        (Mode::Copy, After::Delete),
        (Mode::Mirror, After::Keep),
        (Mode::TwoWay, After::Keep),
    ] {
        let world = World::new();
        world.write("a/small", b"content");
        world.write("a/large", &vec![7; 5 << 20]);
        world.write("b/extra", b"only there");
        std::os::unix::fs::symlink("small", world.path("a/link")).unwrap();
        let mut command = world.command(mode);
        command.after = after.clone();
        let report = world.run(command).await;
        assert_eq!(report.failed, 0, "{mode:?} {:?}", world.seen.lines());
        assert_eq!(open_intents(&world), 0, "{mode:?} {after:?}");
    }
}

fn to<R: Remote + 'static>(world: &World, mode: Mode, destination: &Arc<R>) -> OneShot {
    let destination: Arc<R> = Arc::clone(destination);
    command(mode, local(&world.path("a")), destination)
}

fn actions(world: &World, of: &str) -> Vec<Action> {
    let found = records(world, of);
    found.into_iter().map(|record| record.action).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k3_what_a_run_proved_damaged_it_does_not_record_as_delivered() {
    let world = World::new();
    let store = Meddling::new();
    store.damaged_reads.store(u64::MAX, Ordering::SeqCst);
    world.write("a/large", &vec![7; LARGE_BYTES]);
    world.write("a/small", b"content");
    let mut command = to(&world, Mode::Copy, &store);
    command.verify = Verify::Full;
    let report = world.run(command).await;
    assert_eq!(
        (report.failed, report.created, report.adopted),
        (2, 0, 0),
        "{:?}",
        world.seen.lines()
    );
    for name in ["large", "small"] {
        let found = actions(&world, name);
        assert!(!found.is_empty(), "{name}");
        assert!(
            found.iter().all(|action| *action == Action::Failed),
            "{name} {found:?}"
        );
    }
    assert_eq!(open_intents(&world), 0);
    // Nothing is left that looks like them, so they come anew when the store is in order.
    store.damaged_reads.store(0, Ordering::SeqCst);
    let report = world.run(to(&world, Mode::Copy, &store)).await;
    assert_eq!((report.failed, report.created, report.adopted), (0, 2, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k3_what_was_damaged_is_replaced_by_the_next_attempt() {
    let world = World::new();
    let store = Meddling::new();
    store.damaged_reads.store(1, Ordering::SeqCst);
    world.write("a/file", b"content");
    let mut command = to(&world, Mode::Copy, &store);
    command.verify = Verify::Full;
    let report = world.run(command).await;
    assert_eq!((report.failed, report.created, report.adopted), (0, 1, 0));
    let found = records(&world, "file");
    let delivered: Vec<_> = found
        .iter()
        .filter(|record| record.action == Action::Created)
        .collect();
    assert_eq!(delivered.len(), 1, "{found:?}");
    let hash = ContentHash::of(b"content");
    assert_eq!(delivered[0].evidence, Evidence::ReadBack { hash });
    assert_eq!(delivered[0].attempt, 2);
    assert_eq!(actions(&world, "file").len(), 2);
    assert_eq!(open_intents(&world), 0);
    world.assert_chain();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k3_what_somebody_else_put_there_is_not_recorded_as_delivered() {
    let world = World::new();
    let store = Meddling::new();
    world.write("a/file", &vec![7; LARGE_BYTES]);
    *store.other.lock().unwrap() = Some(vec![8; LARGE_BYTES].into());
    let report = world.run(to(&world, Mode::Copy, &store)).await;
    assert_eq!((report.created, report.adopted), (0, 0));
    assert!(!actions(&world, "file").contains(&Action::Created));
    assert_eq!(open_intents(&world), 0);
}

/// Removes a file as soon as the first bytes were copied.
#[derive(Debug)]
struct RemovesOnProgress(std::path::PathBuf);

impl Observer for RemovesOnProgress {
    fn event(&self, event: &Event<'_>) {
        if matches!(event, Event::Progress { .. }) {
            std::fs::remove_file(&self.0).ok();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k11_one_file_of_a_batch_that_fails_gives_the_others_no_second_record() {
    let mut world = World::new();
    for name in ["1", "2", "3", "z"] {
        world.write(&format!("a/{name}"), b"content");
    }
    world.environment.observer = Arc::new(RemovesOnProgress(world.path("a/z")));
    let mut command = world.command(Mode::Copy);
    command.after = After::Delete;
    let report = world.run(command).await;
    assert_eq!((report.created, report.adopted), (3, 0));
    for name in ["1", "2", "3"] {
        let mut found = actions(&world, name);
        found.reverse();
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found.contains(&Action::Created) && found.contains(&Action::SourceRemoved));
        assert_eq!(world.read(&format!("a/{name}")), None);
    }
    assert!(records(&world, "z").is_empty());
    assert_eq!(open_intents(&world), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k5_k11_nothing_is_believed_of_a_destination_that_is_not_there_or_is_another() {
    let world = World::new();
    world.write("a/kept", b"1");
    world.write("a/gone", b"2");
    world.run(world.command(Mode::Mirror)).await;
    let item = intended(&world, Verb::Remove, "gone", None).await;
    intend(&world, vec![item]).await;
    std::fs::remove_file(world.path("a/gone")).unwrap();
    std::fs::rename(world.path("b"), world.path("mounted elsewhere")).unwrap();
    // First its place is not there; the run makes it, and then it is another directory.
    for _ in 0..2 {
        let report = world.run(world.command(Mode::Mirror)).await;
        assert_eq!(report.deleted, 0);
        assert!(!actions(&world, "gone").contains(&Action::Deleted));
        assert_eq!(open_intents(&world), 1);
    }
    std::fs::remove_dir_all(world.path("b")).unwrap();
    std::fs::rename(world.path("mounted elsewhere"), world.path("b")).unwrap();
    // The interrupted run had not come to it.
    let report = world.run(world.command(Mode::Mirror)).await;
    assert_eq!((report.deleted, open_intents(&world)), (1, 0));
    let deleted = records(&world, "gone");
    assert_eq!(deleted.iter().filter(|r| r.message.is_some()).count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k11_a_removal_whose_answer_was_lost_is_recorded_by_the_same_run() {
    let world = World::new();
    let store = Meddling::new();
    for name in ["1", "2", "3", "gone"] {
        world.write(&format!("a/{name}"), b"content");
    }
    world.run(to(&world, Mode::Mirror, &store)).await;
    std::fs::remove_file(world.path("a/gone")).unwrap();
    store.lost_removals.store(1, Ordering::SeqCst);
    let report = world.run(to(&world, Mode::Mirror, &store)).await;
    assert_eq!((report.deleted, report.failed), (1, 1));
    let found = actions(&world, "gone");
    assert!(
        found.contains(&Action::Deleted) && found.contains(&Action::Failed),
        "{found:?}"
    );
    assert_eq!(open_intents(&world), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k11_one_thing_that_cannot_be_looked_at_does_not_hold_up_the_others() {
    let world = World::new();
    let store = Arc::new(MemoryRemote::object_store());
    world.run(to(&world, Mode::Copy, &store)).await;
    let hash = Some(ContentHash::of(b"content"));
    let mut items = Vec::new();
    for name in ["told", "untold"] {
        world.write(&format!("a/{name}"), b"content");
        store.put(&path(name), "content").unwrap();
        items.push(intended(&world, Verb::Deliver, name, hash).await);
    }
    intend(&world, items.clone()).await;
    let fault = Fault::next(Operation::Stat, ErrorKind::Other).at(path("untold"));
    store.faults().add(fault);
    world.run(to(&world, Mode::Copy, &store)).await;
    assert_eq!(actions(&world, "told"), [Action::Created]);
    let pair = pair(&world);
    let left = world
        .store()
        .read(|reader| reader.intents(pair, IntentId::FIRST, 100))
        .unwrap();
    assert_eq!((left.len(), &left[0].items[..]), (1, &items[1..]));
    world.run(to(&world, Mode::Copy, &store)).await;
    assert_eq!(open_intents(&world), 0);
    assert_eq!(records(&world, "told").len(), 1);
    assert_eq!(records(&world, "untold").len(), 1);
}
