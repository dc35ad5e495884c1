//! Drives a file through the steps of a job.
//!
//! Nothing that comes out counts before [`drive`] has returned: a signature or a checksum may stand at the
//! very end. Whoever takes the outputs keeps them out of sight until then.

use async_trait::async_trait;
use bytes::Bytes;
use knarr_core::ContentHash;
use knarr_core::record::StepRecord;
use knarr_remote::Reader;
use knarr_steps::{Emitted, Head, Node, Pipeline, Recipe};

use crate::inspect::Inspection;

use super::{Transfer, TransferError, next_chunk, open_reader, progress, unchanged};

/// Takes what comes out of the steps, file by file.
#[async_trait]
pub(crate) trait Outputs: Send {
    /// A file, directory or link begins.
    async fn begin(&mut self, head: Head) -> Result<(), TransferError>;

    /// The next bytes of the file.
    async fn chunk(&mut self, chunk: Bytes) -> Result<(), TransferError>;

    /// It is complete, and not verified yet.
    async fn end(&mut self) -> Result<(), TransferError>;
}

/// What is known once everything was verified.
#[derive(Debug)]
pub(crate) struct Driven {
    /// Of the source's content.
    pub(crate) source_hash: ContentHash,
    /// What each step did.
    pub(crate) steps: Vec<StepRecord>,
}

/// Reads the source to its end, through the steps, into `outputs`.
///
/// # Errors
/// Of the source, which includes that it changed meanwhile; of the steps; of the outputs. Then all that
/// was put out is void.
pub(crate) async fn drive(
    transfer: &Transfer<'_>,
    recipe: &Recipe,
    inspection: &mut Inspection,
    outputs: &mut dyn Outputs,
) -> Result<Driven, TransferError> {
    let mut pipeline = recipe.pipeline().map_err(TransferError::Step)?;
    let mut reader = open_reader(transfer, 0).await?;
    let entry = transfer.entry;
    let head = Head {
        path: entry.path.clone(),
        node: Node::File,
        size: Some(entry.size),
        mode: entry.mode,
        mtime: entry.mtime,
    };
    pipeline.begin(head).map_err(TransferError::Step)?;
    let mut input = Input::InFile(Box::default());
    loop {
        match pipeline.pull().map_err(TransferError::Step)? {
            Emitted::Begin(head) => outputs.begin(head).await?,
            Emitted::Chunk(chunk) => outputs.chunk(chunk).await?,
            Emitted::End => outputs.end().await?,
            Emitted::NeedsInput => {
                input = feed(transfer, reader.as_mut(), &mut pipeline, inspection, input).await?;
            }
            Emitted::Finished => break,
        }
    }
    let source_hash = match input {
        Input::Ended(hash) => hash,
        Input::InFile(hasher) => hasher.finalize().into(),
    };
    let steps = pipeline.summaries().into_iter();
    let record = |(name, summary): (&str, knarr_steps::StepSummary)| StepRecord {
        step: name.to_owned(),
        detail: summary.to_string(),
        input_bytes: summary.input_bytes,
        output_bytes: summary.output_bytes,
    };
    Ok(Driven {
        source_hash,
        steps: steps.map(record).collect(),
    })
}

/// How far the source was read.
enum Input {
    InFile(Box<blake3::Hasher>),
    Ended(ContentHash),
}

async fn feed(
    transfer: &Transfer<'_>,
    reader: &mut dyn Reader,
    pipeline: &mut Pipeline,
    inspection: &mut Inspection,
    input: Input,
) -> Result<Input, TransferError> {
    let Input::InFile(mut hasher) = input else {
        pipeline.finish().map_err(TransferError::Step)?;
        return Ok(input);
    };
    if let Some(chunk) = next_chunk(transfer, reader).await? {
        hasher.update(&chunk);
        inspection.update(&chunk).await?;
        progress(transfer, chunk.len() as u64);
        pipeline.feed(chunk).map_err(TransferError::Step)?;
        return Ok(Input::InFile(hasher));
    }
    // Before the steps say that all is well: what was read may be a mixture of two versions.
    unchanged(transfer, reader).await?;
    inspection.finish().await?;
    pipeline.end().map_err(TransferError::Step)?;
    Ok(Input::Ended(hasher.finalize().into()))
}
