//! What holds jobs back, what they tell when they are removed, and ten thousand of them at once.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use knarr_core::Timestamp;
use knarr_core::job::After;
use knarr_core::run::RunState;
use knarr_core::schedule::Schedule;
use knarr_core::time::ManualClock;
use knarr_engine::announce::{Announcer, JobHooks};
use knarr_engine::node::{
    self, Asked, Control, ControlError, Looks, NodeJob, RunEnd, ScheduledJob, WatchJob,
};
use knarr_engine::pickup::{Cause, PickupJob};
use knarr_remote::Remote;
use knarr_remote::decorate::limit::{Bandwidth, Limited, Limits};
use knarr_remote::memory::MemoryRemote;
use knarr_store::outbox::{OutboxFilter, OutboxId};
use knarr_store::runs::RunFilter;
use tokio::task::JoinHandle;

use crate::support::{World, eventually, local, watch_job};

/// A job `test` from `a` to `b`, so many bytes a second, that uses the endpoint `partner`.
fn job(world: &World, bytes_per_second: u64) -> NodeJob {
    let limits = Limits {
        bandwidth: Some(Bandwidth::new(bytes_per_second)),
        calls: None,
    };
    let job = WatchJob {
        looks: Looks::InRuns,
        sources: Vec::new(),
        after: After::Keep,
        settle: Duration::ZERO,
        endpoints: vec!["partner".to_owned()],
        ..watch_job("test", Path::new(""), local(&world.path("b")))
    };
    NodeJob::Runs(ScheduledJob {
        pickup: PickupJob {
            job: Arc::new(job),
            source: Arc::new(Limited::new(local(&world.path("a")), limits)),
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
    let ended = tokio::time::timeout(Duration::from_secs(10), node).await;
    ended.unwrap().unwrap();
}

async fn ended(asked: Asked) -> RunState {
    match asked.ended.await.unwrap() {
        RunEnd::Ended(ended) => ended.report.state,
        RunEnd::Failed(message) => panic!("{message}"),
    }
}

/// The causes of all runs, the newest first.
fn causes(world: &World) -> Vec<String> {
    let filter = RunFilter::default();
    let runs = world.store().read(|reader| reader.runs(&filter, 100));
    let cause = |run: knarr_store::runs::StoredRun| run.begun_as.cause;
    runs.unwrap().into_iter().map(cause).collect()
}

async fn change(
    world: &World,
    control: &Control,
    change: impl FnOnce(&mut knarr_store::Tx<'_>) -> Result<bool, knarr_store::StoreError>
    + Send
    + 'static,
) {
    assert!(world.store().transact(change).await.unwrap());
    control.pauses_changed().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_uploaded_while_a_job_is_paused_is_taken_once_when_it_is_resumed() {
    let mut world = World::new();
    world.write("a/one", b"1");
    let (control, node) = start(&world, vec![job(&world, 0)]);
    change(&world, &control, |tx| tx.pause_job("test", "anna")).await;
    for _ in 0..3 {
        control.trigger("test", Cause::Upload).await.unwrap();
    }
    // Whoever asks by hand means it.
    let by_hand = control.start("test", Cause::Manual).await.unwrap();
    assert_eq!(ended(by_hand).await, RunState::Done);
    assert_eq!(causes(&world), ["manual"]);
    // Another version of the job waits for it, too.
    control.replace(job(&world, 0)).await.unwrap();
    assert_eq!(causes(&world), ["manual"]);
    change(&world, &control, |tx| tx.resume_job("test")).await;
    eventually("the run for the uploads", || {
        causes(&world) == ["upload", "manual"]
    })
    .await;
    change(&world, &control, |tx| tx.pause_job("test", "anna")).await;
    stop(&world, node).await;
    // A pause survives a restart, and who serves uploads asks again.
    world.restart();
    let (control, node) = start(&world, vec![job(&world, 0)]);
    control.trigger("test", Cause::Upload).await.unwrap();
    assert_eq!(causes(&world).len(), 2);
    change(&world, &control, |tx| tx.resume_job("test")).await;
    eventually("the run after the restart", || causes(&world).len() == 3).await;
    stop(&world, node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_of_a_paused_endpoint_end_in_good_order_wait_and_go_on_when_it_is_resumed() {
    let mut world = World::new();
    world.write("a/large", &vec![1; 2 << 20]);
    let (control, node) = start(&world, vec![job(&world, 1_000)]);
    let slow = control.start("test", Cause::Manual).await.unwrap();
    let change_other = |tx: &mut knarr_store::Tx<'_>| tx.pause_endpoint("other", "anna");
    change(&world, &control, change_other).await;
    assert_eq!(control.list().await.unwrap()[0].waits, None);
    change(&world, &control, |tx| tx.pause_endpoint("partner", "anna")).await;
    assert_eq!(ended(slow).await, RunState::Interrupted);
    let waits = control.list().await.unwrap().remove(0).waits.unwrap();
    assert!(waits.contains("`partner` was paused by anna"), "{waits}");
    let refused = control.start("test", Cause::Manual).await.unwrap_err();
    assert!(matches!(refused, ControlError::Waits { .. }), "{refused}");
    control.trigger("test", Cause::AfterJob).await.unwrap();
    stop(&world, node).await;
    world.restart();
    let (control, node) = start(&world, vec![job(&world, 0)]);
    for cause in [Cause::Upload, Cause::Http] {
        control.trigger("test", cause).await.unwrap();
    }
    assert_eq!(causes(&world), ["manual"], "a restart changes nothing");
    change(&world, &control, |tx| tx.resume_endpoint("partner")).await;
    eventually("one run for all that asked", || {
        causes(&world) == ["http", "manual"] && world.read("b/large").is_some()
    })
    .await;
    stop(&world, node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k8_the_hooks_of_a_job_that_is_removed_with_a_file_in_flight_are_written() {
    let mut world = World::new();
    let announcer = Announcer::default();
    world.environment.announcer = announcer.clone();
    let hooks = JobHooks {
        after_file: vec!["hook".to_owned()],
        after_run: vec!["hook".to_owned()],
        ..JobHooks::default()
    };
    announcer.set_job("test", Looks::InRuns, hooks);
    world.write("a/file", &vec![1; 96 << 10]);
    let (control, node) = start(&world, vec![job(&world, 64 << 10)]);
    let run = control.start("test", Cause::Manual).await.unwrap();
    let Asked { begun, ended } = run;
    begun.await.unwrap();
    // The file is being moved, and whoever removes the job is done with it.
    announcer.remove_job("test");
    let RunEnd::Ended(ended) = ended.await.unwrap() else {
        panic!("it has a report");
    };
    assert_eq!(ended.report.state, RunState::Done);
    let written = world
        .store()
        .read(|reader| reader.outbox(OutboxFilter::All, None, OutboxId(0), 10));
    let kinds: Vec<_> = written
        .unwrap()
        .iter()
        .map(|message| message.message.kind.name())
        .collect();
    assert_eq!(kinds, ["after_file", "after_run"]);
    // The next run, of another job of that name, tells nobody.
    world.write("a/next", b"x");
    let next = control.start("test", Cause::Manual).await.unwrap();
    next.ended.await.unwrap();
    let written = world
        .store()
        .read(|reader| reader.outbox(OutboxFilter::All, None, OutboxId(0), 10));
    assert_eq!(written.unwrap().len(), 2);
    stop(&world, node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k10_ten_thousand_jobs_that_are_due_in_the_same_minute_run_once_each_and_the_node_answers()
{
    let mut world = World::new();
    let begin = Timestamp::from_seconds(1_800_000_030);
    let clock = Arc::new(ManualClock::at(begin));
    world.environment.clock = Arc::clone(&clock) as _;
    let source: Arc<dyn Remote> = Arc::new(MemoryRemote::new());
    let destination: Arc<dyn Remote> = Arc::new(MemoryRemote::new());
    let every_minute = Schedule::new("* * * * *", jiff::tz::TimeZone::UTC).unwrap();
    let one = |number: usize| {
        let job = WatchJob {
            looks: Looks::InRuns,
            sources: Vec::new(),
            after: After::Keep,
            ..watch_job(
                &format!("job-{number:05}"),
                Path::new(""),
                Arc::clone(&destination),
            )
        };
        NodeJob::Runs(ScheduledJob {
            pickup: PickupJob {
                job: Arc::new(job),
                source: Arc::clone(&source),
            },
            schedules: vec![every_minute.clone()],
            after_job: None,
        })
    };
    let jobs = 10_000;
    let (control, node) = start(&world, (0..jobs).map(one).collect());
    assert_eq!(control.list().await.unwrap().len(), jobs);
    clock.advance(Duration::from_secs(31));
    control.pauses_changed().await.unwrap();
    let (mut answers, mut most) = (0_u32, 0);
    let at_work = RunFilter {
        state: Some(RunState::Running),
        ..RunFilter::default()
    };
    loop {
        let now = control.list().await.unwrap();
        // What is at work is on record; the others wait for their turn, and hold nothing.
        let running = world.store().read(|reader| reader.runs(&at_work, jobs));
        most = most.max(running.unwrap().len());
        answers += 1;
        if now.iter().all(|job| job.running.is_empty()) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    assert!(answers > 1, "it answered while they ran");
    assert!(most <= 32, "{most} at once");
    let runs = world
        .store()
        .read(|reader| reader.runs(&RunFilter::default(), 2 * jobs));
    let mut names: Vec<String> = runs
        .unwrap()
        .into_iter()
        .map(|run| run.begun_as.job)
        .collect();
    assert_eq!(names.len(), jobs, "each once");
    names.sort();
    names.dedup();
    assert_eq!(names.len(), jobs, "and none twice");
    stop(&world, node).await;
}
