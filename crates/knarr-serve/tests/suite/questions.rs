//! Log-ins that go wrong in the messages themselves, questions for the password, and channels by the thousand.

use std::process::Command;

use knarr_serve::users::{Requirement, User};
use knarr_testkit::tools;

use crate::gate::{Gate, PASSWORD, options, run_with, shown, write};

/// Runs a script of paramiko with the port, the key of `acme` and what else it needs; says what it said.
fn script(gate: &Gate, text: &str, more: &[&str]) -> String {
    let python = tools::python_with("paramiko").unwrap();
    let file = gate.outside("script.py");
    write(&file, [PREAMBLE, text].concat().as_bytes());
    let mut command = Command::new(python);
    command.arg(&file).arg(gate.port().to_string());
    command.arg(gate.key()).args(more);
    let output = run_with(&mut command, "");
    assert!(output.status.success(), "{}", shown(&output));
    shown(&output)
}

const PREAMBLE: &str = r#"
import sys, time, threading, paramiko
from paramiko.message import Message
port = int(sys.argv[1])
key = paramiko.Ed25519Key.from_private_key_file(sys.argv[2])

def connect():
    transport = paramiko.Transport(("127.0.0.1", port))
    transport.start_client(timeout=20)
    return transport

def until(what):
    end = time.monotonic() + 20
    while not what():
        if time.monotonic() > end:
            raise SystemExit("it did not come to pass")
        time.sleep(0.005)
"#;

#[test]
fn a_client_that_can_only_be_asked_for_its_password_logs_in() {
    let gate = Gate::new();
    let said = script(
        &gate,
        r#"
asked = []
def answer(title, instructions, prompts):
    asked.append(prompts)
    return [sys.argv[3]]
transport = connect()
transport.auth_interactive("acme", answer)
sftp = paramiko.SFTPClient.from_transport(transport)
sftp.mkdir("/made")
print("asked:", asked)
"#,
        &[PASSWORD],
    );
    assert!(said.contains("asked: [[('Password: ', False)]]"), "{said}");
    assert!(gate.path("made").is_dir());
    assert!(gate.seen.has("log-in acme keyboard-interactive Accepted"));
}

#[test]
fn a_question_is_no_way_around_the_key_where_both_are_wanted() {
    let gate = Gate::with(options(), |user| User {
        requirement: Requirement::KeyAndPassword,
        ..user
    });
    let said = script(
        &gate,
        r#"
answer = lambda *_: [sys.argv[3]]
transport = connect()
try:
    transport.auth_interactive("acme", answer)
    print("let in")
except paramiko.AuthenticationException:
    print("refused")
# The usual class asks for the service anew for each method, and waits for an answer that does not come.
transport = paramiko.ServiceRequestingTransport(("127.0.0.1", port))
transport.start_client(timeout=20)
print("then", transport.auth_publickey("acme", key))
print("and", transport.auth_interactive("acme", answer))
print("in", transport.is_authenticated())
"#,
        &[PASSWORD],
    );
    assert!(
        said.contains("refused") && !said.contains("let in"),
        "{said}"
    );
    assert!(said.contains("'keyboard-interactive'"), "{said}");
    assert!(said.contains("in True"), "{said}");
}

#[test]
fn h41_answers_to_no_question_too_many_or_too_long_let_nobody_in() {
    let gate = Gate::new();
    let said = script(
        &gate,
        r#"
password = sys.argv[3]
def response(answers):
    m = Message()
    m.add_byte(bytes([61]))
    m.add_int(len(answers))
    for answer in answers:
        m.add_string(answer)
    return m
def request(user):
    m = Message()
    m.add_byte(bytes([50]))
    m.add_string(user); m.add_string("ssh-connection"); m.add_string("keyboard-interactive")
    m.add_string(""); m.add_string("")
    return m
bad = []
for name, messages in {
    "none": [request("acme"), response([])],
    "two": [request("acme"), response([password, password])],
    "empty": [request("acme"), response([""])],
    "long": [request("acme"), response(["x" * 30000])],
    "not text": [request("acme"), response([b"\xff\xfe" + password.encode()])],
    "not asked": [response([password])],
    "another user": [request("acme"), request("nobody"), response([password])],
    "an old question": [request("acme"), response(["wrong"]), response([""])],
}.items():
    transport = connect()
    transport.auth_handler = None
    seen = []
    transport._handler_table = dict(transport._handler_table)
    for number in (51, 52, 60):
        transport._handler_table[number] = lambda m, n=number: seen.append(n)
    m = Message(); m.add_byte(bytes([5])); m.add_string("ssh-userauth")
    transport._handler_table[6] = lambda m: seen.append(6)
    transport._send_message(m)
    until(lambda: 6 in seen or not transport.is_active())
    for message in messages:
        before = len(seen)
        try:
            transport._send_message(message)
        except Exception:
            pass
        until(lambda: len(seen) > before or not transport.is_active())
    if 52 in seen or transport.is_authenticated():
        bad.append((name, seen))
    transport.close()
print("bad:", bad)
"#,
        &[PASSWORD],
    );
    assert!(said.contains("bad: []"), "{said}");
    let lines = gate.seen.lines();
    assert!(
        !lines.iter().any(|line| line.ends_with("Accepted")),
        "{lines:#?}"
    );
    gate.sftp("ls\n");
}

#[test]
fn h41_asking_for_a_key_or_an_empty_signature_lets_nobody_in() {
    let gate = Gate::new();
    let said = script(
        &gate,
        r#"
def request(signature, name=b"ssh-ed25519", blob=None):
    m = Message()
    m.add_byte(bytes([50]))
    m.add_string("acme"); m.add_string("ssh-connection"); m.add_string("publickey")
    m.add_boolean(signature is not None)
    m.add_string(name); m.add_string(key.asbytes() if blob is None else blob)
    if signature is not None:
        m.add_string(signature)
    return m
def signature(bytes_):
    m = Message(); m.add_string("ssh-ed25519"); m.add_string(bytes_)
    return m.asbytes()
bad = []
for name, message in {
    "asked": request(None),
    "empty": request(b""),
    "no signature": request(signature(b"")),
    "zeros": request(signature(bytes(64))),
    "long": request(signature(bytes(20000))),
    "another type": request(signature(bytes(64)), b"ssh-rsa"),
    "none": request(signature(bytes(64)), b"none", b""),
    "no key": request(signature(bytes(64)), b"ssh-ed25519", b""),
}.items():
    transport = connect()
    seen = []
    transport._handler_table = dict(transport._handler_table)
    for number in (51, 52, 60, 91):
        transport._handler_table[number] = lambda m, n=number: seen.append(n)
    m = Message(); m.add_byte(bytes([5])); m.add_string("ssh-userauth")
    transport._handler_table[6] = lambda m: seen.append(6)
    transport._send_message(m)
    until(lambda: 6 in seen or not transport.is_active())
    before = len(seen)
    transport._send_message(message)
    until(lambda: len(seen) > before or not transport.is_active())
    m = Message()
    m.add_byte(bytes([90])); m.add_string("session"); m.add_int(3); m.add_int(0x100000); m.add_int(0x8000)
    try:
        transport._send_message(m)
    except Exception:
        pass
    # No channel without a user, whether the connection ends or not.
    time.sleep(0.1)
    if 52 in seen or 91 in seen or transport.is_authenticated():
        bad.append((name, seen))
    transport.close()
print("bad:", bad)
"#,
        &[],
    );
    assert!(said.contains("bad: []"), "{said}");
    let lines = gate.seen.lines();
    assert!(
        !lines.iter().any(|line| line.ends_with("Accepted")),
        "{lines:#?}"
    );
    gate.sftp("ls\n");
}

#[test]
fn h42_of_ten_thousand_channels_of_one_client_ten_are_opened() {
    let gate = Gate::new();
    let before = crate::sessions::resident_bytes();
    let said = script(
        &gate,
        r#"
transport = connect()
transport.auth_publickey("acme", key)
sftp = paramiko.SFTPClient.from_transport(transport)
opened, refused = [], []
transport._handler_table = dict(transport._handler_table)
transport._handler_table[91] = lambda m: opened.append(m.get_int())
transport._handler_table[92] = lambda m: refused.append((m.get_int(), m.get_int()))
for number in range(10000):
    m = Message()
    m.add_byte(bytes([90])); m.add_string("session"); m.add_int(1000 + number); m.add_int(0x100000); m.add_int(0x8000)
    transport._send_message(m)
until(lambda: len(opened) + len(refused) == 10000 or not transport.is_active())
print("opened", len(opened), "refused", len(refused), "because", set(why for _, why in refused))
# What was there before goes on.
print("listed", sftp.listdir("/"))
"#,
        &[],
    );
    // One more is that of the client itself; 4 is a shortage of resources.
    assert!(
        said.contains("opened 9 refused 9991 because {4}") && said.contains("listed []"),
        "{said}"
    );
    let after = crate::sessions::resident_bytes();
    assert!(
        after.saturating_sub(before) < 100_000_000,
        "{before} {after}"
    );
    gate.sftp("ls\n");
}
