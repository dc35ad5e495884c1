//! Everything that a tree can hold, and what may not be read or written, through the program.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use knarr_testkit::data::{Compare, Node, TreeBuilder, assert_same_tree, read_tree};
use knarr_testkit::needs_root;
use knarr_testkit::small_disk::SmallDisk;
use knarr_testkit::sshd::Sshd;

use super::support::{litter, report, sftp_endpoint};
use crate::program::{Done, Place};

/// Names that are hard, deep and empty directories, empty and sparse files, links that lead nowhere, in
/// circles and out of the tree.
fn hard_tree(root: &Path) {
    TreeBuilder::new(91)
        .files(30)
        .directories(5)
        .nasty_names()
        .links()
        .empty()
        .depth(40)
        .sparse(8 << 20)
        .build(root);
    for (name, content) in [
        ("Readme", "one"),
        ("README", "two"),
        ("caf\u{e9}", "composed"),
        ("cafe\u{301}", "decomposed"),
        ("-rf", "a flag"),
        ("--exclude=*", "another"),
        ("two\nlines", "x"),
        ("quotes'\"`$(x)", "y"),
    ] {
        fs::write(root.join(name), content).unwrap();
    }
    fs::write(root.join("n".repeat(255)), "long").unwrap();
    for (link, target) in [
        ("dangling", "nowhere"),
        ("loop", "loop"),
        ("up", ".."),
        ("out-of-the-tree", "/etc/passwd"),
    ] {
        let link = root.join(format!("link-{link}"));
        std::os::unix::fs::symlink(target, link).unwrap();
    }
}

#[test]
fn k7_r36_r37_a_tree_of_everything_makes_the_round_trip_through_a_directory() {
    let place = Place::new();
    hard_tree(&place.path("in"));
    place.run(&["copy", "in", "out"]).good();
    assert_same_tree(&place.path("in"), &place.path("out"), &Compare::exact());
    let again = report(&place.run(&["copy", "in", "out", "--json"]));
    for count in ["created", "updated", "failed", "sent_bytes"] {
        assert_eq!(again[count], 0, "{again}");
    }
    let passwd = read_tree(&place.path("out"), true).unwrap();
    assert!(
        matches!(
            passwd.get(&b"link-out-of-the-tree"[..]),
            Some(Node::Link { .. })
        ),
        "a link is copied as a link"
    );
    place.run(&["mirror", "out", "back"]).good();
    assert_same_tree(&place.path("in"), &place.path("back"), &Compare::exact());
}

#[test]
fn k7_r36_r37_a_tree_of_everything_makes_the_round_trip_through_sftp() {
    let server = Sshd::start();
    let place = Place::new();
    hard_tree(&place.path("in"));
    place.write(
        "knarr.yaml",
        format!("endpoints:\n{}", sftp_endpoint(&server, server.port())),
    );
    place.run(&["copy", "in", "partner:tree"]).good();
    let served = server.data_directory().join("tree");
    assert_same_tree(&place.path("in"), &served, &Compare::content());
    place.run(&["copy", "partner:tree", "back"]).good();
    assert_same_tree(&place.path("in"), &place.path("back"), &Compare::content());
    assert_eq!(litter(&served), Vec::<String>::new());
}

#[test]
fn r36_fifos_and_sockets_are_told_and_never_waited_for() {
    let place = Place::new();
    place.write("in/good", "1");
    let made = Command::new("mkfifo").arg(place.path("in/pipe")).status();
    assert!(made.unwrap().success());
    let _socket = std::os::unix::net::UnixListener::bind(place.path("in/socket")).unwrap();
    let done = place.run(&["copy", "in", "out"]);
    assert_eq!(done.code, 1, "{done:?}");
    for name in ["pipe", "socket"] {
        assert!(done.stderr.contains(name), "{name}: {}", done.stderr);
    }
    assert_eq!(fs::read_dir(place.path("out")).unwrap().count(), 1);
    let left_out = place.run(&[
        "copy",
        "in",
        "out",
        "--exclude",
        "pipe",
        "--exclude",
        "socket",
    ]);
    assert_eq!(left_out.code, 0, "{left_out:?}");
}

#[test]
fn r36_a_device_without_an_end_is_told_and_never_read() {
    needs_root!("a device");
    let place = Place::new();
    place.write("in/good", "1");
    // The same as /dev/zero.
    let made = Command::new("mknod")
        .arg(place.path("in/zeros"))
        .args(["c", "1", "5"])
        .status();
    assert!(made.unwrap().success());
    let done = place.run(&["copy", "in", "out"]);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.stderr.contains("zeros"), "{}", done.stderr);
    assert_eq!(fs::read_dir(place.path("out")).unwrap().count(), 1);
}

/// Runs the program as a user whom permissions bind, which root's capabilities would not.
fn bound_by_permissions(place: &Place, arguments: &[&str]) -> Done {
    if !rustix::process::geteuid().is_root() {
        return place.run(arguments);
    }
    let usual = place.command::<&str>(&[]);
    Command::new("setpriv")
        .arg("--bounding-set=-dac_override,-dac_read_search")
        .arg("--inh-caps=-dac_override,-dac_read_search")
        .arg(env!("CARGO_BIN_EXE_knarr"))
        .args(arguments)
        .current_dir(place.path(""))
        .env_clear()
        .envs(
            usual
                .get_envs()
                .filter_map(|(key, value)| Some((key, value?))),
        )
        .output()
        .unwrap()
        .into()
}

fn set_mode(place: &Place, path: &str, mode: u32) {
    fs::set_permissions(place.path(path), fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn k4_k5_k7_what_may_not_be_read_fails_alone_and_deletes_nothing() {
    let place = Place::new();
    for path in ["good", "secret", "closed/a", "closed/b", "open/c"] {
        place.write(&format!("in/{path}"), path);
    }
    bound_by_permissions(&place, &["mirror", "in", "out"]).good();
    place.write("in/secret", "another version");
    place.write("in/good", "another version");
    set_mode(&place, "in/secret", 0o000);
    set_mode(&place, "in/closed", 0o000);
    let done = bound_by_permissions(&place, &["mirror", "in", "out", "--attempts", "1"]);
    set_mode(&place, "in/secret", 0o644);
    set_mode(&place, "in/closed", 0o755);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(
        done.stderr.to_lowercase().contains("permission denied"),
        "{}",
        done.stderr
    );
    let out = |path: &str| fs::read_to_string(place.path(&format!("out/{path}"))).unwrap();
    assert_eq!(out("good"), "another version", "the others go on");
    assert_eq!(out("secret"), "secret");
    assert_eq!(
        (out("closed/a"), out("closed/b")),
        ("closed/a".into(), "closed/b".into())
    );
    bound_by_permissions(&place, &["mirror", "in", "out"]).good();
    place.check_end(
        &["mirror", "in", "out"],
        &place.path("in"),
        &place.path("out"),
    );
}

#[test]
fn k3_k4_k7_a_destination_that_may_not_be_written_is_told_and_the_source_stays() {
    let place = Place::new();
    for path in ["a", "sub/b"] {
        place.write(&format!("in/{path}"), path);
    }
    fs::create_dir(place.path("out")).unwrap();
    set_mode(&place, "out", 0o555);
    let done = bound_by_permissions(&place, &["move", "in", "out", "--attempts", "1"]);
    set_mode(&place, "out", 0o755);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(
        done.stderr.to_lowercase().contains("permission denied"),
        "{}",
        done.stderr
    );
    assert!(place.path("in/a").exists() && place.path("in/sub/b").exists());
    assert_eq!(fs::read_dir(place.path("out")).unwrap().count(), 0);
    bound_by_permissions(&place, &["move", "in", "out"]).good();
    assert_eq!(
        fs::read_to_string(place.path("out/sub/b")).unwrap(),
        "sub/b"
    );
    assert!(!place.path("in/a").exists());
}

#[test]
fn k3_k7_r12_a_state_directory_without_inodes_ends_the_run_and_inodes_heal_it() {
    needs_root!("a small disk");
    let place = Place::new();
    TreeBuilder::new(92).files(50).build(&place.path("in"));
    for inodes in [2, 3, 4, 5] {
        let disk = SmallDisk::new(8 << 20, inodes);
        let state = disk.path().join("state");
        let out = format!("out-{inodes}");
        let run = |arguments: &[&str]| -> Done {
            let mut command = place.command(arguments);
            command.env("KNARR_STATE", &state).output().unwrap().into()
        };
        let done = run(&["copy", "in", &out]);
        assert!(
            done.code == 0 || done.stderr.starts_with("error: "),
            "{inodes} inodes: {done:?}"
        );
        assert!(inodes > 2 || done.code != 0, "{done:?}");
        disk.resize(8 << 20, 1_000);
        let done = run(&["copy", "in", &out]);
        assert_eq!(done.code, 0, "{inodes} inodes: {done:?}");
        run(&["audit", "verify"]).good();
        assert_same_tree(&place.path("in"), &place.path(&out), &Compare::content());
    }
}
