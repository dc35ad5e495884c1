//! The peers: which of them are here, and in which version.
//!
//! Constraints: a peer that is missing is left out, and the page says so; `cargo xtask setup --bench`
//! installs them. Knarr itself and OpenSSH have to be there.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use knarr_testkit::tools;

/// The programs that are here.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tools {
    /// rclone, at least 1.75.
    pub(crate) rclone: Option<PathBuf>,
    /// OpenSSH's sftp.
    pub(crate) sftp: Option<PathBuf>,
    /// lftp.
    pub(crate) lftp: Option<PathBuf>,
    /// rsync.
    pub(crate) rsync: Option<PathBuf>,
    /// s5cmd.
    pub(crate) s5cmd: Option<PathBuf>,
    /// lsyncd.
    pub(crate) lsyncd: Option<PathBuf>,
    /// Unison.
    pub(crate) unison: Option<PathBuf>,
    /// GNU find.
    pub(crate) find: Option<PathBuf>,
    /// A server, built by `cargo xtask setup --bench --garage`.
    pub(crate) garage: Option<PathBuf>,
}

impl Tools {
    /// Looks for all of them.
    pub(crate) fn find() -> Self {
        let first = |name| tools::candidates(name).into_iter().next();
        Self {
            rclone: tools::rclone().ok(),
            sftp: first("sftp"),
            lftp: first("lftp"),
            rsync: first("rsync"),
            s5cmd: first("s5cmd"),
            lsyncd: first("lsyncd"),
            unison: first("unison"),
            find: first("find"),
            garage: first("garage"),
        }
    }

    /// Name and version of each, or that it is missing.
    pub(crate) fn versions(&self) -> Vec<(&'static str, String)> {
        let first = |name| tools::candidates(name).into_iter().next();
        let ssh = first("ssh");
        let (gpg, tar, unzip) = (first("gpg"), first("tar"), first("unzip"));
        [
            ("rclone", &self.rclone, "version"),
            ("OpenSSH", &ssh, "-V"),
            ("lftp", &self.lftp, "--version"),
            ("rsync", &self.rsync, "--version"),
            ("s5cmd", &self.s5cmd, "version"),
            ("lsyncd", &self.lsyncd, "--version"),
            ("Unison", &self.unison, "-version"),
            ("find", &self.find, "--version"),
            ("GnuPG", &gpg, "--version"),
            ("tar", &tar, "--version"),
            ("unzip", &unzip, "-v"),
            ("garage (server)", &self.garage, "--version"),
        ]
        .into_iter()
        .map(|(name, path, flag)| (name, version(path.as_ref(), flag)))
        .collect()
    }
}

/// The first line that a program says about itself.
fn version(program: Option<&PathBuf>, flag: &str) -> String {
    let Some(program) = program else {
        return "not installed, left out".to_owned();
    };
    let output = Command::new(program)
        .arg(flag)
        .stdin(Stdio::null())
        .output();
    let Ok(output) = output else {
        return "does not start".to_owned();
    };
    // OpenSSH tells its version on stderr.
    let said = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&said);
    let line = text.lines().find(|line| !line.trim().is_empty());
    line.unwrap_or_default().trim().to_owned()
}
