//! Forgets what is old, once an hour, in small transactions.

use std::time::Duration;

use knarr_core::Timestamp;
use knarr_store::retention::Pruned;
use knarr_store::{Store, StoreError};
use tokio_util::sync::CancellationToken;

use crate::config::Retention;

/// How often it is looked for what is old.
const EVERY: Duration = Duration::from_secs(3_600);
/// The pause between two transactions: others come first.
const BREATH: Duration = Duration::from_millis(20);

/// Forgets until cancelled.
pub(crate) async fn keep(store: Store, retention: Retention, cancel: CancellationToken) {
    if retention == Retention::default() {
        return;
    }
    while !cancel.is_cancelled() {
        if let Err(error) = forget(&store, retention, &cancel).await {
            let error = knarr_engine::chain(&error);
            tracing::error!("what is old cannot be forgotten: {error}");
        }
        tokio::select! {
            () = cancel.cancelled() => {}
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

async fn forget(
    store: &Store,
    retention: Retention,
    cancel: &CancellationToken,
) -> Result<(), StoreError> {
    let now = store.clock().now();
    if let Some(kept) = retention.history {
        let horizon = now.before(kept);
        let records = records(store, horizon, cancel).await?;
        let runs = steps(cancel, || store.transact(move |tx| tx.prune_runs(horizon))).await?;
        if records.records + runs > 0 {
            let Pruned { records, carried } = records;
            tracing::info!(
                records,
                carried,
                runs,
                "what is older than {kept:?} was forgotten"
            );
        }
    }
    if let Some(kept) = retention.events {
        let horizon = now.before(kept);
        let events = steps(cancel, || {
            store.transact(move |tx| tx.prune_events(horizon))
        })
        .await?;
        if events > 0 {
            tracing::warn!(
                events,
                "events that nobody took were forgotten: a target is down for long"
            );
        }
    }
    Ok(())
}

async fn records(
    store: &Store,
    horizon: Timestamp,
    cancel: &CancellationToken,
) -> Result<Pruned, StoreError> {
    let mut all = Pruned::default();
    while !cancel.is_cancelled() {
        let step = store.transact(move |tx| tx.prune_custody(horizon)).await?;
        if step.records == 0 {
            break;
        }
        all.records += step.records;
        all.carried += step.carried;
        tokio::time::sleep(BREATH).await;
    }
    Ok(all)
}

async fn steps(
    cancel: &CancellationToken,
    step: impl Fn() -> knarr_store::Pending<u64>,
) -> Result<u64, StoreError> {
    let mut all = 0;
    while !cancel.is_cancelled() {
        let removed = step().await?;
        if removed == 0 {
            break;
        }
        all += removed;
        tokio::time::sleep(BREATH).await;
    }
    Ok(all)
}
