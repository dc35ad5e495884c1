//! Faults on order, for the tests of everything above.

use std::sync::{Mutex, MutexGuard, PoisonError};

use knarr_core::RelPath;

use crate::error::{ErrorKind, RemoteError, Retry};
use crate::operation::Operation;

/// One fault that waits for its call.
#[derive(Debug, Clone)]
pub struct Fault {
    /// The kind of call that fails.
    pub operation: Operation,
    /// Only calls about this path count, or all.
    pub path: Option<RelPath>,
    /// How many calls still go well before.
    pub after: u64,
    /// How many calls fail then.
    pub times: u64,
    /// What the error is.
    pub kind: ErrorKind,
    /// What the error advises, unless it is the usual for its kind.
    pub retry: Option<Retry>,
}

impl Fault {
    /// The next call of `operation` fails with `kind`.
    #[must_use]
    pub const fn next(operation: Operation, kind: ErrorKind) -> Self {
        Self {
            operation,
            path: None,
            after: 0,
            times: 1,
            kind,
            retry: None,
        }
    }

    /// The same after `calls` calls that go well.
    #[must_use]
    pub const fn after(mut self, calls: u64) -> Self {
        self.after = calls;
        self
    }

    /// The same for `calls` calls in a row.
    #[must_use]
    pub const fn times(mut self, calls: u64) -> Self {
        self.times = calls;
        self
    }

    /// The same, only for calls about `path`.
    #[must_use]
    pub fn at(mut self, path: RelPath) -> Self {
        self.path = Some(path);
        self
    }
}

/// The faults of one place.
#[derive(Debug, Default)]
pub struct Faults(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    waiting: Vec<Fault>,
    listing_break: Option<usize>,
    down: bool,
}

impl Faults {
    /// Adds a fault.
    pub fn add(&self, fault: Fault) {
        self.state().waiting.push(fault);
    }

    /// The next listing breaks off after `items` items, without a word.
    pub fn break_next_listing_after(&self, items: usize) {
        self.state().listing_break = Some(items);
    }

    /// Whether nothing works any more, as if the network were gone.
    pub fn set_down(&self, down: bool) {
        self.state().down = down;
    }

    /// Forgets all faults.
    pub fn clear(&self) {
        *self.state() = State::default();
    }

    /// Fails if a fault waits for this call.
    pub(super) fn check(
        &self,
        operation: Operation,
        path: Option<&RelPath>,
    ) -> Result<(), RemoteError> {
        let mut state = self.state();
        if state.down {
            let error = RemoteError::new(ErrorKind::Unreachable, operation.name(), "it is down");
            return Err(at(error, path));
        }
        let waiting = &mut state.waiting;
        let mut failed = None;
        for fault in waiting.iter_mut() {
            let meant = fault.operation == operation
                && fault.path.as_ref().is_none_or(|only| path == Some(only));
            if !meant {
                continue;
            }
            if fault.after > 0 {
                fault.after -= 1;
            } else if failed.is_none() && fault.times > 0 {
                fault.times -= 1;
                let error = RemoteError::new(fault.kind, operation.name(), "a fault on order");
                failed = Some(match fault.retry {
                    Some(retry) => error.with_retry(retry),
                    None => error,
                });
            }
        }
        waiting.retain(|fault| fault.times > 0);
        drop(state);
        match failed {
            Some(error) => Err(at(error, path)),
            None => Ok(()),
        }
    }

    pub(super) fn take_listing_break(&self) -> Option<usize> {
        self.state().listing_break.take()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn at(error: RemoteError, path: Option<&RelPath>) -> RemoteError {
    match path {
        Some(path) => error.at(path),
        None => error,
    }
}
