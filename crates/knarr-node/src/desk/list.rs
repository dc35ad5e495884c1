//! What there is: jobs, endpoints, users, with what is on record about each.

use knarr_store::definitions::{Definition, DefinitionKind};

use crate::desk::{Desk, DeskError};
use crate::host::{Host, Opening};
use crate::query::{self, QueryError};
use crate::v1;

/// How many next times are shown of one job.
const NEXT_TIMES: usize = 5;

impl<H: Host> Desk<H> {
    /// All jobs, or one; asked for now, filled in beside the desk.
    pub(super) fn jobs(
        &self,
        only: Option<&str>,
    ) -> Opening<'static, Result<Vec<v1::Job>, DeskError>> {
        let times = if only.is_some() { NEXT_TIMES } else { 1 };
        let mut jobs = self.host.jobs(only, times);
        let (store, control) = (self.store.clone(), self.control.clone());
        let (problems, only) = (self.problems.clone(), only.map(str::to_owned));
        Box::pin(async move {
            let stored = store.read_async(|reader| reader.definitions()).await?;
            for one in stored.iter().filter(|one| one.kind == DefinitionKind::Job) {
                add_definition(&mut jobs, one, only.as_deref());
            }
            jobs.sort_by(|left, right| left.name.cmp(&right.name));
            let filled = tokio::task::spawn_blocking(move || {
                query::fill_jobs(&store, &mut jobs)?;
                Ok::<_, QueryError>(jobs)
            });
            let mut jobs = match filled.await {
                Ok(jobs) => jobs?,
                Err(_panic) => return Err(DeskError::Refused("internal error".to_owned())),
            };
            // By name.
            let now = match &control {
                Some(control) => control.list().await?,
                None => Vec::new(),
            };
            for job in &mut jobs {
                let at_work = now.binary_search_by(|now| now.name.cmp(&job.name)).ok();
                let at_work = at_work.and_then(|index| now.get(index));
                let problem = problems.get(&job.name).cloned();
                job.problem = problem
                    .or_else(|| at_work.and_then(|now| now.problem.clone()))
                    .unwrap_or_default();
                job.waits = at_work
                    .and_then(|now| now.waits.clone())
                    .unwrap_or_default();
            }
            Ok(jobs)
        })
    }

    /// All endpoints, and which are paused.
    pub(super) async fn endpoints(&self) -> Result<Vec<v1::Endpoint>, DeskError> {
        let mut endpoints = self.host.endpoints();
        let read = self.store.read_async(|reader| reader.paused_endpoints());
        for paused in read.await? {
            let mut all = endpoints.iter_mut();
            if let Some(endpoint) = all.find(|endpoint| endpoint.name == paused.name) {
                endpoint.paused_since = Some(paused.since.nanoseconds());
                endpoint.paused_by = paused.by;
            }
        }
        Ok(endpoints)
    }

    /// All users of the SFTP server.
    pub(super) async fn users(&self) -> Result<Vec<v1::User>, DeskError> {
        let mut users = self.host.users();
        let stored = self.store.read_async(|reader| reader.definitions()).await?;
        for one in stored.iter().filter(|one| one.kind == DefinitionKind::User) {
            let mut all = users.iter_mut();
            let known = all.find(|user| user.name == one.name);
            if let Some(user) = known.filter(|user| user.origin() == v1::job::Origin::Added) {
                user.added_at = Some(one.added_at.nanoseconds());
                user.added_by.clone_from(&one.added_by);
                user.updated_at = Some(one.updated_at.nanoseconds());
            }
        }
        Ok(users)
    }
}

/// Adds what is on record of a job that was added.
fn add_definition(jobs: &mut Vec<v1::Job>, one: &Definition, only: Option<&str>) {
    if only.is_some_and(|only| only != one.name) {
        return;
    }
    if !jobs.iter().any(|job| job.name == one.name) {
        // It is wrong by now: only its name and its problem can be shown.
        jobs.push(v1::Job {
            name: one.name.clone(),
            origin: v1::job::Origin::Added.into(),
            ..v1::Job::default()
        });
    }
    let mut all = jobs.iter_mut();
    let known = all.find(|job| job.name == one.name);
    if let Some(job) = known.filter(|job| job.origin() == v1::job::Origin::Added) {
        job.added_at = Some(one.added_at.nanoseconds());
        job.added_by.clone_from(&one.added_by);
        job.updated_at = Some(one.updated_at.nanoseconds());
        if only.is_some() {
            job.definition.clone_from(&one.definition);
        }
    }
}
