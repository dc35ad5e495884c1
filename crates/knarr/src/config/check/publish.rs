//! What is published together, and by which manifests.

use knarr_core::job::{Deletes, Publish as Written};
use knarr_engine::conditions::Marker;
use knarr_engine::{ManifestSpec, Publish};

use super::{Checker, Place};
use crate::config::read::At;
use crate::config::shape::JobShape;

impl Checker<'_> {
    /// When what a run delivers becomes visible.
    pub(super) fn publish(&mut self, shape: &JobShape, place: Place<'_>) -> Publish {
        let Some(publish) = &shape.publish else {
            return Publish::Each;
        };
        let at = place.of("publish");
        let last = match &publish.value {
            Written::Each => return Publish::Each,
            Written::Batch => None,
            Written::Last(glob) => match Marker::new(glob) {
                Ok(marker) => Some(Box::new(marker)),
                Err(error) => {
                    self.problem(at.clone(), &publish.span, error.to_string());
                    None
                }
            },
        };
        if shape.from.is_none() {
            let message = "a job that watches has no runs whose files could be published together";
            let help =
                "name the place to look at with `from` instead of `watch`, or leave `publish` out";
            self.helped(at.clone(), &publish.span, message.to_owned(), help);
        }
        if is_mirror(shape) {
            let message = "`deletes: mirror` takes files away one by one, and `publish` has all of them change \
                           together";
            let help = "use `deletes: keep`, or `publish: each`";
            self.helped(at.clone(), &publish.span, message.to_owned(), help);
        }
        if last.is_some() && shape.matching.manifest.is_some() {
            let message = "`match.manifest` says what comes last: the manifest";
            self.helped(
                at,
                &publish.span,
                message.to_owned(),
                "use `publish: batch`",
            );
        }
        Publish::Together { last }
    }

    /// The manifests that a job goes by.
    pub(super) fn manifest(&mut self, shape: &JobShape, place: Place<'_>) -> Option<ManifestSpec> {
        let At { value, span } = shape.matching.manifest.as_ref()?;
        let at = place.of("match.manifest");
        let mut refuse = |message: &str, help: &str| {
            self.helped(at.clone(), span, message.to_owned(), help);
        };
        if shape.from.is_none() {
            let message = "a manifest is for jobs that run; a job that watches takes what comes";
            refuse(
                message,
                "name the place to look at with `from` instead of `watch`",
            );
        }
        if is_mirror(shape) {
            let message = "`deletes: mirror` takes files away one by one, and a manifest has all of them change \
                           together";
            refuse(message, "use `deletes: keep`");
        }
        let matching = &shape.matching;
        for (name, is_given) in [
            ("newest", matching.newest.is_some()),
            ("limit", matching.limit.is_some()),
            (
                "newer_than_last_run",
                matching.newer_than_last_run == Some(true),
            ),
        ] {
            if is_given {
                let message = format!("`{name}` could leave out what a manifest lists");
                refuse(&message, "leave one of the two out");
            }
        }
        match Marker::new(&value.file.value) {
            Ok(file) => Some(ManifestSpec {
                file,
                format: value.format.unwrap_or_default(),
            }),
            Err(error) => {
                self.problem(at, &value.file.span, error.to_string());
                None
            }
        }
    }
}

fn is_mirror(shape: &JobShape) -> bool {
    let deletes = shape.deletes.as_ref();
    deletes.is_some_and(|deletes| deletes.value == Deletes::Mirror)
}
