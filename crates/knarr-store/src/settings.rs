//! Small things that are kept: a text under a name, and the identity of this node.

use crate::Store;
use crate::codec::Malformed;
use crate::error::StoreError;
use crate::read::{Columns as _, Reader};
use crate::transaction::Tx;

/// Names of this prefix are the caller's, so that none of them ever meets one of the store's own.
const PREFIX: &str = "kept.";
const NODE_ID: &str = "node_id";

/// The random identity of this state directory: 16 bytes, made once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NodeId(pub [u8; 16]);

impl std::fmt::Display for NodeId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Reader<'_> {
    fn raw_setting(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let sql = "SELECT value FROM settings WHERE key = ?1";
        self.one("read a setting", sql, [key], |row| row.column(0))
    }

    /// What is kept under a name.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn setting(&self, name: &str) -> Result<Option<String>, StoreError> {
        self.raw_setting(&format!("{PREFIX}{name}"))?
            .map(|value| {
                String::from_utf8(value).map_err(|_| {
                    StoreError::damaged(format!("the setting {name}"), Malformed::Text)
                })
            })
            .transpose()
    }

    /// What is kept under names that begin with `prefix`, which ends in a dot: the rest of each name, and the
    /// text. In the order of the names, those behind `prefix` and `after`, at most `limit`.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn settings_below(
        &self,
        prefix: &str,
        after: &str,
        limit: usize,
    ) -> Result<Vec<(String, String)>, StoreError> {
        let begin = format!("{PREFIX}{prefix}");
        let from = format!("{begin}{after}");
        // The byte behind a dot is a slash: no name with the prefix comes after that.
        let end = format!("{}/", begin.strip_suffix('.').unwrap_or(&begin));
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.all(
            "list settings",
            "SELECT key, value FROM settings WHERE key > ?1 AND key < ?2 ORDER BY key LIMIT ?3",
            (from, end, limit),
            |row| {
                let (key, value): (String, Vec<u8>) = (row.column(0)?, row.column(1)?);
                let value = String::from_utf8(value);
                let value = value.map_err(|_| {
                    StoreError::damaged(format!("the setting {key}"), Malformed::Text)
                })?;
                let rest = key.strip_prefix(&begin).unwrap_or(&key).to_owned();
                Ok((rest, value))
            },
        )
    }
}

impl Tx<'_> {
    fn set_raw_setting(&mut self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        self.run(
            "keep a setting",
            "INSERT INTO settings (key, value) VALUES (?1, ?2) \
             ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            (key, value),
        )
        .map(drop)
    }

    /// Keeps a text under a name.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn set_setting(&mut self, name: &str, value: &str) -> Result<(), StoreError> {
        self.set_raw_setting(&format!("{PREFIX}{name}"), value.as_bytes())
    }

    /// Keeps nothing under a name any more.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn remove_setting(&mut self, name: &str) -> Result<(), StoreError> {
        let key = format!("{PREFIX}{name}");
        self.run(
            "remove a setting",
            "DELETE FROM settings WHERE key = ?1",
            [key],
        )
        .map(drop)
    }
}

impl Store {
    /// The random identity of this state directory, made when it is first asked for.
    ///
    /// # Errors
    /// If the database cannot be read or written.
    pub fn node_id(&self) -> Result<NodeId, StoreError> {
        if let Some(id) = self.read(node_id)? {
            return Ok(id);
        }
        self.transact(|tx| {
            // Another process may have been quicker.
            if let Some(id) = node_id(tx)? {
                return Ok(id);
            }
            let mut bytes = [0; 16];
            aws_lc_rs::rand::fill(&mut bytes)
                .expect("the operating system always has random bytes");
            tx.set_raw_setting(NODE_ID, &bytes)?;
            Ok(NodeId(bytes))
        })
        .wait()
    }
}

fn node_id(reader: &Reader<'_>) -> Result<Option<NodeId>, StoreError> {
    reader
        .raw_setting(NODE_ID)?
        .map(|bytes| {
            bytes
                .try_into()
                .map(NodeId)
                .map_err(|_| StoreError::damaged("the identity of the node", Malformed::Short))
        })
        .transpose()
}
