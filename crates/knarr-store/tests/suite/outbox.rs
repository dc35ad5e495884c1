//! What waits to be told, what is known of alerts, and what followers have.

use std::time::Duration;

use knarr_core::alert::{Condition, Event, Recovery, Rule, Severity, Subject, What, step};
use knarr_core::{RelPath, Timestamp};
use knarr_store::events::{EventId, FileEvent, NewEvent};
use knarr_store::outbox::{
    Enqueued, MessageKind, NewMessage, OutboxFilter, OutboxId, PAGE_BYTES, Stored,
};
use knarr_store::runs::RunId;
use knarr_store::{Store, StoreError};

use crate::fixture::{Fixture, START, open, path, record};

fn message(key: &str, target: &str, job: &str) -> NewMessage {
    NewMessage {
        key: key.to_owned(),
        target: target.to_owned(),
        job: job.to_owned(),
        run: Some(RunId(7)),
        kind: MessageKind::AfterFile,
        payload: r#"{"path":"a"}"#.to_owned(),
        due_at: START,
    }
}

fn enqueue(store: &Store, messages: Vec<NewMessage>) -> Vec<Enqueued> {
    store
        .transact(move |tx| messages.iter().map(|message| tx.enqueue(message)).collect())
        .wait()
        .unwrap()
}

fn all(store: &Store, filter: OutboxFilter) -> Vec<Stored> {
    store
        .read(|reader| reader.outbox(filter, None, OutboxId::FIRST, 1_000))
        .unwrap()
}

fn lane(store: &Store, target: &str, job: &str) -> Vec<String> {
    store
        .read(|reader| reader.outbox_lane(target, job, 100))
        .unwrap()
        .into_iter()
        .map(|stored| stored.message.key)
        .collect()
}

#[test]
fn k8_one_key_is_one_row_and_it_stands_until_it_is_done_also_after_a_restart() {
    let fixture = Fixture::new();
    let written = enqueue(
        &fixture.store,
        vec![message("k1", "erp", "a"), message("k1", "erp", "a")],
    );
    let Enqueued::New(id) = written[0] else {
        panic!("the first is new")
    };
    assert_eq!(written[1], Enqueued::Known);
    let state = fixture.state();
    drop(fixture.store);
    let store = open(&state);
    let found = all(&store, OutboxFilter::Waiting);
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].id, found[0].created_at), (id, START));
    assert_eq!(found[0].message, message("k1", "erp", "a"));
    assert_eq!(
        enqueue(&store, vec![message("k1", "erp", "a")]),
        [Enqueued::Known]
    );
    store.transact(move |tx| tx.outbox_done(id)).wait().unwrap();
    assert!(all(&store, OutboxFilter::All).is_empty());
}

#[test]
fn k8_a_message_and_the_record_that_it_is_about_are_there_together_or_not_at_all() {
    let fixture = Fixture::new();
    let undone = fixture
        .store
        .transact(|tx| {
            tx.append_custody(&[record("a", knarr_core::record::Action::Created)])?;
            tx.enqueue(&message("k1", "erp", "a"))?;
            Err::<(), _>(StoreError::Unknown {
                what: "thing",
                id: 1,
            })
        })
        .wait();
    assert!(undone.is_err());
    assert!(all(&fixture.store, OutboxFilter::All).is_empty());
    fixture
        .store
        .transact(|tx| {
            tx.append_custody(&[record("a", knarr_core::record::Action::Created)])?;
            tx.enqueue(&message("k1", "erp", "a"))
        })
        .wait()
        .unwrap();
    assert_eq!(all(&fixture.store, OutboxFilter::All).len(), 1);
}

#[test]
fn lanes_are_found_by_their_first_rows_and_keep_their_order() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let mut late = message("late", "erp", "c");
    late.due_at = START.after(Duration::from_secs(60));
    let messages = vec![
        message("a1", "erp", "a"),
        message("other", "ops", "a"),
        message("b1", "erp", "b"),
        message("a2", "erp", "a"),
        late,
        message("none", "erp", ""),
    ];
    enqueue(store, messages);
    let heads = |limit| {
        let heads = store
            .read(|reader| reader.outbox_heads("erp", limit))
            .unwrap();
        let heads = heads.into_iter().map(|head| (head.job, head.due_at));
        heads.collect::<Vec<_>>()
    };
    let later = START.after(Duration::from_secs(60));
    let expected = [("a", START), ("b", START), ("", START), ("c", later)];
    let expected = expected.map(|(job, due)| (job.to_owned(), due));
    assert_eq!(heads(10), expected);
    assert_eq!(heads(1), expected[..1]);
    assert_eq!(lane(store, "erp", "a"), ["a1", "a2"]);
    // The first of a lane waits: those behind it are not due before it.
    let first = store
        .read(|reader| reader.outbox_lane("erp", "a", 1))
        .unwrap()[0]
        .id;
    store
        .transact(move |tx| tx.outbox_failed(first, "no route", later))
        .wait()
        .unwrap();
    assert_eq!(heads(10)[2], ("a".to_owned(), later));
    assert_eq!(lane(store, "erp", "a"), ["a1", "a2"]);
    // Parked, it holds up nobody.
    store
        .transact(move |tx| tx.outbox_park(first, "no route"))
        .wait()
        .unwrap();
    assert_eq!(lane(store, "erp", "a"), ["a2"]);
    assert_eq!(heads(10)[1], ("a".to_owned(), START));
}

#[test]
fn failures_are_counted_outages_are_not_and_a_person_can_have_all_tried_again() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    enqueue(
        store,
        vec![message("one", "erp", "a"), message("two", "ops", "a")],
    );
    let ids: Vec<OutboxId> = all(store, OutboxFilter::All).iter().map(|s| s.id).collect();
    let (one, two) = (ids[0], ids[1]);
    let later = START.after(Duration::from_secs(60));
    store
        .transact(move |tx| {
            tx.outbox_failed(one, &"é".repeat(4_000), later)?;
            tx.outbox_postponed(two, "down", later)
        })
        .wait()
        .unwrap();
    let found = all(store, OutboxFilter::Waiting);
    assert_eq!((found[0].attempts, found[0].message.due_at), (1, later));
    assert_eq!(found[0].last_error.as_ref().map(String::len), Some(4_000));
    assert_eq!((found[1].attempts, found[1].message.due_at), (0, later));
    store
        .transact(move |tx| tx.outbox_park(one, "for good"))
        .wait()
        .unwrap();
    let parked = all(store, OutboxFilter::Parked);
    assert_eq!(parked[0].parked.as_deref(), Some("for good"));
    let counts = store.read(|reader| reader.outbox_counts()).unwrap();
    assert_eq!((counts[0].waiting, counts[0].parked), (0, 1));
    assert_eq!((counts[1].waiting, counts[1].oldest), (1, Some(START)));
    let again = store.transact(|tx| tx.outbox_retry(None, None)).wait();
    assert_eq!(again.unwrap(), 2);
    let found = all(store, OutboxFilter::Waiting);
    assert!(
        found
            .iter()
            .all(|s| s.message.due_at == START && s.attempts == 0)
    );
    store
        .transact(move |tx| {
            assert!(!tx.outbox_discard(one)?, "it is not parked");
            tx.outbox_park(one, "for good")?;
            assert!(tx.outbox_discard(one)?);
            Ok(())
        })
        .wait()
        .unwrap();
    assert_eq!(all(store, OutboxFilter::All).len(), 1);
}

#[test]
fn what_waits_because_the_clock_was_set_back_is_due_and_quiet_hours_are_kept() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let mut quiet = message("quiet", "ops", "a");
    quiet.due_at = START.after(Duration::from_secs(60 * 3_600));
    enqueue(store, vec![message("tried", "erp", "a"), quiet.clone()]);
    let tried = all(store, OutboxFilter::All)[0].id;
    let far = START.after(Duration::from_secs(24 * 3_600));
    let hastened = store
        .transact(move |tx| {
            tx.outbox_failed(tried, "no route", far)?;
            tx.outbox_hasten_beyond(START.after(Duration::from_secs(3_600)))
        })
        .wait()
        .unwrap();
    assert_eq!(hastened, 1);
    let found = all(store, OutboxFilter::All);
    assert_eq!(found[0].message.due_at, START);
    assert_eq!(found[1].message.due_at, quiet.due_at);
}

#[test]
fn k10_a_page_of_a_lane_is_bounded_in_bytes_and_never_empty() {
    let fixture = Fixture::new();
    let large = |key: &str, bytes: usize| NewMessage {
        payload: "x".repeat(bytes),
        ..message(key, "erp", "a")
    };
    enqueue(
        &fixture.store,
        vec![
            large("huge", 2 * PAGE_BYTES),
            large("b", PAGE_BYTES / 2),
            large("c", PAGE_BYTES / 2),
            large("d", 10),
        ],
    );
    assert_eq!(lane(&fixture.store, "erp", "a"), ["huge"]);
    let huge = all(&fixture.store, OutboxFilter::All)[0].id;
    fixture
        .store
        .transact(move |tx| tx.outbox_done(huge))
        .wait()
        .unwrap();
    assert_eq!(lane(&fixture.store, "erp", "a"), ["b", "c"]);
}

#[test]
fn what_is_known_of_alerts_reads_back_and_goes_with_its_rule() {
    let fixture = Fixture::new();
    let rules = [Rule {
        name: "failing".to_owned(),
        condition: Condition::Failed { times: 1 },
        about: Vec::new(),
        severity: Severity::Warning,
        targets: vec!["ops".to_owned()],
        recovery: Recovery::Told,
        repeat: None,
        escalation: Vec::new(),
        quiet: None,
    }];
    let failed = |name: &str| Event {
        at: START,
        what: What::Failed("no route".to_owned()),
        subject: Subject::job(name),
    };
    let judge = |rules: Vec<Rule>, events: Vec<Event>| {
        fixture
            .store
            .transact(move |tx| {
                let before = tx.alert_states()?;
                let out = step(&rules, before.clone(), &events, tx.now());
                tx.set_alert_states(&before, &out.states)?;
                Ok(out.notifications.len())
            })
            .wait()
            .unwrap()
    };
    assert_eq!(judge(rules.to_vec(), vec![failed("a"), failed("b:c")]), 2);
    let known = fixture.store.read(|reader| reader.alert_states()).unwrap();
    assert_eq!(known.len(), 2);
    assert!(
        known
            .values()
            .all(|state| state.firing_since() == Some(START))
    );
    assert_eq!(judge(rules.to_vec(), vec![failed("a")]), 0);
    assert_eq!(judge(Vec::new(), Vec::new()), 0);
    assert!(
        fixture
            .store
            .read(|reader| reader.alert_states())
            .unwrap()
            .is_empty()
    );
}

fn event(what: FileEvent, name: &RelPath) -> NewEvent {
    NewEvent {
        at: Timestamp::from_seconds(1),
        what,
        job: "sensors".to_owned(),
        run: None,
        path: name.clone(),
        size: Some(9),
    }
}

#[test]
fn events_stay_until_every_follower_has_them_and_their_numbers_never_come_again() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let name = RelPath::new(b"odd \xff name".to_vec()).unwrap();
    let kinds = [
        FileEvent::Enqueued,
        FileEvent::Started,
        FileEvent::Progress { done: 5 },
        FileEvent::Completed {
            action: "created".to_owned(),
        },
        FileEvent::Failed {
            message: "no route".to_owned(),
        },
    ];
    let events: Vec<NewEvent> = kinds.into_iter().map(|kind| event(kind, &name)).collect();
    let written = events.clone();
    store
        .transact(move |tx| {
            tx.set_event_cursor("pg", EventId::FIRST)?;
            tx.set_event_cursor("other", EventId::FIRST)?;
            tx.append_events(&written)
        })
        .wait()
        .unwrap();
    let after = |id| store.read(|reader| reader.events_after(id, 100)).unwrap();
    let found = after(EventId::FIRST);
    assert_eq!(
        found
            .iter()
            .map(|stored| stored.event.clone())
            .collect::<Vec<_>>(),
        events
    );
    let last = found[4].id;
    let third = found[2].id;
    let advance = move |follower: &'static str, id| {
        store
            .transact(move |tx| tx.set_event_cursor(follower, id))
            .wait()
            .unwrap();
    };
    advance("pg", last);
    assert_eq!(after(EventId::FIRST).len(), 5);
    advance("other", third);
    assert_eq!(after(EventId::FIRST).len(), 2);
    assert_eq!(
        store.read(|reader| reader.event_cursor("other")).unwrap(),
        Some(third)
    );
    store
        .transact(|tx| tx.remove_event_cursor("other"))
        .wait()
        .unwrap();
    assert!(after(EventId::FIRST).is_empty());
    let more = event(FileEvent::Started, &path("b"));
    store
        .transact(move |tx| tx.append_events(&[more]))
        .wait()
        .unwrap();
    assert!(after(EventId::FIRST)[0].id > last);
}
