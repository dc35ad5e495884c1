//! Contents that a scanner is asked about over ICAP, before they have a name at the destination.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use knarr_core::job::After;
use knarr_core::record::Action;
use knarr_engine::node::{Looks, WatchJob};
use knarr_engine::pickup::{Cause, Ended, PickupJob};
use knarr_engine::{FileChecks, IcapScan};
use knarr_testkit::c_icap::{CIcap, VIRUS};

use crate::node::records;
use crate::support::{World, local, watch_job};

fn pickup(world: &World, url: &str) -> PickupJob {
    let checks = FileChecks {
        icap: Some(IcapScan::new(url, Duration::from_secs(20)).unwrap()),
        ..FileChecks::default()
    };
    let job = WatchJob {
        looks: Looks::InRuns,
        sources: Vec::new(),
        settle: Duration::ZERO,
        checks: Arc::new(checks),
        after: After::Delete,
        ..watch_job("test", Path::new(""), local(&world.path("b")))
    };
    PickupJob {
        job: Arc::new(job),
        source: local(&world.path("a")),
    }
}

async fn run(world: &World, url: &str) -> Ended {
    let job = pickup(world, url);
    job.run(&world.environment, Cause::Manual).await.unwrap()
}

fn message(world: &World, file: &str) -> (Action, String) {
    let last = records(world, file).pop().unwrap();
    (last.action, last.message.unwrap_or_default())
}

/// Lengths around the preview and around what is read at once.
const LENGTHS: [usize; 8] = [0, 1, 1_023, 1_024, 1_025, 5_000, 262_145, 3_000_000];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_scanner_leaves_as_it_is_is_delivered() {
    let server = CIcap::start();
    for service in ["echo", "filter"] {
        let world = World::new();
        for length in LENGTHS {
            let content: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
            world.write(&format!("a/{length}"), &content);
        }
        let ended = run(&world, &server.url(service)).await;
        assert_eq!(
            (ended.report.created, ended.report.failed),
            (LENGTHS.len() as u64, 0),
            "{service}: {ended:?}"
        );
        for length in LENGTHS {
            let there = world.read(&format!("b/{length}")).unwrap();
            assert_eq!(there.len(), length);
        }
    }
    let log = server.access_log();
    assert_eq!(log.matches("RESPMOD").count(), 2 * LENGTHS.len(), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k2_what_the_scanner_refuses_has_never_a_name_at_the_destination_and_its_source_stays() {
    let server = CIcap::start();
    let world = World::new();
    let mut late = vec![b'x'; 1_000_000];
    late.extend_from_slice(VIRUS.as_bytes());
    world.write("a/small", format!("xx {VIRUS} xx").as_bytes());
    world.write("a/late", &late);
    world.write("a/clean", b"nothing in it");
    let ended = run(&world, &server.url("filter")).await;
    assert_eq!(
        (ended.report.created, ended.report.failed),
        (1, 2),
        "{ended:?}"
    );
    for name in ["small", "late"] {
        let (action, message) = message(&world, name);
        assert_eq!(action, Action::Parked);
        assert!(message.contains("refuses it: Virus score=10"), "{message}");
        assert_eq!(records(&world, name).len(), 1, "it is not asked again");
        assert!(world.path(&format!("a/{name}")).exists());
        assert!(world.read(&format!("b/{name}")).is_none());
    }
    assert!(world.read("b/clean").is_some());
    world.assert_chain();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k2_without_a_scanner_nothing_is_delivered_and_with_it_again_the_rest_is() {
    let mut server = CIcap::start();
    let world = World::new();
    world.write("a/file", b"content");
    let url = server.url("filter");
    for (url, why) in [
        (server.url("nosuch"), "status 404"),
        (url.clone(), "cannot be reached"),
    ] {
        if why.contains("reached") {
            server.kill();
        }
        let ended = run(&world, &url).await;
        assert_eq!(
            (ended.report.created, ended.report.failed),
            (0, 1),
            "{ended:?}"
        );
        let all = records(&world, "file");
        assert!(all.len() > 1, "it is tried again: {all:?}");
        let (action, message) = message(&world, "file");
        assert_eq!(action, Action::Parked);
        assert!(message.contains(why), "{message}");
        assert!(world.read("b/file").is_none());
        assert!(world.path("a/file").exists());
        unpark(&world).await;
    }
    server.restart();
    let ended = run(&world, &url).await;
    assert_eq!(
        (ended.report.created, ended.report.failed),
        (1, 0),
        "{ended:?}"
    );
    assert_eq!(world.read("b/file").unwrap(), b"content");
}

/// Has what is parked tried again, as a new version at the source does.
async fn unpark(world: &World) {
    let path = world.path("a/file");
    let content = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    std::fs::write(&path, content).unwrap();
}

/// A server that gives one answer to whatever comes, once the head and the preview have come.
fn answering(answer: &'static [u8]) -> (String, std::thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("icap://{}/x", listener.local_addr().unwrap());
    let serving = std::thread::spawn(move || {
        // As often as a file is tried.
        for _ in 0..3 {
            let (mut stream, _) = listener.accept().unwrap();
            stream
                .set_read_timeout(Some(Duration::from_secs(5)))
                .unwrap();
            let (mut seen, mut buffer) = (Vec::new(), [0; 4_096]);
            while !seen.ends_with(b"ieof\r\n\r\n") {
                match stream.read(&mut buffer) {
                    Ok(0) | Err(_) => break,
                    Ok(read) => seen.extend_from_slice(&buffer[..read]),
                }
            }
            stream.write_all(answer).ok();
        }
    });
    (url, serving)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k2_an_answer_that_is_no_verdict_of_clean_delivers_nothing() {
    let long = Box::leak(
        [b"ICAP/1.0 204 No\r\nX: ".as_slice(), &[b'x'; 100_000]]
            .concat()
            .into_boxed_slice(),
    );
    let cases: [(&'static [u8], &str); 12] = [
        (b"", "breaks off"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "does not speak ICAP"),
        (b"ICAP/1.0 100 Continue\r\n\r\n", "breaks off"),
        (b"ICAP/1.0 500 Error\r\n\r\n", "status 500"),
        (b"ICAP/1.0 403 Forbidden\r\n\r\n", "refuses it"),
        (b"ICAP/1.0 204 No\r\nX-Infection-Found: Type=0; Threat=Test;\r\n\r\n", "Threat=Test"),
        (b"ICAP/1.0 200 OK\r\nX-Virus-ID: Test\r\nEncapsulated: null-body=0\r\n\r\n", "Test"),
        (b"ICAP/1.0 200 OK\r\nEncapsulated: res-hdr=0, res-body=19\r\n\r\nHTTP/1.1 200 OK\r\n\r\n7\r\nCONTENT\r\n0\r\n\r\n", "something else"),
        (b"ICAP/1.0 200 OK\r\nEncapsulated: res-hdr=0, null-body=19\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", "something else"),
        (b"ICAP/1.0 200 OK\r\nEncapsulated: res-hdr=0, res-body=19\r\n\r\nHTTP/1.1 200 OK\r\n\r\nffffffffffffffff\r\ncontent", "connection broke"),
        (b"ICAP/1.0 200 OK\r\nEncapsulated: res-hdr=0, res-body=19\r\n\r\nHTTP/1.1 200 OK\r\n\r\nxx\r\ncontent", "connection broke"),
        (long, "too long"),
    ];
    for (answer, why) in cases {
        let world = World::new();
        world.write("a/file", b"content");
        let (url, _serving) = answering(answer);
        let ended = run(&world, &url).await;
        let shown = String::from_utf8_lossy(&answer[..answer.len().min(60)]);
        assert_eq!(
            (ended.report.created, ended.report.failed),
            (0, 1),
            "{shown}: {ended:?}"
        );
        let (_, message) = message(&world, "file");
        assert!(message.contains(why), "{shown}: {message}");
        assert!(world.read("b/file").is_none(), "{shown}");
        assert!(world.path("a/file").exists(), "{shown}");
    }
    // The very content, given back.
    let world = World::new();
    world.write("a/file", b"content");
    let (url, _serving) = answering(
        b"ICAP/1.0 200 OK\r\nEncapsulated: res-hdr=0, res-body=19\r\n\r\nHTTP/1.1 200 OK\r\n\r\n3;x=y\r\ncon\r\n4\r\ntent\r\n0\r\n\r\n",
    );
    assert_eq!(run(&world, &url).await.report.created, 1);
}
