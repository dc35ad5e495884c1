//! What a job looks after from time to time: the destination's drift, and what nobody goes on with.

use std::sync::Arc;
use std::time::Duration;

use knarr_core::RelPath;
use knarr_core::entry::{Fingerprint, Kind};
use knarr_core::plan::Mode;
use knarr_core::record::Action;
use knarr_core::template::Template;
use knarr_remote::memory::{Fault, MemoryRemote};
use knarr_remote::operation::Operation;
use knarr_remote::{ErrorKind, Remote as _, Removal};
use knarr_store::uploads::{NewUpload, StoredUpload};

use crate::node::{Running, actions, job, queue_is_empty};
use crate::support::{World, eventually};

/// A test cannot wait a day, nor set the time at which an inode was changed.
const SOON: Duration = Duration::from_millis(1_500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k7_what_is_missing_or_was_changed_at_the_destination_is_delivered_again() {
    for template in ["", "in/{name}"] {
        let world = World::new();
        for name in ["kept", "missing", "changed"] {
            world.write(&format!("a/{name}"), b"as it was delivered");
        }
        let mut job = job(&world);
        job.verify_destination = Some(SOON);
        job.template = Template::parse(template).unwrap();
        let running = Running::start(&world, job);
        let at = |name: &str| format!("b/{}{name}", if template.is_empty() { "" } else { "in/" });
        for name in ["kept", "missing", "changed"] {
            eventually(name, || world.read(&at(name)).is_some()).await;
        }
        eventually("an empty queue", || queue_is_empty(&world)).await;
        std::fs::remove_file(world.path(&at("missing"))).unwrap();
        world.write(&at("changed"), b"edited there");
        for name in ["missing", "changed"] {
            eventually(name, || {
                world.read(&at(name)).as_deref() == Some(b"as it was delivered".as_slice())
            })
            .await;
        }
        eventually("an empty queue", || queue_is_empty(&world)).await;
        running.stop(&world).await;
        assert_eq!(actions(&world, "kept").len(), 1);
        let missing = actions(&world, "missing");
        assert!(
            missing.iter().any(|(action, _)| *action == Action::Failed),
            "the difference is on record: {missing:?}"
        );
        assert!(
            missing
                .iter()
                .any(|(_, because)| because.as_deref() == Some("is missing at the destination")),
            "{missing:?}"
        );
        let lines = world.seen.lines();
        assert!(
            lines
                .iter()
                .any(|line| line.contains("was changed at the destination")),
            "{lines:?}"
        );
        world.assert_chain();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k5_a_destination_that_lost_everything_is_taken_for_another_one() {
    let world = World::new();
    for number in 0..101 {
        world.write(&format!("a/{number}"), b"content");
    }
    let mut job = job(&world);
    job.verify_destination = Some(SOON);
    let running = Running::start(&world, job);
    eventually("all files", || {
        std::fs::read_dir(world.path("b")).unwrap().count() == 101 && queue_is_empty(&world)
    })
    .await;
    std::fs::remove_dir_all(world.path("b")).unwrap();
    std::fs::create_dir(world.path("b")).unwrap();
    eventually("the notice", || {
        let lines = world.seen.lines();
        lines
            .iter()
            .any(|line| line.contains("taken for another place"))
    })
    .await;
    running.stop(&world).await;
    assert_eq!(std::fs::read_dir(world.path("b")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k7_a_large_directory_that_is_gone_is_delivered_again_while_anything_else_is_there() {
    let world = World::new();
    let count = 1_500;
    for number in 0..count {
        world.write(&format!("a/gone/{number:04}"), b"content");
    }
    // What is there comes last, so that all that is missing is seen first.
    world.write("a/there", b"content");
    let mut job = job(&world);
    job.verify_destination = Some(Duration::from_secs(3_600));
    let running = Running::start(&world, job.clone());
    let delivered = || {
        let found = std::fs::read_dir(world.path("b/gone"));
        found.map_or(0, |found| found.filter_map(Result::ok).count())
    };
    eventually("all files", || {
        delivered() == count && world.read("b/there").is_some() && queue_is_empty(&world)
    })
    .await;
    running.stop(&world).await;
    std::fs::remove_dir_all(world.path("b/gone")).unwrap();
    let mut world = world;
    world.restart();
    job.verify_destination = Some(SOON);
    let running = Running::start(&world, job);
    let delivered = || {
        let found = std::fs::read_dir(world.path("b/gone"));
        found.map_or(0, |found| found.filter_map(Result::ok).count())
    };
    eventually("all files again", || {
        delivered() == count && queue_is_empty(&world)
    })
    .await;
    running.stop(&world).await;
    let lines = world.seen.lines();
    assert!(
        !lines.iter().any(|line| line.contains("another place")),
        "{lines:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k7_a_comparison_that_did_not_reach_its_end_does_not_count_as_one() {
    let world = World::new();
    world.write("a/x", b"content");
    let mut job = job(&world);
    job.verify_destination = Some(SOON);
    let running = Running::start(&world, job);
    eventually("the file", || {
        world.read("b/x").is_some() && queue_is_empty(&world)
    })
    .await;
    let verified = || {
        let pairs = world.store().read(|reader| reader.pairs()).unwrap();
        let name = format!("verified.{}", pairs[0].id.number());
        world.store().read(|reader| reader.setting(&name)).unwrap()
    };
    std::fs::remove_dir_all(world.path("b")).unwrap();
    let refused = || {
        let lines = world.seen.lines();
        let refused = |line: &&String| line.contains("cannot be compared");
        lines.iter().filter(refused).count()
    };
    eventually("a comparison in vain", || refused() >= 1).await;
    let before = verified();
    let known = refused();
    eventually("another one", || refused() > known).await;
    assert_eq!(verified(), before);
    std::fs::create_dir(world.path("b")).unwrap();
    eventually("one that works", || verified() != before).await;
    running.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k7_what_cannot_be_looked_at_is_told_and_the_rest_is_compared() {
    let world = World::new();
    let names = ["kept", "missing", "unreadable"];
    for name in names {
        world.write(&format!("a/{name}"), b"as it was delivered");
    }
    let destination = Arc::new(MemoryRemote::new());
    let at = |name: &str| RelPath::new(name.as_bytes()).unwrap();
    let mut job = job(&world);
    job.destination = Arc::<MemoryRemote>::clone(&destination);
    job.verify_destination = Some(SOON);
    let running = Running::start(&world, job);
    for name in names {
        eventually(name, || destination.content(&at(name)).is_some()).await;
    }
    eventually("an empty queue", || queue_is_empty(&world)).await;
    let fault = Fault::next(Operation::Stat, ErrorKind::Other);
    let always = fault.times(u64::MAX).at(at("unreadable"));
    destination.faults().add(always);
    let removal = |name: &str| Removal {
        path: at(name),
        kind: Kind::File,
        seen: None,
    };
    let removals = [removal("unreadable"), removal("missing")];
    for removed in destination.remove(&removals).await {
        removed.unwrap();
    }
    eventually("what is missing", || {
        destination.content(&at("missing")).is_some()
    })
    .await;
    eventually("that it is told", || {
        let lines = world.seen.lines();
        lines
            .iter()
            .any(|line| line.contains("unreadable") && line.contains("cannot be compared"))
    })
    .await;
    running.stop(&world).await;
}

fn upload(world: &World, destination: &str, expires_at: knarr_core::Timestamp) {
    let pairs = world.store().read(|reader| reader.pairs()).unwrap();
    let id = pairs[0].id;
    let new = NewUpload {
        pair: Some(id),
        endpoint: pairs[0].known_as.destination.clone(),
        destination: destination.as_bytes().to_vec(),
        upload: "not of this place".to_owned(),
        part_bytes: 0,
        total_bytes: 1,
        source: Fingerprint {
            kind: Kind::File,
            size: 1,
            mtime: None,
            identity: None,
            link_target: None,
        },
        expires_at,
    };
    let begun = world.store().transact(move |tx| tx.begin_upload(&new));
    begun.wait().unwrap();
}

fn uploads(world: &World) -> Vec<Vec<u8>> {
    let found = world.store().read(|reader| reader.uploads(10)).unwrap();
    let destination = |upload: StoredUpload| upload.begun_as.destination;
    found.into_iter().map(destination).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k9_an_upload_is_given_up_by_the_next_command_when_its_time_is_over_and_not_before() {
    let world = World::new();
    world.run(world.command(Mode::Copy)).await;
    let now = world.environment.clock.now();
    upload(&world, "large", now);
    upload(&world, "large", now.after(Duration::from_secs(3_600)));
    world.run(world.command(Mode::Copy)).await;
    assert_eq!(uploads(&world).len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k9_a_node_gives_up_no_upload_whose_file_waits_for_its_delivery() {
    let mut world = World::new();
    world.write("a/large", b"content");
    let mut job = job(&world);
    // It waits for longer than the test takes.
    job.settle = Duration::from_secs(3_600);
    let running = Running::start(&world, job.clone());
    eventually("that it waits", || !queue_is_empty(&world)).await;
    running.stop(&world).await;
    let now = world.environment.clock.now();
    upload(&world, "large", now.before(Duration::from_secs(60)));
    upload(&world, "of nobody", now);
    world.restart();
    let running = Running::start(&world, job);
    // The older one is looked at first.
    eventually("that one goes", || uploads(&world).len() < 2).await;
    running.stop(&world).await;
    assert_eq!(uploads(&world), [b"large".to_vec()]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k9_a_node_removes_staged_files_that_nobody_touched_for_long_and_no_others() {
    let mut world = World::new();
    let staged = "sub/.knarr-0123456789abcdef.part";
    world.write(&format!("b/{staged}"), b"half");
    world.write("b/sub/.knarr-notes", b"of somebody");
    world.write("a/x", b"content");
    let running = Running::start(&world, job(&world));
    eventually("the file", || world.read("b/x").is_some()).await;
    eventually("an empty queue", || queue_is_empty(&world)).await;
    running.stop(&world).await;
    assert!(world.read(&format!("b/{staged}")).is_some(), "it is young");
    world.restart();
    world.environment.keep_unfinished = Duration::ZERO;
    let running = Running::start(&world, job(&world));
    eventually("that it goes", || {
        world.read(&format!("b/{staged}")).is_none()
    })
    .await;
    running.stop(&world).await;
    assert!(world.read("b/sub/.knarr-notes").is_some());
    assert!(world.read("b/x").is_some());
    assert_eq!(actions(&world, "x").len(), 1);
}
