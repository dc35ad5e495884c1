//! Real clients against the whole server.

use std::path::Path;
use std::process::Command;

use knarr_testkit::tools;

use crate::gate::{Gate, PASSWORD, noise, program, run_with, shown, succeed, write};

#[test]
fn openssh_sftp_puts_gets_lists_renames_and_resumes() {
    let gate = Gate::new();
    let (large, back) = (gate.outside("large"), gate.outside("back"));
    let content = noise(9_000_000, 1);
    write(&large, &content);
    let listed = gate.sftp(&format!(
        "put {} first\nput -p {} second\nmkdir d\nrename second d/third\nget d/third {}\nls -l\ndf\nchmod 600 first\n",
        large.display(),
        large.display(),
        back.display()
    ));
    assert!(listed.contains("first"), "{listed}");
    assert!(std::fs::read(gate.path("d/third")).unwrap() == content);
    assert!(std::fs::read(&back).unwrap() == content);
    let at = gate.path("first").display().to_string();
    gate.seen
        .wait(&format!("uploaded acme /first 9000000 {at}"));
    gate.seen.wait("renamed acme /d/third 9000000");
    assert!(gate.seen.has("log-in acme publickey Accepted"));

    // What an upload left that was cut is gone on with.
    write(&back, &content[..4_000_000]);
    gate.sftp(&format!("reget d/third {}\n", back.display()));
    assert!(std::fs::read(&back).unwrap() == content);
}

#[test]
fn openssh_scp_copies_a_tree_both_ways_and_old_scp_is_refused() {
    let gate = Gate::new();
    let tree = gate.outside("tree");
    std::fs::create_dir_all(tree.join("sub")).unwrap();
    for number in 0..50 {
        write(
            &tree.join(format!("sub/{number}")),
            &noise(number * 1000, number as u64),
        );
    }
    let port = gate.port().to_string();
    let mut arguments = gate.ssh_arguments();
    arguments.extend(["-s", "-r", "-P", &port].map(str::to_owned));
    let mut there = arguments.clone();
    there.extend([
        tree.display().to_string(),
        "acme@127.0.0.1:/tree".to_owned(),
    ]);
    succeed(Path::new("scp"), &there);
    let back = gate.outside("back");
    let mut here = arguments.clone();
    here.extend([
        "acme@127.0.0.1:/tree".to_owned(),
        back.display().to_string(),
    ]);
    succeed(Path::new("scp"), &here);
    for number in 0..50 {
        let name = format!("sub/{number}");
        assert!(std::fs::read(back.join(&name)).unwrap() == noise(number * 1000, number as u64));
    }
    let mut old = gate.ssh_arguments();
    old.extend(["-O", "-P", &port].map(str::to_owned));
    old.extend([
        tree.join("sub/1").display().to_string(),
        "acme@127.0.0.1:/old".to_owned(),
    ]);
    let mut command = Command::new("scp");
    let refused = run_with(command.args(&old), "");
    assert!(!refused.status.success());
    assert!(!gate.path("old").exists());
}

#[test]
fn no_shell_no_command_no_terminal_and_no_forwarding() {
    let gate = Gate::new();
    let port = gate.port().to_string();
    let ssh = |more: &[&str]| {
        let mut command = Command::new("ssh");
        command
            .args(gate.ssh_arguments())
            .args(["-p", &port, "acme@127.0.0.1"]);
        run_with(command.args(more), "")
    };
    for more in [&["true"][..], &["-tt"], &["-T"], &["-s", "netconf"]] {
        let output = ssh(more);
        assert!(!output.status.success(), "{more:?}: {}", shown(&output));
    }
    let mut command = Command::new("ssh");
    command
        .args(gate.ssh_arguments())
        .args(["-p", &port, "-o", "ExitOnForwardFailure=yes"]);
    command.args(["-N", "-R", "0:127.0.0.1:1", "acme@127.0.0.1"]);
    assert!(!run_with(&mut command, "").status.success());
    let mut command = Command::new("ssh");
    command.args(gate.ssh_arguments()).args(["-p", &port]);
    command.args(["-W", "127.0.0.1:1", "acme@127.0.0.1"]);
    assert!(!run_with(&mut command, "").status.success());
}

#[test]
fn lftp_mirrors_a_tree_and_goes_on_with_a_cut_upload() {
    let gate = Gate::new();
    let lftp = program("lftp", "lftp");
    let tree = gate.outside("tree");
    std::fs::create_dir_all(tree.join("sub")).unwrap();
    for number in 0..20 {
        write(&tree.join(format!("sub/{number}")), &noise(20_000, number));
    }
    let large = noise(5_000_000, 99);
    write(&tree.join("large"), &large);
    let mut connect = format!("ssh -a -x -p {}", gate.port());
    for argument in gate.ssh_arguments() {
        connect.push(' ');
        connect.push_str(&argument);
    }
    let run = |commands: &str| {
        let script = format!(
            "set sftp:connect-program \"{connect}\"; set sftp:auto-confirm no; set net:max-retries 1; set cmd:fail-exit yes; open -u acme, sftp://127.0.0.1:{}; {commands}; bye",
            gate.port()
        );
        succeed(&lftp, ["-c", script.as_str()])
    };
    run(&format!("mirror -R {} /up", tree.display()));
    assert!(std::fs::read(gate.path("up/large")).unwrap() == large);
    let back = gate.outside("back");
    run(&format!("mirror /up {}", back.display()));
    assert!(std::fs::read(back.join("sub/7")).unwrap() == noise(20_000, 7));

    // Half of it is there, as a cut connection leaves it: the rest is sent, and then it appears.
    leave_half(&gate, "/cut", &large[..2_000_000]);
    assert!(!gate.path("cut").exists());
    run(&format!("put -c {} -o /cut", tree.join("large").display()));
    assert!(std::fs::read(gate.path("cut")).unwrap() == large);
    let sent = gate.seen.wait("closed /cut");
    assert_eq!(sent, "closed /cut 3000000");
}

/// Uploads the beginning of a file and loses the connection.
pub(crate) fn leave_half(gate: &Gate, path: &str, content: &[u8]) {
    gate.runtime.block_on(async {
        use knarr_sftp::{Attributes, OpenFlags};
        let (session, client) = gate.connect().await;
        let flags = OpenFlags::WRITE | OpenFlags::CREATE | OpenFlags::TRUNCATE;
        let handle = client
            .open(path.as_bytes(), flags, Attributes::default())
            .await
            .unwrap();
        for (number, chunk) in content.chunks(32_000).enumerate() {
            handle.write(number as u64 * 32_000, chunk).await.unwrap();
        }
        std::mem::forget(handle);
        client.close();
        drop((client, session));
    });
    gate.seen
        .wait(&format!("abandoned {path} {}", content.len()));
}

#[test]
fn rclone_tests_copies_and_checks() {
    let gate = Gate::new();
    let rclone = tools::rclone().unwrap();
    let config = gate.outside("rclone.conf");
    write(
        &config,
        format!(
            "[gate]\ntype = sftp\nhost = 127.0.0.1\nport = {}\nuser = acme\nkey_file = {}\nknown_hosts_file = {}\nshell_type = none\n",
            gate.port(),
            gate.key().display(),
            gate.known_hosts().display()
        )
        .as_bytes(),
    );
    let tree = gate.outside("tree");
    std::fs::create_dir_all(tree.join("sub")).unwrap();
    for number in 0..30 {
        write(&tree.join(format!("sub/{number}")), &noise(50_000, number));
    }
    write(&tree.join("large"), &noise(20_000_000, 5));
    let run = |arguments: &[&str]| {
        let mut all = vec!["--config".to_owned(), config.display().to_string()];
        all.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        succeed(&rclone, &all)
    };
    let tree = tree.display().to_string();
    run(&["copy", &tree, "gate:/copied"]);
    let checked = run(&["check", "--download", &tree, "gate:/copied"]);
    assert!(checked.contains("31 matching files"), "{checked}");
    let back = gate.outside("back").display().to_string();
    run(&["copy", "gate:/copied", &back]);
    run(&["check", &back, &tree]);
    run(&["mkdir", "gate:/tested"]);
    let info = run(&["test", "info", "--all", "gate:/tested"]);
    assert!(info.contains("maxFileLength"), "{info}");
    run(&["sync", &tree, "gate:/copied"]);
    run(&["purge", "gate:/copied"]);
    assert!(!gate.path("copied").exists());
}

#[test]
fn paramiko_logs_in_by_password_and_writes_and_reads() {
    let gate = Gate::new();
    let python = tools::python_with("paramiko").unwrap();
    let script = gate.outside("client.py");
    write(
        &script,
        br#"
import os, sys, paramiko
port, known = int(sys.argv[1]), sys.argv[2]
client = paramiko.SSHClient()
client.load_host_keys(known)
client.connect("127.0.0.1", port, "acme", os.environ["GATE_PASSWORD"], look_for_keys=False, allow_agent=False)
sftp = client.open_sftp()
data = os.urandom(3_000_000)
with sftp.open("/file", "wb") as file:
    file.set_pipelined(True)
    file.write(data)
assert sftp.stat("/file").st_size == len(data)
with sftp.open("/file", "rb") as file:
    file.prefetch()
    assert file.read() == data
    digest = file.check("sha256")
import hashlib
assert digest == hashlib.sha256(data).digest()
sftp.mkdir("/d")
sftp.posix_rename("/file", "/d/file")
assert sftp.listdir("/d") == ["file"]
sftp.remove("/d/file")
sftp.rmdir("/d")
client.close()
print("fine")
"#,
    );
    let mut command = Command::new(python);
    command
        .arg(&script)
        .arg(gate.port().to_string())
        .arg(gate.known_hosts());
    command.env("GATE_PASSWORD", PASSWORD);
    let output = run_with(&mut command, "");
    assert!(shown(&output).contains("fine"), "{}", shown(&output));
    assert!(gate.seen.has("log-in acme password Accepted"));
}

#[test]
fn asyncssh_writes_reads_and_lists() {
    let gate = Gate::new();
    let python = tools::python_with("asyncssh").unwrap();
    let script = gate.outside("client.py");
    write(
        &script,
        br#"
import asyncio, os, sys, asyncssh
port, known, key = int(sys.argv[1]), sys.argv[2], sys.argv[3]
async def main():
    async with asyncssh.connect("127.0.0.1", port, username="acme", known_hosts=known, client_keys=[key]) as connection:
        async with connection.start_sftp_client() as sftp:
            data = os.urandom(3_000_000)
            async with sftp.open("file", "wb") as file:
                await file.write(data)
            async with sftp.open("file", "rb") as file:
                assert await file.read() == data
            await sftp.mkdir("d")
            await sftp.rename("file", "d/file")
            assert sorted(await sftp.listdir("d"))[-1] == "file"
            assert (await sftp.stat("d/file")).size == len(data)
            await sftp.rmtree("d")
asyncio.run(main())
print("fine")
"#,
    );
    let mut command = Command::new(python);
    command
        .arg(&script)
        .arg(gate.port().to_string())
        .arg(gate.known_hosts())
        .arg(gate.key());
    let output = run_with(&mut command, "");
    assert!(shown(&output).contains("fine"), "{}", shown(&output));
}

#[test]
fn sshfs_mounts_it_and_programs_write_and_read_there() {
    knarr_testkit::needs_root!("mounting by sshfs");
    let gate = Gate::new();
    let sshfs = program("sshfs", "sshfs");
    let point = gate.outside("mounted");
    std::fs::create_dir(&point).unwrap();
    let mut command = Command::new(sshfs);
    command
        .arg("acme@127.0.0.1:/")
        .arg(&point)
        .args(["-p", &gate.port().to_string()]);
    let arguments = gate.ssh_arguments();
    // sshfs has no -F of its own: the options are enough.
    command.args(&arguments[2..]);
    let mounted = run_with(&mut command, "");
    assert!(mounted.status.success(), "{}", shown(&mounted));
    let unmount = Unmount(point.clone());
    let content = noise(3_000_000, 21);
    std::fs::create_dir(point.join("d")).unwrap();
    write(&point.join("d/file"), &content);
    assert!(std::fs::read(point.join("d/file")).unwrap() == content);
    let here = rustix::fs::CWD;
    rustix::fs::renameat(here, point.join("d/file"), here, point.join("moved")).unwrap();
    let names: Vec<_> = std::fs::read_dir(&point)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names.len(), 2, "{names:?}");
    std::fs::remove_dir(point.join("d")).unwrap();
    drop(unmount);
    assert!(std::fs::read(gate.path("moved")).unwrap() == content);
}

/// Ends a mount, whatever became of the test.
struct Unmount(std::path::PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let mut command = Command::new("umount");
        command.arg("-l").arg(&self.0).status().ok();
    }
}

#[test]
fn h52_ssh_audit_has_nothing_to_complain_of() {
    let gate = Gate::new();
    let audit = program("ssh-audit", "ssh-audit (PyPI)");
    let mut command = Command::new(audit);
    command.args([
        "--no-colors",
        "--skip-rate-test",
        "-p",
        &gate.port().to_string(),
        "127.0.0.1",
    ]);
    let output = run_with(&mut command, "");
    let told = shown(&output);
    assert!(told.contains("SSH-2.0-Knarr"), "{told}");
    assert!(!told.contains("[fail]"), "{told}");
    assert!(told.contains("kex-strict-s-v00@openssh.com"), "{told}");
    assert!(!told.contains("vulnerable"), "{told}");
}
