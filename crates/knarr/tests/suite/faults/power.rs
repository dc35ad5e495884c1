//! Power cuts at seeded times, state and data on one disk and on two.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use knarr_testkit::data::{Random, TreeBuilder};
use knarr_testkit::kill::kill_tree;
use knarr_testkit::needs_root;
use knarr_testkit::powercut::LoopDisk;
use knarr_testkit::wait::poll;

use super::support::{TornReader, large_file, rounds};
use crate::program::Place;

/// Which disks lose their power.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    Data,
    State,
    Both,
}

/// What is copied to where, with its state.
struct Site<'a> {
    place: &'a Place,
    destination: &'a Path,
    state: &'a Path,
}

impl Site<'_> {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.place.quiet(arguments);
        command.env("KNARR_STATE", self.state);
        command
    }

    /// Runs a command of the record; `None` if the state was not made yet.
    #[track_caller]
    fn ask(&self, arguments: &[&str]) -> Option<String> {
        if !self.state.join("knarr.db").exists() {
            return None;
        }
        let output = self
            .place
            .command(arguments)
            .env("KNARR_STATE", self.state)
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
        assert!(!errors.contains("damaged"), "{errors}");
        Some(String::from_utf8(output.stdout).unwrap())
    }

    /// Copies, and cuts the power after `delay`, unless the command ended before.
    fn copy_and_cut(&self, delay: Duration, cut: impl FnOnce()) -> Option<ExitStatus> {
        let arguments = ["copy", "in", self.destination.to_str().unwrap()];
        let mut child = self.command(&arguments).spawn().unwrap();
        let ended = poll(delay, || child.try_wait().unwrap());
        cut();
        if ended.is_none() {
            kill_tree(&mut child);
        }
        ended
    }

    /// K1, K3: every file on record is whole.
    #[track_caller]
    fn check_record(&self, context: &str) -> usize {
        self.ask(&["audit", "verify"]);
        let arguments = ["history", "--files", "--json", "--limit", "1000000"];
        let mut checked = 0;
        for line in self.ask(&arguments).unwrap_or_default().lines() {
            let record: serde_json::Value = serde_json::from_str(line).unwrap();
            let (Some(hash), Some("created" | "updated")) =
                (record["source_hash"].as_str(), record["action"].as_str())
            else {
                continue;
            };
            let path = record["path"].as_str().unwrap();
            let there = fs::read(self.destination.join(path))
                .unwrap_or_else(|error| panic!("{context}: recorded, but {path}: {error}"));
            let same = blake3::hash(&there).to_hex().as_str() == hash;
            assert!(
                same,
                "{context}: {path} is on record and is not whole: {} bytes",
                there.len()
            );
            checked += 1;
        }
        checked
    }

    #[track_caller]
    fn check_round(&self, ended: Option<ExitStatus>, files: u64, context: &str) {
        let recorded = self.check_record(context);
        if let Some(status) = ended {
            assert!(status.success(), "{context}: {}", self.place.said());
            assert_eq!(
                u64::try_from(recorded).unwrap(),
                files,
                "{context}: done, and not on record"
            );
        }
        TornReader::check_once(&self.place.path("in"), self.destination);
        for moves in ["some", "none"] {
            let arguments = ["copy", "in", self.destination.to_str().unwrap(), "--json"];
            let printed = self
                .place
                .command(&arguments)
                .env("KNARR_STATE", self.state)
                .output()
                .unwrap();
            let errors = String::from_utf8_lossy(&printed.stderr);
            assert!(printed.status.success(), "{context}: {errors}");
            let report: serde_json::Value = serde_json::from_slice(&printed.stdout).unwrap();
            if moves == "none" {
                assert_eq!(
                    report["sent_bytes"], 0,
                    "{context}: the next run moves nothing: {report}"
                );
                assert_eq!(
                    report["created"], 0,
                    "{context}: the next run moves nothing: {report}"
                );
            }
        }
        knarr_testkit::data::assert_same_tree(
            &self.place.path("in"),
            self.destination,
            &knarr_testkit::data::Compare::content(),
        );
    }
}

fn world() -> (Place, u64) {
    let place = Place::new();
    let small = TreeBuilder::new(7)
        .files(150)
        .directories(6)
        .sizes(0..=6000)
        .build(&place.path("in"));
    large_file(&place.path("in/dir-0001/large"), 8, 6 << 20);
    (place, small.files + 1)
}

fn power_cuts(seed: u64, disks: &mut [LoopDisk], cuts: &[Cut]) {
    let (place, files) = world();
    let destination = disks.first().unwrap().path().join("out");
    let state = disks.last().unwrap().path().join("state");
    let site = Site {
        place: &place,
        destination: &destination,
        state: &state,
    };
    let began = Instant::now();
    let ended = site.copy_and_cut(super::support::PATIENCE, || {});
    let longest = u64::try_from(began.elapsed().as_micros()).unwrap();
    site.check_round(ended, files, "without a power cut");
    let mut random = Random::new(seed);
    let rounds = usize::try_from(rounds("KNARR_TEST_POWER_CUTS", 12)).unwrap();
    for (round, cut) in cuts.iter().cycle().take(rounds).enumerate() {
        for made in [&destination, &state] {
            if made.exists() {
                fs::remove_dir_all(made).unwrap();
            }
        }
        // What the last round did must not be on its way to the disk any more.
        let synced = Command::new("sync")
            .arg("-f")
            .args(disks.iter().map(LoopDisk::path))
            .status();
        assert!(synced.unwrap().success());
        let delay = Duration::from_micros(random.below(longest + longest / 8));
        let ended = site.copy_and_cut(delay, || {
            if *cut != Cut::State {
                disks.first().unwrap().cut_power();
            }
            if *cut != Cut::Data && (disks.len() > 1 || *cut == Cut::State) {
                disks.last().unwrap().cut_power();
            }
        });
        for disk in &mut *disks {
            disk.remount();
        }
        let context = format!("seed {seed}, round {round}, {cut:?} cut after {delay:?}");
        site.check_round(ended, files, &context);
    }
}

#[test]
fn k1_k2_k3_k7_r03_a_power_cut_with_state_and_data_on_one_disk_loses_nothing_on_record() {
    needs_root!("power cuts");
    power_cuts(201, &mut [LoopDisk::new(96)], &[Cut::Both]);
}

#[test]
fn k1_k2_k3_k7_r03_a_power_cut_of_one_disk_or_both_loses_nothing_on_record() {
    needs_root!("power cuts");
    let disks = &mut [LoopDisk::new(64), LoopDisk::new(32)];
    power_cuts(202, disks, &[Cut::Data, Cut::State, Cut::Both]);
}
