//! Many sessions, rekeys, floods, slow clients, and how the server stops.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use knarr_remote::ssh::SshSession;
use knarr_serve::ssh::{Penalties, ServerOptions, Startups};
use knarr_sftp::client::{Durability, FileReader, FileWriter, ReadOptions, WriteOptions};
use knarr_sftp::codec::{ClientPacket, Reply, Request, ServerPacket};
use knarr_sftp::{Attributes, Client, ClientOptions, OpenFlags};
use knarr_testkit::wait::poll;

use crate::clients::leave_half;
use crate::gate::{Gate, LIMIT, PASSWORD, noise, options, write};

fn create() -> OpenFlags {
    OpenFlags::WRITE | OpenFlags::CREATE | OpenFlags::TRUNCATE
}

async fn put(client: &Client, path: &str, content: &[u8]) {
    let handle = client
        .open(path.as_bytes(), create(), Attributes::default())
        .await
        .unwrap();
    let mut writer = FileWriter::new(vec![handle], &WriteOptions::default()).unwrap();
    for chunk in content.chunks(100_000) {
        writer.write(Bytes::copy_from_slice(chunk)).await.unwrap();
    }
    writer.finish(Durability::Flushed).await.unwrap();
}

async fn get(client: &Client, path: &str) -> Vec<u8> {
    let handle = client
        .open(path.as_bytes(), OpenFlags::READ, Attributes::default())
        .await
        .unwrap();
    let mut reader = FileReader::new(vec![handle], &ReadOptions::default()).unwrap();
    let mut read = Vec::new();
    while let Some(bytes) = reader.next().await.unwrap() {
        read.extend_from_slice(&bytes);
    }
    read
}

#[test]
fn keys_are_changed_by_the_server_while_files_go_both_ways() {
    let gate = Gate::with(
        ServerOptions {
            rekey_bytes: 1024 * 1024,
            ..options()
        },
        |user| user,
    );
    let content = noise(20_000_000, 3);
    write(&gate.path("down"), &content);
    gate.runtime.block_on(async {
        let (_session, client) = gate.connect().await;
        let (read, ()) = tokio::join!(get(&client, "/down"), put(&client, "/up", &content));
        assert!(read == content);
    });
    assert!(std::fs::read(gate.path("up")).unwrap() == content);
    let (large, back) = (gate.outside("large"), gate.outside("back"));
    write(&large, &content);
    let batch = format!(
        "put {} both\nget both {}\n",
        large.display(),
        back.display()
    );
    let output = gate.sftp_as("acme", &["-o", "RekeyLimit=700K"], &batch);
    assert!(output.status.success());
    assert!(std::fs::read(&back).unwrap() == content);
}

/// OpenSSH's ssh with an SFTP channel on its standard streams.
struct Pipe {
    child: Child,
    received: BytesMut,
}

impl Pipe {
    fn open(gate: &Gate) -> Self {
        let child = Command::new("ssh")
            .args(gate.ssh_arguments())
            .args([
                "-p",
                &gate.port().to_string(),
                "-s",
                "acme@127.0.0.1",
                "sftp",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut pipe = Self {
            child,
            received: BytesMut::new(),
        };
        pipe.send(&ClientPacket::Init { version: 3 });
        assert!(matches!(pipe.next(), ServerPacket::Version { .. }));
        pipe
    }

    fn send(&mut self, packet: &ClientPacket) {
        let stdin = self.child.stdin.as_mut().unwrap();
        stdin.write_all(&encoded(packet)).unwrap();
        stdin.flush().unwrap();
    }

    fn next(&mut self) -> ServerPacket {
        let stdout = self.child.stdout.as_mut().unwrap();
        let mut chunk = vec![0; 64 * 1024];
        loop {
            if self.received.len() >= 4 {
                let length = u32::from_be_bytes(self.received[..4].try_into().unwrap()) as usize;
                if self.received.len() >= 4 + length {
                    let packet = self.received.split_to(4 + length).freeze();
                    return ServerPacket::decode(packet.slice(4..)).unwrap();
                }
            }
            let read = stdout.read(&mut chunk).unwrap();
            assert!(read > 0, "the server ended it");
            self.received.extend_from_slice(&chunk[..read]);
        }
    }

    fn open_file(&mut self, path: &'static [u8]) -> Bytes {
        let request = Request::Open {
            path: Bytes::from_static(path),
            flags: OpenFlags::READ,
            attributes: Attributes::default(),
        };
        self.send(&ClientPacket::Request { id: 1, request });
        match self.next() {
            ServerPacket::Reply {
                reply: Reply::Handle(handle),
                ..
            } => handle,
            other => panic!("not opened: {other:?}"),
        }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn encoded(packet: &ClientPacket) -> BytesMut {
    let mut out = BytesMut::new();
    packet.encode(usize::MAX, &mut out).unwrap();
    out
}

/// `count` READs of 4 KiB, with the ids from 10.
fn reads(handle: &Bytes, count: u32) -> Vec<u8> {
    let mut all = Vec::new();
    for number in 0..count {
        let request = Request::Read {
            handle: handle.clone(),
            offset: u64::from(number % 64) * 4096,
            length: 4096,
        };
        let id = 10 + number;
        all.extend_from_slice(&encoded(&ClientPacket::Request { id, request }));
    }
    all
}

#[test]
fn h43_twenty_thousand_reads_before_a_reply_is_taken_are_all_answered_over_ssh() {
    let gate = Gate::new();
    write(&gate.path("file"), &noise(64 * 4096, 8));
    let mut pipe = Pipe::open(&gate);
    let handle = pipe.open_file(b"/file");
    let count = 20_000;
    let requests = reads(&handle, count);
    let mut stdin = pipe.child.stdin.take().unwrap();
    let writing = std::thread::spawn(move || {
        stdin.write_all(&requests).unwrap();
        stdin.flush().unwrap();
        stdin
    });
    // All of them leave this process before a reply is looked at, as far as the client lets them.
    poll(Duration::from_secs(5), || {
        writing.is_finished().then_some(())
    });
    for number in 0..count {
        match pipe.next() {
            ServerPacket::Reply {
                id,
                reply: Reply::Data(data),
            } => assert!(id == 10 + number && data.len() == 4096),
            other => panic!("{other:?}"),
        }
    }
    drop(writing.join().unwrap());
}

#[test]
fn h43_a_client_that_takes_nothing_holds_up_nobody_else() {
    let gate = Gate::new();
    write(&gate.path("file"), &noise(64 * 4096, 8));
    let mut pipe = Pipe::open(&gate);
    let handle = pipe.open_file(b"/file");
    let requests = reads(&handle, 20_000);
    let mut stdin = pipe.child.stdin.take().unwrap();
    let writing = std::thread::spawn(move || {
        stdin.write_all(&requests).ok();
        stdin
    });
    let content = noise(3_000_000, 4);
    gate.runtime.block_on(async {
        let (_session, client) = gate.connect().await;
        put(&client, "/other", &content).await;
        assert!(get(&client, "/other").await == content);
    });
    drop(pipe);
    drop(writing.join().unwrap());
    // It is told as left open, and the server goes on.
    gate.seen.wait("abandoned /file");
    gate.sftp("ls\n");
}

/// A client that takes its replies a byte at a time, for as long as the test is about others.
#[test]
fn h43_a_client_that_takes_a_byte_at_a_time_costs_what_it_may_and_holds_up_nobody() {
    let gate = Gate::new();
    write(&gate.path("file"), &noise(64 * 4096, 8));
    let mut pipe = Pipe::open(&gate);
    let handle = pipe.open_file(b"/file");
    // 800 MB of replies, if all of them were made.
    let requests = reads(&handle, 200_000);
    let mut stdin = pipe.child.stdin.take().unwrap();
    let writing = std::thread::spawn(move || {
        stdin.write_all(&requests).ok();
        stdin
    });
    let mut stdout = pipe.child.stdout.take().unwrap();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let dripping = std::thread::spawn(move || {
        let (mut byte, mut taken) = ([0], 0_u32);
        while stopped.recv_timeout(Duration::from_millis(10)) == Err(RecvTimeoutError::Timeout) {
            taken += u32::try_from(stdout.read(&mut byte).unwrap_or(0)).unwrap();
        }
        taken
    });
    let before = resident_bytes();
    let content = noise(3_000_000, 4);
    gate.runtime.block_on(async {
        let (_session, client) = gate.connect().await;
        for round in 0..20 {
            let path = format!("/other{round}");
            put(&client, &path, &content).await;
            assert!(get(&client, &path).await == content);
        }
    });
    let after = resident_bytes();
    assert!(
        after.saturating_sub(before) < 100_000_000,
        "{before} {after}"
    );
    drop(stop);
    drop(pipe);
    assert!(dripping.join().unwrap() > 0, "nothing came at all");
    drop(writing.join().unwrap());
    gate.sftp("ls\n");
}

pub(crate) fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    let kilobytes: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kilobytes * 1024
}

#[test]
fn k10_a_thousand_sessions_at_once_of_which_two_hundred_transfer_cost_bounded_memory() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit {
        current: limit.maximum,
        ..limit
    };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
    let gate = Arc::new(Gate::with(
        ServerOptions {
            startups: Startups {
                begin: 100,
                percent: 0,
                full: 200,
            },
            ..options()
        },
        |user| user,
    ));
    let before = resident_bytes();
    let sessions = gate.runtime.block_on(async {
        let mut connecting = tokio::task::JoinSet::new();
        let mut sessions = Vec::new();
        for _ in 0..1000 {
            while connecting.len() >= 16 {
                sessions.push(connecting.join_next().await.unwrap().unwrap());
            }
            let options = gate.ssh_options(gate.by_key());
            connecting.spawn(async move {
                let session = SshSession::connect(&options).await.unwrap();
                let client = session.start_sftp(ClientOptions::default()).await.unwrap();
                (session, client)
            });
        }
        while let Some(connected) = connecting.join_next().await {
            sessions.push(connected.unwrap());
        }
        sessions
    });
    assert_eq!(sessions.len(), 1000);
    assert_eq!(gate.server.connections(), 1000);
    let content = Arc::new(noise(1_000_000, 6));
    let clients: Vec<Client> = sessions.iter().map(|(_, client)| client.clone()).collect();
    gate.runtime.block_on(async {
        let mut moving = tokio::task::JoinSet::new();
        for (number, client) in clients.into_iter().enumerate().take(200) {
            let content = Arc::clone(&content);
            moving.spawn(async move {
                let path = format!("/{number}");
                put(&client, &path, &content).await;
                assert!(get(&client, &path).await == *content);
            });
        }
        while let Some(moved) = moving.join_next().await {
            moved.unwrap();
        }
    });
    let grown = resident_bytes().saturating_sub(before);
    // Both ends of every connection are in this process: some 600 KiB for both ends of each of the thousand.
    assert!(grown < 900 << 20, "{} MiB", grown >> 20);
    drop(sessions);
    let gone = || (gate.server.connections() == 0).then_some(());
    poll(LIMIT, gone).expect("all of them end");
}

#[test]
fn h45_who_floods_the_door_or_stands_in_it_is_turned_away_and_others_get_in_afterwards() {
    let gate = Gate::with(
        ServerOptions {
            startups: Startups {
                begin: 5,
                percent: 100,
                full: 5,
            },
            log_in_grace: Duration::from_secs(2),
            ..options()
        },
        |user| user,
    );
    let stand = || {
        let mut stream = TcpStream::connect(gate.address).unwrap();
        stream.write_all(b"SSH-2").unwrap();
        stream
    };
    let mut standing: Vec<TcpStream> = (0..5).map(|_| stand()).collect();
    // Each was taken, and greeted.
    for stream in &mut standing {
        let mut greeting = [0; 14];
        stream.read_exact(&mut greeting).unwrap();
        assert!(greeting.starts_with(b"SSH-2.0-Knarr"));
    }
    for _ in 0..50 {
        let mut turned_away = TcpStream::connect(gate.address).unwrap();
        let mut byte = [0; 1];
        assert_eq!(turned_away.read(&mut byte).unwrap_or(0), 0);
    }
    gate.seen.wait("refused Startups");
    // Who says one letter a second is sent away all the same.
    for stream in &mut standing {
        stream
            .set_read_timeout(Some(Duration::from_millis(300)))
            .unwrap();
        let gone = || {
            let written = stream.write_all(b"x").is_err();
            let ended = matches!(stream.read(&mut [0; 100]), Ok(0))
                || stream.take_error().is_ok_and(|error| error.is_some());
            (written || ended).then_some(())
        };
        poll(LIMIT, gone).expect("the slow one is sent away");
    }
    gate.seen.wait("ended - the client did not log in in time");
    gate.sftp("ls\n");
}

#[test]
fn h45_who_is_too_slow_to_log_in_is_punished() {
    let gate = Gate::with(
        ServerOptions {
            log_in_grace: Duration::from_millis(300),
            penalties: Penalties {
                too_slow: Duration::from_secs(20),
                ..Penalties::default()
            },
            ..options()
        },
        |user| user,
    );
    let _standing = TcpStream::connect(gate.address).unwrap();
    gate.seen.wait("ended - the client did not log in in time");
    let refused = || {
        let _stream = TcpStream::connect(gate.address).unwrap();
        gate.seen.has("refused Penalty").then_some(())
    };
    poll(LIMIT, refused).expect("the door is closed");
}

#[test]
fn a_client_that_is_silent_for_too_long_loses_its_connection() {
    let gate = Gate::with(
        ServerOptions {
            idle: Some(Duration::from_secs(1)),
            ..options()
        },
        |user| user,
    );
    let (session, client) = gate.runtime.block_on(gate.connect());
    gate.runtime.block_on(client.stat(b"/")).unwrap();
    poll(LIMIT, || session.is_closed().then_some(())).expect("it ends");
    gate.seen
        .wait("ended acme the client was silent for too long");
}

#[test]
fn k2_k9_a_killed_clients_upload_never_appears_and_is_gone_on_with() {
    let gate = Gate::new();
    let content = noise(6_000_000, 7);
    let large = gate.outside("large");
    write(&large, &content);
    leave_half(&gate, "/file", &content[..3_200_000]);
    assert!(!gate.path("file").exists());
    assert!(!gate.sftp("ls -a\n").contains("part"));
    gate.sftp(&format!("reput {} file\n", large.display()));
    assert!(std::fs::read(gate.path("file")).unwrap() == content);
    let uploads = gate.seen.lines();
    let uploads = uploads
        .iter()
        .filter(|line| line.starts_with("uploaded"))
        .count();
    assert_eq!(uploads, 1);
}

#[test]
fn k2_who_has_a_file_open_may_finish_it_when_the_server_stops() {
    let gate = Gate::new();
    let (session, client) = gate.runtime.block_on(gate.connect());
    let handle = gate.runtime.block_on(async {
        let handle = client
            .open(b"/file", create(), Attributes::default())
            .await
            .unwrap();
        handle.write(0, b"first ").await.unwrap();
        handle
    });
    gate.stop();
    // Nobody new is let in.
    let refused = || TcpStream::connect(gate.address).is_err().then_some(());
    poll(LIMIT, refused).expect("nobody listens any more");
    gate.runtime.block_on(async {
        handle.write(6, b"second").await.unwrap();
        handle.close().await.unwrap();
    });
    assert_eq!(std::fs::read(gate.path("file")).unwrap(), b"first second");
    poll(LIMIT, || session.is_closed().then_some(())).expect("then it ends");
    gate.seen.wait("ended acme the server is stopping");
}

#[test]
fn k2_who_does_not_finish_in_time_is_cut_and_nothing_half_is_seen() {
    let gate = Gate::with(
        ServerOptions {
            stopping: Duration::from_millis(300),
            ..options()
        },
        |user| user,
    );
    let (session, client) = gate.runtime.block_on(gate.connect());
    let handle = gate.runtime.block_on(async {
        let handle = client
            .open(b"/file", create(), Attributes::default())
            .await
            .unwrap();
        handle.write(0, b"first ").await.unwrap();
        handle
    });
    gate.stop();
    poll(LIMIT, || session.is_closed().then_some(())).expect("it ends");
    gate.seen.wait("abandoned /file 6");
    assert!(!gate.path("file").exists());
    drop(handle);
}

#[test]
fn the_password_stands_in_no_event_and_in_no_debug_output() {
    let gate = Gate::new();
    assert!(gate.enters_by_password("acme", PASSWORD));
    assert!(!gate.enters_by_password(PASSWORD.trim_start_matches("sentinel"), PASSWORD));
    let told = format!("{:?} {:?} {:?}", gate.seen.lines(), gate.users, gate.server);
    assert!(!told.contains("sentinel"), "{told}");
}
