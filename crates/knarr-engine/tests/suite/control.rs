//! What a running node can be asked for.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use knarr_core::job::After;
use knarr_core::run::RunState;
use knarr_engine::node::{
    self, Control, ControlError, Looks, NodeJob, RunEnd, ScheduledJob, WatchJob, What,
};
use knarr_engine::pickup::{Cause, PickupJob};
use knarr_remote::Remote;
use knarr_remote::decorate::limit::{Bandwidth, Limited, Limits};
use knarr_remote::memory::MemoryRemote;
use knarr_store::runs::RunFilter;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinHandle;

use crate::support::{World, eventually, local, watch_job};

/// A job `test` that takes what a directory has, so many bytes a second.
fn job(world: &World, bytes_per_second: u64) -> NodeJob {
    let limits = Limits {
        bandwidth: Some(Bandwidth::new(bytes_per_second)),
        calls: None,
    };
    named(
        world,
        "test",
        Arc::new(Limited::new(local(&world.path("a")), limits)),
    )
}

fn named(world: &World, name: &str, source: Arc<dyn Remote>) -> NodeJob {
    let job = WatchJob {
        looks: Looks::InRuns,
        sources: Vec::new(),
        after: After::Keep,
        settle: Duration::ZERO,
        ..watch_job(name, Path::new(""), local(&world.path("b")))
    };
    NodeJob::Runs(ScheduledJob {
        pickup: PickupJob {
            job: Arc::new(job),
            source,
        },
        schedules: Vec::new(),
        after_job: None,
    })
}

fn start(world: &World, jobs: Vec<NodeJob>) -> (Control, JoinHandle<()>) {
    let (control, commands) = node::control();
    let environment = world.environment.clone();
    let node = tokio::spawn(async move {
        node::supervise(jobs, &environment, commands).await.unwrap();
    });
    (control, node)
}

async fn stop(world: &World, node: JoinHandle<()>) {
    world.environment.cancel.cancel();
    tokio::time::timeout(Duration::from_secs(10), node)
        .await
        .unwrap()
        .unwrap();
}

fn state_of(end: RunEnd) -> RunState {
    match end {
        RunEnd::Ended(ended) => ended.report.state,
        RunEnd::Failed(message) => panic!("{message}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_is_replaced_or_removed_ends_in_good_order_before_the_next_begins() {
    let world = World::new();
    world.write("a/large", &vec![1; 2 << 20]);
    let (control, node) = start(&world, vec![job(&world, 1_000)]);
    let slow = control.start("test", Cause::Manual).await.unwrap();
    let first = slow.begun.await.unwrap();
    let again = control.start("test", Cause::Manual).await.unwrap_err();
    assert_eq!(
        again,
        ControlError::UnderWay {
            job: "test".to_owned(),
            run: first
        }
    );
    control.replace(job(&world, 0)).await.unwrap();
    assert_eq!(state_of(slow.ended.await.unwrap()), RunState::Interrupted);
    let quick = control.start("test", Cause::Http).await.unwrap();
    assert!(quick.begun.await.unwrap() > first);
    assert_eq!(state_of(quick.ended.await.unwrap()), RunState::Done);
    assert_eq!(world.read("b/large").unwrap().len(), 2 << 20);
    let known = control.add(job(&world, 0)).await.unwrap_err();
    assert!(matches!(known, ControlError::Known { .. }), "{known}");
    control.remove("test").await.unwrap();
    let gone = control.start("test", Cause::Manual).await.unwrap_err();
    assert!(matches!(gone, ControlError::Unknown { .. }), "{gone}");
    stop(&world, node).await;
    assert_eq!(control.list().await.unwrap_err(), ControlError::Stopped);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_while_a_run_is_under_way_are_dealt_with_by_one_run_that_follows() {
    let world = World::new();
    world.write("a/large", &vec![1; 64 << 10]);
    let (control, node) = start(&world, vec![job(&world, 64 << 10)]);
    let first = control.start("test", Cause::Manual).await.unwrap();
    first.begun.await.unwrap();
    for _ in 0..5 {
        control.trigger("test", Cause::Upload).await.unwrap();
    }
    let last = control.start("test", Cause::Upload).await.unwrap();
    assert_eq!(state_of(first.ended.await.unwrap()), RunState::Done);
    assert_eq!(state_of(last.ended.await.unwrap()), RunState::Done);
    let runs = world
        .store()
        .read(|reader| reader.runs(&RunFilter::default(), 100));
    let causes: Vec<String> = runs
        .unwrap()
        .into_iter()
        .map(|run| run.begun_as.cause)
        .collect();
    assert_eq!(causes, ["upload", "manual"]);
    stop(&world, node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_events_of_a_run_have_its_number_and_a_slow_listener_is_told_that_it_missed_some() {
    let world = World::new();
    for number in 0..3_000 {
        world.write(&format!("a/{number}"), b"x");
    }
    let (control, node) = start(&world, vec![job(&world, 0)]);
    let (mut events, mut slow) = (control.events(), control.events());
    let asked = control.start("test", Cause::Manual).await.unwrap();
    let run = asked.begun.await.unwrap();
    let listening = tokio::spawn(async move {
        let mut finished = 0;
        loop {
            match events.recv().await {
                Ok(event) => {
                    assert_eq!((&*event.job, event.run), ("test", run));
                    match event.what {
                        What::Finished { .. } => finished += 1,
                        What::Ended(_) => return finished,
                        _ => {}
                    }
                }
                Err(RecvError::Lagged(count)) => finished += count,
                Err(RecvError::Closed) => panic!("the end is told"),
            }
        }
    });
    asked.ended.await.unwrap();
    assert!(listening.await.unwrap() >= 3_000);
    let missed = slow.recv().await;
    assert!(matches!(missed, Err(RecvError::Lagged(_))), "{missed:?}");
    stop(&world, node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_jobs_are_added_and_a_watch_is_paused_and_resumed() {
    let world = World::new();
    let (control, node) = start(&world, Vec::new());
    for number in 0..1_000 {
        let name = format!("job-{number}");
        let source = Arc::new(MemoryRemote::new());
        control.add(named(&world, &name, source)).await.unwrap();
    }
    let watch = watch_job("watch", &world.path("a"), local(&world.path("b")));
    control.add(NodeJob::Watch(Arc::new(watch))).await.unwrap();
    assert_eq!(control.list().await.unwrap().len(), 1_001);
    let watches = control.start("watch", Cause::Manual).await.unwrap_err();
    assert!(matches!(watches, ControlError::Watches { .. }), "{watches}");
    world.write("a/one", b"1");
    eventually("the first file", || world.read("b/one").is_some()).await;
    let pause = world
        .store()
        .transact(|tx| tx.pause_job("watch", "a person").map(drop));
    pause.await.unwrap();
    control.pauses_changed().await.unwrap();
    let is_running = async || {
        let jobs = control.list().await.unwrap();
        jobs.iter()
            .any(|job| job.name == "watch" && !job.running.is_empty())
    };
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while is_running().await {
        assert!(
            tokio::time::Instant::now() < deadline,
            "the watch does not end"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    world.write("a/two", b"2");
    let resume = world
        .store()
        .transact(|tx| tx.resume_job("watch").map(drop));
    resume.await.unwrap();
    control.pauses_changed().await.unwrap();
    eventually("the second file", || world.read("b/two").is_some()).await;
    stop(&world, node).await;
}
