//! The first key exchange, by hand: strict, in its order, with points that are some.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use knarr_serve::ssh::{ServerOptions, Startups};

use crate::gate::{Gate, LIMIT, options};
use crate::states::{packet, string};

const KEXINIT: u8 = 20;
const ECDH_INIT: u8 = 30;
const NEWKEYS: u8 = 21;

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

/// The KEXINIT of a client, which wants strict key exchange or does not.
fn kexinit(strict: &str) -> Vec<u8> {
    let mut payload = vec![KEXINIT];
    payload.extend([7; 16]);
    let key_exchange = format!("curve25519-sha256{strict}");
    for list in [
        key_exchange.as_str(),
        "ssh-ed25519",
        "aes256-gcm@openssh.com",
        "aes256-gcm@openssh.com",
        "hmac-sha2-256",
        "hmac-sha2-256",
        "none",
        "none",
        "",
        "",
    ] {
        payload.extend(string(list.as_bytes()));
    }
    payload.extend([0; 5]);
    payload
}

const STRICT: &str = ",kex-strict-c-v00@openssh.com";

/// The base point of X25519: as good a public key as any.
fn point() -> Vec<u8> {
    let mut point = vec![0; 32];
    point[0] = 9;
    point
}

fn ecdh_init(point: &[u8]) -> Vec<u8> {
    [&[ECDH_INIT][..], &string(point)].concat()
}

/// The messages of the server, in clear text, until it ends the connection or has sent its new keys. An end of the
/// connection is the 0 behind them.
fn exchange(gate: &Gate, payloads: &[Vec<u8>]) -> Vec<u8> {
    let mut stream = TcpStream::connect(gate.address).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut sent = b"SSH-2.0-test\r\n".to_vec();
    for payload in payloads {
        sent.extend(packet(payload));
    }
    stream.write_all(&sent).unwrap();
    let (mut received, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        let (numbers, waits) = messages(&received);
        if numbers.contains(&NEWKEYS) {
            return numbers;
        }
        match stream.read(&mut chunk) {
            Ok(0) => return [numbers, vec![0]].concat(),
            Ok(read) => received.extend_from_slice(&chunk[..read]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                panic!("neither an answer nor an end: {numbers:?}, {waits} bytes of another")
            }
            // A reset is an end, too.
            Err(_) => return [numbers, vec![0]].concat(),
        }
    }
}

fn messages(received: &[u8]) -> (Vec<u8>, usize) {
    let Some(text) = received.iter().position(|byte| *byte == b'\n') else {
        return (Vec::new(), received.len());
    };
    let (mut rest, mut numbers) = (&received[text + 1..], Vec::new());
    while rest.len() > 5 {
        let length = u32::from_be_bytes(rest[..4].try_into().unwrap()) as usize;
        let Some(next) = rest.get(4 + length..) else {
            break;
        };
        numbers.push(rest[5]);
        rest = next;
    }
    (numbers, rest.len())
}

#[test]
fn h42_a_strict_key_exchange_with_its_messages_in_order_comes_to_new_keys() {
    let gate = gate();
    let numbers = exchange(&gate, &[kexinit(STRICT), ecdh_init(&point())]);
    assert_eq!(numbers, [KEXINIT, 31, NEWKEYS]);
    // Who does not know strict key exchange gets ciphers that are safe without.
    let numbers = exchange(&gate, &[kexinit(""), ecdh_init(&point())]);
    assert_eq!(numbers, [KEXINIT, 31, NEWKEYS]);
}

/// Terrapin: what an attacker puts in between shifts the numbers of what follows.
#[test]
fn h42_a_message_too_many_in_a_strict_key_exchange_ends_the_connection() {
    let gate = gate();
    let mut bodies: Vec<Vec<u8>> = (0..=255_u8)
        .filter(|number| ![1, ECDH_INIT].contains(number))
        .map(|number| [&[number][..], &[0; 8]].concat())
        .collect();
    // As they are meant to be: IGNORE, UNIMPLEMENTED, DEBUG, EXT_INFO.
    bodies.push([&[2][..], &string(b"nothing")].concat());
    bodies.push(vec![3, 0, 0, 0, 0]);
    bodies.push([&[4, 0][..], &string(b"hello"), &string(b"")].concat());
    bodies.push(vec![7, 0, 0, 0, 0]);
    for body in &bodies {
        for payloads in [
            vec![kexinit(STRICT), body.clone(), ecdh_init(&point())],
            vec![body.clone(), kexinit(STRICT), ecdh_init(&point())],
        ] {
            let numbers = exchange(&gate, &payloads);
            assert!(
                !numbers.contains(&NEWKEYS) && numbers.last() == Some(&0),
                "{body:?} was let pass: {numbers:?}"
            );
        }
    }
    gate.sftp("ls\n");
}

#[test]
fn h42_points_that_are_none_end_the_connection() {
    let gate = gate();
    for point in [
        vec![],
        vec![9; 31],
        vec![9; 33],
        vec![9; 30_000],
        // The shared secret would be zero.
        vec![0; 32],
    ] {
        let numbers = exchange(&gate, &[kexinit(STRICT), ecdh_init(&point)]);
        assert!(
            !numbers.contains(&NEWKEYS) && numbers.last() == Some(&0),
            "{} bytes: {numbers:?}",
            point.len()
        );
    }
    // A string that is longer than the packet.
    let beyond = [&[ECDH_INIT][..], &u32::MAX.to_be_bytes(), &[9; 32]].concat();
    let numbers = exchange(&gate, &[kexinit(STRICT), beyond]);
    assert!(!numbers.contains(&NEWKEYS), "{numbers:?}");
    gate.sftp("ls\n");
}

#[test]
fn h42_who_stops_in_the_middle_of_the_key_exchange_is_sent_away() {
    let gate = Gate::with(
        ServerOptions {
            log_in_grace: Duration::from_secs(1),
            ..options()
        },
        |user| user,
    );
    let mut stream = TcpStream::connect(gate.address).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.write_all(b"SSH-2.0-test\r\n").unwrap();
    stream.write_all(&packet(&kexinit(STRICT))).unwrap();
    let mut all = Vec::new();
    let outcome = stream.read_to_end(&mut all);
    assert!(
        !matches!(&outcome, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock),
        "the connection was kept"
    );
    gate.seen.wait("ended - the client did not log in in time");
}
