//! Killed, or let down by the kernel, at every call of the commit path.

use std::path::Path;
use std::process::Command;

use knarr_testkit::kill::{Injection, SweepPoint, SyscallSweep};
use tempfile::TempDir;

use crate::support::{own_names, probe, write};

const FEW: u64 = 2;
/// Enough for one `syncfs` instead of a flush per file.
const MANY: u64 = 10;

/// A fresh world: `root/new/1` is there, with old content.
struct World {
    directory: TempDir,
    files: u64,
    way: Way,
}

/// How the files get there.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    /// Each is staged by itself, and all are committed together.
    Staged,
    /// The bulk copy.
    Copied,
}

impl World {
    fn new(way: Way, files: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(directory.path().join("root/new")).unwrap();
        write(&directory.path().join("root/new/1"), b"old");
        std::fs::create_dir(directory.path().join("from")).unwrap();
        for number in 0..files {
            write(
                &directory.path().join(format!("from/{number}")),
                &[b'n'; 5000],
            );
        }
        Self {
            directory,
            files,
            way,
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(probe());
        let at = |name: &str| self.directory.path().join(name);
        match self.way {
            Way::Staged => {
                command
                    .arg("commit")
                    .arg(at("root"))
                    .arg(self.mark())
                    .arg(self.files.to_string());
            }
            Way::Copied => {
                command
                    .arg("copy")
                    .arg(at("from"))
                    .arg(at("root"))
                    .arg(self.mark());
            }
        }
        command
    }

    fn mark(&self) -> std::path::PathBuf {
        self.directory.path().join("mark")
    }

    fn new_directory(&self) -> std::path::PathBuf {
        self.directory.path().join("root/new")
    }

    /// Every final name is free, old, or new and whole. Returns how many are new.
    fn assert_nothing_is_torn(&self, at: &str) -> u64 {
        let mut complete = 0;
        for number in 0..self.files {
            match std::fs::read(self.new_directory().join(number.to_string())) {
                Ok(content) if content == vec![b'n'; 5000] => complete += 1,
                Ok(content) if number == 1 && content == b"old" => {}
                Ok(content) => panic!("{at}: file {number} is torn: {} bytes", content.len()),
                Err(error) => {
                    assert!(number != 1, "{at}: the old file is gone");
                    assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{at}");
                }
            }
        }
        complete
    }

    /// The next attempt finishes and leaves nothing behind.
    fn assert_it_can_be_repeated(&self, at: &str) {
        let output = self.command().output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{at}: {errors}");
        assert_eq!(self.assert_nothing_is_torn(at), self.files, "{at}");
        assert_eq!(
            own_names(&self.new_directory()),
            Vec::<String>::new(),
            "{at}"
        );
    }
}

/// Runs a sweep; `check` is given the world, the point and how many files are complete.
fn sweep(
    injection: &Injection,
    calls: &[&str],
    (way, files): (Way, u64),
    mut check: impl FnMut(&World, &SweepPoint, u64),
) -> u32 {
    let world = std::cell::RefCell::new(World::new(way, files));
    SyscallSweep::new(injection.clone(), calls).run(
        || {
            world.replace(World::new(way, files));
            world.borrow().command()
        },
        |point| {
            let world = world.borrow();
            let at = format!(
                "{injection:?}, {way:?}, at {} number {}",
                point.system_call, point.nth
            );
            let complete = world.assert_nothing_is_torn(&at);
            // K3: what was acknowledged is there.
            if world.mark().exists() {
                assert_eq!(complete, files, "{at}");
            }
            check(&world, point, complete);
            world.assert_it_can_be_repeated(&at);
        },
    )
}

#[test]
fn r07_killed_at_any_call_of_the_commit_nothing_is_torn_or_claimed_too_early() {
    let calls = [
        "write",
        "pwrite64",
        "fsync",
        "fdatasync",
        "syncfs",
        "renameat",
        "renameat2",
        "rename",
        "unlinkat",
        "linkat",
        "fchmod",
        "utimensat",
        "openat2",
        "mkdirat",
    ];
    let mut points = 0;
    for world in [(Way::Staged, FEW), (Way::Staged, MANY), (Way::Copied, MANY)] {
        points += sweep(&Injection::Kill, &calls, world, |_, _, _| {});
    }
    assert!(
        points > 50,
        "only {points} points: the sweep did not reach the commit"
    );
}

#[test]
fn r06_a_file_whose_flush_failed_is_not_renamed_and_is_written_again() {
    let error = Injection::Error("EIO".to_owned());
    let mut refused = 0;
    for (call, world) in [
        ("fsync", (Way::Staged, FEW)),
        ("syncfs", (Way::Copied, MANY)),
    ] {
        let files = world.1;
        sweep(&error, &[call], world, |world, point, complete| {
            if !point.injected {
                return;
            }
            assert!(
                !point.status.success(),
                "a failed flush was ignored: {point:?}"
            );
            if complete < files {
                refused += 1;
                // The pages of the failed one are never flushed a second time.
                let left = own_names(&world.new_directory());
                assert_eq!(left, Vec::<String>::new(), "{point:?}");
            }
        });
    }
    assert!(refused > FEW, "no flush of a content was let fail");
}

#[test]
fn r06_when_the_flush_for_all_fails_each_open_file_is_asked_by_itself() {
    let error = Injection::Error("EIO".to_owned());
    let points = sweep(
        &error,
        &["syncfs"],
        (Way::Staged, MANY),
        |world, point, complete| {
            assert!(point.status.success() && complete == MANY, "{point:?}");
            assert_eq!(std::fs::read(world.mark()).unwrap(), b"Durable");
        },
    );
    assert_eq!(points, 1);
    // And those that are damaged say so.
    let both = Injection::ErrorFromThenOn("EIO".to_owned());
    let mut refused = 0;
    sweep(
        &both,
        &["fsync,syncfs"],
        (Way::Staged, MANY),
        |_, point, complete| {
            if point.injected {
                assert!(!point.status.success(), "{point:?}");
                refused += u32::from(complete < MANY);
            }
        },
    );
    assert!(refused > 0);
}

#[test]
fn r06_a_file_system_that_cannot_flush_is_shown_as_such() {
    let mut degraded = 0;
    for (call, files) in [("fsync", FEW), ("syncfs", MANY)] {
        let error = Injection::ErrorFromThenOn("EOPNOTSUPP".to_owned());
        sweep(
            &error,
            &[call],
            (Way::Staged, files),
            |world, point, complete| {
                assert!(point.status.success(), "{point:?}");
                assert_eq!(complete, files);
                let flushed = std::fs::read_to_string(world.mark()).unwrap();
                // Without syncfs every file is flushed by itself, so nothing is lost by that.
                let expected = ["Durable", "Unsupported"];
                assert!(expected.contains(&flushed.as_str()), "{flushed}");
                degraded += u32::from(flushed == "Unsupported");
            },
        );
    }
    assert!(degraded > 0, "the degradation was hidden");
}

#[test]
fn r08_a_rename_that_fails_leaves_the_old_file_and_a_clear_error() {
    for errno in ["EXDEV", "EBUSY", "ENOENT", "EIO", "ENOSPC", "EDQUOT"] {
        let error = Injection::Error(errno.to_owned());
        let calls = ["renameat", "renameat2", "rename"];
        let mut failed = 0;
        sweep(&error, &calls, (Way::Staged, FEW), |_, point, _| {
            if point.injected {
                assert!(!point.status.success(), "{errno}: {point:?}");
                failed += 1;
            }
        });
        assert!(failed >= FEW, "{errno}");
    }
}

#[test]
fn r12_a_full_disk_at_any_write_tears_nothing() {
    for (calls, errno) in [
        (&["write", "pwrite64", "openat", "mkdirat"][..], "ENOSPC"),
        (&["write", "fsync"], "EDQUOT"),
        (&["write"], "EFBIG"),
    ] {
        let error = Injection::Error(errno.to_owned());
        let points = sweep(&error, calls, (Way::Staged, FEW), |_, _, _| {});
        assert!(points > 0, "{errno}");
    }
}

#[test]
fn an_interrupted_call_is_repeated() {
    let error = Injection::Error("EINTR".to_owned());
    let calls = ["fsync", "renameat", "renameat2", "openat2", "write"];
    sweep(&error, &calls, (Way::Staged, FEW), |_, point, complete| {
        assert!(point.status.success() && complete == FEW, "{point:?}");
    });
}

#[test]
fn without_openat2_paths_are_walked_and_the_result_is_the_same() {
    let world = World::new(Way::Staged, FEW);
    let command = world.command();
    let mut traced = Command::new("strace");
    traced
        .args(["-f", "-qq", "-o"])
        .arg(world.directory.path().join("trace"));
    traced.args([
        "-e",
        "trace=openat2",
        "-e",
        "inject=openat2:error=ENOSYS",
        "--",
    ]);
    traced.arg(command.get_program()).args(command.get_args());
    assert!(traced.status().unwrap().success());
    assert_eq!(world.assert_nothing_is_torn("without openat2"), FEW);
    assert!(Path::new(&world.mark()).exists());
}
