//! Reading the file again.

use std::sync::{Arc, Mutex, PoisonError};

use knarr_core::Timestamp;
use knarr_engine::node::ControlError;

use crate::desk::{Desk, DeskError, FileState, shown};
use crate::host::{Host, Reread};
use crate::v1;

impl<H: Host> Desk<H> {
    pub(super) async fn reload(&mut self) -> Result<v1::Reloaded, DeskError> {
        let reread = self.host.reread();
        let now: Timestamp = self.clock.now();
        let note = |file: &Arc<Mutex<FileState>>, problem: &str, read_at: Option<i64>| {
            let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
            problem.clone_into(&mut file.problem);
            file.read_at = read_at.unwrap_or(file.read_at);
        };
        let Reread {
            added,
            changed,
            removed,
        } = match reread {
            Ok(reread) => reread,
            Err(problems) => {
                note(&self.file, &shown(&problems), None);
                tracing::error!(
                    "the file is wrong, and the old one stays: {}",
                    shown(&problems)
                );
                let changes = Vec::new();
                return Ok(v1::Reloaded { changes, problems });
            }
        };
        note(&self.file, "", Some(now.nanoseconds()));
        let mut changes = Vec::new();
        for job in removed {
            if let Some(control) = &self.control {
                // Not at work: then there is nothing to stop.
                let _unknown: Result<(), ControlError> = control.remove(&job).await;
            }
            self.problems.remove(&job);
            let what = "removed".to_owned();
            changes.push(v1::FileChange { job, what });
        }
        let added = added.into_iter().map(|job| (job, "added"));
        let changed = changed.into_iter().map(|job| (job, "changed"));
        for (job, what) in changed.chain(added) {
            self.begin(&job).await;
            let what = what.to_owned();
            changes.push(v1::FileChange { job, what });
        }
        tracing::info!(changes = changes.len(), "the file was read again");
        let problems = Vec::new();
        Ok(v1::Reloaded { changes, problems })
    }
}
