//! Passwords as argon2id hashes, in the PHC format: `$argon2id$v=19$m=19456,t=2,p=1$SALT$HASH`.
//!
//! Constraints: a hash costs at most 256 MiB and 16 passes, whatever it says; four are checked at a time.

use std::fmt;
use std::sync::Arc;

use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

/// What a new hash costs, as OWASP recommends: memory in KiB, passes, lanes.
const COST: (u32, u32, u32) = (19 * 1024, 2, 1);
/// The most that a hash may ask for.
const MOST_MEMORY_KIB: u32 = 256 * 1024;
const MOST_PASSES: u32 = 16;
const MOST_LANES: u32 = 16;
const SALT_BYTES: usize = 16;
const HASH_BYTES: usize = 32;
/// The longest password, in bytes: everything longer is wrong.
const LONGEST_PASSWORD: usize = 1024;
/// Passwords that are checked at a time.
const CHECKS: usize = 4;

/// A hash of a password.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash {
    cost: (u32, u32, u32),
    salt: Vec<u8>,
    hash: Vec<u8>,
}

/// Why a text is no hash of a password. It never holds the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PasswordError {
    /// It is not of the form.
    #[error("this is no argon2id hash: make one with `knarr sftp-server hash-password`")]
    Form,
    /// It costs too much, or so little that it protects nothing.
    #[error(
        "this hash wants more than 256 MiB or 16 passes, or less than 8 KiB: make a new one with `knarr sftp-server hash-password`"
    )]
    Cost,
    /// Nobody may log in without a password.
    #[error("an empty password is none")]
    Empty,
    /// Longer than any client's.
    #[error("a password may have {LONGEST_PASSWORD} bytes at most")]
    TooLong,
    /// The operating system has no random numbers.
    #[error("the system gives no random numbers")]
    Random,
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PasswordHash").finish_non_exhaustive()
    }
}

impl PasswordHash {
    /// Reads a hash.
    ///
    /// # Errors
    /// [`PasswordError::Form`] or [`PasswordError::Cost`].
    pub fn parse(text: &str) -> Result<Self, PasswordError> {
        let form = PasswordError::Form;
        let mut parts = text.trim().split('$');
        if parts.next() != Some("") || parts.next() != Some("argon2id") {
            return Err(form);
        }
        if parts.next() != Some("v=19") {
            return Err(form);
        }
        let mut cost = [None; 3];
        for (value, name) in parts.next().ok_or(form)?.split(',').zip(["m=", "t=", "p="]) {
            let slot = match name {
                "m=" => 0,
                "t=" => 1,
                _ => 2,
            };
            let number = value.strip_prefix(name).and_then(|text| text.parse().ok());
            if let Some(place) = cost.get_mut(slot) {
                *place = Some(number.ok_or(form)?);
            }
        }
        let [Some(memory), Some(passes), Some(lanes)] = cost else {
            return Err(form);
        };
        let decode = |text: Option<&str>| BASE64.decode(text.unwrap_or_default()).map_err(|_| form);
        let salt = decode(parts.next())?;
        let hash = decode(parts.next())?;
        if parts.next().is_some() || salt.len() < 8 || !(16..=64).contains(&hash.len()) {
            return Err(form);
        }
        if memory > MOST_MEMORY_KIB || passes > MOST_PASSES || lanes > MOST_LANES {
            return Err(PasswordError::Cost);
        }
        let cost = (memory, passes, lanes);
        params(cost, hash.len()).ok_or(PasswordError::Cost)?;
        Ok(Self { cost, salt, hash })
    }

    /// Hashes `password`. Blocks, for some ten milliseconds.
    ///
    /// # Errors
    /// If it is empty or too long, or the system has no random numbers.
    pub fn of(password: &str) -> Result<Self, PasswordError> {
        if password.is_empty() {
            return Err(PasswordError::Empty);
        }
        if password.len() > LONGEST_PASSWORD {
            return Err(PasswordError::TooLong);
        }
        let mut salt = vec![0; SALT_BYTES];
        aws_lc_rs::rand::fill(&mut salt).map_err(|_| PasswordError::Random)?;
        let hash = hash(password, &salt, COST, HASH_BYTES).ok_or(PasswordError::Cost)?;
        Ok(Self {
            cost: COST,
            salt,
            hash: hash.to_vec(),
        })
    }

    /// The text that [`PasswordHash::parse`] reads.
    #[must_use]
    pub fn to_text(&self) -> String {
        let (memory, passes, lanes) = self.cost;
        let (salt, hash) = (BASE64.encode(&self.salt), BASE64.encode(&self.hash));
        format!("$argon2id$v=19$m={memory},t={passes},p={lanes}${salt}${hash}")
    }

    /// Whether it is the hash of `password`. Blocks, for some ten milliseconds.
    #[must_use]
    pub fn matches(&self, password: &str) -> bool {
        hash(password, &self.salt, self.cost, self.hash.len()).is_some_and(|hash| {
            aws_lc_rs::constant_time::verify_slices_are_equal(&hash, &self.hash).is_ok()
        })
    }

    /// A hash that no password has, of the usual cost: for users that are not there, whom it costs the same to
    /// refuse.
    fn of_nobody() -> Self {
        Self {
            cost: COST,
            salt: vec![0; SALT_BYTES],
            hash: vec![0; HASH_BYTES],
        }
    }
}

fn params((memory, passes, lanes): (u32, u32, u32), hash_bytes: usize) -> Option<Params> {
    Params::new(memory, passes, lanes, Some(hash_bytes)).ok()
}

fn hash(
    password: &str,
    salt: &[u8],
    cost: (u32, u32, u32),
    hash_bytes: usize,
) -> Option<Zeroizing<Vec<u8>>> {
    let mut out = Zeroizing::new(vec![0; hash_bytes]);
    Argon2::new(
        Algorithm::Argon2id,
        Version::V0x13,
        params(cost, hash_bytes)?,
    )
    .hash_password_into(password.as_bytes(), salt, &mut out)
    .ok()?;
    Some(out)
}

/// Checks passwords, a few at a time.
#[derive(Debug, Clone)]
pub(crate) struct PasswordChecks {
    turns: Arc<Semaphore>,
}

impl Default for PasswordChecks {
    fn default() -> Self {
        Self {
            turns: Arc::new(Semaphore::new(CHECKS)),
        }
    }
}

impl PasswordChecks {
    /// Whether `password` is that of `hash`. Without a hash, no password is right, which takes as long to say.
    pub(crate) async fn check(&self, hash: Option<&PasswordHash>, password: &str) -> bool {
        let is_possible =
            hash.is_some() && !password.is_empty() && password.len() <= LONGEST_PASSWORD;
        let hash = hash.cloned().unwrap_or_else(PasswordHash::of_nobody);
        let mut copy = Zeroizing::new(String::new());
        if password.len() <= LONGEST_PASSWORD {
            copy.push_str(password);
        }
        let Ok(turn) = Arc::clone(&self.turns).acquire_owned().await else {
            return false;
        };
        let checked = tokio::task::spawn_blocking(move || {
            let outcome = hash.matches(&copy);
            drop(turn);
            outcome
        });
        checked.await.unwrap_or(false) && is_possible
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_read_back_and_matches_only_its_password() {
        let hash = PasswordHash::of("correct horse").unwrap();
        let text = hash.to_text();
        assert!(text.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"));
        let read = PasswordHash::parse(&text).unwrap();
        assert!(read.matches("correct horse"));
        assert!(!read.matches("correct horse "));
        assert!(!read.matches(""));
        let secret = text.rsplit('$').next().unwrap();
        assert!(!format!("{read:?}").contains(secret));
    }

    #[test]
    fn h41_what_is_no_hash_or_asks_for_too_much_is_refused() {
        for text in [
            "",
            "hunter2",
            "$argon2i$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA",
            "$argon2id$v=19$m=19456,t=2$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA",
            "$argon2id$v=19$m=19456,t=2,p=1$AA$AAAAAAAAAAAAAAAAAAAAAA",
            "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$",
        ] {
            assert_eq!(
                PasswordHash::parse(text),
                Err(PasswordError::Form),
                "{text}"
            );
        }
        let heavy =
            "$argon2id$v=19$m=4000000,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA";
        assert_eq!(PasswordHash::parse(heavy), Err(PasswordError::Cost));
        assert_eq!(PasswordHash::of(""), Err(PasswordError::Empty));
    }
}
