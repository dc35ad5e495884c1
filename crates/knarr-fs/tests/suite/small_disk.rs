//! A disk that is full or read-only.

use knarr_fs::copy::{CopyOptions, CopyRequest, NoObserver, copy_batch};
use knarr_fs::root::Replace;
use knarr_fs::stage::{StagedFile, Start};
use knarr_fs::{ErrorClass, Root};
use knarr_testkit::small_disk::SmallDisk;

use crate::support::{empty_root, own_names, path, put, shown, write};

#[test]
fn r10_a_full_disk_stops_the_file_and_leaves_the_old_one() {
    knarr_testkit::needs_root!("mounting a small disk");
    let disk = SmallDisk::new(4 << 20, 100);
    let root = Root::open(disk.path()).unwrap();
    put(&root, "f", b"old", Replace::Nothing).unwrap();
    let mut file = StagedFile::create(&root, &path("f"), 1, Start::New).unwrap();
    assert_eq!(
        file.reserve(64 << 20).unwrap_err().class(),
        ErrorClass::NoSpace
    );
    let piece = vec![1; 1 << 20];
    let error = std::iter::repeat_with(|| file.write(&piece))
        .take(8)
        .find_map(Result::err);
    let error = error.expect("four of the eight MiB do not fit");
    assert_eq!(error.class(), ErrorClass::NoSpace);
    // What was written can be continued once there is room.
    let position = file.position();
    assert!(position >= 1 << 20);
    drop(file);
    disk.resize(32 << 20, 100);
    StagedFile::create(&root, &path("f"), 1, Start::Resume { offset: position })
        .unwrap()
        .abort();
    assert_eq!(std::fs::read(disk.path().join("f")).unwrap(), b"old");
    assert!(own_names(disk.path()).is_empty());
}

#[test]
fn r12_a_batch_on_a_disk_without_inodes_copies_what_fits_and_says_what_does_not() {
    knarr_testkit::needs_root!("mounting a small disk");
    let (from, source) = empty_root();
    let disk = SmallDisk::new(4 << 20, 10);
    let destination = Root::open(disk.path()).unwrap();
    assert!(destination.space().unwrap().free_inodes.unwrap() < 10);
    let requests: Vec<CopyRequest> = (0..20)
        .map(|id| {
            let at = path(format!("f{id:02}"));
            write(&from.path().join(at.as_os_str()), b"content");
            CopyRequest {
                source: at.clone(),
                destination: at,
                id,
                replace: Replace::Nothing,
            }
        })
        .collect();
    let results = copy_batch(
        &source,
        &destination,
        &requests,
        &CopyOptions::default(),
        &NoObserver,
    );
    let copied = results.iter().filter(|result| result.is_ok()).count();
    assert!((5..10).contains(&copied), "{copied}");
    for error in results.into_iter().filter_map(Result::err) {
        assert_eq!(error.class(), ErrorClass::NoSpace, "{error:?}");
    }
    assert_eq!(shown(&destination).len(), copied);
    assert!(own_names(disk.path()).is_empty());
}

#[test]
fn r09_a_read_only_disk_is_a_state_of_its_own_and_passes() {
    knarr_testkit::needs_root!("mounting a small disk");
    let disk = SmallDisk::new(4 << 20, 100);
    let root = Root::open(disk.path()).unwrap();
    disk.make_read_only();
    let error = StagedFile::create(&root, &path("f"), 1, Start::New).unwrap_err();
    assert_eq!(error.class(), ErrorClass::ReadOnly);
    disk.make_writable();
    put(&root, "f", b"content", Replace::Nothing).unwrap();
}
