//! `kill -9` at random times, again and again, until the command gets through.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use knarr_testkit::data::{Random, TreeBuilder};
use knarr_testkit::http_fault::{HttpFaultProxy, Request};
use knarr_testkit::kill::kill_after;
use knarr_testkit::proxy::FaultProxy;
use knarr_testkit::s3::{S3Server as _, S3sFs};
use knarr_testkit::sshd::Sshd;

use super::support::{
    TornReader, bucket_directory, large_file, litter, report, rounds, s3_endpoint, sftp_endpoint,
};
use crate::program::Place;

const MIB: u64 = 1 << 20;
/// The length of the large file, in bytes.
const LARGE: u64 = 48 * MIB;
/// What all small files have together at most, in bytes, with what is said about them on the wire.
const SMALL: u64 = 2 * MIB;
/// SFTP: what may be sent beyond the last checkpoint, in bytes.
const WINDOW: u64 = 32 * MIB;
/// S3: parts of a file that may be on their way, or answered and not yet on record, when a kill comes.
const PARTS_IN_FLIGHT: u64 = 4;
/// S3: the large file is so many parts of 5 MiB.
const PARTS: usize = 10;

fn world() -> Place {
    let place = Place::new();
    TreeBuilder::new(1)
        .files(150)
        .directories(8)
        .sizes(0..=8192)
        .build(&place.path("in"));
    large_file(&place.path("in/dir-0000/large"), 2, LARGE);
    place
}

/// One destination under kills.
struct Ordeal<'a> {
    place: &'a Place,
    /// As the command names it.
    destination: &'a str,
    /// Where its files are on this machine.
    on_disk: PathBuf,
    seed: u64,
}

/// From an empty destination to the end: how often it was killed.
struct Passage {
    kills: u64,
}

impl Ordeal<'_> {
    /// Copies to the empty destination, killed now and then, until so many kills have happened; `passed`
    /// looks at every passage.
    fn survive(&self, mut before: impl FnMut(), mut passed: impl FnMut(&Passage)) {
        let command = ["copy", "in", self.destination];
        let source = self.place.path("in");
        before();
        let began = Instant::now();
        let first = self.place.run_with_keys(&command);
        let longest = began.elapsed();
        assert_eq!(first.code, 0, "{first:?}");
        passed(&Passage { kills: 0 });
        let mut random = Random::new(self.seed);
        let mut left = u64::from(rounds("KNARR_TEST_KILLS", 15));
        while left > 0 {
            self.empty();
            before();
            let reader = TornReader::start(&source, &self.on_disk);
            let kills = self.pass(&command, &mut random, longest, left.min(5));
            reader.finish();
            passed(&Passage { kills });
            left -= kills;
            self.place.check_end(&command, &source, &self.on_disk);
            assert_eq!(
                litter(&self.on_disk),
                Vec::<String>::new(),
                "seed {}",
                self.seed
            );
        }
    }

    fn pass(&self, command: &[&str], random: &mut Random, longest: Duration, most: u64) -> u64 {
        let longest = u64::try_from(longest.as_micros()).unwrap();
        let mut kills = 0;
        loop {
            let limit = if kills < most {
                Duration::from_micros(random.below(longest))
            } else {
                super::support::PATIENCE
            };
            match kill_after(&mut self.place.quiet(command), limit).unwrap() {
                Some(status) => {
                    assert!(
                        status.success(),
                        "seed {}: {}",
                        self.seed,
                        self.place.said()
                    );
                    return kills;
                }
                None => kills += 1,
            }
            assert!(kills <= most, "seed {}: it does not end", self.seed);
            self.place
                .check_record(&self.on_disk, &format!("seed {} after a kill", self.seed));
        }
    }

    /// A new destination and a new state.
    fn empty(&self) {
        empty_directory(&self.on_disk);
        fs::remove_dir_all(self.place.path("state")).unwrap();
    }
}

fn empty_directory(directory: &Path) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap();
        } else {
            fs::remove_file(path).unwrap();
        }
    }
}

#[test]
fn k1_k2_k3_k7_r01_a_copy_to_a_directory_survives_kill_9_at_random_times() {
    let place = world();
    let on_disk = place.path("out");
    fs::create_dir(&on_disk).unwrap();
    let ordeal = Ordeal {
        place: &place,
        destination: "out",
        on_disk,
        seed: 101,
    };
    ordeal.survive(|| {}, |_passage| {});
}

#[test]
fn k1_k2_k3_k7_k9_r01_a_copy_to_sftp_survives_kill_9_and_sends_one_window_again_at_most() {
    let server = Sshd::start();
    let proxy = FaultProxy::to_port(server.port()).start();
    let place = world();
    place.write(
        "knarr.yaml",
        format!("endpoints:\n{}", sftp_endpoint(&server, proxy.port())),
    );
    let ordeal = Ordeal {
        place: &place,
        destination: "partner:",
        on_disk: server.data_directory(),
        seed: 102,
    };
    let sent = || proxy.counters().to_server;
    let began = std::cell::Cell::new(0);
    ordeal.survive(
        || began.set(sent()),
        |passage| {
            let sent = sent() - began.get();
            let most = LARGE + LARGE / 50 + SMALL + passage.kills * (WINDOW + SMALL);
            assert!(
                sent <= most,
                "{} kills: {sent} bytes were sent, at most {most}",
                passage.kills
            );
        },
    );
}

#[test]
fn k1_k3_k7_k9_r01_a_copy_to_s3_survives_kill_9_and_sends_only_what_was_in_flight_again() {
    let server = S3sFs::start();
    let proxy = HttpFaultProxy::start(server.address());
    let place = world();
    place.write(
        "knarr.yaml",
        format!(
            "endpoints:\n{}",
            s3_endpoint(&server, &proxy.endpoint_url())
        ),
    );
    let ordeal = Ordeal {
        place: &place,
        destination: "bucket:",
        on_disk: bucket_directory(&server),
        seed: 103,
    };
    ordeal.survive(
        || proxy.clear_requests(),
        |passage| check_parts(&proxy.requests(), passage.kills),
    );
}

/// Of the parts of the large file only those are sent again that may have been under way in a kill, and
/// an upload is left only after its completion was asked for: a kill in the middle of that makes this
/// server forget the upload, and everything begins anew.
fn check_parts(requests: &[Request], kills: u64) {
    let mut uploads: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for request in requests {
        if request.method == "PUT"
            && request.status == Some(200)
            && let Some(number) = parameter(&request.target, "partNumber=")
        {
            let upload = parameter(&request.target, "uploadId=").unwrap();
            uploads.entry(upload).or_default().push(number);
        }
    }
    let completions: Vec<String> = requests
        .iter()
        .filter(|request| request.method == "POST")
        .filter_map(|request| parameter(&request.target, "uploadId="))
        .collect();
    let mut again = 0;
    for (upload, numbers) in &mut uploads {
        let all = numbers.len();
        numbers.sort_unstable();
        numbers.dedup();
        again += u64::try_from(all - numbers.len()).unwrap();
        assert_eq!(numbers.len(), PARTS, "an upload was left: {requests:#?}");
        assert!(
            completions.contains(upload),
            "{upload} was not completed: {requests:#?}"
        );
    }
    let begun = u64::try_from(uploads.len()).unwrap();
    assert!(
        (1..=1 + kills).contains(&begun),
        "{begun} uploads, {kills} kills: {requests:#?}"
    );
    assert!(
        again <= PARTS_IN_FLIGHT * kills,
        "{again} parts were sent again, {kills} kills: {requests:#?}"
    );
}

/// A parameter of a query.
fn parameter(target: &str, name: &str) -> Option<String> {
    let (_, query) = target.split_once('?')?;
    let value = query.split('&').find_map(|pair| pair.strip_prefix(name))?;
    Some(value.to_owned())
}

#[test]
fn k1_r01_what_was_finished_before_a_kill_is_not_sent_again() {
    let place = Place::new();
    TreeBuilder::new(3).files(50).build(&place.path("in"));
    place.run(&["copy", "in", "out"]).good();
    large_file(&place.path("in/more"), 4, 8 * MIB);
    let done = kill_after(
        &mut place.quiet(&["copy", "in", "out"]),
        Duration::from_millis(5),
    )
    .unwrap();
    let last = place.run(&["copy", "in", "out", "--json"]);
    let sent = report(&last)["sent_bytes"].as_u64().unwrap();
    assert!(sent <= 8 * MIB, "{done:?} {last:?}");
}
