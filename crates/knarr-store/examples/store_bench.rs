//! How fast the store is with a million entries: `cargo run --release -p knarr-store --example store_bench`.
#![expect(
    clippy::print_stdout,
    reason = "a measuring program prints what it measured"
)]

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use knarr_core::entry::{Fingerprint, Identity, Kind};
use knarr_core::record::{Action, CustodyRecord, Evidence};
use knarr_core::time::SystemClock;
use knarr_core::tree::Synced;
use knarr_core::{ContentHash, RelPath, Timestamp};
use knarr_store::dirty::{Mark, Seen};
use knarr_store::pairs::{PairId, PairKey};
use knarr_store::synced::Recognise;
use knarr_store::{Pending, Store, StoreError, StoreOptions};

const ENTRIES: u64 = 1_000_000;
const BATCH: u64 = 2_000;

fn path(number: u64) -> RelPath {
    let text = format!(
        "station-{:03}/2026/{:02}/reading-{number:07}.csv.gz",
        number / 5_000,
        number % 12
    );
    RelPath::new(text.into_bytes()).expect("made of valid parts")
}

fn fingerprint(number: u64) -> Fingerprint {
    Fingerprint {
        kind: Kind::File,
        size: number * 37,
        mtime: Some(Timestamp::from_seconds(
            1_700_000_000 + number.cast_signed(),
        )),
        identity: Some(Identity::Inode(number + 10_000_000)),
        link_target: None,
    }
}

fn synced(number: u64) -> Synced {
    Synced {
        path: path(number),
        source: fingerprint(number),
        destination: fingerprint(number),
        destination_path: None,
        hash: Some(ContentHash::from_bytes([7; 32])),
    }
}

fn record(number: u64) -> CustodyRecord {
    CustodyRecord {
        at: Timestamp::from_seconds(1_700_000_000),
        run: 1,
        job: "sensors".to_owned(),
        path: path(number),
        action: Action::Created,
        source: "/srv/sftp/acme/upload".to_owned(),
        destination: "archive:raw/2026/11/21".to_owned(),
        size: number * 37,
        mtime: Some(Timestamp::from_seconds(1_700_000_000)),
        source_hash: Some(ContentHash::from_bytes([7; 32])),
        evidence: Evidence::Written {
            hash: ContentHash::from_bytes([7; 32]),
        },
        seen_at: None,
        complete_because: None,
        steps: Vec::new(),
        attempt: 1,
        moved_bytes: number,
        duration_microseconds: 1_500,
        message: None,
        decided_by: "plan".to_owned(),
    }
}

/// Runs `work` on `0..total` in batches, a few of them under way at a time, and prints the rate.
fn measure(
    what: &str,
    total: u64,
    mut submit: impl FnMut(u64, u64) -> Pending<()>,
) -> Result<(), StoreError> {
    let start = Instant::now();
    let mut under_way = std::collections::VecDeque::new();
    for first in (0..total).step_by(usize::try_from(BATCH).unwrap_or(usize::MAX)) {
        under_way.push_back(submit(first, (first + BATCH).min(total)));
        if under_way.len() > 8
            && let Some(oldest) = under_way.pop_front()
        {
            oldest.wait()?;
        }
    }
    for pending in under_way {
        pending.wait()?;
    }
    report(what, total, start.elapsed());
    Ok(())
}

/// Seconds of CPU that this process used so far, in steps of 10 ms.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks = fields.split_whitespace().skip(11).take(2);
    ticks
        .filter_map(|field| field.parse::<f64>().ok())
        .sum::<f64>()
        / 100.0
}

/// CPU time at the last report, in milliseconds.
static REPORTED: AtomicU64 = AtomicU64::new(0);

fn report(what: &str, count: u64, time: Duration) {
    let cpu = cpu_seconds();
    let before = REPORTED.swap((cpu * 1_000.0) as u64, Ordering::Relaxed);
    let cpu = cpu - before as f64 / 1_000.0;
    let seconds = time.as_secs_f64();
    let resident = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = resident
        .lines()
        .find(|line| line.starts_with("VmRSS"))
        .unwrap_or_default()
        .split_whitespace()
        .nth(1)
        .and_then(|kibibytes| kibibytes.parse::<f64>().ok())
        .unwrap_or(0.0);
    println!(
        "{what:<44} {seconds:>8.3} s  {:>12.0} /s  CPU {cpu:>6.2} s  resident {:>6.1} MiB",
        count as f64 / seconds,
        resident / 1024.0
    );
}

fn main() -> Result<(), Box<dyn Error>> {
    let directory = std::env::args_os()
        .nth(1)
        .ok_or("usage: store_bench EMPTY-DIRECTORY")?;
    let options = || StoreOptions::new(directory.clone(), Arc::new(SystemClock));
    let start = Instant::now();
    let store = Store::open(options())?.store;
    report("open, fresh", 1, start.elapsed());
    let known_as = PairKey {
        key: "bench".to_owned(),
        source: "source".to_owned(),
        destination: "destination".to_owned(),
        job: None,
    };
    let pair = store.transact(move |tx| tx.pair(&known_as)).wait()?;
    trees(&store, pair)?;
    queue_and_record(&store, pair)?;
    let start = Instant::now();
    for number in 0..500 {
        store
            .transact(move |tx| tx.set_setting("n", &format!("{number}")))
            .wait()?;
    }
    report("lone transactions, one flush each", 500, start.elapsed());
    drop(store);
    let start = Instant::now();
    let store = Store::open(options())?.store;
    report("open, a million entries", 1, start.elapsed());
    let start = Instant::now();
    let defect = store.check()?;
    report("check every page and index", 1, start.elapsed());
    println!("defect: {defect:?}");
    let start = Instant::now();
    let count = store.synced_cursor(pair, b"").count() as u64;
    report("scan after opening", count, start.elapsed());
    Ok(())
}

fn trees(store: &Store, pair: PairId) -> Result<(), StoreError> {
    for (what, recognise) in [
        (
            "insert, identities of the source indexed",
            Recognise::Source,
        ),
        ("update, the same", Recognise::Source),
        ("update, identities of both sides indexed", Recognise::Both),
    ] {
        measure(what, ENTRIES, |from, to| {
            store.transact(move |tx| {
                let entries: Vec<_> = (from..to).map(synced).collect();
                tx.upsert_synced(pair, recognise, &entries)
            })
        })?;
    }
    for _ in 0..2 {
        let start = Instant::now();
        let count = store.synced_cursor(pair, b"").filter(Result::is_ok).count() as u64;
        report("scan in tree order, decoded", count, start.elapsed());
    }
    let start = Instant::now();
    let moved = store.transact(move |tx| {
        let from = RelPath::new(*b"station-010").expect("a path");
        let to = RelPath::new(*b"renamed/station-010").expect("a path");
        tx.rename_synced(pair, &from, &to)
    });
    report("rename a directory", moved.wait()?, start.elapsed());
    let start = Instant::now();
    let count = 100_000;
    store.read(|reader| {
        for number in 0..count {
            reader.synced(pair, &path(number * 7_919 % ENTRIES))?;
        }
        Ok(())
    })?;
    report("look up at random", count, start.elapsed());
    Ok(())
}

fn queue_and_record(store: &Store, pair: PairId) -> Result<(), StoreError> {
    let now = Timestamp::from_seconds(1_800_000_000);
    let total = 100_000;
    measure("mark dirty", total, |from, to| {
        store.transact(move |tx| {
            let marks: Vec<_> = (from..to)
                .map(|number| Mark {
                    path: path(number),
                    kind: Kind::File,
                    observed: Some(fingerprint(number)),
                    seen: Seen::Event,
                    at: now,
                    ready_at: now,
                    complete_because: None,
                    renamed_from: None,
                })
                .collect();
            tx.mark_dirty(pair, &marks)
        })
    })?;
    let start = Instant::now();
    let mut after = Vec::new();
    loop {
        let ready = store.read(|reader| reader.ready(pair, now, &after, 1_000))?;
        let Some(last) = ready.last() else { break };
        after = last.path.order_key(last.kind).into_owned();
        store
            .transact(move |tx| {
                ready
                    .iter()
                    .try_for_each(|dirty| tx.settle(pair, &dirty.path, dirty.generation).map(drop))
            })
            .wait()?;
    }
    report(
        "take 1,000 and settle them, until done",
        total,
        start.elapsed(),
    );
    measure("append custody records", ENTRIES, |from, to| {
        store.transact(move |tx| {
            let records: Vec<_> = (from..to).map(record).collect();
            tx.append_custody(&records).map(drop)
        })
    })?;
    let start = Instant::now();
    let verdict = store.verify_chain(None)?;
    report("verify the chain", ENTRIES, start.elapsed());
    println!("verdict: {verdict:?}");
    let start = Instant::now();
    let of = knarr_store::history::TracePath::Exact(path(777_777));
    let found = store.read(|reader| reader.trace(&of, 10))?;
    report("trace one path", found.len() as u64, start.elapsed());
    Ok(())
}
