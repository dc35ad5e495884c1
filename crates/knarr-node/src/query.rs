//! The answers to questions about what is on record.
//!
//! The same functions answer a client of the socket, and a command that opens the state directory itself
//! because no node runs. They block; every list has a limit.

mod watching;

use knarr_core::record::Action;
use knarr_core::run::RunState;
use knarr_core::{ContentHash, Kind, RelPath, Timestamp};
use knarr_store::dirty::{Dirty, DirtyFilter, DirtyLimit};
use knarr_store::endpoints::Reachable;
use knarr_store::history::{HistoryFilter, TracePath};
use knarr_store::holds::{Approved, Hold};
use knarr_store::in_flight::InFlight;
use knarr_store::outbox::{OutboxFilter, OutboxId};
use knarr_store::pairs::Pair;
use knarr_store::pauses::PausedEndpoint;
use knarr_store::runs::{RunFilter, RunId};
use knarr_store::{Reader, Store, StoreError};

use crate::convert::{file_record, run_of, timestamp};
use crate::v1;

pub use watching::{fill_rules, noted, pause_endpoint, verdict};

/// The most rows of one answer.
pub const MOST_ROWS: u32 = 1_000;
/// Up to which number the paths of one pair are counted, in each state, while somebody waits for it.
pub const MOST_COUNTED: u32 = 10_000;
/// How many paths are counted for one answer, if there are many pairs.
const COUNTED_IN_ALL: u64 = 200_000;
/// Up to which number those of a pair are counted when so many were.
const LEAST_COUNTED: u32 = 100;

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The question makes no sense.
    #[error("{0}")]
    Argument(String),
    /// What is asked for is not there.
    #[error("{0}")]
    Missing(String),
    /// The state cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn rows(asked: u32, usual: u32) -> usize {
    let rows = if asked == 0 { usual } else { asked };
    usize::try_from(rows.min(MOST_ROWS)).unwrap_or(usize::MAX)
}

fn given(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// What happened to files, the newest first.
///
/// # Errors
/// See [`QueryError`].
pub fn history(
    store: &Store,
    request: &v1::HistoryRequest,
) -> Result<v1::HistoryReply, QueryError> {
    let action = match request.action.as_str() {
        "" => None,
        name => Some(Action::from_name(name).ok_or_else(|| {
            QueryError::Argument(format!("`{name}` is not something that happens to a file"))
        })?),
    };
    let paths = if request.globs.is_empty() {
        None
    } else {
        let globs = HistoryFilter::globs(request.globs.iter().map(String::as_str));
        Some(globs.map_err(|error| QueryError::Argument(error.to_string()))?)
    };
    let filter = HistoryFilter {
        job: given(&request.job),
        run: request.run.map(RunId),
        action,
        since: request.since.map(timestamp),
        until: request.until.map(timestamp),
        paths,
        before: request.before,
    };
    let records = store.read(|reader| reader.history(&filter, rows(request.limit, 50)))?;
    let records = records.into_iter().map(file_record).collect();
    Ok(v1::HistoryReply { records })
}

/// The story of a path, the oldest record first.
///
/// # Errors
/// See [`QueryError`].
pub fn trace(store: &Store, request: &v1::TraceRequest) -> Result<v1::HistoryReply, QueryError> {
    let limit = rows(request.limit, MOST_ROWS);
    let mut candidates = Vec::new();
    if !request.absolute.is_empty() {
        for pair in store.read(|reader| reader.pairs())? {
            candidates.extend(below(&pair.known_as.source, &request.absolute));
        }
    }
    for path in &request.paths {
        let path = RelPath::new(path.as_slice());
        candidates.push(path.map_err(|error| QueryError::Argument(error.to_string()))?);
    }
    let told = |records: Vec<_>| v1::HistoryReply {
        records: records.into_iter().map(file_record).collect(),
    };
    for path in &candidates {
        let exact = TracePath::Exact(path.clone());
        let records = store.read(|reader| reader.trace(&exact, limit))?;
        if !records.is_empty() {
            return Ok(told(records));
        }
    }
    match candidates.pop() {
        Some(path) => {
            let ending = TracePath::EndsWith(path);
            Ok(told(store.read(|reader| reader.trace(&ending, limit))?))
        }
        None => Ok(v1::HistoryReply::default()),
    }
}

/// What is left of an absolute path below a source.
fn below(source: &str, absolute: &[u8]) -> Option<RelPath> {
    let source = source.trim_end_matches('/').as_bytes();
    let rest = absolute
        .strip_prefix(source)
        .filter(|_| source.first() == Some(&b'/'))?;
    RelPath::new(rest.strip_prefix(b"/")?).ok()
}

/// Runs, the newest first.
///
/// # Errors
/// See [`QueryError`].
pub fn runs(store: &Store, request: &v1::ListRunsRequest) -> Result<v1::ListRunsReply, QueryError> {
    let state = match request.state.as_str() {
        "" => None,
        name => Some(
            RunState::from_name(name)
                .ok_or_else(|| QueryError::Argument(format!("`{name}` is not a state of a run")))?,
        ),
    };
    let filter = RunFilter {
        job: given(&request.job),
        state,
        since: request.since.map(timestamp),
        until: request.until.map(timestamp),
        before: request.before.map(RunId),
    };
    let runs = store.read(|reader| reader.runs(&filter, rows(request.limit, 50)))?;
    let runs = runs.into_iter().map(run_of).collect();
    Ok(v1::ListRunsReply { runs })
}

/// One run.
///
/// # Errors
/// See [`QueryError`].
pub fn run(store: &Store, run: u64) -> Result<v1::Run, QueryError> {
    let found = store.read(|reader| reader.stored_run(RunId(run)))?;
    let missing = || QueryError::Missing(format!("there is no run {run}"));
    found.map(run_of).ok_or_else(missing)
}

/// What is known of jobs on record: whether they are paused, and the newest run of each.
///
/// # Errors
/// See [`QueryError`].
pub fn fill_jobs(store: &Store, jobs: &mut [v1::Job]) -> Result<(), QueryError> {
    Ok(store.read(|reader| {
        for job in jobs {
            let filter = RunFilter {
                job: Some(job.name.clone()),
                ..RunFilter::default()
            };
            let state = reader.job_state(&job.name)?;
            if let Some((since, by)) = state.and_then(|state| state.paused) {
                job.paused_since = Some(since.nanoseconds());
                job.paused_by = by;
            }
            job.last_run = reader.runs(&filter, 1)?.into_iter().next().map(run_of);
        }
        Ok(())
    })?)
}

/// Where a list of the queue goes on: the number of the pair, and the order key of the last path.
fn cursor(pair: i64, key: &[u8]) -> Vec<u8> {
    let mut cursor = pair.to_be_bytes().to_vec();
    cursor.extend_from_slice(key);
    cursor
}

/// Paths of the queue.
///
/// # Errors
/// See [`QueryError`].
pub fn queue(
    store: &Store,
    request: &v1::ListQueueRequest,
    now: Timestamp,
) -> Result<v1::ListQueueReply, QueryError> {
    let filter = match request.which() {
        v1::list_queue_request::Which::All => DirtyFilter::All,
        v1::list_queue_request::Which::Parked => DirtyFilter::Parked,
        v1::list_queue_request::Which::Failed => DirtyFilter::Failed,
    };
    let (first, mut after) = match request.from.split_first_chunk::<8>() {
        Some((pair, key)) => (i64::from_be_bytes(*pair), key.to_vec()),
        None => (i64::MIN, Vec::new()),
    };
    let limit = rows(request.limit, MOST_ROWS);
    let mut reply = v1::ListQueueReply::default();
    for pair in pairs_of(store, &request.job)? {
        let number = pair.id.number();
        if number < first {
            continue;
        }
        if number > first {
            after.clear();
        }
        let room = limit - reply.paths.len();
        let (page, in_flight) = store.read(|reader| {
            let page = reader.list_dirty(pair.id, filter, &after, room)?;
            Ok((page, reader.in_flight(pair.id)?))
        })?;
        for dirty in &page {
            let moving = in_flight.iter().find(|moving| moving.path == dirty.path);
            reply.paths.push(queued(&pair, dirty, moving, now));
        }
        if let Some(last) = page.last().filter(|_| reply.paths.len() >= limit) {
            reply.next = cursor(number, &last.path.order_key(last.kind));
            break;
        }
    }
    Ok(reply)
}

fn pairs_of(store: &Store, job: &str) -> Result<Vec<Pair>, QueryError> {
    let mut pairs = store.read(|reader| reader.pairs())?;
    if !job.is_empty() {
        pairs.retain(|pair| pair.known_as.job.as_deref() == Some(job));
        if pairs.is_empty() {
            let message = format!("nothing is known of a job `{job}`");
            return Err(QueryError::Missing(message));
        }
    }
    Ok(pairs)
}

fn queued(pair: &Pair, dirty: &Dirty, moving: Option<&InFlight>, now: Timestamp) -> v1::QueuedPath {
    use v1::queued_path::State;
    let waits = |until: Option<Timestamp>| until.is_some_and(|until| until > now);
    let state = if dirty.parked.is_some() {
        State::Parked
    } else if moving.is_some() {
        State::InFlight
    } else if waits(dirty.next_attempt_at) {
        State::Retrying
    } else if waits(Some(dirty.ready_at)) {
        State::Settling
    } else {
        State::Ready
    };
    let reason = dirty.parked.as_ref().or(dirty.last_error.as_ref());
    v1::QueuedPath {
        job: pair.known_as.job.clone().unwrap_or_default(),
        path: dirty.path.as_bytes().to_vec(),
        state: state.into(),
        kind: kind_name(dirty.kind).to_owned(),
        gone: dirty.observed.is_none(),
        size_bytes: dirty.observed.as_ref().map(|seen| seen.size),
        done_bytes: moving.map(|moving| moving.done_bytes),
        total_bytes: moving.map(|moving| moving.total_bytes),
        first_seen: dirty.first_seen.nanoseconds(),
        next_attempt_at: dirty.next_attempt_at.map(Timestamp::nanoseconds),
        attempts: dirty.attempts,
        reason: reason.cloned().unwrap_or_default(),
    }
}

const fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::File => "file",
        Kind::Directory => "directory",
        Kind::Symlink => "symlink",
        Kind::Special => "special",
    }
}

/// Has failed and parked paths tried again now.
///
/// # Errors
/// See [`QueryError`].
pub fn retry_queue(store: &Store, job: &str) -> Result<v1::RetriedQueue, QueryError> {
    let pairs = pairs_of(store, job)?;
    let mut count = 0;
    for pair in pairs {
        let id = pair.id;
        count += store.transact(move |tx| tx.retry_now(id, None)).wait()?;
    }
    Ok(v1::RetriedQueue { count })
}

/// Messages that wait for a person.
///
/// # Errors
/// See [`QueryError`].
pub fn parked_messages(
    store: &Store,
    request: &v1::ParkedMessagesRequest,
) -> Result<v1::ParkedMessagesReply, QueryError> {
    let (after, limit) = (OutboxId(request.after), rows(request.limit, MOST_ROWS));
    let parked = store.read(|reader| reader.outbox(OutboxFilter::Parked, None, after, limit))?;
    let next = match parked.last() {
        Some(last) if parked.len() == limit => last.id.0,
        _ => 0,
    };
    let message = |stored: knarr_store::outbox::Stored| v1::ParkedMessage {
        id: stored.id.0,
        target: stored.message.target,
        job: stored.message.job,
        run: stored.message.run.map_or(0, |run| run.0),
        kind: stored.message.kind.name().to_owned(),
        created_at: stored.created_at.nanoseconds(),
        attempts: stored.attempts,
        reason: stored.parked.unwrap_or_default(),
        key: stored.message.key,
    };
    let is_meant =
        |message: &v1::ParkedMessage| request.job.is_empty() || message.job == request.job;
    Ok(v1::ParkedMessagesReply {
        messages: parked.into_iter().map(message).filter(is_meant).collect(),
        next,
    })
}

/// Has parked messages tried again: one, or all.
///
/// # Errors
/// See [`QueryError`].
pub fn retry_messages(store: &Store, id: i64) -> Result<v1::RetriedQueue, QueryError> {
    let id = (id != 0).then_some(OutboxId(id));
    let count = store.transact(move |tx| tx.outbox_retry(id, None)).wait()?;
    Ok(v1::RetriedQueue { count })
}

/// Jobs, their queues, what is moving, which endpoints are down. Looks at a bounded number of paths of each
/// queue, however long it is.
///
/// # Errors
/// See [`QueryError`].
pub fn status(store: &Store, now: Timestamp) -> Result<v1::StatusReply, QueryError> {
    Ok(store.read(|reader| {
        let (mut pairs, mut left) = (Vec::new(), COUNTED_IN_ALL);
        for pair in reader.pairs()? {
            let limit = if left > 0 {
                MOST_COUNTED
            } else {
                LEAST_COUNTED
            };
            let pair = pair_status(reader, pair, now, DirtyLimit(limit))?;
            left = left.saturating_sub(pair.ready + pair.waiting + pair.parked);
            pairs.push(pair);
        }
        let paused = |paused: PausedEndpoint| v1::PausedEndpoint {
            endpoint: paused.name,
            since: paused.since.nanoseconds(),
            by: paused.by,
        };
        let health =
            |(endpoint, health): (String, knarr_store::endpoints::EndpointHealth)| v1::Health {
                endpoint,
                up: health.state == Reachable::Up,
                since: health.since.nanoseconds(),
                last_error: health.last_error,
                next_probe: health.next_probe.map(Timestamp::nanoseconds),
            };
        Ok(v1::StatusReply {
            pairs,
            endpoints: reader.endpoints()?.into_iter().map(health).collect(),
            running: Vec::new(),
            node: None,
            targets: targets(reader)?,
            paused_endpoints: reader.paused_endpoints()?.into_iter().map(paused).collect(),
        })
    })?)
}

/// How the targets stand for which something waits.
fn targets(reader: &Reader<'_>) -> Result<Vec<v1::Target>, StoreError> {
    let mut targets = Vec::new();
    for count in reader.outbox_counts()? {
        let first = reader.outbox_heads(&count.target, 1)?.into_iter().next();
        let first = match first {
            Some(head) => reader
                .outbox_lane(&count.target, &head.job, 1)?
                .into_iter()
                .next(),
            None => None,
        };
        let last_error = first.as_ref().and_then(|first| first.last_error.clone());
        // What failed by itself has an attempt counted; for a target that is down none is.
        let is_down = first.is_some_and(|first| first.attempts == 0);
        targets.push(v1::Target {
            down: last_error.clone().filter(|_| is_down),
            last_error,
            name: count.target,
            waiting: count.waiting,
            parked: count.parked,
            oldest: count.oldest.map(Timestamp::nanoseconds),
        });
    }
    Ok(targets)
}

fn pair_status(
    reader: &Reader<'_>,
    pair: Pair,
    now: Timestamp,
    limit: DirtyLimit,
) -> Result<v1::Pair, StoreError> {
    let counts = reader.count_dirty_up_to(pair.id, now, limit)?;
    let limit = u64::from(limit.0);
    let is_more = counts.ready.max(counts.waiting).max(counts.parked) >= limit;
    let moving = |moving: InFlight| v1::Moving {
        path: moving.path.as_bytes().to_vec(),
        done_bytes: moving.done_bytes,
        total_bytes: moving.total_bytes,
        started_at: moving.started_at.nanoseconds(),
    };
    let in_flight = reader.in_flight(pair.id)?;
    let hold = reader.held(pair.id)?;
    let scanning = reader.setting(&knarr_engine::scanning_setting(pair.id))?;
    Ok(v1::Pair {
        ready: counts.ready,
        waiting: counts.waiting,
        parked: counts.parked,
        counted_up_to: if is_more { limit } else { 0 },
        counted_at: None,
        number: pair.id.number(),
        in_flight: in_flight.into_iter().map(moving).collect(),
        degraded: reader.setting(&knarr_engine::degraded_setting(pair.id))?,
        scanning: scanning.is_some(),
        held: hold.map(|hold| held_plan(&pair, hold)),
        job: pair.known_as.job,
        source: pair.known_as.source,
        destination: pair.known_as.destination,
    })
}

fn held_plan(pair: &Pair, hold: Hold) -> v1::HeldPlan {
    v1::HeldPlan {
        job: pair.known_as.job.clone(),
        source: pair.known_as.source.clone(),
        destination: pair.known_as.destination.clone(),
        deletes: hold.held.deletes,
        total: hold.held.total,
        reason: hold.held.reason,
        held_at: hold.held_at.nanoseconds(),
        approved_by: hold.approval.map(|approval| approval.by),
        digest: hold.held.digest.as_bytes().to_vec(),
        pair: pair.id.number(),
    }
}

/// Plans that are held.
///
/// # Errors
/// See [`QueryError`].
pub fn held(store: &Store) -> Result<v1::HeldReply, QueryError> {
    let plans = store.read(|reader| {
        let pairs = reader.pairs()?;
        let plan = |hold: Hold| {
            let pair = pairs.iter().find(|pair| pair.id == hold.pair)?;
            Some(held_plan(pair, hold))
        };
        Ok(reader.holds()?.into_iter().filter_map(plan).collect())
    })?;
    Ok(v1::HeldReply { plans })
}

/// Lets a held plan go on, if it is still the one that is held.
///
/// # Errors
/// See [`QueryError`].
pub fn approve(
    store: &Store,
    request: &v1::ApproveRequest,
    by: &str,
) -> Result<v1::Approved, QueryError> {
    let digest: [u8; 32] =
        request.digest.as_slice().try_into().map_err(|_length| {
            QueryError::Argument("the digest of a plan has 32 bytes".to_owned())
        })?;
    let holds = store.read(|reader| reader.holds())?;
    let of_pair = |hold: &Hold| hold.pair.number() == request.pair;
    let Some(hold) = holds.into_iter().find(of_pair) else {
        return Ok(v1::Approved { approved: false });
    };
    let (digest, by) = (ContentHash::from_bytes(digest), by.to_owned());
    let approved = store
        .transact(move |tx| tx.approve(hold.pair, &digest, &by))
        .wait()?;
    let approved = match approved {
        Approved::Done => true,
        Approved::AnotherPlan | Approved::NothingHeld => false,
    };
    Ok(v1::Approved { approved })
}

/// Pauses a job, or ends its pause. Says whether that changed anything.
///
/// # Errors
/// See [`QueryError`].
pub fn pause(store: &Store, job: &str, what: Pause) -> Result<v1::Changed, QueryError> {
    let job = job.to_owned();
    let changed = match what {
        Pause::Begin { by } => store.transact(move |tx| tx.pause_job(&job, &by)).wait()?,
        Pause::End => store.transact(move |tx| tx.resume_job(&job)).wait()?,
    };
    Ok(v1::Changed { changed })
}

/// What happens to a pause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pause {
    /// It begins.
    Begin {
        /// Who wants it.
        by: String,
    },
    /// It ends.
    End,
}
