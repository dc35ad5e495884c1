//! Rules about the text of files: length, forgotten modules, unfinished code, paths of machines.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Lines that a source file should not exceed.
const SOFT_LIMIT: usize = 600;

/// Lines that a source file must not exceed.
const HARD_LIMIT: usize = 700;

/// Directories that hold nothing of ours.
const SKIPPED: [&str; 6] = [
    "target",
    ".git",
    "corpus",
    "artifacts",
    "node_modules",
    ".library",
];

/// Checks all files below `root`.
///
/// # Errors
///
/// If a directory or file cannot be read.
pub(super) fn check(root: &Path) -> Result<Vec<String>, String> {
    let mut files = Vec::new();
    collect(root, &mut files).map_err(|error| format!("{}: {error}", root.display()))?;
    files.sort();
    let mut complaints = Vec::new();
    for path in files {
        let bytes = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let Ok(text) = String::from_utf8(bytes) else {
            continue;
        };
        let name = path
            .strip_prefix(root)
            .unwrap_or(&path)
            .display()
            .to_string();
        complaints.extend(check_paths(&name, &text));
        if path.extension().is_some_and(|extension| extension == "rs") {
            complaints.extend(check_source(&name, &text));
            complaints.extend(check_reachable(root, &path));
        }
        if path.file_name().is_some_and(|file| file == "Cargo.lock") {
            complaints.extend(check_lock(&name, &text));
        }
    }
    Ok(complaints)
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let skipped = SKIPPED.iter().any(|skipped| name == *skipped);
        if skipped {
            continue;
        }
        let kind = entry.file_type()?;
        if kind.is_dir() {
            collect(&entry.path(), files)?;
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// Text that must not stand in a source file. In two halves, so that this file does not hold it.
fn unfinished() -> [String; 4] {
    [
        ("to", "do!("),
        ("unimple", "mented!("),
        ("#[ig", "nore"),
        ("FIX", "ME"),
    ]
    .map(|(first, second)| format!("{first}{second}"))
}

fn check_source(name: &str, text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    let count = text.lines().count();
    if count > HARD_LIMIT {
        complaints.push(format!(
            "{name}: {count} lines, the limit is {HARD_LIMIT}: split it"
        ));
    } else if count > SOFT_LIMIT {
        eprintln!("tidy: {name}: {count} lines, more than {SOFT_LIMIT}: think of splitting it");
    }
    for (index, line) in text.lines().enumerate() {
        for needle in unfinished() {
            if line.contains(&needle) {
                complaints.push(format!("{name}:{}: `{needle}`: finish it", index + 1));
            }
        }
    }
    complaints
}

/// Paths of the machine that something was written on, again in halves.
fn check_paths(name: &str, text: &str) -> Vec<String> {
    let homes = [
        ("/wo", "rk/"),
        ("/ro", "ot/"),
        ("/tmp/set", "up"),
        ("/home/run", "ner"),
    ]
    .map(|(first, second)| format!("{first}{second}"));
    let mut complaints = Vec::new();
    for (index, line) in text.lines().enumerate() {
        for home in &homes {
            let starts_a_path = line.match_indices(home.as_str()).any(|(at, _)| {
                let before = line.get(..at).and_then(|text| text.chars().next_back());
                before.is_none_or(|character| {
                    !character.is_alphanumeric() && !"~.}_-*".contains(character)
                })
            });
            if starts_a_path {
                complaints.push(format!(
                    "{name}:{}: a path of one machine: {home}",
                    index + 1
                ));
            }
        }
    }
    complaints
}

fn check_lock(name: &str, text: &str) -> Vec<String> {
    let registry = "source = \"registry+https://github.com/rust-lang/crates.io-index\"";
    let foreign = text
        .lines()
        .filter(|line| line.starts_with("source = ") && *line != registry);
    foreign
        .map(|line| format!("{name}: not from crates.io: {line}"))
        .collect()
}

/// A file that no `mod` line names is not compiled: its tests never run.
fn check_reachable(root: &Path, path: &Path) -> Option<String> {
    let stem = path.file_stem()?.to_str()?;
    let directory = path.parent()?;
    let relative = path.strip_prefix(root).ok()?;
    let folder = directory.file_name()?.to_str()?;
    let crate_root = matches!(stem, "main" | "lib" | "build");
    let own_target = matches!(folder, "bin" | "examples" | "benches" | "fuzz_targets");
    if crate_root || own_target {
        return None;
    }
    // `a/mod.rs` is named by what stands beside `a`; anything else by what stands beside it.
    let (module, beside) = if stem == "mod" {
        (folder, directory.parent()?)
    } else {
        (stem, directory)
    };
    let parent_file = beside.with_extension("rs");
    let candidates = ["mod.rs", "lib.rs", "main.rs"].map(|file| beside.join(file));
    let named = candidates.iter().chain([&parent_file]).any(|candidate| {
        let text = fs::read_to_string(candidate).unwrap_or_default();
        names_module(&text, module)
    });
    (!named).then(|| format!("{}: no `mod {module};` names it", relative.display()))
}

fn names_module(text: &str, module: &str) -> bool {
    let wanted = format!("mod {module};");
    text.lines().any(|line| {
        let line = line.trim_start();
        line == wanted || (line.starts_with("pub") && line.ends_with(&format!(" {wanted}")))
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{check, names_module, unfinished};

    #[test]
    fn each_rule_finds_what_breaks_it() {
        let root = tempfile::tempdir().unwrap();
        let source = root.path().join("crates/x/tests/suite");
        fs::create_dir_all(&source).unwrap();
        fs::write(source.join("main.rs"), "mod named;\n").unwrap();
        fs::write(source.join("named.rs"), "// fine\n".repeat(701)).unwrap();
        fs::write(
            source.join("forgotten.rs"),
            format!("fn f() {{ {}) }}\n", unfinished()[0]),
        )
        .unwrap();
        let machine = ["see /ro", "ot/notes"].concat();
        fs::write(root.path().join("README.md"), machine).unwrap();
        fs::write(
            root.path().join("Cargo.lock"),
            "source = \"git+https://example\"\n",
        )
        .unwrap();
        let complaints = check(root.path()).unwrap();
        for expected in [
            "701 lines",
            "no `mod forgotten;`",
            "finish it",
            "one machine",
            "crates.io",
        ] {
            let count = complaints
                .iter()
                .filter(|line| line.contains(expected))
                .count();
            assert_eq!(count, 1, "{expected}: {complaints:?}");
        }
        assert_eq!(complaints.len(), 5, "{complaints:?}");
    }

    #[test]
    fn modules_are_found_whatever_their_visibility() {
        assert!(names_module("pub(crate) mod wait;\n", "wait"));
        assert!(names_module("    mod wait;\n", "wait"));
        assert!(!names_module("// mod wait;\n", "wait"));
        assert!(!names_module("mod await_all;\n", "wait"));
    }
}
