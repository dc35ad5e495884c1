//! Measures Knarr beside its peers: the same data, the same servers, one run, alternating rounds.
//!
//! Constraints: loopback only; every row is bounded in time, stops by itself and removes what it made; a
//! missing peer is left out and named, a missing server is an error. What a row found is kept in
//! `target/bench`, so that a page can be written from rows that were measured in several sittings;
//! `--write` writes `docs/benchmarks.md` from it and from the notes of `xtask/bench-notes.md`, which are
//! written by hand. Nothing here asserts a time: a number that is not reached is shown as such.
#![expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "numbers for a person, rounded anyway"
)]

mod garage;
pub(crate) mod install;
mod knarr;
mod local;
mod machine;
mod measure;
mod outstanding;
mod report;
mod row;
mod s3;
mod serve;
mod sftp;
mod sftp_peers;
mod space;
mod tools;
mod transform;
mod watch;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::bench::row::{Found, Row};
use crate::bench::space::Space;
use crate::bench::tools::Tools;
use crate::{Outcome, workspace_root};

const USAGE: &str = "\
cargo xtask bench [ROW…] [OPTIONS]

  ROW              a row, or the beginning of its name (`sftp` is all rows of SFTP); all by default
  --list           list the rows
  --rounds N       alternating rounds (5)
  --quick          tiny sizes and one round: whether everything works, not how fast; nothing is kept
  --knarr PROGRAM  measure this program instead of a release build made now
  --write          write docs/benchmarks.md from all that is kept; with `--rounds 0` measure nothing before
";

/// What all rows are measured with.
#[derive(Debug)]
pub(crate) struct Bench {
    /// How much of everything.
    pub(crate) scale: Scale,
    /// How many rounds.
    pub(crate) rounds: usize,
    /// Knarr's program.
    pub(crate) knarr: PathBuf,
    /// The peers.
    pub(crate) tools: Tools,
    /// Memory-backed storage.
    pub(crate) memory: Space,
    /// A real disk.
    pub(crate) disk: Space,
}

/// How much of everything.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    /// Bytes of the large file on a fast line.
    pub(crate) big_bytes: u64,
    /// Bytes of the large file on the delayed line.
    pub(crate) delayed_bytes: u64,
    /// Small files on a fast line.
    pub(crate) small_files: u64,
    /// Small files on the delayed line.
    pub(crate) delayed_files: u64,
    /// Small files on the disk.
    pub(crate) local_files: u64,
    /// Files in an archive.
    pub(crate) archived_files: u64,
    /// Files whose latency is measured.
    pub(crate) latency_files: u32,
    /// Time between two of them.
    pub(crate) latency_period: Duration,
    /// Files of the burst.
    pub(crate) burst_files: u64,
    /// Files that an idle node knows.
    pub(crate) idle_files: u64,
}

const FULL: Scale = Scale {
    big_bytes: 1 << 30,
    delayed_bytes: 256 << 20,
    small_files: 5_000,
    delayed_files: 500,
    local_files: 200_000,
    archived_files: 20_000,
    latency_files: 200,
    latency_period: Duration::from_millis(300),
    burst_files: 100_000,
    idle_files: 1_000_000,
};

const QUICK: Scale = Scale {
    big_bytes: 16 << 20,
    delayed_bytes: 4 << 20,
    small_files: 100,
    delayed_files: 50,
    local_files: 2_000,
    archived_files: 500,
    latency_files: 10,
    latency_period: Duration::from_millis(100),
    burst_files: 1_000,
    idle_files: 5_000,
};

/// Whether numbers are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Measure,
    Try,
}

#[derive(Debug)]
struct Options {
    rows: Vec<String>,
    rounds: Option<usize>,
    purpose: Purpose,
    write: bool,
    list: bool,
    help: bool,
    knarr: Option<PathBuf>,
}

/// Measures the rows that the arguments name.
///
/// # Errors
///
/// If an argument is wrong, Knarr does not build or a server does not start.
pub(crate) fn run(arguments: &[String]) -> Outcome {
    let options = parse(arguments)?;
    if options.help {
        print!("{USAGE}");
        return Ok(());
    }
    let rows = chosen(&options.rows)?;
    if options.list {
        for row in rows {
            println!("{:<18} {}", row.id, row.title);
        }
        return Ok(());
    }
    let kept = workspace_root().join("target/bench/found");
    if options.rounds != Some(0) {
        measure_all(&options, &rows, &kept)?;
    }
    if options.write {
        report::write(&all_rows(), &kept)?;
    }
    Ok(())
}

fn measure_all(options: &Options, rows: &[Row], kept: &Path) -> Outcome {
    let knarr = match &options.knarr {
        Some(program) => program.clone(),
        None => knarr::build()?,
    };
    measure::adopt_orphans()?;
    let memory = Space::below(Path::new("/dev/shm"))?;
    // The testkit's servers put their data into the temporary directory.
    let servers = memory.fresh("servers")?;
    tempfile::env::override_temp_dir(&servers)
        .map_err(|other| format!("the temporary directory is fixed to {}", other.display()))?;
    let (scale, rounds) = match options.purpose {
        Purpose::Measure => (FULL, 5),
        Purpose::Try => (QUICK, 1),
    };
    let bench = Bench {
        scale,
        rounds: options.rounds.unwrap_or(rounds),
        knarr,
        tools: Tools::find(),
        memory,
        disk: Space::below(&workspace_root().join("target/bench"))?,
    };
    for (name, version) in bench.tools.versions() {
        eprintln!("{name:<16} {version}");
    }
    for row in rows {
        eprintln!("\n{}: {}", row.id, row.title);
        let mut found = Found {
            date: machine::today(),
            ..Found::default()
        };
        // A row that fails must not take the others with it.
        if let Err(problem) = (row.measure)(&bench, &mut found) {
            eprintln!("    failed: {problem}");
            found.remarks.push(format!("failed: {problem}"));
        }
        print!("{}", report::row_table(&found));
        for line in report::verdicts(row, &found) {
            println!("  {line}");
        }
        if options.purpose == Purpose::Measure {
            keep(kept, row.id, &found)?;
        }
    }
    Ok(())
}

fn keep(directory: &Path, id: &str, found: &Found) -> Outcome {
    let path = directory.join(format!("{id}.json"));
    let text = serde_json::to_string_pretty(found)
        .map_err(|error| format!("cannot keep what {id} found: {error}"))?;
    fs::create_dir_all(directory)
        .and_then(|()| fs::write(&path, text))
        .map_err(|error| format!("cannot write {}: {error}", path.display()))
}

fn all_rows() -> Vec<Row> {
    sftp::ROWS
        .into_iter()
        .chain(s3::ROWS)
        .chain(local::ROWS)
        .chain(watch::ROWS)
        .chain(serve::ROWS)
        .chain(transform::ROWS)
        .collect()
}

fn chosen(names: &[String]) -> Result<Vec<Row>, String> {
    if let Some(unknown) = names.iter().find(|name| {
        !all_rows()
            .iter()
            .any(|row| row.id.starts_with(name.as_str()))
    }) {
        return Err(format!("there is no row {unknown}; --list shows them"));
    }
    let wanted = |row: &Row| names.is_empty() || names.iter().any(|name| row.id.starts_with(name));
    Ok(all_rows().into_iter().filter(wanted).collect())
}

fn parse(arguments: &[String]) -> Result<Options, String> {
    let mut options = Options {
        rows: Vec::new(),
        rounds: None,
        purpose: Purpose::Measure,
        write: false,
        list: false,
        help: false,
        knarr: None,
    };
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--help" | "-h" => options.help = true,
            "--list" => options.list = true,
            "--quick" => options.purpose = Purpose::Try,
            "--write" => options.write = true,
            "--rounds" => {
                let number = rest.next().and_then(|number| number.parse().ok());
                options.rounds = Some(number.ok_or("--rounds wants a number")?);
            }
            "--knarr" => {
                let program = rest.next().ok_or("--knarr wants a program")?;
                options.knarr = Some(PathBuf::from(program));
            }
            flag if flag.starts_with('-') => return Err(format!("unknown option {flag}\n{USAGE}")),
            row => options.rows.push(row.to_owned()),
        }
    }
    Ok(options)
}
