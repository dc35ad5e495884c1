//! Several steps, one after another.
//!
//! Constraints: at most [`MAX_STEPS`] steps; between two steps there is at most one chunk of
//! [`crate::CHUNK_BYTES`]; a step is asked for output only when the one after it needs input, so the
//! caller's pull is the back-pressure for all of them.

use std::fmt;

use bytes::Bytes;

use crate::compress::Compress;
use crate::decompress::Decompress;
use crate::error::StepError;
use crate::format::{Format, output_name};
use crate::spec::StepSpec;
use crate::step::{PassThrough, Pulled, Step, StepSummary};

/// The most steps that a chain may have.
pub const MAX_STEPS: usize = 16;

/// The steps of one file, driven like one [`Step`].
pub struct Chain {
    steps: Vec<Box<dyn Step>>,
    /// Takes the place of the steps if there are none.
    direct: PassThrough,
    direct_bytes: u64,
    ended: bool,
}

impl Chain {
    /// Makes the steps for one file. The name says what its content should be, so that a file
    /// named `x.csv.gz` which is cut to nothing recognisable is an error. No steps at all is a
    /// chain that changes nothing.
    ///
    /// Steps that need keys, or have more than one input or output, need a [`crate::Pipeline`].
    ///
    /// # Errors
    /// [`StepError::TooManySteps`], [`StepError::NeedsPipeline`], and [`StepError::OutOfMemory`].
    pub fn new(specs: &[StepSpec], name: &[u8]) -> Result<Self, StepError> {
        if specs.len() > MAX_STEPS {
            return Err(StepError::TooManySteps { count: specs.len() });
        }
        let mut name = name.to_vec();
        let mut steps: Vec<Box<dyn Step>> = Vec::with_capacity(specs.len());
        for spec in specs {
            match spec {
                StepSpec::Decompress(options) => {
                    let expected = Format::of_name(&name);
                    steps.push(Box::new(Decompress::new(*options, expected)));
                    if let Some(format) = expected {
                        name = output_name(&name, format);
                    }
                }
                StepSpec::Compress(options) => {
                    let step = Compress::new(*options)?;
                    name = step.output_name(&name);
                    steps.push(Box::new(step));
                }
                other => {
                    return Err(StepError::NeedsPipeline { step: other.name() });
                }
            }
        }
        Ok(Self {
            steps,
            direct: PassThrough::default(),
            direct_bytes: 0,
            ended: false,
        })
    }

    /// Takes the next chunk of input, of any size.
    ///
    /// # Errors
    /// As [`Step::feed`].
    pub fn feed(&mut self, input: Bytes) -> Result<(), StepError> {
        if let Some(first) = self.steps.first_mut() {
            return first.feed(input);
        }
        if self.ended || !self.direct.is_empty() {
            return Err(StepError::OutOfTurn {
                what: "input was fed that nobody asked for",
            });
        }
        self.direct.put(input);
        Ok(())
    }

    /// Says that no input will follow.
    pub fn end(&mut self) {
        self.ended = true;
        if let Some(first) = self.steps.first_mut() {
            first.end();
        }
    }

    /// Does a bounded piece of work and says what came of it. [`Pulled::Finished`] means that
    /// every step has finished and verified its input.
    ///
    /// # Errors
    /// Of the first step that fails; as [`Step::pull`].
    pub fn pull(&mut self) -> Result<Pulled, StepError> {
        if self.steps.is_empty() {
            return Ok(match self.direct.take() {
                Some(chunk) => {
                    self.direct_bytes += chunk.len() as u64;
                    Pulled::Chunk(chunk)
                }
                None if self.ended => Pulled::Finished,
                None => Pulled::NeedsInput,
            });
        }
        pull_last(&mut self.steps)
    }

    /// What each step did so far, in their order; complete once [`Pulled::Finished`] was returned.
    #[must_use]
    pub fn summaries(&self) -> Vec<StepSummary> {
        self.steps.iter().map(|step| step.summary()).collect()
    }

    /// Bytes of output handed out so far.
    #[must_use]
    pub fn output_bytes(&self) -> u64 {
        self.steps
            .last()
            .map_or(self.direct_bytes, |step| step.summary().output_bytes)
    }

    /// The name of the output for an input of this name, by what the content turned out to be;
    /// right once [`Pulled::Finished`] was returned, or any chunk was pulled.
    #[must_use]
    pub fn output_name(&self, name: &[u8]) -> Vec<u8> {
        self.steps
            .iter()
            .fold(name.to_vec(), |name, step| step.output_name(&name))
    }
}

/// Without the content of the file.
impl fmt::Debug for Chain {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Chain")
            .field("steps", &self.steps)
            .finish_non_exhaustive()
    }
}

/// Pulls from the last of the steps, and gets its input from those before it. The recursion is as
/// deep as there are steps.
fn pull_last(steps: &mut [Box<dyn Step>]) -> Result<Pulled, StepError> {
    let Some((last, before)) = steps.split_last_mut() else {
        return Ok(Pulled::NeedsInput);
    };
    loop {
        match last.pull()? {
            Pulled::NeedsInput if before.is_empty() => return Ok(Pulled::NeedsInput),
            Pulled::NeedsInput => match pull_last(before)? {
                Pulled::Chunk(chunk) => last.feed(chunk)?,
                Pulled::NeedsInput => return Ok(Pulled::NeedsInput),
                Pulled::Finished => last.end(),
            },
            pulled @ (Pulled::Chunk(_) | Pulled::Finished) => return Ok(pulled),
        }
    }
}
