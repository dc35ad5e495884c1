//! Jobs that look at their source in runs: the ledger, the schedule, what follows what.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use knarr_core::RelPath;
use knarr_core::entry::Kind;
use knarr_core::job::{After, Deletes};
use knarr_core::record::Action;
use knarr_core::run::RunState;
use knarr_core::schedule::{Missed, Overlap, Schedule};
use knarr_engine::node::{self, Looks, ScheduledJob, WatchJob};
use knarr_engine::pickup::{Cause, Ended, PickupJob, Preview, Verdict};
use knarr_remote::memory::{Fault, MemoryRemote};
use knarr_remote::operation::Operation;
use knarr_remote::{ErrorKind, Remote, Removal, Retry};

use crate::node::{actions, queue_is_empty};
use crate::support::{World, eventually, local, watch_job};

fn path(text: &str) -> RelPath {
    RelPath::new(text.as_bytes()).unwrap()
}

fn job(world: &World, after: After) -> WatchJob {
    WatchJob {
        looks: Looks::InRuns,
        sources: Vec::new(),
        after,
        settle: Duration::ZERO,
        ..watch_job("test", Path::new(""), local(&world.path("b")))
    }
}

fn pickup(world: &World, source: Arc<dyn Remote>, after: After) -> PickupJob {
    PickupJob {
        job: Arc::new(job(world, after)),
        source,
    }
}

async fn run(world: &World, pickup: &PickupJob) -> Ended {
    pickup.run(&world.environment, Cause::Manual).await.unwrap()
}

fn times(world: &World, file: &str, action: Action) -> usize {
    let all = actions(world, file);
    all.iter().filter(|(found, _)| *found == action).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k7_each_version_of_a_file_is_taken_once() {
    let mut world = World::new();
    let source = Arc::new(MemoryRemote::new());
    for name in ["one", "two", "below/three"] {
        source.put(&path(name), "first").unwrap();
    }
    let job = pickup(&world, Arc::<MemoryRemote>::clone(&source), After::Keep);
    let first = run(&world, &job).await;
    assert_eq!(
        (first.report.created, first.report.state),
        (3, RunState::Done)
    );
    let second = run(&world, &job).await;
    assert_eq!((second.report.created, second.report.updated), (0, 0));
    // Also by another process; and what the recipient took away does not come again.
    world.restart();
    std::fs::remove_file(world.path("b/two")).unwrap();
    let third = run(&world, &job).await;
    assert_eq!((third.report.created, third.report.updated), (0, 0));
    // The same name with other content is a new version.
    source.put(&path("one"), "second version").unwrap();
    let fourth = run(&world, &job).await;
    assert_eq!((fourth.report.created, fourth.report.updated), (0, 1));
    assert_eq!(world.read("b/one").unwrap(), b"second version");
    assert_eq!(times(&world, "two", Action::Created), 1);
    world.assert_chain();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k4_k7_what_was_delivered_and_could_not_be_removed_goes_later_and_is_not_delivered_twice() {
    let world = World::new();
    let source = Arc::new(MemoryRemote::new());
    for name in ["one", "two"] {
        source.put(&path(name), "content").unwrap();
    }
    let fault = Fault {
        retry: Some(Retry::EndpointDown),
        ..Fault::next(Operation::Remove, ErrorKind::Unreachable)
    };
    source.faults().add(fault);
    let job = pickup(&world, Arc::<MemoryRemote>::clone(&source), After::Delete);
    let first = run(&world, &job).await;
    assert_eq!(first.report.created, 2);
    assert_eq!(first.report.failed, 1, "one could not be removed");
    assert_eq!(source.entries().len(), 1);
    let second = run(&world, &job).await;
    assert_eq!((second.report.created, second.report.failed), (0, 0));
    assert_eq!(source.entries().len(), 0, "and now it is gone");
    for name in ["one", "two"] {
        assert_eq!(times(&world, name, Action::Created), 1, "{name}");
        assert_eq!(times(&world, name, Action::SourceRemoved), 1, "{name}");
    }
    // The same name again is a new file, whatever it holds.
    source.put(&path("one"), "content").unwrap();
    run(&world, &job).await;
    assert_eq!(source.entries().len(), 0);
    world.assert_chain();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k5_k7_a_source_that_goes_down_in_the_middle_fails_the_run_and_the_next_one_does_the_rest()
{
    let world = World::new();
    let source = Arc::new(MemoryRemote::new());
    for number in 0..20 {
        source.put(&path(&format!("{number}")), "content").unwrap();
    }
    source.faults().add(Fault {
        retry: Some(Retry::EndpointDown),
        ..Fault::next(Operation::Read, ErrorKind::Unreachable)
            .after(7)
            .times(1_000)
    });
    let job = pickup(&world, Arc::<MemoryRemote>::clone(&source), After::Delete);
    let first = run(&world, &job).await;
    assert_eq!(first.report.state, RunState::Failed);
    assert!(first.message.is_some());
    source.faults().clear();
    source.faults().set_down(true);
    let down = run(&world, &job).await;
    assert_eq!(down.report.state, RunState::Failed);
    assert!(down.report.unreachable);
    source.faults().set_down(false);
    let last = run(&world, &job).await;
    assert_eq!((last.report.state, last.report.failed), (RunState::Done, 0));
    assert_eq!(source.entries().len(), 0);
    for number in 0..20 {
        let name = number.to_string();
        assert_eq!(times(&world, &name, Action::Created), 1, "{name}");
    }
    assert!(queue_is_empty(&world));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_preview_says_what_a_run_would_take_and_why_not_the_rest() {
    let world = World::new();
    let source = Arc::new(MemoryRemote::new());
    for name in ["new.csv", "known.csv", "notes.txt", "done/old.csv"] {
        source.put(&path(name), "content").unwrap();
    }
    let mut job = job(&world, After::Keep);
    let filter = knarr_core::filter::Filter::new(["known.csv"], []).unwrap();
    job.filter = Arc::new(filter);
    let first = PickupJob {
        job: Arc::new(job.clone()),
        source: Arc::<MemoryRemote>::clone(&source),
    };
    run(&world, &first).await;
    job.filter = Arc::new(knarr_core::filter::Filter::new(["*.csv"], ["done"]).unwrap());
    let second = PickupJob {
        job: Arc::new(job),
        source,
    };
    let mut verdicts = Vec::new();
    let preview = second.preview(&world.environment, |preview| match preview {
        Preview::File(entry, verdict) => verdicts.push((entry.path.to_string(), verdict)),
        Preview::NotNow(trouble) | Preview::Trouble(trouble) => panic!("{trouble}"),
    });
    preview.await.unwrap();
    verdicts.sort_by(|a, b| a.0.cmp(&b.0));
    let leave = |reason: &str| Verdict::Leave(reason.to_owned());
    assert_eq!(
        verdicts,
        [
            ("done/old.csv".to_owned(), leave("it matches `exclude`")),
            (
                "known.csv".to_owned(),
                leave("it was delivered before, as it is")
            ),
            ("new.csv".to_owned(), Verdict::Take),
            (
                "notes.txt".to_owned(),
                leave("it matches none of `include`")
            ),
        ]
    );
    assert_eq!(world.read("b/new.csv"), None, "nothing was moved");
}

fn every_second(overlap: Overlap) -> Schedule {
    let schedule = Schedule::new("* * * * * *", jiff::tz::TimeZone::UTC).unwrap();
    schedule.with(overlap, Missed::Latest, Duration::ZERO)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_run_when_it_is_time_and_after_each_other_and_not_while_they_are_paused() {
    let world = World::new();
    let (source, between) = (Arc::new(MemoryRemote::new()), Arc::new(MemoryRemote::new()));
    source.put(&path("early"), "content").unwrap();
    let by_the_clock = ScheduledJob {
        pickup: PickupJob {
            job: Arc::new(WatchJob {
                name: "first".to_owned(),
                destination: Arc::<MemoryRemote>::clone(&between),
                ..job(&world, After::Delete)
            }),
            source: Arc::<MemoryRemote>::clone(&source),
        },
        schedules: vec![every_second(Overlap::Forbid)],
        after_job: None,
    };
    let follower = ScheduledJob {
        pickup: PickupJob {
            job: Arc::new(WatchJob {
                name: "second".to_owned(),
                ..job(&world, After::Keep)
            }),
            source: between,
        },
        schedules: Vec::new(),
        after_job: Some("first".to_owned()),
    };
    let environment = world.environment.clone();
    let jobs = vec![by_the_clock, follower];
    let node = tokio::spawn(async move { node::run(Vec::new(), jobs, &environment).await });
    eventually("the file at the end of both", || {
        world.read("b/early").is_some()
    })
    .await;
    let pause = world
        .store()
        .transact(|tx| tx.pause_job("first", "a person").map(drop));
    pause.await.unwrap();
    // Until the node has seen that, and the run that was under way has ended.
    let runs = || {
        let filter = knarr_store::runs::RunFilter {
            job: Some("first".to_owned()),
            ..Default::default()
        };
        world
            .store()
            .read(|reader| reader.runs(&filter, 1_000))
            .unwrap()
    };
    let mut before = runs().len();
    loop {
        tokio::time::sleep(Duration::from_secs(3)).await;
        let now = runs().len();
        if now == before {
            break;
        }
        before = now;
    }
    source.put(&path("late"), "content").unwrap();
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(world.read("b/late"), None, "it is paused");
    let resume = world
        .store()
        .transact(|tx| tx.resume_job("first").map(drop));
    resume.await.unwrap();
    eventually("the late file", || world.read("b/late").is_some()).await;
    world.environment.cancel.cancel();
    node.await.unwrap().unwrap();
    assert!(runs().iter().all(|run| run.begun_as.cause == "schedule"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k5_r23_a_run_that_would_delete_too_much_is_held_and_ends() {
    let world = World::new();
    let source = Arc::new(MemoryRemote::new());
    for number in 0..150 {
        source.put(&path(&number.to_string()), "content").unwrap();
    }
    let job = PickupJob {
        job: Arc::new(WatchJob {
            deletes: Deletes::Mirror,
            ..job(&world, After::Keep)
        }),
        source: Arc::<MemoryRemote>::clone(&source),
    };
    run(&world, &job).await;
    for number in 1..150 {
        let removal = Removal {
            path: path(&number.to_string()),
            kind: Kind::File,
            seen: None,
        };
        for result in source.remove(&[removal]).await {
            result.unwrap();
        }
    }
    let held = run(&world, &job).await;
    assert_eq!(held.report.state, RunState::Held);
    assert_eq!((held.report.held_removals, held.report.deleted), (149, 0));
    assert_eq!(std::fs::read_dir(world.path("b")).unwrap().count(), 150);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k2_k7_a_file_that_is_written_all_the_time_does_not_keep_a_run_from_its_end() {
    let world = World::new();
    world.write("a/calm", b"calm");
    let log = world.path("a/log");
    let stop = tokio_util::sync::CancellationToken::new();
    let stopped = stop.clone();
    let writer = std::thread::spawn(move || {
        use std::io::Write as _;
        let mut log = std::fs::File::create(log).unwrap();
        while !stopped.is_cancelled() {
            log.write_all(&[b'x'; 4_096]).unwrap();
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    let job = PickupJob {
        job: Arc::new(WatchJob {
            settle: Duration::from_secs(1),
            ..job(&world, After::Keep)
        }),
        source: local(&world.path("a")),
    };
    tokio::time::sleep(Duration::from_millis(50)).await;
    let ended = tokio::time::timeout(Duration::from_secs(30), run(&world, &job)).await;
    stop.cancel();
    writer.join().unwrap();
    ended.expect("it ends").message.ok_or(()).unwrap_err();
    assert_eq!(world.read("b/calm").unwrap(), b"calm");
    let last = run(&world, &job).await;
    assert_eq!(last.report.failed, 0);
    let delivered = world.read("b/log").map(|content| content.len());
    assert_eq!(delivered, world.read("a/log").map(|content| content.len()));
}
