//! Rows against S3 servers: s3s-fs (the directory server of the tests) and Garage (a production store).
//!
//! Constraints: data lies in memory-backed storage. s3s-fs forgets what was put after every attempt.
//! Garage stores equal blocks once and frees them late, so every put meets a new, empty Garage. Plain
//! HTTP, so all clients sign their payloads as they do by default.

use std::cell::RefCell;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use knarr_testkit::s3::{S3Server as _, S3sFs};

use crate::Outcome;
use crate::bench::Bench;
use crate::bench::garage::Garage;
use crate::bench::knarr;
use crate::bench::row::{self, Attempt, Contestant, Course, Found, Goal, Row, Side};
use crate::bench::sftp::{Direction, Shape};
use crate::bench::sftp_peers::{Variant, bare_rclone};
use crate::bench::space::{Compare, Tree, compare};

const BIG: &[Goal] = &[Goal::Speed(1.3), Goal::CpuShare("rclone", 1.0 / 3.0)];
const SMALL: &[Goal] = &[Goal::Speed(1.0), Goal::CpuShare("s5cmd", 1.0 / 3.0)];

/// The rows.
pub(crate) const ROWS: [Row; 8] = [
    Row {
        id: "s3-1g-put",
        title: "S3 (s3s-fs), one object of 1 GiB, put",
        goals: BIG,
        measure: |bench, found| race(bench, found, Kind::S3sFs, Direction::Put, Shape::Big),
    },
    Row {
        id: "s3-1g-get",
        title: "S3 (s3s-fs), one object of 1 GiB, get",
        goals: BIG,
        measure: |bench, found| race(bench, found, Kind::S3sFs, Direction::Get, Shape::Big),
    },
    Row {
        id: "s3-small-put",
        title: "S3 (s3s-fs), 5,000 objects of 4 KiB, put",
        goals: SMALL,
        measure: |bench, found| race(bench, found, Kind::S3sFs, Direction::Put, Shape::Small),
    },
    Row {
        id: "s3-small-get",
        title: "S3 (s3s-fs), 5,000 objects of 4 KiB, get",
        goals: SMALL,
        measure: |bench, found| race(bench, found, Kind::S3sFs, Direction::Get, Shape::Small),
    },
    Row {
        id: "garage-1g-put",
        title: "S3 (Garage), one object of 1 GiB, put",
        goals: BIG,
        measure: |bench, found| race(bench, found, Kind::Garage, Direction::Put, Shape::Big),
    },
    Row {
        id: "garage-1g-get",
        title: "S3 (Garage), one object of 1 GiB, get",
        goals: BIG,
        measure: |bench, found| race(bench, found, Kind::Garage, Direction::Get, Shape::Big),
    },
    Row {
        id: "garage-small-put",
        title: "S3 (Garage), 5,000 objects of 4 KiB, put",
        goals: SMALL,
        measure: |bench, found| race(bench, found, Kind::Garage, Direction::Put, Shape::Small),
    },
    Row {
        id: "garage-small-get",
        title: "S3 (Garage), 5,000 objects of 4 KiB, get",
        goals: SMALL,
        measure: |bench, found| race(bench, found, Kind::Garage, Direction::Get, Shape::Small),
    },
];

const LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    S3sFs,
    Garage,
}

#[derive(Debug)]
enum Store {
    S3sFs(S3sFs),
    Garage(Garage),
}

/// How to reach a store.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    /// `http://127.0.0.1:PORT`.
    pub(crate) url: String,
    /// An empty bucket.
    pub(crate) bucket: String,
    /// Access key id.
    pub(crate) access_key: String,
    /// Secret access key.
    pub(crate) secret_key: String,
    /// Region.
    pub(crate) region: String,
}

impl Store {
    fn start(kind: Kind, bench: &Bench) -> Result<Option<Self>, String> {
        Ok(match kind {
            Kind::S3sFs => {
                let server = S3sFs::try_start().map_err(|error| error.chain())?;
                Some(Self::S3sFs(server))
            }
            Kind::Garage => match &bench.tools.garage {
                Some(program) => Some(Self::Garage(Garage::start(program, &bench.memory)?)),
                None => None,
            },
        })
    }

    fn access(&self) -> Access {
        match self {
            Self::S3sFs(server) => Access {
                url: server.endpoint_url(),
                bucket: server.bucket().to_owned(),
                access_key: server.access_key().to_owned(),
                secret_key: server.secret_key().to_owned(),
                region: server.region().to_owned(),
            },
            Self::Garage(server) => server.access(),
        }
    }

    /// Where the objects of a prefix lie as files, where they do.
    fn files(&self, prefix: &str) -> Option<PathBuf> {
        match self {
            Self::S3sFs(server) => Some(server.root().join(server.bucket()).join(prefix)),
            Self::Garage(_) => None,
        }
    }

    /// Forgets what was put.
    fn clean(&mut self, prefix: &str) -> Outcome {
        match self {
            Self::Garage(server) => server.start_again(),
            Self::S3sFs(_) => self.files(prefix).map_or(Ok(()), |path| row::remove(&path)),
        }
    }
}

fn race(
    bench: &Bench,
    found: &mut Found,
    kind: Kind,
    direction: Direction,
    shape: Shape,
) -> Outcome {
    let Some(store) = Store::start(kind, bench)? else {
        let remark = "not measured: install Garage with `cargo xtask setup --bench --garage`";
        found.remarks.push(remark.to_owned());
        return Ok(());
    };
    let source = match shape {
        Shape::Big => bench.memory.big_file(bench.scale.big_bytes)?,
        Shape::Small => bench.memory.tree(Tree {
            directories: 50,
            files_each: (bench.scale.small_files / 50).max(1),
            bytes: (4096, 4096),
        })?,
    };
    let access = store.access();
    let rclone = bench.tools.rclone.as_ref();
    let rclone = rclone.ok_or("rclone is missing: run `cargo xtask setup --bench`")?;
    if direction == Direction::Get {
        // Into the bucket itself: s3s-fs answers 500 to who asks for a prefix as if it were an object.
        let mut put = rclone_copy(rclone, Variant::Tuned, &access);
        put.arg(&source).arg(format!("store:{}", access.bucket));
        crate::run_visibly(&mut put)?;
    }
    let store = RefCell::new(store);
    let way = Way {
        access: &access,
        direction,
        shape,
        source: &source,
    };
    let contestants = contestants(bench, &way);
    let mut course = Course::new(&bench.memory, LIMIT, |attempt| {
        let by = match attempt.round {
            0 => Compare::Contents,
            _ => Compare::Lengths,
        };
        match (direction, store.borrow().files(&prefix(attempt))) {
            (Direction::Get, _) => compare(&source, &attempt.destination, by),
            (Direction::Put, Some(files)) => compare(&source, &files, by),
            (Direction::Put, None) => compare_listing(rclone, &access, &source, &prefix(attempt)),
        }
    });
    if direction == Direction::Put {
        course.after = Box::new(|attempt| store.borrow_mut().clean(&prefix(attempt)));
    }
    found.series = course.run(bench.rounds, &contestants)?;
    row::remove(&source)
}

/// Where an attempt puts its objects.
fn prefix(attempt: &Attempt) -> String {
    let name = attempt.destination.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// What all attempts of a row have in common.
#[derive(Debug, Clone, Copy)]
struct Way<'a> {
    access: &'a Access,
    direction: Direction,
    shape: Shape,
    source: &'a Path,
}

impl Way<'_> {
    fn configuration(&self) -> String {
        format!(
            "endpoints:\n  store:\n    type: s3\n    bucket: {}\n    endpoint: {}\n    region: {}\n    \
             path_style: true\n    access_key: {{ env: BENCH_ACCESS_KEY }}\n    \
             secret_key: {{ env: BENCH_SECRET_KEY }}\n",
            self.access.bucket, self.access.url, self.access.region
        )
    }
}

fn contestants<'a>(bench: &'a Bench, way: &'a Way<'_>) -> Vec<Contestant<'a>> {
    let configuration = way.configuration();
    let ours = Contestant::new(row::KNARR, Side::Ours, move |attempt| {
        let (from, to) = match way.direction {
            Direction::Put => (
                way.source.display().to_string(),
                format!("store:{}", prefix(attempt)),
            ),
            Direction::Get => (
                "store:".to_owned(),
                attempt.destination.display().to_string(),
            ),
        };
        let arguments = ["copy", &from, &to];
        let mut command = knarr::command(&bench.knarr, &attempt.state, &configuration, &arguments)?;
        command
            .env("BENCH_ACCESS_KEY", &way.access.access_key)
            .env("BENCH_SECRET_KEY", &way.access.secret_key);
        Ok(command)
    });
    let mut all = vec![ours];
    for (variant, name) in [
        (Variant::AsItComes, "as it comes"),
        (Variant::Tuned, "tuned"),
    ] {
        if let Some(program) = &bench.tools.rclone {
            let make = move |attempt: &Attempt| Ok(rclone(program, variant, way, attempt));
            all.push(Contestant::new(format!("rclone {name}"), Side::Peer, make));
        }
        if let Some(program) = &bench.tools.s5cmd {
            let make = move |attempt: &Attempt| Ok(s5cmd(program, variant, way, attempt));
            all.push(Contestant::new(format!("s5cmd {name}"), Side::Peer, make));
        }
    }
    all
}

/// `rclone copy` with a remote `store:`, without its two places.
fn rclone_copy(program: &Path, variant: Variant, access: &Access) -> Command {
    let mut command = rclone_at(program, access);
    command.arg("copy");
    if variant == Variant::Tuned {
        command.args(["--s3-upload-concurrency", "8", "--s3-chunk-size", "16Mi"]);
        command.args([
            "--s3-disable-checksum",
            "--s3-no-check-bucket",
            "--s3-no-head",
        ]);
        command.args([
            "--multi-thread-streams",
            "8",
            "--multi-thread-chunk-size",
            "16Mi",
        ]);
        command.args(["--transfers", "32", "--checkers", "8", "--no-check-dest"]);
    }
    command
}

/// rclone with a remote `store:`.
fn rclone_at(program: &Path, access: &Access) -> Command {
    let mut command = bare_rclone(program);
    command
        .env("RCLONE_CONFIG_STORE_TYPE", "s3")
        .env("RCLONE_CONFIG_STORE_PROVIDER", "Other")
        .env("RCLONE_CONFIG_STORE_ENDPOINT", &access.url)
        .env("RCLONE_CONFIG_STORE_REGION", &access.region)
        .env("RCLONE_CONFIG_STORE_ACCESS_KEY_ID", &access.access_key)
        .env("RCLONE_CONFIG_STORE_SECRET_ACCESS_KEY", &access.secret_key)
        .env("RCLONE_CONFIG_STORE_FORCE_PATH_STYLE", "true");
    command
}

fn rclone(program: &Path, variant: Variant, way: &Way<'_>, attempt: &Attempt) -> Command {
    let mut command = rclone_copy(program, variant, way.access);
    let bucket = &way.access.bucket;
    match way.direction {
        Direction::Put => command
            .arg(way.source)
            .arg(format!("store:{bucket}/{}", prefix(attempt))),
        Direction::Get => command
            .arg(format!("store:{bucket}"))
            .arg(&attempt.destination),
    };
    command
}

fn s5cmd(program: &Path, variant: Variant, way: &Way<'_>, attempt: &Attempt) -> Command {
    let access = way.access;
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("AWS_") {
            command.env_remove(name);
        }
    }
    command
        .env("AWS_ACCESS_KEY_ID", &access.access_key)
        .env("AWS_SECRET_ACCESS_KEY", &access.secret_key)
        .env("AWS_REGION", &access.region)
        .env("HOME", &attempt.state);
    command.args(["--endpoint-url", &access.url]);
    if variant == Variant::Tuned {
        command.args(["--numworkers", "32"]);
    }
    command.arg("cp");
    if variant == Variant::Tuned && way.shape == Shape::Big {
        command.args(["--concurrency", "8", "--part-size", "16"]);
    }
    let slashed = |path: &Path| {
        let mut name = OsString::from(path);
        name.push("/");
        name
    };
    let bucket = &access.bucket;
    match way.direction {
        Direction::Put => command
            .arg(slashed(way.source))
            .arg(format!("s3://{bucket}/{}/", prefix(attempt))),
        Direction::Get => command
            .arg(format!("s3://{bucket}/*"))
            .arg(slashed(&attempt.destination)),
    };
    command
}

/// Number and sum of the objects against those of the source, where nobody can look into the store.
fn compare_listing(rclone: &Path, access: &Access, source: &Path, prefix: &str) -> Outcome {
    let mut command = rclone_at(rclone, access);
    command.args(["check", "--size-only"]).arg(source);
    command.arg(format!("store:{}/{prefix}", access.bucket));
    let output = command
        .output()
        .map_err(|error| format!("cannot start rclone: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().last().unwrap_or_default();
    Err(format!("the store holds something else: {last}"))
}

/// Writes a file of a server's set-up.
///
/// # Errors
///
/// If it cannot be written.
pub(crate) fn write(path: &Path, text: &str) -> Outcome {
    fs::write(path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))
}
