//! Runs, lanes, and what is known of roots and endpoints.

use knarr_core::Timestamp;
use knarr_core::plan::Side;
use knarr_core::run::RunEvent;
use knarr_fs::identity::RootIdentity;
use knarr_store::endpoints::Reachable;
use knarr_store::in_flight::InFlight;
use knarr_store::runs::RunCounts;

use super::{Journal, degraded_setting, scanning_setting, store_side};
use crate::error::EngineError;
use crate::holds::take_approval;
use crate::oneshot::Report;

impl Journal {
    /// Ends the run, with a word on why it ended so.
    pub(crate) async fn finish(
        &self,
        event: RunEvent,
        report: &Report,
        message: Option<String>,
    ) -> Result<(), EngineError> {
        let counts = RunCounts {
            seen: report.source_entries,
            created: report.created,
            updated: report.updated,
            renamed: report.renamed,
            deleted: report.deleted,
            unchanged: report.adopted,
            skipped: report.skipped,
            conflicts: report.conflicts,
            problems: report.problems,
            failed: report.failed,
            moved_bytes: report.sent_bytes,
        };
        let (run, announcing, report) = (self.run, self.announcing.clone(), *report);
        let state = self
            .write(move |tx, _| {
                let state = tx.finish_run(run, event, &counts, message.as_deref())?;
                announcing.run_ended(tx, &report, state, message.as_deref())?;
                Ok(state)
            })
            .await?;
        self.announcing.run_has_ended(state);
        Ok(())
    }

    /// Begins to work on a watched directory: what an earlier process had in flight is not any more.
    pub(crate) async fn begin_lane(&self) -> Result<(), EngineError> {
        self.write(|tx, pair| tx.set_in_flight(pair, &[])).await
    }

    /// Ends it.
    pub(crate) async fn finish_lane(&self) -> Result<(), EngineError> {
        let run = self.run;
        self.write(move |tx, pair| {
            tx.set_in_flight(pair, &[])?;
            tx.finish_run(
                run,
                RunEvent::Finished { failed: 0 },
                &RunCounts::default(),
                None,
            )
            .map(drop)
        })
        .await
    }

    /// Notes what is in flight, for `knarr queue`.
    pub(crate) async fn set_in_flight(&self, files: Vec<InFlight>) -> Result<(), EngineError> {
        self.write(move |tx, pair| tx.set_in_flight(pair, &files))
            .await
    }

    /// Whether the root of a side is the one it was; it is noted if it is the first or was approved.
    pub(crate) async fn check_root(&self, side: Side, identity: &str) -> Result<bool, EngineError> {
        let (side, identity) = (store_side(side), identity.to_owned());
        self.write(move |tx, pair| {
            match tx.known_root(pair, side)? {
                Some(known) if is_same_root(&known.identity, &identity) => return Ok(true),
                Some(_) if take_approval(tx, pair)?.is_none() => return Ok(false),
                Some(_) | None => {}
            }
            tx.set_known_root(pair, side, &identity, None)?;
            Ok(true)
        })
        .await
    }

    /// Whether the root of a side is another one than was noted last.
    pub(crate) async fn is_other_root(
        &self,
        side: Side,
        identity: &str,
    ) -> Result<bool, EngineError> {
        let (side, identity) = (store_side(side), identity.to_owned());
        self.write(move |tx, pair| {
            let known = tx.known_root(pair, side)?;
            Ok(known.is_some_and(|known| !is_same_root(&known.identity, &identity)))
        })
        .await
    }

    /// Notes which directory the root of a side is.
    pub(crate) async fn note_root(&self, side: Side, identity: &str) -> Result<(), EngineError> {
        let (side, identity) = (store_side(side), identity.to_owned());
        self.write(move |tx, pair| {
            let known = tx.known_root(pair, side)?;
            if known.is_some_and(|known| known.identity == identity) {
                return Ok(());
            }
            tx.set_known_root(pair, side, &identity, None)
        })
        .await
    }

    /// Notes why a directory is polled instead of watched, or that it is watched. Blocks.
    pub(crate) fn set_degraded(&self, reason: Option<&str>) -> Result<(), EngineError> {
        let (name, reason) = (degraded_setting(self.pair), reason.map(str::to_owned));
        let pending = self.store.transact(move |tx| match reason {
            Some(reason) => tx.set_setting(&name, &reason),
            None => tx.remove_setting(&name),
        });
        pending.wait().map_err(EngineError::Store)
    }

    /// Notes whether everything below the directory is being looked at.
    pub(crate) async fn set_scanning(&self, scanning: bool) -> Result<(), EngineError> {
        let name = scanning_setting(self.pair);
        self.write(move |tx, _| {
            if scanning {
                tx.set_setting(&name, "everything")
            } else {
                tx.remove_setting(&name)
            }
        })
        .await
    }

    /// Whether a part of the directory is polled.
    pub(crate) async fn is_degraded(&self) -> Result<bool, EngineError> {
        let name = degraded_setting(self.pair);
        self.read(move |reader| Ok(reader.setting(&name)?.is_some()))
            .await
    }

    /// Notes that an endpoint is down.
    pub(crate) async fn endpoint_down(
        &self,
        name: &str,
        reason: &str,
        next_probe: Timestamp,
    ) -> Result<(), EngineError> {
        let (name, reason) = (name.to_owned(), reason.to_owned());
        self.write(move |tx, _| {
            tx.set_endpoint(&name, Reachable::Down, Some(&reason), Some(next_probe))
        })
        .await
    }

    /// Notes that an endpoint did not answer a run; the next run asks it again.
    pub(crate) async fn endpoint_unreachable(
        &self,
        name: &str,
        reason: &str,
    ) -> Result<(), EngineError> {
        let (name, reason) = (name.to_owned(), reason.to_owned());
        self.write(move |tx, _| tx.set_endpoint(&name, Reachable::Down, Some(&reason), None))
            .await
    }

    /// Notes that an endpoint answers, if it did not before.
    pub(crate) async fn endpoint_answered(&self, name: &str) -> Result<(), EngineError> {
        let asked = name.to_owned();
        let health = self.read(move |reader| reader.endpoint(&asked)).await?;
        match health {
            Some(health) if health.state == Reachable::Down => self.endpoint_up(name).await,
            Some(_) | None => Ok(()),
        }
    }

    /// Notes that an endpoint answers.
    pub(crate) async fn endpoint_up(&self, name: &str) -> Result<(), EngineError> {
        let name = name.to_owned();
        self.write(move |tx, _| tx.set_endpoint(&name, Reachable::Up, None, None))
            .await
    }
}

/// Whether two identities, as they are noted, are of the same directory. Device numbers may change at a
/// reboot.
fn is_same_root(known: &str, now: &str) -> bool {
    match (RootIdentity::decode(known), RootIdentity::decode(now)) {
        (Some(known), Some(now)) => known.is_same_root(&now),
        _ => known == now,
    }
}
