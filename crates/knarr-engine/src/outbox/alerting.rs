//! The rules at work: what happened goes in, what is to be told goes into the outbox, in one transaction.

use std::sync::Arc;

use knarr_core::alert::{Event, Rule, step};
use knarr_store::{Store, StoreError, Tx};

use crate::outbox::{AlertFacts, Waker};

/// The alert rules of a configuration.
#[derive(Debug, Clone, Default)]
pub struct Alerting {
    rules: Arc<[Rule]>,
}

impl Alerting {
    /// These rules.
    #[must_use]
    pub fn new(rules: Vec<Rule>) -> Self {
        Self {
            rules: rules.into(),
        }
    }

    /// The rules.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Whether anything is ever told.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.rules.is_empty()
    }

    /// Judges what happened, inside a transaction that records it; says how many messages were written.
    /// Without events it is a tick: call it every half minute or so.
    ///
    /// # Errors
    /// If the database cannot be read or written.
    pub fn judge(&self, tx: &mut Tx<'_>, events: &[Event]) -> Result<usize, StoreError> {
        let now = tx.now();
        let before = tx.alert_states()?;
        if before.is_empty() && events.is_empty() {
            return Ok(0);
        }
        let out = step(&self.rules, before.clone(), events, now);
        tx.set_alert_states(&before, &out.states)?;
        let mut written = 0;
        for message in out.notifications.iter().flat_map(AlertFacts::messages) {
            tx.enqueue(&message)?;
            written += 1;
        }
        Ok(written)
    }

    /// The same in a transaction of its own; wakes the worker if something is to be told.
    ///
    /// # Errors
    /// If the database cannot be read or written.
    pub async fn happened(
        &self,
        store: &Store,
        events: Vec<Event>,
        waker: &Waker,
    ) -> Result<(), StoreError> {
        let alerting = self.clone();
        let written = store
            .transact(move |tx| alerting.judge(tx, &events))
            .await?;
        if written > 0 {
            waker.wake();
        }
        Ok(())
    }
}
