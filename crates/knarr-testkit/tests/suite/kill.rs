//! Kill sweeps and seeded kills.

use std::fs;
use std::process::Command;
use std::time::Duration;

use knarr_testkit::kill::{Injection, SyscallSweep, kill_after, random_kill};

/// Writes, then renames, three times over.
fn script(directory: &std::path::Path) -> Command {
    let mut command = Command::new("python3");
    let text =
        "import os\nfor i in '123':\n open('t' + i, 'w').close()\n os.rename('t' + i, 'f' + i)";
    command.args(["-S", "-c", text]).current_dir(directory);
    command
}

#[test]
fn a_sweep_kills_at_each_call_once_and_ends_when_the_command_is_through() {
    let directory = tempfile::tempdir().unwrap();
    let mut finals = Vec::new();
    let injected = SyscallSweep::new(Injection::Kill, &["rename", "renameat2"]).run(
        || {
            for entry in fs::read_dir(directory.path()).unwrap() {
                fs::remove_file(entry.unwrap().path()).unwrap();
            }
            script(directory.path())
        },
        |point| {
            let names = fs::read_dir(directory.path()).unwrap();
            let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let count = names.filter(|name| name.starts_with('f')).count();
            finals.push((point.injected, count));
            assert!(point.injected || point.status.success(), "{point:?}");
        },
    );
    assert_eq!(injected, 3, "{finals:?}");
    let killed: Vec<usize> = finals
        .iter()
        .filter(|(injected, _)| *injected)
        .map(|(_, count)| *count)
        .collect();
    assert_eq!(
        killed,
        [0, 1, 2],
        "a kill on entry: the rename was not made"
    );
}

#[test]
fn a_sweep_lets_calls_fail_with_the_chosen_error() {
    let directory = tempfile::tempdir().unwrap();
    let mut messages = Vec::new();
    SyscallSweep::new(
        Injection::Error("ENOSPC".to_owned()),
        &["rename", "renameat2"],
    )
    .run(
        || script(directory.path()),
        |point| {
            if point.injected {
                messages.push(point.stderr.clone());
            }
        },
    );
    assert_eq!(messages.len(), 3);
    assert!(
        messages.iter().all(|text| text.contains("No space left")),
        "{messages:?}"
    );
}

#[test]
fn kill_after_ends_the_whole_tree() {
    let mut command = Command::new("sh");
    command.args(["-c", "sleep 1000 & sleep 1000"]);
    assert!(
        kill_after(&mut command, Duration::from_millis(100))
            .unwrap()
            .is_none()
    );
    let status = kill_after(&mut Command::new("true"), Duration::from_secs(20)).unwrap();
    assert!(status.unwrap().success());
}

#[test]
fn random_kill_checks_after_every_round() {
    let mut rounds = 0;
    let command = || {
        let mut command = Command::new("sleep");
        command.arg("100");
        command
    };
    random_kill(1, 5, Duration::from_millis(20), command, |round, killed| {
        assert_eq!(round, rounds);
        assert!(killed);
        rounds += 1;
    });
    assert_eq!(rounds, 5);
}
