//! What users see: mount points, other places, quotas, drop boxes.

use std::sync::Arc;

use knarr_core::RelPath;
use knarr_remote::memory::MemoryRemote;
use knarr_remote::object::{ObjectOptions, ObjectPlace, ObjectRemote, S3Credentials, S3Place};
use knarr_remote::sftp::{SftpEndpoint, SftpOptions, SftpRemote};
use knarr_remote::{ReadOptions, Remote};
use knarr_serve::files::{Account, Permissions, Policy, Rule, Uploads};
use knarr_serve::places::{Missing, Mount, Quota, Store, UserPlaces};
use knarr_serve::users::User;
use knarr_sftp::{Attributes, Client, OpenFlags};
use knarr_testkit::s3::{S3Server as _, S3sFs};

use crate::gate::{Gate, noise, options, shown, write};
use crate::support::Served;

fn mount(name: &str, store: Store, permissions: Permissions) -> Mount {
    Mount {
        name: name.as_bytes().to_vec(),
        store,
        permissions,
        rules: Vec::new(),
    }
}

fn local(directory: impl Into<std::path::PathBuf>) -> Store {
    Store::Local {
        directory: directory.into(),
        missing: Missing::Make,
    }
}

/// A server whose user sees these mount points.
fn gate_with(make: impl FnOnce(&User) -> Vec<Mount>) -> Gate {
    Gate::with(options(), |user| {
        let mounts = make(&user);
        User {
            places: UserPlaces {
                mounts,
                quota: Quota::default(),
            },
            ..user
        }
    })
}

async fn content(remote: &dyn Remote, path: &str) -> Option<Vec<u8>> {
    let path = RelPath::new(path.as_bytes()).unwrap();
    let mut reader = remote.read(&path, ReadOptions::default()).await.ok()?;
    let mut all = Vec::new();
    while let Some(chunk) = reader.next().await.unwrap() {
        all.extend_from_slice(&chunk);
    }
    Some(all)
}

#[test]
fn mount_points_stand_side_by_side_each_with_its_own_rights() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    std::fs::create_dir(&out).unwrap();
    write(&out.join("report"), b"for you");
    let gate = gate_with(|_| {
        vec![
            mount(
                "in",
                local(directory.path().join("in")),
                Permissions::DROP_BOX,
            ),
            mount("out", local(&out), Permissions::READ_ONLY),
            mount(
                "desk",
                local(directory.path().join("desk")),
                Permissions::ALL,
            ),
        ]
    });
    let (one, back) = (gate.outside("one"), gate.outside("back"));
    write(&one, b"one");
    let listed = gate.sftp("ls -1\ncd /out\nls -1\npwd\n");
    for name in ["in", "out", "desk", "report", "/out"] {
        assert!(
            listed
                .lines()
                .any(|line| line.trim_end_matches('/').ends_with(name)),
            "{listed}"
        );
    }
    gate.sftp(&format!(
        "put {} /in/one\nget /out/report {}\n",
        one.display(),
        back.display()
    ));
    assert_eq!(
        std::fs::read(directory.path().join("in/one")).unwrap(),
        b"one"
    );
    assert_eq!(std::fs::read(&back).unwrap(), b"for you");
    let at = directory.path().join("in/one").display().to_string();
    gate.seen.wait(&format!("uploaded acme /in/one 3 {at}"));
    for refused in [
        "ls /in\n".to_owned(),
        format!("get /in/one {}\n", back.display()),
        format!("put {} /in/one\n", one.display()),
        "rm /in/one\n".to_owned(),
        "rm /out/report\n".to_owned(),
        format!("put {} /out/new\n", one.display()),
        format!("put {} /new\n", one.display()),
        "mkdir /new\n".to_owned(),
        "rmdir /desk\n".to_owned(),
        "rename /desk /other\n".to_owned(),
        "rename /out/report /desk/report\n".to_owned(),
        "ls /nowhere\n".to_owned(),
        "get /in/../../etc/passwd /dev/null\n".to_owned(),
    ] {
        let output = gate.sftp_as("acme", &[], &refused);
        assert!(!output.status.success(), "{refused}{}", shown(&output));
    }
    gate.sftp(&format!(
        "put {} /desk/a\nrename /desk/a /desk/b\nmkdir /desk/d\nrm /desk/b\nrmdir /desk/d\n",
        one.display()
    ));
}

#[test]
fn a_prefix_of_an_object_store_is_served_like_a_directory() {
    let remote = MemoryRemote::object_store();
    let gate = gate_with(|_| {
        vec![mount(
            "",
            Store::Remote(Arc::new(remote.clone())),
            Permissions::ALL,
        )]
    });
    whole_tour(&gate, &remote);
    // What an object store has not, it says.
    let refused = gate.sftp_as("acme", &[], "rename /d/large /d/other\n");
    assert!(!refused.status.success());
}

#[test]
fn another_place_with_directories_is_served_with_renames() {
    let remote = MemoryRemote::new();
    let gate = gate_with(|_| {
        vec![mount(
            "",
            Store::Remote(Arc::new(remote.clone())),
            Permissions::ALL,
        )]
    });
    whole_tour(&gate, &remote);
    gate.sftp("rename /d/large /d/other\nrm /d/other\nrmdir /d\n");
    assert!(gate.runtime.block_on(content(&remote, "d/other")).is_none());
}

#[test]
fn the_directory_of_another_sftp_server_is_served() {
    let behind = Gate::new();
    let endpoint = SftpEndpoint::new(SftpOptions::new(behind.ssh_options(behind.by_key())));
    let remote = SftpRemote::new(&endpoint, &b"/"[..]);
    let gate = gate_with(|_| {
        vec![mount(
            "",
            Store::Remote(Arc::new(remote.clone())),
            Permissions::ALL,
        )]
    });
    whole_tour(&gate, &remote);
    assert!(behind.path("d/large").exists());
    gate.sftp("rename /d/large /d/other\n");
    assert!(behind.path("d/other").exists());
}

#[test]
fn a_prefix_in_a_bucket_is_served() {
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .ok();
    let server = S3sFs::start();
    let mut place = S3Place::new(server.bucket().to_owned());
    place.endpoint = Some(server.endpoint_url());
    place.region = Some(server.region().to_owned());
    place.credentials = S3Credentials::Given {
        access_key: server.access_key().to_owned(),
        secret_key: server.secret_key().to_owned().into(),
        session_token: None,
    };
    let mut how = ObjectOptions::new(ObjectPlace::S3(place));
    how.prefix = "partners/acme".to_owned();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let remote = runtime.block_on(ObjectRemote::open(how)).unwrap();
    let gate = gate_with(|_| {
        vec![mount(
            "",
            Store::Remote(Arc::new(remote.clone())),
            Permissions::ALL,
        )]
    });
    whole_tour(&gate, &remote);
    gate.sftp("rename /d/large /d/other\n");
    assert!(gate.runtime.block_on(content(&remote, "d/large")).is_none());
    assert!(gate.runtime.block_on(content(&remote, "d/other")).is_some());
}

/// Directories, an upload, a listing, a download, what is refused, and what is told.
fn whole_tour(gate: &Gate, remote: &dyn Remote) {
    let bytes = noise(9_000_000, 12);
    let (large, back) = (gate.outside("large"), gate.outside("back"));
    write(&large, &bytes);
    let listed = gate.sftp(&format!(
        "mkdir /d\nput {} /d/large\nls -l /d\nls -l /\nget /d/large {}\n",
        large.display(),
        back.display()
    ));
    assert!(listed.contains("9000000"), "{listed}");
    assert!(std::fs::read(&back).unwrap() == bytes);
    assert!(gate.runtime.block_on(content(remote, "d/large")).unwrap() == bytes);
    gate.seen.wait("uploaded acme /d/large 9000000");
    write(&back, &bytes[..4_000_000]);
    gate.sftp(&format!("reget /d/large {}\n", back.display()));
    assert!(std::fs::read(&back).unwrap() == bytes);
    gate.sftp(&format!(
        "put {} /again\nput {} /again\nrm /again\n",
        back.display(),
        back.display()
    ));
    for refused in [
        "get /nothing /dev/null\n",
        "rmdir /d\n",
        "ls /none\n",
        "rm /d\n",
        "get /.knarr-x.part /dev/null\n",
    ] {
        let output = gate.sftp_as("acme", &[], refused);
        assert!(!output.status.success(), "{refused}{}", shown(&output));
    }
    // One that was not closed is never seen.
    crate::clients::leave_half(gate, "/left", &bytes[..640_000]);
    assert!(gate.runtime.block_on(content(remote, "left")).is_none());
}

#[test]
fn what_comes_out_of_order_is_put_in_order_and_what_is_changed_afterwards_is_refused() {
    let remote = MemoryRemote::object_store();
    let gate = gate_with(|_| {
        vec![mount(
            "",
            Store::Remote(Arc::new(remote.clone())),
            Permissions::ALL,
        )]
    });
    gate.runtime.block_on(async {
        let (_session, client) = gate.connect().await;
        let flags = OpenFlags::WRITE | OpenFlags::CREATE | OpenFlags::TRUNCATE;
        let handle = client
            .open(b"/file", flags, Attributes::default())
            .await
            .unwrap();
        for (offset, piece) in [(4_u64, "efgh"), (12, "mnop"), (0, "abcd"), (8, "ijkl")] {
            handle.write(offset, piece.as_bytes()).await.unwrap();
        }
        handle.close().await.unwrap();
        assert_eq!(content(&remote, "file").await.unwrap(), b"abcdefghijklmnop");
        for (offset, piece) in [(0_u64, &b"x"[..]), (9 << 20, &[1; 100])] {
            let handle = client
                .open(b"/other", flags, Attributes::default())
                .await
                .unwrap();
            handle.write(0, b"abcd").await.unwrap();
            // Changed afterwards, or with a hole before it.
            handle.write(offset, piece).await.ok();
            assert!(handle.close().await.is_err());
            assert!(content(&remote, "other").await.is_none());
        }
        // A hole of more than what is kept.
        let handle = client
            .open(b"/far", flags, Attributes::default())
            .await
            .unwrap();
        let mut refused = false;
        for number in 1..200_u64 {
            refused |= handle.write(number * 100_000, &[0; 100_000]).await.is_err();
        }
        assert!(refused, "everything was kept");
        assert!(handle.close().await.is_err());
    });
}

#[test]
fn a_home_is_made_when_its_user_comes_and_a_root_that_is_missing_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path().join("acme");
    let gate = gate_with(|_| vec![mount("", local(&home), Permissions::ALL)]);
    assert!(!home.exists());
    gate.sftp("mkdir d\n");
    assert!(home.join("d").is_dir());
    let missing = Store::Local {
        directory: directory.path().join("none"),
        missing: Missing::Fail,
    };
    let gate = gate_with(|_| vec![mount("", missing, Permissions::ALL)]);
    assert!(!gate.sftp_as("acme", &[], "ls\n").status.success());
    assert!(!directory.path().join("none").exists());
}

#[test]
fn a_quota_holds_for_all_connections_and_mount_points_of_a_user() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["a", "b"] {
        std::fs::create_dir(directory.path().join(name)).unwrap();
    }
    write(&directory.path().join("a/there"), &[1; 50_000]);
    let gate = Gate::with(options(), |user| User {
        places: UserPlaces {
            mounts: vec![
                mount("a", local(directory.path().join("a")), Permissions::ALL),
                mount("b", local(directory.path().join("b")), Permissions::ALL),
                mount(
                    "c",
                    Store::Remote(Arc::new(MemoryRemote::object_store())),
                    Permissions::ALL,
                ),
            ],
            quota: Quota {
                bytes: Some(200_000),
                files: Some(4),
            },
        },
        ..user
    });
    let file = gate.outside("file");
    write(&file, &[2; 70_000]);
    let file = file.display();
    gate.sftp(&format!("put {file} /a/one\nput {file} /c/two\n"));
    for place in ["/a/three", "/b/three", "/c/three"] {
        let output = gate.sftp_as("acme", &[], &format!("put {file} {place}\n"));
        assert!(!output.status.success(), "{place}");
    }
    gate.sftp("rm /a/there\n");
    // What was cut off is still there, to be continued: it counts until it goes.
    gate.sftp("rm /a/three\n-rm /b/three\n");
    gate.sftp(&format!(
        "rm /c/two\nput {file} /b/three\nmkdir /b/d\nmkdir /b/e\n"
    ));
    assert!(!gate.sftp_as("acme", &[], "mkdir /b/f\n").status.success());
    assert!(
        !gate
            .sftp_as("acme", &[], "ln -s three /b/g\n")
            .status
            .success()
    );
    gate.sftp("rmdir /b/e\nmkdir /b/f\n");
}

async fn open(client: &Client, path: &[u8], flags: OpenFlags) -> knarr_sftp::Handle {
    client
        .open(path, flags, Attributes::default())
        .await
        .unwrap()
}

#[tokio::test]
async fn a_quota_is_not_got_around_by_appending_by_another_handle_or_by_links() {
    let account = Arc::new(Account::new(Some(10_000), Some(10)));
    let policy = Policy::default().with_account(Arc::clone(&account));
    let served = Served::confined(policy, Uploads::Direct);
    let client = served.client().await;
    let create = OpenFlags::WRITE | OpenFlags::CREATE;
    // What is appended counts where it lands, not where the client says.
    let append = open(&client, b"log", create | OpenFlags::APPEND).await;
    for _ in 0..9 {
        append.write(0, &[1; 1000]).await.unwrap();
    }
    assert_eq!(account.used_bytes(), 9000);
    append.write(0, &[1; 2000]).await.unwrap_err();
    append.close().await.unwrap();
    assert_eq!(served.path("log").metadata().unwrap().len(), 9000);
    client.remove(b"log").await.unwrap();
    assert_eq!((account.used_bytes(), account.used_files()), (0, 0));
    // Two handles of one file: what one cuts away, the other does not get for nothing.
    let one = open(&client, b"file", create).await;
    let other = open(&client, b"file", create).await;
    one.write(0, &[1; 8000]).await.unwrap();
    let short = Attributes {
        size: Some(0),
        ..Attributes::default()
    };
    other.set_attributes(short).await.unwrap();
    assert_eq!(account.used_bytes(), 0);
    one.write(0, &[1; 8000]).await.unwrap();
    assert_eq!(account.used_bytes(), 8000);
    other.write(8000, &[1; 3000]).await.unwrap_err();
    drop((one, other));
    // A link costs a file and no bytes, and gives back as much.
    client.symlink(b"file", b"link").await.unwrap();
    assert_eq!((account.used_bytes(), account.used_files()), (8000, 2));
    client.remove(b"link").await.unwrap();
    assert_eq!((account.used_bytes(), account.used_files()), (8000, 1));
    client
        .create_directory(b"d", Attributes::default())
        .await
        .unwrap();
    assert_eq!(account.used_files(), 2);
    client.remove_directory(b"d").await.unwrap();
    assert_eq!(account.used_files(), 1);
}

#[test]
fn h04_h06_links_and_names_of_a_user_lead_nowhere_and_forge_nothing() {
    let gate = Gate::new();
    write(&gate.outside("canary"), b"secret");
    std::os::unix::fs::symlink(gate.outside("canary"), gate.path("absolute")).unwrap();
    std::os::unix::fs::symlink("../canary", gate.path("relative")).unwrap();
    for name in ["absolute", "relative", "../canary", "/../../canary"] {
        let output = gate.sftp_as("acme", &[], &format!("get {name} /dev/null\n"));
        assert!(!output.status.success(), "{name}");
    }
    gate.runtime.block_on(async {
        let (_session, client) = gate.connect().await;
        let evil = b"a\nlog-in root password Accepted\x1b[2J";
        client
            .create_directory(evil, Attributes::default())
            .await
            .unwrap();
    });
    assert!(
        gate.seen
            .has("mkdir a\\nlog-in root password Accepted\\x1b[2J done")
    );
    let rule = Rule {
        prefix: b"private".to_vec(),
        permissions: Permissions::NONE,
    };
    let mut places = UserPlaces::directory(gate.path(""));
    places.mounts[0].rules = vec![rule];
    std::fs::create_dir(gate.path("private")).unwrap();
    write(&gate.path("private/file"), b"secret");
    let line = std::fs::read_to_string(gate.key().with_extension("pub")).unwrap();
    let mut user = User::new("acme", places);
    user.keys = knarr_serve::users::AuthorizedKey::parse_lines(&line).unwrap();
    gate.users.replace([user]);
    for path in [
        "private/file",
        "./private/../private/file",
        "//private//file",
    ] {
        let output = gate.sftp_as("acme", &[], &format!("get {path} /dev/null\n"));
        assert!(!output.status.success(), "{path}");
    }
}
