//! OpenPGP (RFC 9580 and 4880, interoperable with GnuPG): decrypt, verify, encrypt, sign.
//!
//! Constraints: the library reads and writes on a thread ([`crate::worker`]); it holds a packet of at most
//! 512 KiB besides the chunks. Plaintext comes out while it is still unverified, because a message may be
//! larger than memory: it is the caller who keeps it in quarantine until the pipeline has finished, and the
//! step finishes only after the protection against changes and the signatures were checked and nothing
//! follows the message.
//!
//! Decisions: no message without MDC or AEAD is read. A signature counts only if it is by a key of
//! `signed_by`, that is bound to its certificate, neither expired nor revoked now, and made with SHA-224 or
//! better. Our own expired key still decrypts. Messages are written for what all recipients understand: with
//! AEAD (version 2) if all their keys say so, otherwise with MDC (version 1); always AES-256, without
//! compression and without a file name.

mod keys;
mod message;
mod protected;

use std::fmt::Display;
use std::io::Write as _;
use std::sync::Arc;

use pgp::composed::{ArmorOptions, DetachedSignature, MessageBuilder};
use pgp::crypto::aead::{AeadAlgorithm, ChunkSize};
use pgp::crypto::sym::SymmetricKeyAlgorithm;
use pgp::ser::Serialize as _;
use pgp::types::Password;
use rand::rngs::OsRng;

use self::keys::{Certificate, PrivateKey, Protection, Recipient, Signer};
use self::message::{Demands, Limits, Wanted};
use crate::context::Context;
use crate::error::StepError;
use crate::faults::{CryptoFault, KeyFault};
use crate::spec::{
    DecryptOptions, Encoding, PgpRecipients, SignOptions, SignatureMode, VerifyOptions,
};
use crate::stage::MakeStep;
use crate::worker::{Done, Job, Naming, PipeReader, PipeWriter, Worker};

const SYSTEM: &str = "OpenPGP";
/// Packets of this size are written; GnuPG reads any.
const PARTIAL_BYTES: u32 = 256 * 1024;
const MESSAGE_SUFFIXES: &[&str] = &[".pgp", ".gpg", ".asc"];

fn crypto(fault: CryptoFault) -> StepError {
    StepError::Crypto {
        system: SYSTEM,
        fault,
    }
}

/// Something that only fails if the library, the system or the caller of the step does.
fn failed(error: impl Display) -> StepError {
    crypto(CryptoFault::Failed(error.to_string().into()))
}

fn key_error(step: &'static str, name: &str, fault: KeyFault) -> StepError {
    StepError::Key {
        step,
        name: name.to_owned(),
        fault,
    }
}

fn worker(
    step: &'static str,
    naming: Naming,
    job: impl Fn(&mut PipeReader, &mut PipeWriter) -> Result<Done, StepError> + Send + Sync + 'static,
) -> MakeStep {
    let job = Arc::new(job);
    Arc::new(move |_| {
        let job = Arc::clone(&job);
        let once: Job = Box::new(move |reader, writer| job(reader, writer));
        Ok(Box::new(Worker::new(step, naming, once)))
    })
}

fn certificates(
    step: &'static str,
    paths: &[String],
    context: &Context,
) -> Result<Vec<Certificate>, StepError> {
    let mut found = Vec::new();
    for path in paths {
        let content = context
            .keys
            .file(path)
            .ok_or_else(|| key_error(step, path, KeyFault::Missing))?;
        let certificates = Certificate::read_all(content, context.now)
            .ok_or_else(|| key_error(step, path, KeyFault::Unreadable("OpenPGP public key")))?;
        found.extend(certificates);
    }
    Ok(found)
}

fn private_key(
    step: &'static str,
    name: &str,
    passphrase: Option<&String>,
    context: &Context,
) -> Result<PrivateKey, StepError> {
    let secret = |name: &str| {
        context
            .keys
            .secret(name)
            .ok_or_else(|| key_error(step, name, KeyFault::Missing))
    };
    let passphrase = passphrase.map(|name| secret(name)).transpose()?;
    PrivateKey::read(secret(name)?, passphrase).map_err(|fault| key_error(step, name, fault))
}

/// The step `decrypt` with `pgp`.
pub(crate) fn decrypt(
    options: &DecryptOptions,
    key: &str,
    context: &Context,
) -> Result<MakeStep, StepError> {
    let key = private_key("decrypt", key, options.passphrase.as_ref(), context)?;
    let signed_by = certificates("decrypt", &options.signed_by, context)?;
    let limits = Limits {
        max_output: options.max_output,
        max_ratio: options.max_ratio,
    };
    let now = context.now.seconds();
    Ok(worker(
        "decrypt",
        Naming::Remove(MESSAGE_SUFFIXES),
        move |reader, writer| {
            let demands = Demands {
                wanted: &Wanted::Encrypted(&key),
                signed_by: &signed_by,
                limits,
                now,
            };
            message::read(reader, writer, demands)
        },
    ))
}

/// The step `verify`.
pub(crate) fn verify(options: &VerifyOptions, context: &Context) -> Result<MakeStep, StepError> {
    let signed_by = certificates("verify", &options.signed_by, context)?;
    let limits = Limits {
        max_output: options.max_output,
        max_ratio: options.max_ratio,
    };
    let now = context.now.seconds();
    Ok(worker(
        "verify",
        Naming::Remove(MESSAGE_SUFFIXES),
        move |reader, writer| {
            let demands = Demands {
                wanted: &Wanted::Signed,
                signed_by: &signed_by,
                limits,
                now,
            };
            message::read(reader, writer, demands)
        },
    ))
}

/// The step `encrypt` with `pgp`.
pub(crate) fn encrypt(
    options: &PgpRecipients,
    encoding: Encoding,
    context: &Context,
) -> Result<MakeStep, StepError> {
    let mut recipients = Vec::new();
    let mut protection = Protection::Aead;
    for path in &options.recipients {
        for certificate in certificates("encrypt", std::slice::from_ref(path), context)? {
            let recipient = certificate
                .recipient()
                .map_err(|fault| key_error("encrypt", path, KeyFault::Key(fault)))?;
            if recipient.protection == Protection::Mdc {
                protection = Protection::Mdc;
            }
            recipients.push(recipient);
        }
    }
    let signer = match &options.sign_with {
        Some(name) => {
            let key = private_key("encrypt", name, options.passphrase.as_ref(), context)?;
            let signer = key
                .into_signer(context.now)
                .map_err(|fault| key_error("encrypt", name, KeyFault::Key(fault)))?;
            Some(signer)
        }
        None => None,
    };
    let naming = Naming::Add(match encoding {
        Encoding::Binary => ".pgp",
        Encoding::Armor => ".asc",
    });
    Ok(worker("encrypt", naming, move |reader, writer| {
        write_encrypted(
            reader,
            writer,
            &recipients,
            protection,
            signer.as_ref(),
            encoding,
        )
        .map_err(failed)?;
        let names: Vec<&str> = recipients
            .iter()
            .map(|one| one.fingerprint.as_str())
            .collect();
        let note = Some(format!("OpenPGP, encrypted for {}", names.join(", ")));
        Ok(Done { note, side: None })
    }))
}

fn write_encrypted(
    reader: &mut PipeReader,
    writer: &mut PipeWriter,
    recipients: &[Recipient],
    protection: Protection,
    signer: Option<&Signer>,
    encoding: Encoding,
) -> pgp::errors::Result<()> {
    let mut rng = OsRng;
    let builder = MessageBuilder::from_reader("", reader);
    match protection {
        Protection::Mdc => {
            let mut builder = builder.seipd_v1(&mut rng, SymmetricKeyAlgorithm::AES256);
            for recipient in recipients {
                match &recipient.key {
                    keys::PublicPart::Primary(key) => builder.encrypt_to_key(&mut rng, key)?,
                    keys::PublicPart::Subkey(key) => builder.encrypt_to_key(&mut rng, key)?,
                };
            }
            write(builder, writer, signer, encoding)
        }
        Protection::Aead => {
            let mut builder = builder.seipd_v2(
                &mut rng,
                SymmetricKeyAlgorithm::AES256,
                AeadAlgorithm::Ocb,
                ChunkSize::C64KiB,
            );
            for recipient in recipients {
                match &recipient.key {
                    keys::PublicPart::Primary(key) => builder.encrypt_to_key(&mut rng, key)?,
                    keys::PublicPart::Subkey(key) => builder.encrypt_to_key(&mut rng, key)?,
                };
            }
            write(builder, writer, signer, encoding)
        }
    }
}

fn write<'a, R, E>(
    mut builder: MessageBuilder<'a, R, E>,
    writer: &mut PipeWriter,
    signer: Option<&'a Signer>,
    encoding: Encoding,
) -> pgp::errors::Result<()>
where
    R: std::io::Read,
    E: pgp::composed::Encryption,
{
    builder.partial_chunk_size(PARTIAL_BYTES)?;
    if let Some(signer) = signer {
        builder.sign(signer.key(), Password::empty(), signer.hash());
    }
    match encoding {
        Encoding::Binary => builder.to_writer(OsRng, writer),
        Encoding::Armor => builder.to_armored_writer(OsRng, ArmorOptions::default(), writer),
    }
}

/// The step `sign`.
pub(crate) fn sign(options: &SignOptions, context: &Context) -> Result<MakeStep, StepError> {
    let key = private_key("sign", &options.pgp, options.passphrase.as_ref(), context)?;
    let signer = key
        .into_signer(context.now)
        .map_err(|fault| key_error("sign", &options.pgp, KeyFault::Key(fault)))?;
    let (mode, encoding) = (options.mode, options.encoding);
    let naming = match (mode, encoding) {
        (SignatureMode::Detached, _) => Naming::Keep,
        (SignatureMode::Inline, Encoding::Binary) => Naming::Add(".pgp"),
        (SignatureMode::Inline, Encoding::Armor) => Naming::Add(".asc"),
    };
    Ok(worker("sign", naming, move |reader, writer| {
        let side = match mode {
            SignatureMode::Inline => {
                let builder = MessageBuilder::from_reader("", reader);
                write(builder, writer, Some(&signer), encoding).map_err(failed)?;
                None
            }
            SignatureMode::Detached => {
                let signature = sign_beside(reader, writer, &signer, encoding).map_err(failed)?;
                let suffix = match encoding {
                    Encoding::Binary => ".sig",
                    Encoding::Armor => ".asc",
                };
                Some((suffix, signature))
            }
        };
        let note = Some(format!("OpenPGP, signed by {}", signer.key().fingerprint()));
        Ok(Done { note, side })
    }))
}

/// Passes the content on, and returns the signature.
fn sign_beside(
    reader: &mut PipeReader,
    writer: &mut PipeWriter,
    signer: &Signer,
    encoding: Encoding,
) -> pgp::errors::Result<Vec<u8>> {
    let tee = Tee { reader, writer };
    let password = Password::empty();
    let hash = signer.hash();
    let signature = match signer {
        Signer::Primary(key) => {
            DetachedSignature::sign_binary_data(OsRng, key, &password, hash, tee)?
        }
        Signer::Subkey(key) => {
            DetachedSignature::sign_binary_data(OsRng, key, &password, hash, tee)?
        }
    };
    match encoding {
        Encoding::Binary => signature.to_bytes(),
        Encoding::Armor => signature.to_armored_bytes(ArmorOptions::default()),
    }
}

/// Writes what is read.
struct Tee<'a> {
    reader: &'a mut PipeReader,
    writer: &'a mut PipeWriter,
}

impl std::io::Read for Tee<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = self.reader.read(buffer)?;
        self.writer
            .write_all(buffer.get(..length).unwrap_or_default())?;
        Ok(length)
    }
}

/// When the first of the OpenPGP certificates in a file stops to be of use: nothing in it if none ever does,
/// nothing at all if the file holds none.
#[must_use]
pub fn openpgp_expiry(
    content: &[u8],
    now: knarr_core::Timestamp,
) -> Option<Option<knarr_core::Timestamp>> {
    let certificates = keys::Certificate::read_all(content, now)?;
    let ends = certificates.iter().filter_map(keys::Certificate::expires);
    Some(ends.min())
}
