//! What breaks on the way and at the server: cut lines, black holes, restarts, lies.

use std::sync::Arc;
use std::time::{Duration, Instant};

use knarr_core::tree::TreeItem;
use knarr_remote::conformance::{RecordingSink, pattern, read_all, relative};
use knarr_remote::sftp::{SftpOptions, SftpRemote};
use knarr_remote::{ErrorKind, ListOptions, ReadOptions, Remote as _, Replace, Retry};
use knarr_testkit::asyncssh::{AsyncsshServer, ReplyFault};
use knarr_testkit::proxy::{Action, Behaviour, Direction, Fault, FaultProxy};
use knarr_testkit::sshd::Sshd;

use crate::sftp_support::{
    asyncssh_options, asyncssh_remote, deliver, feed, finish, names_in, put_local, remote_with,
    resumable, ssh_options, ssh_options_through, told,
};

const BIG: usize = 96 << 20;

/// What may be sent again after a cut.
const FLUSH_WINDOW: u64 = 32 << 20;

fn through(server: &Sshd, proxy: &FaultProxy) -> SftpRemote {
    let mut ssh = ssh_options_through(server, proxy.port());
    ssh.keepalive_interval = Duration::from_millis(300);
    ssh.keepalive_limit = 2;
    ssh.connect_timeout = Duration::from_secs(5);
    let mut options = SftpOptions::new(ssh);
    options.connections = Some(2);
    remote_with(options, &server.data_directory())
}

fn cut(action: Action, direction: Direction, at_byte: u64) -> Fault {
    Fault {
        connection: None,
        direction,
        at_byte,
        action,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r41_k9_an_upload_cut_by_a_reset_goes_on_with_one_window_at_most() {
    let server = Sshd::start();
    // Bytes of one of the two connections.
    for after in [1 << 20, 20 << 20, 40 << 20] {
        let proxy = FaultProxy::to_port(server.port()).start();
        proxy.add_fault(cut(Action::Reset, Direction::ToServer, after));
        let remote = through(&server, &proxy);
        let content = pattern(after, BIG);
        let path = relative(&format!("file {after}"));
        let sink = RecordingSink::new();
        let mut upload = remote
            .write(&path, resumable(&path, BIG, &sink, None))
            .await
            .unwrap();
        let error = feed(&mut *upload, &content)
            .await
            .expect_err("the connection was reset");
        let sent_first = upload.sent();
        drop(upload);
        assert_eq!(
            (error.kind, error.retry),
            (ErrorKind::Unreachable, Retry::Later),
            "{error}"
        );
        assert_eq!(proxy.counters().faults, 1);
        assert!(!server.data_directory().join(path.as_os_str()).exists());

        // A new process knows only what was saved.
        drop(remote);
        let remote = through(&server, &proxy);
        let before = proxy.counters().to_server;
        let state = sink.state().expect("it had begun");
        let mut upload = remote
            .write(&path, resumable(&path, BIG, &sink, Some(state)))
            .await
            .unwrap();
        feed(&mut *upload, &content).await.unwrap();
        let (resumed, sent) = (upload.resumed_at(), upload.sent());
        finish(upload, &content).await.unwrap();
        assert_eq!(resumed + sent, BIG as u64);
        assert!(
            resumed + FLUSH_WINDOW >= sent_first,
            "cut after {sent_first} bytes, gone on at {resumed}"
        );
        assert!(proxy.counters().to_server - before <= sent + sent / 20 + 200_000);
        let there = std::fs::read(server.data_directory().join(path.as_os_str())).unwrap();
        assert!(there == content, "the file is whole");
    }
    assert!(
        names_in(&server.data_directory())
            .iter()
            .all(|name| name.starts_with("file "))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn r41_a_download_cut_by_a_reset_goes_on_at_its_offset() {
    let server = Sshd::start();
    let content = pattern(1, BIG);
    put_local(&server.data_directory().join("file"), &content);
    let proxy = FaultProxy::to_port(server.port()).start();
    proxy.add_fault(cut(Action::Reset, Direction::ToClient, 30 << 20));
    let remote = through(&server, &proxy);
    let path = relative("file");
    let mut reader = remote.read(&path, ReadOptions::default()).await.unwrap();
    let expected = Some(reader.entry().fingerprint());
    let mut read = Vec::new();
    let error = loop {
        match reader.next().await {
            Ok(Some(chunk)) => read.extend_from_slice(&chunk),
            Ok(None) => panic!("the connection was reset"),
            Err(error) => break error,
        }
    };
    assert_eq!(
        (error.kind, error.retry),
        (ErrorKind::Unreachable, Retry::Later),
        "{error}"
    );
    let options = ReadOptions {
        offset: read.len() as u64,
        expected,
    };
    read.extend(read_all(&remote, &path, options).await.unwrap());
    assert!(read == content, "the file is whole");
}

#[tokio::test(flavor = "multi_thread")]
async fn r42_a_black_hole_is_noticed_and_the_endpoint_counts_as_down() {
    let server = Sshd::start();
    let proxy = FaultProxy::to_port(server.port()).start();
    let remote = through(&server, &proxy);
    let content = pattern(1, BIG);
    let path = relative("file");
    let sink = RecordingSink::new();
    let mut upload = remote
        .write(&path, resumable(&path, BIG, &sink, None))
        .await
        .unwrap();
    upload.write(content.slice(..4 << 20)).await.unwrap();
    // The socket fills up, and nothing comes back: keepalives cannot even be sent.
    proxy.set(Behaviour::BlackHole);
    let begin = Instant::now();
    let error = match feed(&mut *upload, &content.slice(4 << 20..)).await {
        Ok(()) => finish(upload, &content)
            .await
            .expect_err("nothing comes back"),
        Err(error) => error,
    };
    assert_eq!(error.kind, ErrorKind::Unreachable, "{}", told(&error));
    assert!(
        begin.elapsed() < Duration::from_secs(60),
        "it took {:?}",
        begin.elapsed()
    );
    let mut error = remote.stat(&path).await.unwrap_err();
    if error.retry == Retry::Later {
        error = remote.stat(&path).await.unwrap_err();
    }
    assert_eq!(
        (error.kind, error.retry),
        (ErrorKind::Unreachable, Retry::EndpointDown),
        "{error}"
    );

    proxy.set(Behaviour::Forward);
    let state = sink.state().expect("it had begun");
    let mut upload = remote
        .write(&path, resumable(&path, BIG, &sink, Some(state)))
        .await
        .unwrap();
    feed(&mut *upload, &content).await.unwrap();
    finish(upload, &content).await.unwrap();
    assert!(std::fs::read(server.data_directory().join("file")).unwrap() == content);
}

#[tokio::test(flavor = "multi_thread")]
async fn r42_a_hung_server_is_noticed_while_a_small_request_waits() {
    let server = Sshd::start();
    let mut ssh = ssh_options(&server);
    ssh.keepalive_interval = Duration::from_millis(300);
    ssh.keepalive_limit = 2;
    ssh.connect_timeout = Duration::from_secs(3);
    let remote = remote_with(SftpOptions::new(ssh), &server.data_directory());
    remote.endpoint().probe().await.unwrap();
    server.freeze_sessions();
    let error = remote.stat(&relative("x")).await.unwrap_err();
    assert_eq!(
        (error.kind, error.retry),
        (ErrorKind::Unreachable, Retry::Later),
        "{error}"
    );
    // The master still answers, so that the next one goes to a new session.
    assert_eq!(remote.stat(&relative("x")).await.unwrap(), None);
    server.thaw_sessions();
}

#[tokio::test(flavor = "multi_thread")]
async fn r43_k9_a_server_killed_and_restarted_in_the_middle_of_a_file_gets_the_rest() {
    let mut server = Sshd::start();
    let remote = remote_with(
        SftpOptions::new(ssh_options(&server)),
        &server.data_directory(),
    );
    let content = pattern(1, BIG);
    let path = relative("in/file");
    let sink = RecordingSink::new();
    let mut upload = remote
        .write(&path, resumable(&path, BIG, &sink, None))
        .await
        .unwrap();
    feed(&mut *upload, &content.slice(..64 << 20))
        .await
        .unwrap();
    server.kill();
    let error = match feed(&mut *upload, &content.slice(64 << 20..)).await {
        Ok(()) => finish(upload, &content)
            .await
            .expect_err("the server was killed"),
        Err(error) => error,
    };
    assert_eq!(
        (error.kind, error.retry),
        (ErrorKind::Unreachable, Retry::Later),
        "{error}"
    );
    // A connection whose end nobody has noticed yet fails once; then connecting says how things are.
    let mut error = remote.stat(&path).await.unwrap_err();
    if error.retry == Retry::Later {
        error = remote.stat(&path).await.unwrap_err();
    }
    assert_eq!(
        (error.kind, error.retry),
        (ErrorKind::Unreachable, Retry::EndpointDown),
        "{error}"
    );

    server.restart();
    let state = sink.state().expect("it had begun");
    let mut upload = remote
        .write(&path, resumable(&path, BIG, &sink, Some(state)))
        .await
        .unwrap();
    assert!(
        upload.resumed_at() + FLUSH_WINDOW >= 64 << 20,
        "at {}",
        upload.resumed_at()
    );
    feed(&mut *upload, &content).await.unwrap();
    finish(upload, &content).await.unwrap();
    assert!(std::fs::read(server.data_directory().join("in/file")).unwrap() == content);
    assert_eq!(names_in(&server.data_directory().join("in")), ["file"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_who_wait_for_a_server_that_is_down_ask_it_once() {
    let server = Sshd::start();
    let proxy = FaultProxy::to_port(server.port()).start();
    proxy.set(Behaviour::BlackHole);
    let mut ssh = ssh_options_through(&server, proxy.port());
    ssh.connect_timeout = Duration::from_millis(500);
    let remote = Arc::new(remote_with(SftpOptions::new(ssh), &server.data_directory()));
    let waiting: Vec<_> = (0..50)
        .map(|_| {
            let remote = Arc::clone(&remote);
            tokio::spawn(async move { remote.stat(&relative("x")).await })
        })
        .collect();
    for task in waiting {
        let error = task.await.unwrap().unwrap_err();
        assert_eq!(error.retry, Retry::EndpointDown, "{error}");
    }
    let attempts = proxy.counters().connections;
    assert!(attempts <= 3, "{attempts} attempts for 50 files");
    proxy.set(Behaviour::Forward);
    assert_eq!(remote.stat(&relative("x")).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn k3_a_commit_whose_answer_was_lost_is_looked_into() {
    let server = Sshd::start();
    let proxy = FaultProxy::to_port(server.port()).start();
    let remote = through(&server, &proxy);
    let content = pattern(1, 1_000);
    let path = relative("file");
    let options = resumable(&path, content.len(), &RecordingSink::new(), None);
    let mut upload = remote.write(&path, options).await.unwrap();
    feed(&mut *upload, &content).await.unwrap();
    let hash = knarr_core::ContentHash::of(&content);
    let staged = upload.stage(content.len() as u64, hash).await.unwrap();
    // From here on the connection carries questions and no answers. The answer to the CLOSE, which
    // nobody waits for, is let through first.
    assert_eq!(remote.stat(&relative("nothing")).await.unwrap(), None);
    let mut answered = 0;
    while answered != proxy.counters().to_client {
        answered = proxy.counters().to_client;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    proxy.add_fault(cut(Action::Reset, Direction::ToClient, answered + 1));
    let committer = Arc::clone(&staged.committer);
    let committed = committer.commit(vec![staged]).await.remove(0).unwrap();
    assert_eq!(committed.entry.size, 1_000);
    assert_eq!(proxy.counters().faults, 1);
    assert_eq!(names_in(&server.data_directory()), ["file"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn k5_a_listing_that_is_cut_says_so() {
    let server = Sshd::start();
    for number in 0..2_000 {
        let name = format!(
            "d{:03}/a file with a rather long name {number}",
            number % 200
        );
        put_local(&server.data_directory().join(name), b"");
    }
    let proxy = FaultProxy::to_port(server.port()).start();
    proxy.add_fault(cut(Action::Reset, Direction::ToClient, 100_000));
    let remote = through(&server, &proxy);
    let items = remote
        .list(ListOptions::default())
        .await
        .unwrap()
        .collect()
        .await;
    let Some(TreeItem::Incomplete(incomplete)) = items.last() else {
        panic!("{} items, the last is {:?}", items.len(), items.last());
    };
    assert_eq!(incomplete.below, None, "{}", incomplete.reason);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_breaks_the_protocol_is_not_believed() {
    for fault in [
        ReplyFault::Duplicate,
        ReplyFault::WrongId,
        ReplyFault::UnknownType,
        ReplyFault::HugeLength,
        ReplyFault::ZeroLength,
    ] {
        let server = AsyncsshServer::builder()
            .password("hush")
            .reply_fault(fault, 6)
            .start();
        let remote = asyncssh_remote(&server);
        let mut failed = None;
        for number in 0..20 {
            let (path, content) = (format!("file {number}"), pattern(1, 1_000));
            if let Err(error) = deliver(&remote, &path, &content, Replace::Nothing).await {
                failed = Some(error);
                break;
            }
        }
        let error = failed.unwrap_or_else(|| panic!("{fault:?} was not noticed"));
        assert_eq!(
            error.kind,
            ErrorKind::Protocol,
            "{fault:?}: {}",
            told(&error)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_never_answers_is_given_up() {
    let server = AsyncsshServer::builder()
        .password("hush")
        .reply_fault(ReplyFault::Silent, 3)
        .start();
    let mut options = asyncssh_options(&server, "hush");
    options.idle_limit = Duration::from_millis(500);
    let remote = remote_with(options, &server.root());
    let mut outcome = Ok(None);
    for _ in 0..5 {
        outcome = remote.stat(&relative("x")).await;
        if outcome.is_err() {
            break;
        }
    }
    let error = outcome.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unreachable, "{}", told(&error));
}
