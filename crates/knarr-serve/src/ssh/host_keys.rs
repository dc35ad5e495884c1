//! The keys by which clients know the server.
//!
//! Constraints: every private key is a file with mode 0600 in a directory of its own. A key is made when there is none,
//! and never replaced. Files that cannot be read or that others may read are an error: a server with another key
//! than yesterday's teaches people to ignore the warning.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use russh::keys::ssh_key::LineEnding;
use russh::keys::ssh_key::private::{Ed25519Keypair, KeypairData};
use russh::keys::{Algorithm, HashAlg, PrivateKey};

use crate::users::public_key;

/// The name of the key that is made.
const MADE: &str = "ssh_host_ed25519_key";
/// How the names of private keys end.
const KEY: &str = "_key";
/// No key is as long, in bytes.
const LONGEST: u64 = 64 * 1024;

/// The keys of a server.
#[derive(Debug, Clone)]
pub struct HostKeys {
    keys: Vec<PrivateKey>,
}

/// Why there are no host keys.
#[derive(Debug, thiserror::Error)]
pub enum HostKeyError {
    /// A file or directory.
    #[error("cannot use {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A key that was made cannot be kept.
    #[error("cannot write {}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: knarr_fs::FsError,
    },
    /// Others may read or write it.
    #[error("{} may be read by others than its owner: `chmod 600` it, and make a new key if they are not to be trusted", path.display())]
    Open {
        /// Which.
        path: PathBuf,
    },
    /// It holds no private key, or one with a passphrase.
    #[error("{} holds no private key without a passphrase in the format of OpenSSH", path.display())]
    Form {
        /// Which.
        path: PathBuf,
    },
    /// A type that is too weak.
    #[error("the key in {} is of a kind that is not used any more: make one by `ssh-keygen -t ed25519`", path.display())]
    Weak {
        /// Which.
        path: PathBuf,
    },
    /// The operating system has no random numbers.
    #[error("the system gives no random numbers")]
    Random,
}

impl HostKeys {
    /// Reads every `*_key` of a directory; makes the directory, and an Ed25519 key, if there is none. Blocks.
    ///
    /// # Errors
    /// [`HostKeyError`].
    pub fn open(directory: &Path) -> Result<Self, HostKeyError> {
        let file = |path: &Path| {
            let path = path.to_owned();
            move |source| HostKeyError::File { path, source }
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(file(directory))?;
        let mut paths = Vec::new();
        for entry in fs::read_dir(directory).map_err(file(directory))? {
            let path = entry.map_err(file(directory))?.path();
            let is_key = path.file_name().is_some_and(|name| {
                name.as_encoded_bytes().ends_with(KEY.as_bytes())
                    && !name.as_encoded_bytes().starts_with(b".")
            });
            if is_key {
                paths.push(path);
            }
        }
        paths.sort();
        if paths.is_empty() {
            paths.push(make(directory)?);
        }
        let mut keys = Vec::with_capacity(paths.len());
        for path in paths {
            keys.push(read(&path)?);
        }
        // Ed25519 first: that is the one clients learn if they have no wish.
        keys.sort_by_key(|key| key.algorithm() != Algorithm::Ed25519);
        Ok(Self { keys })
    }

    /// Their fingerprints, as `ssh-keygen -l` writes them: the type, and `SHA256:…`.
    #[must_use]
    pub fn fingerprints(&self) -> Vec<String> {
        let told =
            |key: &PrivateKey| format!("{} {}", key.algorithm(), key.fingerprint(HashAlg::Sha256));
        self.keys.iter().map(told).collect()
    }

    pub(crate) fn keys(&self) -> &[PrivateKey] {
        &self.keys
    }

    pub(crate) fn algorithms(&self) -> Vec<Algorithm> {
        let mut algorithms: Vec<Algorithm> = Vec::new();
        for key in &self.keys {
            if !algorithms.contains(&key.algorithm()) {
                algorithms.push(key.algorithm());
            }
        }
        algorithms
    }
}

fn read(path: &Path) -> Result<PrivateKey, HostKeyError> {
    let file = |source| HostKeyError::File {
        path: path.to_owned(),
        source,
    };
    let metadata = fs::metadata(path).map_err(file)?;
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(HostKeyError::Open {
            path: path.to_owned(),
        });
    }
    let form = || HostKeyError::Form {
        path: path.to_owned(),
    };
    if !metadata.is_file() || metadata.len() > LONGEST {
        return Err(form());
    }
    let text = zeroize::Zeroizing::new(fs::read_to_string(path).map_err(file)?);
    let key = PrivateKey::from_openssh(text.as_bytes()).map_err(|_| form())?;
    if key.is_encrypted() {
        return Err(form());
    }
    let public = key.public_key().to_openssh().map_err(|_| form())?;
    public_key(&public).map_err(|_| HostKeyError::Weak {
        path: path.to_owned(),
    })?;
    Ok(key)
}

/// Makes a key and its public half, and says where.
fn make(directory: &Path) -> Result<PathBuf, HostKeyError> {
    let mut seed = zeroize::Zeroizing::new([0; 32]);
    aws_lc_rs::rand::fill(seed.as_mut_slice()).map_err(|_| HostKeyError::Random)?;
    let pair = KeypairData::Ed25519(Ed25519Keypair::from_seed(&seed));
    let path = directory.join(MADE);
    let form = || HostKeyError::Form { path: path.clone() };
    let key = PrivateKey::new(pair, "knarr").map_err(|_| form())?;
    let private = key.to_openssh(LineEnding::LF).map_err(|_| form())?;
    let public = key.public_key().to_openssh().map_err(|_| form())?;
    let write = |path: &Path, text: &str, mode| {
        knarr_fs::durable::write_file(path, text.as_bytes(), mode).map_err(|source| {
            HostKeyError::Write {
                path: path.to_owned(),
                source,
            }
        })
    };
    // The private half last: it is the one that is looked for.
    write(&path.with_extension("pub"), &format!("{public}\n"), 0o644)?;
    write(&path, &private, 0o600)?;
    Ok(path)
}
