//! Sources that change while they are read.

use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::program::Place;

/// Overwrites a file with one letter after the other, until told to stop.
struct Writer {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

const LENGTH: usize = 3 << 20;

impl Writer {
    fn start(path: std::path::PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let file = fs::File::options().write(true).open(path).unwrap();
            for letter in (b'a'..=b'z').cycle() {
                file.write_all_at(&vec![letter; LENGTH], 0).unwrap();
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        Self { stop, thread }
    }

    fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

#[test]
fn k2_k7_r35_a_file_that_is_written_all_the_time_is_never_delivered_torn() {
    let place = Place::new();
    place.write("in/busy", vec![b'a'; LENGTH]);
    place.write("in/calm", "calm");
    let writer = Writer::start(place.path("in/busy"));
    for round in 0..5 {
        let done = place.run(&["copy", "in", "out", "--attempts", "2"]);
        assert!(matches!(done.code, 0 | 1), "round {round}: {done:?}");
        assert_eq!(fs::read_to_string(place.path("out/calm")).unwrap(), "calm");
        if let Ok(there) = fs::read(place.path("out/busy")) {
            let first = there.first().copied();
            let whole = there.len() == LENGTH && there.iter().all(|byte| Some(*byte) == first);
            assert!(whole, "round {round}: a mixture of versions was delivered");
        } else {
            assert_eq!(done.code, 1, "round {round}: {done:?}");
        }
    }
    writer.finish();
    let done = place.run(&["copy", "in", "out"]);
    assert_eq!(done.code, 0, "{done:?}");
    place.check_end(
        &["copy", "in", "out"],
        &place.path("in"),
        &place.path("out"),
    );
}

#[test]
fn k2_k7_r35_a_tree_that_is_rearranged_under_a_copy_converges_when_it_rests() {
    let place = Place::new();
    knarr_testkit::data::TreeBuilder::new(41)
        .files(400)
        .directories(1)
        .build(&place.path("in"));
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let victim = place.path("in/turning");
    let other = place.path("in/coming");
    let thread = std::thread::spawn(move || {
        // A file, a directory with a file, nothing, and again.
        while !stopped.load(Ordering::Relaxed) {
            fs::write(&victim, "a file").unwrap();
            fs::write(&other, "comes and goes").unwrap();
            fs::remove_file(&victim).unwrap();
            fs::create_dir(&victim).unwrap();
            fs::write(victim.join("below"), "below").unwrap();
            fs::remove_file(&other).unwrap();
            fs::remove_dir_all(&victim).unwrap();
        }
        fs::write(&victim, "a file at last").unwrap();
    });
    for round in 0..4 {
        let done = place.run(&[
            "mirror",
            "in",
            "out",
            "--attempts",
            "2",
            "--approve-deletes",
        ]);
        assert!(matches!(done.code, 0 | 1), "round {round}: {done:?}");
    }
    stop.store(true, Ordering::Relaxed);
    thread.join().unwrap();
    let done = place.run(&["mirror", "in", "out", "--approve-deletes"]);
    assert_eq!(done.code, 0, "{done:?}");
    let again = super::support::report(&place.run(&["mirror", "in", "out", "--json"]));
    assert_eq!(
        (&again["created"], &again["deleted"]),
        (&0.into(), &0.into()),
        "{again}"
    );
    let compare = knarr_testkit::data::Compare::exact();
    knarr_testkit::data::assert_same_tree(&place.path("in"), &place.path("out"), &compare);
}

#[test]
fn k2_r08_a_file_that_became_a_directory_replaces_the_file_at_the_destination() {
    let place = Place::new();
    place.write("in/thing", "a file");
    place.run(&["mirror", "in", "out"]).good();
    fs::remove_file(place.path("in/thing")).unwrap();
    place.write("in/thing/below", "a directory now");
    let done = place.run(&["mirror", "in", "out"]);
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(
        fs::read_to_string(place.path("out/thing/below")).unwrap(),
        "a directory now"
    );
    fs::remove_dir_all(place.path("in/thing")).unwrap();
    place.write("in/thing", "a file again");
    let done = place.run(&["mirror", "in", "out"]);
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(
        fs::read_to_string(place.path("out/thing")).unwrap(),
        "a file again"
    );
}

#[test]
fn k2_k7_r35_a_file_that_grows_while_it_is_copied_is_delivered_as_it_was_at_some_time() {
    use std::io::Write as _;
    const LINE: &[u8; 1024] = &[b'x'; 1024];
    let place = Place::new();
    place.write("in/log", LINE.repeat(2048));
    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, path) = (Arc::clone(&stop), place.path("in/log"));
    let writer = std::thread::spawn(move || {
        let mut file = fs::File::options().append(true).open(path).unwrap();
        while !stopped.load(Ordering::Relaxed) {
            file.write_all(LINE).unwrap();
            std::thread::park_timeout(std::time::Duration::from_micros(300));
        }
    });
    for round in 0..5 {
        let done = place.run(&["copy", "in", "out", "--attempts", "2"]);
        assert!(matches!(done.code, 0 | 1), "round {round}: {done:?}");
        let there = fs::read(place.path("out/log")).unwrap_or_default();
        assert_eq!(there.len() % LINE.len(), 0, "round {round}: a torn line");
    }
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    place.run(&["copy", "in", "out"]).good();
    let (here, there) = (
        fs::read(place.path("in/log")),
        fs::read(place.path("out/log")),
    );
    assert!(here.unwrap() == there.unwrap(), "the last version arrived");
}

#[test]
fn k2_r35_a_file_written_just_now_is_read_only_after_a_moment_of_rest() {
    let place = Place::new();
    // One goes in a batch, one by itself.
    for (name, length) in [("small", 10), ("large", 2 << 20)] {
        let (from, into) = (format!("{name}/file"), format!("{name}-out"));
        place.write(&from, vec![b'x'; length]);
        let done = place.run(&["copy", name, &into]);
        assert_eq!(done.code, 0, "{done:?}");
        let source = fs::metadata(place.path(&from)).unwrap();
        let there = fs::metadata(place.path(&format!("{into}/file"))).unwrap();
        let nanoseconds =
            |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        // The time of the last change of a delivered file is that of its rename at the commit.
        let rested = nanoseconds(there.ctime(), there.ctime_nsec())
            - nanoseconds(source.mtime(), source.mtime_nsec());
        assert!(rested >= 100_000_000, "{name}: read after {rested} ns");
    }
}
