//! The bulk lane.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::sync::atomic::{AtomicU64, Ordering};

use knarr_core::hash::ContentHash;
use knarr_fs::ErrorClass;
use knarr_fs::copy::{
    BUFFER_BYTES, CopyError, CopyObserver, CopyOptions, CopyRequest, NoObserver, Permissions,
    Verify, copy_batch, hash_file,
};
use knarr_fs::root::{Flushed, Replace};

use crate::support::{empty_root, own_names, path, shown, write};

fn request(at: &str, id: u64) -> CopyRequest {
    CopyRequest {
        source: path(at),
        destination: path(at),
        id,
        replace: Replace::Nothing,
    }
}

#[test]
fn a_batch_is_copied_with_content_hash_time_and_permissions() {
    let (from, source) = empty_root();
    let (to, destination) = empty_root();
    let mut requests = Vec::new();
    // Empty, one buffer exactly, a byte more, several buffers.
    let sizes = [0, 1, BUFFER_BYTES, BUFFER_BYTES + 1, 3 * BUFFER_BYTES + 17];
    for (number, size) in sizes.into_iter().enumerate() {
        let at = format!("d{}/{number}", number % 2);
        source
            .make_directories(&path(format!("d{}", number % 2)))
            .unwrap();
        let content: Vec<u8> = (0..size).map(|byte| (byte * 7 + number) as u8).collect();
        write(&from.path().join(&at), &content);
        let mode = std::fs::Permissions::from_mode(0o646 | (number as u32) << 3);
        std::fs::set_permissions(from.path().join(&at), mode).unwrap();
        requests.push(request(&at, number as u64));
    }
    let options = CopyOptions {
        verify: Verify::ReadBack,
        ..CopyOptions::default()
    };
    let results = copy_batch(&source, &destination, &requests, &options, &NoObserver);
    for (request, result) in requests.iter().zip(results) {
        let copied = result.unwrap();
        let read = |root: &tempfile::TempDir| {
            std::fs::read(root.path().join(request.source.as_os_str())).unwrap()
        };
        assert_eq!(read(&from), read(&to));
        assert_eq!(copied.source.hash, Some(ContentHash::of(&read(&from))));
        assert_eq!(copied.destination.entry.hash, copied.source.hash);
        assert_eq!(copied.destination.entry.mtime, copied.source.mtime);
        assert_eq!(copied.destination.entry.mode, copied.source.mode);
        assert_eq!(copied.destination.flushed, Flushed::Durable);
        assert_eq!(
            hash_file(&destination, &request.source).unwrap().1,
            ContentHash::of(&read(&from))
        );
    }
    assert_eq!(shown(&source), shown(&destination));
    let again = copy_batch(&source, &destination, &requests, &options, &NoObserver);
    assert!(
        again
            .iter()
            .all(|result| matches!(result, Err(CopyError::Commit(_)))),
        "{again:?}"
    );
    assert!(own_names(&to.path().join("d0")).is_empty());
}

#[test]
fn one_file_that_fails_does_not_hold_up_the_others() {
    let (from, source) = empty_root();
    let (to, destination) = empty_root();
    for at in ["a", "z"] {
        write(&from.path().join(at), at.as_bytes());
    }
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mkfifoat(rustix::fs::CWD, from.path().join("fifo"), mode).unwrap();
    let requests =
        ["a", "fifo", "missing/file", "z"].map(|at| request(at, u64::from(at.as_bytes()[0])));
    let results = copy_batch(
        &source,
        &destination,
        &requests,
        &CopyOptions::default(),
        &NoObserver,
    );
    let classes: Vec<_> = results
        .iter()
        .map(|result| result.as_ref().err().map(CopyError::class))
        .collect();
    assert_eq!(
        classes,
        [
            None,
            Some(ErrorClass::Occupied),
            Some(ErrorClass::Vanished),
            None
        ],
        "{results:?}"
    );
    assert_eq!(shown(&destination), ["a", "z"]);
    assert!(own_names(to.path()).is_empty());
}

#[test]
fn r35_a_source_that_changes_while_it_is_read_is_not_committed() {
    struct Appender(std::path::PathBuf, &'static str);
    impl CopyObserver for Appender {
        fn copied_bytes(&self, _count: u64) {
            use std::io::{Seek as _, Write as _};
            let mut file = std::fs::File::options().write(true).open(&self.0).unwrap();
            match self.1 {
                "grows" => {
                    file.seek(std::io::SeekFrom::End(0)).unwrap();
                    file.write_all(b"more").unwrap();
                }
                "shrinks" => file.set_len(10).unwrap(),
                // The old trick: other content, the same length, the time set back.
                _ => {
                    let mtime = file.metadata().unwrap().modified().unwrap();
                    file.write_all(b"XXXX").unwrap();
                    file.set_modified(mtime).unwrap();
                }
            }
        }
    }
    for change in ["grows", "shrinks", "is rewritten"] {
        let (from, source) = empty_root();
        let (to, destination) = empty_root();
        write(&from.path().join("f"), &vec![7; 2 * BUFFER_BYTES]);
        let meddler = Appender(from.path().join("f"), change);
        let options = CopyOptions::default();
        let results = copy_batch(
            &source,
            &destination,
            &[request("f", 1)],
            &options,
            &meddler,
        );
        assert!(
            matches!(results[0], Err(CopyError::SourceChanged { .. })),
            "{change}: {results:?}"
        );
        assert!(shown(&destination).is_empty());
        assert!(own_names(to.path()).is_empty());
    }
}

#[test]
fn what_is_read_back_must_be_what_was_written() {
    struct Damager(std::path::PathBuf);
    impl CopyObserver for Damager {
        fn copied_bytes(&self, _count: u64) {
            // The staged file is on the disk by now; damage it as a bad cable would.
            let staged = std::fs::read_dir(&self.0)
                .unwrap()
                .next()
                .unwrap()
                .unwrap()
                .path();
            write(&staged, b"0123456x89");
        }
    }
    let (from, source) = empty_root();
    let (to, destination) = empty_root();
    write(&from.path().join("f"), b"0123456789");
    let damager = Damager(to.path().to_owned());
    let options = CopyOptions {
        verify: Verify::ReadBack,
        ..CopyOptions::default()
    };
    let results = copy_batch(
        &source,
        &destination,
        &[request("f", 1)],
        &options,
        &damager,
    );
    assert!(
        matches!(results[0], Err(CopyError::Damaged { .. })),
        "{results:?}"
    );
    assert!(shown(&destination).is_empty());
    assert!(own_names(to.path()).is_empty());
}

#[test]
fn a_cancelled_batch_says_which_files_were_not_copied() {
    struct StopAfterFirst(AtomicU64);
    impl CopyObserver for StopAfterFirst {
        fn copied_bytes(&self, _count: u64) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
        fn is_cancelled(&self) -> bool {
            self.0.load(Ordering::SeqCst) > 0
        }
    }
    let (from, source) = empty_root();
    let (_to, destination) = empty_root();
    for at in ["a", "b"] {
        write(&from.path().join(at), b"content");
    }
    let requests = [request("a", 1), request("b", 2)];
    let stop = StopAfterFirst(AtomicU64::new(0));
    let results = copy_batch(
        &source,
        &destination,
        &requests,
        &CopyOptions::default(),
        &stop,
    );
    assert!(results[0].is_ok());
    assert!(matches!(results[1], Err(CopyError::Cancelled)));
}

#[test]
fn new_permissions_are_those_of_any_new_file() {
    let (from, source) = empty_root();
    let (to, destination) = empty_root();
    write(&from.path().join("f"), b"content");
    std::fs::set_permissions(
        from.path().join("f"),
        std::fs::Permissions::from_mode(0o400),
    )
    .unwrap();
    let options = CopyOptions {
        permissions: Permissions::New,
        ..CopyOptions::default()
    };
    let results = copy_batch(
        &source,
        &destination,
        &[request("f", 1)],
        &options,
        &NoObserver,
    );
    assert!(results[0].is_ok());
    write(&from.path().join("ordinary"), b"");
    let mode = |at: std::path::PathBuf| at.metadata().unwrap().mode();
    assert_eq!(
        mode(to.path().join("f")),
        mode(from.path().join("ordinary"))
    );
}

#[test]
fn an_identifier_that_is_used_twice_does_not_mix_two_files_up() {
    let (from, source) = empty_root();
    let (to, destination) = empty_root();
    for at in ["a", "b"] {
        write(&from.path().join(at), at.as_bytes());
    }
    let requests = ["a", "b"].map(|at| request(at, 5));
    let results = copy_batch(
        &source,
        &destination,
        &requests,
        &CopyOptions::default(),
        &NoObserver,
    );
    assert!(results[0].is_ok(), "{results:?}");
    assert!(
        matches!(results[1], Err(CopyError::IdentifierTaken { .. })),
        "{results:?}"
    );
    assert_eq!(std::fs::read(to.path().join("a")).unwrap(), b"a");
}
