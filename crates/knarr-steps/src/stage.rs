//! What every stage of a pipeline looks like, and the stage that runs a one-stream step on each file.
//!
//! Constraints: between two stages there is one [`Item`] at most; a stage is asked for output until it
//! needs input, and only then gets more.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::StepError;
use crate::item::{Head, Item, Node};
use crate::step::{CHUNK_BYTES, Pulled, Step, StepSummary};

/// Turns files into files.
pub(crate) trait Stage: Send + fmt::Debug {
    /// Takes the next item; the last [`Stage::pull`] has asked for it.
    fn put(&mut self, item: Item) -> Result<(), StepError>;

    /// The next item of output; nothing if it takes more input. [`Item::Finish`] is the last.
    fn pull(&mut self) -> Result<Option<Item>, StepError>;

    /// What was done so far, all files together.
    fn summary(&self) -> StepSummary;
}

/// Makes the step for one file.
pub(crate) type MakeStep = Arc<dyn Fn(&Head) -> Result<Box<dyn Step>, StepError> + Send + Sync>;

/// Runs a one-stream step on each file. What is no file passes.
pub(crate) struct PerFile {
    step_name: &'static str,
    make: MakeStep,
    current: Option<Current>,
    /// At most the items of the end of one file, and those of its side files.
    waiting: VecDeque<Item>,
    done: StepSummary,
}

struct Current {
    head: Head,
    step: Box<dyn Step>,
    is_begun: bool,
}

impl PerFile {
    pub(crate) fn new(step_name: &'static str, make: MakeStep) -> Self {
        Self {
            step_name,
            make,
            current: None,
            waiting: VecDeque::new(),
            done: StepSummary::new(),
        }
    }

    /// The head of the output: the name is known once the step has seen content.
    fn output_head(&self, current: &Current) -> Result<Head, StepError> {
        let step = self.step_name;
        let name = current.step.output_name(current.head.path.name());
        let path = current
            .head
            .path
            .with_name(&name)
            .map_err(|fault| StepError::OutputName { step, fault })?;
        Ok(Head {
            path,
            size: current.step.output_size(current.head.size),
            ..current.head.clone()
        })
    }

    fn finish_file(&mut self, mut current: Current) -> Result<(), StepError> {
        let step = self.step_name;
        let head = self.output_head(&current)?;
        if !current.is_begun {
            self.waiting.push_back(Item::Begin(head.clone()));
        }
        self.waiting.push_back(Item::End);
        for side in current.step.side_files(head.path.name()) {
            let path = head
                .path
                .with_name(&side.name)
                .map_err(|fault| StepError::OutputName { step, fault })?;
            let size = Some(side.content.len() as u64);
            let (mode, mtime) = (head.mode, head.mtime);
            self.waiting.push_back(Item::Begin(Head {
                path,
                node: Node::File,
                size,
                mode,
                mtime,
            }));
            let mut content = side.content;
            while !content.is_empty() {
                let piece = content.split_to(content.len().min(CHUNK_BYTES));
                self.waiting.push_back(Item::Data(piece));
            }
            self.waiting.push_back(Item::End);
        }
        self.done.add(current.step.summary());
        Ok(())
    }
}

impl fmt::Debug for PerFile {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("PerFile")
            .field("step", &self.step_name)
            .field("done", &self.done)
            .finish_non_exhaustive()
    }
}

impl Stage for PerFile {
    fn put(&mut self, item: Item) -> Result<(), StepError> {
        match (item, &mut self.current) {
            (Item::Begin(head), None) if head.node == Node::File => {
                let step = (self.make)(&head)?;
                let is_begun = false;
                self.current = Some(Current {
                    head,
                    step,
                    is_begun,
                });
                Ok(())
            }
            (Item::Data(bytes), Some(current)) => current.step.feed(bytes),
            (Item::End, Some(current)) => {
                current.step.end();
                Ok(())
            }
            (other @ (Item::Begin(_) | Item::End | Item::Finish), None) => {
                self.waiting.push_back(other);
                Ok(())
            }
            _ => Err(StepError::OutOfTurn {
                what: "files of a pipeline cannot be mixed",
            }),
        }
    }

    fn pull(&mut self) -> Result<Option<Item>, StepError> {
        loop {
            if let Some(item) = self.waiting.pop_front() {
                return Ok(Some(item));
            }
            let Some(mut current) = self.current.take() else {
                return Ok(None);
            };
            match current.step.pull()? {
                Pulled::Chunk(chunk) => {
                    if !current.is_begun {
                        let head = self.output_head(&current)?;
                        current.is_begun = true;
                        self.waiting.push_back(Item::Begin(head));
                    }
                    self.waiting.push_back(Item::Data(chunk));
                    self.current = Some(current);
                }
                Pulled::NeedsInput => {
                    self.current = Some(current);
                    return Ok(None);
                }
                Pulled::Finished => self.finish_file(current)?,
            }
        }
    }

    fn summary(&self) -> StepSummary {
        let mut summary = self.done.clone();
        if let Some(current) = &self.current {
            summary.add(current.step.summary());
        }
        summary
    }
}

/// Takes the place of the steps if there are none.
#[derive(Debug, Default)]
pub(crate) struct Direct {
    waiting: VecDeque<Item>,
}

impl Stage for Direct {
    fn put(&mut self, item: Item) -> Result<(), StepError> {
        match item {
            Item::Data(mut bytes) => {
                while !bytes.is_empty() {
                    let piece: Bytes = bytes.split_to(bytes.len().min(CHUNK_BYTES));
                    self.waiting.push_back(Item::Data(piece));
                }
            }
            other => self.waiting.push_back(other),
        }
        Ok(())
    }

    fn pull(&mut self) -> Result<Option<Item>, StepError> {
        Ok(self.waiting.pop_front())
    }

    fn summary(&self) -> StepSummary {
        StepSummary::new()
    }
}
