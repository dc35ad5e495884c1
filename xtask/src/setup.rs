//! Installs what the tests and the checks need.
//!
//! Constraints: idempotent, and quick where all is there (no network). Debian packages need root; an
//! ordinary user is told which are missing and gets everything else, in the cache directory that
//! `knarr_testkit::tools::servers_directory` names. Versions are pinned, so that two machines agree.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use knarr_testkit::tools;

use crate::{Outcome, cargo, run_visibly};

/// What is installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// What `cargo xtask servers` needs.
    Servers,
    /// What the tests need.
    Tests,
    /// That, and what the other checks of the continuous integration need.
    TestsAndChecks,
}

/// Debian packages, each with a program of it by which it is known to be there.
const PACKAGES: [(&str, &str); 29] = [
    ("openssh-server", "sshd"),
    ("openssh-sftp-server", "/usr/lib/openssh/sftp-server"),
    ("openssh-client", "ssh-keygen"),
    // Its own tests of sftp, which the SFTP server has to pass too.
    ("openssh-tests", "/usr/lib/openssh/regress/test-exec.sh"),
    // Clients of the SFTP server.
    ("lftp", "lftp"),
    ("sshfs", "sshfs"),
    ("strace", "strace"),
    ("libfaketime", "/usr/share/doc/libfaketime"),
    ("iproute2", "ss"),
    ("e2fsprogs", "mkfs.ext4"),
    ("mount", "mount"),
    ("util-linux", "losetup"),
    ("coreutils", "id"),
    ("gzip", "gzip"),
    ("xz-utils", "xz"),
    ("bzip2", "bzip2"),
    ("zstd", "zstd"),
    ("tar", "tar"),
    ("zip", "zip"),
    ("unzip", "unzip"),
    ("gnupg", "gpg"),
    ("age", "age"),
    ("python3", "python3"),
    ("python3-venv", "/usr/share/doc/python3-venv"),
    ("gcc", "cc"),
    ("openssl", "openssl"),
    ("postgresql", "/usr/lib/postgresql"),
    // A scanner over ICAP.
    ("c-icap", "c-icap"),
    (
        "libc-icap-mod-contentfiltering",
        "/usr/share/doc/libc-icap-mod-contentfiltering",
    ),
];

const REQUIREMENTS: &str = include_str!("../requirements.txt");
const S3S_FS: &str = "0.14.1";
const NEXTEST: &str = "0.9.143";
const DENY: &str = "0.20.2";

/// Installs what is missing.
///
/// # Errors
///
/// If something cannot be installed; the text says what to do.
pub(crate) fn run(scope: Scope) -> Outcome {
    let directory = tools::servers_directory();
    fs::create_dir_all(&directory)
        .map_err(|error| format!("cannot make {}: {error}", directory.display()))?;
    install_packages(scope)?;
    if scope != Scope::Servers {
        install_python(&directory)?;
    }
    if tools::candidates("s3s-fs").is_empty() {
        let mut command = cargo();
        command.args(["install", "s3s-fs", "--version", S3S_FS, "--locked"]);
        command
            .args(["--features", "binary", "--root"])
            .arg(&directory);
        run_visibly(&mut command)?;
    }
    if scope == Scope::Servers {
        return Ok(());
    }
    install_cargo_tool("nextest", NEXTEST)?;
    if scope == Scope::TestsAndChecks {
        install_cargo_tool("deny", DENY)?;
    }
    Ok(())
}

fn install_cargo_tool(name: &str, version: &str) -> Outcome {
    let mut probe = cargo();
    probe
        .args([name, "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if probe.status().is_ok_and(|status| status.success()) {
        return Ok(());
    }
    let crate_name = format!("cargo-{name}");
    run_visibly(cargo().args(["install", "--locked", &crate_name, "--version", version]))
}

fn install_packages(scope: Scope) -> Outcome {
    // The S3 server is built by cargo, which links with the C compiler.
    let is_wanted = |package: &str| {
        scope != Scope::Servers || package.starts_with("openssh") || package == "gcc"
    };
    let missing: Vec<&str> = PACKAGES
        .iter()
        .filter(|(package, program)| is_wanted(package) && !is_installed(package, program))
        .map(|(package, _)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if tools::candidates("apt-get").is_empty() {
        return Err(format!(
            "missing, and this is no Debian: install what gives you {list}"
        ));
    }
    if !is_root()? {
        return Err(format!(
            "missing Debian packages; install them with\n  sudo apt-get install {list}"
        ));
    }
    let mut update = Command::new("apt-get");
    run_visibly(update.args(["update", "-q"]))?;
    let mut install = Command::new("apt-get");
    install
        .args(["install", "-q", "-y", "--no-install-recommends"])
        .args(&missing);
    install.env("DEBIAN_FRONTEND", "noninteractive");
    // The package starts a server for the whole machine unless it is told not to; tests bring their own.
    install.env("RUNLEVEL", "1");
    run_visibly(&mut install)
}

fn is_installed(package: &str, program: &str) -> bool {
    if program.starts_with('/') {
        let known = Path::new(program).exists();
        return known || (package == "python3-venv" && python_makes_environments());
    }
    !tools::candidates(program).is_empty()
}

fn python_makes_environments() -> bool {
    let mut probe = Command::new(system_python());
    probe
        .args(["-c", "import venv, ensurepip"])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    probe.status().is_ok_and(|status| status.success())
}

/// Debian's own Python if there is one: an environment must not hang on a version manager's.
fn system_python() -> PathBuf {
    let system = PathBuf::from("/usr/bin/python3");
    if system.exists() {
        system
    } else {
        PathBuf::from("python3")
    }
}

fn install_python(directory: &Path) -> Outcome {
    let environment = directory.join("venv");
    let marker = environment.join("knarr-requirements.txt");
    if fs::read_to_string(&marker).is_ok_and(|text| text == REQUIREMENTS) {
        return Ok(());
    }
    let mut make = Command::new(system_python());
    run_visibly(make.args(["-m", "venv", "--clear"]).arg(&environment))?;
    let wanted = environment.join("wanted.txt");
    let write = |path: &Path| {
        fs::write(path, REQUIREMENTS)
            .map_err(|error| format!("cannot write {}: {error}", path.display()))
    };
    write(&wanted)?;
    let mut install = Command::new(environment.join("bin/python3"));
    install.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "-r",
    ]);
    run_visibly(install.arg(&wanted))?;
    // Last, so that an installation that was interrupted is done again.
    write(&marker)
}

/// Whether this process runs as root.
///
/// # Errors
///
/// If `id` is missing.
pub(crate) fn is_root() -> Result<bool, String> {
    let output = Command::new("id").arg("-u").output();
    let output = output.map_err(|error| format!("cannot run `id -u`: {error}"))?;
    Ok(output.stdout.trim_ascii() == b"0")
}
