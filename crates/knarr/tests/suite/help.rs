//! What the program tells about itself.

use crate::program::{Place, repository};

#[test]
fn help_and_version_go_to_stdout() {
    let place = Place::new();
    let help = place.run(&["--help"]);
    assert_eq!((help.code, help.stderr.as_str()), (0, ""));
    assert!(
        help.stdout.contains("Exit codes: 0 done"),
        "{}",
        help.stdout
    );
    let version = place.run(&["--version"]).good();
    assert!(version.starts_with("knarr "), "{version}");
}

#[test]
fn a_wrong_flag_is_a_usage_error_with_a_suggestion() {
    let done = Place::new().run(&["check", "--conect"]);
    assert_eq!((done.code, done.stdout.as_str()), (2, ""));
    assert!(
        done.stderr
            .contains("a similar argument exists: '--connect'"),
        "{}",
        done.stderr
    );
    assert_eq!(Place::new().run(&["chek"]).code, 2);
    assert_eq!(Place::new().run::<&str>(&[]).code, 2);
}

#[test]
fn completions_exist_for_every_shell() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = place.run(&["completions", shell]).good();
        assert!(
            script.contains("knarr") && script.contains("doctor"),
            "{shell}"
        );
    }
}

#[test]
fn there_is_a_manual_page_for_every_command() {
    let place = Place::new();
    assert!(place.run(&["man"]).good().contains(".TH knarr 1"));
    std::fs::create_dir(place.path("man")).unwrap();
    place.run(&["man", "man"]).good();
    for page in ["knarr.1", "knarr-check.1", "knarr-doctor.1"] {
        assert!(place.path("man").join(page).is_file(), "{page}");
    }
    assert_eq!(place.run(&["man", "missing"]).code, 1);
}

#[test]
fn the_committed_schema_is_that_of_the_program() {
    let printed = Place::new().run(&["schema"]).good();
    let path = repository().join("docs/knarr.schema.json");
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        committed, printed,
        "docs/knarr.schema.json is old: `cargo run -p knarr -- schema > docs/knarr.schema.json`"
    );
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let place = Place::new();
    let mut child = place
        .command(&["schema"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
}

/// All commands, with those below others.
const COMMANDS: [&str; 62] = [
    "run",
    "run ls",
    "run show",
    "run follow",
    "run cancel",
    "run retry",
    "copy",
    "move",
    "mirror",
    "sync",
    "plan",
    "apply",
    "ls",
    "stat",
    "init",
    "check",
    "doctor",
    "job",
    "job ls",
    "job show",
    "job validate",
    "job plan",
    "job add",
    "job update",
    "job rm",
    "job run",
    "job cancel",
    "job retry",
    "job pause",
    "job resume",
    "endpoint",
    "endpoint ls",
    "endpoint test",
    "endpoint pause",
    "endpoint resume",
    "endpoint rm",
    "reload",
    "events",
    "status",
    "queue",
    "trace",
    "history",
    "approve",
    "alert",
    "alert ls",
    "alert test",
    "audit",
    "audit verify",
    "audit export",
    "secret",
    "secret set",
    "secret ls",
    "secret rm",
    "sftp-server",
    "user",
    "user ls",
    "user add",
    "user update",
    "user rm",
    "schema",
    "completions",
    "man",
];

#[test]
fn every_command_explains_itself_with_an_example() {
    let place = Place::new();
    for command in COMMANDS {
        for flag in ["--help", "-h"] {
            let arguments: Vec<&str> = command.split(' ').chain([flag]).collect();
            let help = place.run(&arguments).good();
            assert!(
                help.contains("Example") && help.contains(&format!("  knarr {command}"))
                    || command == "run" && help.contains("  knarr run"),
                "{command} {flag}:\n{help}"
            );
        }
    }
    let all = place.run(&["--help"]).good();
    let listed = all.lines().skip_while(|line| *line != "Commands:").skip(1);
    let listed: Vec<&str> = listed
        .take_while(|line| line.starts_with("  "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    let known: Vec<&str> = COMMANDS
        .into_iter()
        .filter(|name| !name.contains(' '))
        .collect();
    assert_eq!(listed, known, "a command is missing in this test");
}

#[test]
fn every_command_has_a_manual_page_completions_and_a_place_in_the_documentation() {
    let place = Place::new();
    std::fs::create_dir(place.path("man")).unwrap();
    place.run(&["man", "man"]).good();
    let completions = place.run(&["completions", "bash"]).good();
    let page = std::fs::read_to_string(repository().join("docs/commands.md")).unwrap();
    for command in COMMANDS {
        let file = format!("man/knarr-{}.1", command.replace(' ', "-"));
        let manual = std::fs::read_to_string(place.path(&file))
            .unwrap_or_else(|error| panic!("{file}: {error}"));
        assert!(manual.contains("Example"), "{file} has no example");
        let name = command.split(' ').next_back().unwrap();
        assert!(completions.contains(name), "{name} is not completed");
        assert!(
            page.contains(&format!("`{command}")),
            "docs/commands.md: {command}"
        );
    }
}
