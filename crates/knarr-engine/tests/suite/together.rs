//! Runs that publish all or nothing: as a batch, or by manifests.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use knarr_core::RelPath;
use knarr_core::job::{After, ManifestFormat};
use knarr_core::plan::IfExists;
use knarr_core::record::Action;
use knarr_core::run::RunState;
use knarr_engine::conditions::Marker;
use knarr_engine::node::{self, Looks, ScheduledJob, WatchJob};
use knarr_engine::pickup::{Cause, Ended, PickupJob, Preview, Verdict};
use knarr_engine::{ManifestSpec, Publish};
use knarr_remote::memory::{Fault, MemoryRemote};
use knarr_remote::operation::Operation;
use knarr_remote::{ErrorKind, Remote, Removal, Retry};

use crate::node::{actions, queue_is_empty};
use crate::support::{World, eventually, local, quick_retry, watch_job};

const FILES: [&str; 5] = ["a.csv", "b.csv", "sub/c.csv", "sub/d.csv", "all.done"];

fn path(text: &str) -> RelPath {
    RelPath::new(text.as_bytes()).unwrap()
}

fn job(destination: Arc<dyn Remote>, after: After) -> WatchJob {
    WatchJob {
        looks: Looks::InRuns,
        sources: Vec::new(),
        after,
        settle: Duration::ZERO,
        publish: Publish::Together {
            last: Some(Box::new(Marker::new("*.done").unwrap())),
        },
        ..watch_job("test", Path::new(""), destination)
    }
}

fn pickup(job: WatchJob, source: &Arc<MemoryRemote>) -> PickupJob {
    PickupJob {
        job: Arc::new(job),
        source: Arc::clone(source) as Arc<dyn Remote>,
    }
}

fn by_manifest(job: WatchJob, format: ManifestFormat) -> WatchJob {
    let file = Marker::new("*.manifest").unwrap();
    WatchJob {
        publish: Publish::Each,
        manifest: Some(ManifestSpec { file, format }),
        ..job
    }
}

async fn run(world: &World, pickup: &PickupJob) -> Ended {
    pickup.run(&world.environment, Cause::Manual).await.unwrap()
}

fn times(world: &World, file: &str, action: Action) -> usize {
    let all = actions(world, file);
    all.iter().filter(|(found, _)| *found == action).count()
}

fn filled(names: &[&str]) -> Arc<MemoryRemote> {
    let source = Arc::new(MemoryRemote::new());
    for name in names {
        source
            .put(&path(name), format!("content of {name}"))
            .unwrap();
    }
    source
}

/// What a listing shows, with its content.
fn visible(remote: &MemoryRemote) -> BTreeMap<String, Vec<u8>> {
    let files = remote
        .entries()
        .into_iter()
        .filter(|entry| entry.kind == knarr_core::Kind::File);
    files
        .map(|entry| {
            let content = remote.content(&entry.path).unwrap().to_vec();
            (entry.path.to_string(), content)
        })
        .collect()
}

fn left_at(source: &MemoryRemote) -> Vec<String> {
    visible(source).into_keys().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_of_files_is_there_as_a_whole_and_is_recorded_as_any_delivery() {
    let mut world = World::new();
    let source = filled(&FILES);
    let job = pickup(job(local(&world.path("b")), After::Delete), &source);
    let ended = run(&world, &job).await;
    assert_eq!(
        (ended.report.created, ended.report.state),
        (5, RunState::Done),
        "{ended:?}"
    );
    for name in FILES {
        let there = world.read(&format!("b/{name}")).unwrap();
        assert_eq!(there, format!("content of {name}").into_bytes());
        assert_eq!(times(&world, name, Action::Created), 1);
        assert_eq!(times(&world, name, Action::SourceRemoved), 1);
    }
    assert_eq!(left_at(&source), Vec::<String>::new());
    let names = std::fs::read_dir(world.path("b")).unwrap();
    let litter = names.filter(|name| {
        let name = name.as_ref().unwrap().file_name();
        name.to_string_lossy().starts_with(".knarr-")
    });
    assert_eq!(litter.count(), 0);
    world.restart();
    let again = run(&world, &job).await;
    assert_eq!(again.report.created, 0, "{again:?}");
    assert!(queue_is_empty(&world));
    world.assert_chain();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k4_a_file_that_fails_keeps_the_whole_batch_back_and_the_next_run_sends_only_that_one() {
    let world = World::new();
    let source = filled(&FILES);
    let destination = Arc::new(MemoryRemote::new());
    let remote = Arc::clone(&destination) as Arc<dyn Remote>;
    let job = pickup(job(remote, After::Delete), &source);
    source.faults().add(Fault {
        retry: Some(Retry::Never),
        ..Fault::next(Operation::Read, ErrorKind::PermissionDenied)
            .at(path("b.csv"))
            .times(1_000)
    });
    for _ in 0..2 {
        let ended = run(&world, &job).await;
        assert_eq!(ended.report.state, RunState::Failed, "{ended:?}");
        let message = ended.message.unwrap();
        assert!(message.contains("b.csv"), "{message}");
        assert!(message.contains("nothing was published"), "{message}");
        assert_eq!(visible(&destination), BTreeMap::new());
        assert_eq!(left_at(&source).len(), 5);
        assert_eq!(ended.report.failed, 1);
        assert!(
            queue_is_empty(&world),
            "nothing is parked: all is tried again"
        );
    }
    source.faults().clear();
    let ended = run(&world, &job).await;
    assert_eq!(ended.report.created, 5, "{ended:?}");
    let only = "content of b.csv".len() as u64;
    assert_eq!(ended.report.sent_bytes, only, "K9: what was staged is used");
    assert_eq!(visible(&destination).len(), 5);
    assert_eq!(destination.hidden_count(), 0);
    assert_eq!(left_at(&source), Vec::<String>::new());
    for name in FILES {
        assert_eq!(times(&world, name, Action::Created), 1, "{name}");
    }
    world.assert_chain();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_part_of_the_batch_any_more_is_removed_and_another_version_is_sent_anew() {
    let world = World::new();
    let source = filled(&FILES);
    let destination = Arc::new(MemoryRemote::new());
    let remote = Arc::clone(&destination) as Arc<dyn Remote>;
    let job = pickup(job(remote, After::Keep), &source);
    source.faults().add(Fault {
        retry: Some(Retry::Never),
        ..Fault::next(Operation::Read, ErrorKind::PermissionDenied).at(path("b.csv"))
    });
    assert_eq!(run(&world, &job).await.report.state, RunState::Failed);
    assert!(destination.hidden_count() >= 3);
    let gone = Removal {
        path: path("a.csv"),
        kind: knarr_core::Kind::File,
        seen: None,
    };
    source.remove(&[gone]).await.pop().unwrap().unwrap();
    source.put(&path("sub/c.csv"), "another version").unwrap();
    let ended = run(&world, &job).await;
    assert_eq!(ended.report.created, 4, "{ended:?}");
    let there = visible(&destination);
    assert_eq!(there.len(), 4);
    assert_eq!(there["sub/c.csv"], b"another version");
    assert_eq!(destination.hidden_count(), 0);
}

/// From the n-th call of `operation` on, the destination is gone. Whatever n: the last file is never visible
/// without all others, and the next runs finish it, each file once.
async fn cut_everywhere(operation: Operation, at_least: u64) {
    let mut reached = 0;
    for cut in 0.. {
        let mut world = World::new();
        let source = filled(&FILES);
        let destination = Arc::new(MemoryRemote::new());
        let remote = Arc::clone(&destination) as Arc<dyn Remote>;
        let mut job = job(remote, After::Delete);
        // No waiting for a place that is gone.
        job.retry.attempts = 1;
        let job = pickup(job, &source);
        destination.faults().add(Fault {
            retry: Some(Retry::Never),
            ..Fault::next(operation, ErrorKind::Other)
                .after(cut)
                .times(1_000_000)
        });
        let first = run(&world, &job).await;
        let there = visible(&destination);
        assert!(
            !there.contains_key("all.done") || there.len() == FILES.len(),
            "{operation} {cut}: {there:?}"
        );
        for name in FILES {
            let at_source = source.content(&path(name)).is_some();
            assert!(
                at_source || there.len() == FILES.len(),
                "{operation} {cut}: {name} is gone from the source too early"
            );
        }
        destination.faults().clear();
        world.restart();
        let mut last = None;
        for _ in 0..3 {
            last = Some(run(&world, &job).await);
        }
        let last = last.unwrap();
        assert_eq!(
            last.report.state,
            RunState::Done,
            "{operation} {cut}: {last:?}"
        );
        let there = visible(&destination);
        for name in FILES {
            let content = format!("content of {name}").into_bytes();
            assert_eq!(there.get(name), Some(&content), "{operation} {cut}");
            assert_eq!(
                times(&world, name, Action::Created),
                1,
                "{operation} {cut} {name}"
            );
        }
        assert_eq!(left_at(&source), Vec::<String>::new(), "{operation} {cut}");
        assert_eq!(destination.hidden_count(), 0, "{operation} {cut}");
        assert!(queue_is_empty(&world));
        world.assert_chain();
        if first.report.state == RunState::Done {
            reached = cut;
            break;
        }
    }
    assert!(reached >= at_least, "{operation}: only {reached} points");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k2_k7_k11_a_publication_that_is_cut_at_any_rename_is_finished_each_file_once() {
    cut_everywhere(Operation::Rename, 5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k2_k7_k11_a_publication_that_is_cut_at_any_look_is_finished_each_file_once() {
    cut_everywhere(Operation::Stat, 15).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k2_k7_k11_a_batch_that_is_cut_at_any_commit_is_finished_each_file_once() {
    cut_everywhere(Operation::Commit, 5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k7_a_node_that_starts_finishes_what_the_last_process_was_publishing() {
    let mut world = World::new();
    let source = filled(&FILES);
    let destination = Arc::new(MemoryRemote::new());
    let remote = Arc::clone(&destination) as Arc<dyn Remote>;
    let pickup = pickup(job(remote, After::Delete), &source);
    destination.faults().add(Fault {
        retry: Some(Retry::Never),
        ..Fault::next(Operation::Rename, ErrorKind::Other)
            .after(2)
            .times(1_000)
    });
    let cut = run(&world, &pickup).await;
    assert!(cut.message.unwrap().contains("the next run goes on"));
    assert_eq!(visible(&destination).len(), 2);
    destination.faults().clear();
    world.restart();
    let scheduled = ScheduledJob {
        pickup,
        schedules: Vec::new(),
        after_job: None,
    };
    let environment = world.environment.clone();
    let running =
        tokio::spawn(async move { node::run(Vec::new(), vec![scheduled], &environment).await });
    eventually("all are published and gone from the source", || {
        visible(&destination).len() == FILES.len() && left_at(&source).is_empty()
    })
    .await;
    world.environment.cancel.cancel();
    running.await.unwrap().unwrap();
    for name in FILES {
        assert_eq!(times(&world, name, Action::Created), 1, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_files_that_would_get_the_same_name_are_told_apart_and_nothing_is_published() {
    let world = World::new();
    let source = filled(&["one/x", "two/x"]);
    let mut job = job(local(&world.path("b")), After::Keep);
    job.template = knarr_core::template::Template::parse("{name}").unwrap();
    let ended = run(&world, &pickup(job, &source)).await;
    let message = ended.message.unwrap();
    assert!(
        message.contains("would be published as \"x\", too"),
        "{message}"
    );
    assert_eq!(ended.report.state, RunState::Failed);
    assert_eq!(world.read("b/x"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn if_exists_is_asked_before_anything_is_published() {
    for (if_exists, state, content) in [
        (IfExists::Fail, RunState::Failed, "theirs"),
        (IfExists::Overwrite, RunState::Done, "content of a.csv"),
        (IfExists::Differs, RunState::Done, "content of a.csv"),
        (IfExists::Skip, RunState::Partial, "theirs"),
        (IfExists::KeepBoth, RunState::Done, "theirs"),
    ] {
        let world = World::new();
        world.write("b/a.csv", b"theirs");
        let source = filled(&FILES);
        let mut job = job(local(&world.path("b")), After::Keep);
        job.if_exists = if_exists;
        let ended = run(&world, &pickup(job, &source)).await;
        assert_eq!(ended.report.state, state, "{if_exists:?}: {ended:?}");
        assert_eq!(world.read("b/a.csv").unwrap(), content.as_bytes());
        let others_are_there = world.read("b/all.done").is_some();
        assert_eq!(others_are_there, state != RunState::Failed, "{if_exists:?}");
        assert_eq!(
            world.read("b/sub/c.csv").is_some(),
            state != RunState::Failed
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destination_that_cannot_rename_is_refused_before_anything_is_sent() {
    let world = World::new();
    let source = filled(&FILES);
    let destination = Arc::new(MemoryRemote::object_store());
    let remote = Arc::clone(&destination) as Arc<dyn Remote>;
    let ended = run(&world, &pickup(job(remote, After::Keep), &source)).await;
    assert_eq!(ended.report.state, RunState::Failed);
    assert!(ended.message.unwrap().contains("publish: each"));
    assert_eq!(destination.entries(), []);
}

async fn previewed(world: &World, pickup: &PickupJob) -> BTreeMap<String, Verdict> {
    let mut told = BTreeMap::new();
    let tell = |item: Preview<'_>| {
        if let Preview::File(entry, verdict) = item {
            told.insert(entry.path.to_string(), verdict);
        }
    };
    pickup.preview(&world.environment, tell).await.unwrap();
    told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_takes_all_that_it_lists_or_nothing_and_says_what_it_waits_for() {
    let world = World::new();
    let source = filled(&["in/a", "in/b", "in/other", "out/c", "out/d"]);
    source.put(&path("in/1.manifest"), "a\nb\n").unwrap();
    source.put(&path("out/2.manifest"), "c\nd\ne\n").unwrap();
    let job = job(local(&world.path("b")), After::Delete);
    let job = pickup(by_manifest(job, ManifestFormat::Lines), &source);
    let told = previewed(&world, &job).await;
    let left = |name: &str| match &told[name] {
        Verdict::Leave(reason) => reason.clone(),
        verdict => panic!("{name}: {verdict:?}"),
    };
    assert_eq!(told["in/a"], Verdict::Take);
    assert_eq!(told["in/1.manifest"], Verdict::Take);
    assert!(left("in/other").contains("no manifest lists it"));
    for name in ["out/c", "out/2.manifest"] {
        assert!(left(name).contains("waits for \"out/e\""), "{}", left(name));
    }
    let ended = run(&world, &job).await;
    assert_eq!(ended.report.state, RunState::Done, "{ended:?}");
    assert_eq!(ended.report.created, 3);
    let message = ended.message.unwrap();
    assert!(
        message.contains("out/2.manifest") && message.contains("out/e"),
        "{message}"
    );
    assert_eq!(
        left_at(&source),
        ["in/other", "out/2.manifest", "out/c", "out/d"]
    );
    source.put(&path("out/e"), "here I am").unwrap();
    let ended = run(&world, &job).await;
    assert_eq!(ended.report.created, 4, "{ended:?}");
    assert_eq!(left_at(&source), ["in/other"]);
    assert_eq!(world.read("b/out/2.manifest").unwrap(), b"c\nd\ne\n");
    assert_eq!(world.read("b/in/other"), None);
    assert!(queue_is_empty(&world));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_checksum_keeps_back_what_its_manifest_lists_and_nothing_else() {
    let world = World::new();
    let source = filled(&["x/a", "x/b", "y/a", "y/b"]);
    let sum = |content: &str| {
        let mut hasher = knarr_steps::Hasher::new(knarr_steps::ChecksumAlgorithm::Sha256);
        hasher.update(content.as_bytes());
        hasher.finish()
    };
    for (directory, second) in [("x", "content of x/b"), ("y", "damaged on its way")] {
        let first = sum(&format!("content of {directory}/a"));
        let text = format!("{first}  a\n{}  b\n", sum(second));
        let manifest = path(&format!("{directory}/sums.manifest"));
        source.put(&manifest, text).unwrap();
    }
    let mut job = job(local(&world.path("b")), After::Keep);
    job.retry = quick_retry();
    let job = pickup(by_manifest(job, ManifestFormat::Sha256sum), &source);
    let ended = run(&world, &job).await;
    assert_eq!(ended.report.state, RunState::Partial, "{ended:?}");
    assert_eq!((ended.report.created, ended.report.failed), (3, 1));
    let message = ended.message.unwrap();
    assert!(
        message.contains("y/b")
            && message.contains("y/sums.manifest")
            && message.contains("checksum"),
        "{message}"
    );
    for (name, there) in [("x/a", true), ("x/b", true), ("x/sums.manifest", true)] {
        assert_eq!(world.read(&format!("b/{name}")).is_some(), there, "{name}");
    }
    for name in ["y/a", "y/b", "y/sums.manifest"] {
        assert_eq!(world.read(&format!("b/{name}")), None, "{name}");
    }
    source.put(&path("y/b"), "damaged on its way").unwrap();
    let ended = run(&world, &job).await;
    assert_eq!(ended.report.created, 3, "{ended:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h02_a_hostile_manifest_is_told_and_takes_nothing() {
    let world = World::new();
    for text in ["../secret\n", "/etc/passwd\n", "a\0b\n", "a\na\n"] {
        let source = filled(&["a", "good/b"]);
        source.put(&path("bad.manifest"), text).unwrap();
        source.put(&path("good/fine.manifest"), "b\n").unwrap();
        let to = format!("b/{}", text.len());
        let job = job(local(&world.path(&to)), After::Delete);
        let job = pickup(by_manifest(job, ManifestFormat::Lines), &source);
        let ended = run(&world, &job).await;
        assert_eq!(ended.report.state, RunState::Partial, "{ended:?}");
        let message = ended.message.unwrap();
        assert!(message.contains("bad.manifest"), "{message}");
        assert_eq!(left_at(&source), ["a", "bad.manifest"], "{text}");
        assert!(world.read(&format!("{to}/good/b")).is_some());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k7_what_one_manifest_publishes_is_finished_after_a_cut_and_the_manifest_goes_last() {
    for cut in 0..6 {
        let mut world = World::new();
        let source = filled(&["a", "b", "c"]);
        source.put(&path("all.manifest"), "a\nb\nc\n").unwrap();
        let destination = Arc::new(MemoryRemote::new());
        let remote = Arc::clone(&destination) as Arc<dyn Remote>;
        let mut job = job(remote, After::Delete);
        job.retry.attempts = 1;
        let job = pickup(by_manifest(job, ManifestFormat::Lines), &source);
        // Neither the names nor the removals at the source go through.
        for (remote, operation) in [
            (&destination, Operation::Rename),
            (&source, Operation::Remove),
        ] {
            remote.faults().add(Fault {
                retry: Some(Retry::Never),
                ..Fault::next(operation, ErrorKind::Other)
                    .after(cut)
                    .times(1_000)
            });
        }
        run(&world, &job).await;
        let there = visible(&destination);
        assert!(!there.contains_key("all.manifest") || there.len() == 4);
        if there.len() < 4 {
            assert_eq!(left_at(&source).len(), 4, "{cut}");
        }
        source.faults().clear();
        destination.faults().clear();
        world.restart();
        for _ in 0..2 {
            run(&world, &job).await;
        }
        assert_eq!(visible(&destination).len(), 4, "{cut}");
        assert_eq!(left_at(&source), Vec::<String>::new(), "{cut}");
        for name in ["a", "b", "c", "all.manifest"] {
            assert_eq!(times(&world, name, Action::Created), 1, "{cut} {name}");
            assert_eq!(
                times(&world, name, Action::SourceRemoved),
                1,
                "{cut} {name}"
            );
        }
    }
}
