//! The section `sftp_server` as it is written.

use std::collections::BTreeMap;

use knarr_core::units::{ByteSize, Span};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::read::{At, Many};
use crate::config::shape::SecretSource;

/// The own SFTP server: where it listens, and who may come.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct SftpServerShape {
    /// Addresses with ports to listen on, or one; 127.0.0.1:2022 by default, which only this machine reaches.
    #[serde(default)]
    pub(in crate::config) listen: Many<At<String>>,
    /// The directory with the host keys; `host-keys` in the state directory by default. An Ed25519 key is made there
    /// if there is none.
    pub(in crate::config) host_keys: Option<At<String>>,
    /// The directory or location of users who have no other, with {user} for the name, such as /srv/home/{user}.
    /// Directories are made when they are first needed.
    pub(in crate::config) home: Option<At<String>>,
    /// What clients may cost.
    #[serde(default)]
    pub(in crate::config) limits: ServerLimitsShape,
    /// Who may come, by name.
    #[serde(default)]
    pub(in crate::config) users: BTreeMap<String, ServerUserShape>,
}

/// What clients of the SFTP server may cost.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct ServerLimitsShape {
    /// The most connections at once; 2000 by default.
    #[schemars(range(min = 1, max = 100_000))]
    pub(in crate::config) connections: Option<At<u32>>,
    /// How long a client may be silent that has nothing in flight; 15m by default, 0s for ever.
    pub(in crate::config) idle: Option<At<Span>>,
    /// How long a client may take to log in; 2m by default.
    pub(in crate::config) log_in: Option<At<Span>>,
    /// Failed attempts to log in before a connection ends; 6 by default.
    #[schemars(range(min = 1, max = 100))]
    pub(in crate::config) log_in_tries: Option<At<u32>>,
    /// Networks that are never locked out for failed attempts, such as 10.0.0.0/8.
    #[serde(default)]
    pub(in crate::config) unpunished: Many<At<String>>,
    /// How long files that are open may take to be closed when the server stops; 5s by default, at most 8s.
    pub(in crate::config) stopping: Option<At<Span>>,
}

/// Somebody who may log in.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct ServerUserShape {
    /// Whether the user may log in; true by default.
    pub(in crate::config) enabled: Option<bool>,
    /// When that ends: a date (to its beginning, UTC) or a time, such as 2027-01-01 or 2027-01-01T12:00:00Z.
    pub(in crate::config) expires: Option<At<String>>,
    /// The networks from which the user may come; everywhere by default.
    #[serde(default)]
    pub(in crate::config) networks: Many<At<String>>,
    /// A public key as a line of authorized_keys; or a list of them. The options from= and expiry-time= are
    /// understood.
    #[serde(default)]
    pub(in crate::config) key: Many<At<String>>,
    /// A file of such lines, or a list of them.
    #[serde(default)]
    pub(in crate::config) key_file: Many<At<String>>,
    /// The public key of an authority whose certificates for this user are taken; or a list of them.
    #[serde(default)]
    pub(in crate::config) authority: Many<At<String>>,
    /// The password.
    pub(in crate::config) password: Option<SecretSource>,
    /// Instead of the password its hash, as `knarr sftp-server hash-password` prints it.
    pub(in crate::config) password_hash: Option<At<String>>,
    /// What is asked for: [key, password] for both; by default either is enough.
    #[serde(default)]
    pub(in crate::config) require: Many<At<RequireShape>>,
    /// The most connections at once.
    #[schemars(range(min = 1))]
    pub(in crate::config) connections: Option<At<u32>>,
    /// The directory or location that the user sees as `/`; {user} is the name.
    pub(in crate::config) root: Option<At<String>>,
    /// Instead of `root`: names in `/`, and what is behind them.
    #[serde(default)]
    pub(in crate::config) mounts: BTreeMap<String, MountShape>,
    /// What the user may do; everything by default.
    pub(in crate::config) permissions: Option<At<GivenPermissions>>,
    /// Other permissions for directories, by their path from `/`, and everything below them.
    #[serde(default)]
    pub(in crate::config) paths: BTreeMap<String, At<GivenPermissions>>,
    /// How much the user may store.
    #[serde(default)]
    pub(in crate::config) quota: QuotaShape,
}

/// A place with a name in the user's `/`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct MountShape {
    /// The directory or location; {user} is the name of the user.
    pub(in crate::config) root: At<String>,
    /// What the user may do there; by default what the user may do at all.
    pub(in crate::config) permissions: Option<At<GivenPermissions>>,
}

/// How much a user may store.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct QuotaShape {
    /// The most bytes in all files together, such as 10GiB.
    pub(in crate::config) size: Option<At<ByteSize>>,
    /// The most files, directories and links.
    pub(in crate::config) files: Option<At<u64>>,
}

/// What a user has to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum RequireShape {
    /// A key or certificate.
    #[default]
    Key,
    /// The password.
    Password,
}

/// Permissions: a set with a name, or a list of single ones.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
#[schemars(untagged)]
pub(in crate::config) enum GivenPermissions {
    /// A set with a name.
    Set(PermissionSet),
    /// Single permissions.
    List(Vec<PermissionName>),
}

impl Default for GivenPermissions {
    fn default() -> Self {
        Self::Set(PermissionSet::All)
    }
}

/// A set of permissions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum PermissionSet {
    /// Everything.
    All,
    /// List and download.
    ReadOnly,
    /// Upload, and see nothing.
    DropBox,
    /// Nothing.
    None,
}

/// One permission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum PermissionName {
    /// See the names in a directory.
    List,
    /// Read files.
    Download,
    /// Create files.
    Upload,
    /// Change files that are there, or put others in their place.
    Overwrite,
    /// Remove files and directories.
    Delete,
    /// Give files and directories other names.
    Rename,
    /// Create directories.
    Mkdir,
    /// Create symbolic and hard links.
    Link,
    /// Set permissions, owners and times.
    SetAttributes,
}

impl<'de> Deserialize<'de> for GivenPermissions {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PermissionsVisitor;
        impl<'de> serde::de::Visitor<'de> for PermissionsVisitor {
            type Value = GivenPermissions;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("all, read_only, drop_box, none, or a list of permissions")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<GivenPermissions, E> {
                let set = match text {
                    "all" => PermissionSet::All,
                    "read_only" => PermissionSet::ReadOnly,
                    "drop_box" => PermissionSet::DropBox,
                    "none" => PermissionSet::None,
                    other => {
                        const SETS: &[&str] = &["all", "read_only", "drop_box", "none"];
                        return Err(E::unknown_variant(other, SETS));
                    }
                };
                Ok(GivenPermissions::Set(set))
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(
                self,
                mut list: A,
            ) -> Result<GivenPermissions, A::Error> {
                let mut names = Vec::new();
                while let Some(name) = list.next_element()? {
                    names.push(name);
                }
                Ok(GivenPermissions::List(names))
            }
        }
        deserializer.deserialize_any(PermissionsVisitor)
    }
}
