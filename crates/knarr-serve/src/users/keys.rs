//! Public keys of users, as lines of an `authorized_keys` file.
//!
//! Constraint: a line whose options are not all understood is an error, never a key without options. Understood are
//! `from` (addresses and networks, no host names), `expiry-time`, and those that take away what is never given
//! here (`restrict`, `no-pty`, …).

use std::net::IpAddr;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use russh::keys::ssh_key::public::KeyData;
use russh::keys::{Algorithm, PublicKey};

use crate::users::Network;

/// Options that take away what this server never gives.
const WITHOUT_EFFECT: [&str; 6] = [
    "restrict",
    "no-pty",
    "no-port-forwarding",
    "no-agent-forwarding",
    "no-x11-forwarding",
    "no-user-rc",
];

/// A key that lets a user in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorizedKey {
    key: PublicKey,
    networks: Vec<Network>,
    expires: Option<Timestamp>,
}

/// Why a line is no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not even a type and a key.
    #[error("this is no public key: a line as ssh-keygen writes it to a .pub file is wanted")]
    Form,
    /// A kind that is too weak or not known.
    #[error(
        "a key of the type {kind} is not taken: use ssh-ed25519, ECDSA, or RSA with 2048 bits and more"
    )]
    Kind {
        /// The type.
        kind: String,
    },
    /// An option that is not understood.
    #[error(
        "the option `{option}` of this key is not understood; understood are from=, expiry-time= and restrict"
    )]
    Option {
        /// Its name.
        option: String,
    },
    /// The value of an option.
    #[error("the option `{option}` of this key is wrong: {reason}")]
    Value {
        /// Its name.
        option: &'static str,
        /// What is wrong.
        reason: String,
    },
}

impl AuthorizedKey {
    /// Reads a line.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn parse(line: &str) -> Result<Self, KeyError> {
        let line = line.trim();
        let (options, key) = match first_word(line) {
            (word, _) if is_type(word) => ("", line),
            (options, rest) => (options, rest.trim_start()),
        };
        if !is_type(first_word(key).0) {
            return Err(KeyError::Form);
        }
        let mut parsed = Self {
            key: public_key(key)?,
            networks: Vec::new(),
            expires: None,
        };
        for option in split_options(options).ok_or(KeyError::Form)? {
            parsed.take_option(option)?;
        }
        Ok(parsed)
    }

    /// Reads a file of such lines: empty ones and those that begin with `#` are left out. An error comes with the
    /// number of its line.
    ///
    /// # Errors
    /// The first line that is no key.
    pub fn parse_lines(text: &str) -> Result<Vec<Self>, (usize, KeyError)> {
        let mut keys = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if !line.is_empty() && !line.starts_with('#') {
                keys.push(Self::parse(line).map_err(|error| (number + 1, error))?);
            }
        }
        Ok(keys)
    }

    fn take_option(&mut self, option: &str) -> Result<(), KeyError> {
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value.trim_matches('"'))),
            None => (option, None),
        };
        match (name.to_ascii_lowercase().as_str(), value) {
            ("from", Some(value)) => {
                for network in value.split(',') {
                    let network = Network::parse(network).map_err(|error| KeyError::Value {
                        option: "from",
                        reason: error.to_string(),
                    })?;
                    self.networks.push(network);
                }
                Ok(())
            }
            ("expiry-time", Some(value)) => {
                self.expires = Some(expiry_time(value)?);
                Ok(())
            }
            (name, None) if WITHOUT_EFFECT.contains(&name) => Ok(()),
            _ => Err(KeyError::Option {
                option: name.to_owned(),
            }),
        }
    }

    /// Whether `key` is this one, and may be used by `address` at `now`.
    #[must_use]
    pub fn admits(&self, key: &PublicKey, address: IpAddr, now: Timestamp) -> bool {
        self.is(key.key_data())
            && (self.networks.is_empty()
                || self
                    .networks
                    .iter()
                    .any(|network| network.contains(address)))
            && self.expires.is_none_or(|expires| now < expires)
    }

    fn is(&self, key: &KeyData) -> bool {
        self.key.key_data() == key
    }
}

/// A public key without options, of a kind that is taken.
///
/// # Errors
/// [`KeyError::Form`] or [`KeyError::Kind`].
pub fn public_key(text: &str) -> Result<PublicKey, KeyError> {
    let kind = first_word(text.trim()).0;
    let weak = || KeyError::Kind {
        kind: kind.to_owned(),
    };
    if kind.contains("-cert-") {
        return Err(weak());
    }
    let key = PublicKey::from_openssh(text.trim()).map_err(|_| KeyError::Form)?;
    is_strong(&key).then_some(key).ok_or_else(weak)
}

/// Whether a key is of a kind that is taken: no DSA, no short RSA.
pub(crate) fn is_strong(key: &PublicKey) -> bool {
    match (key.algorithm(), key.key_data()) {
        (Algorithm::Ed25519 | Algorithm::Ecdsa { .. }, _)
        | (Algorithm::SkEd25519 | Algorithm::SkEcdsaSha2NistP256, _) => true,
        (Algorithm::Rsa { .. }, KeyData::Rsa(rsa)) => {
            let modulus = rsa.n().as_positive_bytes().unwrap_or_default();
            let leading = modulus
                .first()
                .map_or(0, |byte| byte.leading_zeros() as usize);
            (modulus.len() * 8).saturating_sub(leading) >= 2048
        }
        _ => false,
    }
}

fn is_type(word: &str) -> bool {
    ["ssh-", "ecdsa-", "sk-", "rsa-"]
        .iter()
        .any(|prefix| word.starts_with(prefix))
}

/// What stands before the first blank that is not in quotes, and the rest.
fn first_word(line: &str) -> (&str, &str) {
    let mut quoted = false;
    let end = line.char_indices().find_map(|(index, c)| {
        quoted ^= c == '"';
        (c.is_ascii_whitespace() && !quoted).then_some(index)
    });
    line.split_at(end.unwrap_or(line.len()))
}

/// The options at the commas that are not in quotes; nothing if a quote is open at the end.
fn split_options(text: &str) -> Option<Vec<&str>> {
    let mut quoted = false;
    let options: Vec<&str> = text
        .split(|c: char| {
            quoted ^= c == '"';
            c == ',' && !quoted
        })
        .filter(|option| !option.is_empty())
        .collect();
    text.matches('"')
        .count()
        .is_multiple_of(2)
        .then_some(options)
}

/// `YYYYMMDD`, `YYYYMMDDHHMM[SS]`, in local time or with `Z` in UTC.
fn expiry_time(text: &str) -> Result<Timestamp, KeyError> {
    let wrong = || KeyError::Value {
        option: "expiry-time",
        reason: format!("`{text}` is no time such as 20271231 or 202712312359Z"),
    };
    let (digits, zone) = match text.strip_suffix('Z') {
        Some(digits) => (digits, TimeZone::UTC),
        None => (text, TimeZone::system()),
    };
    let padded = match digits.len() {
        8 => format!("{digits}000000"),
        12 => format!("{digits}00"),
        14 => digits.to_owned(),
        _ => return Err(wrong()),
    };
    let time = DateTime::strptime("%Y%m%d%H%M%S", &padded).map_err(|_| wrong())?;
    let zoned = time.to_zoned(zone).map_err(|_| wrong())?;
    Ok(zoned.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ acme";

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_line_with_options_admits_only_as_they_say() {
        let line =
            format!("from=\"192.0.2.0/24,2001:db8::1\",expiry-time=\"20300101Z\",restrict {KEY}");
        let authorized = AuthorizedKey::parse(&line).unwrap();
        let key = public_key(KEY).unwrap();
        let now = at("2029-12-31T23:59:59Z");
        assert!(authorized.admits(&key, "192.0.2.9".parse().unwrap(), now));
        assert!(!authorized.admits(&key, "192.0.3.9".parse().unwrap(), now));
        assert!(!authorized.admits(
            &key,
            "192.0.2.9".parse().unwrap(),
            at("2030-01-01T00:00:00Z")
        ));
        let plain = AuthorizedKey::parse(KEY).unwrap();
        assert!(plain.admits(&key, "192.0.3.9".parse().unwrap(), now));
    }

    #[test]
    fn a_line_that_is_not_understood_is_an_error_and_no_key() {
        for (line, expected) in [
            (format!("command=\"/bin/true\" {KEY}"), "command"),
            (format!("cert-authority {KEY}"), "cert-authority"),
            (format!("from=\"*.example.com\" {KEY}"), "from"),
            (format!("expiry-time=\"tomorrow\" {KEY}"), "expiry-time"),
            (format!("from=\"192.0.2.1 {KEY}"), "no public key"),
            ("ssh-ed25519 AAAA".to_owned(), "no public key"),
            ("hello".to_owned(), "no public key"),
            ("ssh-dss AAAAB3NzaC1kc3MAAAAA".to_owned(), "no public key"),
        ] {
            let error = AuthorizedKey::parse(&line).unwrap_err().to_string();
            assert!(error.contains(expected), "{line}: {error}");
        }
        let file = format!("# partner\n\n{KEY}\nnonsense\n");
        assert_eq!(AuthorizedKey::parse_lines(&file), Err((4, KeyError::Form)));
    }
}
