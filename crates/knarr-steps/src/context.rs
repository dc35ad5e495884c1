//! What the steps get from their caller besides the data: keys, the time, a place for what does not fit
//! into memory.
//!
//! Constraints: the steps open no file and ask no clock of their own. Secrets are wiped from memory when
//! they are dropped, and no `Debug` output or error shows them.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::sync::Arc;

use knarr_core::Timestamp;
use zeroize::Zeroizing;

/// Bytes that nobody may see: a private key, an identity, a passphrase.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes the bytes; they are wiped when the last copy is dropped.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    pub(crate) fn expose(&self) -> &[u8] {
        &self.0
    }
}

/// Says nothing of the content, not even its length.
impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(…)")
    }
}

/// The material for what the steps refer to ([`crate::StepSpec::references`]).
#[derive(Debug, Clone, Default)]
pub struct Keys {
    secrets: BTreeMap<String, Secret>,
    files: BTreeMap<String, Vec<u8>>,
}

impl Keys {
    /// No keys, which is enough for steps that refer to none.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the secret of this name.
    #[must_use]
    pub fn with_secret(mut self, name: impl Into<String>, secret: Secret) -> Self {
        self.secrets.insert(name.into(), secret);
        self
    }

    /// Adds the content of a file with public keys, under the path that the configuration has for it.
    #[must_use]
    pub fn with_file(mut self, path: impl Into<String>, content: Vec<u8>) -> Self {
        self.files.insert(path.into(), content);
        self
    }

    pub(crate) fn secret(&self, name: &str) -> Option<&Secret> {
        self.secrets.get(name)
    }

    pub(crate) fn file(&self, path: &str) -> Option<&[u8]> {
        self.files.get(path).map(Vec::as_slice)
    }
}

/// Makes unnamed temporary files: what a step puts there is gone when the file is closed, also after a crash.
pub trait Spool: Send + Sync {
    /// A new, empty file, open for reading and writing, that has no name.
    ///
    /// # Errors
    /// What the system says.
    fn open(&self) -> io::Result<File>;
}

impl<F: Fn() -> io::Result<File> + Send + Sync> Spool for F {
    fn open(&self) -> io::Result<File> {
        self()
    }
}

/// What the steps of one pipeline get from their caller.
#[derive(Clone)]
pub struct Context {
    /// The keys that the steps refer to.
    pub keys: Arc<Keys>,
    /// The time now, for keys and signatures that expire.
    pub now: Timestamp,
    /// Where a zip archive waits for its end, and a file whose length a tar archive has to know first.
    pub spool: Arc<dyn Spool>,
}

impl Context {
    /// A context without keys.
    #[must_use]
    pub fn new(now: Timestamp, spool: Arc<dyn Spool>) -> Self {
        Self {
            keys: Arc::new(Keys::new()),
            now,
            spool,
        }
    }

    /// The same with these keys.
    #[must_use]
    pub fn with_keys(mut self, keys: Keys) -> Self {
        self.keys = Arc::new(keys);
        self
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Context")
            .field("keys", &self.keys)
            .field("now", &self.now)
            .finish_non_exhaustive()
    }
}
