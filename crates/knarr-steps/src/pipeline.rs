//! The steps of a job, whatever they are: any number of files in, any number of files out.
//!
//! Constraints: at most [`MAX_STEPS`] steps, bounded memory, and the caller's pull is
//! the back-pressure. Files go through one after another; only the step that packs or unpacks an archive
//! changes their number.
//!
//! **All or nothing.** Nothing that comes out is verified before [`Emitted::Finished`]: a signature, a
//! checksum or the directory of an archive may stand at the very end of the input. So the caller stages
//! every file that comes out, and gives all of them their final names only after `Finished`; after an error
//! it throws all of them away. `Finished` is said once, for all inputs of the pipeline together. So a job
//! that publishes each file by itself makes a pipeline for each; one that packs many files into an archive
//! makes one for all.
//!
//! ```text
//! let recipe = Recipe::new(&steps, &context)?;               // once for a job
//! let mut pipeline = recipe.pipeline()?;
//! pipeline.begin(head)?;
//! loop {
//!     match pipeline.pull()? {
//!         Emitted::Begin(head) => upload = Some(stage(head)),
//!         Emitted::Chunk(bytes) => upload.write(bytes),
//!         Emitted::End => staged.push(upload.take().finish()),
//!         Emitted::NeedsInput => match read() {
//!             Some(bytes) => pipeline.feed(bytes)?,
//!             None if in_file => pipeline.end()?,            // or begin(next) after that, if there is a next
//!             None => pipeline.finish()?,
//!         },
//!         Emitted::Finished => break,                        // commit all that is staged
//!     }
//! }
//! ```

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::age_files;
use crate::archive::Archive;
use crate::checksum::Checksum;
use crate::compress::Compress;
use crate::context::{Context, Spool};
use crate::decompress::Decompress;
use crate::error::StepError;
use crate::extract::Extract;
use crate::format::Format;
use crate::item::{Head, Item, Node};
use crate::openpgp;
use crate::spec::{ArchiveOptions, DecryptOptions, EncryptOptions, ExtractOptions, StepSpec};
use crate::stage::{Direct, MakeStep, PerFile, Stage};
use crate::step::StepSummary;

/// The most steps that a job may have.
pub const MAX_STEPS: usize = 16;

/// The steps of a job, ready to be used for any number of pipelines: keys are read and unlocked once.
/// Make it anew for each run: whether a key is expired is measured by the time in its context.
#[derive(Clone)]
pub struct Recipe {
    stages: Vec<(&'static str, Making)>,
}

/// How a stage is made.
#[derive(Clone)]
enum Making {
    PerFile(MakeStep),
    Extract(ExtractOptions, Arc<dyn Spool>),
    Archive(ArchiveOptions, Context),
}

impl Recipe {
    /// Makes the steps ready. Keys are looked up and read here, so that a configuration that cannot work
    /// fails before a byte is read.
    ///
    /// # Errors
    /// [`StepError::TooManySteps`], [`StepError::Key`].
    pub fn new(specs: &[StepSpec], context: &Context) -> Result<Self, StepError> {
        if specs.len() > MAX_STEPS {
            return Err(StepError::TooManySteps { count: specs.len() });
        }
        let stages = specs
            .iter()
            .map(|spec| Ok((spec.name(), making(spec, context)?)))
            .collect::<Result<_, StepError>>()?;
        Ok(Self { stages })
    }

    /// A pipeline with these steps.
    ///
    /// # Errors
    /// [`StepError::OutOfMemory`].
    pub fn pipeline(&self) -> Result<Pipeline, StepError> {
        let mut stages: Vec<Box<dyn Stage>> = Vec::with_capacity(self.stages.len().max(1));
        for (name, making) in &self.stages {
            stages.push(match making {
                Making::PerFile(make) => Box::new(PerFile::new(name, Arc::clone(make))),
                Making::Extract(options, spool) => {
                    Box::new(Extract::new(*options, Arc::clone(spool)))
                }
                Making::Archive(options, context) => Box::new(Archive::new(options, context)?),
            });
        }
        if stages.is_empty() {
            stages.push(Box::new(Direct::default()));
        }
        Ok(Pipeline {
            stages,
            names: self.stages.iter().map(|(name, _)| *name).collect(),
            feeding: Feeding::BetweenFiles,
            is_asked: Asked::Yes,
            failed: None,
        })
    }
}

/// Without the keys.
impl fmt::Debug for Recipe {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.stages.iter().map(|(name, _)| *name).collect();
        formatter.debug_tuple("Recipe").field(&names).finish()
    }
}

/// The steps of a job, driven by the caller.
pub struct Pipeline {
    stages: Vec<Box<dyn Stage>>,
    names: Vec<&'static str>,
    feeding: Feeding,
    is_asked: Asked,
    failed: Option<StepError>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Feeding {
    BetweenFiles,
    InFile,
    /// A directory or link was begun, and its end is put when the first stage has taken the beginning.
    AfterNode,
    Finished,
    OutIsFinished,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Yes,
    No,
}

/// What came of one [`Pipeline::pull`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Emitted {
    /// A file of the output begins; its content follows. Directories and links are followed by
    /// [`Emitted::End`] at once.
    Begin(Head),
    /// The next 1 to [`crate::CHUNK_BYTES`] bytes of that file. Not verified yet.
    Chunk(Bytes),
    /// That file is complete, but not verified yet.
    End,
    /// Everything fed is used up: go on with [`Pipeline::feed`] or [`Pipeline::end`], between files with
    /// [`Pipeline::begin`] or [`Pipeline::finish`].
    NeedsInput,
    /// All output is complete, and everything that can be verified about it was.
    Finished,
}

impl Pipeline {
    /// Makes the steps for one use; [`Recipe`] is for many.
    ///
    /// # Errors
    /// As [`Recipe::new`] and [`Recipe::pipeline`].
    pub fn new(specs: &[StepSpec], context: &Context) -> Result<Self, StepError> {
        Recipe::new(specs, context)?.pipeline()
    }

    /// Begins the next file of the input. A directory or link has no content: after it comes the next
    /// `begin`, or `finish`.
    ///
    /// # Errors
    /// [`StepError::OutOfTurn`] in the middle of a file, or if the last [`Pipeline::pull`] did not return
    /// [`Emitted::NeedsInput`]; otherwise what the first step finds.
    pub fn begin(&mut self, head: Head) -> Result<(), StepError> {
        self.turn(Feeding::BetweenFiles)?;
        self.feeding = if head.node == Node::File {
            Feeding::InFile
        } else {
            Feeding::AfterNode
        };
        self.put(Item::Begin(head))
    }

    /// Takes the next chunk of the file, of any size. An empty chunk changes nothing.
    ///
    /// # Errors
    /// As [`Pipeline::begin`].
    pub fn feed(&mut self, input: Bytes) -> Result<(), StepError> {
        self.turn(Feeding::InFile)?;
        self.put(Item::Data(input))
    }

    /// Says that the file is complete.
    ///
    /// # Errors
    /// As [`Pipeline::begin`].
    pub fn end(&mut self) -> Result<(), StepError> {
        self.turn(Feeding::InFile)?;
        self.feeding = Feeding::BetweenFiles;
        self.put(Item::End)
    }

    /// Says that no file follows.
    ///
    /// # Errors
    /// As [`Pipeline::begin`].
    pub fn finish(&mut self) -> Result<(), StepError> {
        self.turn(Feeding::BetweenFiles)?;
        self.feeding = Feeding::Finished;
        self.put(Item::Finish)
    }

    /// Does a bounded piece of work and says what came of it. A step that uses a thread of its own may
    /// make this wait for it, as long as it takes to transform one chunk.
    ///
    /// # Errors
    /// Of the first step that fails. An error is final: every later call returns the same one, and all
    /// output so far is void.
    pub fn pull(&mut self) -> Result<Emitted, StepError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = self.advance();
        if let Err(error) = &result {
            self.failed = Some(error.clone());
        }
        result
    }

    fn advance(&mut self) -> Result<Emitted, StepError> {
        loop {
            if self.feeding == Feeding::OutIsFinished {
                return Ok(Emitted::Finished);
            }
            match pull_last(&mut self.stages)? {
                Some(Item::Begin(head)) => return Ok(Emitted::Begin(head)),
                Some(Item::Data(bytes)) if bytes.is_empty() => {}
                Some(Item::Data(bytes)) => return Ok(Emitted::Chunk(bytes)),
                Some(Item::End) => return Ok(Emitted::End),
                Some(Item::Finish) => self.feeding = Feeding::OutIsFinished,
                None if self.feeding == Feeding::AfterNode => {
                    self.feeding = Feeding::BetweenFiles;
                    self.put(Item::End)?;
                }
                None => {
                    self.is_asked = Asked::Yes;
                    return Ok(Emitted::NeedsInput);
                }
            }
        }
    }

    /// What each step did so far, in their order; complete once [`Emitted::Finished`] was returned.
    #[must_use]
    pub fn summaries(&self) -> Vec<(&'static str, StepSummary)> {
        let summaries = self.stages.iter().map(|stage| stage.summary());
        self.names.iter().copied().zip(summaries).collect()
    }

    fn turn(&mut self, wanted: Feeding) -> Result<(), StepError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if self.feeding != wanted || self.is_asked == Asked::No {
            return Err(StepError::OutOfTurn {
                what: "a pipeline was fed what it did not ask for",
            });
        }
        self.is_asked = Asked::No;
        Ok(())
    }

    fn put(&mut self, item: Item) -> Result<(), StepError> {
        let result = match self.stages.first_mut() {
            Some(first) => first.put(item),
            None => Ok(()),
        };
        if let Err(error) = &result {
            self.failed = Some(error.clone());
        }
        result
    }
}

/// Without the content of the files.
impl fmt::Debug for Pipeline {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Pipeline")
            .field("stages", &self.stages)
            .field("feeding", &self.feeding)
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}

/// Pulls from the last of the stages, and gets its input from those before it. The recursion is as deep as
/// there are steps.
fn pull_last(stages: &mut [Box<dyn Stage>]) -> Result<Option<Item>, StepError> {
    let Some((last, before)) = stages.split_last_mut() else {
        return Ok(None);
    };
    loop {
        if let Some(item) = last.pull()? {
            return Ok(Some(item));
        }
        if before.is_empty() {
            return Ok(None);
        }
        match pull_last(before)? {
            Some(item) => last.put(item)?,
            None => return Ok(None),
        }
    }
}

fn making(spec: &StepSpec, context: &Context) -> Result<Making, StepError> {
    Ok(Making::PerFile(match spec {
        StepSpec::Decompress(options) => {
            let options = *options;
            Arc::new(move |head| {
                let expected = Format::of_name(head.path.name());
                Ok(Box::new(Decompress::new(options, expected)))
            })
        }
        StepSpec::Compress(options) => {
            let options = *options;
            Arc::new(move |_| Ok(Box::new(Compress::new(options)?)))
        }
        StepSpec::Checksum(options) => {
            let options = *options;
            Arc::new(move |_| Ok(Box::new(Checksum::new(options))))
        }
        StepSpec::Extract(options) => {
            return Ok(Making::Extract(*options, Arc::clone(&context.spool)));
        }
        StepSpec::Archive(options) => {
            return Ok(Making::Archive(options.clone(), context.clone()));
        }
        StepSpec::Decrypt(options) => decrypt(options, context)?,
        StepSpec::Verify(options) => openpgp::verify(options, context)?,
        StepSpec::Encrypt(options) => encrypt(options, context)?,
        StepSpec::Sign(options) => openpgp::sign(options, context)?,
    }))
}

fn decrypt(options: &DecryptOptions, context: &Context) -> Result<MakeStep, StepError> {
    match (&options.pgp, &options.age) {
        (Some(key), _) => openpgp::decrypt(options, key, context),
        (None, Some(age)) => age_files::decrypt(options, age, context),
        (None, None) => Err(StepError::Internal {
            step: "decrypt",
            detail: "it was told no key".into(),
        }),
    }
}

fn encrypt(options: &EncryptOptions, context: &Context) -> Result<MakeStep, StepError> {
    match (&options.pgp, &options.age) {
        (Some(pgp), _) => openpgp::encrypt(pgp, options.encoding, context),
        (None, Some(age)) => age_files::encrypt(age, options.encoding, context),
        (None, None) => Err(StepError::Internal {
            step: "encrypt",
            detail: "it was told no recipient".into(),
        }),
    }
}
