//! By what a server is recognised.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use russh::keys::ssh_key::Fingerprint;
use russh::keys::{HashAlg, PublicKey};

/// By what a server is recognised. That no variant accepts every key is the point of this type.
#[derive(Debug, Clone)]
pub enum HostKeyPolicy {
    /// By these `known_hosts` files, each of which may be missing.
    KnownHosts {
        /// The files, read anew for every connection.
        files: Vec<PathBuf>,
    },
    /// By one of these fingerprints, and by nothing else.
    Pinned(Vec<HostKeyFingerprint>),
}

/// The SHA-256 fingerprint of a host key, written `SHA256:…`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostKeyFingerprint(Fingerprint);

/// What was given is no `SHA256:…`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not a host key fingerprint: it should look like SHA256: and 43 characters, as `ssh-keygen -l` prints it"
)]
pub struct NotAFingerprint {
    /// What was given.
    pub text: String,
}

impl HostKeyFingerprint {
    /// Whether it is the fingerprint of `key`.
    #[must_use]
    pub fn is_of(&self, key: &PublicKey) -> bool {
        key.fingerprint(HashAlg::Sha256) == self.0
    }
}

impl FromStr for HostKeyFingerprint {
    type Err = NotAFingerprint;

    fn from_str(text: &str) -> Result<Self, NotAFingerprint> {
        let refused = || NotAFingerprint {
            text: text.to_owned(),
        };
        // Some tools print the padding.
        let fingerprint: Fingerprint = text
            .trim()
            .trim_end_matches('=')
            .parse()
            .map_err(|_unreadable| refused())?;
        if !fingerprint.is_sha256() {
            return Err(refused());
        }
        Ok(Self(fingerprint))
    }
}

impl fmt::Display for HostKeyFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_sha256_fingerprint_is_one() {
        let good = "SHA256:Nh0Me49Zh9fDw/VYUfq43IJmI1T+XrjiYONPND8GzaM";
        assert_eq!(
            good.parse::<HostKeyFingerprint>().unwrap().to_string(),
            good
        );
        // As some tools print it, and as it is copied.
        assert_eq!(
            format!(" {good}=\n")
                .parse::<HostKeyFingerprint>()
                .unwrap()
                .to_string(),
            good
        );
        for bad in ["", "SHA256:", "SHA256:abc", "MD5:00:11", "*", "any", "none"] {
            let error = bad.parse::<HostKeyFingerprint>().unwrap_err();
            assert!(error.to_string().contains("ssh-keygen -l"), "{error}");
        }
    }

    #[test]
    fn h51_no_policy_means_that_any_key_will_do() {
        // A new variant has to be argued for here.
        let policy = HostKeyPolicy::Pinned(Vec::new());
        match policy {
            HostKeyPolicy::KnownHosts { files: _ } => {}
            HostKeyPolicy::Pinned(fingerprints) => {
                assert!(fingerprints.is_empty(), "no pin matches no key");
            }
        }
    }
}
