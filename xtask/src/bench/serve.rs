//! Rows about the own SFTP server: the same client against it and against OpenSSH's sshd.
//!
//! Constraints: the servers and the files lie in memory-backed storage, so that servers are compared and no disk;
//! the rows whose names end in `-disk` are on a real disk, since Knarr flushes every upload before it confirms
//! its end, and sshd none. sshd is as Debian ships it, with its sftp-server inside of it (`internal-sftp`).
//! Knarr serves from `knarr run`, as it comes. `sftp` runs as it comes; where it is called tuned it is told
//! the fastest cipher of both servers. rclone runs tuned, since as it comes it starts a program on sshd for
//! each file. What stands beside is not part of the comparison: Knarr as a subsystem of sshd, which takes no
//! part in the encryption, and sshd with a client that asks it to flush.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use knarr_testkit::port::ReservedPort;
use knarr_testkit::process::ServerProcess;
use knarr_testkit::sshd::Sshd;
use knarr_testkit::wait::poll;

use crate::bench::measure::{cpu_seconds, process_memory};
use crate::bench::row::{self, Attempt, Contestant, Course, Found, Goal, KNARR, Row, Side};
use crate::bench::sftp::{Direction, Line, Login, Shape, Transfer, login_to};
use crate::bench::sftp_peers::{self, Variant};
use crate::bench::space::{Compare, Space, Tree, compare};
use crate::bench::{Bench, knarr};
use crate::{Outcome, run_visibly};

const GOALS: &[Goal] = &[Goal::Speed(1.5)];

/// The rows.
pub(crate) const ROWS: [Row; 9] = [
    Row {
        id: "server-1g-put-sftp",
        title: "own SFTP server, one file of 1 GiB, put by OpenSSH's `sftp`",
        goals: GOALS,
        measure: |bench, found| big(bench, found, Client::Sftp, Direction::Put),
    },
    Row {
        id: "server-1g-get-sftp",
        title: "own SFTP server, one file of 1 GiB, get by OpenSSH's `sftp`",
        goals: GOALS,
        measure: |bench, found| big(bench, found, Client::Sftp, Direction::Get),
    },
    Row {
        id: "server-1g-put-rclone",
        title: "own SFTP server, one file of 1 GiB, put by rclone",
        goals: GOALS,
        measure: |bench, found| big(bench, found, Client::Rclone, Direction::Put),
    },
    Row {
        id: "server-1g-get-rclone",
        title: "own SFTP server, one file of 1 GiB, get by rclone",
        goals: GOALS,
        measure: |bench, found| big(bench, found, Client::Rclone, Direction::Get),
    },
    Row {
        id: "server-small-put-sftp",
        title: "own SFTP server, 5,000 files of 4 KiB, put by OpenSSH's `sftp`",
        goals: GOALS,
        measure: |bench, found| small(bench, found, Client::Sftp, Direction::Put, &bench.memory),
    },
    Row {
        id: "server-small-get-sftp",
        title: "own SFTP server, 5,000 files of 4 KiB, get by OpenSSH's `sftp`",
        goals: GOALS,
        measure: |bench, found| small(bench, found, Client::Sftp, Direction::Get, &bench.memory),
    },
    Row {
        id: "server-small-put-rclone",
        title: "own SFTP server, 5,000 files of 4 KiB, put by rclone",
        goals: GOALS,
        measure: |bench, found| small(bench, found, Client::Rclone, Direction::Put, &bench.memory),
    },
    Row {
        id: "server-small-get-rclone",
        title: "own SFTP server, 5,000 files of 4 KiB, get by rclone",
        goals: GOALS,
        measure: |bench, found| small(bench, found, Client::Rclone, Direction::Get, &bench.memory),
    },
    Row {
        id: "server-small-put-disk",
        title: "own SFTP server on a disk, 5,000 files of 4 KiB, put by OpenSSH's `sftp`; knarr durably, sshd not",
        goals: &[],
        measure: |bench, found| small(bench, found, Client::Sftp, Direction::Put, &bench.disk),
    },
];

/// What takes longer is stopped.
const LIMIT: Duration = Duration::from_secs(60);

/// How long sessions of sshd may take to end when their client is gone.
const SESSIONS: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Client {
    Sftp,
    Rclone,
}

/// `knarr run` with its SFTP server; killed on drop.
struct OwnServer {
    process: ServerProcess,
    login: Login,
    _port: ReservedPort,
}

impl OwnServer {
    /// Starts one in `directory` that lets in the key of a client and serves it everything.
    fn start(bench: &Bench, directory: &Path, key: PathBuf, user: &str) -> Result<Self, String> {
        let port = ReservedPort::new().map_err(|error| error.chain())?;
        let host_keys = directory.join("host-keys");
        fs::create_dir(&host_keys)
            .map_err(|error| format!("cannot make {}: {error}", host_keys.display()))?;
        let host_key = host_keys.join("ssh_host_ed25519_key");
        let mut keygen = Command::new("ssh-keygen");
        keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]);
        run_visibly(keygen.arg(&host_key))?;
        let public = host_key.with_extension("pub");
        let line = fs::read_to_string(&public)
            .map_err(|error| format!("cannot read {}: {error}", public.display()))?;
        let words: Vec<&str> = line.split_whitespace().take(2).collect();
        let login = Login::new(
            port.number(),
            user,
            key.clone(),
            &[words.join(" ")],
            directory,
        )?;
        let configuration = format!(
            "sftp_server:\n  listen: {}\n  host_keys: {}\n  users:\n    {user}: {{ key_file: {}, root: / }}\n",
            port.address(),
            host_keys.display(),
            key.with_extension("pub").display(),
        );
        let command = knarr::command(&bench.knarr, directory, &configuration, &["run"])?;
        let log = directory.join("log");
        let mut process =
            ServerProcess::spawn("knarr", command, &log).map_err(|error| error.chain())?;
        let address = port.address();
        process
            .wait_ready(|_| TcpStream::connect(address).is_ok())
            .map_err(|error| error.chain())?;
        Ok(Self {
            process,
            login,
            _port: port,
        })
    }
}

/// The servers of a row.
struct Servers {
    own: OwnServer,
    sshd: Sshd,
    to_sshd: Login,
    /// sshd with Knarr in the place of its own sftp-server.
    subsystem: Sshd,
    to_subsystem: Login,
}

impl Servers {
    fn start(bench: &Bench, space: &Space) -> Result<Self, String> {
        let directory = space.fresh("serving")?;
        let sshd = Sshd::builder().try_start().map_err(|error| error.chain())?;
        let command = format!(
            "{} sftp-server --stdio --root / --staged --sync",
            bench.knarr.display()
        );
        let subsystem = Sshd::builder().subsystem(&command).try_start();
        let subsystem = subsystem.map_err(|error| error.chain())?;
        Ok(Self {
            own: OwnServer::start(bench, &directory, sshd.client_key_path(), sshd.user())?,
            to_sshd: login_to(&sshd, sshd.port(), &directory)?,
            sshd,
            to_subsystem: login_to(&subsystem, subsystem.port(), &directory)?,
            subsystem,
        })
    }
}

/// Processor time of an sshd and of the sessions that have ended.
fn sshd_seconds(sshd: &Sshd) -> f64 {
    // A session that has not ended yet is in nobody's account.
    poll(SESSIONS, || (sshd.session_processes() == 0).then_some(()));
    sshd.process_id().map_or(0.0, cpu_seconds)
}

fn big(bench: &Bench, found: &mut Found, client: Client, direction: Direction) -> Outcome {
    let source = bench.memory.big_file(bench.scale.big_bytes)?;
    race(
        bench,
        found,
        &source,
        &bench.memory,
        (client, direction, Shape::Big),
    )
}

fn small(
    bench: &Bench,
    found: &mut Found,
    client: Client,
    direction: Direction,
    space: &Space,
) -> Outcome {
    let tree = Tree {
        directories: 50,
        files_each: (bench.scale.small_files / 50).max(1),
        bytes: (4096, 4096),
    };
    let source = space.tree(tree)?;
    race(
        bench,
        found,
        &source,
        space,
        (client, direction, Shape::Small),
    )
}

fn race(
    bench: &Bench,
    found: &mut Found,
    source: &Path,
    space: &Space,
    (client, direction, shape): (Client, Direction, Shape),
) -> Outcome {
    let servers = Servers::start(bench, space)?;
    let transfer = |attempt: &Attempt| Transfer {
        direction,
        line: Line::Loopback,
        shape,
        source: source.to_owned(),
        destination: attempt.destination.clone(),
    };
    let what = (client, direction, shape);
    let contestants = contestants(bench, &servers, what, &transfer)?;
    let mut course = Course::new(space, LIMIT, |attempt| {
        let by = match attempt.round {
            0 => Compare::Contents,
            _ => Compare::Lengths,
        };
        compare(source, &attempt.destination, by)
    });
    // On a disk nobody pays for what another left to be written.
    course.before = Box::new(|_| {
        rustix::fs::sync();
        Ok(())
    });
    found.series = course.run(bench.rounds, &contestants)?;
    let peak = row::megabytes(process_memory(servers.own.process.id(), "VmHWM:"));
    found.remarks.push(format!(
        "peak memory of `knarr run` over all rounds: {peak:.1} MB"
    ));
    row::remove(source)
}

/// A server of the row.
#[derive(Debug, Clone, Copy)]
enum Which {
    Own,
    Sshd,
    Subsystem,
}

impl Servers {
    fn login(&self, which: Which) -> &Login {
        match which {
            Which::Own => &self.own.login,
            Which::Sshd => &self.to_sshd,
            Which::Subsystem => &self.to_subsystem,
        }
    }

    /// Processor time so far, in seconds.
    fn seconds(&self, which: Which) -> f64 {
        match which {
            Which::Own => cpu_seconds(self.own.process.id()),
            Which::Sshd => sshd_seconds(&self.sshd),
            Which::Subsystem => sshd_seconds(&self.subsystem),
        }
    }
}

/// One way to run a client against a server.
struct Way {
    name: &'static str,
    side: Side,
    which: Which,
    variant: Variant,
    /// For `sftp` only.
    flag: Option<&'static str>,
}

fn ways(client: Client, direction: Direction, shape: Shape) -> Vec<Way> {
    let variant = match client {
        Client::Sftp => Variant::AsItComes,
        Client::Rclone => Variant::Tuned,
    };
    let way = |name, side, which| Way {
        name,
        side,
        which,
        variant,
        flag: None,
    };
    let mut ways = vec![
        way(KNARR, Side::Ours, Which::Own),
        way("sshd", Side::Peer, Which::Sshd),
        way(
            "sshd with knarr as subsystem",
            Side::Beside,
            Which::Subsystem,
        ),
    ];
    if client == Client::Sftp && direction == Direction::Put {
        ways.push(Way {
            // The client asks for a flush of each file.
            flag: Some("-f"),
            ..way("sshd, flushed", Side::Beside, Which::Sshd)
        });
    }
    if client == Client::Sftp && shape == Shape::Big {
        for (name, which) in [
            ("sshd, client tuned", Which::Sshd),
            ("knarr, client tuned", Which::Own),
        ] {
            ways.push(Way {
                variant: Variant::Tuned,
                ..way(name, Side::Beside, which)
            });
        }
    }
    ways
}

type MakeTransfer<'a> = &'a (dyn Fn(&Attempt) -> Transfer + 'a);

fn contestants<'a>(
    bench: &'a Bench,
    servers: &'a Servers,
    (client, direction, shape): (Client, Direction, Shape),
    transfer: MakeTransfer<'a>,
) -> Result<Vec<Contestant<'a>>, String> {
    let program = match client {
        Client::Sftp => bench.tools.sftp.as_ref().ok_or("sftp is not installed")?,
        Client::Rclone => bench
            .tools
            .rclone
            .as_ref()
            .ok_or("rclone is not installed")?,
    };
    let contestant = move |way: Way| {
        let login = servers.login(way.which);
        let command = move |attempt: &Attempt| -> Result<Command, String> {
            let transfer = transfer(attempt);
            match client {
                Client::Sftp => {
                    let how = (way.variant, way.flag);
                    sftp_peers::sftp(program, how, login, &transfer, &attempt.state)
                }
                Client::Rclone => Ok(sftp_peers::rclone(program, way.variant, login, &transfer)),
            }
        };
        Contestant::new(way.name, way.side, command).with_server(move || servers.seconds(way.which))
    };
    Ok(ways(client, direction, shape)
        .into_iter()
        .map(contestant)
        .collect())
}
