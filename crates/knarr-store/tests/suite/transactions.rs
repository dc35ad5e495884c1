//! Group commit: who is answered when, and what a failure takes with it.

use std::sync::mpsc;
use std::time::Duration;

use knarr_fs::ErrorClass;
use knarr_store::{Pending, QUEUED_TRANSACTIONS, StoreError};
use knarr_testkit::small_disk::SmallDisk;

use crate::fixture::{Fixture, open};

/// Keeps the writer busy until told otherwise.
fn hold_up(fixture: &Fixture) -> (mpsc::Sender<()>, Pending<()>) {
    let (release, released) = mpsc::channel();
    let (begun, begins) = mpsc::channel();
    let pending = fixture.store.transact(move |_| {
        begun.send(()).unwrap();
        released.recv().ok();
        Ok(())
    });
    begins.recv().unwrap();
    (release, pending)
}

/// How many commits stand in the log: frames that say how large the database is after them.
fn commits_in_log(fixture: &Fixture) -> usize {
    let log = std::fs::read(fixture.state().join("knarr.db-wal")).unwrap();
    let salt = &log[16..24];
    log[32..]
        .chunks_exact(24 + 4096)
        .filter(|frame| frame[8..16] == *salt && frame[4..8] != [0; 4])
        .count()
}

#[test]
fn transactions_that_wait_together_share_one_commit() {
    let fixture = Fixture::new();
    let (release, first) = hold_up(&fixture);
    let pending: Vec<_> = (0..100)
        .map(|number| {
            fixture
                .store
                .transact(move |tx| tx.set_setting(&format!("n{number}"), "there"))
        })
        .collect();
    let before = commits_in_log(&fixture);
    release.send(()).unwrap();
    first.wait().unwrap();
    for pending in pending {
        pending.wait().unwrap();
    }
    let commits = commits_in_log(&fixture) - before;
    // The first was alone when it began, so it has a commit of its own at most.
    assert!((1..=2).contains(&commits), "{commits} commits");
}

#[test]
fn a_transaction_that_fails_undoes_only_itself() {
    let fixture = Fixture::new();
    let (release, first) = hold_up(&fixture);
    let pending: Vec<_> = (0..20_u64)
        .map(|number| {
            fixture.store.transact(move |tx| {
                tx.set_setting(&format!("n{number}"), "there")?;
                match number % 3 {
                    0 => Err(StoreError::Unknown {
                        what: "number",
                        id: number,
                    }),
                    1 => panic!("on purpose"),
                    _ => Ok(number),
                }
            })
        })
        .collect();
    release.send(()).unwrap();
    first.wait().unwrap();
    for (number, pending) in (0_u64..).zip(pending) {
        match (number % 3, pending.wait()) {
            (0, Err(StoreError::Unknown { id, .. })) => assert_eq!(id, number),
            (1, Err(StoreError::Panicked { message })) => assert_eq!(message, "on purpose"),
            (2, Ok(answer)) => assert_eq!(answer, number),
            (_, answer) => panic!("{number}: {answer:?}"),
        }
        let kept = fixture
            .store
            .read(|reader| reader.setting(&format!("n{number}")))
            .unwrap();
        assert_eq!(kept.is_some(), number % 3 == 2, "{number}");
    }
}

#[test]
fn a_lonely_transaction_that_fails_leaves_nothing() {
    let fixture = Fixture::new();
    let result = fixture.store.transact(|tx| {
        tx.set_setting("a", "b")?;
        Err::<(), _>(StoreError::Unknown {
            what: "thing",
            id: 1,
        })
    });
    assert!(result.wait().is_err());
    assert_eq!(
        fixture.store.read(|reader| reader.setting("a")).unwrap(),
        None
    );
    fixture
        .store
        .transact(|tx| tx.set_setting("a", "c"))
        .wait()
        .unwrap();
}

#[test]
fn beyond_the_limit_of_the_queue_transactions_wait_for_room_and_all_run() {
    let fixture = Fixture::new();
    let (release, first) = hold_up(&fixture);
    let count = QUEUED_TRANSACTIONS + 300;
    let pending: Vec<_> = (0..count)
        .map(|number| {
            fixture
                .store
                .transact(move |tx| tx.set_setting(&number.to_string(), "x"))
        })
        .collect();
    release.send(()).unwrap();
    first.wait().unwrap();
    for pending in pending {
        pending.wait().unwrap();
    }
    for number in [0, QUEUED_TRANSACTIONS, count - 1] {
        let kept = fixture
            .store
            .read(|reader| reader.setting(&number.to_string()))
            .unwrap();
        assert_eq!(kept.as_deref(), Some("x"));
    }
}

#[test]
fn one_that_waits_for_room_hears_that_the_store_was_closed() {
    let fixture = Fixture::new();
    let (release, first) = hold_up(&fixture);
    let pending: Vec<_> = (0..QUEUED_TRANSACTIONS + 1)
        .map(|_| fixture.store.transact(|tx| tx.set_setting("last", "word")))
        .collect();
    release.send(()).unwrap();
    let state = fixture.state();
    let Fixture {
        store, directory, ..
    } = fixture;
    drop(store);
    first.wait().unwrap();
    let results: Vec<_> = pending.into_iter().map(Pending::wait).collect();
    assert!(results[..QUEUED_TRANSACTIONS].iter().all(Result::is_ok));
    assert!(matches!(
        results[QUEUED_TRANSACTIONS],
        Err(StoreError::Closed)
    ));
    drop(open(&state));
    drop(directory);
}

#[test]
fn closing_carries_out_what_was_submitted_though_nobody_waits() {
    let fixture = Fixture::new();
    for number in 0..50 {
        drop(
            fixture
                .store
                .transact(move |tx| tx.set_setting(&number.to_string(), "x")),
        );
    }
    let state = fixture.state();
    let Fixture {
        store, directory, ..
    } = fixture;
    drop(store);
    assert!(
        !state.join("knarr.db-wal").exists(),
        "the log was brought home"
    );
    let kept = open(&state).read(|reader| reader.setting("49")).unwrap();
    assert_eq!(kept.as_deref(), Some("x"));
    drop(directory);
}

#[test]
fn a_transaction_can_hold_the_last_clone_of_the_store() {
    let fixture = Fixture::new();
    let state = fixture.state();
    let clone = fixture.store.clone();
    let pending = fixture.store.transact(move |tx| {
        tx.set_setting("directory", &clone.directory().display().to_string())?;
        drop(clone);
        Ok(())
    });
    let Fixture {
        store, directory, ..
    } = fixture;
    drop(store);
    pending.wait().unwrap();
    knarr_testkit::wait_until(Duration::from_secs(10), "the thread to end", || {
        open(&state)
            .read(|reader| reader.setting("directory"))
            .unwrap()
            .is_some()
    });
    drop(directory);
}

#[test]
fn it_can_be_awaited() {
    let fixture = Fixture::new();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .build()
        .unwrap();
    let store = fixture.store.clone();
    runtime.block_on(async move {
        store.transact(|tx| tx.set_setting("a", "b")).await.unwrap();
        let kept = store
            .read_async(|reader| reader.setting("a"))
            .await
            .unwrap();
        assert_eq!(kept.as_deref(), Some("b"));
    });
}

#[test]
fn many_threads_write_and_read_at_once() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    std::thread::scope(|scope| {
        for thread in 0..8 {
            scope.spawn(move || {
                for number in 0..50 {
                    let name = format!("{thread}.{number}");
                    let kept = name.clone();
                    store
                        .transact(move |tx| tx.set_setting(&kept, "x"))
                        .wait()
                        .unwrap();
                    assert!(
                        store
                            .read(|reader| reader.setting(&name))
                            .unwrap()
                            .is_some()
                    );
                }
            });
        }
        for _ in 0..12 {
            scope.spawn(move || {
                for _ in 0..100 {
                    store.read(|reader| reader.pairs()).unwrap();
                }
            });
        }
    });
}

#[test]
fn a_read_is_one_snapshot() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    store
        .read(|reader| {
            assert_eq!(reader.setting("a")?, None);
            store.transact(|tx| tx.set_setting("a", "b")).wait()?;
            assert_eq!(reader.setting("a")?, None);
            Ok(())
        })
        .unwrap();
    assert!(store.read(|reader| reader.setting("a")).unwrap().is_some());
}

#[test]
fn r11_when_the_disk_is_full_nothing_is_acknowledged_and_space_heals_it() {
    knarr_testkit::needs_root!("a small disk");
    let disk = SmallDisk::new(4 << 20, 1_000);
    let state = disk.path().join("state");
    let store = open(&state);
    let ballast = disk.path().join("ballast");
    std::fs::write(&ballast, vec![1; 1 << 20]).unwrap();
    let mut acknowledged = 0_u64;
    let error = loop {
        let name = format!("n{acknowledged}");
        match store
            .transact(move |tx| tx.set_setting(&name, &"x".repeat(10_000)))
            .wait()
        {
            Ok(()) => acknowledged += 1,
            Err(error) => break error,
        }
        assert!(acknowledged < 10_000, "the disk is never full");
    };
    assert_eq!(error.class(), ErrorClass::NoSpace, "{error:?}");
    let there = |number: u64| {
        store
            .read(|reader| reader.setting(&format!("n{number}")))
            .unwrap()
            .is_some()
    };
    assert!(acknowledged > 0 && (0..acknowledged).all(there));
    assert!(!there(acknowledged));
    std::fs::remove_file(&ballast).unwrap();
    store
        .transact(|tx| tx.set_setting("after", "all"))
        .wait()
        .unwrap();
    drop(store);
    let store = open(&state);
    let kept = store.read(|reader| reader.setting("after")).unwrap();
    assert_eq!(kept.as_deref(), Some("all"));
    assert_eq!(store.check().unwrap(), None);
}

#[test]
fn r16_a_lock_of_another_process_is_waited_for() {
    let fixture = Fixture::new();
    let script = "import sqlite3, sys, time\n\
        connection = sqlite3.connect(sys.argv[1], isolation_level=None)\n\
        connection.execute('BEGIN EXCLUSIVE')\n\
        print('locked', flush=True)\n\
        time.sleep(5)\n\
        connection.execute('ROLLBACK')\n";
    let mut child = std::process::Command::new("python3")
        .args(["-c", script])
        .arg(fixture.state().join("knarr.db"))
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut output = std::io::BufReader::new(child.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut output, &mut line).unwrap();
    assert_eq!(line, "locked\n");
    // Reads are not held up, writes wait, a second opening works.
    fixture.store.read(|reader| reader.pairs()).unwrap();
    let pending = fixture.store.transact(|tx| tx.set_setting("a", "b"));
    let second = open(&fixture.state());
    pending.wait().unwrap();
    second
        .transact(|tx| tx.set_setting("c", "d"))
        .wait()
        .unwrap();
    child.wait().unwrap();
}

#[tokio::test]
async fn settings_of_one_prefix_are_listed_in_the_order_of_their_names() {
    let fixture = Fixture::new();
    let write = |tx: &mut knarr_store::Tx<'_>| {
        for name in [
            "own.1.b",
            "own.1.a",
            "own.10.x",
            "own.1",
            "own.1/x",
            "other.1.a",
        ] {
            tx.set_setting(name, name)?;
        }
        Ok(())
    };
    fixture.store.transact(write).await.unwrap();
    let below = |prefix: &'static str, after: &'static str, limit| {
        let read = fixture
            .store
            .read(|reader| reader.settings_below(prefix, after, limit));
        let names = read.unwrap().into_iter().map(|(name, text)| {
            assert_eq!(format!("{prefix}{name}"), text);
            name
        });
        names.collect::<Vec<_>>()
    };
    assert_eq!(below("own.1.", "", 10), ["a", "b"]);
    assert_eq!(below("own.1.", "", 1), ["a"]);
    assert_eq!(below("own.1.", "a", 10), ["b"]);
    assert_eq!(below("own.1.", "b", 10), [""; 0]);
    assert_eq!(below("own.2.", "", 10), [""; 0]);
}
