//! Connecting: host keys, log-in, jump hosts, configuration; on real servers.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use knarr_remote::conformance::{pattern, relative};
use knarr_remote::sftp::SftpOptions;
use knarr_remote::ssh::auth::AgentKeys;
use knarr_remote::ssh::config::Destination;
use knarr_remote::ssh::{
    Authentication, ConfigContext, HostKeyPolicy, KeyFile, Presence, Secret, SftpError, SshConfig,
    SshError, SshOptions, SshSession,
};
use knarr_remote::{ErrorKind, Remote as _, Replace, Retry};
use knarr_sftp::ClientOptions;
use knarr_testkit::proxy::{Behaviour, FaultProxy};
use knarr_testkit::sshd::{KeyKind, Sshd};

use crate::sftp_support::{
    by_key, deliver, put_local, remote_with, ssh_options, ssh_options_through, told,
};

pub(crate) async fn connect(options: &SshOptions) -> Result<(), SshError> {
    let session = SshSession::connect(options).await?;
    match session.start_sftp(ClientOptions::default()).await {
        Ok(_client) => Ok(()),
        Err(SftpError::Ssh(error)) => Err(error),
        Err(other) => panic!("{other:?}"),
    }
}

pub(crate) async fn refused(options: &SshOptions) -> SshError {
    connect(options)
        .await
        .expect_err("this server is not to be talked to")
}

#[tokio::test]
async fn h50_a_host_that_known_hosts_names_is_connected_to() {
    for kind in [KeyKind::Ed25519, KeyKind::Rsa, KeyKind::Ecdsa] {
        let server = Sshd::builder().only_host_key(kind).start();
        connect(&ssh_options(&server)).await.unwrap();
    }
}

#[tokio::test]
async fn h50_an_unknown_host_is_refused_with_its_fingerprint() {
    let server = Sshd::start();
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("known_hosts");
    let files = vec![missing.clone()];
    let options = SshOptions {
        host_key: HostKeyPolicy::KnownHosts { files },
        ..ssh_options(&server)
    };
    let error = refused(&options).await;
    assert!(
        matches!(error, SshError::UnknownHostKey { .. }),
        "{error:?}"
    );
    let text = error.to_string();
    assert!(text.contains(&server.host_key_fingerprint()), "{text}");
    assert!(text.contains(&missing.display().to_string()), "{text}");
    assert_eq!(
        (error.kind(), error.retry()),
        (ErrorKind::HostKey, Retry::Never)
    );
    assert!(!missing.exists(), "nothing is learned by itself");
    assert!(!server.log().contains("Accepted"), "nobody logged in");

    let files = vec![directory.path().to_path_buf()];
    let options = SshOptions {
        host_key: HostKeyPolicy::KnownHosts { files },
        ..ssh_options(&server)
    };
    let error = refused(&options).await;
    assert!(
        matches!(error, SshError::KnownHosts { .. }),
        "an unreadable file: {error:?}"
    );
}

#[tokio::test]
async fn h50_r43_a_changed_host_key_stops_at_once_with_its_own_message() {
    let mut server = Sshd::start();
    let remote = remote_with(
        SftpOptions::new(ssh_options(&server)),
        &server.data_directory(),
    );
    deliver(&remote, "before", &pattern(1, 10), Replace::Nothing)
        .await
        .unwrap();
    server.restart_with_new_host_keys();

    let error = deliver(&remote, "after", &pattern(1, 10), Replace::Nothing)
        .await
        .unwrap_err();
    // The first error may still be that of the connection that died with the old server.
    let error = match error.kind {
        ErrorKind::Unreachable => deliver(&remote, "after", &pattern(1, 10), Replace::Nothing)
            .await
            .unwrap_err(),
        _ => error,
    };
    assert_eq!(
        (error.kind, error.retry),
        (ErrorKind::HostKey, Retry::Never),
        "{}",
        told(&error)
    );
    let text = error.to_string();
    assert!(
        text.contains("HAS CHANGED") && text.contains("ssh-keygen -R"),
        "{text}"
    );
    assert!(text.contains(&server.host_key_fingerprint()), "{text}");
}

#[tokio::test]
async fn h50_several_types_of_keys_do_not_make_a_known_host_unknown() {
    let server = Sshd::builder()
        .host_key(KeyKind::Rsa)
        .host_key(KeyKind::Ecdsa)
        .start();
    let lines = std::fs::read_to_string(server.known_hosts_path()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    for (number, line) in lines.lines().enumerate() {
        // Known by one type only, whichever it is.
        let file = directory.path().join(number.to_string());
        put_local(&file, line.as_bytes());
        let host_key = HostKeyPolicy::KnownHosts { files: vec![file] };
        connect(&SshOptions {
            host_key,
            ..ssh_options(&server)
        })
        .await
        .unwrap();
    }
    for kind in [KeyKind::Ed25519, KeyKind::Rsa, KeyKind::Ecdsa] {
        let pin = server.fingerprint_of(kind).parse().unwrap();
        let host_key = HostKeyPolicy::Pinned(vec![pin]);
        connect(&SshOptions {
            host_key,
            ..ssh_options(&server)
        })
        .await
        .unwrap();
    }
}

#[tokio::test]
async fn h50_a_pinned_fingerprint_refuses_every_other_key() {
    let server = Sshd::builder().host_key(KeyKind::Rsa).start();
    let other = Sshd::start();
    let pin = other.host_key_fingerprint();
    for pins in [vec![pin.parse().unwrap()], Vec::new()] {
        let host_key = HostKeyPolicy::Pinned(pins);
        let error = refused(&SshOptions {
            host_key,
            ..ssh_options(&server)
        })
        .await;
        assert!(
            matches!(error, SshError::HostKeyChanged { .. }),
            "{error:?}"
        );
        assert_eq!(error.retry(), Retry::Never);
    }
    assert!(!server.log().contains("Accepted"), "nobody logged in");
}

#[tokio::test]
async fn h50_a_revoked_key_is_refused_although_it_is_known() {
    let server = Sshd::start();
    let known = std::fs::read_to_string(server.known_hosts_path()).unwrap();
    let key = server.host_public_keys().unwrap().remove(0);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("known_hosts");
    put_local(&file, format!("{known}@revoked * {key}\n").as_bytes());
    let host_key = HostKeyPolicy::KnownHosts { files: vec![file] };
    let error = refused(&SshOptions {
        host_key,
        ..ssh_options(&server)
    })
    .await;
    assert!(
        matches!(error, SshError::HostKeyRevoked { .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn h50_a_host_certificate_of_a_trusted_authority_is_enough() {
    let directory = tempfile::tempdir().unwrap();
    let authority = directory.path().join("authority");
    let host = directory.path().join("host");
    let maker = Sshd::start();
    maker
        .generate_key(&authority, KeyKind::Ed25519, "")
        .unwrap();
    maker.generate_key(&host, KeyKind::Ed25519, "").unwrap();
    let sign = |principal: &str| {
        let mut command = Command::new("ssh-keygen");
        command
            .arg("-q")
            .arg("-s")
            .arg(&authority)
            .args(["-I", "test", "-h", "-n", principal]);
        assert!(
            command
                .arg(host.with_extension("pub"))
                .status()
                .unwrap()
                .success()
        );
    };
    let public = std::fs::read_to_string(authority.with_extension("pub")).unwrap();
    let file = directory.path().join("known_hosts");
    put_local(&file, format!("@cert-authority 127.* {public}").as_bytes());
    for (principal, trusted) in [("127.0.0.1", true), ("127.0.0.2", false)] {
        sign(principal);
        let server = Sshd::builder()
            .config(&format!("HostKey {}", host.display()))
            .config(&format!("HostCertificate {}-cert.pub", host.display()))
            .start();
        let host_key = HostKeyPolicy::KnownHosts {
            files: vec![file.clone()],
        };
        let outcome = connect(&SshOptions {
            host_key,
            ..ssh_options(&server)
        })
        .await;
        match outcome {
            Ok(()) => assert!(trusted, "a certificate for {principal}"),
            Err(SshError::HostCertificate { reason, .. }) => {
                assert!(!trusted && reason.contains(principal), "{reason}");
            }
            Err(other) => panic!("a certificate for {principal}: {}", told(&other)),
        }
    }
}

#[tokio::test]
async fn h52_a_server_with_only_weak_algorithms_is_refused() {
    for (line, weak) in [
        ("Ciphers aes128-cbc,3des-cbc", "Cipher"),
        ("MACs hmac-sha1\nCiphers aes128-ctr", "Mac"),
        ("KexAlgorithms diffie-hellman-group14-sha1", "Kex"),
    ] {
        let server = Sshd::builder().config(line).start();
        let error = refused(&ssh_options(&server)).await;
        assert!(
            matches!(error, SshError::Negotiation { .. }),
            "{line}: {error:?}"
        );
        assert_eq!(error.retry(), Retry::Never);
        assert!(told(&error).contains(weak), "{}", told(&error));
    }
    let server = Sshd::builder()
        .only_host_key(KeyKind::Rsa)
        .config("HostKeyAlgorithms ssh-rsa")
        .start();
    let error = refused(&ssh_options(&server)).await;
    assert!(matches!(error, SshError::Negotiation { .. }), "{error:?}");
}

#[tokio::test]
async fn every_kind_of_key_file_logs_in() {
    let server = Sshd::start();
    for kind in [KeyKind::Ed25519, KeyKind::Rsa, KeyKind::Ecdsa] {
        let plain = server
            .add_client_key(&format!("{kind:?}"), kind, "")
            .unwrap();
        let authentication = by_key(&plain);
        connect(&SshOptions {
            authentication,
            ..ssh_options(&server)
        })
        .await
        .unwrap();

        let path = server
            .add_client_key(&format!("{kind:?}-locked"), kind, "open sesame")
            .unwrap();
        let passphrase = Some(Secret::new("open sesame"));
        let file = KeyFile {
            path: path.clone(),
            passphrase,
            presence: Presence::Required,
        };
        let authentication = Authentication {
            keys: vec![file],
            ..Authentication::default()
        };
        connect(&SshOptions {
            authentication,
            ..ssh_options(&server)
        })
        .await
        .unwrap();

        for passphrase in [None, Some(Secret::new("wrong"))] {
            let file = KeyFile {
                path: path.clone(),
                passphrase,
                presence: Presence::Required,
            };
            let authentication = Authentication {
                keys: vec![file],
                ..Authentication::default()
            };
            let error = refused(&SshOptions {
                authentication,
                ..ssh_options(&server)
            })
            .await;
            assert!(matches!(error, SshError::Key { .. }), "{error:?}");
            assert!(error.to_string().contains("passphrase"), "{error}");
            assert!(!error.to_string().contains("wrong"), "{error}");
        }
    }
}

#[tokio::test]
async fn keys_in_pem_log_in() {
    let server = Sshd::start();
    for (format, passphrase) in [("PEM", ""), ("PKCS8", ""), ("PKCS8", "sesame")] {
        let name = format!("{format}{passphrase}");
        let path = server.add_client_key(&name, KeyKind::Rsa, "").unwrap();
        let mut command = Command::new("ssh-keygen");
        command
            .args(["-q", "-p", "-m", format, "-N", passphrase, "-f"])
            .arg(&path);
        assert!(command.status().unwrap().success());
        let passphrase = (!passphrase.is_empty()).then(|| Secret::new(passphrase));
        let file = KeyFile {
            path,
            passphrase,
            presence: Presence::Required,
        };
        let authentication = Authentication {
            keys: vec![file],
            ..Authentication::default()
        };
        let outcome = connect(&SshOptions {
            authentication,
            ..ssh_options(&server)
        })
        .await;
        outcome.unwrap_or_else(|error| panic!("{name}: {}", told(&error)));
    }
}

/// An agent of its own, ended when this is dropped.
struct Agent {
    directory: tempfile::TempDir,
    process: std::process::Child,
}

impl Agent {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("ssh-agent");
        command
            .arg("-D")
            .arg("-a")
            .arg(directory.path().join("socket"));
        let process = command.stdout(std::process::Stdio::null()).spawn().unwrap();
        let agent = Self { directory, process };
        let socket = agent.socket();
        knarr_testkit::wait_until(Duration::from_secs(10), "the agent", || socket.exists());
        agent
    }

    fn socket(&self) -> std::path::PathBuf {
        self.directory.path().join("socket")
    }

    fn add(&self, key: &Path) {
        let mut command = Command::new("ssh-add");
        command
            .arg("-q")
            .arg(key)
            .env("SSH_AUTH_SOCK", self.socket());
        assert!(command.status().unwrap().success());
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

#[tokio::test]
async fn an_agent_logs_in_and_offers_only_what_it_may() {
    let server = Sshd::start();
    let agent = Agent::start();
    let good = server.add_client_key("good", KeyKind::Rsa, "").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let strange = directory.path().join("strange");
    server.generate_key(&strange, KeyKind::Ed25519, "").unwrap();
    agent.add(&strange);
    agent.add(&good);
    let all = Authentication {
        agent: Some(agent.socket()),
        ..Authentication::default()
    };
    let authentication = all.clone();
    connect(&SshOptions {
        authentication,
        ..ssh_options(&server)
    })
    .await
    .unwrap();

    // Only the public half is there: the agent signs.
    let only = |key: &Path| Authentication {
        keys: vec![KeyFile {
            presence: Presence::Optional,
            ..KeyFile::required(key)
        }],
        agent_keys: AgentKeys::OfKeyFiles,
        ..all.clone()
    };
    let half = directory.path().join("half");
    put_local(
        &half.with_extension("pub"),
        &std::fs::read(good.with_extension("pub")).unwrap(),
    );
    let authentication = only(&half);
    connect(&SshOptions {
        authentication,
        ..ssh_options(&server)
    })
    .await
    .unwrap();

    let authentication = only(&strange);
    let error = refused(&SshOptions {
        authentication,
        ..ssh_options(&server)
    })
    .await;
    let SshError::Refused {
        tried, accepted, ..
    } = &error
    else {
        panic!("{error:?}")
    };
    assert_eq!(tried.len(), 2, "the agent's key and the file: {tried:?}");
    assert_eq!(accepted, "publickey");
    assert_eq!(
        (error.kind(), error.retry()),
        (ErrorKind::Authentication, Retry::Never)
    );

    let gone = directory.path().join("no-agent");
    let authentication = Authentication {
        agent: Some(gone),
        ..Authentication::default()
    };
    let error = refused(&SshOptions {
        authentication,
        ..ssh_options(&server)
    })
    .await;
    assert!(error.to_string().contains("no-agent"), "{error}");
}

#[tokio::test]
async fn a_server_behind_others_is_reached_through_them() {
    let inner = Sshd::start();
    let outer = Sshd::start();
    let mut options = ssh_options(&inner);
    options.jumps = vec![ssh_options(&outer), ssh_options(&outer)];
    let remote = remote_with(SftpOptions::new(options.clone()), &inner.data_directory());
    let content = pattern(1, 3_000_000);
    deliver(&remote, "through", &content, Replace::Nothing)
        .await
        .unwrap();
    assert_eq!(
        std::fs::read(inner.data_directory().join("through")).unwrap(),
        content
    );
    assert!(
        outer.log().contains("Accepted"),
        "it went through the jump host"
    );

    // Each hop is verified by itself.
    let files = vec![inner.known_hosts_path()];
    options.jumps[0].host_key = HostKeyPolicy::KnownHosts { files };
    let error = refused(&options).await;
    assert!(
        matches!(error, SshError::UnknownHostKey { .. }),
        "{error:?}"
    );

    let mut options = ssh_options(&inner);
    let deaf = Sshd::builder().config("AllowTcpForwarding no").start();
    options.jumps = vec![ssh_options(&deaf)];
    let error = refused(&options).await;
    assert!(matches!(error, SshError::NotOffered { .. }), "{error:?}");
}

#[tokio::test]
async fn the_configuration_of_openssh_says_how_to_reach_a_host() {
    let inner = Sshd::start();
    let outer = Sshd::start();
    let home = tempfile::tempdir().unwrap();
    let known = [inner.known_hosts_path(), outer.known_hosts_path()]
        .map(|path| std::fs::read_to_string(path).unwrap())
        .concat();
    put_local(&home.path().join(".ssh/known_hosts"), known.as_bytes());
    let text = format!(
        "Host inside\n HostName 127.0.0.1\n Port {}\n IdentityFile {}\n ProxyJump gate\n\
         Host gate\n HostName 127.0.0.1\n Port {}\n IdentityFile {}\n\
         Host *\n User {}\n",
        inner.port(),
        inner.client_key_path().display(),
        outer.port(),
        outer.client_key_path().display(),
        inner.user(),
    );
    put_local(&home.path().join(".ssh/config"), text.as_bytes());
    let config = SshConfig::load(ConfigContext {
        home: home.path().to_path_buf(),
        local_user: "nobody-else".to_owned(),
        user_file: Some(home.path().join(".ssh/config")),
        system_file: None,
        system_known_hosts: None,
    })
    .unwrap();
    let inside = Destination {
        host: "inside".to_owned(),
        ..Destination::default()
    };
    let options = config.options(&inside, &Authentication::default()).unwrap();
    connect(&options).await.unwrap();
    assert!(
        outer.log().contains("Accepted"),
        "it went through the jump host"
    );
}

#[tokio::test]
async fn what_cannot_be_reached_says_so_and_that_the_endpoint_is_down() {
    let mut server = Sshd::start();
    let options = ssh_options(&server);
    server.kill();
    let error = refused(&options).await;
    assert!(matches!(error, SshError::Unreachable { .. }), "{error:?}");
    assert_eq!(
        (error.kind(), error.retry()),
        (ErrorKind::Unreachable, Retry::EndpointDown)
    );

    server.restart();
    let proxy = FaultProxy::to_port(server.port()).start();
    proxy.set(Behaviour::BlackHole);
    let mut options = ssh_options_through(&server, proxy.port());
    options.connect_timeout = Duration::from_millis(500);
    let error = refused(&options).await;
    assert!(matches!(error, SshError::Silent { .. }), "{error:?}");
    assert_eq!(error.retry(), Retry::EndpointDown);
}

#[tokio::test]
async fn a_server_without_sftp_says_so() {
    let server = Sshd::builder().subsystem("/bin/false").start();
    let remote = remote_with(
        SftpOptions::new(ssh_options(&server)),
        &server.data_directory(),
    );
    let error = remote.stat(&relative("x")).await.unwrap_err();
    assert_eq!(
        error.operation,
        format!(
            "connect to sftp://{}@127.0.0.1:{}",
            server.user(),
            server.port()
        )
    );
    let told = told(&error);
    assert!(told.contains("SFTP"), "{told}");

    let talkative = Sshd::builder()
        .subsystem("/bin/echo Welcome to this server")
        .start();
    let remote = remote_with(
        SftpOptions::new(ssh_options(&talkative)),
        &talkative.data_directory(),
    );
    let error = remote.stat(&relative("x")).await.unwrap_err();
    assert_eq!(
        (error.kind, error.retry),
        (ErrorKind::Protocol, Retry::Never),
        "{error}"
    );
}

#[tokio::test]
async fn the_sessions_of_dropped_remotes_end() {
    let server = Sshd::start();
    let remote = remote_with(
        SftpOptions::new(ssh_options(&server)),
        &server.data_directory(),
    );
    deliver(&remote, "x", &pattern(1, 10), Replace::Nothing)
        .await
        .unwrap();
    assert!(server.session_processes() > 0);
    drop(remote);
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while server.session_processes() > 0 {
        assert!(
            std::time::Instant::now() < deadline,
            "the session goes on without anybody"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
