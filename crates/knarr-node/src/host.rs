//! What the program around the node does for it: reading definitions, and opening the places they name.

use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use knarr_engine::node::NodeJob;
use knarr_remote::Remote;
use knarr_store::definitions::DefinitionKind;
use zeroize::Zeroizing;

use crate::v1;

/// Something that takes a while, and in the course of which the host may be changed.
pub type Opening<'h, T> = Pin<Box<dyn Future<Output = T> + Send + 'h>>;

/// A job, an endpoint or a user of a document, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defined {
    /// What it is.
    pub kind: DefinitionKind,
    /// Its name.
    pub name: String,
    /// Its definition as JSON, in the form of the file. Holds no secret, only names of secrets.
    pub definition: String,
}

/// Something on record that is wrong by now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// What it is.
    pub kind: DefinitionKind,
    /// Its name.
    pub name: String,
    /// What is wrong.
    pub why: String,
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
    /// What else was taken over: keys of the file.
    pub taken_over: Vec<String>,
    /// What counts from the next start only, and is not as it was at this one: keys of the file.
    pub needs_restart: Vec<String>,
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

    /// Takes over what is on record, all of it, and says what of it is wrong by now. That stays known, so that
    /// it can be shown and removed, and is tried again when something else changes.
    fn recall(&mut self, stored: Vec<Defined>) -> Vec<Broken>;

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

    /// A job that was removed is not at work any more.
    fn forget(&mut self, job: &str);

    /// The definition that was added, as JSON; also of one that is wrong by now.
    fn definition(&self, kind: DefinitionKind, name: &str) -> Option<String>;

    /// Whether the name stands in the file.
    fn is_of_the_file(&self, kind: DefinitionKind, name: &str) -> bool;

    /// All jobs, or the one of this name, as far as their definitions tell, with so many next times.
    fn jobs(&self, only: Option<&str>, times: usize) -> Vec<v1::Job>;

    /// All endpoints.
    fn endpoints(&self) -> Vec<v1::Endpoint>;

    /// All users of the SFTP server.
    fn users(&self) -> Vec<v1::User>;

    /// Has the SFTP server let in the users of now. Who was changed or removed loses their connections.
    async fn serve_users(&mut self);

    /// The alert rules in force.
    fn rules(&self) -> Vec<v1::AlertRule>;

    /// A job with its places opened; nothing if it is not to run on this node.
    ///
    /// # Errors
    /// Why it cannot be opened.
    fn open<'h>(&self, job: &str) -> Opening<'h, Result<Option<NodeJob>, String>>
    where
        Self: 'h;

    /// An endpoint, opened.
    ///
    /// # Errors
    /// Why it cannot be opened; nothing if there is none of that name.
    fn endpoint<'h>(&self, name: &str) -> Opening<'h, Result<Arc<dyn Remote>, Option<String>>>
    where
        Self: 'h;

    /// Sends a test message to a target, or to all targets of a rule.
    ///
    /// # Errors
    /// If there is no such target and no such rule, or a target cannot be used: why.
    fn test_alert<'h>(&self, name: &str) -> Opening<'h, Result<Vec<v1::TestedTarget>, String>>
    where
        Self: 'h;

    /// The token with which a job may be run over HTTP; nothing if it may not.
    ///
    /// # Errors
    /// If its secret cannot be had: why.
    async fn http_token(&self, job: &str) -> Result<Option<Zeroizing<String>>, String>;

    /// Reads the file again and takes it over, if nothing is wrong with it.
    ///
    /// # Errors
    /// Everything that is wrong; then the old one stays.
    async fn reread(&mut self) -> Result<Reread, Vec<v1::Problem>>;

    /// The file; empty without one.
    fn file(&self) -> String;
}
