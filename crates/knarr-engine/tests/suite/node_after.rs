//! What becomes of sources that were delivered before.

use knarr_core::job::After;
use knarr_core::record::Action;

use crate::node::{Running, actions, job, queue_is_empty, records};
use crate::support::{World, eventually};

/// A file that was delivered, by a job that keeps its sources.
async fn delivered() -> World {
    let mut world = World::new();
    world.write("a/x", b"delivered");
    let running = Running::start(&world, job(&world));
    eventually("the file", || world.read("b/x").is_some()).await;
    eventually("an empty queue", || queue_is_empty(&world)).await;
    running.stop(&world).await;
    world.restart();
    world
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k4_what_was_delivered_and_is_still_there_goes_when_the_delivery_is_proven() {
    for after in [After::Delete, After::Move("done/".to_owned())] {
        let world = delivered().await;
        let moved = after != After::Delete;
        let mut job = job(&world);
        job.after = after;
        let running = Running::start(&world, job);
        eventually("that it goes", || world.read("a/x").is_none()).await;
        eventually("an empty queue", || queue_is_empty(&world)).await;
        running.stop(&world).await;
        assert_eq!(world.read("a/done/x").is_some(), moved);
        let story: Vec<Action> = actions(&world, "x").into_iter().map(|(a, _)| a).collect();
        let last = if moved {
            Action::SourceMoved
        } else {
            Action::SourceRemoved
        };
        assert_eq!(story, [Action::Created, last]);
        // The record tells where the source is now, and not that anything came to the destination.
        let aside = world.path("a/done/x").display().to_string();
        let expected = if moved { aside } else { String::new() };
        let records = records(&world, "x");
        assert_eq!(
            records.last().map(|record| &record.destination),
            Some(&expected)
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k4_a_source_stays_when_what_was_delivered_was_changed_at_the_destination() {
    let world = delivered().await;
    world.write("b/x", b"somebody else's");
    let mut job = job(&world);
    job.after = After::Delete;
    let running = Running::start(&world, job);
    eventually("the verdict", || {
        actions(&world, "x")
            .iter()
            .any(|(action, _)| *action == Action::Parked)
    })
    .await;
    running.stop(&world).await;
    assert!(world.read("a/x").is_some());
    assert_eq!(
        world.read("b/x").as_deref(),
        Some(b"somebody else's".as_slice())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_moved_aside_is_not_delivered_again() {
    let world = World::new();
    world.write("a/done/earlier", b"moved aside by an earlier run");
    let mut job = job(&world);
    job.after = After::Move("done/".to_owned());
    let running = Running::start(&world, job);
    for name in ["one", "two"] {
        world.write(&format!("a/{name}"), b"x");
        eventually(name, || world.read(&format!("a/done/{name}")).is_some()).await;
    }
    eventually("an empty queue", || queue_is_empty(&world)).await;
    running.stop(&world).await;
    let delivered = std::fs::read_dir(world.path("b")).unwrap().count();
    assert_eq!(delivered, 2, "nothing of what lies aside");
    let aside = std::fs::read_dir(world.path("a/done")).unwrap().count();
    assert_eq!(aside, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k11_a_source_that_went_without_a_record_gets_it_at_the_next_start() {
    for after in [After::Delete, After::Move("done/".to_owned())] {
        let world = delivered().await;
        // What a process leaves that dies between the removal of the source and the record of that.
        let action = if after == After::Delete {
            std::fs::remove_file(world.path("a/x")).unwrap();
            Action::SourceRemoved
        } else {
            std::fs::create_dir(world.path("a/done")).unwrap();
            std::fs::rename(world.path("a/x"), world.path("a/done/x")).unwrap();
            Action::SourceMoved
        };
        // A source with nothing in it at all would be taken for one that lost everything.
        world.write("a/fresh", b"another");
        let mut job = job(&world);
        job.after = after;
        let running = Running::start(&world, job);
        eventually("the record", || {
            actions(&world, "x").last().map(|(action, _)| *action) == Some(action)
        })
        .await;
        eventually("an empty queue", || queue_is_empty(&world)).await;
        running.stop(&world).await;
        let records = records(&world, "x");
        assert_eq!(records.len(), 2, "{records:?}");
        let last = records.last().unwrap();
        assert!(
            last.message.as_ref().unwrap().contains("interruption"),
            "{last:?}"
        );
        if action == Action::SourceMoved {
            assert_eq!(
                last.destination,
                world.path("a/done/x").display().to_string()
            );
        }
    }
}
