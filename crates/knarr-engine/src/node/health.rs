//! The health of a destination: a state of the endpoint, not a failure of each file.
//!
//! When an operation says that the endpoint is down, the circuit opens: nothing more is sent there,
//! observing goes on, and one probe with backoff asks until it is back. The state stands in the store,
//! so that `knarr status` shows it.

use std::sync::Arc;

use knarr_core::retry::RetryPolicy;
use knarr_core::{Clock, RelPath};
use knarr_remote::{Remote, RemoteError, Retry};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::error::EngineError;
use crate::journal::Journal;
use crate::observer::{Event, Observer, Trouble};

/// A circuit: closed while the endpoint is up.
#[derive(Debug, Clone)]
pub(crate) struct Circuit {
    up: watch::Sender<bool>,
    remote: Arc<dyn Remote>,
    journal: Journal,
    retry: RetryPolicy,
    clock: Arc<dyn Clock>,
    observer: Arc<dyn Observer>,
    cancel: CancellationToken,
}

impl Circuit {
    pub(crate) fn new(
        remote: Arc<dyn Remote>,
        journal: Journal,
        retry: RetryPolicy,
        environment: &crate::oneshot::Environment,
    ) -> Self {
        Self {
            up: watch::Sender::new(true),
            remote,
            journal,
            retry,
            clock: Arc::clone(&environment.clock),
            observer: Arc::clone(&environment.observer),
            cancel: environment.cancel.clone(),
        }
    }

    /// Whether work may go there.
    pub(crate) fn is_up(&self) -> bool {
        *self.up.borrow()
    }

    /// Waits until it is up, or until asked to stop.
    pub(crate) async fn until_up(&self) {
        let mut up = self.up.subscribe();
        tokio::select! {
            () = self.cancel.cancelled() => {}
            // The sender lives as long as this does.
            _changed = up.wait_for(|up| *up) => {}
        }
    }

    /// Opens the circuit because of `error`; the first one to do so probes until it is back.
    ///
    /// # Errors
    /// If the state could not be recorded.
    pub(crate) async fn opened(&self, error: &RemoteError) -> Result<(), EngineError> {
        let first = self.up.send_if_modified(|up| std::mem::replace(up, false));
        if !first {
            return Ok(());
        }
        let endpoint = self.remote.describe().endpoint.clone();
        let reason = crate::error::chain(error);
        self.say(&format!("{endpoint} is down: {reason}"));
        let mut failures = 1;
        loop {
            let pause = self.retry.backoff(failures, f64::from(failures % 5) / 5.0);
            let next = self.clock.now().after(pause);
            self.journal.endpoint_down(&endpoint, &reason, next).await?;
            tokio::select! {
                () = self.cancel.cancelled() => return Ok(()),
                () = tokio::time::sleep(pause) => {}
            }
            if self.answers().await {
                break;
            }
            failures = failures.saturating_add(1);
        }
        self.journal.endpoint_up(&endpoint).await?;
        self.say(&format!("{endpoint} is back"));
        self.up.send_replace(true);
        Ok(())
    }

    async fn answers(&self) -> bool {
        let Ok(path) = RelPath::from_name(b".knarr-probe") else {
            return true;
        };
        match self.remote.stat(&path).await {
            Ok(_) => true,
            // Whatever else it says, it is there to say it.
            Err(error) => error.retry != Retry::EndpointDown,
        }
    }

    fn say(&self, message: &str) {
        let (path, kind) = (None, Trouble::Notice);
        self.observer.event(&Event::Trouble {
            path,
            kind,
            message,
        });
    }
}
