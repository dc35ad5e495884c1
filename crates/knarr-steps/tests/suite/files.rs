//! Drives pipelines over files, and makes contexts.

use std::sync::Arc;

use bytes::Bytes;
use knarr_core::time::{Clock as _, SystemClock};
use knarr_core::{RelPath, Timestamp};
use knarr_steps::{
    ArchiveFault, CHUNK_BYTES, Context, Emitted, Head, Keys, Node, Pipeline, StepError, StepSpec,
    StepSummary,
};

/// The chunk sizes that every round trip is made with.
pub(crate) const CHUNK_SIZES: [usize; 3] = [1, 7, 65_536];

/// A file that came out of a pipeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Output {
    pub(crate) path: String,
    pub(crate) node: Node,
    pub(crate) mode: Option<u32>,
    pub(crate) content: Vec<u8>,
}

/// Why an archive was refused.
#[track_caller]
pub(crate) fn fault(result: Result<Vec<Output>, StepError>) -> ArchiveFault {
    match result {
        Err(StepError::Archive { fault, .. }) => fault,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn path(text: &str) -> RelPath {
    RelPath::new(text.as_bytes()).unwrap()
}

pub(crate) fn now() -> Timestamp {
    SystemClock.now()
}

pub(crate) fn context() -> Context {
    Context::new(now(), Arc::new(tempfile::tempfile))
}

pub(crate) fn context_with(keys: Keys) -> Context {
    context().with_keys(keys)
}

/// The steps that a configuration says.
pub(crate) fn steps(yaml: &str) -> Vec<StepSpec> {
    serde_saphyr::from_str(yaml).unwrap_or_else(|error| panic!("{yaml}: {error}"))
}

/// Runs files through steps, in chunks of so many bytes, and checks the protocol on the way.
pub(crate) fn run(
    yaml: &str,
    context: &Context,
    inputs: &[(&str, &[u8])],
    chunk_bytes: usize,
) -> Result<Vec<Output>, StepError> {
    let heads = inputs.iter().map(|(name, content)| {
        let mut head = Head::file(path(name));
        head.size = Some(content.len() as u64);
        (head, *content)
    });
    let pipeline = Pipeline::new(&steps(yaml), context)?;
    drive(pipeline, heads.collect(), chunk_bytes).map(|(outputs, _)| outputs)
}

/// As [`run`], for one file in one chunk.
pub(crate) fn run_one(
    yaml: &str,
    context: &Context,
    name: &str,
    content: &[u8],
) -> Result<Vec<Output>, StepError> {
    run(yaml, context, &[(name, content)], content.len().max(1))
}

type Driven = (Vec<Output>, Vec<(&'static str, StepSummary)>);

pub(crate) fn drive(
    mut pipeline: Pipeline,
    inputs: Vec<(Head, &[u8])>,
    chunk_bytes: usize,
) -> Result<Driven, StepError> {
    let mut inputs = inputs.into_iter();
    let mut chunks: Option<std::slice::Chunks<'_, u8>> = None;
    let mut open: Option<Output> = None;
    let mut outputs = Vec::new();
    loop {
        match pipeline.pull() {
            Ok(Emitted::Begin(head)) => {
                assert!(open.is_none(), "one file at a time");
                open = Some(Output {
                    path: head.path.to_string(),
                    node: head.node,
                    mode: head.mode,
                    content: Vec::new(),
                });
            }
            Ok(Emitted::Chunk(bytes)) => {
                assert!(
                    !bytes.is_empty() && bytes.len() <= CHUNK_BYTES,
                    "{}",
                    bytes.len()
                );
                open.as_mut().unwrap().content.extend_from_slice(&bytes);
            }
            Ok(Emitted::End) => outputs.push(open.take().unwrap()),
            Ok(Emitted::NeedsInput) => match chunks.as_mut().map(Iterator::next) {
                Some(Some(chunk)) => pipeline.feed(Bytes::copy_from_slice(chunk))?,
                Some(None) => {
                    chunks = None;
                    pipeline.end()?;
                }
                None => match inputs.next() {
                    Some((head, content)) => {
                        chunks = (head.node == Node::File).then(|| content.chunks(chunk_bytes));
                        pipeline.begin(head)?;
                    }
                    None => pipeline.finish()?,
                },
            },
            Ok(Emitted::Finished) => {
                assert!(open.is_none(), "every file has an end");
                assert_eq!(pipeline.pull(), Ok(Emitted::Finished), "the end is final");
                return Ok((outputs, pipeline.summaries()));
            }
            Err(error) => {
                assert_eq!(pipeline.pull(), Err(error.clone()), "an error is final");
                assert_eq!(pipeline.finish(), Err(error.clone()), "an error is final");
                return Err(error);
            }
        }
    }
}

/// Path and content of each file, in their order.
pub(crate) fn contents(outputs: &[Output]) -> Vec<(&str, &[u8])> {
    outputs
        .iter()
        .map(|output| (output.path.as_str(), output.content.as_slice()))
        .collect()
}

/// The most memory this process had, as the kernel counts it.
pub(crate) fn peak_memory_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
