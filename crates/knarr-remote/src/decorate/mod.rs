//! Remotes around remotes: each adds one behaviour and changes no other.
//!
//! * [`retry::Retrying`] repeats what may be repeated.
//! * [`limit::Limited`] limits bytes a second and calls at once.
//! * [`record::Recording`] counts what is asked.
//! * [`dry_run::DryRun`] changes nothing.
//!
//! Each passes the suite in [`crate::conformance`] around a memory remote (the dry run the reading
//! half, which is all it does). Only a decorator that a copy past it could not cheat shows the local
//! directory below it ([`crate::Remote::as_local`]).

pub mod dry_run;
pub mod limit;
pub mod record;
pub mod retry;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::upload::{Committer, Staged};

/// The wrapped committers of one decorator: one for each committer below, as batches are recognised
/// by the committer's address.
#[derive(Default)]
struct Committers(Mutex<Vec<Wrapped>>);

/// A committer below and the one around it, as long as somebody uses them.
struct Wrapped {
    inner: Weak<dyn Committer>,
    outer: Weak<dyn Committer>,
}

impl fmt::Debug for Committers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Committers").finish_non_exhaustive()
    }
}

impl Committers {
    /// `staged` with its committer wrapped by `wrap`, or by an earlier call for the same committer.
    fn wrap(
        &self,
        staged: Staged,
        wrap: impl FnOnce(Arc<dyn Committer>) -> Arc<dyn Committer>,
    ) -> Staged {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|wrapped| wrapped.outer.strong_count() > 0);
        let inner = Arc::clone(&staged.committer);
        let found = known.iter().find_map(|wrapped| {
            let below = wrapped.inner.upgrade()?;
            if Arc::ptr_eq(&below, &inner) {
                wrapped.outer.upgrade()
            } else {
                None
            }
        });
        let committer = found.unwrap_or_else(|| {
            let committer = wrap(Arc::clone(&inner));
            let (inner, outer) = (Arc::downgrade(&inner), Arc::downgrade(&committer));
            known.push(Wrapped { inner, outer });
            committer
        });
        Staged {
            committer,
            ..staged
        }
    }
}

/// The same batch for the committer below.
fn unwrap(batch: Vec<Staged>, inner: &Arc<dyn Committer>) -> Vec<Staged> {
    batch
        .into_iter()
        .map(|staged| Staged {
            committer: Arc::clone(inner),
            ..staged
        })
        .collect()
}
