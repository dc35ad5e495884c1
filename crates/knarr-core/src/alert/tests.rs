//! Episodes, quiet hours, order.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::civil::{Weekday, time};
use jiff::tz::TimeZone;
use proptest::prelude::{Just, Strategy, prop_oneof, proptest};
use proptest::{collection, prop_assert, prop_assert_eq};

use super::{
    Condition, Deadline, Escalation, Event, Kind, Notification, QuietHours, Recovery, Rule,
    Severity, States, Subject, Weekdays, What, step,
};
use crate::time::Timestamp;

const HOUR: Duration = Duration::from_secs(3_600);
/// 2027-01-15 08:00 UTC, a Friday.
const START: i64 = 1_800_000_000;

fn at(minutes: i64) -> Timestamp {
    Timestamp::from_seconds(START + minutes * 60)
}

fn rule(name: &str, condition: Condition) -> Rule {
    Rule {
        name: name.to_owned(),
        condition,
        about: Vec::new(),
        severity: Severity::Warning,
        targets: vec!["ops".to_owned()],
        recovery: Recovery::Told,
        repeat: None,
        escalation: Vec::new(),
        quiet: None,
    }
}

fn event(minutes: i64, subject: &Subject, what: What) -> Event {
    Event {
        at: at(minutes),
        what,
        subject: subject.clone(),
    }
}

fn berlin() -> TimeZone {
    TimeZone::get("Europe/Berlin").unwrap()
}

fn night() -> QuietHours {
    let (from, to) = (time(22, 0, 0, 0), time(7, 0, 0, 0));
    QuietHours::new(from, to, Weekdays::ALL, berlin(), Severity::Critical).unwrap()
}

/// Goes through calls of `step`, as a node does.
#[derive(Default)]
struct World {
    states: States,
    told: Vec<Notification>,
}

impl World {
    fn step(&mut self, rules: &[Rule], events: &[Event], minutes: i64) -> Vec<Notification> {
        let out = step(rules, std::mem::take(&mut self.states), events, at(minutes));
        self.states = out.states;
        self.told.extend(out.notifications.iter().cloned());
        out.notifications
    }
}

fn kinds(told: &[Notification]) -> Vec<Kind> {
    told.iter().map(|told| told.kind).collect()
}

#[test]
fn a_failure_is_told_once_and_so_is_its_end() {
    let job = Subject::job("invoices");
    let rules = [rule("failing", Condition::Failed { times: 2 })];
    let mut world = World::default();
    let failed = |minutes| event(minutes, &job, What::Failed("no route".to_owned()));
    assert!(world.step(&rules, &[failed(0)], 0).is_empty());
    let told = world.step(&rules, &[failed(1)], 1);
    assert_eq!(kinds(&told), [Kind::Problem]);
    assert_eq!(
        told[0].text,
        "job invoices failed 2 times in a row: no route"
    );
    assert!(world.step(&rules, &[failed(2), failed(3)], 4).is_empty());
    let told = world.step(&rules, &[event(5, &job, What::Succeeded)], 5);
    assert_eq!(kinds(&told), [Kind::Recovered]);
    assert_eq!(told[0].since, at(0));
    assert!(
        world
            .step(&rules, &[event(6, &job, What::Succeeded)], 60)
            .is_empty()
    );
}

#[test]
fn a_deadline_that_nothing_met_is_told_in_local_time_on_its_days() {
    let job = Subject::job("prices");
    let workdays = [
        Weekday::Monday,
        Weekday::Tuesday,
        Weekday::Wednesday,
        Weekday::Thursday,
        Weekday::Friday,
    ];
    let rules = [rule(
        "missing",
        Condition::NothingBy(Deadline {
            by: time(10, 0, 0, 0),
            since: Some(time(6, 0, 0, 0)),
            days: Weekdays::of(workdays),
            zone: berlin(),
        }),
    )];
    let mut world = World::default();
    // 09:00 in Berlin; what came at 05:00 would not count, what comes at 09:30 does.
    world.step(&rules, &[event(0, &job, What::Watched)], 0);
    world.step(&rules, &[event(30, &job, What::Arrived)], 30);
    assert!(world.step(&rules, &[], 65).is_empty());
    // Saturday and Sunday pass, Monday 10:00 does not.
    let days = 24 * 60;
    assert!(world.step(&rules, &[], 2 * days + 65).is_empty());
    assert!(world.step(&rules, &[], 3 * days + 59).is_empty());
    let told = world.step(&rules, &[], 3 * days + 60);
    assert_eq!(kinds(&told), [Kind::Problem]);
    assert_eq!(told[0].since, at(3 * days + 60));
    assert!(world.step(&rules, &[], 4 * days + 60).is_empty());
    let told = world.step(
        &rules,
        &[event(4 * days + 90, &job, What::Arrived)],
        4 * days + 91,
    );
    assert_eq!(kinds(&told), [Kind::Recovered]);
}

#[test]
fn a_deadline_that_passed_while_the_node_was_off_is_told_although_the_file_came_late() {
    let job = Subject::job("prices");
    let deadline = Deadline {
        by: time(10, 0, 0, 0),
        since: None,
        days: Weekdays::ALL,
        zone: berlin(),
    };
    let rules = [rule("missing", Condition::NothingBy(deadline))];
    let mut world = World::default();
    world.step(&rules, &[event(0, &job, What::Arrived)], 0);
    let late = 24 * 60 + 70;
    let told = world.step(&rules, &[event(late, &job, What::Arrived)], late + 1);
    assert_eq!(kinds(&told), [Kind::Problem, Kind::Recovered]);
}

#[test]
fn what_lasts_is_repeated_and_escalates_and_all_who_were_told_hear_of_the_end() {
    let endpoint = Subject::endpoint("partner");
    let mut down = rule("down", Condition::Down(HOUR));
    down.repeat = Some(4 * HOUR);
    down.escalation = vec![Escalation {
        after: 2 * HOUR,
        targets: vec!["boss".to_owned()],
    }];
    let rules = [down];
    let mut world = World::default();
    world.step(
        &rules,
        &[event(0, &endpoint, What::Down("refused".to_owned()))],
        0,
    );
    assert!(world.step(&rules, &[], 59).is_empty());
    assert_eq!(kinds(&world.step(&rules, &[], 60)), [Kind::Problem]);
    let told = world.step(&rules, &[], 180);
    assert_eq!(kinds(&told), [Kind::Escalated(1)]);
    assert_eq!(told[0].targets, ["boss"]);
    let told = world.step(&rules, &[], 180 + 240);
    assert_eq!(kinds(&told), [Kind::Reminder(1)]);
    assert_eq!(told[0].targets, ["ops", "boss"]);
    let told = world.step(&rules, &[event(430, &endpoint, What::Up)], 430);
    assert_eq!(kinds(&told), [Kind::Recovered]);
    assert_eq!(told[0].targets, ["ops", "boss"]);
}

#[test]
fn a_short_outage_is_not_told_and_a_renewed_certificate_is() {
    let (endpoint, key) = (
        Subject::endpoint("partner"),
        Subject::credential("host.pem"),
    );
    let rules = [
        rule("down", Condition::Down(HOUR)),
        rule("expiring", Condition::Expiring(24 * HOUR)),
    ];
    let mut world = World::default();
    world.step(
        &rules,
        &[event(0, &endpoint, What::Down("x".to_owned()))],
        30,
    );
    assert!(
        world
            .step(&rules, &[event(31, &endpoint, What::Up)], 600)
            .is_empty()
    );
    let expires = |minutes, until| event(minutes, &key, What::Expires(at(until)));
    let day = 24 * 60;
    assert!(world.step(&rules, &[expires(600, 3 * day)], 600).is_empty());
    assert_eq!(kinds(&world.step(&rules, &[], 2 * day)), [Kind::Problem]);
    let told = world.step(&rules, &[expires(2 * day + 1, 300 * day)], 2 * day + 1);
    assert_eq!(kinds(&told), [Kind::Recovered]);
}

#[test]
fn what_is_no_longer_configured_ends_and_is_forgotten() {
    let job = Subject::job("old");
    let rules = [rule("failing", Condition::Failed { times: 1 })];
    let mut world = World::default();
    world.step(&rules, &[event(0, &job, What::Failed("x".to_owned()))], 0);
    let told = world.step(&rules, &[event(1, &job, What::Gone)], 1);
    assert_eq!(kinds(&told), [Kind::Recovered]);
    assert!(world.states.is_empty());
}

#[test]
fn a_clock_that_was_set_back_does_not_hide_silence() {
    let job = Subject::job("prices");
    let rules = [rule("silent", Condition::NothingFor(HOUR))];
    let mut world = World::default();
    let day = 24 * 60;
    world.step(&rules, &[event(day, &job, What::Arrived)], day);
    assert!(world.step(&rules, &[], 0).is_empty());
    assert_eq!(kinds(&world.step(&rules, &[], 61)), [Kind::Problem]);
}

#[test]
fn a_state_reads_back_as_it_was_written() {
    let job = Subject::job("a:b");
    let rules = [rule("failing", Condition::Failed { times: 1 })];
    let mut world = World::default();
    world.step(&rules, &[event(0, &job, What::Failed("x".to_owned()))], 0);
    let state = world.states.values().next().unwrap();
    let text = serde_json::to_string(state).unwrap();
    assert_eq!(
        serde_json::from_str::<super::AlertState>(&text).unwrap(),
        *state
    );
    assert_eq!(Subject::from_key(&job.key()), Some(job));
}

#[test]
fn quiet_hours_end_in_the_morning_of_their_zone_and_never_hold_back_what_is_urgent() {
    let quiet = night();
    // 21:30 UTC is 22:30 in Berlin; 07:00 there is 06:00 UTC.
    let late = at(13 * 60 + 30);
    assert_eq!(quiet.release(Severity::Warning, late), at(22 * 60));
    assert_eq!(quiet.release(Severity::Critical, late), late);
    assert_eq!(quiet.release(Severity::Warning, at(0)), at(0));
    let weekend = Weekdays::of([Weekday::Saturday, Weekday::Sunday]);
    let midnight = time(0, 0, 0, 0);
    let quiet = QuietHours::new(midnight, midnight, weekend, berlin(), Severity::Critical).unwrap();
    let monday = at(15 * 60 + 2 * 24 * 60);
    assert_eq!(quiet.release(Severity::Info, at(24 * 60)), monday);
    assert!(QuietHours::new(midnight, midnight, Weekdays::ALL, berlin(), Severity::Info).is_err());
}

fn rules_for_all(quiet: Option<QuietHours>) -> Vec<Rule> {
    let deadline = Deadline {
        by: time(12, 0, 0, 0),
        since: None,
        days: Weekdays::ALL,
        zone: berlin(),
    };
    let mut rules = vec![
        rule("failing", Condition::Failed { times: 2 }),
        rule("held", Condition::Held),
        rule("silent", Condition::NothingFor(HOUR)),
        rule("missing", Condition::NothingBy(deadline)),
        rule("down", Condition::Down(HOUR)),
        rule("expiring", Condition::Expiring(48 * HOUR)),
    ];
    for rule in &mut rules {
        rule.quiet.clone_from(&quiet);
        rule.repeat = Some(3 * HOUR);
        rule.escalation = vec![Escalation {
            after: HOUR,
            targets: vec!["boss".to_owned()],
        }];
    }
    rules
}

fn some_event() -> impl Strategy<Value = (usize, What)> {
    let what = prop_oneof![
        Just(What::Watched),
        Just(What::Succeeded),
        Just(What::Arrived),
        Just(What::Released),
        Just(What::Up),
        Just(What::Failed("x".to_owned())),
        Just(What::Held("x".to_owned())),
        Just(What::Down("x".to_owned())),
        Just(What::Gone),
        (0_i64..10_000).prop_map(|minutes| What::Expires(at(minutes))),
    ];
    (0_usize..4, what)
}

fn subject(number: usize) -> Subject {
    match number {
        0 => Subject::job("a"),
        1 => Subject::job("b"),
        2 => Subject::endpoint("e"),
        _ => Subject::credential("c"),
    }
}

/// Ticks: how many minutes after the one before, and what happened meanwhile (how long before it).
type Ticks = Vec<(i64, Vec<(i64, (usize, What))>)>;

fn ticks() -> impl Strategy<Value = Ticks> {
    let events = collection::vec((0_i64..30, some_event()), 0..5);
    collection::vec((1_i64..300, events), 1..40)
}

fn run(rules: &[Rule], ticks: &Ticks, shuffled: bool) -> World {
    let mut world = World::default();
    let mut now = 0;
    for (later, happened) in ticks {
        now += later;
        let mut events: Vec<Event> = happened
            .iter()
            .map(|(ago, (which, what))| event(now - ago % later, &subject(*which), what.clone()))
            .collect();
        if shuffled {
            events.reverse();
            let middle = events.len() / 2;
            events.rotate_left(middle);
        }
        world.step(rules, &events, now);
    }
    world
}

fn is_end_or_begin(told: &&Notification) -> bool {
    matches!(told.kind, Kind::Problem | Kind::Recovered)
}

proptest! {
    #[test]
    fn k8_nothing_is_told_twice_and_every_end_follows_its_told_beginning(ticks in ticks()) {
        let world = run(&rules_for_all(Some(night())), &ticks, false);
        let mut keys = BTreeSet::new();
        let mut open: BTreeMap<(String, Subject), &Notification> = BTreeMap::new();
        for told in &world.told {
            for target in &told.targets {
                prop_assert!(keys.insert(told.key(target)), "twice: {told:?}");
            }
            let place = (told.rule.clone(), told.subject.clone());
            let began = match told.kind {
                Kind::Problem => {
                    prop_assert!(open.insert(place, told).is_none(), "began twice: {told:?}");
                    continue;
                }
                Kind::Recovered => open.remove(&place),
                Kind::Reminder(_) | Kind::Escalated(_) => open.get(&place).copied(),
            };
            let began = began.expect("nothing follows what was not told");
            prop_assert_eq!((began.since, began.episode), (told.since, told.episode));
            prop_assert!(began.due <= told.due);
        }
    }

    #[test]
    fn quiet_hours_delay_and_never_lose(ticks in ticks()) {
        let loud = run(&rules_for_all(None), &ticks, false);
        let quiet = run(&rules_for_all(Some(night())), &ticks, false);
        let loud: Vec<_> = loud.told.iter().filter(is_end_or_begin).collect();
        let quiet: Vec<_> = quiet.told.iter().filter(is_end_or_begin).collect();
        prop_assert_eq!(loud.len(), quiet.len());
        for (loud, quiet) in loud.iter().zip(&quiet) {
            prop_assert_eq!(loud.key("ops"), quiet.key("ops"));
            prop_assert!(quiet.due >= loud.due);
            prop_assert_eq!(night().release(Severity::Warning, quiet.due), quiet.due);
        }
    }

    #[test]
    fn the_order_of_what_happened_within_a_tick_does_not_matter(ticks in ticks()) {
        let rules = rules_for_all(Some(night()));
        let (one, other) = (run(&rules, &ticks, false), run(&rules, &ticks, true));
        prop_assert_eq!(one.states, other.states);
        prop_assert_eq!(one.told, other.told);
    }
}
