//! A store in a temporary directory, and things to put into it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use knarr_core::entry::{Fingerprint, Identity, Kind};
use knarr_core::record::{Action, CustodyRecord, Evidence, StepRecord};
use knarr_core::time::ManualClock;
use knarr_core::tree::Synced;
use knarr_core::{ContentHash, RelPath, Timestamp};
use knarr_store::pairs::{PairId, PairKey};
use knarr_store::synced::Recognise;
use knarr_store::{OpenError, Opened, Store, StoreOptions};
use tempfile::TempDir;

/// When the tests' clock starts.
pub(crate) const START: Timestamp = Timestamp::from_seconds(1_800_000_000);

pub(crate) fn try_open(directory: &Path) -> Result<Opened, OpenError> {
    Store::open(StoreOptions::new(
        directory,
        Arc::new(ManualClock::at(START)),
    ))
}

pub(crate) fn open(directory: &Path) -> Store {
    try_open(directory).unwrap().store
}

/// A fresh store, and the directory it lives in.
pub(crate) struct Fixture {
    pub(crate) store: Store,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) directory: TempDir,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let directory = TempDir::with_prefix("knarr-store-").unwrap();
        let clock = Arc::new(ManualClock::at(START));
        let path = directory.path().join("state");
        let store = Store::open(StoreOptions::new(path, Arc::clone(&clock) as _))
            .unwrap()
            .store;
        Self {
            store,
            clock,
            directory,
        }
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }
}

pub(crate) fn path(text: &str) -> RelPath {
    RelPath::new(text.as_bytes()).unwrap()
}

pub(crate) fn pair(store: &Store, key: &str) -> PairId {
    let known_as = PairKey {
        key: key.to_owned(),
        source: format!("{key} source"),
        destination: format!("{key} destination"),
        job: None,
    };
    store.transact(move |tx| tx.pair(&known_as)).wait().unwrap()
}

pub(crate) fn fingerprint(kind: Kind, size: u64, inode: u64) -> Fingerprint {
    Fingerprint {
        kind,
        size,
        mtime: Some(Timestamp::from_seconds(1_700_000_000 + size.cast_signed())),
        identity: Some(Identity::Inode(inode)),
        link_target: None,
    }
}

pub(crate) fn synced(text: &str, kind: Kind, inode: u64) -> Synced {
    Synced {
        path: path(text),
        source: fingerprint(kind, 10, inode),
        destination: fingerprint(kind, 10, inode + 1_000_000),
        destination_path: None,
        hash: (kind == Kind::File).then(|| ContentHash::of(text.as_bytes())),
    }
}

pub(crate) fn record(text: &str, action: Action) -> CustodyRecord {
    CustodyRecord {
        at: START,
        run: 7,
        job: "sensors".to_owned(),
        path: path(text),
        action,
        source: format!("/in/{text}"),
        destination: format!("archive:raw/{text}"),
        size: 1_234,
        mtime: Some(Timestamp::from_nanoseconds(-5)),
        source_hash: Some(ContentHash::of(text.as_bytes())),
        evidence: Evidence::ServerChecksum {
            algorithm: "crc64nvme".to_owned(),
            value: "AAAA".to_owned(),
        },
        seen_at: None,
        complete_because: Some("closed after write".to_owned()),
        steps: vec![StepRecord {
            step: "decompress".to_owned(),
            detail: "gzip, 2 members".to_owned(),
            input_bytes: 100,
            output_bytes: 1_234,
        }],
        attempt: 2,
        moved_bytes: 1_234,
        duration_microseconds: 5_678,
        message: None,
        decided_by: "plan".to_owned(),
    }
}

/// Puts something into every part of a store, so that there is something to damage.
pub(crate) fn fill(store: &Store, files: u64) -> PairId {
    use knarr_store::dirty::{Mark, Seen};
    let pair = pair(store, "filled");
    store
        .transact(move |tx| {
            let entries: Vec<Synced> = (0..files)
                .map(|number| synced(&format!("d{}/f{number:06}", number % 7), Kind::File, number))
                .collect();
            tx.upsert_synced(pair, Recognise::Both, &entries)?;
            let marks: Vec<Mark> = (0..files / 2)
                .map(|number| Mark {
                    path: path(&format!("new/f{number:06}")),
                    kind: Kind::File,
                    observed: Some(fingerprint(Kind::File, number, number)),
                    seen: Seen::Scan,
                    at: START,
                    ready_at: START,
                    complete_because: None,
                    renamed_from: None,
                })
                .collect();
            tx.mark_dirty(pair, &marks)?;
            let records: Vec<CustodyRecord> = (0..files)
                .map(|number| record(&format!("d/f{number:06}"), Action::Created))
                .collect();
            tx.append_custody(&records)?;
            tx.set_setting("colour", "red")
        })
        .wait()
        .unwrap();
    pair
}

/// Copies the files of a store as they lie on the disk right now.
pub(crate) fn copy_state(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for name in ["knarr.db", "knarr.db-wal"] {
        if from.join(name).exists() {
            std::fs::copy(from.join(name), to.join(name)).unwrap();
        }
    }
}
