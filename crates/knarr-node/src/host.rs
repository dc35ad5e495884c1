//! What the program around the node does for it: reading definitions, and opening the places they name.

use std::sync::Arc;

use async_trait::async_trait;
use knarr_engine::node::NodeJob;
use knarr_remote::Remote;
use knarr_store::definitions::DefinitionKind;
use zeroize::Zeroizing;

use crate::v1;

/// A job or an endpoint of a document, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defined {
    /// What it is.
    pub kind: DefinitionKind,
    /// Its name.
    pub name: String,
    /// Its definition as JSON, in the form of the file. Holds no secret, only names of secrets.
    pub definition: String,
}

/// What reading the file again changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reread {
    /// Jobs that are new.
    pub added: Vec<String>,
    /// Jobs whose definition, or one of whose endpoints, is another one. Added ones may be among them.
    pub changed: Vec<String>,
    /// Jobs that are not in the file any more.
    pub removed: Vec<String>,
}

/// What the program around the node does for it. Holds the configuration: the file and what was added.
#[async_trait]
pub trait Host: Send + Sync {
    /// Reads a document that came over the network, and checks it with all that is there. Takes nothing
    /// over.
    ///
    /// # Errors
    /// Everything that is wrong. Commands, files with keys, environment variables and relative paths are.
    fn read(&self, document: &v1::Document) -> Result<Vec<Defined>, Vec<v1::Problem>>;

    /// Takes over what [`Host::read`] gave, in place of what has the same names.
    ///
    /// # Errors
    /// What is wrong with it by now.
    fn put(&mut self, defined: &[Defined]) -> Result<(), Vec<v1::Problem>>;

    /// Lets go of a definition that was added.
    ///
    /// # Errors
    /// If something else needs it: what.
    fn remove(&mut self, kind: DefinitionKind, name: &str) -> Result<(), String>;

    /// The definition that was added, as JSON.
    fn definition(&self, kind: DefinitionKind, name: &str) -> Option<String>;

    /// Whether the name stands in the file.
    fn is_of_the_file(&self, kind: DefinitionKind, name: &str) -> bool;

    /// All jobs, or the one of this name, as far as their definitions tell, with so many next times.
    fn jobs(&self, only: Option<&str>, times: usize) -> Vec<v1::Job>;

    /// All endpoints.
    fn endpoints(&self) -> Vec<v1::Endpoint>;

    /// A job with its places opened; nothing if it is not to run on this node.
    ///
    /// # Errors
    /// Why it cannot be opened.
    async fn open(&self, job: &str) -> Result<Option<NodeJob>, String>;

    /// An endpoint, opened.
    ///
    /// # Errors
    /// Why it cannot be opened; nothing if there is none of that name.
    async fn endpoint(&self, name: &str) -> Result<Arc<dyn Remote>, Option<String>>;

    /// The token with which a job may be run over HTTP; nothing if it may not.
    ///
    /// # Errors
    /// If its secret cannot be had: why.
    async fn http_token(&self, job: &str) -> Result<Option<Zeroizing<String>>, String>;

    /// Reads the file again and takes it over, if nothing is wrong with it.
    ///
    /// # Errors
    /// Everything that is wrong; then the old one stays.
    fn reread(&mut self) -> Result<Reread, Vec<v1::Problem>>;

    /// The file; empty without one.
    fn file(&self) -> String;
}
