//! The own SFTP server, as it is meant.

use std::net::SocketAddr;
use std::path::PathBuf;

use knarr_core::location::Location;
use knarr_serve::files::{Permissions, Rule};
use knarr_serve::places::{Missing, Quota};
use knarr_serve::ssh::ServerOptions;
use knarr_serve::users::{PasswordHash, User};

use crate::config::SecretSource;

/// The own SFTP server.
#[derive(Debug, Clone)]
pub struct SftpServer {
    /// Where it listens; at least one.
    pub listen: Vec<SocketAddr>,
    /// The directory with the host keys, if the file names one; absolute.
    pub host_keys: Option<PathBuf>,
    /// What clients may cost.
    pub options: ServerOptions,
    /// Who may come.
    pub users: Vec<ServedUser>,
}

/// Somebody who may log in.
#[derive(Debug, Clone)]
pub struct ServedUser {
    /// All but what has to be fetched first: the password, key files and places.
    pub user: User,
    /// The password.
    pub password: Option<UserPassword>,
    /// Files with further public keys; absolute.
    pub key_files: Vec<PathBuf>,
    /// What the user sees; one without a name, or any number with names.
    pub mounts: Vec<ServedMount>,
    /// How much the user may store.
    pub quota: Quota,
}

/// A password of a user.
#[derive(Debug, Clone)]
pub enum UserPassword {
    /// Its hash.
    Hash(PasswordHash),
    /// Itself, or its hash, as a secret.
    Secret(SecretSource),
}

/// A place that a user sees.
#[derive(Debug, Clone)]
pub struct ServedMount {
    /// Its name in the user's root; empty for the root itself.
    pub name: String,
    /// Where it is. Local paths are absolute.
    pub location: Location,
    /// Whether a local directory is made.
    pub missing: Missing,
    /// What the user may do there.
    pub permissions: Permissions,
    /// Where below it something else is allowed.
    pub rules: Vec<Rule>,
}
