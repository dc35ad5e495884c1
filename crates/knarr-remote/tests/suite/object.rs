//! The object store remote against real servers.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use knarr_core::RelPath;
use knarr_core::entry::Kind;
use knarr_core::job::Verify;
use knarr_core::path::tree_order;
use knarr_core::record::Evidence;
use knarr_core::tree::TreeItem;
use knarr_remote::conformance::{self, pattern, put, read_all, relative, try_put};
use knarr_remote::object::{ObjectPlace, S3Credentials};
use knarr_remote::{
    Committed, ErrorKind, ListOptions, ReadOptions, Remote, Removal, Replace, Retry,
};
use knarr_testkit::http_fault::{Answer, HttpAction, HttpFaultProxy, Rule};
use knarr_testkit::s3::{Moto, S3Server as _, S3sFs};

use crate::object_support::{
    everything_about, fresh_prefix, open, options, remote, settled, write_options,
};

/// What s3s-fs does in its own way, as its objects are files: a directory can be looked at and read as
/// if it were an object, and a name that is too long for its notes beside the file is refused after the
/// file was written. moto passes these.
const NOT_ON_S3S_FS: [&str; 2] = [
    "what_is_not_a_file_is_not_read",
    "r37_every_name_arrives_byte_exact_or_is_refused",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3s_fs_behaves_as_every_place() {
    let server = S3sFs::start();
    let mut left_out = 0;
    let mut failed = Vec::new();
    for case in conformance::READING.iter().chain(conformance::WRITING) {
        if NOT_ON_S3S_FS.contains(&case.name) {
            left_out += 1;
            continue;
        }
        let options = options(&server, server.endpoint_url(), &fresh_prefix());
        let remote: Arc<dyn Remote> = Arc::new(open(options).await);
        let running = (case.run)(conformance::Fixture::of(remote));
        let ended = tokio::spawn(tokio::time::timeout(conformance::CASE_LIMIT, running)).await;
        if !matches!(ended, Ok(Ok(()))) {
            failed.push(case.name);
        }
    }
    assert_eq!(
        left_out,
        NOT_ON_S3S_FS.len(),
        "a case that is left out has another name now"
    );
    assert!(failed.is_empty(), "{failed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn moto_behaves_as_every_place() {
    let server = Moto::start();
    let server = &server;
    conformance::run_all(|| async move {
        let options = options(server, server.endpoint_url(), &fresh_prefix());
        Arc::new(open(options).await) as Arc<dyn Remote>
    })
    .await;
}

fn assert_checksum(committed: &Committed, algorithm: &str) {
    match &committed.evidence {
        Evidence::ServerChecksum {
            algorithm: said,
            value,
        } => {
            assert_eq!(said, algorithm);
            assert!(!value.is_empty());
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_checksum_that_the_server_verified_is_the_evidence() {
    let server = S3sFs::start();
    let remote = remote(&server).await;
    for size in [0, 10] {
        let committed = put(&remote, &format!("{size} bytes"), pattern(1, size)).await;
        assert_checksum(&committed, "crc64nvme");
    }
    // s3s-fs does not confirm the checksums of parts.
    let committed = put(&remote, "parts", pattern(1, 9 << 20)).await;
    assert!(
        matches!(committed.evidence, Evidence::SizeOnly { .. }),
        "{:?}",
        committed.evidence
    );
}

#[tokio::test]
async fn everything_is_read_back_where_that_was_asked_for() {
    let server = S3sFs::start();
    let remote = remote(&server).await;
    let path = relative("read back");
    let content = pattern(2, 9 << 20);
    let mut options = write_options(&path, Some(content.len() as u64), Replace::Nothing);
    options.verify = Verify::Full;
    let committed = try_put(&remote, &path, options, &content).await.unwrap();
    assert!(
        matches!(committed.evidence, Evidence::ReadBack { .. }),
        "{:?}",
        committed.evidence
    );
}

#[tokio::test]
async fn r22_a_read_back_that_fails_removes_nothing() {
    let server = Moto::start();
    let proxy = HttpFaultProxy::start(server.address());
    let remote = open(options(&server, proxy.endpoint_url(), "")).await;
    put(&remote, "data", pattern(1, 1_000)).await;
    proxy.rule(
        Rule::on(
            "GET",
            HttpAction::Answer(Answer::s3_error(403, "AccessDenied")),
        )
        .always(),
    );
    let path = relative("data");
    let content = pattern(2, 2_000);
    let mut options = write_options(&path, Some(2_000), Replace::Anything);
    options.verify = Verify::Full;
    let error = try_put(&remote, &path, options, &content)
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::PermissionDenied);
    assert!(proxy.requests_like("DELETE", "data").is_empty());
    proxy.clear_rules();
    assert_eq!(
        read_all(&remote, &path, ReadOptions::default())
            .await
            .unwrap(),
        content
    );
}

#[tokio::test]
async fn a_small_new_file_costs_one_request_once_the_store_has_kept_a_condition() {
    let server = S3sFs::start();
    let proxy = HttpFaultProxy::start(server.address());
    let remote = open(options(&server, proxy.endpoint_url(), "")).await;
    let write = async |name: String| {
        let path = relative(&name);
        let options = write_options(&path, Some(5), Replace::Nothing);
        try_put(&remote, &path, options, &Bytes::from_static(b"hello"))
            .await
            .unwrap();
    };
    // A busy server may cut a connection; then there was no answer from which anything could be learnt.
    for number in 0.. {
        assert!(number < 20, "the store refuses by no condition");
        write(format!("first-{number}")).await;
        let requests = settled(&proxy).await;
        if requests.iter().any(|request| request.status == Some(412)) {
            break;
        }
    }
    proxy.clear_requests();
    for number in 0..10 {
        write(format!("later-{number}")).await;
    }
    let requests = settled(&proxy).await;
    let mut answered_at_once = 0;
    for number in 0..10 {
        let name = format!("later-{number}");
        let about = requests
            .iter()
            .filter(|request| request.target.ends_with(&name));
        let statuses: Vec<Option<u16>> = about.map(|request| request.status).collect();
        match &statuses[..] {
            [Some(200)] => answered_at_once += 1,
            // The repetition, and the look before it, are allowed only after a cut.
            cut if cut.contains(&None) => {}
            other => panic!("\"{name}\" was asked for more than once: {other:?}"),
        }
    }
    assert!(answered_at_once >= 5, "{requests:?}");
}

#[tokio::test]
async fn a_small_file_is_read_with_one_request() {
    let server = S3sFs::start();
    let proxy = HttpFaultProxy::start(server.address());
    put(&remote(&server).await, "small", pattern(1, 5_000)).await;
    let remote = open(options(&server, proxy.endpoint_url(), "")).await;
    let read = read_all(&remote, &relative("small"), ReadOptions::default())
        .await
        .unwrap();
    assert_eq!(read, pattern(1, 5_000));
    assert_eq!(settled(&proxy).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_objects_are_listed_in_the_order_of_trees() {
    let server = Moto::start();
    let remote = Arc::new(remote(&server).await);
    let names: Vec<String> = (0..5_000)
        .map(|number| {
            let between = ["/", "-", ".", "/sub/", "0", " "][number % 6];
            format!("d{:02}{between}f{}", number % 37, number / 37)
        })
        .collect();
    futures::stream::iter(&names)
        .for_each_concurrent(32, |name| {
            let remote = Arc::clone(&remote);
            async move {
                let path = relative(name);
                let options = write_options(&path, Some(1), Replace::Anything);
                try_put(&*remote, &path, options, &Bytes::from_static(b"x"))
                    .await
                    .unwrap();
            }
        })
        .await;
    let items = remote
        .list(ListOptions::default())
        .await
        .unwrap()
        .collect()
        .await;
    let mut paths: Vec<RelPath> = Vec::new();
    for item in items {
        match item {
            TreeItem::Entry(entry) => paths.push(entry.path),
            other => panic!("{other:?}"),
        }
    }
    let mut expected: Vec<RelPath> = names.iter().map(|name| relative(name)).collect();
    expected.sort_by(|a, b| tree_order((a, Kind::File), (b, Kind::File)));
    assert!(
        paths == expected,
        "{} of {} are listed in order",
        paths.len(),
        expected.len()
    );
}

#[tokio::test]
async fn h02_keys_that_are_no_paths_are_shown_as_problems_and_never_touched() {
    let server = Moto::start();
    let python = knarr_testkit::tools::python_with("boto3").unwrap();
    let script = r#"
import sys, boto3
from botocore.config import Config
url, bucket, key, secret, region = sys.argv[1:]
config = Config(s3={"addressing_style": "path"})
s3 = boto3.client("s3", endpoint_url=url, aws_access_key_id=key, aws_secret_access_key=secret, region_name=region, config=config)
for name in ["a/b", "a//b", "../up", "./dot", "/lead", "good", "tree/", "tree/leaf", "empty/", "z/"]:
    s3.put_object(Bucket=bucket, Key=name, Body=b"" if name in ("tree/", "empty/") else b"x")
"#;
    let output = std::process::Command::new(python)
        .args(["-c", script, &server.endpoint_url(), server.bucket()])
        .args([server.access_key(), server.secret_key(), server.region()])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );

    let remote = remote(&server).await;
    let items = remote
        .list(ListOptions::default())
        .await
        .unwrap()
        .collect()
        .await;
    let shown: Vec<String> = items
        .iter()
        .map(|item| match item {
            TreeItem::Entry(entry) => entry.path.to_string(),
            TreeItem::Problem(problem) => {
                assert!(
                    problem.message.contains("left alone"),
                    "{}",
                    problem.message
                );
                format!("problem {}", problem.path)
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        shown,
        [
            "problem ...\\xffup",
            "problem ..\\xffdot",
            "problem .\\xfflead",
            "problem a/.\\xffb",
            "a/b",
            "good",
            "tree/leaf",
            "problem z/\\u{1}",
        ]
    );
    let removals = ["a/b", "empty", "tree"].map(|path| Removal {
        path: relative(path),
        kind: if path == "a/b" {
            Kind::File
        } else {
            Kind::Directory
        },
        seen: None,
    });
    for result in remote.remove(&removals).await {
        result.unwrap();
    }
    let items = remote
        .list(ListOptions::default())
        .await
        .unwrap()
        .collect()
        .await;
    assert_eq!(items.len(), shown.len() - 1, "{items:?}");
}

#[tokio::test]
async fn the_source_time_is_kept_as_others_keep_it() {
    let server = Moto::start();
    let proxy = HttpFaultProxy::start(server.address());
    let remote = open(options(&server, proxy.endpoint_url(), "")).await;
    let path = relative("timed");
    let mut options = write_options(&path, Some(1), Replace::Anything);
    options.mtime = Some(knarr_core::Timestamp::from_nanoseconds(
        1_700_000_000_123_456_789,
    ));
    try_put(&remote, &path, options, &Bytes::from_static(b"x"))
        .await
        .unwrap();
    let python = knarr_testkit::tools::python_with("boto3").unwrap();
    let script = r#"
import sys, boto3
url, bucket, key, secret, region = sys.argv[1:]
s3 = boto3.client("s3", endpoint_url=url, aws_access_key_id=key, aws_secret_access_key=secret, region_name=region)
print(s3.head_object(Bucket=bucket, Key="timed")["Metadata"]["mtime"])
"#;
    let output = std::process::Command::new(python)
        .args(["-c", script, &server.endpoint_url(), server.bucket()])
        .args([server.access_key(), server.secret_key(), server.region()])
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim(),
        "1700000000.123456789"
    );
}

#[tokio::test]
async fn wrong_credentials_are_told_apart_and_h25_no_secret_is_ever_shown() {
    let server = S3sFs::start();
    let sentinel = "SENTINEL-secret-0123456789";
    let mut wrong = options(&server, server.endpoint_url(), "");
    if let ObjectPlace::S3(place) = &mut wrong.place {
        place.credentials = S3Credentials::Given {
            access_key: server.access_key().to_owned(),
            secret_key: sentinel.to_owned().into(),
            session_token: Some(format!("{sentinel}-token").into()),
        };
    }
    assert!(!format!("{wrong:?}").contains("SENTINEL"));
    let remote = open(wrong).await;
    let mut said = format!("{remote:?} {:?}", remote.describe());

    let error = remote.list(ListOptions::default()).await.unwrap_err();
    assert_eq!(
        (error.kind, error.retry),
        (ErrorKind::Authentication, Retry::Never),
        "{error}"
    );
    said.push_str(&everything_about(&error));
    let path = relative("data");
    for size in [10, 9 << 20] {
        let options = write_options(&path, Some(size), Replace::Anything);
        let content = pattern(1, usize::try_from(size).unwrap());
        let error = try_put(&remote, &path, options, &content)
            .await
            .unwrap_err();
        assert_eq!(error.kind, ErrorKind::Authentication, "{error}");
        said.push_str(&everything_about(&error));
    }
    let error = remote.stat(&path).await.unwrap_err();
    let kinds = [ErrorKind::Authentication, ErrorKind::PermissionDenied];
    assert!(kinds.contains(&error.kind), "{error}");
    said.push_str(&everything_about(&error));
    assert!(!said.contains("SENTINEL"), "{said}");
}

#[tokio::test]
async fn a_bucket_that_does_not_exist_is_not_an_empty_one() {
    let server = Moto::start();
    let mut missing = options(&server, server.endpoint_url(), "");
    if let ObjectPlace::S3(place) = &mut missing.place {
        place.bucket = "no-such-bucket".to_owned();
    }
    let remote = open(missing).await;
    let error = remote.list(ListOptions::default()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
    assert!(
        error.to_string().contains("check the name of the bucket"),
        "{error}"
    );
}

#[tokio::test]
async fn a_server_that_is_not_there_is_an_endpoint_that_is_down() {
    let mut server = Moto::start();
    let remote = remote(&server).await;
    server.kill();
    let error = remote.stat(&relative("data")).await.unwrap_err();
    assert_eq!(
        (error.kind, error.retry),
        (ErrorKind::Unreachable, Retry::EndpointDown),
        "{error}"
    );
}
