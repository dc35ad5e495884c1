//! Rules and targets as they stand in a configuration, down to the outbox.

use std::time::Duration;

use knarr_core::alert::{Condition, Event, Subject, What};
use knarr_engine::outbox::shape::{Made, RuleShape, SecretRef, TargetShape};
use knarr_engine::outbox::{Alerting, LocalFile, Waker};
use knarr_store::outbox::OutboxFilter;
use knarr_store::secrets::SecretValue;
use serde_json::json;

use super::support::{Office, START};

fn rule(shape: serde_json::Value) -> RuleShape {
    serde_json::from_value(shape).unwrap()
}

#[tokio::test]
async fn k8_what_a_rule_tells_is_written_with_what_is_known_and_once_for_each_target() {
    let office = Office::new();
    let shape = json!({
        "on": { "nothing_by": { "time": "09:00", "timezone": "Europe/Berlin" } },
        "about": ["prices"],
        "to": ["ops", "chat"],
        "severity": "critical",
        "escalate": [{ "after": "1h", "to": ["boss"] }],
    });
    let alerting = Alerting::new(vec![rule(shape).make("missing").unwrap()]);
    let waker = Waker::default();
    let watched = Event {
        // 09:00 in Berlin.
        at: START,
        what: What::Watched,
        subject: Subject::job("prices"),
    };
    let store = &office.store;
    alerting
        .happened(store, vec![watched], &waker)
        .await
        .unwrap();
    let count = |kind: &str| {
        let rows = office.rows(OutboxFilter::All);
        rows.iter()
            .filter(|row| row.message.payload.contains(kind))
            .count()
    };
    assert_eq!(count("problem"), 2);
    for minutes in 0..10 {
        office.clock.advance(Duration::from_secs(60 * minutes));
        alerting.happened(store, Vec::new(), &waker).await.unwrap();
    }
    assert_eq!(count("problem"), 2);
    office.clock.advance(Duration::from_secs(3_600));
    alerting.happened(store, Vec::new(), &waker).await.unwrap();
    assert_eq!(count("escalated"), 1);
    let office = office.reopened();
    let arrived = Event {
        at: office.store.clock().now(),
        what: What::Arrived,
        subject: Subject::job("prices"),
    };
    let store = &office.store;
    alerting
        .happened(store, vec![arrived], &waker)
        .await
        .unwrap();
    let rows = office.rows(OutboxFilter::All);
    let recovered = rows
        .iter()
        .filter(|row| row.message.payload.contains("recovered"));
    let mut targets: Vec<&str> = recovered.map(|row| row.message.target.as_str()).collect();
    targets.sort_unstable();
    assert_eq!(targets, ["boss", "chat", "ops"]);
}

#[test]
fn a_rule_has_one_condition_and_times_that_exist() {
    let made = rule(json!({ "on": { "endpoint_down": "10m" }, "to": ["ops"] }))
        .make("down")
        .unwrap();
    assert_eq!(made.condition, Condition::Down(Duration::from_secs(600)));
    for quiet in [
        json!({ "from": "25:00", "to": "07:00" }),
        json!({ "from": "22:00", "to": "07:00", "timezone": "Europe/Atlantis" }),
        json!({ "from": "22:00", "to": "22:00" }),
    ] {
        let shape = json!({ "on": { "failure": 1 }, "to": ["ops"], "quiet": quiet });
        assert!(rule(shape).make("x").is_err());
    }
    for shape in [
        json!({ "on": { "failure": 1, "held": {} }, "to": ["ops"] }),
        json!({ "on": {}, "to": ["ops"] }),
        json!({ "on": { "failure": 1 } }),
    ] {
        assert!(serde_json::from_value::<RuleShape>(shape).is_err());
    }
}

#[test]
fn h25_a_target_is_made_of_its_shape_and_shows_no_secret() {
    let office = Office::new();
    let file = LocalFile::read_from("/etc/knarr/knarr.yaml".into());
    let clock = office.clock();
    let fetch = |secret: &SecretRef| match secret {
        SecretRef::Secret(name) => Ok(SecretValue::new(format!("sentinel-{name}").into_bytes())),
        SecretRef::Env(name) if name == "HOOK" => Ok(SecretValue::new(
            b"https://chat.example/sentinel-path".to_vec(),
        )),
        SecretRef::Env(name) => Err(format!("{name} is not set")),
    };
    let make = |shape: serde_json::Value| {
        let shape: TargetShape = serde_json::from_value(shape).unwrap();
        shape.make(&file, "edge-1", &fetch, &clock)
    };
    let shapes = [
        json!({ "webhook": { "url": "https://hooks.example/x", "secret": { "secret": "a" } } }),
        json!({ "webhook": { "url": { "env": "HOOK" }, "token": { "secret": "b" } }, "at_once": 1 }),
        json!({ "email": { "host": "mail.example", "user": "u", "password": { "secret": "c" },
                           "from": "a@b.example", "to": ["c@d.example"] } }),
        json!({ "command": { "run": ["/bin/true", "{path}"], "timeout": "10s" },
                "retry": { "attempts": 3 } }),
        json!({ "postgres": { "host": "db.example", "database": "k", "user": "k",
                              "password": { "secret": "d" } } }),
    ];
    for shape in shapes {
        let made = make(shape).unwrap();
        if let Made::Target(_, options) = &made {
            assert!(options.at_once >= 1);
        }
        let shown = format!("{made:?}");
        assert!(!shown.contains("sentinel"), "{shown}");
    }
    for shape in [
        json!({}),
        json!({ "webhook": { "url": "https://a.example" }, "command": { "run": ["/bin/true"] } }),
        json!({ "webhook": { "url": { "env": "MISSING" } } }),
        json!({ "email": { "host": "m", "user": "u", "from": "a@b.example", "to": ["c@d.example"] } }),
        json!({ "command": { "run": ["true"] } }),
    ] {
        assert!(make(shape.clone()).is_err(), "{shape}");
    }
}
