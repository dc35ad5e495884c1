//! What a rule says: about what, when, how bad, to whom.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::alert::{Deadline, QuietHours, What};
use crate::time::Timestamp;

/// How bad it is.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Good to know.
    Info,
    /// Somebody should look at it, in working hours.
    #[default]
    Warning,
    /// Somebody has to act.
    Critical,
}

impl Severity {
    /// Its name, as the configuration has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// What kind of thing something is told about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SubjectKind {
    /// A job.
    Job,
    /// An endpoint.
    Endpoint,
    /// A certificate or a key.
    Credential,
}

impl SubjectKind {
    const ALL: [Self; 3] = [Self::Job, Self::Endpoint, Self::Credential];

    /// Its name, in what is kept.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Job => "job",
            Self::Endpoint => "endpoint",
            Self::Credential => "credential",
        }
    }
}

/// What something is told about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Subject {
    /// What kind of thing.
    pub kind: SubjectKind,
    /// Its name in the configuration.
    pub name: String,
}

impl Subject {
    /// A job.
    #[must_use]
    pub fn job(name: impl Into<String>) -> Self {
        Self {
            kind: SubjectKind::Job,
            name: name.into(),
        }
    }

    /// An endpoint.
    #[must_use]
    pub fn endpoint(name: impl Into<String>) -> Self {
        Self {
            kind: SubjectKind::Endpoint,
            name: name.into(),
        }
    }

    /// A certificate or a key.
    #[must_use]
    pub fn credential(name: impl Into<String>) -> Self {
        Self {
            kind: SubjectKind::Credential,
            name: name.into(),
        }
    }

    /// How it is written in what is kept: `job:invoices`.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}:{}", self.kind.name(), self.name)
    }

    /// Reads what [`Subject::key`] wrote.
    #[must_use]
    pub fn from_key(key: &str) -> Option<Self> {
        let (kind, name) = key.split_once(':')?;
        let kind = SubjectKind::ALL.into_iter().find(|k| k.name() == kind)?;
        Some(Self {
            kind,
            name: name.to_owned(),
        })
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            SubjectKind::Job => "job",
            SubjectKind::Endpoint => "endpoint",
            SubjectKind::Credential => "certificate or key",
        };
        write!(f, "{kind} {}", self.name)
    }
}

/// When something is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Condition {
    /// So many runs of a job failed in a row; at least 1.
    Failed {
        /// How many.
        times: u32,
    },
    /// A job took nothing until this time of day: a dead man's switch.
    NothingBy(Deadline),
    /// A job took nothing for longer than this.
    NothingFor(Duration),
    /// A plan waits for approval.
    Held,
    /// An endpoint could not be reached for longer than this.
    Down(Duration),
    /// A certificate or key is valid for less than this.
    Expiring(Duration),
}

impl Condition {
    /// What kind of thing it is about.
    #[must_use]
    pub const fn concerns(&self) -> SubjectKind {
        match self {
            Self::Failed { .. } | Self::NothingBy(_) | Self::NothingFor(_) | Self::Held => {
                SubjectKind::Job
            }
            Self::Down(_) => SubjectKind::Endpoint,
            Self::Expiring(_) => SubjectKind::Credential,
        }
    }
}

impl Condition {
    /// Whether it has to do with what happened. A run that failed is no plan that is held.
    #[must_use]
    pub const fn heeds(&self, what: &What) -> bool {
        match what {
            What::Watched | What::Gone => true,
            What::Failed(_) | What::Succeeded => matches!(self, Self::Failed { .. }),
            What::Arrived => matches!(self, Self::NothingBy(_) | Self::NothingFor(_)),
            What::Held(_) | What::Released => matches!(self, Self::Held),
            What::Up | What::Down(_) => matches!(self, Self::Down(_)),
            What::Expires(_) => matches!(self, Self::Expiring(_)),
        }
    }
}

/// Whether the end of an episode is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Recovery {
    /// It is.
    #[default]
    Told,
    /// It is not.
    Silent,
}

/// Who else is told of what lasts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Escalation {
    /// After so long.
    pub after: Duration,
    /// Names of targets.
    pub targets: Vec<String>,
}

/// A rule: what is told to whom.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Its name; episodes are known by it.
    pub name: String,
    /// When it applies.
    pub condition: Condition,
    /// The names of what it is about; empty for everything of its kind.
    pub about: Vec<String>,
    /// How bad it is.
    pub severity: Severity,
    /// Names of the targets that are told first.
    pub targets: Vec<String>,
    /// Whether the end is told.
    pub recovery: Recovery,
    /// How often those who were told are reminded while it lasts.
    pub repeat: Option<Duration>,
    /// Who else is told, the first step first.
    pub escalation: Vec<Escalation>,
    /// When only what is urgent is told.
    pub quiet: Option<QuietHours>,
}

impl Rule {
    /// Whether it is about this.
    #[must_use]
    pub fn is_about(&self, subject: &Subject) -> bool {
        self.condition.concerns() == subject.kind
            && (self.about.is_empty() || self.about.contains(&subject.name))
    }

    pub(super) fn due(&self, at: Timestamp) -> Timestamp {
        self.quiet
            .as_ref()
            .map_or(at, |quiet| quiet.release(self.severity, at))
    }

    /// Everybody who was told, with so many steps of escalation.
    pub(super) fn told(&self, level: usize) -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        let steps = self.escalation.iter().take(level);
        for target in self.targets.iter().chain(steps.flat_map(|s| &s.targets)) {
            if !all.contains(target) {
                all.push(target.clone());
            }
        }
        all
    }
}
