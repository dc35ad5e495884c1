//! Without a node: the same at once, on the state directory.

use knarr_store::definitions::DefinitionKind;

use crate::desk::{Desk, DeskError, Put};
use crate::host::Host;
use crate::v1;

impl<H: Host> Desk<H> {
    /// Adds (or, with the same names, replaces) what a document defines.
    ///
    /// # Errors
    /// See [`DeskError`].
    pub async fn add(
        &mut self,
        document: &v1::Document,
        by: &str,
    ) -> Result<v1::Changes, DeskError> {
        let put = self.put(Put::Add, document, by).await;
        put.map(|(changes, _jobs)| changes)
    }

    /// Replaces what a document defines.
    ///
    /// # Errors
    /// See [`DeskError`].
    pub async fn update(
        &mut self,
        document: &v1::Document,
        by: &str,
    ) -> Result<v1::Changes, DeskError> {
        let put = self.put(Put::Update, document, by).await;
        put.map(|(changes, _jobs)| changes)
    }

    /// Removes a definition that was added.
    ///
    /// # Errors
    /// See [`DeskError`].
    pub async fn remove_definition(
        &mut self,
        kind: DefinitionKind,
        name: &str,
        by: &str,
    ) -> Result<v1::Changed, DeskError> {
        let removed = self.remove(kind, name, by).await;
        removed.map(|(changed, _jobs)| changed)
    }

    /// All endpoints.
    ///
    /// # Errors
    /// See [`DeskError`].
    pub async fn list_endpoints(&self) -> Result<Vec<v1::Endpoint>, DeskError> {
        self.endpoints().await
    }

    /// All users of the SFTP server.
    ///
    /// # Errors
    /// See [`DeskError`].
    pub async fn list_users(&self) -> Result<Vec<v1::User>, DeskError> {
        self.users().await
    }

    /// All jobs, or one.
    ///
    /// # Errors
    /// See [`DeskError`].
    pub async fn list(&self, only: Option<&str>) -> Result<Vec<v1::Job>, DeskError> {
        self.jobs(only).await
    }

    /// The program's part of it.
    pub const fn host(&self) -> &H {
        &self.host
    }
}
