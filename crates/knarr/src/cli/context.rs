//! What commands share: flags, environment, configuration, state directory, clock.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use knarr_core::time::SystemClock;
use knarr_store::{OpenState, Store, StoreOptions};

use crate::cli::GlobalArguments;
use crate::command_error::CommandError;
use crate::config::Config;
use crate::config::find;
use crate::environment::Environment;
use crate::output::Output;

/// What a command is run with.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) global: GlobalArguments,
    pub(crate) environment: Environment,
    pub(crate) clock: SystemClock,
}

impl Context {
    pub(crate) const fn new(global: GlobalArguments, environment: Environment) -> Self {
        Self {
            global,
            environment,
            clock: SystemClock,
        }
    }

    /// Stdout, in the wanted format.
    pub(crate) fn output(&self) -> Output {
        Output::new(self.global.format(), &self.environment)
    }

    /// The configuration, or an empty one if there is no file.
    ///
    /// # Errors
    /// If a file is there and is wrong, or the named file is missing.
    pub(crate) fn config(&self) -> Result<Config, CommandError> {
        Ok(find::load(self.global.config.as_deref(), &self.environment)?.unwrap_or_default())
    }

    /// The configuration, which has to exist.
    ///
    /// # Errors
    /// As [`Context::config`], and if there is none.
    pub(crate) fn required_config(&self) -> Result<Config, CommandError> {
        find::load(self.global.config.as_deref(), &self.environment)?
            .ok_or_else(|| find::none_found(&self.environment).into())
    }

    /// The state directory, without asking the configuration if that is not needed.
    ///
    /// # Errors
    /// If the configuration has to be asked and is wrong, or there is no home directory.
    pub(crate) fn state(&self) -> Result<PathBuf, CommandError> {
        if let Some(named) = self.named_state() {
            return Ok(named);
        }
        let config = self.config()?;
        self.state_of(&config)
    }

    /// The state directory with a configuration that is known already.
    ///
    /// # Errors
    /// If there is no home directory.
    pub(crate) fn state_of(&self, config: &Config) -> Result<PathBuf, CommandError> {
        self.named_state()
            .or_else(|| config.state.clone())
            .or_else(|| self.environment.usual_state())
            .ok_or_else(|| {
                CommandError::usage("there is no place for Knarr's state: $HOME is not set")
                    .hint("name a directory with --state or $KNARR_STATE")
            })
    }

    /// Opens the state, and makes it if there is none.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub(crate) fn open_store(&self, state: &Path) -> Result<Store, CommandError> {
        let options = StoreOptions::new(state, Arc::new(self.clock));
        let opened = Store::open(options).map_err(|error| {
            CommandError::failed(error).hint(format!(
                "the state directory is {}; --state or $KNARR_STATE name another",
                state.display()
            ))
        })?;
        if let OpenState::Recovered {
            quarantined,
            reason,
        } = &opened.state
        {
            tracing::warn!(
                "the state was damaged ({reason}) and set aside as {}; what it knew is unknown now, \
                 so nothing is deleted before both sides were looked at again",
                quarantined.display()
            );
        }
        Ok(opened.store)
    }

    /// The state, if there is any yet.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub(crate) fn existing_store(&self) -> Result<Store, CommandError> {
        let state = self.state()?;
        if !state.join("knarr.db").exists() {
            return Err(CommandError::usage(NothingKnown(state)).hint(
                "nothing was moved with this state directory; --state or $KNARR_STATE name another",
            ));
        }
        self.open_store(&state)
    }

    fn named_state(&self) -> Option<PathBuf> {
        self.global
            .state
            .as_ref()
            .or(self.environment.state.as_ref())
            .map(|path| self.environment.absolute(path))
    }

    /// An asynchronous runtime.
    ///
    /// # Errors
    /// If the system gives no threads.
    pub(crate) fn runtime(&self) -> Result<tokio::runtime::Runtime, CommandError> {
        tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(CommandError::failed)
    }
}

/// Nothing is known yet.
#[derive(Debug, thiserror::Error)]
#[error("there is no state in {}", .0.display())]
struct NothingKnown(PathBuf);
