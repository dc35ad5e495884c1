//! One lane: what is of one job for one target, in order.

use std::sync::Arc;

use knarr_core::Timestamp;
use knarr_store::StoreError;
use knarr_store::outbox::{OutboxId, Stored};

use crate::outbox::worker::{PAGE, Served, chance};
use crate::outbox::{Message, TargetError};

/// Works through a lane until nothing of it is due.
pub(super) struct Lane {
    pub(super) served: Served,
    pub(super) job: String,
}

/// Why a lane came to an end.
pub(super) enum LaneEnd {
    /// Nothing of it is due now, or it is to stop.
    Rest,
    /// The state cannot be read or written.
    Store(StoreError),
}

/// What comes after a message.
enum Next {
    /// The one behind it.
    Message,
    /// Nothing for now.
    Rest,
}

impl Lane {
    pub(super) async fn run(self) -> (String, LaneEnd) {
        let end = self
            .work()
            .await
            .err()
            .map_or(LaneEnd::Rest, LaneEnd::Store);
        (self.job, end)
    }

    async fn work(&self) -> Result<(), StoreError> {
        loop {
            let (name, job) = (Arc::clone(&self.served.name), self.job.clone());
            let page = self
                .served
                .store
                .read_async(move |reader| reader.outbox_lane(&name, &job, PAGE))
                .await?;
            if page.is_empty() {
                return Ok(());
            }
            for stored in page {
                match self.one(&stored).await? {
                    Next::Message => {}
                    Next::Rest => return Ok(()),
                }
            }
        }
    }

    async fn one(&self, stored: &Stored) -> Result<Next, StoreError> {
        let served = &self.served;
        let now = served.clock.now();
        // Others of this target may have found it down meanwhile.
        if stored.message.due_at > now || served.circuit.is_down(now) {
            return Ok(Next::Rest);
        }
        let message = Message::of(stored, &served.node);
        let outcome = tokio::select! {
            // Dropping the delivery leaves nothing running; it is repeated with the same key.
            () = served.cancel.cancelled() => return Ok(Next::Rest),
            outcome = served.target.deliver(&message) => outcome,
        };
        let (id, target) = (stored.id, &served.name);
        match outcome {
            Ok(receipt) => {
                let output = receipt.output;
                tracing::debug!(%target, key = %message.key, output, "delivered");
                self.record(move |tx| tx.outbox_done(id)).await?;
                if served.circuit.close() {
                    tracing::info!(%target, "the target takes messages again");
                    served.look_again();
                }
                Ok(Next::Message)
            }
            Err(TargetError::Unreachable {
                reason,
                retry_after,
            }) => {
                let now = served.clock.now();
                let until = served.circuit.open(now, &served.options, retry_after);
                tracing::warn!(%target, "the target takes nothing until {until}: {reason}");
                self.record(move |tx| tx.outbox_postponed(id, &reason, until))
                    .await?;
                Ok(Next::Rest)
            }
            Err(TargetError::Failed { reason }) => self.failed(stored, reason).await,
            Err(TargetError::Refused { reason }) => self.park(id, reason).await,
        }
    }

    async fn failed(&self, stored: &Stored, reason: String) -> Result<Next, StoreError> {
        let served = &self.served;
        let (id, target) = (stored.id, &served.name);
        // It answered, if not well.
        if served.circuit.close() {
            served.look_again();
        }
        let failures = stored.attempts.saturating_add(1);
        let Some(pause) = served.options.retry.pause(failures, chance()) else {
            return self.park(id, reason).await;
        };
        let next: Timestamp = served.clock.now().after(pause);
        tracing::warn!(%target, key = %stored.message.key, "tried again at {next}: {reason}");
        self.record(move |tx| tx.outbox_failed(id, &reason, next))
            .await?;
        Ok(Next::Rest)
    }

    async fn park(&self, id: OutboxId, reason: String) -> Result<Next, StoreError> {
        let served = &self.served;
        tracing::error!(target = %served.name, "a message is parked: {reason}");
        if served.circuit.close() {
            served.look_again();
        }
        self.record(move |tx| tx.outbox_park(id, &reason)).await?;
        Ok(Next::Message)
    }

    async fn record(
        &self,
        work: impl FnOnce(&mut knarr_store::Tx<'_>) -> Result<(), StoreError> + Send + 'static,
    ) -> Result<(), StoreError> {
        self.served.store.transact(work).await
    }
}
