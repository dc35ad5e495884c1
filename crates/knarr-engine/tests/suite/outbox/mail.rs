//! Mail, to a server that keeps what it takes.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use knarr_core::alert::{Condition, Event, Recovery, Rule, Severity, Subject, What};
use knarr_engine::outbox::{
    Alerting, EmailOptions, EmailSecurity, EmailTarget, Message, Target as _, TargetError,
};
use knarr_store::outbox::OutboxFilter;
use knarr_store::secrets::SecretValue;
use knarr_testkit::receiver::{MailReceiver, MailTls};

use super::support::{Office, START, message, until};

const PASSWORD: &str = "sentinel-mail-password";

fn options(server: &MailReceiver, security: EmailSecurity) -> EmailOptions {
    EmailOptions {
        host: "localhost".to_owned(),
        port: Some(server.address().port()),
        security,
        login: None,
        from: "knarr@edge.example".to_owned(),
        to: vec!["ops@example.org".to_owned(), "boss@example.org".to_owned()],
        certificates: Some(std::fs::read(server.certificate().path()).unwrap()),
        limit: Duration::from_secs(60),
    }
}

fn login(password: &str) -> Option<(String, SecretValue)> {
    let password = SecretValue::new(password.as_bytes().to_vec());
    Some(("knarr".to_owned(), password))
}

/// The decoded text of a mail.
fn text(mail: &str) -> String {
    let (_, body) = mail
        .replace('\r', "")
        .split_once("\n\n")
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .unwrap();
    let (_, encoded) = body.split_once("\n\n").unwrap();
    let encoded: String = encoded.split_whitespace().collect();
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(encoded)
        .unwrap();
    String::from_utf8(bytes).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn k8_an_alert_is_mailed_once_over_starttls_with_its_key_as_message_id() {
    let office = Office::new();
    let server = MailReceiver::start(MailTls::Starttls, Some(("knarr", PASSWORD)));
    let with_login = EmailOptions {
        login: login(PASSWORD),
        ..options(&server, EmailSecurity::Starttls)
    };
    let target = EmailTarget::new(with_login, "edge-1").unwrap();
    let running = office.start(&[("ops", Arc::new(target))]);
    let alerting = Alerting::new(vec![Rule {
        name: "failing".to_owned(),
        condition: Condition::Failed { times: 1 },
        about: Vec::new(),
        severity: Severity::Critical,
        targets: vec!["ops".to_owned()],
        recovery: Recovery::Told,
        repeat: None,
        escalation: Vec::new(),
        quiet: None,
    }]);
    let failed = Event {
        at: START,
        what: What::Failed("no route to host: Käse\r\nBcc: all@example.org".to_owned()),
        subject: Subject::job("invoices"),
    };
    for _ in 0..3 {
        let events = vec![failed.clone()];
        alerting
            .happened(&office.store, events, &running.waker)
            .await
            .unwrap();
    }
    let key = office
        .rows(OutboxFilter::All)
        .first()
        .map(|row| row.message.key.clone());
    until("the mail is gone", || {
        office.rows(OutboxFilter::All).is_empty()
    })
    .await;
    running.stop().await;
    let mails = server.mails();
    assert_eq!(mails.len(), 1);
    let mail = &mails[0];
    assert!(mail.contains("RCPT TO:<boss@example.org>"), "{mail}");
    if let Some(key) = key {
        assert!(
            mail.contains(&format!("Message-ID: <{key}@edge.example>")),
            "{mail}"
        );
    }
    assert!(mail.contains("Subject: =?utf-8?B?"), "{mail}");
    assert!(!mail.contains("Bcc:"), "{mail}");
    let text = text(mail);
    assert!(
        text.starts_with("[critical] job invoices failed: no route to host: Käse"),
        "{text}"
    );
    assert!(text.contains("severity: critical"), "{text}");
    assert!(!text.contains("\nBcc"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_goes_over_tls_from_the_first_byte_and_to_no_unknown_server() {
    let office = Office::new();
    let server = MailReceiver::start(MailTls::Implicit, None);
    office.enqueue(vec![message("a", "sensors", "ops")]).await;
    let stored = Message::of(&office.rows(OutboxFilter::All)[0], "edge-1");
    let unknown = EmailOptions {
        certificates: None,
        ..options(&server, EmailSecurity::Tls)
    };
    let target = EmailTarget::new(unknown, "edge-1").unwrap();
    let error = target.deliver(&stored).await.unwrap_err();
    assert!(
        matches!(error, TargetError::Unreachable { .. }),
        "{error:?}"
    );
    assert!(server.mails().is_empty());
    let target = EmailTarget::new(options(&server, EmailSecurity::Tls), "edge-1").unwrap();
    target.deliver(&stored).await.unwrap();
    assert_eq!(server.mails().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_that_a_server_refuses_is_parked_and_what_it_postpones_is_not() {
    let office = Office::new();
    let server = MailReceiver::start(MailTls::None, None);
    office.enqueue(vec![message("a", "sensors", "ops")]).await;
    let stored = Message::of(&office.rows(OutboxFilter::All)[0], "edge-1");
    let to = |receiver: &str| {
        let options = EmailOptions {
            to: vec![receiver.to_owned()],
            ..options(&server, EmailSecurity::None)
        };
        EmailTarget::new(options, "edge-1").unwrap()
    };
    let error = to("refused@example.org")
        .deliver(&stored)
        .await
        .unwrap_err();
    assert!(matches!(error, TargetError::Refused { .. }), "{error:?}");
    let error = to("busy@example.org").deliver(&stored).await.unwrap_err();
    assert!(matches!(error, TargetError::Failed { .. }), "{error:?}");
    let target = to("ops@example.org");
    target.deliver(&stored).await.unwrap();
    assert_eq!(server.mails().len(), 1);
    drop(server);
    let error = target.deliver(&stored).await.unwrap_err();
    assert!(
        matches!(error, TargetError::Unreachable { .. }),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn h25_a_wrong_password_is_a_matter_of_the_target_and_is_not_shown() {
    let office = Office::new();
    let server = MailReceiver::start(MailTls::Starttls, Some(("knarr", "another")));
    office.enqueue(vec![message("a", "sensors", "ops")]).await;
    let stored = Message::of(&office.rows(OutboxFilter::All)[0], "edge-1");
    let with_login = EmailOptions {
        login: login(PASSWORD),
        ..options(&server, EmailSecurity::Starttls)
    };
    let target = EmailTarget::new(with_login, "edge-1").unwrap();
    let error = target.deliver(&stored).await.unwrap_err();
    assert!(
        matches!(error, TargetError::Unreachable { .. }),
        "{error:?}"
    );
    let shown = format!("{target:?} {error} {error:?}");
    assert!(shown.contains("wrong password"), "{shown}");
    assert!(!shown.contains("sentinel"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_in_the_clear_is_for_this_machine_only() {
    let server = MailReceiver::start(MailTls::None, None);
    let with_host = |host: &str| EmailOptions {
        host: host.to_owned(),
        ..options(&server, EmailSecurity::None)
    };
    assert!(EmailTarget::new(with_host("mail.example"), "edge-1").is_err());
    assert!(EmailTarget::new(with_host("127.0.0.1"), "edge-1").is_ok());
    let nobody = EmailOptions {
        to: Vec::new(),
        ..with_host("localhost")
    };
    assert!(EmailTarget::new(nobody, "edge-1").is_err());
}
