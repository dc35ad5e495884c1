//! Between what is stored and the protocol.

use knarr_core::record::{Action, CustodyRecord, StepRecord};
use knarr_core::{ContentHash, RelPath, Timestamp};
use knarr_store::custody::ChainedRecord;
use knarr_store::runs::{RunCounts, StoredRun};

use crate::v1;

/// What came over the socket is not what the protocol promises; the programs have different versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the node answers with a {0} that this program does not understand: use the same version of both"
)]
pub struct Unreadable(pub &'static str);

/// A time of the protocol.
#[must_use]
pub const fn timestamp(nanoseconds: i64) -> Timestamp {
    Timestamp::from_nanoseconds(nanoseconds)
}

/// A run in the form of the protocol.
#[must_use]
pub fn run_of(run: StoredRun) -> v1::Run {
    v1::Run {
        run: run.id.0,
        job: run.begun_as.job,
        kind: run.begun_as.kind,
        cause: run.begun_as.cause,
        state: run.state.name().to_owned(),
        started_at: run.started_at.nanoseconds(),
        finished_at: run.finished_at.map(Timestamp::nanoseconds),
        counts: Some(counts_of(&run.counts)),
        message: run.message.unwrap_or_default(),
    }
}

const fn counts_of(counts: &RunCounts) -> v1::RunCounts {
    v1::RunCounts {
        seen: counts.seen,
        created: counts.created,
        updated: counts.updated,
        renamed: counts.renamed,
        deleted: counts.deleted,
        unchanged: counts.unchanged,
        skipped: counts.skipped,
        conflicts: counts.conflicts,
        problems: counts.problems,
        failed: counts.failed,
        moved_bytes: counts.moved_bytes,
    }
}

impl From<v1::RunCounts> for RunCounts {
    fn from(counts: v1::RunCounts) -> Self {
        Self {
            seen: counts.seen,
            created: counts.created,
            updated: counts.updated,
            renamed: counts.renamed,
            deleted: counts.deleted,
            unchanged: counts.unchanged,
            skipped: counts.skipped,
            conflicts: counts.conflicts,
            problems: counts.problems,
            failed: counts.failed,
            moved_bytes: counts.moved_bytes,
        }
    }
}

/// A record in the form of the protocol.
pub(crate) fn file_record(chained: ChainedRecord) -> v1::FileRecord {
    let record = chained.record;
    v1::FileRecord {
        number: chained.seq,
        hash: chained.hash.as_bytes().to_vec(),
        at: record.at.nanoseconds(),
        run: record.run,
        job: record.job,
        path: record.path.as_bytes().to_vec(),
        action: record.action.name().to_owned(),
        source: record.source,
        destination: record.destination,
        size_bytes: record.size,
        mtime: record.mtime.map(Timestamp::nanoseconds),
        source_hash: record
            .source_hash
            .map(|hash| hash.as_bytes().to_vec())
            .unwrap_or_default(),
        evidence: serde_json::to_string(&record.evidence)
            .expect("evidence has only texts and hashes, which are always JSON"),
        seen_at: record.seen_at.map(Timestamp::nanoseconds),
        complete_because: record.complete_because,
        steps: record
            .steps
            .into_iter()
            .map(|step| v1::Step {
                step: step.step,
                detail: step.detail,
                input_bytes: step.input_bytes,
                output_bytes: step.output_bytes,
            })
            .collect(),
        attempt: record.attempt,
        moved_bytes: record.moved_bytes,
        duration_microseconds: record.duration_microseconds,
        message: record.message,
        decided_by: record.decided_by,
    }
}

/// A record of the protocol, as it is stored.
///
/// # Errors
/// If it is none.
pub fn record_of(record: v1::FileRecord) -> Result<ChainedRecord, Unreadable> {
    let broken = || Unreadable("record");
    let hash = |bytes: &[u8]| {
        let bytes: [u8; 32] = bytes.try_into().map_err(|_length| broken())?;
        Ok(ContentHash::from_bytes(bytes))
    };
    let step = |step: v1::Step| StepRecord {
        step: step.step,
        detail: step.detail,
        input_bytes: step.input_bytes,
        output_bytes: step.output_bytes,
    };
    Ok(ChainedRecord {
        seq: record.number,
        hash: hash(&record.hash)?,
        record: CustodyRecord {
            at: timestamp(record.at),
            run: record.run,
            job: record.job,
            path: RelPath::new(record.path.as_slice()).map_err(|_not_one| broken())?,
            action: Action::from_name(&record.action).ok_or_else(broken)?,
            source: record.source,
            destination: record.destination,
            size: record.size_bytes,
            mtime: record.mtime.map(timestamp),
            source_hash: match record.source_hash.as_slice() {
                [] => None,
                bytes => Some(hash(bytes)?),
            },
            evidence: serde_json::from_str(&record.evidence).map_err(|_not_one| broken())?,
            seen_at: record.seen_at.map(timestamp),
            complete_because: record.complete_because,
            steps: record.steps.into_iter().map(step).collect(),
            attempt: record.attempt,
            moved_bytes: record.moved_bytes,
            duration_microseconds: record.duration_microseconds,
            message: record.message,
            decided_by: record.decided_by,
        },
    })
}

#[cfg(test)]
mod tests {
    use knarr_core::record::{Action, CustodyRecord, Evidence, StepRecord};
    use knarr_core::{ContentHash, RelPath, Timestamp};
    use knarr_store::custody::ChainedRecord;

    use super::{file_record, record_of};

    #[test]
    fn k11_a_record_is_the_same_on_both_sides_of_the_socket() {
        let hash = ContentHash::of(b"content");
        for evidence in [
            Evidence::ReadBack { hash },
            Evidence::Written { hash },
            Evidence::SizeOnly {
                reason: "no hash".to_owned(),
            },
            Evidence::None,
        ] {
            let record = ChainedRecord {
                seq: 7,
                hash,
                record: CustodyRecord {
                    at: Timestamp::from_nanoseconds(-1),
                    run: u64::MAX,
                    job: "invoices".to_owned(),
                    path: RelPath::new(b"a/\xff b".as_slice()).unwrap(),
                    action: Action::Created,
                    source: "here".to_owned(),
                    destination: "there".to_owned(),
                    size: 1,
                    mtime: Some(Timestamp::from_nanoseconds(3)),
                    source_hash: Some(hash),
                    evidence,
                    seen_at: None,
                    complete_because: Some("closed after write".to_owned()),
                    steps: vec![StepRecord {
                        step: "decompress".to_owned(),
                        detail: "gzip".to_owned(),
                        input_bytes: 1,
                        output_bytes: 2,
                    }],
                    attempt: 2,
                    moved_bytes: 5,
                    duration_microseconds: 6,
                    message: None,
                    decided_by: "plan".to_owned(),
                },
            };
            assert_eq!(record_of(file_record(record.clone())).unwrap(), record);
        }
    }
}
