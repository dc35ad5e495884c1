//! What is judged by looking: what did not come, what is held, who cannot be reached, what expires.

use std::time::Duration;

use knarr_core::Timestamp;
use knarr_core::alert::{AlertState, Condition, Event, Rule, States, Subject, SubjectKind, What};
use knarr_store::endpoints::Reachable;
use knarr_store::{Store, StoreError, Tx};
use tokio_util::sync::CancellationToken;

use crate::announce::{Announcer, ROUND, read};
use crate::node::Looks;

/// The shortest pause between two looks.
const SHORTEST: Duration = Duration::from_secs(1);

impl Announcer {
    /// Looks every half minute, or more often if a rule is about a shorter time, until cancelled.
    pub async fn rounds(&self, store: &Store, cancel: &CancellationToken) {
        while !cancel.is_cancelled() {
            if let Err(error) = self.round(store).await {
                let error = crate::error::chain(&error);
                tracing::error!("cannot judge what is to be told: {error}");
            }
            tokio::select! {
                () = cancel.cancelled() => {}
                () = tokio::time::sleep(self.pause()) => {}
            }
        }
    }

    /// Half of the shortest time that a rule is about, within reason.
    fn pause(&self) -> Duration {
        let alerting = self.alerting();
        let times = alerting
            .rules()
            .iter()
            .filter_map(|rule| match rule.condition {
                Condition::NothingFor(longer) | Condition::Down(longer) => Some(longer / 2),
                _ => None,
            });
        times.min().unwrap_or(ROUND).clamp(SHORTEST, ROUND)
    }

    /// Looks once, and writes what is to be told into the outbox.
    ///
    /// # Errors
    /// If the database cannot be read or written.
    pub async fn round(&self, store: &Store) -> Result<(), StoreError> {
        let announcer = self.clone();
        let written = store.transact(move |tx| announcer.round_within(tx)).await?;
        if written > 0 {
            self.wake();
        }
        Ok(())
    }

    fn round_within(&self, tx: &mut Tx<'_>) -> Result<usize, StoreError> {
        let alerting = self.alerting();
        let known = Known {
            states: tx.alert_states()?,
            rules: alerting.rules(),
            now: tx.now(),
        };
        let mut events = Vec::new();
        self.look_at_jobs(tx, &known, &mut events)?;
        self.look_at_endpoints(tx, &known, &mut events)?;
        self.look_at_credentials(&known, &mut events);
        alerting.judge(tx, &events)
    }

    fn look_at_jobs(
        &self,
        tx: &Tx<'_>,
        known: &Known<'_>,
        events: &mut Vec<Event>,
    ) -> Result<(), StoreError> {
        let pairs = tx.pairs()?;
        let jobs = read(&self.0.jobs).clone();
        for (name, job) in &jobs {
            let subject = Subject::job(name);
            events.push(known.event(&subject, What::Watched));
            let own = pairs
                .iter()
                .filter(|pair| pair.known_as.job.as_ref() == Some(name));
            let (mut held, mut parked) = (None, false);
            for pair in own {
                held = held.or(tx.held(pair.id)?.filter(|hold| hold.approval.is_none()));
                if job.looks == Looks::Always {
                    parked = parked || tx.has_parked(pair.id)?;
                }
            }
            match held {
                Some(hold) => {
                    let (deletes, total) = (hold.held.deletes, hold.held.total);
                    let reason = format!(
                        "{deletes} of {total} would be deleted: {}; `knarr approve {name}` lets it go on",
                        hold.held.reason
                    );
                    let at = hold.held_at.min(known.now);
                    events.push(Event {
                        at,
                        what: What::Held(reason),
                        subject: subject.clone(),
                    });
                }
                None if known.is_bad(&subject, |on| *on == Condition::Held) => {
                    events.push(known.event(&subject, What::Released));
                }
                None => {}
            }
            let fails = |on: &Condition| matches!(on, Condition::Failed { .. });
            if job.looks == Looks::Always && !parked && known.is_bad(&subject, fails) {
                events.push(known.event(&subject, What::Succeeded));
            }
        }
        known.gone(SubjectKind::Job, |name| jobs.contains_key(name), events);
        Ok(())
    }

    fn look_at_endpoints(
        &self,
        tx: &Tx<'_>,
        known: &Known<'_>,
        events: &mut Vec<Event>,
    ) -> Result<(), StoreError> {
        let names = read(&self.0.endpoints).clone();
        let mut subjects: Vec<String> = names.values().cloned().collect();
        for (known_as, health) in tx.endpoints()? {
            // One that no job uses any more is asked by nobody: what is known of it is old.
            let Some(name) = names.get(&known_as) else {
                continue;
            };
            let subject = Subject::endpoint(name);
            subjects.push(name.clone());
            match health.state {
                Reachable::Down => events.push(Event {
                    at: health.since.min(known.now),
                    what: What::Down(health.last_error.unwrap_or_default()),
                    subject,
                }),
                Reachable::Up if known.is_bad(&subject, |on| matches!(on, Condition::Down(_))) => {
                    events.push(known.event(&subject, What::Up));
                }
                Reachable::Up => {}
            }
        }
        let is_there = |name: &str| subjects.iter().any(|known| known == name);
        known.gone(SubjectKind::Endpoint, is_there, events);
        Ok(())
    }

    fn look_at_credentials(&self, known: &Known<'_>, events: &mut Vec<Event>) {
        let credentials = read(&self.0.credentials).clone();
        for credential in &credentials {
            let subject = Subject::credential(&credential.name);
            // What is valid for ever is as good as renewed.
            let until = credential
                .expires
                .unwrap_or(Timestamp::from_nanoseconds(i64::MAX));
            let states = known.states.iter();
            let is_known = states
                .filter(|((_, of), _)| *of == subject)
                .all(|(_, state)| state.expires_at() == Some(until));
            let is_there = known.states.keys().any(|(_, of)| *of == subject);
            if !is_known || !is_there {
                events.push(known.event(&subject, What::Expires(until)));
            }
        }
        let is_there = |name: &str| credentials.iter().any(|known| known.name == name);
        known.gone(SubjectKind::Credential, is_there, events);
    }
}

/// What a round begins with.
struct Known<'r> {
    states: States,
    rules: &'r [Rule],
    now: Timestamp,
}

impl Known<'_> {
    fn event(&self, subject: &Subject, what: What) -> Event {
        Event {
            at: self.now,
            what,
            subject: subject.clone(),
        }
    }

    /// Whether something bad is known of the subject under a rule of this kind.
    fn is_bad(&self, subject: &Subject, kind: impl Fn(&Condition) -> bool) -> bool {
        let mut rules = self.rules.iter().filter(|rule| kind(&rule.condition));
        rules.any(|rule| {
            let state = self.states.get(&(rule.name.clone(), subject.clone()));
            state.is_some_and(AlertState::is_bad)
        })
    }

    /// What is not configured any more ends.
    fn gone(&self, kind: SubjectKind, is_there: impl Fn(&str) -> bool, events: &mut Vec<Event>) {
        let mut subjects: Vec<&Subject> = self
            .states
            .keys()
            .map(|(_, subject)| subject)
            .filter(|subject| subject.kind == kind && !is_there(&subject.name))
            .collect();
        subjects.dedup();
        for subject in subjects {
            events.push(self.event(subject, What::Gone));
        }
    }
}
