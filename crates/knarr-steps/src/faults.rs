//! Why an archive or an encrypted or signed message is refused.
//!
//! Constraints: as for [`crate::StepError`]: clonable, comparable, and without content of the file or of a key.

use std::borrow::Cow;

use knarr_core::path::PathError;

/// What is wrong with an archive or one of its entries.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArchiveFault {
    /// Neither tar (plain or compressed) nor zip.
    #[error("the content is no archive known here: tar, tar with gzip, zstd, xz or bzip2, or zip")]
    NotAnArchive,
    /// The archive ends early.
    #[error("it ends early: the file is truncated; have it sent again")]
    Truncated,
    /// A checksum, a length or the structure is wrong.
    #[error("it is damaged: {0}; have it sent again")]
    Corrupt(Cow<'static, str>),
    /// Something follows the end.
    #[error("something follows the end of the archive")]
    TrailingGarbage,
    /// A name that is no path below the directory it is unpacked to.
    #[error("the name could leave the directory or is no path: {0}")]
    Name(#[from] PathError),
    /// A name that other systems would read as something else.
    #[error("the name would mean something else on another system: {0}")]
    AmbiguousName(&'static str),
    /// Two entries have the same name.
    #[error("the name occurs twice")]
    Duplicate,
    /// Two names differ only in upper and lower case.
    #[error("the name differs from another one only in upper and lower case")]
    CaseCollision,
    /// A name is a file or a link and, as the beginning of another, a directory.
    #[error("the name is used for a directory and for something else")]
    Conflict,
    /// A link that leads out of the archive, or one where none is allowed.
    #[error("the link is refused: {0}")]
    Link(&'static str),
    /// A device, pipe or socket.
    #[error("it is a {0}, which no archive may bring")]
    Special(&'static str),
    /// The content needs a password.
    #[error(
        "it is encrypted with a password, which zip does too weakly to be supported; use OpenPGP or age"
    )]
    Encrypted,
    /// A valid archive that uses what is not supported.
    #[error("it uses what is not supported here: {0}")]
    Unsupported(Cow<'static, str>),
    /// The two descriptions of an entry say different things.
    #[error("the header before the content and the directory at the end disagree about {0}")]
    Mismatch(&'static str),
    /// Two entries share bytes of the archive.
    #[error("its content overlaps with that of another entry, as in an archive bomb")]
    Overlap,
    /// More than the configuration allows.
    #[error(
        "it has more than the {allowed} allowed by `{option}`; if it is meant to be like that, raise it"
    )]
    Limit {
        /// The option.
        option: &'static str,
        /// Its value.
        allowed: u64,
    },
}

/// What is wrong with an encrypted or signed message, or with a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CryptoFault {
    /// The message ends early.
    #[error("the message ends early: the file is truncated; have it sent again")]
    Truncated,
    /// The message is damaged or was changed.
    #[error("the message is damaged or was changed on its way ({0}); have it sent again")]
    Damaged(Cow<'static, str>),
    /// Something follows the message.
    #[error("something follows the end of the message")]
    TrailingGarbage,
    /// Not what the step expects.
    #[error("the content is no message of this kind: {0}")]
    NotAMessage(Cow<'static, str>),
    /// Not encrypted although it has to be.
    #[error("the message is not encrypted")]
    NotEncrypted,
    /// Encrypted for others.
    #[error("the message is not encrypted for our key, but for {0}")]
    NotForUs(String),
    /// The message does not protect what it contains.
    #[error(
        "the message has no protection against changes (no MDC, no AEAD); ask the sender for a modern format"
    )]
    NoIntegrity,
    /// Encrypted with a passphrase.
    #[error("the message is encrypted with a passphrase, not for a key")]
    PassphraseMessage,
    /// No signature although there has to be one.
    #[error("the message is not signed, although `signed_by` demands it")]
    NotSigned,
    /// Signed by nobody of `signed_by`.
    #[error("the message is signed by {0}, which is not in `signed_by`")]
    UnknownSigner(String),
    /// The signature does not fit the content.
    #[error("the signature of {0} is wrong: the content was changed, or signed differently")]
    BadSignature(String),
    /// The signature uses a broken hash function, or is too old or too new.
    #[error("the signature of {0} is not accepted: {1}")]
    SignatureRefused(String, &'static str),
    /// A key is expired.
    #[error("the key {0} is expired: ask its owner for the prolonged one")]
    KeyExpired(String),
    /// A key is revoked.
    #[error("the key {0} is revoked: ask its owner for the new one")]
    KeyRevoked(String),
    /// A key cannot do what it is to do.
    #[error("the key {0} cannot be used: {1}")]
    KeyUnusable(String, &'static str),
    /// More than the configuration allows.
    #[error(
        "it expands to more than `{option}` ({allowed}) allows; if it is meant to be like that, raise it"
    )]
    Limit {
        /// The option.
        option: &'static str,
        /// Its value.
        allowed: u64,
    },
    /// The library failed in a way that has no name here.
    #[error("{0}")]
    Failed(Cow<'static, str>),
}

/// What is wrong with key material that the caller handed in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyFault {
    /// Nobody handed it in.
    #[error("it was not found")]
    Missing,
    /// It is nothing of this kind.
    #[error("it is no {0}")]
    Unreadable(&'static str),
    /// The passphrase does not fit.
    #[error("its passphrase is missing or wrong")]
    Locked,
    /// The key itself is the matter.
    #[error(transparent)]
    Key(CryptoFault),
}
