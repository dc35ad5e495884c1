//! Who is let in, by what, from where, and for how long.

use std::process::Command;
use std::time::Duration;

use knarr_remote::ssh::{Authentication, KeyFile, Secret, SshSession};
use knarr_serve::places::UserPlaces;
use knarr_serve::ssh::{HostKeyError, HostKeys, Penalties, ServerOptions};
use knarr_serve::users::{AuthorizedKey, Network, Requirement, Standing, User, public_key};
use knarr_testkit::wait::poll;

use crate::gate::{Gate, LIMIT, PASSWORD, keygen, options, run_with, shown, write};

#[test]
fn h41_names_and_passwords_that_are_none_let_nobody_in() {
    let gate = Gate::with(
        ServerOptions {
            connections: 100,
            ..options()
        },
        |user| user,
    );
    assert!(gate.enters_by_password("acme", PASSWORD));
    let long = "x".repeat(100_000);
    for (user, password) in [
        ("", ""),
        ("", PASSWORD),
        ("acme", ""),
        ("acme", " "),
        ("acme", "\0"),
        ("acme", "sentinel-Trz7-passwor"),
        ("acme", "sentinel-Trz7-password\0"),
        ("acme", "SENTINEL-TRZ7-PASSWORD"),
        ("acme", &long),
        ("acme\0", PASSWORD),
        ("acme ", PASSWORD),
        (" acme", PASSWORD),
        ("Acme", PASSWORD),
        ("аcme", PASSWORD),
        ("root", PASSWORD),
        ("../acme", PASSWORD),
        (&long, PASSWORD),
    ] {
        assert!(
            !gate.enters_by_password(user, password),
            "{user:.20} {password:.30}"
        );
    }
    assert!(gate.enters_by_password("acme", PASSWORD));
    let lines = gate.seen.lines().join("\n");
    assert!(!lines.contains("sentinel"), "{lines}");
}

#[test]
fn h41_another_key_and_another_user_are_refused_alike() {
    let gate = Gate::new();
    let other = gate.outside("other");
    keygen(&["-t", "ed25519", "-N", ""], &other);
    let with_other = format!("IdentityFile={}", other.display());
    let mut command = Command::new("sftp");
    for argument in gate.ssh_arguments() {
        let is_own = argument.starts_with("IdentityFile=");
        command.arg(if is_own { with_other.clone() } else { argument });
    }
    command.args(["-b", "-", "-P", &gate.port().to_string(), "acme@127.0.0.1"]);
    let wrong_key = run_with(&mut command, "ls\n");
    assert!(!wrong_key.status.success());
    let wrong_user = gate.sftp_as("nobody", &[], "ls\n");
    assert!(!wrong_user.status.success());
    // The client is told the same.
    let told = |output| shown(output).replace("nobody", "acme");
    assert_eq!(told(&wrong_key), told(&wrong_user));
    assert!(gate.seen.has("log-in acme publickey WrongCredential"));
    assert!(gate.seen.has("log-in nobody publickey UnknownUser"));
}

#[test]
fn a_key_and_then_the_password_are_both_needed_where_both_are_wanted() {
    let gate = Gate::with(options(), |user| User {
        requirement: Requirement::KeyAndPassword,
        ..user
    });
    let connect = |authentication: Authentication| {
        let options = gate.ssh_options(authentication);
        gate.runtime
            .block_on(async { SshSession::connect(&options).await.is_ok() })
    };
    let key = || vec![KeyFile::required(gate.key())];
    let both = |password: &str| Authentication {
        keys: key(),
        password: Some(Secret::new(password)),
        ..Authentication::default()
    };
    assert!(!connect(gate.by_key()));
    assert!(!gate.enters_by_password("acme", PASSWORD));
    assert!(!connect(both("wrong")));
    assert!(connect(both(PASSWORD)));
    assert!(gate.seen.has("log-in acme publickey Partial"));
    assert!(gate.seen.has("log-in acme password Accepted"));
}

type Change = Box<dyn FnOnce(User) -> User>;

#[test]
fn who_is_expired_disabled_or_elsewhere_is_not_let_in() {
    let past = "2020-01-01T00:00:00Z".parse().unwrap();
    let elsewhere = Network::parse("192.0.2.0/24").unwrap();
    let changes: [(&str, Change); 3] = [
        (
            "Expired",
            Box::new(move |user| User {
                expires: Some(past),
                ..user
            }),
        ),
        (
            "Disabled",
            Box::new(|user| User {
                standing: Standing::Disabled,
                ..user
            }),
        ),
        (
            "Network",
            Box::new(move |user| User {
                networks: vec![elsewhere],
                ..user
            }),
        ),
    ];
    for (outcome, change) in changes {
        let gate = Gate::with(options(), change);
        assert!(!gate.sftp_as("acme", &[], "ls\n").status.success());
        assert!(!gate.enters_by_password("acme", PASSWORD));
        assert!(
            gate.seen.has(&format!("log-in acme publickey {outcome}")),
            "{:#?}",
            gate.seen.lines()
        );
        assert!(gate.seen.has(&format!("log-in acme password {outcome}")));
    }
}

#[test]
fn a_certificate_lets_in_whom_it_names_as_long_as_it_is_valid() {
    let directory = tempfile::tempdir().unwrap();
    let authority = directory.path().join("authority");
    keygen(&["-t", "ed25519", "-N", ""], &authority);
    let signer = std::fs::read_to_string(authority.with_extension("pub")).unwrap();
    let gate = Gate::with(options(), |user| User {
        keys: Vec::new(),
        authorities: vec![public_key(&signer).unwrap()],
        ..user
    });
    let certify = |by: &std::path::Path, more: &[&str]| {
        let mut command = Command::new("ssh-keygen");
        command
            .args(["-q", "-s"])
            .arg(by)
            .args(["-I", "test"])
            .args(more);
        let output = run_with(command.arg(gate.key().with_extension("pub")), "");
        assert!(output.status.success(), "{}", shown(&output));
    };
    let enters = || gate.sftp_as("acme", &[], "ls\n").status.success();
    certify(&authority, &["-n", "acme"]);
    assert!(enters(), "{:#?}", gate.seen.lines());
    certify(
        &authority,
        &[
            "-n",
            "others,acme",
            "-V",
            "-1h:+1h",
            "-O",
            "source-address=127.0.0.0/8",
        ],
    );
    assert!(enters());
    assert!(gate.seen.has("log-in acme certificate Accepted"));
    for wrong in [
        &["-n", "other"][..],
        &[],
        &["-n", "acme", "-V", "-2h:-1h"],
        &["-n", "acme", "-V", "+1h:+2h"],
        &["-n", "acme", "-O", "source-address=192.0.2.0/24"],
        &["-n", "acme", "-O", "force-command=/bin/sh"],
        &["-n", "acme", "-O", "critical:unknown@example.com=x"],
        &["-h", "-n", "acme"],
    ] {
        certify(&authority, wrong);
        assert!(!enters(), "{wrong:?}");
    }
    let other = directory.path().join("other");
    keygen(&["-t", "ed25519", "-N", ""], &other);
    certify(&other, &["-n", "acme"]);
    assert!(!enters());
}

#[test]
fn h44_who_is_removed_or_changed_loses_the_connections_that_are_there() {
    let gate = Gate::new();
    let (session, client) = gate.runtime.block_on(gate.connect());
    gate.runtime.block_on(client.stat(b"/")).unwrap();
    gate.users.replace(Vec::new());
    poll(LIMIT, || session.is_closed().then_some(())).expect("the connection ends");
    gate.seen.wait("ended acme the user was changed or removed");
    assert!(!gate.enters_by_password("acme", PASSWORD));
}

#[test]
fn h44_log_ins_at_the_moment_in_which_the_user_goes_never_stay() {
    let gate = Gate::with(
        ServerOptions {
            startups: knarr_serve::ssh::Startups {
                begin: 1000,
                percent: 0,
                full: 2000,
            },
            ..options()
        },
        |user| user,
    );
    gate.runtime.block_on(async {
        let mut all = tokio::task::JoinSet::new();
        for _ in 0..64 {
            let options = gate.ssh_options(gate.by_key());
            all.spawn(async move { SshSession::connect(&options).await.ok() });
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        gate.users.replace(Vec::new());
        let mut sessions = Vec::new();
        while let Some(session) = all.join_next().await {
            sessions.extend(session.unwrap());
        }
        for session in sessions {
            for _ in 0..3000 {
                if session.is_closed() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert!(session.is_closed(), "somebody who is no user is still in");
        }
    });
}

#[test]
fn h45_wrong_passwords_close_the_door_for_a_while() {
    let gate = Gate::with(
        ServerOptions {
            penalties: Penalties::default(),
            ..options()
        },
        |user| user,
    );
    for connections in 1..=4 {
        assert!(!gate.enters_by_password("acme", "wrong"));
        let ended = || {
            let lines = gate.seen.lines();
            let ended = lines
                .iter()
                .filter(|line| line.starts_with("ended"))
                .count();
            (ended == connections).then_some(())
        };
        poll(LIMIT, ended).expect("the connection ends");
    }
    // Now even the right one is not listened to.
    assert!(!gate.enters_by_password("acme", PASSWORD));
    gate.seen.wait("refused Penalty");
}

#[test]
fn h45_a_connection_has_six_tries() {
    let gate = Gate::new();
    let mut arguments = Vec::new();
    for number in 0..8 {
        let key = gate.outside(&format!("key{number}"));
        keygen(&["-t", "ed25519", "-N", ""], &key);
        arguments.push(format!("-oIdentityFile={}", key.display()));
    }
    // The right one comes last.
    let own: Vec<String> = gate
        .ssh_arguments()
        .into_iter()
        .map(|argument| {
            if argument.starts_with("IdentityFile=") {
                "Compression=no".to_owned()
            } else {
                argument
            }
        })
        .collect();
    let mut command = Command::new("sftp");
    command.args(&own).args(&arguments);
    command.arg(format!("-oIdentityFile={}", gate.key().display()));
    command.args(["-b", "-", "-P", &gate.port().to_string(), "acme@127.0.0.1"]);
    let output = run_with(&mut command, "ls\n");
    assert!(!output.status.success());
    assert!(
        shown(&output).contains("Too many authentication"),
        "{}",
        shown(&output)
    );
    let tries = gate
        .seen
        .lines()
        .iter()
        .filter(|line| line.starts_with("log-in"))
        .count();
    assert!(tries <= 7, "{tries}");
}

#[test]
fn host_keys_are_made_once_kept_and_refused_when_others_may_read_them() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let keys = directory.path().join("keys");
    let first = HostKeys::open(&keys).unwrap().fingerprints();
    assert_eq!(HostKeys::open(&keys).unwrap().fingerprints(), first);
    let file = keys.join("ssh_host_ed25519_key");
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    // A second one, as for a change: both are offered.
    keygen(&["-t", "ecdsa", "-N", ""], &keys.join("ssh_host_ecdsa_key"));
    let both = HostKeys::open(&keys).unwrap().fingerprints();
    assert_eq!(both.len(), 2);
    assert_eq!(both[0], first[0]);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(
        HostKeys::open(&keys),
        Err(HostKeyError::Open { .. })
    ));
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    write(&file, b"");
    assert!(matches!(
        HostKeys::open(&keys),
        Err(HostKeyError::Form { .. })
    ));
}

#[test]
fn a_user_has_no_more_connections_than_allowed() {
    let gate = Gate::with(options(), |user| User {
        connections: Some(2),
        ..user
    });
    let one = gate.runtime.block_on(gate.connect());
    let _other = gate.runtime.block_on(gate.connect());
    assert!(!gate.enters_by_password("acme", PASSWORD));
    assert!(gate.seen.has("log-in acme password TooManySessions"));
    drop(one);
    let entered = || gate.enters_by_password("acme", PASSWORD).then_some(());
    poll(LIMIT, entered).expect("there is room again");
}

#[test]
fn a_key_with_a_network_or_a_date_admits_only_as_it_says() {
    let gate = Gate::new();
    let line = std::fs::read_to_string(gate.key().with_extension("pub")).unwrap();
    let become_key = |options: &str| {
        let mut user = User::new("acme", UserPlaces::directory(gate.path("")));
        user.keys = vec![AuthorizedKey::parse(&format!("{options}{line}")).unwrap()];
        gate.users.replace([user]);
        gate.sftp_as("acme", &[], "ls\n").status.success()
    };
    assert!(become_key("from=\"127.0.0.1\" "));
    assert!(!become_key("from=\"192.0.2.1\" "));
    assert!(become_key("expiry-time=\"20990101\",restrict "));
    assert!(!become_key("expiry-time=\"20200101\" "));
}
