//! What a message says: to receivers as JSON, to commands as variables.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use knarr_core::alert::{Notification, stable_key};
use knarr_core::record::CustodyRecord;
use knarr_core::{ContentHash, RelPath, Timestamp};
use knarr_store::outbox::{MessageKind, NewMessage, Stored};
use knarr_store::runs::RunId;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The version of what receivers see. Keys are added without a new one.
const FORMAT: u32 = 1;
/// The longest remark on a file, in bytes.
const MESSAGE_BYTES: usize = 4 * 1024;
/// The longest value of a variable, in bytes; the system allows 128 KiB.
const VALUE_BYTES: usize = 64 * 1024;

/// What a hook after a file says. A path that is not UTF-8 stands as `base16:` and hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileFacts {
    /// The path below the source's root.
    pub path: RelPath,
    /// What was done, such as `created`.
    pub action: String,
    /// Where from, as a person would write it.
    pub source: String,
    /// Where to, as a person would write it.
    pub destination: String,
    /// The destination's root: a directory, or an endpoint with its path.
    pub destination_root: String,
    /// The path below the destination's root.
    pub destination_path: RelPath,
    /// The length of the source's content in bytes.
    pub size: u64,
    /// The BLAKE3 hash of the source's content, if it was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<ContentHash>,
    /// When it was recorded.
    pub at: Timestamp,
    /// What went wrong, or a remark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl FileFacts {
    /// What a record says, with the place where the file lies now.
    #[must_use]
    pub fn of(record: &CustodyRecord, destination_root: &str, destination_path: &RelPath) -> Self {
        Self {
            path: record.path.clone(),
            action: record.action.name().to_owned(),
            source: record.source.clone(),
            destination: record.destination.clone(),
            destination_root: destination_root.to_owned(),
            destination_path: destination_path.clone(),
            size: record.size,
            hash: record.source_hash,
            at: record.at,
            message: record.message.as_deref().map(shortened),
        }
    }

    /// The message for one target. Its key is of the delivery: job, path, version and when it was
    /// recorded, so that the same file delivered once more is a message of its own.
    #[must_use]
    pub fn message(&self, job: &str, run: RunId, target: &str) -> NewMessage {
        let hash = self.hash.map(|hash| *hash.as_bytes()).unwrap_or_default();
        let key = stable_key(
            "file",
            &[
                target.as_bytes(),
                job.as_bytes(),
                self.path.as_bytes(),
                self.action.as_bytes(),
                &hash,
                &self.size.to_le_bytes(),
                &self.at.nanoseconds().to_le_bytes(),
            ],
        );
        new_message(
            key,
            target,
            job,
            Some(run),
            MessageKind::AfterFile,
            self,
            self.at,
        )
    }

    /// The destination as a program opens it: byte for byte, where it is a local directory.
    fn destination_bytes(&self) -> OsString {
        let mut bytes = self.destination_root.clone().into_bytes();
        if !bytes.ends_with(b"/") && !bytes.ends_with(b":") {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(self.destination_path.as_bytes());
        OsString::from_vec(bytes)
    }
}

/// What a hook after a run says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunFacts {
    /// How it ended: `done`, `failed`, `held`, `cancelled`.
    pub outcome: String,
    /// Files that were delivered.
    pub files: u64,
    /// Bytes of the source that they hold.
    pub bytes: u64,
    /// Paths that failed.
    pub failed: u64,
    /// When it began.
    pub began_at: Timestamp,
    /// When it ended.
    pub at: Timestamp,
    /// What went wrong, or a remark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl RunFacts {
    /// The message for one target.
    #[must_use]
    pub fn message(&self, job: &str, run: RunId, target: &str) -> NewMessage {
        let key = stable_key(
            "run",
            &[
                target.as_bytes(),
                job.as_bytes(),
                &run.0.to_le_bytes(),
                &self.began_at.nanoseconds().to_le_bytes(),
            ],
        );
        new_message(
            key,
            target,
            job,
            Some(run),
            MessageKind::AfterRun,
            self,
            self.at,
        )
    }
}

/// What an alert says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlertFacts {
    /// The rule.
    pub rule: String,
    /// `job`, `endpoint` or `credential`.
    pub about: String,
    /// Its name.
    pub name: String,
    /// `problem`, `reminder`, `escalated` or `recovered`.
    pub event: String,
    /// Which reminder or step of escalation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u32>,
    /// `info`, `warning` or `critical`.
    pub severity: String,
    /// Since when it lasts.
    pub since: Timestamp,
    /// When this was decided.
    pub at: Timestamp,
    /// One line for a person.
    pub text: String,
}

impl AlertFacts {
    /// The messages of a notification, one for each target.
    #[must_use]
    pub fn messages(notification: &Notification) -> Vec<NewMessage> {
        use knarr_core::alert::{Kind, SubjectKind};
        let (event, number) = match notification.kind {
            Kind::Problem => ("problem", None),
            Kind::Reminder(number) => ("reminder", Some(number)),
            Kind::Escalated(step) => ("escalated", Some(step)),
            Kind::Recovered => ("recovered", None),
        };
        let subject = &notification.subject;
        let facts = Self {
            rule: notification.rule.clone(),
            about: subject.kind.name().to_owned(),
            name: subject.name.clone(),
            event: event.to_owned(),
            number,
            severity: notification.severity.name().to_owned(),
            since: notification.since,
            at: notification.at,
            text: notification.text.clone(),
        };
        let job = match subject.kind {
            SubjectKind::Job => subject.name.as_str(),
            SubjectKind::Endpoint | SubjectKind::Credential => "",
        };
        let message = |target: &String| {
            let key = notification.key(target);
            let due = notification.due;
            new_message(key, target, job, None, MessageKind::Alert, &facts, due)
        };
        notification.targets.iter().map(message).collect()
    }
}

fn shortened(text: &str) -> String {
    let end = text.floor_char_boundary(MESSAGE_BYTES);
    text.get(..end).unwrap_or_default().to_owned()
}

fn new_message(
    key: String,
    target: &str,
    job: &str,
    run: Option<RunId>,
    kind: MessageKind,
    facts: &impl Serialize,
    due_at: Timestamp,
) -> NewMessage {
    NewMessage {
        key,
        target: target.to_owned(),
        job: job.to_owned(),
        run,
        kind,
        payload: serde_json::to_string(facts)
            .expect("texts, numbers, paths and options are always JSON"),
        due_at,
    }
}

/// A message on its way to a target.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// The idempotency key: the same for every attempt.
    pub key: String,
    /// What kind of message.
    pub kind: MessageKind,
    /// The node that sends it.
    pub node: String,
    /// The job that it is about; empty if none.
    pub job: String,
    /// The run that it is about.
    pub run: Option<u64>,
    /// When it was written.
    pub created_at: Timestamp,
    /// What it says.
    pub facts: Value,
}

impl Message {
    /// A row of the outbox, sent by the node of this name.
    #[must_use]
    pub fn of(stored: &Stored, node: &str) -> Self {
        let new = &stored.message;
        Self {
            key: new.key.clone(),
            kind: new.kind,
            node: node.to_owned(),
            job: new.job.clone(),
            run: new.run.map(|run| run.0),
            created_at: stored.created_at,
            // Written by this program; if it is damaged, the text itself is what can be told.
            facts: serde_json::from_str(&new.payload)
                .unwrap_or_else(|_damaged| Value::String(new.payload.clone())),
        }
    }

    /// As JSON: the same bytes at every attempt.
    #[must_use]
    pub fn body(&self) -> String {
        json!({
            "version": FORMAT,
            "id": self.key,
            "kind": self.kind.name(),
            "node": self.node,
            "job": self.job,
            "run": self.run,
            "created_at": self.created_at.to_string(),
            "data": self.shown_facts(),
        })
        .to_string()
    }

    /// The facts with instants as RFC 3339.
    fn shown_facts(&self) -> Value {
        let mut facts = self.facts.clone();
        if let Some(fields) = facts.as_object_mut() {
            for name in ["at", "since", "began_at"] {
                if let Some(value) = fields.get_mut(name)
                    && let Some(nanoseconds) = value.as_i64()
                {
                    *value = Timestamp::from_nanoseconds(nanoseconds).to_string().into();
                }
            }
        }
        facts
    }

    /// One line for a person.
    #[must_use]
    pub fn title(&self) -> String {
        let fact = |name: &str| self.facts.get(name).and_then(Value::as_str).unwrap_or("");
        let title = match self.kind {
            MessageKind::AfterFile => {
                format!("{}: {} {}", self.job, fact("action"), fact("destination"))
            }
            MessageKind::AfterRun => format!("{}: run {}", self.job, fact("outcome")),
            MessageKind::Alert => {
                let event = match fact("event") {
                    "recovered" => "recovered",
                    "reminder" => "still",
                    "escalated" => "escalated",
                    _ => fact("severity"),
                };
                format!("[{event}] {}", fact("text"))
            }
        };
        // One line, whatever a file or a server is called.
        title.replace(char::is_control, " ")
    }

    /// As names and values for a command: `path`, `destination` and so on, byte for byte.
    #[must_use]
    pub fn values(&self) -> Vec<(String, OsString)> {
        let mut values: Vec<(String, OsString)> = vec![
            ("key".to_owned(), self.key.clone().into()),
            ("kind".to_owned(), self.kind.name().into()),
            ("node".to_owned(), self.node.clone().into()),
            ("job".to_owned(), self.job.clone().into()),
        ];
        if let Some(run) = self.run {
            values.push(("run".to_owned(), run.to_string().into()));
        }
        if let Some(fields) = self.shown_facts().as_object() {
            for (name, value) in fields {
                let text = match value {
                    Value::String(text) => text.clone(),
                    Value::Null => continue,
                    other => other.to_string(),
                };
                values.push((name.clone(), text.into()));
            }
        }
        if self.kind == MessageKind::AfterFile
            && let Ok(facts) = FileFacts::deserialize(&self.facts)
        {
            let exact = [
                ("path", facts.path.as_os_str().to_owned()),
                ("name", OsStr::from_bytes(facts.path.name()).to_owned()),
                ("destination", facts.destination_bytes()),
                (
                    "destination_path",
                    facts.destination_path.as_os_str().to_owned(),
                ),
            ];
            for (name, value) in exact {
                values.retain(|(known, _)| known != name);
                values.push((name.to_owned(), value));
            }
        }
        for (_, value) in &mut values {
            *value = passable(value);
        }
        values
    }
}

/// A value that the system passes on: without NUL, and not too long.
fn passable(value: &OsStr) -> OsString {
    let bytes = value.as_bytes();
    let end = bytes.len().min(VALUE_BYTES);
    let kept = bytes.iter().take(end).copied().filter(|byte| *byte != 0);
    OsString::from_vec(kept.collect())
}
