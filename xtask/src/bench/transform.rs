//! Rows about steps: OpenPGP against `gpg`, archives against `tar` and `unzip`, and a pickup over SFTP that
//! decrypts and removes, against a script that does the same.
//!
//! Constraints: Knarr runs a job by `knarr job run`, which is what a person types, with `settle: 0s`: as it comes it
//! leaves alone what changed within the last five seconds, which the files of a benchmark did. The OpenPGP rows and the pickup
//! keep their data in memory-backed storage; the archives are on a real disk, since Knarr flushes what it
//! unpacks and the peers do not. Messages are made by `gpg` as it comes. The script of the pickup does what one writes by hand:
//! copy, decrypt, delete; a crash between two of them is its user's to find out.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use knarr_testkit::gpg::{ED25519, Gpg};

use crate::bench::row::{self, Attempt, Contestant, Course, Found, Goal, KNARR, Number, Row, Side};
use crate::bench::sftp::{Line, Server};
use crate::bench::sftp_peers::{name_remote, without_rclone_variables};
use crate::bench::space::{Compare, Tree, compare, count_files};
use crate::bench::{Bench, knarr};
use crate::{Outcome, run_visibly};

/// The rows.
pub(crate) const ROWS: [Row; 5] = [
    Row {
        id: "pgp-1g-decrypt",
        title: "OpenPGP, one message of 1 GiB as `gpg` makes it, decrypted",
        goals: PGP,
        measure: |bench, found| decrypted(bench, found, Packing::AsItComes),
    },
    Row {
        id: "pgp-1g-decrypt-z0",
        title: "OpenPGP, one message of 1 GiB without compression, decrypted",
        goals: PGP,
        measure: |bench, found| decrypted(bench, found, Packing::None),
    },
    Row {
        id: "extract-tar-zst",
        title: "20,000 files out of a `.tar.zst`, on a disk; knarr durably, the peers not",
        goals: &[Goal::SpeedOver("tar", 1.0)],
        measure: |bench, found| extracted(bench, found, Archive::TarZst),
    },
    Row {
        id: "extract-zip",
        title: "20,000 files out of a `.zip`, on a disk; knarr durably, the peers not",
        goals: &[Goal::SpeedOver("unzip", 1.0)],
        measure: |bench, found| extracted(bench, found, Archive::Zip),
    },
    Row {
        id: "pickup-5k",
        title: "pickup of 5,000 encrypted files of 4 KiB over SFTP: ledger, decrypt, delete at the source",
        goals: &[Goal::Speed(1.0)],
        measure: picked_up,
    },
];

const PGP: &[Goal] = &[
    Goal::SpeedOver("gpg", 1.5),
    Goal::AtMost(Number::PeakMegabytes, 30.0),
];

/// What takes longer is stopped.
const LIMIT: Duration = Duration::from_secs(180);

/// Whose messages they are.
const USER: &str = "bench";

/// The secret of the job.
const SECRET: &str = "our-key";

/// Whether `gpg` compresses what it encrypts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Packing {
    AsItComes,
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Archive {
    TarZst,
    Zip,
}

/// A keyring, and its private key as Knarr takes it.
struct Keys {
    gpg: Gpg,
    secret: Vec<u8>,
}

impl Keys {
    fn make() -> Self {
        let gpg = Gpg::new();
        gpg.generate(ED25519, USER, &[], "%no-protection");
        let secret = gpg.secret(USER);
        Self { gpg, secret }
    }

    /// A `gpg` that asks nothing.
    fn command(&self) -> Command {
        let mut command = Command::new("gpg");
        command.arg("--homedir").arg(self.gpg.at());
        command.args(["--batch", "--no-tty", "--yes", "--quiet"]);
        command.args(["--trust-model", "always"]);
        command
    }

    /// Gives Knarr the private key, in a state directory.
    fn hand_over(&self, bench: &Bench, state: &Path) -> Outcome {
        let arguments = ["secret", "set", SECRET];
        let mut command = Command::new(&bench.knarr);
        command
            .arg("--quiet")
            .arg("--state")
            .arg(state.join("state"));
        command.args(arguments).stdin(Stdio::piped());
        let cannot = |error| format!("cannot give knarr a secret: {error}");
        let mut child = command.spawn().map_err(cannot)?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(&self.secret).map_err(cannot)?;
        }
        let status = child.wait().map_err(cannot)?;
        if status.success() {
            return Ok(());
        }
        Err(format!("knarr secret set: {status}"))
    }
}

/// Knarr with one job, run once.
fn running_job<'a>(
    bench: &'a Bench,
    configuration: impl Fn(&Attempt) -> String + 'a,
) -> Contestant<'a> {
    Contestant::new(KNARR, Side::Ours, move |attempt| {
        let text = configuration(attempt);
        knarr::command(
            &bench.knarr,
            &attempt.state,
            &text,
            &["job", "run", "bench"],
        )
    })
}

fn decrypted(bench: &Bench, found: &mut Found, packing: Packing) -> Outcome {
    let keys = Keys::make();
    let plain = bench.memory.big_file(bench.scale.big_bytes)?;
    let source = bench.memory.fresh("message")?;
    let message = source.join("big.gpg");
    let mut encrypt = keys.command();
    if packing == Packing::None {
        encrypt.args(["-z", "0"]);
    }
    encrypt
        .args(["--recipient", USER, "--output"])
        .arg(&message);
    run_visibly(encrypt.arg("--encrypt").arg(plain.join("big")))?;
    let job = |attempt: &Attempt| {
        format!(
            "jobs:\n  bench:\n    from: {}\n    to: {}/\n    match: {{ settle: 0s }}\n    steps: [{{ decrypt: {{ pgp: {SECRET} }} }}]\n",
            source.display(),
            attempt.destination.display()
        )
    };
    let by_gpg = Contestant::new("gpg", Side::Peer, |attempt| {
        let mut command = keys.command();
        command.arg("--output").arg(attempt.destination.join("big"));
        command.arg("--decrypt").arg(&message);
        Ok(command)
    });
    let mut course = Course::new(&bench.memory, LIMIT, |attempt| {
        let by = match attempt.round {
            0 => Compare::Contents,
            _ => Compare::Lengths,
        };
        compare(&plain, &attempt.destination, by)
    });
    course.before = Box::new(|attempt| keys.hand_over(bench, &attempt.state));
    found.series = course.run(bench.rounds, &[running_job(bench, job), by_gpg])?;
    row::remove(&plain)?;
    row::remove(&source)
}

fn extracted(bench: &Bench, found: &mut Found, archive: Archive) -> Outcome {
    let tree = Tree {
        directories: 100,
        files_each: (bench.scale.archived_files / 100).max(1),
        bytes: (0, 4096),
    };
    let plain = bench.disk.tree(tree)?;
    let source = bench.disk.fresh("archive")?;
    let (name, script) = match archive {
        Archive::TarZst => ("all.tar.zst", "cd \"$1\" && tar --zstd -cf \"$2\" *"),
        Archive::Zip => ("all.zip", "cd \"$1\" && zip -q -r \"$2\" *"),
    };
    let packed = source.join(name);
    let mut pack = Command::new("sh");
    pack.args(["-c", script, "sh"]).arg(&plain).arg(&packed);
    run_visibly(&mut pack)?;
    let job = |attempt: &Attempt| {
        format!(
            "jobs:\n  bench:\n    from: {}\n    to: {}/\n    match: {{ settle: 0s }}\n    steps: [extract]\n",
            source.display(),
            attempt.destination.display()
        )
    };
    let mut contestants = vec![running_job(bench, job)];
    let (name, script) = match archive {
        Archive::TarZst => ("tar", "tar --zstd -xf \"$1\" -C \"$2\""),
        Archive::Zip => ("unzip", "unzip -q \"$1\" -d \"$2\""),
    };
    let flushed = format!("{script} && sync");
    for (name, script, side) in [
        (name.to_owned(), script.to_owned(), Side::Peer),
        (format!("{name}, then sync"), flushed, Side::Beside),
    ] {
        let packed = &packed;
        contestants.push(Contestant::new(name, side, move |attempt| {
            let mut command = Command::new("sh");
            command.args(["-c", &script, "sh"]).arg(packed);
            command.arg(&attempt.destination);
            Ok(command)
        }));
    }
    let mut course = Course::new(&bench.disk, LIMIT, |attempt| {
        let by = match attempt.round {
            0 => Compare::Contents,
            _ => Compare::Lengths,
        };
        compare(&plain, &attempt.destination, by)
    });
    course.before = Box::new(|_| {
        rustix::fs::sync();
        Ok(())
    });
    course.removes_at_end = true;
    found.series = course.run(bench.rounds, &contestants)?;
    row::remove(&plain)?;
    row::remove(&source)
}

/// Everything is copied, then decrypted, then removed at the source.
const FOR_ALL: &str = "set -e
\"$1\" copy --sftp-disable-hashcheck --transfers 16 --checkers 8 --no-check-dest \"server:$2\" \"$3\"
cd \"$3\"
find . -name '*.gpg' | gpg --homedir \"$4\" --batch --quiet --trust-model always --decrypt-files
find . -name '*.gpg' -delete
\"$1\" delete --sftp-disable-hashcheck \"server:$2\"
";

/// The same, with a `gpg` for each file.
const FOR_EACH: &str = "set -e
\"$1\" copy --sftp-disable-hashcheck --transfers 16 --checkers 8 --no-check-dest \"server:$2\" \"$3\"
cd \"$3\"
find . -name '*.gpg' | while read -r file; do
  gpg --homedir \"$4\" --batch --quiet --trust-model always --output \"${file%.gpg}\" --decrypt \"$file\"
  rm \"$file\"
done
\"$1\" delete --sftp-disable-hashcheck \"server:$2\"
";

fn picked_up(bench: &Bench, found: &mut Found) -> Outcome {
    let keys = Keys::make();
    let server = Server::start(Line::Loopback, bench.memory.path())?;
    let tree = Tree {
        directories: 50,
        files_each: (bench.scale.small_files / 50).max(1),
        bytes: (4096, 4096),
    };
    let plain = bench.memory.tree(tree)?;
    let messages = encrypted_tree(bench, &keys, &plain)?;
    let remote = |attempt: &Attempt| attempt.state.join("outbox");
    let endpoint = server.configuration();
    let job = |attempt: &Attempt| {
        format!(
            "{endpoint}jobs:\n  bench:\n    from: \"server:{}\"\n    to: {}/\n    match: {{ settle: 0s }}\n    \
             steps: [{{ decrypt: {{ pgp: {SECRET} }} }}]\n    after: delete\n",
            remote(attempt).display(),
            attempt.destination.display()
        )
    };
    let mut contestants = vec![running_job(bench, job)];
    let rclone = bench.tools.rclone.as_ref();
    let rclone = rclone.ok_or("rclone is not installed")?;
    for (name, script) in [
        ("script, one gpg for all", FOR_ALL),
        ("script, one gpg a file", FOR_EACH),
    ] {
        let (keys, server) = (&keys, &server);
        let by_script = Contestant::new(name, Side::Peer, move |attempt| {
            // Nothing of the caller's own; rclone reads its options from the environment.
            let mut command = without_rclone_variables(Path::new("sh"));
            name_remote(&mut command, &server.login);
            command.env("RCLONE_CONFIG", "/dev/null");
            command.args(["-c", script, "sh"]);
            command.arg(rclone).arg(remote(attempt));
            command.arg(&attempt.destination).arg(keys.gpg.at());
            Ok(command)
        });
        contestants.push(if script == FOR_EACH {
            by_script.once()
        } else {
            by_script
        });
    }
    let mut course = Course::new(&bench.memory, LIMIT, |attempt| {
        let by = match attempt.round {
            0 => Compare::Contents,
            _ => Compare::Lengths,
        };
        compare(&plain, &attempt.destination, by)?;
        let outbox = remote(attempt);
        let left = count_files(&outbox)
            .map_err(|error| format!("cannot list {}: {error}", outbox.display()))?;
        if left == 0 {
            return Ok(());
        }
        Err(format!("{left} files are left at the source"))
    });
    course.before = Box::new(|attempt| {
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(&messages).arg(remote(attempt));
        run_visibly(&mut copy)?;
        keys.hand_over(bench, &attempt.state)
    });
    found.series = course.run(bench.rounds, &contestants)?;
    row::remove(&plain)?;
    row::remove(&messages)
}

/// Every file of a tree as a message of its own.
fn encrypted_tree(bench: &Bench, keys: &Keys, plain: &Path) -> Result<PathBuf, String> {
    let messages = bench.memory.fresh("messages")?;
    let mut copy = Command::new("cp");
    copy.args(["-a", "-T"]).arg(plain).arg(&messages);
    run_visibly(&mut copy)?;
    let list = bench.memory.path().join("list");
    let mut names = Vec::new();
    collect(&messages, &mut names)
        .and_then(|()| fs::write(&list, names.join("\n") + "\n"))
        .map_err(|error| format!("cannot list {}: {error}", messages.display()))?;
    let input =
        File::open(&list).map_err(|error| format!("cannot read {}: {error}", list.display()))?;
    let mut encrypt = keys.command();
    encrypt.args(["--recipient", USER, "--encrypt-files"]);
    run_visibly(encrypt.stdin(input))?;
    for name in names {
        fs::remove_file(&name).map_err(|error| format!("cannot remove {name}: {error}"))?;
    }
    Ok(messages)
}

fn collect(directory: &Path, names: &mut Vec<String>) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), names)?;
        } else {
            names.push(entry.path().display().to_string());
        }
    }
    Ok(())
}
