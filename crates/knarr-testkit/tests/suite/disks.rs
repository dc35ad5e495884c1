//! Disks that lose power and disks that are full.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};

use knarr_testkit::needs_root;
use knarr_testkit::powercut::LoopDisk;
use knarr_testkit::small_disk::SmallDisk;

#[test]
fn a_power_cut_loses_what_was_not_flushed_and_keeps_what_was() {
    needs_root!("a loop mount");
    let mut disk = LoopDisk::new(32);
    let mut kept = File::create(disk.path().join("kept")).unwrap();
    kept.write_all(&[1; 50_000]).unwrap();
    kept.sync_all().unwrap();
    File::open(disk.path()).unwrap().sync_all().unwrap();
    fs::write(disk.path().join("lost"), [2; 50_000]).unwrap();
    disk.cut_power();
    assert!(fs::write(disk.path().join("after"), b"x").is_err());
    drop(kept);
    disk.remount();
    assert_eq!(fs::read(disk.path().join("kept")).unwrap(), [1; 50_000]);
    assert_eq!(
        fs::metadata(disk.path().join("lost")).map_or(0, |metadata| metadata.len()),
        0
    );
    assert!(!disk.path().join("after").exists());
}

#[test]
fn a_small_disk_runs_out_of_bytes_and_of_inodes() {
    needs_root!("mounting a small disk");
    let disk = SmallDisk::new(1 << 20, 5);
    let full = fs::write(disk.path().join("large"), vec![0; 2 << 20]).unwrap_err();
    assert_eq!(full.kind(), ErrorKind::StorageFull);
    fs::remove_file(disk.path().join("large")).unwrap();
    let created = (0..10).take_while(|n| File::create(disk.path().join(n.to_string())).is_ok());
    assert_eq!(created.count(), 4);
    disk.resize(4 << 20, 100);
    fs::write(disk.path().join("large"), vec![0; 2 << 20]).unwrap();
    disk.make_read_only();
    let error = fs::write(disk.path().join("large"), b"x").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem);
    disk.make_writable();
}
