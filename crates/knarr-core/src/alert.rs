//! Who is told what, and when: rules, what is known, and what happened go in; what is known now and
//! what is to be told come out.
//!
//! Constraints:
//!
//! * No clock and no I/O. The same input always tells the same, so whoever writes the new states and the
//!   notifications in one transaction tells nothing twice and forgets nothing, whatever crashes when.
//! * An *episode* is the time in which a condition holds for one subject (a job, an endpoint, a
//!   certificate). It is told once when it begins, and once when it ends; reminders and escalations have
//!   numbers of their own.
//! * What happened since the last call may be given in any order: it is put in order here, and each event
//!   is judged at its own time.
//! * Quiet hours put off, and never drop: what begins or ends in them is due when they end.

mod hours;
mod rule;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;
pub use hours::{Deadline, Hours, HoursError, QuietHours, Weekdays};
pub use rule::{Condition, Escalation, Recovery, Rule, Severity, Subject, SubjectKind};

/// The longest reason that is kept, in bytes.
const REASON_BYTES: usize = 2_000;

/// What happened to a subject. Who raises them need not know the rules.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// It exists: from now on what does not come is missed. Said at every start; only the first counts.
    Watched,
    /// A run of the job succeeded.
    Succeeded,
    /// The job took something.
    Arrived,
    /// No plan is held any more.
    Released,
    /// The endpoint answered.
    Up,
    /// The certificate or key is valid until then.
    Expires(Timestamp),
    /// A run of the job failed.
    Failed(String),
    /// A plan waits for approval.
    Held(String),
    /// The endpoint does not answer.
    Down(String),
    /// It is not configured any more.
    Gone,
}

/// Something that happened. In order of time; at the same instant what is good comes first, so that what
/// is bad is never overlooked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Event {
    /// When.
    pub at: Timestamp,
    /// What.
    pub what: What,
    /// To what.
    pub subject: Subject,
}

/// What is known about one subject under one rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlertState {
    watched_since: Timestamp,
    last_arrival: Option<Timestamp>,
    failures: u32,
    bad_since: Option<Timestamp>,
    expires_at: Option<Timestamp>,
    reason: String,
    /// How often something good happened: an episode cannot end without.
    good: u64,
    episodes: u64,
    episode: Option<Episode>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Episode {
    number: u64,
    since: Timestamp,
    good: u64,
    told_at: Timestamp,
    last_told: Timestamp,
    reminders: u32,
    level: usize,
}

impl AlertState {
    const fn new(at: Timestamp) -> Self {
        Self {
            watched_since: at,
            last_arrival: None,
            failures: 0,
            bad_since: None,
            expires_at: None,
            reason: String::new(),
            good: 0,
            episodes: 0,
            episode: None,
        }
    }

    /// Since when the condition holds, if it does and was told.
    #[must_use]
    pub fn firing_since(&self) -> Option<Timestamp> {
        self.episode.as_ref().map(|episode| episode.since)
    }

    /// Whether something bad is known, told or not.
    #[must_use]
    pub const fn is_bad(&self) -> bool {
        self.bad_since.is_some() || self.episode.is_some()
    }

    /// Until when a certificate or key is valid, if that is known.
    #[must_use]
    pub const fn expires_at(&self) -> Option<Timestamp> {
        self.expires_at
    }

    fn apply(&mut self, what: &What, at: Timestamp) {
        match what {
            What::Watched | What::Gone => return,
            What::Failed(reason) => {
                self.failures = self.failures.saturating_add(1);
                self.bad(reason, at);
                return;
            }
            What::Held(reason) | What::Down(reason) => {
                self.bad(reason, at);
                return;
            }
            What::Succeeded => {
                self.failures = 0;
                self.bad_since = None;
            }
            What::Released | What::Up => self.bad_since = None,
            What::Arrived => self.last_arrival = self.last_arrival.max(Some(at)),
            What::Expires(until) => self.expires_at = Some(*until),
        }
        self.good = self.good.saturating_add(1);
    }

    fn bad(&mut self, reason: &str, at: Timestamp) {
        self.bad_since.get_or_insert(at);
        let end = reason.floor_char_boundary(REASON_BYTES);
        self.reason = reason.get(..end).unwrap_or_default().to_owned();
    }

    /// Since when the condition holds at this time, if it does.
    fn holds(&self, condition: &Condition, at: Timestamp) -> Option<Timestamp> {
        match condition {
            Condition::Failed { times } => {
                self.bad_since.filter(|_| self.failures >= (*times).max(1))
            }
            Condition::Held => self.bad_since,
            Condition::Down(longer) => self.bad_since.filter(|since| since.after(*longer) <= at),
            Condition::NothingFor(longer) => {
                let last = self.last_arrival.unwrap_or(self.watched_since);
                let since = last.after(*longer);
                (since < at).then_some(since)
            }
            Condition::NothingBy(deadline) => {
                let (by, counts_since) = deadline.latest(at)?;
                let in_time = self.last_arrival.is_some_and(|last| last >= counts_since);
                (!in_time && self.watched_since <= by).then_some(by)
            }
            Condition::Expiring(within) => {
                let from = self.expires_at?.before(*within);
                (from <= at).then_some(from)
            }
        }
    }
}

/// What a notification says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// It began.
    Problem,
    /// It still lasts; which reminder this is.
    Reminder(u32),
    /// It still lasts, and others are told too; which step this is.
    Escalated(u32),
    /// It is over.
    Recovered,
}

/// Something to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    /// The rule.
    pub rule: String,
    /// About what.
    pub subject: Subject,
    /// What it says.
    pub kind: Kind,
    /// How bad it is.
    pub severity: Severity,
    /// Who is told.
    pub targets: Vec<String>,
    /// Since when the condition holds; with the rule and the subject, which episode it is.
    pub since: Timestamp,
    /// Tells apart episodes that began at the same instant.
    pub episode: u64,
    /// When it was decided.
    pub at: Timestamp,
    /// Not told before.
    pub due: Timestamp,
    /// One line for a person.
    pub text: String,
}

impl Notification {
    /// The idempotency key of this notification for one target: the same whenever it is computed again.
    #[must_use]
    pub fn key(&self, target: &str) -> String {
        let kind = match self.kind {
            Kind::Problem => "problem".to_owned(),
            Kind::Reminder(number) => format!("reminder {number}"),
            Kind::Escalated(step) => format!("step {step}"),
            Kind::Recovered => "recovered".to_owned(),
        };
        let since = self.since.nanoseconds().to_le_bytes();
        let episode = self.episode.to_le_bytes();
        stable_key(
            "alert",
            &[
                self.rule.as_bytes(),
                self.subject.key().as_bytes(),
                &since,
                &episode,
                kind.as_bytes(),
                target.as_bytes(),
            ],
        )
    }
}

/// A key made of parts: the same parts always give the same key, other parts another. Letters, digits and
/// a dash, so that it may stand in a header, a file name and a Message-ID.
#[must_use]
pub fn stable_key(prefix: &str, parts: &[&[u8]]) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    let hex = hasher.finalize().to_hex();
    format!("{prefix}-{}", hex.get(..32).unwrap_or(&hex))
}

/// What is known, by rule and subject.
pub type States = BTreeMap<(String, Subject), AlertState>;

/// What came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What is known now. What is about a rule that is no more is left out.
    pub states: States,
    /// What is to be told, in the order in which it happened.
    pub notifications: Vec<Notification>,
}

/// Judges what happened until `now`. Without events it is a tick: what depends on time alone is judged,
/// reminders and escalations come due.
#[must_use]
pub fn step(rules: &[Rule], mut states: States, events: &[Event], now: Timestamp) -> Step {
    let mut notifications = Vec::new();
    let mut ordered: Vec<Event> = events.to_vec();
    for event in &mut ordered {
        // From a clock that was set back since.
        event.at = event.at.min(now);
    }
    ordered.sort();
    for event in &ordered {
        let concerned = rules
            .iter()
            .filter(|rule| rule.is_about(&event.subject) && rule.condition.heeds(&event.what));
        for rule in concerned {
            let key = (rule.name.clone(), event.subject.clone());
            if event.what == What::Gone {
                if let Some(mut state) = states.remove(&key) {
                    let text = format!("{} is not configured any more", event.subject);
                    finish(
                        rule,
                        &event.subject,
                        &mut state,
                        event.at,
                        text,
                        &mut notifications,
                    );
                }
                continue;
            }
            let state = states
                .entry(key)
                .or_insert_with(|| AlertState::new(event.at));
            // What time alone made true before this event is told, even if the event ends it.
            judge(rule, &event.subject, state, event.at, &mut notifications);
            state.apply(&event.what, event.at);
            judge(rule, &event.subject, state, event.at, &mut notifications);
        }
    }
    states.retain(|(name, subject), state| {
        let Some(rule) = rules
            .iter()
            .find(|rule| rule.name == *name && rule.is_about(subject))
        else {
            return false;
        };
        // A clock that was set back must not hide for a day that nothing came.
        state.last_arrival = state.last_arrival.map(|last| last.min(now));
        state.watched_since = state.watched_since.min(now);
        judge(rule, subject, state, now, &mut notifications);
        remind(rule, subject, state, now, &mut notifications);
        true
    });
    Step {
        states,
        notifications,
    }
}

fn judge(
    rule: &Rule,
    subject: &Subject,
    state: &mut AlertState,
    at: Timestamp,
    out: &mut Vec<Notification>,
) {
    let holds = state.holds(&rule.condition, at);
    match (&state.episode, holds) {
        (Some(episode), None) if state.good > episode.good => {
            let text = format!("{subject}: {}", good_news(&rule.condition));
            finish(rule, subject, state, at, text, out);
        }
        (None, Some(since)) => {
            state.episodes += 1;
            let due = rule.due(at);
            let episode = Episode {
                number: state.episodes,
                since,
                good: state.good,
                told_at: due,
                last_told: due,
                reminders: 0,
                level: 0,
            };
            let text = bad_news(rule, subject, state, since);
            out.push(notify(rule, subject, &episode, Kind::Problem, at, text));
            state.episode = Some(episode);
        }
        _ => {}
    }
}

fn finish(
    rule: &Rule,
    subject: &Subject,
    state: &mut AlertState,
    at: Timestamp,
    text: String,
    out: &mut Vec<Notification>,
) {
    if let Some(episode) = state.episode.take()
        && rule.recovery == Recovery::Told
    {
        out.push(notify(rule, subject, &episode, Kind::Recovered, at, text));
    }
}

/// Reminders and escalations: only at the time that it is now, and not in quiet hours.
fn remind(
    rule: &Rule,
    subject: &Subject,
    state: &mut AlertState,
    now: Timestamp,
    out: &mut Vec<Notification>,
) {
    let Some(mut episode) = state.episode.take() else {
        return;
    };
    if rule.due(now) == now {
        let text = bad_news(rule, subject, state, episode.since);
        while let Some(next) = rule.escalation.get(episode.level)
            && episode.told_at.after(next.after) <= now
        {
            episode.level += 1;
            let step = u32::try_from(episode.level).unwrap_or(u32::MAX);
            let mut told = notify(
                rule,
                subject,
                &episode,
                Kind::Escalated(step),
                now,
                text.clone(),
            );
            told.targets.clone_from(&next.targets);
            out.push(told);
            episode.last_told = now;
        }
        if let Some(repeat) = rule.repeat
            && episode.last_told.after(repeat) <= now
        {
            episode.reminders = episode.reminders.saturating_add(1);
            episode.last_told = now;
            let kind = Kind::Reminder(episode.reminders);
            out.push(notify(rule, subject, &episode, kind, now, text));
        }
    }
    state.episode = Some(episode);
}

fn notify(
    rule: &Rule,
    subject: &Subject,
    episode: &Episode,
    kind: Kind,
    at: Timestamp,
    text: String,
) -> Notification {
    Notification {
        rule: rule.name.clone(),
        subject: subject.clone(),
        kind,
        severity: rule.severity,
        targets: rule.told(episode.level),
        since: episode.since,
        episode: episode.number,
        at,
        // Never before what it follows.
        due: rule.due(at).max(episode.told_at),
        text,
    }
}

const fn good_news(condition: &Condition) -> &'static str {
    match condition {
        Condition::Failed { .. } => "succeeded again",
        Condition::NothingBy(_) | Condition::NothingFor(_) => "something came again",
        Condition::Held => "nothing is held any more",
        Condition::Down(_) => "can be reached again",
        Condition::Expiring(_) => "was renewed",
    }
}

fn bad_news(rule: &Rule, subject: &Subject, state: &AlertState, since: Timestamp) -> String {
    let last = || {
        state.last_arrival.map_or_else(
            || "nothing ever came".to_owned(),
            |at| format!("the last came at {at}"),
        )
    };
    match &rule.condition {
        Condition::Failed { .. } => {
            let times = state.failures;
            let reason = &state.reason;
            if times > 1 {
                format!("{subject} failed {times} times in a row: {reason}")
            } else {
                format!("{subject} failed: {reason}")
            }
        }
        Condition::NothingBy(_) => format!("{subject}: nothing came until {since}; {}", last()),
        Condition::NothingFor(longer) => {
            let longer = crate::units::Span(*longer);
            format!("{subject}: nothing came for {longer}; {}", last())
        }
        Condition::Held => format!("{subject}: a plan waits for approval: {}", state.reason),
        Condition::Down(_) => {
            let since = state.bad_since.unwrap_or(since);
            format!(
                "{subject} cannot be reached since {since}: {}",
                state.reason
            )
        }
        Condition::Expiring(_) => match state.expires_at {
            Some(until) => format!("{subject} is valid until {until} only: renew it"),
            None => format!("{subject} is about to expire: renew it"),
        },
    }
}
