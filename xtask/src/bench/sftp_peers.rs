//! The peers of the SFTP rows and how they are called.
//!
//! Constraints: each is called as its manual says, without a shell between; nothing of the caller's own
//! configuration is read. Peers do no more than they do by themselves: where Knarr keeps modification
//! times, writes under staged names, hashes and records, they do what they do as they come.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::bench::sftp::{Direction, Line, Login, Shape, Transfer};
use crate::bench::tools::Tools;

/// The fastest cipher that OpenSSH and all clients know.
const CIPHER: &str = "aes128-gcm@openssh.com";

type MakeCommand = Box<dyn Fn(&Login, &Transfer, &Path) -> Result<Command, String>>;

/// A peer in one variant.
pub(crate) struct Peer {
    /// Who, and how.
    pub(crate) name: String,
    /// Whether it takes so long that one round has to do.
    pub(crate) slow: bool,
    /// Its command; the directory is its own.
    pub(crate) command: MakeCommand,
}

/// How a peer is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Variant {
    /// Without any flag that is not needed.
    AsItComes,
    /// With the flags its documentation offers for the case.
    Tuned,
}

impl Variant {
    fn name(self) -> &'static str {
        match self {
            Self::AsItComes => "as it comes",
            Self::Tuned => "tuned",
        }
    }
}

/// All that are here.
pub(crate) fn all(tools: &Tools, shape: Shape, line: Line) -> Vec<Peer> {
    let mut peers = Vec::new();
    let mut add = |name: &str, variant: Variant, slow: bool, command: MakeCommand| {
        let name = format!("{name} {}", variant.name());
        peers.push(Peer {
            name,
            slow,
            command,
        });
    };
    for variant in [Variant::AsItComes, Variant::Tuned] {
        if let Some(program) = tools.rclone.clone() {
            // As it comes it runs one `md5sum` over ssh for each file.
            let slow = shape == Shape::Small && variant == Variant::AsItComes;
            let make = move |server: &Login, transfer: &Transfer, _: &Path| {
                Ok(rclone(&program, variant, server, transfer))
            };
            add("rclone", variant, slow, Box::new(make));
        }
        if let Some(program) = tools.sftp.clone() {
            // It waits for an answer several times a file: half a minute for 500 files.
            let slow = shape == Shape::Small && line == Line::Delayed;
            let make = move |server: &Login, transfer: &Transfer, state: &Path| {
                sftp(&program, (variant, None), server, transfer, state)
            };
            add("sftp", variant, slow, Box::new(make));
        }
        if let Some(program) = tools.lftp.clone() {
            let slow = line == Line::Delayed && variant == Variant::AsItComes;
            let make = move |server: &Login, transfer: &Transfer, state: &Path| {
                Ok(lftp(&program, variant, server, transfer, state))
            };
            add("lftp", variant, slow, Box::new(make));
        }
        if let Some(program) = tools.rsync.clone() {
            let make = move |server: &Login, transfer: &Transfer, _: &Path| {
                Ok(rsync(&program, variant, server, transfer))
            };
            add("rsync", variant, false, Box::new(make));
        }
    }
    peers
}

/// rclone with nothing from the caller's environment and configuration.
pub(crate) fn bare_rclone(program: &Path) -> Command {
    let mut command = without_rclone_variables(program);
    command.args(["--config", "/dev/null"]);
    command
}

/// A program that sees nothing of what the caller's environment says to rclone.
pub(crate) fn without_rclone_variables(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("RCLONE_") {
            command.env_remove(name);
        }
    }
    command
}

/// Tells rclone by its environment what `server:` is.
pub(crate) fn name_remote(command: &mut Command, server: &Login) {
    command
        .env("RCLONE_CONFIG_SERVER_TYPE", "sftp")
        .env("RCLONE_CONFIG_SERVER_HOST", "127.0.0.1")
        .env("RCLONE_CONFIG_SERVER_PORT", server.port.to_string())
        .env("RCLONE_CONFIG_SERVER_USER", &server.user)
        .env("RCLONE_CONFIG_SERVER_KEY_FILE", &server.key)
        .env("RCLONE_CONFIG_SERVER_KNOWN_HOSTS_FILE", &server.known_hosts);
}

/// `rclone copy` between a local directory and one on the server.
pub(crate) fn rclone(
    program: &Path,
    variant: Variant,
    server: &Login,
    transfer: &Transfer,
) -> Command {
    let mut command = bare_rclone(program);
    name_remote(&mut command, server);
    command.arg("copy");
    if variant == Variant::Tuned {
        command.args(["--sftp-disable-hashcheck", "--sftp-ciphers", CIPHER]);
        command.args(["--sftp-chunk-size", "255Ki", "--sftp-concurrency", "128"]);
        let streams = match transfer.line {
            Line::Loopback => "2",
            Line::Delayed => "8",
        };
        command.args([
            "--multi-thread-streams",
            streams,
            "--multi-thread-cutoff",
            "64Mi",
        ]);
        let transfers = match transfer.line {
            Line::Loopback => "16",
            Line::Delayed => "32",
        };
        command.args([
            "--transfers",
            transfers,
            "--checkers",
            "8",
            "--no-check-dest",
        ]);
    }
    let (local, remote) = match transfer.direction {
        Direction::Put => (&transfer.source, &transfer.destination),
        Direction::Get => (&transfer.destination, &transfer.source),
    };
    let mut remote_name = OsString::from("server:");
    remote_name.push(remote);
    match transfer.direction {
        Direction::Put => command.arg(local).arg(remote_name),
        Direction::Get => command.arg(remote_name).arg(local),
    };
    command
}

/// `sftp` with a batch file in `state`.
///
/// # Errors
///
/// If that cannot be written.
pub(crate) fn sftp(
    program: &Path,
    (variant, flag): (Variant, Option<&str>),
    server: &Login,
    transfer: &Transfer,
    state: &Path,
) -> Result<Command, String> {
    let (from, to) = (transfer.source.display(), transfer.destination.display());
    let verb = match transfer.direction {
        Direction::Put => "put",
        Direction::Get => "get",
    };
    let script = match transfer.shape {
        Shape::Big => format!("{verb} {from}/big {to}/big\n"),
        Shape::Small => format!("{verb} -r {from}/. {to}\n"),
    };
    let batch = state.join("batch");
    fs::write(&batch, script)
        .map_err(|error| format!("cannot write {}: {error}", batch.display()))?;
    let mut command = Command::new(program);
    command.args(server.ssh_options()).arg("-b").arg(&batch);
    command.args(["-P", &server.port.to_string()]);
    if variant == Variant::Tuned {
        command.args(["-c", CIPHER, "-R", "256"]);
    }
    command.args(flag);
    command.arg(format!("{}@127.0.0.1", server.user));
    Ok(command)
}

fn lftp(
    program: &Path,
    variant: Variant,
    server: &Login,
    transfer: &Transfer,
    state: &Path,
) -> Command {
    let (from, to) = (transfer.source.display(), transfer.destination.display());
    let mut script = String::new();
    let mut connect = server.ssh_command(" -a -x");
    let mut parallel = String::new();
    let mut get = format!("get {from}/big -o {to}/big");
    if variant == Variant::Tuned {
        connect.push_str(&format!(" -c {CIPHER}"));
        // Larger writes than its default of 32 KiB, with many in flight, make its uploads stall.
        script.push_str("set sftp:max-packets-in-flight 64; set sftp:size-read 65536; ");
        let (connections, streams) = match transfer.line {
            Line::Loopback => (4, 2),
            Line::Delayed => (16, 8),
        };
        parallel = format!(" --parallel={connections}");
        get = format!("pget -n {streams} {from}/big -o {to}/big");
    }
    script.push_str(&format!("set sftp:connect-program \"{connect}\"; "));
    script.push_str(&format!(
        "open -u {}, -p {} sftp://127.0.0.1; ",
        server.user, server.port
    ));
    script.push_str(&match (transfer.shape, transfer.direction) {
        (Shape::Big, Direction::Put) => format!("put {from}/big -o {to}/big"),
        (Shape::Big, Direction::Get) => get,
        (Shape::Small, Direction::Put) => format!("mirror -R{parallel} {from}/ {to}/"),
        (Shape::Small, Direction::Get) => format!("mirror{parallel} {from}/ {to}/"),
    });
    script.push_str("; bye");
    let mut command = Command::new(program);
    command
        .args(["--norc", "-c", &script])
        .env("LFTP_HOME", state);
    command
}

fn rsync(program: &Path, variant: Variant, server: &Login, transfer: &Transfer) -> Command {
    let (more, flags): (&str, &[&str]) = match variant {
        Variant::AsItComes => ("", &["-a"]),
        Variant::Tuned => (
            " -c aes128-gcm@openssh.com",
            &["-a", "--whole-file", "--inplace"],
        ),
    };
    let mut command = Command::new(program);
    command.args(flags).arg("-e").arg(server.ssh_command(more));
    let remote = |path: &PathBuf| format!("{}@127.0.0.1:{}/", server.user, path.display());
    let local = |path: &PathBuf| format!("{}/", path.display());
    match transfer.direction {
        Direction::Put => command
            .arg(local(&transfer.source))
            .arg(remote(&transfer.destination)),
        Direction::Get => command
            .arg(remote(&transfer.source))
            .arg(local(&transfer.destination)),
    };
    command
}
