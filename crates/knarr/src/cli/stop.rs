//! Stops in good order on SIGINT and SIGTERM.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Cancels `cancel` on the first SIGINT, SIGTERM or SIGHUP. Needs a runtime.
pub(crate) fn on_signals(cancel: &CancellationToken) {
    on_termination(cancel);
    on(cancel, &[SignalKind::hangup()]);
}

/// The same, but SIGHUP is for something else. Needs a runtime.
pub(crate) fn on_termination(cancel: &CancellationToken) {
    on(cancel, &[SignalKind::interrupt(), SignalKind::terminate()]);
}

fn on(cancel: &CancellationToken, kinds: &[SignalKind]) {
    for &kind in kinds {
        let Ok(mut signals) = signal(kind) else {
            tracing::warn!("a signal cannot be listened to; stopping it will cut transfers off");
            continue;
        };
        let cancel = cancel.clone();
        tokio::spawn(async move {
            if signals.recv().await.is_some() {
                tracing::info!("stopping: what is in flight is finished or kept for the next time");
                cancel.cancel();
            }
        });
    }
}
