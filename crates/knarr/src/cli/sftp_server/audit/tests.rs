use std::sync::Arc;

use knarr_core::record::Action;
use knarr_core::time::SystemClock;
use knarr_serve::event::{LogIn, Method, ServeEvent, ServeObserver as _, SessionName};
use knarr_serve::files::{FileError, Operation};
use knarr_store::chain::ChainVerdict;
use knarr_store::custody::ChainedRecord;
use knarr_store::{Store, StoreOptions};

use super::Audit;

fn session() -> SessionName {
    SessionName {
        number: 7,
        peer: "198.51.100.7:50122".parse().unwrap(),
    }
}

fn store(directory: &tempfile::TempDir) -> Store {
    let options = StoreOptions::new(directory.path(), Arc::new(SystemClock));
    Store::open(options).unwrap().store
}

fn all(store: &Store) -> Vec<ChainedRecord> {
    let verdict = store.verify_chain(None).unwrap();
    assert!(matches!(verdict, ChainVerdict::Intact(_)), "{verdict:?}");
    store.custody_cursor(1).map(Result::unwrap).collect()
}

fn operation<'a>(
    session: &'a SessionName,
    operation: Operation,
    path: &'a [u8],
    outcome: Result<(), &'a FileError>,
) -> ServeEvent<'a> {
    ServeEvent::Operation {
        session,
        user: "acme",
        operation,
        path,
        other: None,
        outcome,
    }
}

#[test]
fn many_clients_that_change_things_at_once_wait_for_the_disk_and_no_record_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    let audit = Arc::new(Audit::start(store.clone()).unwrap());
    // Four times as many as may wait.
    let clients: Vec<_> = (0..8)
        .map(|client| {
            let audit = Arc::clone(&audit);
            std::thread::spawn(move || {
                let session = session();
                for number in 0..2_048 {
                    let path = format!("/client {client}/{number}");
                    audit.observe(&operation(
                        &session,
                        Operation::Mkdir,
                        path.as_bytes(),
                        Ok(()),
                    ));
                }
            })
        })
        .collect();
    for client in clients {
        client.join().unwrap();
    }
    audit.end();
    let records = all(&store);
    assert_eq!(records.len(), 8 * 2_048);
    assert!(records.iter().all(|chained| {
        chained.record.action == Action::Changed && chained.record.decided_by == "acme"
    }));
}

#[test]
fn h45_log_ins_that_are_refused_by_the_thousand_are_few_records_and_the_right_count() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    let audit = Audit::start(store.clone()).unwrap();
    let session = session();
    let log_in = |user, outcome, fingerprint| {
        audit.observe(&ServeEvent::LogIn {
            session: &session,
            user,
            method: Method::Key,
            fingerprint,
            outcome,
        });
    };
    for _ in 0..5_000 {
        log_in("a\u{1b}[31mdmin", LogIn::UnknownUser, Some("SHA256:abc"));
    }
    log_in("acme", LogIn::Accepted, Some("SHA256:def"));
    audit.end();
    let records = all(&store);
    assert_eq!(records.len(), 7, "{records:#?}");
    let message = |index: usize| records[index].record.message.clone().unwrap();
    assert_eq!(
        message(0),
        "no such user, by publickey SHA256:abc, session 7"
    );
    assert!(!records[0].record.source.contains('\u{1b}'));
    assert_eq!(records[5].record.action, Action::LoggedIn);
    assert_eq!(message(5), "by publickey SHA256:def, session 7");
    assert_eq!(
        message(6),
        "4995 more log-ins from 198.51.100.7 within 5 minutes"
    );
}

#[test]
fn what_is_refused_is_recorded_and_what_is_not_there_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    let audit = Audit::start(store.clone()).unwrap();
    let session = session();
    let denied = FileError::Denied {
        reason: "not allowed",
    };
    let long = vec![b'x'; 100_000];
    for (what, path, error) in [
        (Operation::Open, &b"/in/../../etc/passwd"[..], &denied),
        (Operation::Open, b"/nothing", &FileError::NotFound),
        (Operation::Remove, b"\0", &denied),
        (Operation::Mkdir, &long, &denied),
    ] {
        audit.observe(&operation(&session, what, path, Err(error)));
    }
    audit.observe(&operation(&session, Operation::Opendir, b"/", Ok(())));
    audit.end();
    let records = all(&store);
    assert_eq!(records.len(), 3, "{records:#?}");
    assert!(
        records
            .iter()
            .all(|chained| chained.record.action == Action::Refused)
    );
    assert_eq!(records[0].record.path.to_string(), "etc/passwd");
    assert_eq!(
        records[0].record.message.as_deref(),
        Some("open, permission denied: not allowed, session 7")
    );
    for odd in &records[1..] {
        assert_eq!(odd.record.path.to_string(), "*");
        assert!(odd.record.message.as_ref().unwrap().len() < 1_000);
    }
}
