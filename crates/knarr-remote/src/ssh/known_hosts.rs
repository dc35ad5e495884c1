//! Reads `known_hosts` files and says what they know about a host.
//!
//! Constraints: a file that is missing is empty, and a file that is there and cannot be read is an
//! error, never an unknown host. A line that cannot be understood is skipped, as OpenSSH does, unless
//! it revokes a key: then nothing can be trusted. Lines with keys of types that are not spoken here
//! are skipped: no server can present such a key.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::sync::Arc;

use aws_lc_rs::hmac;
use russh::keys::ssh_key::certificate::CertType;
use russh::keys::ssh_key::known_hosts::HostPatterns;
use russh::keys::ssh_key::public::KeyData;
use russh::keys::{Algorithm, Certificate, HashAlg, PublicKey};

use crate::ssh::pattern::{ListMatch, list_matches, matches};

/// The port that is not written into `known_hosts`.
const DEFAULT_PORT: u16 = 22;

/// The longest file that is read, in bytes.
const FILE_LIMIT_BYTES: u64 = 64 * 1024 * 1024;

/// Why what is known about hosts cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum KnownHostsError {
    /// A file is there and cannot be read.
    #[error("cannot read {}, which names the known hosts", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file is longer than any file of known hosts should be.
    #[error("{} is longer than {FILE_LIMIT_BYTES} bytes", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// A line that revokes a key cannot be understood.
    #[error("{}:{line} revokes a key, but cannot be understood: repair or remove it", path.display())]
    Revocation {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
}

/// Where a line stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub path: Arc<Path>,
    /// The line, from 1.
    pub line: usize,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.path.display(), self.line)
    }
}

/// What is known about a key that a host presents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is the host's.
    Trusted,
    /// Nothing is known about the host.
    Unknown,
    /// The host is known with other keys.
    Changed {
        /// The first line with another key.
        place: Place,
        /// The type and fingerprint of that key.
        known: String,
    },
    /// The key, or the authority that signed for it, was revoked.
    Revoked {
        /// The line that says so.
        place: Place,
    },
    /// It is a certificate of a trusted authority, but is not good for this host now.
    BadCertificate {
        /// What is wrong with it.
        reason: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Marker {
    None,
    CertAuthority,
    Revoked,
}

#[derive(Debug, Clone)]
struct Line {
    place: Place,
    marker: Marker,
    hosts: HostPatterns,
    key: PublicKey,
}

/// What some `known_hosts` files say.
#[derive(Debug, Clone, Default)]
pub struct KnownHosts {
    lines: Vec<Line>,
}

impl KnownHosts {
    /// Reads `paths`, each of which may be missing. Blocks.
    ///
    /// # Errors
    /// A [`KnownHostsError`].
    pub fn load(paths: &[PathBuf]) -> Result<Self, KnownHostsError> {
        let mut all = Self::default();
        for path in paths {
            let unreadable = |source| KnownHostsError::Unreadable {
                path: path.clone(),
                source,
            };
            let file = match std::fs::File::open(path) {
                Ok(file) => file,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(unreadable(error)),
            };
            let mut text = Vec::new();
            file.take(FILE_LIMIT_BYTES + 1)
                .read_to_end(&mut text)
                .map_err(unreadable)?;
            if text.len() as u64 > FILE_LIMIT_BYTES {
                return Err(KnownHostsError::TooLong { path: path.clone() });
            }
            all.add(path, &String::from_utf8_lossy(&text))?;
        }
        Ok(all)
    }

    /// Adds the lines of `text`, which stands in `path`.
    ///
    /// # Errors
    /// [`KnownHostsError::Revocation`].
    pub fn add(&mut self, path: &Path, text: &str) -> Result<(), KnownHostsError> {
        let path: Arc<Path> = path.into();
        for (index, line) in text.lines().enumerate() {
            let place = Place {
                path: Arc::clone(&path),
                line: index + 1,
            };
            match parse(line, &place) {
                Parsed::Line(line) => self.lines.push(*line),
                Parsed::Nothing => {}
                Parsed::Skipped(reason) => tracing::debug!(%place, reason, "skipped"),
                Parsed::BrokenRevocation => {
                    let path = place.path.to_path_buf();
                    return Err(KnownHostsError::Revocation {
                        path,
                        line: place.line,
                    });
                }
            }
        }
        Ok(())
    }

    /// What is known about `host` presenting `key`.
    #[must_use]
    pub fn check(&self, host: &str, port: u16, key: &PublicKey) -> Verdict {
        if let Some(place) = self.revoked(key.key_data()) {
            return Verdict::Revoked { place };
        }
        let verdict = self.check_name(&host_with_port(host, port), key.key_data());
        if verdict == Verdict::Unknown && port != DEFAULT_PORT {
            // As OpenSSH: the same key under the bare name is enough, another one says nothing.
            return match self.check_name(host, key.key_data()) {
                Verdict::Trusted => Verdict::Trusted,
                _ => Verdict::Unknown,
            };
        }
        verdict
    }

    fn check_name(&self, name: &str, key: &KeyData) -> Verdict {
        let mut verdict = Verdict::Unknown;
        for line in self.lines_for(name, Marker::None) {
            if line.key.key_data() == key {
                return Verdict::Trusted;
            }
            if verdict == Verdict::Unknown {
                verdict = Verdict::Changed {
                    place: line.place.clone(),
                    known: shown(line.key.key_data()),
                };
            }
        }
        verdict
    }

    /// What is known about `host` presenting `certificate` at `now` (seconds since 1970). Unknown
    /// authorities count for nothing: the key inside is then judged by itself.
    #[must_use]
    pub fn check_certificate(
        &self,
        host: &str,
        port: u16,
        certificate: &Certificate,
        now_seconds: u64,
    ) -> Verdict {
        for key in [certificate.signature_key(), certificate.public_key()] {
            if let Some(place) = self.revoked(key) {
                return Verdict::Revoked { place };
            }
        }
        let trusted = self
            .authorities(host, port)
            .any(|line| line.key.key_data() == certificate.signature_key());
        if !trusted {
            let key = PublicKey::new(certificate.public_key().clone(), "");
            return self.check(host, port, &key);
        }
        match certificate_fault(certificate, host, now_seconds) {
            None => Verdict::Trusted,
            Some(reason) => Verdict::BadCertificate { reason },
        }
    }

    /// Whether an authority may sign for `host`.
    #[must_use]
    pub fn has_authority(&self, host: &str, port: u16) -> bool {
        self.authorities(host, port).next().is_some()
    }

    /// The types of the keys by which `host` is known, in the order of the files, without repetition.
    #[must_use]
    pub fn key_types(&self, host: &str, port: u16) -> Vec<Algorithm> {
        let mut types = Vec::new();
        for name in [host_with_port(host, port), host.to_owned()] {
            for line in self.lines_for(&name, Marker::None) {
                let algorithm = line.key.algorithm();
                if !types.contains(&algorithm) {
                    types.push(algorithm);
                }
            }
        }
        types
    }

    fn authorities(&self, host: &str, port: u16) -> impl Iterator<Item = &Line> {
        let name = host_with_port(host, port);
        let with_port: Vec<&Line> = self.lines_for(&name, Marker::CertAuthority).collect();
        // A certificate names hosts without ports, so an authority for the bare name will do.
        let bare: Vec<&Line> = self.lines_for(host, Marker::CertAuthority).collect();
        with_port.into_iter().chain(bare)
    }

    fn lines_for(&self, name: &str, marker: Marker) -> impl Iterator<Item = &Line> {
        self.lines
            .iter()
            .filter(move |line| line.marker == marker && names(&line.hosts, name))
    }

    /// A revoked key is refused for every host of its line; OpenSSH writes `*` there, and to be
    /// revoked for one host only is no reason to trust a key elsewhere.
    fn revoked(&self, key: &KeyData) -> Option<Place> {
        self.lines
            .iter()
            .find(|line| line.marker == Marker::Revoked && line.key.key_data() == key)
            .map(|line| line.place.clone())
    }
}

/// How `known_hosts` writes a host and port.
#[must_use]
pub fn host_with_port(host: &str, port: u16) -> String {
    if port == DEFAULT_PORT {
        host.to_owned()
    } else {
        format!("[{host}]:{port}")
    }
}

/// A key's type and SHA-256 fingerprint, as `ssh-keygen -l` shows them.
pub(super) fn shown(key: &KeyData) -> String {
    format!("{} {}", key.algorithm(), key.fingerprint(HashAlg::Sha256))
}

enum Parsed {
    Line(Box<Line>),
    Nothing,
    Skipped(&'static str),
    BrokenRevocation,
}

fn parse(text: &str, place: &Place) -> Parsed {
    let text = text.trim();
    if text.is_empty() || text.starts_with('#') {
        return Parsed::Nothing;
    }
    let (first, rest) = word(text);
    let (marker, hosts, rest) = match first {
        "@cert-authority" => (Marker::CertAuthority, word(rest).0, word(rest).1),
        "@revoked" => (Marker::Revoked, word(rest).0, word(rest).1),
        other if other.starts_with('@') => return Parsed::Skipped("its marker is not known"),
        hosts => (Marker::None, hosts, rest),
    };
    let broken = |reason| match marker {
        Marker::Revoked => Parsed::BrokenRevocation,
        Marker::None | Marker::CertAuthority => Parsed::Skipped(reason),
    };
    let (key_type, rest) = word(rest);
    let (blob, _comment) = word(rest);
    if matches!(
        Algorithm::new(key_type),
        Ok(Algorithm::Dsa | Algorithm::Other(_)) | Err(_)
    ) {
        // A key of such a type cannot be presented to us, be it revoked or not.
        let looks_like_key = !key_type.is_empty() && !blob.is_empty();
        return if looks_like_key {
            Parsed::Skipped("its key is of a type that is not spoken here")
        } else {
            broken("it has no key")
        };
    }
    let Ok(hosts) = HostPatterns::from_str(hosts) else {
        return broken("its hosts cannot be understood");
    };
    match PublicKey::from_openssh(&format!("{key_type} {blob}")) {
        Ok(key) => Parsed::Line(Box::new(Line {
            place: place.clone(),
            marker,
            hosts,
            key,
        })),
        Err(_) => broken("its key cannot be understood"),
    }
}

/// The first word and what follows it.
fn word(text: &str) -> (&str, &str) {
    let text = text.trim_start();
    match text.split_once(|character: char| character.is_ascii_whitespace()) {
        Some((first, rest)) => (first, rest.trim_start()),
        None => (text, ""),
    }
}

fn names(hosts: &HostPatterns, name: &str) -> bool {
    match hosts {
        HostPatterns::Patterns(patterns) => {
            list_matches(patterns.iter().map(String::as_str), name) == ListMatch::Yes
        }
        HostPatterns::HashedName { salt, hash } => {
            // SHA-1 is part of the file format; it hides names here and proves nothing.
            let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, salt);
            let tag = hmac::sign(&key, name.to_ascii_lowercase().as_bytes());
            tag.as_ref() == hash
        }
    }
}

fn certificate_fault(certificate: &Certificate, host: &str, now_seconds: u64) -> Option<String> {
    if certificate.cert_type() != CertType::Host {
        return Some("it is a certificate for users, not for hosts".to_owned());
    }
    if matches!(
        certificate.signature().algorithm(),
        Algorithm::Rsa { hash: None } | Algorithm::Dsa
    ) {
        return Some("it is signed with SHA-1".to_owned());
    }
    let authority = certificate.signature_key().fingerprint(HashAlg::Sha256);
    if now_seconds < certificate.valid_after() {
        return Some("it is not valid yet; is the clock right?".to_owned());
    }
    if now_seconds >= certificate.valid_before() {
        return Some("it has expired".to_owned());
    }
    if certificate.validate_at(now_seconds, [&authority]).is_err() {
        return Some("its signature is wrong".to_owned());
    }
    if certificate.critical_options().iter().next().is_some() {
        return Some("it has critical options that are not known".to_owned());
    }
    let host = host.to_ascii_lowercase();
    let named = certificate
        .valid_principals()
        .iter()
        .any(|name| matches(name.to_ascii_lowercase().as_bytes(), host.as_bytes()));
    if named {
        return None;
    }
    Some(format!(
        "it is for {}, not for {host}",
        if certificate.valid_principals().is_empty() {
            "no host in particular".to_owned()
        } else {
            certificate
                .valid_principals()
                .join(", ")
                .escape_debug()
                .to_string()
        }
    ))
}

#[cfg(test)]
mod tests;
