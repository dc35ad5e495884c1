//! Two-way synchronisation between two directories.

use knarr_core::plan::Mode;
use knarr_core::run::RunState;

use crate::support::World;

fn names(world: &World, side: &str) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(world.path(side))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

async fn sync(world: &World) -> knarr_engine::oneshot::Report {
    let report = world.run(world.command(Mode::TwoWay)).await;
    assert_eq!(report.state, RunState::Done, "{:?}", world.seen.lines());
    report
}

/// What both sides had alike before keeps its own time on each.
fn assert_same_content(world: &World) {
    knarr_testkit::data::assert_same_tree(
        &world.path("a"),
        &world.path("b"),
        &knarr_testkit::data::Compare::content(),
    );
}

fn assert_same(world: &World) {
    knarr_testkit::data::assert_same_tree(
        &world.path("a"),
        &world.path("b"),
        &knarr_testkit::data::Compare::exact(),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k7_changes_go_both_ways_and_deletions_follow() {
    let world = World::new();
    world.write("a/left", b"l");
    world.write("b/right", b"r");
    world.write("a/both", b"same");
    world.write("b/both", b"same");
    let first = sync(&world).await;
    assert_eq!((first.created, first.conflicts), (2, 0));
    assert_same_content(&world);
    world.write("a/right", b"edited on the left");
    std::fs::remove_file(world.path("b/left")).unwrap();
    world.write("b/new/deep", b"n");
    let second = sync(&world).await;
    assert_eq!(
        (second.updated, second.deleted, second.conflicts),
        (1, 1, 0)
    );
    assert_same_content(&world);
    assert_eq!(names(&world, "a"), ["both", "new", "right"]);
    let third = sync(&world).await;
    assert_eq!(
        third.created + third.updated + third.deleted + third.adopted,
        0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k6_a_conflict_keeps_both_versions_on_both_sides() {
    let world = World::new();
    world.write("a/x.txt", b"base");
    sync(&world).await;
    world.write("b/x.txt", b"the right version, which is older");
    tokio::time::sleep(std::time::Duration::from_millis(15)).await;
    world.write("a/x.txt", b"the left version");
    let report = sync(&world).await;
    assert_eq!(report.conflicts, 1);
    assert_same(&world);
    assert_eq!(
        world.read("b/x.txt").as_deref(),
        Some(b"the left version".as_slice())
    );
    let names = names(&world, "a");
    let kept = names
        .iter()
        .find(|name| name.contains(".conflict-"))
        .unwrap();
    let kept = world.read(&format!("a/{kept}")).unwrap();
    assert_eq!(kept, b"the right version, which is older");
    assert_eq!(sync(&world).await.conflicts, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r25_an_edit_wins_over_a_deletion_and_its_directory_stays() {
    let world = World::new();
    world.write("a/other", b"so that the side is not empty");
    world.write("a/d/x", b"1");
    world.write("a/d/y", b"2");
    sync(&world).await;
    std::fs::remove_dir_all(world.path("a/d")).unwrap();
    world.write("b/d/x", b"edited meanwhile");
    sync(&world).await;
    sync(&world).await;
    assert_same(&world);
    assert_eq!(
        world.read("a/d/x").as_deref(),
        Some(b"edited meanwhile".as_slice())
    );
    assert!(world.read("a/d/y").is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r15_without_its_state_a_sync_is_a_first_contact_and_removes_nothing() {
    let mut world = World::new();
    world.write("a/x", b"1");
    world.write("a/y", b"2");
    sync(&world).await;
    std::fs::remove_file(world.path("b/y")).unwrap();
    let other = world.path("other-state");
    let (environment, seen) = crate::support::environment(&other);
    (world.environment, world.seen) = (environment, seen);
    let report = sync(&world).await;
    assert_eq!((report.deleted, report.created), (0, 1));
    assert_same(&world);
}
