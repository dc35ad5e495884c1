//! Each message number in each state: before the keys, with keys and without a user, and after the log-in.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use knarr_serve::ssh::{ServerOptions, Startups};
use knarr_testkit::tools;

use crate::gate::{Gate, options, run_with, shown, write};

fn gate() -> Gate {
    Gate::with(
        ServerOptions {
            startups: Startups {
                begin: 1000,
                percent: 0,
                full: 2000,
            },
            ..options()
        },
        |user| user,
    )
}

/// A packet without encryption.
pub(crate) fn packet(payload: &[u8]) -> Vec<u8> {
    let padding = 8 - (payload.len() + 5) % 8 + 8;
    let length = u32::try_from(payload.len() + 1 + padding).unwrap();
    let mut packet = length.to_be_bytes().to_vec();
    packet.push(u8::try_from(padding).unwrap());
    packet.extend_from_slice(payload);
    packet.resize(packet.len() + padding, 0);
    packet
}

/// The numbers of the messages that the server sends in clear text until it ends the connection or says nothing more.
fn answers(mut stream: TcpStream) -> Vec<u8> {
    stream
        .set_read_timeout(Some(Duration::from_millis(80)))
        .unwrap();
    let (mut received, mut chunk) = (Vec::new(), [0; 4096]);
    while let Ok(read) = stream.read(&mut chunk) {
        if read == 0 {
            break;
        }
        received.extend_from_slice(&chunk[..read]);
    }
    let text = received.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    let (mut rest, mut numbers) = (&received[text..], Vec::new());
    while rest.len() > 5 {
        let length = u32::from_be_bytes(rest[..4].try_into().unwrap()) as usize;
        numbers.push(rest[5]);
        rest = rest.get(4 + length..).unwrap_or_default();
    }
    numbers
}

pub(crate) fn string(text: &[u8]) -> Vec<u8> {
    let mut out = u32::try_from(text.len()).unwrap().to_be_bytes().to_vec();
    out.extend_from_slice(text);
    out
}

/// Bodies that would mean something if they were listened to.
fn body(number: u8) -> Vec<u8> {
    match number {
        5 | 6 => string(b"ssh-userauth"),
        50 => [string(b"acme"), string(b"ssh-connection"), string(b"none")].concat(),
        80 => [
            string(b"tcpip-forward"),
            vec![1],
            string(b"127.0.0.1"),
            vec![0; 4],
        ]
        .concat(),
        90 => [
            string(b"session"),
            vec![0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 128, 0],
        ]
        .concat(),
        93..=97 => [vec![0; 4], string(b"x")].concat(),
        98 => [vec![0; 4], string(b"subsystem"), vec![1], string(b"sftp")].concat(),
        _ => vec![0; 40],
    }
}

#[test]
fn h42_no_message_before_the_keys_gets_anybody_in() {
    let gate = gate();
    for number in 0..=255_u8 {
        let mut stream = TcpStream::connect(gate.address).unwrap();
        let mut sent = b"SSH-2.0-test\r\n".to_vec();
        sent.extend(packet(&[&[number], body(number).as_slice()].concat()));
        stream.write_all(&sent).unwrap();
        for answer in answers(stream) {
            // Its KEXINIT, a farewell, "not understood": nothing that grants anything.
            assert!(
                [1, 3, 4, 20].contains(&answer),
                "{number} was answered by {answer}"
            );
        }
    }
    assert!(
        !gate
            .seen
            .lines()
            .iter()
            .any(|line| line.starts_with("log-in"))
    );
    gate.sftp("ls\n");
}

#[test]
fn h42_impossible_packets_and_key_exchanges_end_the_connection() {
    let gate = gate();
    let huge = [&u32::MAX.to_be_bytes()[..], &[4; 100]].concat();
    let empty = [&[0, 0, 0, 0][..], &[0; 100]].concat();
    let mut padded = packet(&[20]);
    padded[4] = 255;
    let mut no_lists = vec![20];
    no_lists.extend([7; 16]);
    no_lists.extend([0xff; 64]);
    for sent in [
        huge,
        empty,
        padded,
        packet(&no_lists),
        vec![0; 70_000],
        b"GET / HTTP/1.1\r\n\r\n".repeat(5000),
    ] {
        let mut stream = TcpStream::connect(gate.address).unwrap();
        stream.write_all(b"SSH-2.0-test\r\n").ok();
        stream.write_all(&sent).ok();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let mut all = Vec::new();
        // An end, or a reset; not a wait.
        let outcome = stream.read_to_end(&mut all);
        assert!(
            !matches!(&outcome, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock),
            "{:?}",
            &sent[..8]
        );
    }
    for greeting in [
        &b"\n"[..],
        b"SSH-1.5-old\r\n",
        b"HTTP\r\n\r\n",
        &[0xff; 20_000],
    ] {
        let mut stream = TcpStream::connect(gate.address).unwrap();
        stream.write_all(greeting).ok();
        drop(stream);
    }
    gate.sftp("ls\n");
}

const SCRIPT: &[u8] = br#"
import sys, socket, threading, time, paramiko
from paramiko.message import Message
port, known, key, state = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
key = paramiko.Ed25519Key.from_private_key_file(key)

def connect():
    transport = paramiko.Transport(("127.0.0.1", port))
    transport.start_client(timeout=20)
    return transport

def message(number):
    m = Message()
    m.add_byte(bytes([number]))
    if number == 5:
        m.add_string("ssh-connection")
    elif number == 50:
        m.add_string("acme"); m.add_string("ssh-connection"); m.add_string("none")
    elif number == 61:
        m.add_int(0xffffffff)
    elif number == 80:
        m.add_string("tcpip-forward"); m.add_boolean(True); m.add_string("127.0.0.1"); m.add_int(0)
    elif number == 90:
        m.add_string("session"); m.add_int(7); m.add_int(0x100000); m.add_int(0x8000)
    elif number == 93:
        m.add_int(0); m.add_int(0xffffffff)
    elif 94 <= number <= 97 or 99 <= number <= 100 or 91 <= number <= 92:
        m.add_int(77); m.add_string(b"x" * 100)
    elif number == 98:
        m.add_int(77); m.add_string("exec"); m.add_boolean(True); m.add_string("id")
    else:
        m.add_bytes(b"\0" * 40)
    return m

bad = []
for number in range(1, 101):
    transport = connect()
    if state == "user":
        transport.auth_publickey("acme", key)
        sftp = paramiko.SFTPClient.from_transport(transport)
        sftp.listdir("/")
    try:
        transport._send_message(message(number))
    except Exception:
        pass
    if state == "nobody":
        # Whatever it was: there is no channel without a user.
        opened = False
        if transport.is_active():
            transport.saved_exception = None
            m = Message()
            m.add_byte(bytes([90])); m.add_string("session"); m.add_int(3); m.add_int(0x100000); m.add_int(0x8000)
            seen = []
            transport._handler_table = dict(transport._handler_table)
            for answer in (52, 91):
                transport._handler_table[answer] = lambda m, a=answer: seen.append(a)
            try:
                transport._send_message(m)
            except Exception:
                pass
            time.sleep(0.03)
            opened = bool(seen)
        if opened or transport.is_authenticated():
            bad.append(number)
    else:
        # Either it ended, or it goes on as before.
        try:
            sftp.get_channel().settimeout(5)
            sftp.listdir("/")
        except socket.timeout:
            bad.append(number)
        except Exception:
            pass
    transport.close()
print("bad:", bad)
"#;

fn each_number(state: &str) -> Gate {
    let gate = gate();
    let python = tools::python_with("paramiko").unwrap();
    let script = gate.outside("states.py");
    write(&script, SCRIPT);
    let mut command = Command::new(python);
    command
        .arg(&script)
        .arg(gate.port().to_string())
        .arg(gate.known_hosts());
    command.arg(gate.key()).arg(state);
    let output = run_with(&mut command, "");
    assert!(shown(&output).contains("bad: []"), "{}", shown(&output));
    gate.sftp("ls\n");
    gate
}

#[test]
fn h42_no_message_with_keys_and_without_a_user_opens_a_channel() {
    let gate = each_number("nobody");
    let lines = gate.seen.lines();
    let accepted = lines
        .iter()
        .filter(|line| line.ends_with("Accepted"))
        .count();
    // That of the look whether the server is alive.
    assert_eq!(accepted, 1, "{lines:#?}");
}

#[test]
fn h42_no_message_of_a_user_stops_the_server_or_hangs_it() {
    drop(each_number("user"));
}
