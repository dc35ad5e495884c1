//! Checks the steps of a job.

use std::collections::BTreeMap;
use std::path::PathBuf;

use knarr_core::job::Deletes;
use knarr_steps::StepSpec;

use super::{Checker, Place};
use crate::config::shape::JobShape;

impl Checker<'_> {
    /// Where the files with public keys are that the steps name.
    pub(super) fn steps(
        &mut self,
        shape: &JobShape,
        place: Place<'_>,
    ) -> BTreeMap<String, PathBuf> {
        let (steps, span) = (&shape.steps.value, &shape.steps.span);
        if steps.len() > knarr_steps::MAX_STEPS {
            let message = format!("at most {} steps are possible", knarr_steps::MAX_STEPS);
            self.problem(place.of("steps"), span, message);
        }
        let is_several = |step: &&StepSpec| {
            matches!(
                step,
                StepSpec::Extract(_) | StepSpec::Checksum(_) | StepSpec::Archive(_)
            )
        };
        if let Some(step) = steps.iter().find(is_several)
            && let Some(deletes) = &shape.deletes
            && deletes.value == Deletes::Mirror
        {
            let message = format!(
                "`mirror` deletes the one file that a source became, and `{}` makes several",
                step.name()
            );
            let help = "use `deletes: keep`";
            self.helped(place.of("deletes"), &deletes.span, message, help);
        }
        steps
            .iter()
            .flat_map(|step| step.references().files)
            .map(|written| {
                let path = self.path(&written);
                (written, path)
            })
            .collect()
    }
}
