//! `knarr run`: watched directories.

use std::sync::Arc;
use std::time::Duration;

use knarr_core::RelPath;
use knarr_core::filter::Filter;
use knarr_core::job::{After, Deletes};
use knarr_core::record::{Action, CustodyRecord};
use knarr_core::template::Template;
use knarr_engine::EngineError;
use knarr_engine::node::{self, WatchJob};
use knarr_steps::StepSpec;
use knarr_store::history::TracePath;
use tokio::task::JoinHandle;

use crate::steps::steps;
use crate::support::{World, eventually, local, watch_job};

pub(crate) struct Running {
    task: JoinHandle<Result<(), EngineError>>,
}

impl Running {
    pub(crate) fn start(world: &World, job: WatchJob) -> Self {
        let environment = world.environment.clone();
        Self {
            task: tokio::spawn(async move { node::run(vec![job], Vec::new(), &environment).await }),
        }
    }

    pub(crate) async fn stop(self, world: &World) {
        world.environment.cancel.cancel();
        tokio::time::timeout(Duration::from_secs(10), self.task)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }
}

pub(crate) fn job(world: &World) -> WatchJob {
    watch_job("test", &world.path("a"), local(&world.path("b")))
}

/// What is on record of a path, the oldest first.
pub(crate) fn records(world: &World, path: &str) -> Vec<CustodyRecord> {
    let path = TracePath::Exact(RelPath::new(path.as_bytes()).unwrap());
    let found = world.store().read(|reader| reader.trace(&path, 100));
    found
        .unwrap()
        .into_iter()
        .map(|custody| custody.record)
        .collect()
}

pub(crate) fn actions(world: &World, path: &str) -> Vec<(Action, Option<String>)> {
    records(world, path)
        .into_iter()
        .map(|record| (record.action, record.complete_because))
        .collect()
}

pub(crate) fn queue_is_empty(world: &World) -> bool {
    let pairs = world.store().read(|reader| reader.pairs()).unwrap();
    pairs.iter().all(|pair| {
        let now = world.environment.clock.now();
        let counts = world
            .store()
            .read(|reader| reader.count_dirty(pair.id, now))
            .unwrap();
        counts.ready + counts.waiting == 0
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k11_what_is_closed_after_write_is_delivered_and_what_was_there_before_too() {
    let world = World::new();
    world.write("a/before", b"was there");
    let running = Running::start(&world, job(&world));
    eventually("the file from before", || world.read("b/before").is_some()).await;
    world.write("a/sub/fresh", b"fresh");
    eventually("the fresh file", || world.read("b/sub/fresh").is_some()).await;
    eventually("an empty queue", || queue_is_empty(&world)).await;
    running.stop(&world).await;
    let fresh = actions(&world, "sub/fresh");
    assert_eq!(fresh.first().unwrap().0, Action::Created, "{fresh:?}");
    let before = actions(&world, "before");
    assert!(
        before
            .first()
            .unwrap()
            .1
            .as_ref()
            .unwrap()
            .starts_with("unchanged for"),
        "{before:?}"
    );
    world.assert_chain();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k7_a_restart_finds_what_changed_meanwhile_and_sends_nothing_twice() {
    let mut world = World::new();
    world.write("a/same", b"1");
    world.write("a/edited", b"1");
    let running = Running::start(&world, job(&world));
    eventually("both", || {
        world.read("b/same").is_some() && world.read("b/edited").is_some()
    })
    .await;
    eventually("an empty queue", || queue_is_empty(&world)).await;
    running.stop(&world).await;
    world.write("a/edited", b"changed while nobody looked");
    world.write("a/added", b"2");
    world.restart();
    let running = Running::start(&world, job(&world));
    eventually("the new file", || world.read("b/added").is_some()).await;
    eventually("the edit", || {
        world.read("b/edited").as_deref() == Some(b"changed while nobody looked")
    })
    .await;
    eventually("an empty queue", || queue_is_empty(&world)).await;
    running.stop(&world).await;
    assert_eq!(actions(&world, "same").len(), 1);
    assert_eq!(actions(&world, "edited").len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compressed_files_are_decompressed_into_the_place_the_template_names() {
    let world = World::new();
    let mut job = job(&world);
    job.steps = steps(&world, vec![StepSpec::decompress()]);
    job.filter = Arc::new(Filter::new(["*.csv.gz"], []).unwrap());
    job.template = Template::parse("raw/{now:%Y}/").unwrap();
    let running = Running::start(&world, job);
    let plain = b"time,value\n1,2\n".repeat(1_000);
    std::fs::write(world.path("plain.csv"), &plain).unwrap();
    let gzip = std::process::Command::new("gzip")
        .args(["-c"])
        .arg(world.path("plain.csv"))
        .output()
        .unwrap();
    world.write("a/acme/day.csv.gz", &gzip.stdout);
    world.write("a/acme/ignored.txt", b"not meant");
    world.write("a/acme/cut.csv.gz", &gzip.stdout[..gzip.stdout.len() / 2]);
    let year = world
        .environment
        .clock
        .now()
        .to_calendar()
        .strftime("%Y")
        .to_string();
    let target = format!("b/raw/{year}/acme/day.csv");
    eventually("the decompressed file", || world.read(&target).is_some()).await;
    eventually("the verdict on the cut file", || {
        actions(&world, "acme/cut.csv.gz")
            .iter()
            .any(|(action, _)| *action == Action::Parked)
    })
    .await;
    running.stop(&world).await;
    assert_eq!(world.read(&target).unwrap(), plain);
    assert!(world.read(&format!("b/raw/{year}/acme/cut.csv")).is_none());
    assert!(
        world.read("a/acme/cut.csv.gz").is_some(),
        "the source is kept"
    );
    assert!(
        world
            .read(&format!("b/raw/{year}/acme/ignored.txt"))
            .is_none()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k4_the_source_goes_after_the_delivery_if_that_is_wanted() {
    let world = World::new();
    let mut job = job(&world);
    job.after = After::Delete;
    let running = Running::start(&world, job);
    for number in 0..20 {
        world.write(&format!("a/{number}"), b"x");
    }
    eventually("all delivered and removed", || {
        std::fs::read_dir(world.path("a")).unwrap().count() == 0
            && std::fs::read_dir(world.path("b")).unwrap().count() == 20
    })
    .await;
    // The same name again is a new file.
    world.write("a/7", b"another");
    eventually("the second version", || {
        world.read("b/7").as_deref() == Some(b"another")
    })
    .await;
    running.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renames_of_files_and_directories_are_renames_at_the_destination() {
    let world = World::new();
    let mut job = job(&world);
    job.deletes = Deletes::Mirror;
    let running = Running::start(&world, job);
    for number in 0..10 {
        world.write(&format!("a/old/{number}"), b"x");
    }
    world.write("a/single", b"s");
    eventually("all", || {
        world.read("b/old/9").is_some() && world.read("b/single").is_some()
    })
    .await;
    eventually("an empty queue", || queue_is_empty(&world)).await;
    std::fs::rename(world.path("a/old"), world.path("a/new")).unwrap();
    std::fs::rename(world.path("a/single"), world.path("a/renamed")).unwrap();
    eventually("the new names", || {
        world.read("b/new/9").is_some() && world.read("b/renamed").is_some()
    })
    .await;
    eventually("the old names gone", || {
        world.read("b/old/9").is_none() && world.read("b/single").is_none()
    })
    .await;
    eventually("an empty queue", || queue_is_empty(&world)).await;
    running.stop(&world).await;
    assert_eq!(
        actions(&world, "renamed").first().unwrap().0,
        Action::Renamed
    );
    assert_eq!(actions(&world, "new").first().unwrap().0, Action::Renamed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deletions_follow_only_where_that_is_wanted() {
    for (deletes, remains) in [(Deletes::Keep, true), (Deletes::Mirror, false)] {
        let world = World::new();
        let mut job = job(&world);
        job.deletes = deletes;
        world.write("a/x", b"1");
        world.write("a/stays", b"1");
        let running = Running::start(&world, job);
        eventually("x", || {
            world.read("b/x").is_some() && world.read("b/stays").is_some()
        })
        .await;
        eventually("an empty queue", || queue_is_empty(&world)).await;
        std::fs::remove_file(world.path("a/x")).unwrap();
        world.write("a/later", b"2");
        eventually("later", || world.read("b/later").is_some()).await;
        eventually("an empty queue", || queue_is_empty(&world)).await;
        if !remains {
            eventually("the deletion", || world.read("b/x").is_none()).await;
        }
        running.stop(&world).await;
        assert_eq!(world.read("b/x").is_some(), remains, "{deletes:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k5_r20_a_directory_that_vanishes_deletes_nothing_and_is_taken_up_again() {
    let world = World::new();
    let mut job = job(&world);
    job.deletes = Deletes::Mirror;
    for number in 0..5 {
        world.write(&format!("a/{number}"), b"x");
    }
    let running = Running::start(&world, job);
    eventually("all", || {
        std::fs::read_dir(world.path("b")).unwrap().count() == 5
    })
    .await;
    eventually("an empty queue", || queue_is_empty(&world)).await;
    std::fs::rename(world.path("a"), world.path("moved-away")).unwrap();
    eventually("that the loss is told", || {
        world
            .seen
            .lines()
            .iter()
            .any(|line| line.contains("waiting for the directory"))
    })
    .await;
    std::fs::create_dir(world.path("a")).unwrap();
    eventually("that another directory is noticed", || {
        world
            .seen
            .lines()
            .iter()
            .any(|line| line.contains("another directory than before"))
    })
    .await;
    world.write("a/fresh", b"y");
    eventually("the fresh file", || world.read("b/fresh").is_some()).await;
    running.stop(&world).await;
    assert_eq!(
        std::fs::read_dir(world.path("b")).unwrap().count(),
        6,
        "nothing was deleted"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r31_a_file_that_is_still_written_is_not_taken_before_it_is_closed() {
    use std::io::Write as _;
    let world = World::new();
    let running = Running::start(&world, job(&world));
    world.write("a/first", b"1");
    eventually("the first", || world.read("b/first").is_some()).await;
    let mut file = std::fs::File::create(world.path("a/slow")).unwrap();
    for _ in 0..20 {
        file.write_all(b"some more\n").unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(world.read("b/slow").is_none(), "a part of it was taken");
    }
    drop(file);
    eventually("the whole", || {
        world.read("b/slow").map(|c| c.len()) == Some(200)
    })
    .await;
    running.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k3_k7_what_was_delivered_but_not_recorded_is_recognised() {
    let world = World::new();
    world.write("a/x", b"the same");
    world.write("b/x", b"the same");
    let mtime = std::fs::metadata(world.path("a/x"))
        .unwrap()
        .modified()
        .unwrap();
    let there = std::fs::File::options()
        .write(true)
        .open(world.path("b/x"))
        .unwrap();
    there.set_modified(mtime).unwrap();
    let running = Running::start(&world, job(&world));
    eventually("that it is recognised", || {
        actions(&world, "x")
            .iter()
            .any(|(action, _)| *action == Action::Adopted)
    })
    .await;
    eventually("an empty queue", || queue_is_empty(&world)).await;
    running.stop(&world).await;
    assert_eq!(actions(&world, "x").len(), 1);
}
