//! What is published together, killed and cut in the middle of it: on the local disk, on an SFTP server, in an
//! object store.

use std::fs;
use std::path::Path;
use std::time::Duration;

use knarr_testkit::http_fault::{HttpAction, HttpFaultProxy, Rule};
use knarr_testkit::kill::kill_after;
use knarr_testkit::proxy::{Action, Direction, Fault, FaultProxy};
use knarr_testkit::s3::{S3Server as _, S3sFs};
use knarr_testkit::sshd::Sshd;

use super::support::{bucket_directory, large_file, litter, s3_endpoint, sftp_endpoint};
use super::sweep::{When, has_record, sweep};
use crate::program::Place;

const NAMES: [&str; 4] = ["a.csv", "sub/b.csv", "sub/c.csv", "all.done"];

fn job(to: &str) -> String {
    format!(
        "jobs:\n  batch:\n    from: in/\n    match: {{ settle: 0s }}\n    to: \"{to}\"\n    \
         publish: {{ last: \"*.done\" }}\n    after: delete\n    \
         retry: {{ attempts: 3, from: 20ms, to: 50ms }}\n"
    )
}

fn content(name: &str, round: u64) -> Vec<u8> {
    format!("{name} of round {round}\n")
        .repeat(500)
        .into_bytes()
}

fn whole(directory: &Path, name: &str, round: u64) -> bool {
    fs::read(directory.join(name)).is_ok_and(|found| found == content(name, round))
}

/// K2, K4: the last file is not there without the others, none is torn, and none is lost.
#[track_caller]
fn is_sound(place: &Place, destination: &Path, prefix: &str, round: u64, context: &str) {
    let named = |name: &str| format!("{prefix}{name}");
    let visible = NAMES.map(|name| destination.join(named(name)).exists());
    for name in NAMES {
        let name = named(name);
        if destination.join(&name).exists() {
            assert!(
                whole(destination, &name, round),
                "{context}: {name} is torn"
            );
        }
        let is_kept = whole(&place.path("in"), &name, round);
        assert!(
            is_kept || visible.iter().all(|is_there| *is_there),
            "{context}: {name} went from the source before all were published"
        );
    }
    let done_is_there = destination.join(named("all.done")).exists();
    assert!(
        !done_is_there || visible.iter().all(|is_there| *is_there),
        "{context}: the last file is visible without the others: {visible:?}"
    );
}

/// K7, K11: each is there, was delivered once, and is gone from the source.
#[track_caller]
fn is_finished(place: &Place, destination: &Path, prefix: &str, round: u64) {
    for name in NAMES {
        let name = format!("{prefix}{name}");
        assert!(whole(destination, &name, round), "{name}");
        assert!(!place.path("in").join(&name).exists(), "{name}");
        let records = place
            .run(&["history", "--files", "--json", "--path", &name])
            .good();
        let created = records
            .lines()
            .filter(|line| line.contains("\"action\":\"created\""))
            .count();
        assert_eq!(created, 1, "{name}: {records}");
    }
}

#[test]
fn k2_k4_k7_k11_r07_killed_anywhere_a_batch_is_published_as_a_whole_and_once() {
    let place = Place::new();
    for name in NAMES {
        place.write(&format!("in/{name}"), content(name, 0));
    }
    place.write("out/other", "x");
    place.write("knarr.yaml", job("out/"));
    let out = place.path("out");
    sweep(&place, &["job", "run", "batch"], |context, when| {
        is_sound(&place, &out, "", 0, context);
        if when == When::Repeated {
            is_finished(&place, &out, "", 0);
            for name in NAMES {
                has_record(&place, context, name, &["source_removed"]);
            }
        }
    });
}

#[test]
fn k2_k7_k11_a_batch_to_an_sftp_server_that_is_cut_anywhere_is_published_as_a_whole_and_once() {
    let server = Sshd::start();
    let proxy = FaultProxy::to_port(server.port()).start();
    let place = Place::new();
    let endpoint = sftp_endpoint(&server, proxy.port());
    place.write(
        "knarr.yaml",
        format!("endpoints:\n{endpoint}{}", job("partner:out/")),
    );
    let out = server.data_directory().join("out");
    fs::create_dir_all(&out).unwrap();
    for round in 0..14 {
        let prefix = format!("{round}/");
        for name in NAMES {
            let name = format!("{prefix}{name}");
            place.write(&format!("in/{name}"), content(&name, round));
        }
        let direction = if round % 2 == 0 {
            Direction::ToServer
        } else {
            Direction::ToClient
        };
        // After the log-in, and then ever further: in the writes, the looks, the renames.
        proxy.add_fault(Fault {
            connection: Some(proxy.counters().connections + 1),
            direction,
            at_byte: if direction == Direction::ToServer {
                3_500 + round * 4_500
            } else {
                3_000 + round * 170
            },
            action: Action::Reset,
        });
        let context = format!("round {round}");
        let cut = place.run(&["job", "run", "batch"]);
        assert!(matches!(cut.code, 0 | 1 | 4), "{context}: {cut:?}");
        is_sound(&place, &out, &prefix, round, &context);
        for _ in 0..2 {
            place.run(&["job", "run", "batch"]);
        }
        let last = place.run(&["job", "run", "batch"]);
        assert_eq!(last.code, 0, "{context}: {last:?}");
        is_finished(&place, &out, &prefix, round);
    }
    assert!(proxy.counters().faults > 6, "{:?}", proxy.counters());
    assert_eq!(litter(&out), Vec::<String>::new());
    place.run(&["audit", "verify"]).good();
}

#[test]
fn k2_k7_k11_a_batch_to_an_object_store_whose_process_dies_anywhere_is_published_as_a_whole_and_once()
 {
    let server = S3sFs::start();
    let proxy = HttpFaultProxy::start(server.address());
    let place = Place::new();
    let endpoint = s3_endpoint(&server, &proxy.endpoint_url());
    place.write(
        "knarr.yaml",
        format!("endpoints:\n{endpoint}{}", job("bucket:out/")),
    );
    let out = bucket_directory(&server).join("out");
    let mut killed = 0;
    // Four files: a PUT each for their content and for the copy, and a DELETE each.
    for (round, (method, nth)) in [
        ("PUT", 2),
        ("PUT", 4),
        ("PUT", 5),
        ("PUT", 6),
        ("PUT", 8),
        ("DELETE", 1),
        ("DELETE", 3),
        ("DELETE", 4),
        ("POST", 1),
    ]
    .into_iter()
    .enumerate()
    {
        let round = round as u64;
        let prefix = format!("{round}/");
        for name in NAMES {
            let name = format!("{prefix}{name}");
            place.write(&format!("in/{name}"), content(&name, round));
        }
        let context = format!("{method} {nth}");
        proxy.rule(Rule::on(method, HttpAction::Hang).nth(nth));
        let mut command = place.quiet(&["job", "run", "batch"]);
        let ended = kill_after(&mut command, Duration::from_secs(4)).unwrap();
        killed += u32::from(ended.is_none());
        proxy.clear_rules();
        is_sound(&place, &out, &prefix, round, &context);
        let last = place.run_with_keys(&["job", "run", "batch"]);
        assert_eq!(last.code, 0, "{context}: {last:?}");
        is_finished(&place, &out, &prefix, round);
        assert_eq!(litter(&out), Vec::<String>::new(), "{context}");
    }
    assert!(killed >= 6, "only {killed} processes were killed");
    place.run(&["audit", "verify"]).good();
}

#[test]
fn a_large_file_and_small_ones_are_published_together_in_an_object_store() {
    let server = S3sFs::start();
    let place = Place::new();
    let endpoint = s3_endpoint(&server, &server.endpoint_url());
    let job = "jobs:\n  reports:\n    from: in/\n    match: { settle: 0s, manifest: { file: \"*.sha256\", format: sha256sum } }\n    \
               to: \"bucket:out/\"\n    after: { move: done/ }\n";
    place.write("knarr.yaml", format!("endpoints:\n{endpoint}{job}"));
    large_file(&place.path("in/large.bin"), 3, 12 << 20);
    place.write("in/small.csv", "a;b\n");
    let sums = std::process::Command::new("sha256sum")
        .args(["large.bin", "small.csv"])
        .current_dir(place.path("in"))
        .output()
        .unwrap();
    place.write("in/today.sha256", &sums.stdout);
    fs::rename(place.path("in/small.csv"), place.path("small.csv")).unwrap();
    let waits = place.run_with_keys(&["job", "run", "reports"]);
    assert_eq!(waits.code, 0, "{waits:?}");
    let preview = place
        .run_with_keys(&["job", "run", "reports", "--dry-run"])
        .good();
    assert!(
        preview.contains("it waits for \"small.csv\", which is not there"),
        "{preview}"
    );
    let out = bucket_directory(&server).join("out");
    assert!(!out.join("large.bin").exists());
    fs::rename(place.path("small.csv"), place.path("in/small.csv")).unwrap();
    let done = place.run_with_keys(&["job", "run", "reports"]);
    assert_eq!(done.code, 0, "{done:?}");
    for name in ["large.bin", "small.csv", "today.sha256"] {
        let kept = place.path("in/done").join(name);
        assert_eq!(
            fs::read(out.join(name)).unwrap(),
            fs::read(kept).unwrap(),
            "{name}"
        );
    }
    assert_eq!(litter(&out), Vec::<String>::new());
}
