//! Knarr's own small files, and locks.

use std::os::unix::fs::PermissionsExt as _;

use knarr_fs::FsError;
use knarr_fs::durable::{read_limited, write_file};
use knarr_fs::lock::{FileLock, LockError, LockMode};

use crate::support::own_names;

#[test]
fn a_small_file_is_replaced_whole_and_read_with_a_limit() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path().join("key");
    assert_eq!(read_limited(&at, 10).unwrap(), None);
    write_file(&at, b"0123456789", 0o600).unwrap();
    assert_eq!(at.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(
        read_limited(&at, 10).unwrap().as_deref(),
        Some(&b"0123456789"[..])
    );
    let error = read_limited(&at, 9).unwrap_err();
    assert!(
        matches!(
            error,
            FsError::Length {
                expected: 9,
                found: 10,
                ..
            }
        ),
        "{error}"
    );
    write_file(&at, b"new", 0o640).unwrap();
    assert_eq!(read_limited(&at, 10).unwrap().as_deref(), Some(&b"new"[..]));
    assert!(own_names(directory.path()).is_empty());
    assert!(write_file(&directory.path().join("missing/key"), b"", 0o600).is_err());
    assert!(matches!(
        read_limited(directory.path(), 9),
        Err(FsError::NotAFile { .. })
    ));
}

#[test]
fn a_lock_is_held_by_one_and_says_by_whom() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path().join("lock");
    let held = FileLock::acquire(&at, LockMode::Exclusive, "knarr run").unwrap();
    for mode in [LockMode::Exclusive, LockMode::Shared] {
        let error = FileLock::acquire(&at, mode, "knarr copy a b").unwrap_err();
        let LockError::Held { holder, .. } = &error else {
            panic!("{error:?}")
        };
        assert_eq!(
            *holder,
            format!("process {}, knarr run", std::process::id())
        );
        assert!(error.to_string().contains(holder.as_str()));
    }
    drop(held);
    let first = FileLock::acquire(&at, LockMode::Shared, "reading").unwrap();
    let second = FileLock::acquire(&at, LockMode::Shared, "reading").unwrap();
    assert!(FileLock::acquire(&at, LockMode::Exclusive, "writing").is_err());
    drop((first, second));
    FileLock::acquire(&at, LockMode::Exclusive, "writing").unwrap();
}
