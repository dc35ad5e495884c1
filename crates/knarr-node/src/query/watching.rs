//! What watches over the node: pauses of endpoints, alerts, the custody record as evidence.

use knarr_core::{ContentHash, Timestamp};
use knarr_store::Store;
use knarr_store::chain::{ChainHead, ChainVerdict, Checked};

use crate::query::{Pause, QueryError};
use crate::v1;

/// Pauses an endpoint, or ends its pause. Says whether that changed anything.
///
/// # Errors
/// See [`QueryError`].
pub fn pause_endpoint(
    store: &Store,
    endpoint: &str,
    what: Pause,
) -> Result<v1::Changed, QueryError> {
    let endpoint = endpoint.to_owned();
    let changed = match what {
        Pause::Begin { by } => store
            .transact(move |tx| tx.pause_endpoint(&endpoint, &by))
            .wait()?,
        Pause::End => store
            .transact(move |tx| tx.resume_endpoint(&endpoint))
            .wait()?,
    };
    Ok(v1::Changed { changed })
}

/// Fills in what lasts under each rule.
///
/// # Errors
/// See [`QueryError`].
pub fn fill_rules(store: &Store, rules: &mut [v1::AlertRule]) -> Result<(), QueryError> {
    let states = store.read(|reader| reader.alert_states())?;
    for rule in rules {
        let of_rule = states.iter().filter(|((name, _), _)| *name == rule.name);
        let lasting = of_rule.filter_map(|((_, subject), state)| {
            Some(v1::Lasting {
                about: subject.kind.name().to_owned(),
                name: subject.name.clone(),
                since: state.firing_since()?.nanoseconds(),
            })
        });
        rule.lasting = lasting.collect();
    }
    Ok(())
}

/// The end of the chain that was noted before, if one was.
///
/// # Errors
/// If it is none.
pub fn noted(request: &v1::VerifyRequest) -> Result<Option<ChainHead>, QueryError> {
    if request.noted_hash.is_empty() {
        return Ok(None);
    }
    let hash: [u8; 32] = request
        .noted_hash
        .as_slice()
        .try_into()
        .map_err(|_length| QueryError::Argument("the hash of a record has 32 bytes".to_owned()))?;
    Ok(Some(ChainHead {
        count: request.noted_count,
        hash: ContentHash::from_bytes(hash),
    }))
}

/// What a check of the chain found, in the form of the protocol.
#[must_use]
pub fn verdict(checked: &Checked) -> v1::ChainVerdict {
    let verdict = v1::ChainVerdict {
        pruned: checked.base.pruned.count,
        kept_since: checked.base.kept_since.map(Timestamp::nanoseconds),
        ..v1::ChainVerdict::default()
    };
    match &checked.verdict {
        ChainVerdict::Intact(head) => v1::ChainVerdict {
            intact: true,
            count: head.count,
            hash: head.hash.as_bytes().to_vec(),
            ..verdict
        },
        ChainVerdict::Broken { seq, defect } => v1::ChainVerdict {
            broken_at: *seq,
            defect: defect.to_string(),
            ..verdict
        },
    }
}
