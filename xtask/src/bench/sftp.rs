//! Rows against OpenSSH's sshd: one large file, many small ones, and a line of 20 ms.
//!
//! Constraints: server and files lie in memory-backed storage, so that clients are compared and no disk;
//! sshd is as Debian ships it. "Tuned" means the flags that a program's own documentation offers for
//! this case, the fastest cipher of both sides among them. The delay is made by the testkit's proxy:
//! a delay line of 10 ms in each direction, without a limit of bandwidth.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use knarr_testkit::proxy::FaultProxy;
use knarr_testkit::sshd::Sshd;

use crate::Outcome;
use crate::bench::Bench;
use crate::bench::row::{Attempt, Contestant, Course, Found, Goal, Row, Side};
use crate::bench::space::{Compare, Tree, compare};
use crate::bench::{knarr, sftp_peers};

/// The rows.
pub(crate) const ROWS: [Row; 7] = [
    Row {
        id: "sftp-1g-put",
        title: "SFTP, one file of 1 GiB, put",
        goals: &[Goal::Speed(1.3)],
        measure: |bench, found| big(bench, found, Direction::Put, Line::Loopback),
    },
    Row {
        id: "sftp-1g-get",
        title: "SFTP, one file of 1 GiB, get",
        goals: &[Goal::Speed(1.3)],
        measure: |bench, found| big(bench, found, Direction::Get, Line::Loopback),
    },
    Row {
        id: "sftp-20ms-get",
        title: "SFTP over a line with 20 ms round trip, 256 MiB, get",
        goals: &[Goal::Speed(3.0)],
        measure: |bench, found| big(bench, found, Direction::Get, Line::Delayed),
    },
    Row {
        id: "sftp-20ms-put",
        title: "SFTP over a line with 20 ms round trip, 256 MiB, put",
        goals: &[Goal::Speed(2.0)],
        measure: |bench, found| big(bench, found, Direction::Put, Line::Delayed),
    },
    Row {
        id: "sftp-20ms-small",
        title: "SFTP over a line with 20 ms round trip, 500 files of 4 KiB, put",
        goals: &[Goal::Speed(10.0)],
        measure: |bench, found| small(bench, found, Direction::Put, Line::Delayed),
    },
    Row {
        id: "sftp-small-put",
        title: "SFTP, 5,000 files of 4 KiB, put",
        goals: &[Goal::Speed(2.5), Goal::SpeedOver("rclone", 10.0)],
        measure: |bench, found| small(bench, found, Direction::Put, Line::Loopback),
    },
    Row {
        id: "sftp-small-get",
        title: "SFTP, 5,000 files of 4 KiB, get",
        goals: &[Goal::Speed(2.5), Goal::SpeedOver("rclone", 10.0)],
        measure: |bench, found| small(bench, found, Direction::Get, Line::Loopback),
    },
];

/// How long a byte takes in one direction on the delayed line.
const ONE_WAY: Duration = Duration::from_millis(10);

/// What takes longer is stopped: the slowest known take a little more than half of it.
const LIMIT: Duration = Duration::from_secs(60);

/// Which way the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// To the server.
    Put,
    /// From the server.
    Get,
}

/// What lies between client and server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Line {
    /// Nothing.
    Loopback,
    /// The proxy with its delay.
    Delayed,
}

/// What is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// A directory with one file, `big`.
    Big,
    /// A tree of small files.
    Small,
}

/// One way to move everything from `source` to `destination`; one of the two is on the server.
#[derive(Debug, Clone)]
pub(crate) struct Transfer {
    pub(crate) direction: Direction,
    pub(crate) line: Line,
    pub(crate) shape: Shape,
    pub(crate) source: PathBuf,
    pub(crate) destination: PathBuf,
}

/// What a client of a server has to know.
#[derive(Debug, Clone)]
pub(crate) struct Login {
    /// The port to connect to, on 127.0.0.1.
    pub(crate) port: u16,
    /// The user to log in as.
    pub(crate) user: String,
    /// The private key.
    pub(crate) key: PathBuf,
    /// A file with the host key for this port.
    pub(crate) known_hosts: PathBuf,
}

impl Login {
    /// Notes the host keys (`type base64`) of a port in a file of known hosts in `directory`.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub(crate) fn new(
        port: u16,
        user: &str,
        key: PathBuf,
        host_keys: &[String],
        directory: &Path,
    ) -> Result<Self, String> {
        let lines = host_keys
            .iter()
            .map(|key| format!("[127.0.0.1]:{port} {key}\n"));
        let text: String = lines.collect();
        let known_hosts = directory.join(format!("known_hosts-{port}"));
        fs::write(&known_hosts, text)
            .map_err(|error| format!("cannot write {}: {error}", known_hosts.display()))?;
        Ok(Self {
            port,
            user: user.to_owned(),
            key,
            known_hosts,
        })
    }

    /// The options of `ssh` and `sftp` that log in here and nowhere else; `-p` or `-P` is not among them.
    pub(crate) fn ssh_options(&self) -> Vec<String> {
        [
            "-F".to_owned(),
            "none".to_owned(),
            "-oBatchMode=yes".to_owned(),
            "-oIdentitiesOnly=yes".to_owned(),
            format!("-oIdentityFile={}", self.key.display()),
            format!("-oUserKnownHostsFile={}", self.known_hosts.display()),
        ]
        .into()
    }

    /// A whole command line of `ssh`, as `rsync -e` and lftp want it.
    pub(crate) fn ssh_command(&self, more: &str) -> String {
        let options = self.ssh_options().join(" ");
        format!("ssh {options} -p {}{more}", self.port)
    }
}

/// A private sshd and the line to it.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) sshd: Sshd,
    _proxy: Option<FaultProxy>,
    /// How to log in, over the line.
    pub(crate) login: Login,
}

impl Server {
    /// Starts one; its file of known hosts lies in `directory`.
    ///
    /// # Errors
    ///
    /// If it does not start.
    pub(crate) fn start(line: Line, directory: &Path) -> Result<Self, String> {
        let sshd = Sshd::builder().try_start().map_err(|error| error.chain())?;
        let proxy = match line {
            Line::Loopback => None,
            Line::Delayed => Some(
                FaultProxy::to_port(sshd.port())
                    .latency(ONE_WAY)
                    .try_start()
                    .map_err(|error| error.chain())?,
            ),
        };
        let port = proxy.as_ref().map_or_else(|| sshd.port(), FaultProxy::port);
        Ok(Self {
            login: login_to(&sshd, port, directory)?,
            sshd,
            _proxy: proxy,
        })
    }

    /// Knarr's configuration of an endpoint `server` whose paths are absolute.
    pub(crate) fn configuration(&self) -> String {
        format!(
            "endpoints:\n  server:\n    type: sftp\n    host: 127.0.0.1\n    port: {}\n    user: {}\n    \
             key: {}\n    host_key: \"{}\"\n    path: /\n",
            self.login.port,
            self.login.user,
            self.login.key.display(),
            self.sshd.host_key_fingerprint()
        )
    }
}

/// How to log in to an sshd that is reached at a port.
///
/// # Errors
///
/// If its host keys cannot be read, or noted.
pub(crate) fn login_to(sshd: &Sshd, port: u16, directory: &Path) -> Result<Login, String> {
    let keys = sshd.host_public_keys().map_err(|error| error.chain())?;
    Login::new(port, sshd.user(), sshd.client_key_path(), &keys, directory)
}

fn big(bench: &Bench, found: &mut Found, direction: Direction, line: Line) -> Outcome {
    let bytes = match line {
        Line::Loopback => bench.scale.big_bytes,
        Line::Delayed => bench.scale.delayed_bytes,
    };
    let source = bench.memory.big_file(bytes)?;
    race(bench, found, &source, (direction, line, Shape::Big))
}

fn small(bench: &Bench, found: &mut Found, direction: Direction, line: Line) -> Outcome {
    let files_each = match line {
        Line::Loopback => bench.scale.small_files / 50,
        Line::Delayed => bench.scale.delayed_files / 50,
    };
    let tree = Tree {
        directories: 50,
        files_each: files_each.max(1),
        bytes: (4096, 4096),
    };
    let source = bench.memory.tree(tree)?;
    race(bench, found, &source, (direction, line, Shape::Small))
}

fn race(
    bench: &Bench,
    found: &mut Found,
    source: &Path,
    (direction, line, shape): (Direction, Line, Shape),
) -> Outcome {
    let server = Server::start(line, bench.memory.path())?;
    let transfer = |attempt: &Attempt| Transfer {
        direction,
        line,
        shape,
        source: source.to_owned(),
        destination: attempt.destination.clone(),
    };
    let configuration = server.configuration();
    let places = |attempt: &Attempt| {
        let (from, to) = (source.display(), attempt.destination.display());
        match direction {
            Direction::Put => (from.to_string(), format!("server:{to}")),
            Direction::Get => (format!("server:{from}"), to.to_string()),
        }
    };
    let mut contestants = vec![knarr::copying(&bench.knarr, &configuration, places)];
    for peer in sftp_peers::all(&bench.tools, shape, line) {
        let server = &server;
        let make = peer.command;
        let command = move |attempt: &Attempt| -> Result<Command, String> {
            make(&server.login, &transfer(attempt), &attempt.state)
        };
        let contestant = Contestant::new(peer.name, Side::Peer, command);
        contestants.push(if peer.slow {
            contestant.once()
        } else {
            contestant
        });
    }
    let course = Course::new(&bench.memory, LIMIT, |attempt| {
        let by = match attempt.round {
            0 => Compare::Contents,
            _ => Compare::Lengths,
        };
        compare(source, &attempt.destination, by)
    });
    found.series = course.run(bench.rounds, &contestants)?;
    crate::bench::row::remove(source)
}
