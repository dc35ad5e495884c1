//! Rows without a network: 200,000 small files copied, and looked at again with nothing to do.
//!
//! Constraints: on a real disk (the one that holds the target directory), since this is about durability.
//! Before every attempt the disk is brought to rest (`sync`), so that nobody pays for what another left
//! to be written; the source is in the page cache for all.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::Outcome;
use crate::bench::Bench;
use crate::bench::knarr;
use crate::bench::row::{self, Attempt, Contestant, Course, Found, Goal, Number, Row, Side};
use crate::bench::sftp_peers::bare_rclone;
use crate::bench::space::{Compare, Tree, compare};

/// The rows.
pub(crate) const ROWS: [Row; 2] = [
    Row {
        id: "local-200k",
        title: "local, 200,000 small files copied; knarr durably, the peers not",
        goals: &[Goal::SpeedOver("rsync", 1.0)],
        measure: copied,
    },
    Row {
        id: "noop-200k",
        title: "`copy` with nothing to do over 200,000 files, both sides looked at",
        goals: &[
            Goal::TimeOf("find", 1.5),
            Goal::AtMost(Number::PeakMegabytes, 40.0),
        ],
        measure: nothing_to_do,
    },
];

const LIMIT: Duration = Duration::from_secs(120);

fn tree(bench: &Bench) -> Tree {
    Tree {
        directories: 400,
        files_each: (bench.scale.local_files / 400).max(1),
        bytes: (0, 4096),
    }
}

fn copied(bench: &Bench, found: &mut Found) -> Outcome {
    let source = bench.disk.tree(tree(bench))?;
    let contestants = copiers(bench, &source);
    let mut course = Course::new(&bench.disk, LIMIT, |attempt| {
        let by = match attempt.round {
            0 => Compare::Contents,
            _ => Compare::Lengths,
        };
        compare(&source, &attempt.destination, by)
    });
    course.before = Box::new(|_| {
        rustix::fs::sync();
        Ok(())
    });
    course.removes_at_end = true;
    found.series = course.run(bench.rounds, &contestants)?;
    row::remove(&source)
}

fn copiers<'a>(bench: &'a Bench, source: &'a Path) -> Vec<Contestant<'a>> {
    let places = |attempt: &Attempt| {
        let (from, to) = (source.display(), attempt.destination.display());
        (from.to_string(), to.to_string())
    };
    let mut contestants = vec![knarr::copying(&bench.knarr, "", places)];
    let finish = |mut command: Command, attempt: &Attempt| {
        command.arg(format!("{}/", source.display()));
        command.arg(&attempt.destination);
        command
    };
    if let Some(program) = &bench.tools.rsync {
        contestants.push(Contestant::new("rsync -a", Side::Peer, move |attempt| {
            let mut command = Command::new(program);
            command.arg("-a");
            Ok(finish(command, attempt))
        }));
        contestants.push(Contestant::new(
            "rsync -a, then sync",
            Side::Beside,
            move |attempt| {
                let mut command = Command::new("sh");
                command.args(["-c", "rsync -a \"$1\" \"$2\" && sync", "sh"]);
                Ok(finish(command, attempt))
            },
        ));
    }
    contestants.push(Contestant::new("cp -a", Side::Beside, move |attempt| {
        let mut command = Command::new("cp");
        command.args(["-a", "-T"]);
        Ok(finish(command, attempt))
    }));
    if let Some(program) = &bench.tools.rclone {
        contestants.push(Contestant::new(
            "rclone tuned",
            Side::Peer,
            move |attempt| {
                let mut command = bare_rclone(program);
                command.args(["copy", "--transfers", "8", "--no-check-dest"]);
                Ok(finish(command, attempt))
            },
        ));
    }
    if let Some(program) = &bench.tools.unison {
        let unison = Contestant::new("unison", Side::Peer, move |attempt| {
            let mut command = Command::new(program);
            command.args(["-batch", "-silent", "-confirmbigdel=false", "-times"]);
            command.env("UNISON", &attempt.state);
            Ok(finish(command, attempt))
        });
        contestants.push(unison.once());
    }
    contestants
}

fn nothing_to_do(bench: &Bench, found: &mut Found) -> Outcome {
    let source = bench.disk.tree(tree(bench))?;
    let destination = bench.disk.fresh("copied")?;
    let state = bench.disk.fresh("kept")?;
    let (from, to) = (
        source.display().to_string(),
        destination.display().to_string(),
    );
    let copy = || knarr::command(&bench.knarr, &state, "", &["copy", &from, &to]);
    let before = crate::run_visibly(&mut copy()?)
        .and_then(|()| compare(&source, &destination, Compare::Lengths));
    if let Err(problem) = before {
        found.remarks.push(format!("not measured: {problem}"));
    } else {
        rustix::fs::sync();
        let course = Course::new(&bench.disk, LIMIT, |_| Ok(()));
        let contestants = lookers(bench, (&source, &destination), &copy);
        found.series = course.run(bench.rounds, &contestants)?;
    }
    for directory in [&source, &destination, &state] {
        row::remove(directory)?;
    }
    Ok(())
}

fn lookers<'a>(
    bench: &'a Bench,
    (source, destination): (&'a Path, &'a Path),
    copy: &'a dyn Fn() -> Result<Command, String>,
) -> Vec<Contestant<'a>> {
    let mut contestants = vec![Contestant::new(row::KNARR, Side::Ours, |_| copy())];
    if let Some(program) = &bench.tools.find {
        contestants.push(Contestant::new("find -printf", Side::Peer, move |_| {
            let mut command = Command::new(program);
            command.arg(source).args(["-printf", "%p %s %T@\\n"]);
            Ok(command)
        }));
    }
    if let Some(program) = &bench.tools.rsync {
        contestants.push(Contestant::new("rsync -a", Side::Beside, move |_| {
            let mut command = Command::new(program);
            command.arg("-a").arg(format!("{}/", source.display()));
            command.arg(destination);
            Ok(command)
        }));
    }
    if let Some(program) = &bench.tools.rclone {
        contestants.push(Contestant::new("rclone tuned", Side::Beside, move |_| {
            let mut command = bare_rclone(program);
            command.args(["copy", "--checkers", "16"]);
            command.arg(source).arg(destination);
            Ok(command)
        }));
    }
    contestants
}
