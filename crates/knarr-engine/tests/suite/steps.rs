//! What steps make of files: one out of one, many out of an archive, all or nothing.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use knarr_core::RelPath;
use knarr_core::job::After;
use knarr_core::plan::IfExists;
use knarr_core::record::{Action, Evidence};
use knarr_core::run::RunState;
use knarr_core::template::Template;
use knarr_engine::node::{Looks, WatchJob};
use knarr_engine::pickup::{Cause, Ended, PickupJob};
use knarr_engine::{Publish, Steps};
use knarr_remote::Remote;
use knarr_remote::memory::MemoryRemote;
use knarr_steps::{Keys, Secret, StepSpec};
use knarr_testkit::gpg::{ED25519, Gpg};

use crate::node::{actions, records};
use crate::support::{World, local, watch_job};

/// The steps, as the configuration writes them.
pub(crate) fn steps(world: &World, specs: Vec<StepSpec>) -> Steps {
    Steps::new(specs, Keys::new(), world.path("state/spool"))
}

fn parsed(json: &str) -> Vec<StepSpec> {
    serde_json::from_str(json).unwrap()
}

/// A job that takes all of `a`, through these steps, to a place.
fn job_to(world: &World, destination: Arc<dyn Remote>, steps: Steps, after: After) -> PickupJob {
    let job = WatchJob {
        looks: Looks::InRuns,
        sources: Vec::new(),
        after,
        steps,
        settle: std::time::Duration::ZERO,
        ..watch_job("test", Path::new(""), destination)
    };
    PickupJob {
        job: Arc::new(job),
        source: local(&world.path("a")),
    }
}

fn job(world: &World, json: &str, after: After) -> PickupJob {
    let steps = steps(world, parsed(json));
    job_to(world, local(&world.path("b")), steps, after)
}

fn with(job: PickupJob, if_exists: IfExists) -> PickupJob {
    let PickupJob { job, source } = job;
    let job = Arc::new(WatchJob {
        if_exists,
        ..Arc::unwrap_or_clone(job)
    });
    PickupJob { job, source }
}

async fn run(world: &World, job: &PickupJob) -> Ended {
    job.run(&world.environment, Cause::Manual).await.unwrap()
}

/// Runs a program in the directory `make` of the world.
fn make(world: &World, program: &str, arguments: &[&str]) {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(world.path("make"))
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}: `cargo xtask setup` installs it"));
    assert!(output.status.success(), "{program}: {output:?}");
}

/// What lies below `b`, staged files included.
fn delivered(world: &World) -> Vec<String> {
    fn walk(directory: &Path, base: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.is_symlink() {
                walk(&path, base, found);
            } else {
                let name = path.strip_prefix(base).unwrap();
                found.push(name.display().to_string());
            }
        }
    }
    let mut found = Vec::new();
    walk(&world.path("b"), &world.path("b"), &mut found);
    found.sort();
    found
}

fn reason(world: &World, path: &str) -> String {
    let last = records(world, path).pop().unwrap();
    assert_eq!(last.action, Action::Parked, "{last:?}");
    last.message.unwrap()
}

fn together(job: PickupJob, template: &str) -> PickupJob {
    let PickupJob { job, source } = job;
    let job = Arc::new(WatchJob {
        publish: Publish::Together { last: None },
        template: Template::parse(template).unwrap(),
        ..Arc::unwrap_or_clone(job)
    });
    PickupJob { job, source }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn archives_with_the_same_directories_are_published_together() {
    let world = World::new();
    for number in 1..4 {
        world.write(&format!("make/data/{number}.csv"), b"content");
        let archive = format!("../a/{number}.tar");
        make(&world, "tar", &["-cf", &archive, "data"]);
        std::fs::remove_file(world.path(&format!("make/data/{number}.csv"))).unwrap();
    }
    let job = together(job(&world, "[\"extract\"]", After::Delete), "");
    let ended = run(&world, &job).await;
    assert_eq!(
        (ended.report.created, ended.report.failed),
        (3, 0),
        "{ended:?}"
    );
    assert_eq!(
        delivered(&world),
        ["data/1.csv", "data/2.csv", "data/3.csv"]
    );
    assert!(!world.path("a/1.tar").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k2_two_files_of_an_archive_with_one_name_are_not_published_together() {
    let world = World::new();
    world.write("make/x/r.csv", b"one");
    world.write("make/y/r.csv", b"two");
    make(&world, "tar", &["-cf", "../a/all.tar", "x", "y"]);
    let job = together(job(&world, "[\"extract\"]", After::Delete), "in/{name}");
    let ended = run(&world, &job).await;
    assert_eq!(ended.report.state, RunState::Failed, "{ended:?}");
    let message = ended.message.unwrap();
    assert!(
        message.contains("two of its files would be published as \"in/r.csv\""),
        "{message}"
    );
    assert_eq!(world.read("b/in/r.csv"), None);
    assert!(world.path("a/all.tar").exists(), "the source stays");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_becomes_its_files_once_and_each_is_on_record() {
    let world = World::new();
    world.write("make/one.csv", b"first");
    world.write("make/deep/two.csv", b"second");
    world.write("make/deep/empty", b"");
    std::fs::create_dir(world.path("make/nothing")).unwrap();
    std::os::unix::fs::symlink("one.csv", world.path("make/link")).unwrap();
    std::fs::hard_link(world.path("make/one.csv"), world.path("make/same")).unwrap();
    let mode = std::fs::Permissions::from_mode(0o640);
    std::fs::set_permissions(world.path("make/one.csv"), mode).unwrap();
    std::fs::create_dir(world.path("a/in")).unwrap();
    make(
        &world,
        "tar",
        &["--zstd", "-cf", "../a/in/all.tar.zst", "."],
    );
    let job = job(&world, "[\"extract\"]", After::Delete);
    let first = run(&world, &job).await;
    assert_eq!(
        (first.report.created, first.report.failed),
        (1, 0),
        "{first:?}"
    );
    assert_eq!(first.report.state, RunState::Done);
    let all = [
        "in/deep/empty",
        "in/deep/two.csv",
        "in/link",
        "in/one.csv",
        "in/same",
    ];
    assert_eq!(delivered(&world), all);
    assert!(
        world.path("b/in/nothing").is_dir(),
        "an empty directory, too"
    );
    for name in ["b/in/one.csv", "b/in/same", "b/in/link"] {
        assert_eq!(world.read(name).unwrap(), b"first", "{name}");
    }
    let mode = std::fs::metadata(world.path("b/in/one.csv")).unwrap();
    assert_eq!(mode.permissions().mode() & 0o777, 0o640);
    assert!(!world.path("a/in/all.tar.zst").exists(), "taken away");
    let records = records(&world, "in/all.tar.zst");
    for name in all {
        let of_it = records.iter().filter(|record| {
            record.action == Action::Created && record.destination.ends_with(name)
        });
        assert_eq!(of_it.count(), 1, "{name}: {records:?}");
    }
    let two = records
        .iter()
        .find(|record| record.destination.ends_with("two.csv"))
        .unwrap();
    let hash = knarr_core::ContentHash::of(b"second");
    assert_eq!(two.evidence, Evidence::Written { hash });
    assert_eq!(two.steps.len(), 1);
    assert!(two.source_hash.is_some());
    let again = run(&world, &job).await;
    assert_eq!((again.report.created, again.report.updated), (0, 0));
    world.assert_chain();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k2_of_an_archive_that_is_broken_anywhere_nothing_is_delivered_and_the_source_stays() {
    let world = World::new();
    for number in 0..40 {
        let content: Vec<u8> = (0..20_000_u32)
            .map(|n| n.wrapping_mul(n).wrapping_mul(number + 1).to_le_bytes()[1])
            .collect();
        world.write(&format!("make/{number}"), &content);
    }
    make(&world, "tar", &["-czf", "../whole.tgz", "."]);
    make(&world, "zip", &["-q", "-r", "../whole.zip", "."]);
    for name in ["whole.tgz", "whole.zip"] {
        let whole = world.read(name).unwrap();
        let cuts = [100, whole.len() / 2, whole.len() - 1];
        for (number, cut) in cuts.into_iter().enumerate() {
            world.write(&format!("a/cut-{number}-{name}"), &whole[..cut]);
        }
        let mut flipped = whole.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 0x10;
        world.write(&format!("a/flipped-{name}"), &flipped);
    }
    let job = job(&world, "[\"extract\"]", After::Delete);
    let ended = run(&world, &job).await;
    assert_eq!(
        (ended.report.created, ended.report.failed),
        (0, 8),
        "{ended:?}"
    );
    assert_eq!(delivered(&world), [""; 0]);
    assert_eq!(std::fs::read_dir(world.path("a")).unwrap().count(), 8);
    for name in ["cut-1-whole.tgz", "flipped-whole.zip"] {
        assert!(!reason(&world, name).is_empty());
    }
    assert_eq!(
        std::fs::read_dir(world.path("state/spool"))
            .unwrap()
            .count(),
        0,
        "what waits has no name"
    );
    world.assert_chain();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k7_what_an_interrupted_attempt_unpacked_is_recognised_whatever_is_to_be_done_with_others()
{
    for policy in [
        IfExists::Fail,
        IfExists::Skip,
        IfExists::KeepBoth,
        IfExists::Newer,
        IfExists::Differs,
    ] {
        let world = World::new();
        world.write("make/one", b"first");
        world.write("make/two", b"second");
        make(&world, "zip", &["-q", "../a/all.zip", "one", "two"]);
        // As if a process had died between publishing the first and the second.
        world.write("b/one", b"first");
        let job = with(job(&world, "[\"extract\"]", After::Delete), policy);
        let ended = run(&world, &job).await;
        assert_eq!(ended.report.failed, 0, "{policy:?}: {ended:?}");
        assert_eq!(delivered(&world), ["one", "two"], "{policy:?}");
        assert!(!world.path("a/all.zip").exists(), "{policy:?}");
        world.assert_chain();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k4_files_of_others_at_the_destination_are_treated_as_if_exists_says() {
    for (policy, one, names, failed) in [
        (IfExists::Fail, "theirs", vec!["one"], 1),
        (IfExists::Skip, "theirs", vec!["one", "two"], 1),
        (IfExists::Overwrite, "first", vec!["one", "two"], 0),
        (IfExists::Differs, "first", vec!["one", "two"], 0),
        (
            IfExists::KeepBoth,
            "theirs",
            vec!["one", "one (2)", "two"],
            0,
        ),
    ] {
        let world = World::new();
        world.write("make/one", b"first");
        world.write("make/two", b"second");
        make(&world, "zip", &["-q", "../a/all.zip", "one", "two"]);
        world.write("b/one", b"theirs");
        let job = with(job(&world, "[\"extract\"]", After::Delete), policy);
        let ended = run(&world, &job).await;
        assert_eq!(ended.report.failed, failed, "{policy:?}: {ended:?}");
        assert_eq!(delivered(&world), names, "{policy:?}");
        assert_eq!(world.read("b/one").unwrap(), one.as_bytes(), "{policy:?}");
        if failed > 0 {
            assert!(reason(&world, "all.zip").contains("if_exists"));
            assert!(
                world.path("a/all.zip").exists(),
                "K4: not all of it arrived"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k10_an_archive_of_thousands_of_files_goes_to_an_object_store() {
    let world = World::new();
    for number in 0..3_000 {
        world.write(
            &format!("make/{}/{number}", number % 7),
            number.to_string().as_bytes(),
        );
    }
    make(&world, "tar", &["-cf", "../a/all.tar", "."]);
    let destination = Arc::new(MemoryRemote::object_store());
    let steps = steps(&world, parsed("[\"extract\"]"));
    let into = Arc::<MemoryRemote>::clone(&destination);
    let job = job_to(&world, into, steps, After::Keep);
    let ended = run(&world, &job).await;
    assert_eq!(ended.report.failed, 0, "{ended:?}");
    assert_eq!(
        destination.entries().len(),
        3_000,
        "only files: there are no directories"
    );
    let path = RelPath::new(b"5/2504".as_slice()).unwrap();
    assert_eq!(destination.content(&path).unwrap(), "2504");
    let created = actions(&world, "all.tar");
    assert_eq!(created.len(), 100, "the last hundred of 3,000 records");
    world.assert_chain();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checksum_comes_beside_its_file() {
    let world = World::new();
    world.write("a/d/report", b"content");
    let job = job(
        &world,
        "[{\"compress\": \"gzip\"}, \"checksum\"]",
        After::Move("done".to_owned()),
    );
    let ended = run(&world, &job).await;
    assert_eq!(
        (ended.report.created, ended.report.failed),
        (1, 0),
        "{ended:?}"
    );
    assert_eq!(delivered(&world), ["d/report.gz", "d/report.gz.sha256"]);
    let checked = Command::new("sha256sum")
        .args(["-c", "report.gz.sha256"])
        .current_dir(world.path("b/d"))
        .output()
        .unwrap();
    assert!(checked.status.success(), "{checked:?}");
    assert!(world.path("a/done/d/report").exists());
    assert_eq!(
        records(&world, "d/report").len(),
        3,
        "two outputs, and moved aside"
    );
}

/// Our key in a secret, the partner's in a file, and both in a GnuPG.
fn keys() -> (Gpg, Keys) {
    let gpg = Gpg::new();
    for name in ["ours", "partner", "stranger"] {
        gpg.generate(ED25519, name, &[], "%no-protection");
    }
    let keys = Keys::new()
        .with_secret("our-key", Secret::new(gpg.secret("ours")))
        .with_file("partner.asc", gpg.public("partner"));
    (gpg, keys)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k2_h22_only_what_the_right_partner_signed_is_decrypted_and_unpacked() {
    let world = World::new();
    let (gpg, keys) = keys();
    world.write("make/INV-1.xml", b"to be paid");
    make(&world, "zip", &["-q", "all.zip", "INV-1.xml"]);
    let zip = world.read("make/all.zip").unwrap();
    let encrypted = |signer: Option<&str>| {
        let mut arguments = vec!["--encrypt", "--recipient", "ours"];
        if let Some(signer) = signer {
            arguments.extend(["--sign", "--local-user", signer]);
        }
        gpg.run(&arguments, &zip)
    };
    let good = encrypted(Some("partner"));
    world.write("a/good.zip.gpg", &good);
    world.write("a/stranger.zip.gpg", &encrypted(Some("stranger")));
    world.write("a/unsigned.zip.gpg", &encrypted(None));
    world.write("a/cut.zip.gpg", &good[..good.len() - 3]);
    let mut flipped = good.clone();
    let last = flipped.len() - 30;
    flipped[last] ^= 1;
    world.write("a/flipped.zip.gpg", &flipped);
    let for_others = [
        "--encrypt",
        "--recipient",
        "stranger",
        "--sign",
        "--local-user",
        "partner",
    ];
    world.write("a/others.zip.gpg", &gpg.run(&for_others, &zip));
    let specs = parsed(
        "[{\"decrypt\": {\"pgp\": \"our-key\", \"signed_by\": [\"partner.asc\"]}}, \"extract\"]",
    );
    let steps = Steps::new(specs, keys, world.path("state/spool"));
    let job = job_to(&world, local(&world.path("b")), steps, After::Delete);
    let ended = run(&world, &job).await;
    assert_eq!(
        (ended.report.created, ended.report.failed),
        (1, 5),
        "{ended:?}"
    );
    assert_eq!(delivered(&world), ["INV-1.xml"]);
    assert_eq!(world.read("b/INV-1.xml").unwrap(), b"to be paid");
    assert!(!world.path("a/good.zip.gpg").exists());
    for name in ["stranger", "unsigned", "cut", "flipped", "others"] {
        let path = format!("{name}.zip.gpg");
        assert!(world.path(&format!("a/{path}")).exists(), "{name} stays");
        let reason = reason(&world, &path);
        assert!(reason.len() > 20, "{name}: {reason}");
    }
    world.assert_chain();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k2_plaintext_that_cannot_be_verified_leaves_nothing_at_the_destination() {
    let world = World::new();
    let (gpg, keys) = keys();
    let content: Vec<u8> = (0..5_000_000_u32)
        .map(|n| n.wrapping_mul(n).to_le_bytes()[1])
        .collect();
    let mut arguments = vec![
        "--encrypt",
        "--recipient",
        "ours",
        "--compress-algo",
        "none",
    ];
    arguments.extend(["--sign", "--local-user", "partner"]);
    let mut message = gpg.run(&arguments, &content);
    let last = message.len() - 40;
    message[last] ^= 1;
    world.write("a/large.gpg", &message);
    let specs = parsed(
        "[{\"decrypt\": {\"pgp\": \"our-key\", \"signed_by\": [\"partner.asc\"]}}, \"checksum\"]",
    );
    let steps = Steps::new(specs, keys, world.path("state/spool"));
    let job = job_to(&world, local(&world.path("b")), steps, After::Delete);
    let ended = run(&world, &job).await;
    assert_eq!(
        (ended.report.created, ended.report.failed),
        (0, 1),
        "{ended:?}"
    );
    assert_eq!(delivered(&world), [""; 0], "not even under a staged name");
    assert!(world.path("a/large.gpg").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_whose_key_is_missing_fails_as_a_whole_and_says_why() {
    let world = World::new();
    world.write("a/one.gpg", b"whatever");
    let job = job(
        &world,
        "[{\"decrypt\": {\"pgp\": \"our-key\"}}]",
        After::Delete,
    );
    let ended = run(&world, &job).await;
    assert_eq!(ended.report.state, RunState::Failed);
    let message = ended.message.unwrap();
    assert!(message.contains("our-key"), "{message}");
    assert!(
        actions(&world, "one.gpg").is_empty(),
        "no file is blamed for it"
    );
}
