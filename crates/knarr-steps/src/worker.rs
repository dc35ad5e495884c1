//! Runs a library that wants to read and write, not to be driven, as a [`Step`].
//!
//! Constraints: the library runs on a thread of its own, which begins with the first pull and ends with the
//! stream, with an error, or with the step being dropped: then reading and writing fail inside of it. It
//! holds one chunk of input, and puts out chunks of [`CHUNK_BYTES`], of which one is being filled and
//! [`AHEAD`] may wait. A panic in the library is an error of the step.

use std::fmt;
use std::io::{self, BufRead, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use bytes::{Buf as _, Bytes};

use crate::error::StepError;
use crate::step::{CHUNK_BYTES, Pulled, SideFile, Step, StepSummary};

/// Chunks of output that may wait for the consumer.
const AHEAD: usize = 2;

/// What a library made of a stream, once it is all done and verified.
#[derive(Debug, Default)]
pub(crate) struct Done {
    /// For the record.
    pub(crate) note: Option<String>,
    /// Goes beside the output, with this suffix.
    pub(crate) side: Option<(&'static str, Vec<u8>)>,
}

/// What runs on the thread.
pub(crate) type Job =
    Box<dyn FnOnce(&mut PipeReader, &mut PipeWriter) -> Result<Done, StepError> + Send>;

/// How the name of the output comes from that of the input.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Naming {
    Keep,
    Add(&'static str),
    /// The first of these that the name ends with, in upper or lower case.
    Remove(&'static [&'static str]),
}

enum Event {
    WantsInput,
    Chunk(Bytes),
    Done(Result<Done, StepError>),
}

/// A step whose work is done by a library on a thread.
pub(crate) struct Worker {
    step: &'static str,
    naming: Naming,
    state: State,
    input: Option<Bytes>,
    input_ended: bool,
    summary: StepSummary,
    side: Option<(&'static str, Vec<u8>)>,
}

enum State {
    Waiting(Job),
    Running(Running),
    Finished,
    Failed(StepError),
}

struct Running {
    input: SyncSender<Option<Bytes>>,
    events: Receiver<Event>,
    thread: JoinHandle<()>,
    wants_input: bool,
}

impl Worker {
    pub(crate) fn new(step: &'static str, naming: Naming, job: Job) -> Self {
        Self {
            step,
            naming,
            state: State::Waiting(job),
            input: None,
            input_ended: false,
            summary: StepSummary::new(),
            side: None,
        }
    }

    fn start(&self, job: Job) -> Result<Running, StepError> {
        let (input, from_input) = sync_channel(1);
        let (to_events, events) = sync_channel(AHEAD);
        let thread = thread::Builder::new()
            .name(format!("step-{}", self.step))
            .spawn(move || {
                let mut reader = PipeReader {
                    input: from_input,
                    events: to_events.clone(),
                    chunk: Bytes::new(),
                    is_ended: false,
                    gauge: Arc::new(Gauge::new()),
                };
                let mut writer = PipeWriter {
                    events: to_events.clone(),
                    filling: Vec::new(),
                };
                let result = job(&mut reader, &mut writer).and_then(|done| {
                    writer.send().map_err(|_| abandoned())?;
                    Ok(done)
                });
                // Nobody listens any more if the step was dropped.
                drop(to_events.send(Event::Done(result)));
            })
            .map_err(|error| StepError::Internal {
                step: self.step,
                detail: format!("no thread could be started: {error}").into(),
            })?;
        Ok(Running {
            input,
            events,
            thread,
            wants_input: false,
        })
    }

    fn run(&mut self, running: &mut Running) -> Result<Option<Pulled>, StepError> {
        loop {
            if running.wants_input {
                let next = match self.input.take() {
                    Some(chunk) => Some(chunk),
                    None if self.input_ended => None,
                    None => return Ok(Some(Pulled::NeedsInput)),
                };
                running.wants_input = false;
                self.summary.input_bytes += next.as_ref().map_or(0, Bytes::len) as u64;
                // If the thread is gone, the events say why.
                drop(running.input.send(next));
            }
            match running.events.recv() {
                Ok(Event::WantsInput) => running.wants_input = true,
                Ok(Event::Chunk(chunk)) => {
                    self.summary.output_bytes += chunk.len() as u64;
                    return Ok(Some(Pulled::Chunk(chunk)));
                }
                Ok(Event::Done(result)) => {
                    let done = result?;
                    self.summary.members = 1;
                    self.summary.note = done.note;
                    self.side = done.side;
                    return Ok(None);
                }
                Err(RecvError) => {
                    return Err(StepError::Internal {
                        step: self.step,
                        detail: "it panicked".into(),
                    });
                }
            }
        }
    }
}

fn abandoned() -> StepError {
    StepError::OutOfTurn {
        what: "a step was given up before its end",
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Worker")
            .field("step", &self.step)
            .field("summary", &self.summary)
            .finish_non_exhaustive()
    }
}

impl Step for Worker {
    fn feed(&mut self, input: Bytes) -> Result<(), StepError> {
        if self.input_ended || self.input.is_some() {
            return Err(StepError::OutOfTurn {
                what: "input was fed that nobody asked for",
            });
        }
        if !input.is_empty() {
            self.input = Some(input);
        }
        Ok(())
    }

    fn end(&mut self) {
        self.input_ended = true;
    }

    fn pull(&mut self) -> Result<Pulled, StepError> {
        let state = std::mem::replace(&mut self.state, State::Failed(abandoned()));
        let mut running = match state {
            State::Finished => {
                self.state = State::Finished;
                return Ok(Pulled::Finished);
            }
            State::Failed(error) => {
                self.state = State::Failed(error.clone());
                return Err(error);
            }
            State::Waiting(job) => self.start(job)?,
            State::Running(running) => running,
        };
        match self.run(&mut running) {
            Ok(Some(pulled)) => {
                self.state = State::Running(running);
                Ok(pulled)
            }
            Ok(None) => {
                // It has said its last word, so this does not wait.
                drop(running.thread.join());
                self.state = State::Finished;
                Ok(Pulled::Finished)
            }
            Err(error) => {
                self.state = State::Failed(error.clone());
                Err(error)
            }
        }
    }

    fn summary(&self) -> StepSummary {
        self.summary.clone()
    }

    fn output_name(&self, name: &[u8]) -> Vec<u8> {
        match self.naming {
            Naming::Keep => name.to_vec(),
            Naming::Add(suffix) => [name, suffix.as_bytes()].concat(),
            Naming::Remove(suffixes) => suffixes
                .iter()
                .find_map(|suffix| without_suffix(name, suffix.as_bytes()))
                .unwrap_or(name)
                .to_vec(),
        }
    }

    fn side_files(&mut self, name: &[u8]) -> Vec<SideFile> {
        self.side
            .take()
            .map(|(suffix, content)| SideFile {
                name: [name, suffix.as_bytes()].concat(),
                content: Bytes::from(content),
            })
            .into_iter()
            .collect()
    }
}

/// The name before the suffix, if that is more than dots.
fn without_suffix<'a>(name: &'a [u8], suffix: &[u8]) -> Option<&'a [u8]> {
    let (stem, tail) = name.split_at_checked(name.len().checked_sub(suffix.len())?)?;
    let names_something = stem.iter().any(|byte| *byte != b'.');
    (tail.eq_ignore_ascii_case(suffix) && names_something).then_some(stem)
}

/// The input of a step, as a library reads it.
pub(crate) struct PipeReader {
    input: Receiver<Option<Bytes>>,
    events: SyncSender<Event>,
    chunk: Bytes,
    is_ended: bool,
    gauge: Arc<Gauge>,
}

/// How far a reader is, and may go; also while the reader is lent.
#[derive(Debug)]
pub(crate) struct Gauge {
    consumed: AtomicU64,
    ceiling: AtomicU64,
}

impl Gauge {
    fn new() -> Self {
        Self {
            consumed: AtomicU64::new(0),
            ceiling: AtomicU64::new(u64::MAX),
        }
    }

    /// Bytes of input that were used up.
    pub(crate) fn consumed(&self) -> u64 {
        self.consumed.load(Ordering::Relaxed)
    }

    /// Lets only so many more bytes be read: more of them are an error.
    pub(crate) fn limit_rest(&self, bytes: u64) {
        let ceiling = self.consumed().saturating_add(bytes);
        self.ceiling.store(ceiling, Ordering::Relaxed);
    }
}

impl PipeReader {
    pub(crate) fn gauge(&self) -> Arc<Gauge> {
        Arc::clone(&self.gauge)
    }
}

impl fmt::Debug for PipeReader {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("PipeReader").finish_non_exhaustive()
    }
}

impl BufRead for PipeReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.gauge.consumed() > self.gauge.ceiling.load(Ordering::Relaxed) {
            let detail = "something follows the end of the content";
            return Err(io::Error::new(io::ErrorKind::InvalidData, detail));
        }
        while self.chunk.is_empty() && !self.is_ended {
            let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
            self.events.send(Event::WantsInput).map_err(|_| gone())?;
            match self.input.recv().map_err(|_| gone())? {
                Some(chunk) => self.chunk = chunk,
                None => self.is_ended = true,
            }
        }
        Ok(&self.chunk)
    }

    fn consume(&mut self, amount: usize) {
        let amount = amount.min(self.chunk.len());
        self.chunk.advance(amount);
        let consumed = &self.gauge.consumed;
        consumed.fetch_add(amount as u64, Ordering::Relaxed);
    }
}

impl Read for PipeReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut available = self.fill_buf()?;
        // Reading from a slice copies what fits and cannot fail.
        let length = available.read(buffer)?;
        self.consume(length);
        Ok(length)
    }
}

/// The output of a step, as a library writes it.
pub(crate) struct PipeWriter {
    events: SyncSender<Event>,
    filling: Vec<u8>,
}

impl PipeWriter {
    fn send(&mut self) -> io::Result<()> {
        if self.filling.is_empty() {
            return Ok(());
        }
        let chunk = Bytes::from(std::mem::take(&mut self.filling));
        self.events
            .send(Event::Chunk(chunk))
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }
}

impl fmt::Debug for PipeWriter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("PipeWriter").finish_non_exhaustive()
    }
}

impl Write for PipeWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.filling.capacity() == 0 {
            self.filling.reserve_exact(CHUNK_BYTES);
        }
        let room = CHUNK_BYTES - self.filling.len();
        let piece = data.get(..room.min(data.len())).unwrap_or_default();
        self.filling.extend_from_slice(piece);
        if self.filling.len() == CHUNK_BYTES {
            self.send()?;
        }
        Ok(piece.len())
    }

    /// Pieces are kept together: what has come together so far is sent with the end.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
