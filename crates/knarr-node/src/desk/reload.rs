//! Reading the file again.

use std::sync::PoisonError;

use crate::desk::{Desk, DeskError, shown};
use crate::host::{Host, Reread};
use crate::v1;

impl<H: Host> Desk<H> {
    /// Reads the file again. Also the jobs that change by it.
    pub(super) async fn reload(&mut self) -> Result<(v1::Reloaded, Vec<String>), DeskError> {
        let reread = self.host.reread().await;
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let Reread {
            added,
            changed,
            removed,
            taken_over,
            needs_restart,
        } = match reread {
            Ok(reread) => reread,
            Err(problems) => {
                let problem = shown(&problems);
                tracing::error!("the file is wrong, and the old one stays: {problem}");
                file.problem = problem;
                let reloaded = v1::Reloaded {
                    problems,
                    ..v1::Reloaded::default()
                };
                return Ok((reloaded, Vec::new()));
            }
        };
        file.problem.clear();
        file.read_at = self.clock.now().nanoseconds();
        file.needs_restart.clone_from(&needs_restart);
        drop(file);
        let (mut changes, mut jobs) = (Vec::new(), Vec::new());
        let all = [(removed, "removed"), (changed, "changed"), (added, "added")];
        for (names, what) in all {
            for job in names {
                jobs.push(job.clone());
                let what = what.to_owned();
                changes.push(v1::FileChange { job, what });
            }
        }
        tracing::info!(changes = changes.len(), "the file was read again");
        if !needs_restart.is_empty() {
            let keys = needs_restart.join(", ");
            tracing::warn!("some of what changed in the file counts from the next start: {keys}");
        }
        let reloaded = v1::Reloaded {
            changes,
            problems: Vec::new(),
            taken_over,
            needs_restart,
        };
        Ok((reloaded, jobs))
    }
}
