//! Which files a run takes, when it takes place at all, and what is asked of their content.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::civil::Time;
use jiff::tz::TimeZone;
use knarr_core::alert::{Hours, Weekdays};
use knarr_core::choose::Order;
use knarr_core::filter::Filter;
use knarr_core::job::After;
use knarr_core::matching::{Matching, Since};
use knarr_core::pattern::Pattern;
use knarr_core::record::Action;
use knarr_core::run::RunState;
use knarr_core::template::Template;
use knarr_engine::conditions::{Choice, Conditions, Marker};
use knarr_engine::node::{Looks, WatchJob};
use knarr_engine::pickup::{Cause, Ended, PickupJob, Preview, Verdict};
use knarr_engine::{ContentType, FileChecks, ScanCommand};
use knarr_steps::ChecksumAlgorithm;

use crate::node::{Running, job as watching, records};
use crate::support::{World, eventually, local, watch_job};

fn pickup(world: &World, change: impl FnOnce(&mut WatchJob)) -> PickupJob {
    let mut job = WatchJob {
        looks: Looks::InRuns,
        sources: Vec::new(),
        settle: Duration::ZERO,
        ..watch_job("test", Path::new(""), local(&world.path("b")))
    };
    change(&mut job);
    PickupJob {
        job: Arc::new(job),
        source: local(&world.path("a")),
    }
}

async fn run(world: &World, job: &PickupJob) -> Ended {
    job.run(&world.environment, Cause::Manual).await.unwrap()
}

fn there(world: &World) -> Vec<String> {
    let found = std::fs::read_dir(world.path("b")).unwrap();
    let mut names: Vec<String> = found
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Gives a file the time of so many seconds ago.
fn age(world: &World, file: &str, seconds: u64) {
    let at = SystemTime::now() - Duration::from_secs(seconds);
    let file = std::fs::File::options()
        .write(true)
        .open(world.path(file))
        .unwrap();
    file.set_modified(at).unwrap();
}

fn five(world: &World) {
    for (number, name) in ["e", "a", "d", "b", "c"].into_iter().enumerate() {
        world.write(&format!("a/{name}"), &vec![b'x'; number + 1]);
        age(world, &format!("a/{name}"), 1_000 - number as u64 * 100);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_leaves_the_rest_to_later_runs_in_the_order_that_is_asked_for() {
    for (order, first) in [
        (Order::Name, ["a", "b"]),
        (Order::Oldest, ["a", "e"]),
        (Order::Newest, ["b", "c"]),
        (Order::Smallest, ["a", "e"]),
        (Order::Largest, ["b", "c"]),
    ] {
        let world = World::new();
        five(&world);
        let job = pickup(&world, |job| {
            job.choice = Choice {
                limit: Some(2),
                order,
                newest: None,
            };
        });
        let mut told = Vec::new();
        let previewed = job.preview(&world.environment, |preview| {
            if let Preview::File(entry, Verdict::Take) = preview {
                told.push(entry.path.to_string());
            }
        });
        previewed.await.unwrap();
        told.sort();
        assert_eq!(told, first, "{order:?}: the preview");
        run(&world, &job).await;
        assert_eq!(there(&world), first, "{order:?}");
        run(&world, &job).await;
        let third = run(&world, &job).await;
        assert_eq!(third.report.created, 1, "{order:?}");
        assert_eq!(there(&world).len(), 5, "{order:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_newest_are_ever_taken() {
    let world = World::new();
    five(&world);
    let job = pickup(&world, |job| job.choice.newest = Some(2));
    run(&world, &job).await;
    assert_eq!(there(&world), ["b", "c"]);
    assert_eq!(run(&world, &job).await.report.created, 0);
    world.write("a/f", b"newer");
    run(&world, &job).await;
    assert_eq!(there(&world), ["b", "c", "f"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_of_the_expression_stand_in_the_destination() {
    let world = World::new();
    for name in ["INV-42-a.xml", "INV-43-b.xml", "other.xml"] {
        world.write(&format!("a/{name}"), name.as_bytes());
    }
    let pattern = Pattern::new(r"INV-(?<customer>\d+)-.*\.xml").unwrap();
    let job = pickup(&world, |job| {
        job.template = Template::parse_with("{customer}/{name}", Some(&pattern)).unwrap();
        let mut filter = Filter::default();
        filter.pattern = Some(pattern);
        job.filter = Arc::new(filter);
    });
    run(&world, &job).await;
    assert_eq!(there(&world), ["42", "43"]);
    assert_eq!(world.read("b/42/INV-42-a.xml").unwrap(), b"INV-42-a.xml");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_older_than_the_last_good_run_is_left() {
    let world = World::new();
    world.write("a/first", b"1");
    let job = pickup(&world, |job| {
        job.matching = Some(Arc::new(Matching {
            include: Vec::new(),
            exclude: Vec::new(),
            fixed: Filter::default(),
            modified_from: None,
            modified_until: None,
            since: Since::LastRun,
            zone: TimeZone::UTC,
        }));
    });
    run(&world, &job).await;
    assert_eq!(there(&world), ["first"]);
    world.write("a/new", b"2");
    world.write("a/old", b"3");
    age(&world, "a/old", 3_600);
    run(&world, &job).await;
    assert_eq!(there(&world), ["first", "new"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_whose_conditions_do_not_hold_moves_nothing_and_says_why() {
    let marker = |text: &str| vec![Marker::new(text).unwrap()];
    let all_day = || {
        let days = Weekdays::ALL;
        // All of each day but its last minute; twice, so that no time is left out.
        ["00:00", "23:30"].map(|from| {
            let from = Time::strptime("%H:%M", from).unwrap();
            let to = Time::strptime("%H:%M", "23:59").unwrap();
            Hours::new(from, to, days, TimeZone::UTC).unwrap()
        })
    };
    let cases: Vec<(Conditions, RunState, &str)> = vec![
        (
            Conditions {
                markers_present: marker("*.done"),
                ..Conditions::default()
            },
            RunState::Skipped,
            "no file at the source matches `*.done`",
        ),
        (
            Conditions {
                markers_absent: marker("*.lock"),
                ..Conditions::default()
            },
            RunState::Skipped,
            "\"partner.lock\" is at the source",
        ),
        (
            Conditions {
                min_files: Some(10),
                ..Conditions::default()
            },
            RunState::Skipped,
            "2 files match, and `min_files` asks for 10",
        ),
        (
            Conditions {
                max_files: Some(1),
                ..Conditions::default()
            },
            RunState::Failed,
            "`max_files` is 1",
        ),
        (
            Conditions {
                free_bytes: Some(1),
                ..Conditions::default()
            },
            RunState::Failed,
            "does not tell how much room",
        ),
    ];
    for (conditions, state, reason) in cases {
        let world = World::new();
        world.write("a/file", b"1");
        world.write("a/partner.lock", b"");
        let job = pickup(&world, |job| job.conditions = Arc::new(conditions));
        let ended = run(&world, &job).await;
        assert_eq!(ended.report.state, state, "{reason}: {ended:?}");
        let message = ended.message.unwrap();
        assert!(message.contains(reason), "{reason}: {message}");
        assert_eq!(there(&world), [""; 0], "{reason}");
    }
    let world = World::new();
    world.write("a/file", b"1");
    let [day, night] = all_day();
    let job = pickup(&world, |job| {
        job.conditions = Arc::new(Conditions {
            blackouts: vec![day, night],
            ..Conditions::default()
        });
    });
    let ended = run(&world, &job).await;
    // But for the one minute before midnight.
    if ended.report.state != RunState::Done {
        assert_eq!(ended.report.state, RunState::Skipped);
        assert!(ended.message.unwrap().contains("blackout"));
        assert_eq!(there(&world), [""; 0]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_where_nothing_happens_any_more_fails_the_run() {
    let world = World::new();
    world.write("a/old", b"1");
    age(&world, "a/old", 7_200);
    let conditions = Conditions {
        fresh: Some(Duration::from_secs(3_600)),
        ..Conditions::default()
    };
    let job = pickup(&world, |job| job.conditions = Arc::new(conditions));
    let ended = run(&world, &job).await;
    assert_eq!(ended.report.state, RunState::Failed);
    assert!(ended.message.unwrap().contains("within 1h"));
    world.write("a/new", b"2");
    assert_eq!(run(&world, &job).await.report.created, 2);
}

fn sha256(content: &[u8]) -> String {
    let mut hasher = knarr_steps::Hasher::new(ChecksumAlgorithm::Sha256);
    hasher.update(content);
    hasher.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k2_a_file_is_delivered_only_with_the_checksum_that_its_partner_gave() {
    let world = World::new();
    let large = vec![7; 3_000_000];
    world.write("a/good", &large);
    world.write(
        "a/good.sha256",
        format!("{}  good\n", sha256(&large)).as_bytes(),
    );
    world.write("a/bad", b"damaged");
    world.write("a/bad.sha256", sha256(b"as it was").as_bytes());
    world.write("a/alone", b"its checksum is still to come");
    let job = pickup(&world, |job| {
        job.after = After::Delete;
        job.filter = Arc::new(Filter::new([], ["*.sha256"]).unwrap());
        job.checks = Arc::new(FileChecks {
            checksum: Some(ChecksumAlgorithm::Sha256),
            ..FileChecks::default()
        });
    });
    let ended = run(&world, &job).await;
    assert_eq!(
        (ended.report.created, ended.report.failed),
        (1, 1),
        "{ended:?}"
    );
    assert_eq!(there(&world), ["good"]);
    for name in ["a/good", "a/good.sha256"] {
        assert!(!world.path(name).exists(), "{name} is taken away");
    }
    for name in ["a/bad", "a/bad.sha256", "a/alone"] {
        assert!(world.path(name).exists(), "{name} stays");
    }
    let last = records(&world, "bad").pop().unwrap();
    assert_eq!(last.action, Action::Parked);
    assert!(last.message.unwrap().contains("checksum is"));
    assert!(
        records(&world, "alone").is_empty(),
        "nothing is wrong with it yet"
    );
    let content = b"its checksum is still to come";
    world.write("a/alone.sha256", sha256(content).as_bytes());
    assert_eq!(run(&world, &job).await.report.created, 1);
    assert_eq!(there(&world), ["alone", "good"]);
    world.assert_chain();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watched_file_waits_for_its_checksum() {
    let world = World::new();
    let mut job = watching(&world);
    job.filter = Arc::new(Filter::new([], ["*.sha256"]).unwrap());
    job.checks = Arc::new(FileChecks {
        checksum: Some(ChecksumAlgorithm::Sha256),
        ..FileChecks::default()
    });
    let running = Running::start(&world, job);
    world.write("a/file", b"content");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(world.read("b/file").is_none());
    world.write("a/file.sha256", sha256(b"content").as_bytes());
    eventually("the file", || world.read("b/file").is_some()).await;
    running.stop(&world).await;
    assert_eq!(there(&world), ["file"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_content_of_the_right_kind_is_taken() {
    let world = World::new();
    world.write("a/real.pdf", b"%PDF-1.7 and so on");
    world.write("a/not.pdf", b"MZ\x90\0 a program");
    world.write("a/data.csv", b"a;b\n1;2\n");
    let job = pickup(&world, |job| {
        job.checks = Arc::new(FileChecks {
            types: vec![ContentType::Pdf, ContentType::Csv],
            ..FileChecks::default()
        });
    });
    let ended = run(&world, &job).await;
    assert_eq!(
        (ended.report.created, ended.report.failed),
        (2, 1),
        "{ended:?}"
    );
    assert_eq!(there(&world), ["data.csv", "real.pdf"]);
    let last = records(&world, "not.pdf").pop().unwrap();
    assert!(last.message.unwrap().contains("none of pdf, csv"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k2_what_the_scanner_refuses_is_never_at_the_destination() {
    let world = World::new();
    world.write("a/clean", &vec![b'x'; 1_000_000]);
    world.write("a/bad", b"xx EICAR xx");
    let scan = |script: &str| ScanCommand {
        program: "/bin/sh".into(),
        arguments: vec!["-c".into(), script.into()],
        timeout: Duration::from_secs(20),
    };
    let job = |script: &str| {
        let scan = Some(scan(script));
        pickup(&world, |job| {
            job.checks = Arc::new(FileChecks {
                scan,
                ..FileChecks::default()
            });
        })
    };
    let finds = job("if grep -q EICAR; then echo found EICAR; exit 1; fi");
    let ended = run(&world, &finds).await;
    assert_eq!(
        (ended.report.created, ended.report.failed),
        (1, 1),
        "{ended:?}"
    );
    assert_eq!(there(&world), ["clean"]);
    let last = records(&world, "bad").pop().unwrap();
    assert!(last.message.unwrap().contains("found EICAR"));
    // A scanner that breaks is no verdict: it is asked again, then a person is.
    world.write("a/other", b"content");
    let ended = run(&world, &job("exit 2")).await;
    assert_eq!(
        (ended.report.created, ended.report.failed),
        (0, 1),
        "{ended:?}"
    );
    let failures = records(&world, "other");
    assert!(failures.len() > 1, "{failures:?}");
    assert_eq!(there(&world), ["clean"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k4_a_source_that_is_renamed_after_its_delivery_is_not_taken_again() {
    let world = World::new();
    world.write("a/d/file", b"content");
    let job = pickup(&world, |job| {
        job.after = After::Rename(".done".to_owned());
        job.filter = Arc::new(Filter::new([], ["*.done"]).unwrap());
    });
    assert_eq!(run(&world, &job).await.report.created, 1);
    assert_eq!(world.read("a/d/file.done").unwrap(), b"content");
    assert!(!world.path("a/d/file").exists());
    assert_eq!(run(&world, &job).await.report.created, 0);
    world.write("a/d/file", b"the next one");
    run(&world, &job).await;
    assert_eq!(world.read("b/d/file").unwrap(), b"the next one");
    assert_eq!(world.read("a/d/file.done (2)"), None);
    assert!(!world.path("a/d/file").exists(), "under another free name");
    world.assert_chain();
}
