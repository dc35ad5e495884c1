//! Secrets: encrypted in the database, with a key that is kept outside of it.
//!
//! * AES-256-GCM, a random nonce of 12 bytes for each value, the name as additional data: a value cannot
//!   be put under another name.
//! * The key is 32 bytes, written as 64 hexadecimal digits. In a file (0600) that is made with the first
//!   secret and never with the database, or given by whoever starts Knarr. A key file that others can
//!   read is refused: what was in it must be taken as known.
//! * Each value carries a short name of its key (the first 8 bytes of a keyed BLAKE3 hash), so that a
//!   wrong key is told apart from a damaged value.
//! * Plaintext is wiped from memory when it is dropped, and nothing shows it: not `Debug`, not an error.

use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use knarr_core::Timestamp;
use knarr_fs::FsError;
use knarr_fs::error::ShownPath;
use zeroize::{Zeroize as _, Zeroizing};

use crate::Store;
use crate::error::StoreError;
use crate::read::Columns as _;

/// The longest name of a secret, in bytes.
pub const MAX_NAME_BYTES: usize = 128;
/// The longest secret, in bytes: a private key fits many times.
pub const MAX_SECRET_BYTES: usize = 64 * 1024;
const KEY_CONTEXT: &[u8] = b"knarr secret key name, format 1";
const VALUE_CONTEXT: &[u8] = b"knarr secret, format 1\0";

/// Where the key is.
#[derive(Clone)]
pub enum KeySource {
    /// In this file, which is made (0600) when the first secret is set.
    File(PathBuf),
    /// In this file, which somebody else provides (a systemd credential). Others may not read it.
    Credential(PathBuf),
    /// Here: 64 hexadecimal digits, from the environment for instance.
    Given(SecretValue),
}

/// Never shows the key.
impl fmt::Debug for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Credential(path) => f.debug_tuple("Credential").field(path).finish(),
            Self::Given(_) => f.write_str("Given(…)"),
        }
    }
}

/// A secret in the clear. Wiped when dropped; never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretValue(Zeroizing<Vec<u8>>);

impl SecretValue {
    /// Takes the bytes over; no copy is left behind.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The secret as text, if it is UTF-8.
    #[must_use]
    pub fn as_text(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }
}

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretValue(…)")
    }
}

/// Why a secret could not be had or kept.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// There is no secret of this name.
    #[error("there is no secret \"{name}\"; set it with `knarr secret set {name}`")]
    Missing {
        /// The name.
        name: String,
    },
    /// The name cannot be one.
    #[error(
        "\"{name}\" cannot name a secret; use letters, digits, `-`, `_` and `.`, at most {MAX_NAME_BYTES} bytes"
    )]
    Name {
        /// The name.
        name: String,
    },
    /// The secret is too long.
    #[error("the secret \"{name}\" is longer than {MAX_SECRET_BYTES} bytes")]
    TooLong {
        /// The name.
        name: String,
    },
    /// The key file is not there, although there are secrets.
    #[error(
        "the key of the secrets is missing at \"{path}\"; put it back there, or set the secrets anew"
    )]
    NoKey {
        /// Where it should be.
        path: ShownPath,
    },
    /// Others can read the key.
    #[error(
        "\"{path}\" has the permissions {mode:o}, so others can read the key of the secrets; \
         take it as known: change the secrets, then remove this file or forbid others to read it"
    )]
    Exposed {
        /// The key file.
        path: ShownPath,
        /// Its permissions.
        mode: u32,
    },
    /// The key is none.
    #[error("the key of the secrets{place} is not 64 hexadecimal digits")]
    NotAKey {
        /// ` in "…"`, or nothing.
        place: String,
    },
    /// The secret was encrypted with another key.
    #[error(
        "the secret \"{name}\" was encrypted with another key ({with}) than the one given ({given})"
    )]
    WrongKey {
        /// The name of the secret.
        name: String,
        /// The short name of its key.
        with: String,
        /// The short name of the key that was given.
        given: String,
    },
    /// The encrypted value was changed.
    #[error("the secret \"{name}\" was damaged or exchanged in the state database; set it anew")]
    Damaged {
        /// The name.
        name: String,
    },
    /// The key file cannot be read or written.
    #[error("the key of the secrets cannot be used")]
    File(#[source] FsError),
    /// The database cannot be read or written.
    #[error("the secrets cannot be used")]
    Store(#[source] StoreError),
}

/// A secret's name and when it was set, without the secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretInfo {
    /// The name.
    pub name: String,
    /// When it was set.
    pub updated_at: Timestamp,
}

/// The secrets of a store. The key is read when it is needed, and only then.
#[derive(Debug, Clone)]
pub struct Secrets {
    store: Store,
    key: KeySource,
}

impl Secrets {
    /// The secrets of `store`, with the key from `key`.
    #[must_use]
    pub const fn new(store: Store, key: KeySource) -> Self {
        Self { store, key }
    }

    /// Keeps a secret under a name, replacing what was there. Blocks.
    ///
    /// # Errors
    /// See [`SecretError`].
    pub fn set(&self, name: &str, value: &SecretValue) -> Result<(), SecretError> {
        check_name(name)?;
        if value.as_bytes().len() > MAX_SECRET_BYTES {
            return Err(SecretError::TooLong {
                name: name.to_owned(),
            });
        }
        let key = match self.read_key()? {
            Some(key) => key,
            None => self.make_key()?,
        };
        let sealer = key.sealer();
        // Room for the tag, so that growing does not leave a copy of the plaintext behind.
        let mut sealed = Vec::with_capacity(value.as_bytes().len() + AES_256_GCM.tag_len());
        sealed.extend_from_slice(value.as_bytes());
        let Ok(nonce) = sealer.seal_in_place_append_tag(Aad::from(context(name)), &mut sealed)
        else {
            sealed.zeroize();
            return Err(SecretError::Damaged {
                name: name.to_owned(),
            });
        };
        let (name, id, nonce) = (name.to_owned(), key.id(), *nonce.as_ref());
        self.store
            .transact(move |tx| {
                tx.run(
                    "keep a secret",
                    "INSERT OR REPLACE INTO secrets (name, key_id, nonce, ciphertext, updated_at) \
                     VALUES (?1, ?2, ?3, ?4, ?5)",
                    (
                        name,
                        id.as_slice(),
                        nonce.as_slice(),
                        sealed,
                        tx.now().nanoseconds(),
                    ),
                )
                .map(drop)
            })
            .wait()
            .map_err(SecretError::Store)
    }

    /// The secret of this name. Blocks.
    ///
    /// # Errors
    /// See [`SecretError`].
    pub fn get(&self, name: &str) -> Result<SecretValue, SecretError> {
        let row = self.store.read(|reader| {
            reader.one(
                "read a secret",
                "SELECT key_id, nonce, ciphertext FROM secrets WHERE name = ?1",
                [name],
                |row| {
                    let (id, nonce, sealed): (Vec<u8>, Vec<u8>, Vec<u8>) =
                        (row.column(0)?, row.column(1)?, row.column(2)?);
                    Ok((id, nonce, sealed))
                },
            )
        });
        let name = || name.to_owned();
        let (id, nonce, mut sealed) = row
            .map_err(SecretError::Store)?
            .ok_or_else(|| SecretError::Missing { name: name() })?;
        let key = self.read_key()?.ok_or_else(|| match &self.key {
            KeySource::File(path) | KeySource::Credential(path) => SecretError::NoKey {
                path: path.clone().into(),
            },
            KeySource::Given(_) => SecretError::NotAKey {
                place: String::new(),
            },
        })?;
        if id != key.id() {
            return Err(SecretError::WrongKey {
                name: name(),
                with: hex(&id),
                given: hex(&key.id()),
            });
        }
        let damaged = || SecretError::Damaged { name: name() };
        let nonce = Nonce::try_assume_unique_for_key(&nonce).map_err(|_| damaged())?;
        let length = key
            .sealer()
            .open_in_place(nonce, Aad::from(context(&name())), &mut sealed)
            .map(|plain| plain.len());
        match length {
            Ok(length) => {
                // The rest is the tag, which is no secret.
                sealed.truncate(length);
                Ok(SecretValue::new(sealed))
            }
            Err(_) => {
                sealed.zeroize();
                Err(damaged())
            }
        }
    }

    /// The names of all secrets. Needs no key. Blocks.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn list(&self) -> Result<Vec<SecretInfo>, SecretError> {
        self.store
            .read(|reader| {
                let sql = "SELECT name, updated_at FROM secrets ORDER BY name";
                reader.all("list the secrets", sql, [], |row| {
                    Ok(SecretInfo {
                        name: row.column(0)?,
                        updated_at: row.time(1)?,
                    })
                })
            })
            .map_err(SecretError::Store)
    }

    /// Removes a secret. Needs no key. Blocks.
    ///
    /// # Errors
    /// [`SecretError::Missing`]; if the database cannot be written.
    pub fn remove(&self, name: &str) -> Result<(), SecretError> {
        let owned = name.to_owned();
        let removed = self
            .store
            .transact(move |tx| {
                tx.run(
                    "remove a secret",
                    "DELETE FROM secrets WHERE name = ?1",
                    [owned],
                )
            })
            .wait()
            .map_err(SecretError::Store)?;
        match removed {
            0 => Err(SecretError::Missing {
                name: name.to_owned(),
            }),
            _ => Ok(()),
        }
    }

    fn read_key(&self) -> Result<Option<Key>, SecretError> {
        read_key(&self.key)
    }

    /// Makes the key file, unless there are secrets already: then the key was lost, and a new one would
    /// only hide that. Inside a transaction, so that of two processes only one makes a key.
    fn make_key(&self) -> Result<Key, SecretError> {
        let path = match &self.key {
            KeySource::File(path) => path.clone(),
            KeySource::Credential(path) => {
                return Err(SecretError::NoKey {
                    path: path.clone().into(),
                });
            }
            KeySource::Given(_) => {
                return Err(SecretError::NotAKey {
                    place: String::new(),
                });
            }
        };
        let source = self.key.clone();
        self.store
            .transact(move |tx| {
                let count = tx.one(
                    "count the secrets",
                    "SELECT count(*) FROM secrets",
                    [],
                    |row| row.number(0),
                )?;
                Ok(match read_key(&source) {
                    Ok(Some(key)) => Ok(key),
                    Ok(None) if count != Some(0) => Err(SecretError::NoKey { path: path.into() }),
                    Ok(None) => write_new_key(&path),
                    Err(error) => Err(error),
                })
            })
            .wait()
            .map_err(SecretError::Store)?
    }
}

fn read_key(source: &KeySource) -> Result<Option<Key>, SecretError> {
    let (path, forbidden) = match source {
        KeySource::Given(text) => {
            return Key::parse(text.as_bytes())
                .map(Some)
                .ok_or(SecretError::NotAKey {
                    place: String::new(),
                });
        }
        KeySource::File(path) => (path, 0o077),
        // systemd gives the group's bits away to its access list; others never get any.
        KeySource::Credential(path) => (path, 0o007),
    };
    let Some(text) = knarr_fs::durable::read_limited(path, 4_096).map_err(SecretError::File)?
    else {
        return Ok(None);
    };
    let text = Zeroizing::new(text);
    if let Ok(metadata) = path.metadata()
        && metadata.mode() & forbidden != 0
    {
        let mode = metadata.mode() & 0o7777;
        return Err(SecretError::Exposed {
            path: path.clone().into(),
            mode,
        });
    }
    Key::parse(&text)
        .map(Some)
        .ok_or_else(|| SecretError::NotAKey {
            place: format!(" in \"{}\"", path.display()),
        })
}

fn write_new_key(path: &Path) -> Result<Key, SecretError> {
    let mut key = Key(Zeroizing::new([0; 32]));
    aws_lc_rs::rand::fill(key.0.as_mut_slice())
        .expect("the operating system always has random bytes");
    let mut text = Zeroizing::new(Vec::with_capacity(65));
    for byte in key.0.iter() {
        for half in [byte >> 4, byte & 15] {
            text.push(if half < 10 {
                b'0' + half
            } else {
                b'a' + half - 10
            });
        }
    }
    text.push(b'\n');
    make_directory_of(path).map_err(SecretError::File)?;
    knarr_fs::durable::write_file(path, &text, 0o600).map_err(SecretError::File)?;
    Ok(key)
}

fn make_directory_of(path: &Path) -> Result<(), FsError> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() && !parent.is_dir() => {
            knarr_fs::Root::create(parent).map(drop)
        }
        _ => Ok(()),
    }
}

struct Key(Zeroizing<[u8; 32]>);

impl Key {
    fn parse(text: &[u8]) -> Option<Self> {
        let digits = text.trim_ascii();
        if digits.len() != 64 {
            return None;
        }
        let mut key = Self(Zeroizing::new([0; 32]));
        for (byte, pair) in key.0.iter_mut().zip(digits.chunks_exact(2)) {
            for digit in pair {
                let value = char::from(*digit).to_digit(16)?;
                *byte = *byte << 4 | u8::try_from(value).ok()?;
            }
        }
        Some(key)
    }

    fn id(&self) -> [u8; 8] {
        let hash = blake3::keyed_hash(&self.0, KEY_CONTEXT);
        let (id, _) = hash
            .as_bytes()
            .split_first_chunk()
            .expect("a hash has 32 bytes");
        *id
    }

    fn sealer(&self) -> RandomizedNonceKey {
        RandomizedNonceKey::new(&AES_256_GCM, self.0.as_slice()).expect("a key of 32 bytes fits")
    }
}

fn context(name: &str) -> Vec<u8> {
    [VALUE_CONTEXT, name.as_bytes()].concat()
}

fn check_name(name: &str) -> Result<(), SecretError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.bytes().all(allowed) {
        let name = knarr_core::path::printable(name.as_bytes()).to_string();
        return Err(SecretError::Name { name });
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
