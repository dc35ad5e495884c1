//! Copy, move and mirror between two directories.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use knarr_core::filter::Filter;
use knarr_core::job::After;
use knarr_core::plan::{Decision, IfExists, MassDeletion, Mode, Policy};
use knarr_core::record::{Action, Evidence};
use knarr_core::run::RunState;
use knarr_core::{ContentHash, RelPath};
use knarr_engine::EngineError;
use knarr_engine::plan_file::{Header, PlanReader, PlanWriter, VERSION};
use knarr_store::history::TracePath;

use crate::support::World;

fn trace(world: &World, path: &str) -> Vec<knarr_core::record::CustodyRecord> {
    let path = TracePath::Exact(RelPath::new(path.as_bytes()).unwrap());
    let found = world
        .store()
        .read(|reader| reader.trace(&path, 100))
        .unwrap();
    found.into_iter().map(|chained| chained.record).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k7_k11_a_copy_brings_everything_once_and_records_it() {
    let world = World::new();
    world.write("a/one.txt", b"one");
    world.write("a/sub/two.txt", b"two");
    world.write("a/sub/empty", b"");
    std::fs::create_dir(world.path("a/nothing")).unwrap();
    std::os::unix::fs::symlink("one.txt", world.path("a/link")).unwrap();
    world.write("a/large.bin", &vec![7; 5 << 20]);
    let report = world.run(world.command(Mode::Copy)).await;
    assert_eq!(report.state, RunState::Done, "{:?}", world.seen.lines());
    assert_eq!((report.created, report.failed, report.problems), (7, 0, 0));
    knarr_testkit::data::assert_same_tree(
        &world.path("a"),
        &world.path("b"),
        &knarr_testkit::data::Compare::exact(),
    );
    let record = trace(&world, "one.txt").pop().unwrap();
    assert_eq!(record.action, Action::Created);
    let hash = ContentHash::of(b"one");
    assert_eq!(record.source_hash, Some(hash));
    assert_eq!(record.evidence, Evidence::Written { hash });
    assert!(
        record.destination.ends_with("b/one.txt"),
        "{}",
        record.destination
    );
    let again = world.run(world.command(Mode::Copy)).await;
    assert_eq!(
        (again.created, again.updated, again.adopted),
        (0, 0, 0),
        "the next run moves nothing"
    );
    world.assert_chain();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn if_exists_decides_about_what_is_there() {
    for (if_exists, content, beside) in [
        (IfExists::Skip, b"old".as_slice(), None),
        (IfExists::Overwrite, b"newer", None),
        (IfExists::Differs, b"newer", None),
        (IfExists::KeepBoth, b"old", Some(b"newer".as_slice())),
        (IfExists::Fail, b"old", None),
    ] {
        let world = World::new();
        world.write("b/x.txt", b"old");
        world.write("a/x.txt", b"newer");
        let mut command = world.command(Mode::Copy);
        command.policy.if_exists = if_exists;
        world.run(command.clone()).await;
        assert_eq!(
            world.read("b/x.txt").as_deref(),
            Some(content),
            "{if_exists:?}"
        );
        assert_eq!(
            world.read("b/x (2).txt").as_deref(),
            beside,
            "{if_exists:?}"
        );
        world.run(command).await;
        assert_eq!(world.read("b/x (3).txt"), None, "{if_exists:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r26_a_new_time_alone_moves_nothing_and_is_remembered() {
    let world = World::new();
    world.write("a/x", b"same");
    world.write("b/x", b"same");
    let file = std::fs::File::options()
        .write(true)
        .open(world.path("a/x"))
        .unwrap();
    file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(5))
        .unwrap();
    let report = world.run(world.command(Mode::Copy)).await;
    assert_eq!(
        (report.updated, report.adopted, report.sent_bytes),
        (0, 1, 0)
    );
    let again = world.run(world.command(Mode::Copy)).await;
    assert_eq!((again.updated, again.adopted), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k4_a_move_removes_the_source_after_the_record_and_empties_its_directories() {
    let world = World::new();
    for number in 0..50 {
        world.write(
            &format!("a/d{}/{number}", number % 5),
            format!("{number}").as_bytes(),
        );
    }
    world.write("a/large", &vec![1; 3 << 20]);
    let mut command = world.command(Mode::Copy);
    command.command = "move".into();
    command.after = After::Delete;
    let report = world.run(command).await;
    assert_eq!(
        (report.state, report.created),
        (RunState::Done, 56),
        "{:?}",
        world.seen.lines()
    );
    assert_eq!(std::fs::read_dir(world.path("a")).unwrap().count(), 0);
    assert_eq!(world.read("b/d3/13").as_deref(), Some(b"13".as_slice()));
    let actions: Vec<Action> = trace(&world, "d3/13")
        .iter()
        .map(|record| record.action)
        .collect();
    assert_eq!(actions, [Action::Created, Action::SourceRemoved]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k4_a_move_compares_contents_before_it_removes_what_is_there_already() {
    let world = World::new();
    for (name, there) in [("same", b"content"), ("other", b"CONTENT")] {
        world.write(&format!("a/{name}"), b"content");
        world.write(&format!("b/{name}"), there);
        let mtime = std::fs::metadata(world.path("a").join(name))
            .unwrap()
            .modified()
            .unwrap();
        let file = std::fs::File::options()
            .write(true)
            .open(world.path("b").join(name))
            .unwrap();
        file.set_modified(mtime).unwrap();
    }
    let mut command = world.command(Mode::Copy);
    command.after = After::Delete;
    let report = world.run(command).await;
    assert_eq!(
        (report.adopted, report.updated),
        (1, 1),
        "{:?}",
        world.seen.lines()
    );
    assert_eq!(std::fs::read_dir(world.path("a")).unwrap().count(), 0);
    assert_eq!(
        world.read("b/other").as_deref(),
        Some(b"content".as_slice())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k4_a_move_of_what_cannot_be_written_keeps_the_source() {
    let world = World::new();
    world.write("a/x/y", b"precious");
    world.write("b/x", b"a file where a directory is needed");
    let mut command = world.command(Mode::Copy);
    command.after = After::Delete;
    let report = world.run(command).await;
    assert!(report.failed + report.problems > 0);
    assert_eq!(world.read("a/x/y").as_deref(), Some(b"precious".as_slice()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_replaces_files_by_directories_and_the_other_way_round() {
    let world = World::new();
    world.write("a/x/deep/file", b"1");
    world.write("a/y", b"2");
    world.write("b/x", b"old");
    world.write("b/y/deep/file", b"old");
    world.write("b/gone", b"old");
    let report = world.run(world.command(Mode::Mirror)).await;
    assert_eq!(report.state, RunState::Done, "{:?}", world.seen.lines());
    knarr_testkit::data::assert_same_tree(
        &world.path("a"),
        &world.path("b"),
        &knarr_testkit::data::Compare::exact(),
    );
    let again = world.run(world.command(Mode::Mirror)).await;
    assert_eq!((again.created, again.updated, again.deleted), (0, 0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k5_a_mass_deletion_is_held_until_it_is_approved() {
    let world = World::new();
    for number in 0..150 {
        world.write(&format!("b/{number}"), b"x");
    }
    world.write("a/one", b"1");
    let held = world.run(world.command(Mode::Mirror)).await;
    assert_eq!(
        (held.state, held.held),
        (RunState::Held, Some(MassDeletion::TooMany))
    );
    assert_eq!((held.held_removals, held.deleted), (150, 0));
    assert_eq!(std::fs::read_dir(world.path("b")).unwrap().count(), 151);
    let hold = world
        .store()
        .read(|reader| reader.holds())
        .unwrap()
        .pop()
        .unwrap();
    world
        .store()
        .transact(move |tx| tx.approve(hold.pair, &hold.held.digest, "a person"))
        .wait()
        .unwrap();
    let approved = world.run(world.command(Mode::Mirror)).await;
    assert_eq!((approved.state, approved.deleted), (RunState::Done, 150));
    assert_eq!(trace(&world, "7").pop().unwrap().decided_by, "a person");
    // An approval counts once.
    for number in 0..150 {
        world.write(&format!("b/{number}"), b"x");
    }
    assert_eq!(
        world.run(world.command(Mode::Mirror)).await.state,
        RunState::Held
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k5_an_empty_or_missing_source_removes_nothing() {
    let world = World::new();
    world.write("b/x", b"x");
    let report = world.run(world.command(Mode::Mirror)).await;
    assert_eq!(report.held, Some(MassDeletion::SuspiciouslyEmpty));
    std::fs::remove_dir(world.path("a")).unwrap();
    let error = world
        .try_run(world.command(Mode::Mirror))
        .await
        .unwrap_err();
    assert!(matches!(error, EngineError::Look { .. }), "{error}");
    assert_eq!(world.read("b/x").as_deref(), Some(b"x".as_slice()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k5_r24_what_a_filter_leaves_out_is_not_removed() {
    let world = World::new();
    world.write("a/keep.txt", b"1");
    world.write("b/other.log", b"2");
    world.write("b/big.txt", &[0; 2_000]);
    world.write("a/big.txt", &[1; 3_000]);
    world.write("b/gone.txt", b"3");
    let mut command = world.command(Mode::Mirror);
    let mut filter = Filter::new(["*.txt"], []).unwrap();
    filter.max_size = Some(2_500);
    command.filter = Arc::new(filter);
    let report = world.run(command).await;
    assert_eq!(report.deleted, 1, "{:?}", world.seen.lines());
    assert!(world.read("b/other.log").is_some() && world.read("b/gone.txt").is_none());
    assert_eq!(
        world.read("b/big.txt").map(|content| content.len()),
        Some(2_000)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_unreadable_file_does_not_stop_the_others() {
    let world = World::new();
    world.write("a/fine", b"1");
    std::fs::create_dir(world.path("b/stuck")).unwrap();
    world.write("b/stuck/inside", b"in the way");
    world.write("a/stuck", b"2");
    nix_fifo(&world.path("a/pipe"));
    let report = world.run(world.command(Mode::Copy)).await;
    assert_eq!(
        (report.created, report.problems),
        (1, 2),
        "{:?}",
        world.seen.lines()
    );
    assert_eq!(world.read("b/fine").as_deref(), Some(b"1".as_slice()));
}

fn nix_fifo(path: &std::path::Path) {
    let status = std::process::Command::new("mkfifo")
        .arg(path)
        .status()
        .unwrap();
    assert!(status.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reviewed_plan_is_carried_out_exactly_or_not_at_all() {
    let world = World::new();
    world.write("a/new", b"1");
    world.write("a/other", b"2");
    world.write("b/gone", b"3");
    let header = Header {
        knarr_plan: VERSION,
        created: String::new(),
        arguments: serde_json::Value::Null,
    };
    let mut writer = PlanWriter::begin(Vec::new(), &header).unwrap();
    let mut decisions = Vec::new();
    let planned = world
        .command(Mode::Mirror)
        .plan(&world.environment, |decision: Decision| {
            writer.add(&decision).unwrap();
            decisions.push(decision);
            Ok(())
        })
        .await
        .unwrap();
    assert_eq!((decisions.len(), planned.counts.source_entries), (3, 2));
    assert!(world.read("b/new").is_none(), "planning does nothing");
    let file = writer.finish().unwrap();
    let open = || Ok(PlanReader::open(file.as_slice())?.1);
    world.write("a/surprise", b"4");
    let refused = world
        .command(Mode::Mirror)
        .apply(&world.environment, open)
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("\"surprise\""), "{refused}");
    assert!(world.read("b/new").is_none() && world.read("b/gone").is_some());
    std::fs::remove_file(world.path("a/surprise")).unwrap();
    let report = world
        .command(Mode::Mirror)
        .apply(&world.environment, open)
        .await
        .unwrap();
    assert_eq!(
        (report.created, report.deleted),
        (2, 1),
        "{:?}",
        world.seen.lines()
    );
    assert!(world.read("b/gone").is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_commands_on_one_pair_exclude_each_other() {
    let world = World::new();
    world.write("a/x", b"1");
    let lock_holder = world.command(Mode::Copy);
    let other = world.command(Mode::Copy);
    let (first, second) = tokio::join!(
        lock_holder.run(&world.environment),
        other.run(&world.environment)
    );
    // Whoever comes second is told; if the first was quick, both have done their work.
    let busy = [&first, &second]
        .into_iter()
        .filter(|result| matches!(result, Err(EngineError::Busy { .. })))
        .count();
    assert!(
        busy <= 1 && (first.is_ok() || second.is_ok()),
        "{first:?} {second:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r37_every_name_that_a_disk_can_hold_arrives() {
    let world = World::new();
    for name in knarr_testkit::data::nasty_names() {
        use std::os::unix::ffi::OsStrExt as _;
        let name = std::ffi::OsStr::from_bytes(&name.bytes).to_owned();
        std::fs::write(world.path("a").join(&name), name.as_bytes()).unwrap();
    }
    let report = world.run(world.command(Mode::Copy)).await;
    assert_eq!(
        report.failed + report.problems,
        0,
        "{:?}",
        world.seen.lines()
    );
    knarr_testkit::data::assert_same_tree(
        &world.path("a"),
        &world.path("b"),
        &knarr_testkit::data::Compare::exact(),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn permissions_come_along() {
    let world = World::new();
    world.write("a/tool", b"#!/bin/sh");
    let mode = std::fs::Permissions::from_mode(0o750);
    std::fs::set_permissions(world.path("a/tool"), mode).unwrap();
    world.run(world.command(Mode::Copy)).await;
    let copied = std::fs::metadata(world.path("b/tool"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(copied & 0o7777, 0o750);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k10_many_small_files_go_in_batches() {
    let world = World::new();
    for number in 0..5_000 {
        world.write(
            &format!("a/{}/{number}", number % 50),
            format!("{number}").as_bytes(),
        );
    }
    let report = world.run(world.command(Mode::Copy)).await;
    assert_eq!((report.state, report.created), (RunState::Done, 5_050));
    let again = world.run(world.command(Mode::Copy)).await;
    assert_eq!(again.created + again.updated, 0);
    world.assert_chain();
    let _policy: Policy = world.command(Mode::Copy).policy;
}
