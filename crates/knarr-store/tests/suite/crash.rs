//! Kills and power cuts: what was acknowledged is there, and numbers only grow.
//!
//! The store runs in a child, which is this test binary with one test selected; it says on its standard
//! output what was acknowledged.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use knarr_core::entry::Kind;
use knarr_core::record::Action;
use knarr_store::chain::ChainVerdict;
use knarr_store::runs::NewRun;
use knarr_store::synced::Recognise;
use knarr_store::{OpenState, Store};
use knarr_testkit::data::Random;
use knarr_testkit::kill::{Injection, SyscallSweep};
use knarr_testkit::powercut::LoopDisk;
use tempfile::TempDir;

use crate::fixture::{fill, open, pair, path, record, synced, try_open};

const DIRECTORY: &str = "KNARR_STORE_TEST_DIRECTORY";
const LIMIT: &str = "KNARR_STORE_TEST_LIMIT";

/// This binary, about to run one test as a child.
fn child(test: &str, directory: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(DIRECTORY, directory)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    command
}

/// Appends for ever (or up to the limit), and says the numbers only after they were acknowledged.
#[test]
fn the_child_appends_and_says_what_was_acknowledged() {
    let given = std::env::var_os(DIRECTORY);
    // Only where it is a test of its own: a child is killed, and would leave its directory behind.
    let own = given.is_none().then(|| TempDir::new().unwrap());
    let directory = match (&given, &own) {
        (Some(given), _) => Path::new(given),
        (None, own) => own.as_ref().expect("made just now").path(),
    };
    let limit = match (&given, std::env::var(LIMIT)) {
        (_, Ok(limit)) => limit.parse().unwrap(),
        (Some(_), Err(_)) => u64::MAX,
        (None, Err(_)) => 5,
    };
    let Ok(opened) = try_open(directory) else {
        return;
    };
    let store = opened.store;
    let pair = pair(&store, "child");
    let new = NewRun {
        pair: Some(pair),
        job: "child".to_owned(),
        kind: "copy".to_owned(),
        cause: "command".to_owned(),
    };
    let run = store.transact(move |tx| tx.begin_run(&new)).wait().unwrap();
    say(&format!("run {run}"));
    for _ in 0..limit {
        let appended = store.transact(move |tx| {
            let seq = tx.chain_head()?.count + 1;
            tx.append_custody(&[record(&format!("f{seq}"), Action::Created)])?;
            tx.upsert_synced(
                pair,
                Recognise::Source,
                &[synced(&format!("f{seq}"), Kind::File, seq)],
            )?;
            Ok(seq)
        });
        match appended.wait() {
            Ok(seq) => say(&format!("ack {seq}")),
            // The power was cut.
            Err(_) => return,
        }
    }
    assert_eq!(store.check().unwrap(), None);
}

fn say(line: &str) {
    let mut output = std::io::stdout().lock();
    // On a line of its own, whatever the test harness began.
    writeln!(output, "\n{line}").unwrap();
    output.flush().unwrap();
}

/// What a child said.
#[derive(Debug, Default)]
struct Said {
    acknowledged: Vec<u64>,
    runs: Vec<u64>,
}

impl Said {
    fn hear(&mut self, line: &str) {
        if let Some(seq) = line.strip_prefix("ack ") {
            self.acknowledged.push(seq.parse().unwrap());
        } else if let Some(run) = line.strip_prefix("run ") {
            self.runs.push(run.parse().unwrap());
        }
    }
}

/// Listens until so many were acknowledged, does `strike`, kills the child and hears it out.
fn strike_after(child: &mut Child, count: usize, said: &mut Said, strike: impl FnOnce()) {
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let heard = said.acknowledged.len();
    while said.acknowledged.len() < heard + count
        && let Some(line) = lines.next()
    {
        said.hear(&line.unwrap());
    }
    assert_eq!(
        said.acknowledged.len(),
        heard + count,
        "the child ended early"
    );
    let before = said.acknowledged.len();
    strike();
    child.kill().unwrap();
    child.wait().unwrap();
    for line in lines {
        said.hear(&line.unwrap());
    }
    if said.acknowledged.len() > before {
        // Of what was said after the strike had begun, the last word does not count: the kernel may
        // call a flush good that was under way when the file system was shut down. A plain loop of
        // write and fdatasync shows the same, and no disk that loses power does it.
        said.acknowledged.pop();
    }
}

fn holds_all_that_was_acknowledged(store: &Store, said: &Said) {
    assert!(
        said.acknowledged.is_sorted_by(|a, b| a < b),
        "numbers were given twice"
    );
    assert!(
        said.runs.is_sorted_by(|a, b| a < b),
        "runs were given twice"
    );
    let ChainVerdict::Intact(head) = store.verify_chain(None).unwrap() else {
        panic!("the chain is broken");
    };
    assert!(
        said.acknowledged
            .last()
            .is_none_or(|last| head.count >= *last)
    );
    let pair = store
        .read(|reader| reader.find_pair("child"))
        .unwrap()
        .unwrap()
        .id;
    for seq in &said.acknowledged {
        let there = store
            .read(|reader| reader.synced(pair, &path(&format!("f{seq}"))))
            .unwrap();
        assert!(there.is_some(), "{seq} was acknowledged and is lost");
    }
    // Both were written in one transaction, so there is as much of one as of the other.
    assert_eq!(
        store.read(|reader| reader.count_synced(pair)).unwrap(),
        head.count
    );
    assert_eq!(store.check().unwrap(), None);
}

#[test]
fn k1_k3_r05_what_was_acknowledged_survives_kill_9_and_numbers_only_grow() {
    let directory = TempDir::new().unwrap();
    let mut random = Random::new(1);
    let mut said = Said::default();
    for _ in 0..15 {
        let mut process = child(
            "crash::the_child_appends_and_says_what_was_acknowledged",
            directory.path(),
        )
        .spawn()
        .unwrap();
        strike_after(&mut process, 1 + random.index(40), &mut said, || {});
        let opened = try_open(directory.path()).unwrap();
        assert_eq!(opened.state, OpenState::Existing);
        holds_all_that_was_acknowledged(&opened.store, &said);
    }
}

#[test]
fn k1_k3_r03_r05_what_was_acknowledged_survives_a_power_cut_and_numbers_only_grow() {
    knarr_testkit::needs_root!("a power cut");
    let mut disk = LoopDisk::new(64);
    let state = disk.path().join("state/of/knarr");
    let mut random = Random::new(2);
    let mut said = Said::default();
    for _ in 0..20 {
        let mut process = child(
            "crash::the_child_appends_and_says_what_was_acknowledged",
            &state,
        )
        .spawn()
        .unwrap();
        strike_after(&mut process, 1 + random.index(30), &mut said, || {
            disk.cut_power();
        });
        disk.remount();
        let opened = try_open(&state).unwrap();
        assert_eq!(opened.state, OpenState::Existing);
        holds_all_that_was_acknowledged(&opened.store, &said);
    }
}

#[test]
fn r19_a_kill_at_any_point_of_making_the_state_leaves_one_that_opens() {
    let directory = TempDir::new().unwrap();
    let state = directory.path().join("state");
    let sweep = SyscallSweep::new(
        Injection::Kill,
        &["pwrite64", "fsync", "fdatasync", "unlink", "ftruncate"],
    );
    let points = sweep.run(
        || {
            if state.exists() {
                std::fs::remove_dir_all(&state).unwrap();
            }
            let mut command = child(
                "crash::the_child_appends_and_says_what_was_acknowledged",
                &state,
            );
            command.env(LIMIT, "1").stdout(Stdio::null());
            command
        },
        |point| {
            if !state.join("knarr.db").exists() {
                return;
            }
            let opened = try_open(&state).unwrap();
            assert!(
                !matches!(opened.state, OpenState::Recovered { .. }),
                "{point:?}: {:?}",
                opened.state
            );
            fill(&opened.store, 3);
            assert_eq!(opened.store.check().unwrap(), None);
        },
    );
    assert!(points > 20, "only {points} points");
    drop(open(&state));
}
