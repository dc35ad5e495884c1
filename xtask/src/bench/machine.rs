//! What the numbers were measured on.

use std::fs;
use std::process::Command;

/// Today, as `2026-11-21`, in UTC.
pub(crate) fn today() -> String {
    said("date", &["-u", "+%Y-%m-%d"])
}

/// Processor, memory, kernel.
pub(crate) fn description() -> String {
    let field = |file: &str, name: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name));
        let value = line
            .and_then(|line| line.split_once(':'))
            .map(|(_, value)| value.trim().to_owned());
        value.unwrap_or_else(|| "unknown".to_owned())
    };
    let kibibytes = field("/proc/meminfo", "MemTotal");
    let kibibytes = kibibytes
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .parse::<u64>();
    let gibibytes = kibibytes.map_or(0, |value| (value + (1 << 19)) >> 20);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!(
        "{cores} cores ({}), {gibibytes} GiB of memory, Linux {}",
        field("/proc/cpuinfo", "model name"),
        said("uname", &["-r"])
    )
}

/// The commit that was measured, marked if the tree is not clean.
pub(crate) fn commit() -> String {
    said("git", &["describe", "--always", "--dirty"])
}

fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    text.unwrap_or_default()
}
