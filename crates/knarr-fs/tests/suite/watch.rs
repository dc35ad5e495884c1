//! What the watcher tells, and that it never stays silent.

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use knarr_core::entry::Kind;
use knarr_core::path::RelPath;
use knarr_fs::Root;
use knarr_fs::root::Replace;
use knarr_fs::watch::{Degradation, WatchEvent, WatchOptions, Watcher};
use tempfile::TempDir;

use crate::support::{empty_root, path, put, write};

/// How long an event may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

struct Watched {
    directory: TempDir,
    root: Root,
    watcher: Watcher,
    events: Receiver<WatchEvent>,
    marks: u32,
}

impl Watched {
    fn new() -> Self {
        Self::with(WatchOptions::default(), |_| {})
    }

    fn with(options: WatchOptions, prepare: impl FnOnce(&Path)) -> Self {
        let (directory, root) = empty_root();
        prepare(directory.path());
        let (watcher, events) = Watcher::start(&root, options).unwrap();
        Self {
            directory,
            root,
            watcher,
            events,
            marks: 0,
        }
    }

    fn at(&self, below: &str) -> PathBuf {
        self.directory.path().join(below)
    }

    fn rename(&self, from: &str, to: &str) {
        rename(
            &self.at(from),
            &self.at(to),
            rustix::fs::RenameFlags::empty(),
        );
    }

    /// All events up to now: a file is written, and events are taken until its own is told and the
    /// watcher waits for nothing more.
    fn events(&mut self) -> Vec<WatchEvent> {
        self.marks += 1;
        let mark = format!("mark-{}", self.marks);
        write(&self.at(&mark), b"");
        let mut found = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.events.recv_timeout(Duration::from_secs(1)) {
                Ok(WatchEvent::Closed(at)) if at == path(&mark) => break,
                Ok(event) => found.push(event),
                // A mark is lost as well when the kernel's queue overflows.
                Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {
                    write(&self.at(&mark), b"");
                }
                Err(error) => panic!("{error}; so far {found:?}"),
            }
        }
        while !self.watcher.is_settled() {
            assert!(
                Instant::now() < deadline,
                "the watcher does not come to rest"
            );
            found.extend(self.events.recv_timeout(Duration::from_millis(1)));
        }
        found.extend(self.events.try_iter());
        // A file that took long from its creation to its close is told at both.
        let closed: BTreeSet<RelPath> = found
            .iter()
            .filter_map(|event| match event {
                WatchEvent::Closed(at) => Some(at.clone()),
                _ => None,
            })
            .collect();
        found.retain(|event| !matches!(event, WatchEvent::Appeared(at) if closed.contains(at)));
        // A mark that was read before its close came is nothing to the test.
        found.retain(|event| !format!("{event:?}").contains("mark-"));
        found
    }

    fn expect(&mut self, expected: &[WatchEvent]) {
        assert_eq!(self.events(), expected);
    }
}

fn rename(from: &Path, to: &Path, flags: rustix::fs::RenameFlags) {
    let at = rustix::fs::CWD;
    rustix::fs::renameat_with(at, from, at, to, flags).unwrap();
}

fn renamed(from: &str, to: &str, kind: Kind) -> WatchEvent {
    WatchEvent::Renamed {
        from: path(from),
        to: path(to),
        kind,
    }
}

fn closed(at: &str) -> WatchEvent {
    WatchEvent::Closed(path(at))
}

#[test]
fn a_file_is_told_when_it_is_closed_renamed_changed_and_removed() {
    let mut watched = Watched::new();
    write(&watched.at("f"), b"content");
    watched.expect(&[closed("f")]);
    watched.rename("f", "g");
    watched.expect(&[renamed("f", "g", Kind::File)]);
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(watched.at("g"), mode).unwrap();
    watched.expect(&[WatchEvent::AttributesChanged(path("g"))]);
    std::fs::remove_file(watched.at("g")).unwrap();
    watched.expect(&[WatchEvent::Deleted(path("g"), Kind::File)]);
}

#[test]
fn r31_a_file_that_is_still_written_is_told_again_when_it_is_closed() {
    let mut watched = Watched::new();
    let mut file = std::fs::File::create(watched.at("f")).unwrap();
    watched.expect(&[WatchEvent::Appeared(path("f"))]);
    std::io::Write::write_all(&mut file, b"more").unwrap();
    watched.expect(&[]);
    drop(file);
    watched.expect(&[closed("f")]);
}

#[test]
fn r32_links_and_second_names_are_told() {
    let mut watched = Watched::new();
    write(&watched.at("f"), b"content");
    std::fs::hard_link(watched.at("f"), watched.at("second")).unwrap();
    symlink("f", watched.at("link")).unwrap();
    let mut found = watched.events();
    found.retain(|event| !matches!(event, WatchEvent::AttributesChanged(_)));
    found.sort_by_key(|event| format!("{event:?}"));
    let appeared = |at| WatchEvent::Appeared(path(at));
    assert_eq!(found, [appeared("link"), appeared("second"), closed("f")]);
}

#[test]
fn r32_what_is_in_new_directories_is_told_however_fast_they_are_made() {
    let mut watched = Watched::new();
    let mut expected = BTreeSet::new();
    for number in 0..300 {
        let directory = format!("n{number}/a/b/c");
        std::fs::create_dir_all(watched.at(&directory)).unwrap();
        for file in ["1", "2"] {
            let at = format!("{directory}/{file}");
            write(&watched.at(&at), b"x");
            expected.insert(path(&at));
        }
    }
    let found = watched.events();
    let mut told = BTreeSet::new();
    for event in found {
        match event {
            WatchEvent::Closed(at) | WatchEvent::Appeared(at) => drop(told.insert(at)),
            WatchEvent::DirectoryCreated(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(told, expected);
    assert_eq!(watched.watcher.watches(), 1 + 300 * 4);
    // And they stay watched.
    write(&watched.at("n299/a/b/c/later"), b"x");
    watched.expect(&[closed("n299/a/b/c/later")]);
}

#[test]
fn r32_a_directory_that_is_moved_in_is_watched_and_one_that_is_moved_out_is_not() {
    let outside = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(outside.path().join("d/e")).unwrap();
    let mut watched = Watched::new();
    let plainly = rustix::fs::RenameFlags::empty();
    rename(&outside.path().join("d"), &watched.at("d"), plainly);
    watched.expect(&[WatchEvent::MovedIn(path("d"), Kind::Directory)]);
    write(&watched.at("d/e/f"), b"x");
    watched.expect(&[closed("d/e/f")]);
    assert_eq!(watched.watcher.watches(), 3);

    rename(&watched.at("d"), &outside.path().join("away"), plainly);
    write(&outside.path().join("away/e/unseen"), b"x");
    let found = watched.events();
    let out = WatchEvent::MovedOut(path("d"), Kind::Directory);
    assert!(found.contains(&out), "{found:?}");
    assert_eq!(watched.watcher.watches(), 1);
    write(&outside.path().join("away/e/unseen, too"), b"x");
    watched.expect(&[]);

    write(&outside.path().join("file"), b"x");
    rename(&outside.path().join("file"), &watched.at("file"), plainly);
    watched.expect(&[WatchEvent::MovedIn(path("file"), Kind::File)]);
    rename(&watched.at("file"), &outside.path().join("file"), plainly);
    watched.expect(&[WatchEvent::MovedOut(path("file"), Kind::File)]);
}

#[test]
fn a_file_that_knarr_commits_is_told_once_under_its_final_name() {
    let mut watched = Watched::new();
    put(&watched.root, "f", b"content", Replace::Nothing).unwrap();
    watched.expect(&[WatchEvent::MovedIn(path("f"), Kind::File)]);
    watched.rename("f", ".knarr-away");
    watched.expect(&[WatchEvent::MovedOut(path("f"), Kind::File)]);
}

#[test]
fn r33_ten_thousand_renames_of_a_directory_leave_what_is_below_it_watched() {
    let mut watched = Watched::with(WatchOptions::default(), |root| {
        std::fs::create_dir_all(root.join("d0/below")).unwrap();
        std::fs::create_dir_all(root.join("other")).unwrap();
    });
    let mut now = "d0".to_owned();
    for number in 1..=10_000 {
        // In and out of another directory, too.
        let next = if number % 3 == 0 {
            format!("other/d{number}")
        } else {
            format!("d{number}")
        };
        watched.rename(&now, &next);
        now = next;
    }
    let found = watched.events();
    let lost = found
        .iter()
        .any(|event| matches!(event, WatchEvent::Overflow { .. }));
    if !lost {
        // Followed step by step, the renames lead from the first name to the last.
        let mut followed = path("d0");
        for event in found {
            let WatchEvent::Renamed {
                from,
                to,
                kind: Kind::Directory,
            } = event
            else {
                panic!("{event:?}")
            };
            assert_eq!(from, followed);
            followed = to;
        }
        assert_eq!(followed, path(&now));
    }
    write(&watched.at(&format!("{now}/below/f")), b"x");
    watched.expect(&[closed(&format!("{now}/below/f"))]);
    assert_eq!(watched.watcher.watches(), 4);
}

#[test]
fn r33_directories_that_are_exchanged_or_rotated_keep_their_content_apart() {
    let mut watched = Watched::with(WatchOptions::default(), |root| {
        for name in ["a/in-a", "b/in-b", "c/in-c"] {
            std::fs::create_dir_all(root.join(name)).unwrap();
        }
    });
    let exchange = rustix::fs::RenameFlags::EXCHANGE;
    for round in 0..101 {
        rename(&watched.at("a"), &watched.at("b"), exchange);
        if round % 2 == 0 {
            for (from, to) in [("a", "t"), ("b", "a"), ("c", "b"), ("t", "c")] {
                watched.rename(from, to);
            }
        }
    }
    watched.events();
    for name in ["a", "b", "c"] {
        let below = std::fs::read_dir(watched.at(name))
            .unwrap()
            .next()
            .unwrap()
            .unwrap();
        let at = format!("{name}/{}/f", below.file_name().to_str().unwrap());
        write(&watched.at(&at), b"x");
        watched.expect(&[closed(&at)]);
    }
    assert_eq!(watched.watcher.watches(), 7);
}

#[test]
fn a_directory_that_is_removed_and_made_again_at_once_is_watched() {
    let mut watched = Watched::new();
    for _ in 0..200 {
        std::fs::create_dir_all(watched.at("d/e")).unwrap();
        write(&watched.at("d/e/f"), b"x");
        std::fs::remove_dir_all(watched.at("d")).unwrap();
    }
    std::fs::create_dir_all(watched.at("d/e")).unwrap();
    let found = watched.events();
    assert!(
        !found
            .iter()
            .any(|event| matches!(event, WatchEvent::Degraded { .. })),
        "{found:?}"
    );
    write(&watched.at("d/e/last"), b"x");
    watched.expect(&[closed("d/e/last")]);
    assert_eq!(watched.watcher.watches(), 3);
}

#[test]
fn r30_when_the_kernel_loses_events_everything_is_told_as_unknown_and_watched_again() {
    let mut watched = Watched::with(WatchOptions::default(), |root| {
        std::fs::create_dir_all(root.join("old/below")).unwrap();
        std::fs::create_dir_all(root.join("doomed")).unwrap();
    });
    watched.watcher.pause();
    let limit = std::fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let limit: usize = limit.trim().parse().unwrap();
    for number in 0..=limit {
        write(&watched.at(&format!("f{number}")), b"");
    }
    // None of this is told any more.
    watched.rename("old", "renamed");
    std::fs::remove_dir(watched.at("doomed")).unwrap();
    std::fs::create_dir_all(watched.at("new/deep")).unwrap();
    watched.watcher.resume();
    let deadline = Instant::now() + PATIENCE;
    loop {
        match watched
            .events
            .recv_timeout(deadline.saturating_duration_since(Instant::now()))
        {
            Ok(WatchEvent::Overflow { below: None }) => break,
            Ok(_) => {}
            Err(error) => panic!("the loss was not told: {error}"),
        }
    }
    watched.events();
    for at in ["new/deep/f", "renamed/below/f"] {
        write(&watched.at(at), b"x");
        watched.expect(&[closed(at)]);
    }
    assert_eq!(watched.watcher.watches(), 5);
}

#[test]
fn k10_a_consumer_that_sleeps_learns_where_to_look_when_it_wakes() {
    let options = WatchOptions {
        channel_capacity: 8,
        ..WatchOptions::default()
    };
    let watched = Watched::with(options, |root| {
        for name in ["a", "b", "quiet"] {
            std::fs::create_dir(root.join(name)).unwrap();
        }
    });
    let mut written = BTreeSet::new();
    for number in 0..6000 {
        let at = format!("{}/f{number}", if number % 2 == 0 { "a" } else { "b" });
        write(&watched.at(&at), b"x");
        written.insert(path(&at));
    }
    let mut looked_at: Vec<RelPath> = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while !written.is_empty() {
        match watched
            .events
            .recv_timeout(deadline.saturating_duration_since(Instant::now()))
        {
            Ok(WatchEvent::Closed(at) | WatchEvent::Appeared(at)) => drop(written.remove(&at)),
            Ok(WatchEvent::Overflow { below }) => {
                let below = below.expect("only two directories changed");
                written.retain(|at| !at.is_below(&below));
                looked_at.push(below);
            }
            Ok(other) => panic!("{other:?}"),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                panic!("{} files were never told", written.len());
            }
        }
    }
    assert!(
        !looked_at.is_empty() && !looked_at.contains(&path("quiet")),
        "{looked_at:?}"
    );
}

#[test]
fn r34_directories_beyond_the_limit_of_watches_are_told_as_degraded() {
    let options = WatchOptions {
        max_watches: 3,
        ..WatchOptions::default()
    };
    let mut watched = Watched::with(options, |root| {
        for name in ["a", "b", "c/deep", "d"] {
            std::fs::create_dir_all(root.join(name)).unwrap();
        }
    });
    let degraded = |found: &[WatchEvent]| -> BTreeSet<RelPath> {
        let unwatched = found.iter().filter_map(|event| match event {
            WatchEvent::Degraded {
                unwatched,
                reason: Degradation::WatchLimit,
            } => unwatched.clone(),
            _ => None,
        });
        unwatched.collect()
    };
    let found = watched.events();
    let before = degraded(&found);
    assert_eq!(
        (before.len(), watched.watcher.watches()),
        (2, 3),
        "{found:?}"
    );
    for name in ["a", "b", "c", "d"] {
        write(&watched.at(&format!("{name}/f")), b"x");
    }
    let told: BTreeSet<RelPath> = watched
        .events()
        .into_iter()
        .map(|event| match event {
            WatchEvent::Closed(at) => at.parent().unwrap(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(told.is_disjoint(&before), "{told:?} {before:?}");
    assert_eq!(told.len() + before.len(), 4);
    // A directory that comes later is told as well.
    std::fs::create_dir(watched.at("late")).unwrap();
    assert_eq!(degraded(&watched.events()), BTreeSet::from([path("late")]));
}

#[test]
fn directories_that_are_not_wanted_are_not_watched() {
    let filter = |at: &RelPath| at.name() != b"skip";
    let options = WatchOptions {
        filter: Some(std::sync::Arc::new(filter)),
        ..WatchOptions::default()
    };
    let mut watched = Watched::with(options, |root| {
        std::fs::create_dir_all(root.join("skip/below")).unwrap();
        std::fs::create_dir_all(root.join("keep")).unwrap();
    });
    write(&watched.at("skip/below/f"), b"x");
    write(&watched.at("keep/f"), b"x");
    watched.expect(&[closed("keep/f")]);
}

#[test]
fn k5_a_root_that_goes_away_is_told_and_ends_the_watch() {
    let watched = Watched::new();
    rename(
        watched.directory.path(),
        &watched.directory.path().with_extension("moved"),
        rustix::fs::RenameFlags::empty(),
    );
    assert_eq!(
        watched.events.recv_timeout(PATIENCE),
        Ok(WatchEvent::RootGone)
    );
    assert_eq!(
        watched.events.recv_timeout(PATIENCE),
        Err(RecvTimeoutError::Disconnected)
    );
    std::fs::remove_dir(watched.directory.path().with_extension("moved")).unwrap();
}

#[test]
fn r32_a_storm_of_everything_leaves_every_directory_watched_at_its_place() {
    for seed in 1..=8 {
        storm(seed);
    }
}

/// The sequence is fixed by the seed; what the watcher makes of it depends on when it gets to run.
fn storm(seed: u64) {
    let mut watched = Watched::new();
    let mut state = seed.wrapping_mul(0x2545_f491_4f6c_dd1d);
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    for _ in 0..1500 {
        let mut name = || {
            let depth = 1 + random(3);
            let names: Vec<String> = (0..depth).map(|_| format!("d{}", random(4))).collect();
            names.join("/")
        };
        let (from, to) = (watched.at(&name()), watched.at(&name()));
        match random(5) {
            0 | 1 => std::fs::create_dir_all(from).unwrap_or(()),
            2 => std::fs::remove_dir_all(from).unwrap_or(()),
            3 => {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                let at = rustix::fs::CWD;
                rustix::fs::renameat_with(at, from, at, to, flags).unwrap_or(());
            }
            _ => rustix::fs::renameat(rustix::fs::CWD, from, rustix::fs::CWD, to).unwrap_or(()),
        }
    }
    watched.events();
    let mut directories = Vec::new();
    for item in crate::support::entries(&watched.root) {
        if item.kind == Kind::Directory {
            directories.push(item.path);
        }
    }
    assert_eq!(
        watched.watcher.watches(),
        directories.len() + 1,
        "seed {seed}"
    );
    for directory in directories {
        let at = format!("{directory}/f");
        write(&watched.at(&at), b"x");
        watched.expect(&[closed(&at)]);
    }
}
