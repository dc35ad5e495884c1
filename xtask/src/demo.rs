//! The main job, shown on example data: what arrives in a watched directory is decompressed and
//! delivered to another one, and the custody record of one file is printed.
//!
//! Constraints: it needs cargo and nothing else, no server and no root; it stays inside a temporary
//! directory, which is removed at the end (`--keep` keeps it); every command that it runs is printed
//! as one would type it. It is bounded in time: a file that does not arrive within
//! [`DELIVERY_LIMIT`] ends it with an error and Knarr's own log.

use std::fs::{self, File, FileTimes};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, SystemTime};

use flate2::Compression;
use flate2::write::GzEncoder;
use knarr_testkit::process::{Watchdog, send};
use knarr_testkit::wait::poll;
use rustix::process::Signal;

use crate::{Outcome, cargo, run_visibly, workspace_root};

/// How long the three small files may take; generous, because the machine may be busy.
const DELIVERY_LIMIT: Duration = Duration::from_secs(60);

/// How long Knarr may take to stop: it promises ten seconds.
const STOP_LIMIT: Duration = Duration::from_secs(15);

/// The files of `examples/data`, and the day that each was written on, in days since 1970.
const FILES: [(&str, u64); 3] = [
    ("harbour-2026-11-18.csv", 20_775),
    ("harbour-2026-11-19.csv", 20_776),
    ("harbour-2026-11-20.csv", 20_777),
];

/// Builds Knarr and shows its main job.
///
/// # Errors
///
/// If Knarr does not build or does not do what is shown; the text says what.
pub(crate) fn run(arguments: &[String]) -> Outcome {
    let (keep, program) = match arguments {
        [] => (Keep::Nothing, build()?),
        [flag] if flag == "--keep" => (Keep::Everything, build()?),
        [flag, program] if flag == "--knarr" => (Keep::Nothing, PathBuf::from(program)),
        _ => return Err("arguments: --keep, or --knarr PROGRAM (absolute)".to_owned()),
    };
    let directory = tempfile::Builder::new().prefix("knarr-demo-").tempdir();
    let mut directory = directory.map_err(|error| format!("cannot make a directory: {error}"))?;
    directory.disable_cleanup(keep == Keep::Everything);
    let demo = Demo {
        directory: directory.path().to_owned(),
        program,
    };
    let outcome = demo.show(keep);
    if keep == Keep::Everything {
        println!("\nEverything is still in {}", demo.directory.display());
    }
    outcome
}

/// What is left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keep {
    Nothing,
    Everything,
}

/// Builds Knarr with the development profile, which compiles in a fraction of the time of a release
/// build; the numbers of `docs/benchmarks.md` are those of a release build.
fn build() -> Result<PathBuf, String> {
    run_visibly(cargo().args(["build", "--package", "knarr"]))?;
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace_root().join("target"), PathBuf::from);
    let target = if target.is_absolute() {
        target
    } else {
        workspace_root().join(target)
    };
    Ok(target.join("debug/knarr"))
}

struct Demo {
    directory: PathBuf,
    program: PathBuf,
}

impl Demo {
    fn show(&self, keep: Keep) -> Outcome {
        self.lay_out()?;
        println!("\n$ cd {}", self.directory.display());
        println!("$ cat knarr.yaml");
        print_indented(&self.read("knarr.yaml")?);
        self.knarr(&["check"])?;
        let mut node = self.start()?;
        // Only now: whoever interrupts this gets rid of the node and of the directory too.
        let _watchdog = self.watch_over(&node, keep)?;
        wait_until_watching(&node);
        let shown = self.deliver_and_look();
        if shown.is_err() {
            send(node.id(), Signal::TERM);
            node.wait().ok();
            let log = self.read("log").unwrap_or_default();
            eprintln!("what `knarr run` said:\n{log}");
            return shown;
        }
        self.stop(&mut node)
    }

    /// The configuration and the watched directory; nothing has arrived yet.
    fn lay_out(&self) -> Outcome {
        let configuration = workspace_root().join("examples/quickstart.yaml");
        let text = read(&configuration)?;
        // The comment is for those who read the file where it lies.
        let text: String = text
            .lines()
            .skip_while(|line| line.is_empty() || line.starts_with('#'))
            .flat_map(|line| [line, "\n"])
            .collect();
        let written = fs::write(self.directory.join("knarr.yaml"), text)
            .and_then(|()| fs::create_dir(self.directory.join("upload")));
        written.map_err(|error| format!("cannot write to {}: {error}", self.directory.display()))
    }

    fn start(&self) -> Result<Child, String> {
        println!("\n$ knarr run 2> log &");
        let log = File::create(self.directory.join("log"))
            .map_err(|error| format!("cannot write the log: {error}"))?;
        let mut command = self.command();
        command.arg("run").stdin(Stdio::null()).stderr(log);
        command
            .spawn()
            .map_err(|error| format!("cannot start {}: {error}", self.program.display()))
    }

    fn watch_over(&self, node: &Child, keep: Keep) -> Result<Watchdog, String> {
        let script = match keep {
            Keep::Nothing => "kill \"$1\" 2>/dev/null; rm -rf -- \"$2\"",
            Keep::Everything => "kill \"$1\" 2>/dev/null",
        };
        let directory = self.directory.display().to_string();
        Watchdog::arm(script, &[&node.id().to_string(), &directory]).map_err(|error| error.chain())
    }

    fn deliver_and_look(&self) -> Outcome {
        println!("\nThree files arrive in upload/, as if a partner had sent them:");
        for (name, day) in FILES {
            println!("$ gzip < examples/data/{name} > upload/{name}.gz");
            self.arrive(name, day)
                .map_err(|error| format!("cannot write upload/{name}.gz: {error}"))?;
        }
        self.wait_until_delivered()?;
        println!("\nThey were closed, so they are complete: decompressed, verified, delivered.");
        println!("$ tree delivered");
        print_tree(&self.directory.join("delivered"), 0)
            .map_err(|error| format!("cannot list delivered/: {error}"))?;
        let [(first, _), ..] = FILES;
        println!("\nWhat happened to one of them, and how Knarr knows:");
        self.knarr(&["trace", &format!("upload/{first}.gz")])
    }

    /// Writes one example file compressed into the watched directory, dated, and closes it: that is
    /// what Knarr waits for.
    fn arrive(&self, name: &str, day: u64) -> io::Result<()> {
        let content = fs::read(workspace_root().join("examples/data").join(name))?;
        let file = File::create(self.directory.join(format!("upload/{name}.gz")))?;
        let mut encoder = GzEncoder::new(file, Compression::default());
        encoder.write_all(&content)?;
        let file = encoder.finish()?;
        let noon = SystemTime::UNIX_EPOCH + Duration::from_secs(day * 86_400 + 43_200);
        file.set_times(FileTimes::new().set_modified(noon))
    }

    fn wait_until_delivered(&self) -> Outcome {
        for (name, _) in FILES {
            let wanted = fs::read(workspace_root().join("examples/data").join(name))
                .map_err(|error| format!("cannot read examples/data/{name}: {error}"))?;
            let arrived = poll(DELIVERY_LIMIT, || {
                let path = find(&self.directory.join("delivered"), name)?;
                (fs::read(path).ok()? == wanted).then_some(())
            });
            arrived.ok_or_else(|| {
                format!(
                    "{name} was not delivered within {} s",
                    DELIVERY_LIMIT.as_secs()
                )
            })?;
        }
        // The bytes come first and the record after them (K3), so the record may be a moment behind.
        let recorded = poll(Duration::from_secs(10), || {
            let [.., (last, _)] = FILES;
            let mut command = self.command();
            command.args(["trace", &format!("upload/{last}.gz")]);
            command.stdout(Stdio::null()).stderr(Stdio::null());
            command.status().ok()?.success().then_some(())
        });
        recorded.ok_or_else(|| "there is no record of the delivery".to_owned())
    }

    fn stop(&self, node: &mut Child) -> Outcome {
        println!("\n$ kill -TERM %1; wait %1");
        send(node.id(), Signal::TERM);
        let ended = poll(STOP_LIMIT, || node.try_wait().ok().flatten());
        let status: ExitStatus = ended.ok_or_else(|| {
            node.kill().ok();
            node.wait().ok();
            format!("knarr did not stop within {} s", STOP_LIMIT.as_secs())
        })?;
        if !status.success() {
            let log = self.read("log").unwrap_or_default();
            return Err(format!("`knarr run` ended with {status}; it said:\n{log}"));
        }
        println!("  stopped in good order");
        Ok(())
    }

    fn knarr(&self, arguments: &[&str]) -> Outcome {
        let line = arguments.join(" ");
        println!("$ knarr {line}");
        let output = self.command().args(arguments).output();
        let output =
            output.map_err(|error| format!("cannot start {}: {error}", self.program.display()))?;
        print_indented(&String::from_utf8_lossy(&output.stdout));
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!(
            "`knarr {line}` ended with {}: {said}",
            output.status
        ))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.current_dir(&self.directory);
        // The example's own configuration and state, whatever the caller has set.
        command.env_remove("KNARR_STATE").env_remove("KNARR_LOG");
        command
    }

    fn read(&self, name: &str) -> Result<String, String> {
        read(&self.directory.join(name))
    }
}

/// Waits until the node watches: until the kernel shows watches among what it has open. Where that cannot
/// be seen, the files may arrive before, and are then found by the scan instead.
fn wait_until_watching(node: &Child) {
    let directory = format!("/proc/{}/fdinfo", node.id());
    poll(Duration::from_secs(5), || {
        let entries = fs::read_dir(&directory).ok()?;
        entries.flatten().find_map(|entry| {
            let text = fs::read_to_string(entry.path()).ok()?;
            text.contains("inotify wd:").then_some(())
        })
    });
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

fn print_indented(text: &str) {
    for line in text.lines() {
        println!("  {line}");
    }
}

/// The file of this name somewhere below `directory`.
fn find(directory: &Path, name: &str) -> Option<PathBuf> {
    for entry in fs::read_dir(directory).ok()?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            if let Some(found) = find(&path, name) {
                return Some(found);
            }
        } else if entry.file_name() == name {
            return Some(path);
        }
    }
    None
}

fn print_tree(directory: &Path, depth: usize) -> io::Result<()> {
    let mut entries = fs::read_dir(directory)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let indent = "  ".repeat(depth + 1);
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let metadata = entry.metadata()?;
        if metadata.is_dir() {
            println!("{indent}{name}/");
            print_tree(&entry.path(), depth + 1)?;
        } else {
            println!("{indent}{name}  {} bytes", metadata.len());
        }
    }
    Ok(())
}
