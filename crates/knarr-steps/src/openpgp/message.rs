//! Reads a message to its end, and says whether it can be believed.

use std::io::{self, BufRead as _, BufReader, Read, Write as _};

use pgp::armor::{BlockType, Dearmor};
use pgp::composed::{DecryptionOptions, Edata, Esk, Message, PlainSessionKey, TheRing};
use pgp::packet::{ProtectedDataConfig, Signature, SymEncryptedProtectedDataConfig};
use pgp::types::{Password, Seipdv1ReadMode};

use super::crypto;
use super::keys::{Certificate, PrivateKey, fingerprint, is_strong};
use super::protected::{self, Protected, Verdict};
use crate::decompress::RATIO_GRACE_BYTES;
use crate::error::StepError;
use crate::faults::CryptoFault;
use crate::worker::{Done, Gauge, PipeReader, PipeWriter};

/// Layers of compression inside of a message.
const MAX_LAYERS: usize = 4;
/// Behind the content there are checksums, signatures and padding, of so many bytes at most.
const MAX_REST_BYTES: u64 = 256 * 1024;
/// A signature may be so much younger than our clock says, in seconds.
const CLOCK_TOLERANCE: i64 = 15 * 60;
/// The most signatures that are looked at.
const MAX_SIGNATURES: usize = 16;
/// The most recipients that an error names.
const MAX_NAMED: usize = 5;

#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) max_output: u64,
    pub(super) max_ratio: u32,
}

/// What the message has to be.
pub(super) enum Wanted<'a> {
    Encrypted(&'a PrivateKey),
    Signed,
}

/// What is asked of a message.
#[derive(Clone, Copy)]
pub(super) struct Demands<'a> {
    pub(super) wanted: &'a Wanted<'a>,
    pub(super) signed_by: &'a [Certificate],
    pub(super) limits: Limits,
    /// Seconds since 1970.
    pub(super) now: i64,
}

/// Reads the message, hands out its content, and verifies everything that can be.
pub(super) fn read(
    reader: &mut PipeReader,
    writer: &mut PipeWriter,
    demands: Demands<'_>,
) -> Result<Done, StepError> {
    let gauge = reader.gauge();
    let first = reader
        .fill_buf()
        .map_err(|error| reading(&error))?
        .first()
        .copied();
    // Every packet begins with a byte that no text has.
    let note = if first.is_some_and(|byte| byte & 0x80 != 0) {
        let message = Message::from_bytes(&mut *reader).map_err(|error| parsing(&error))?;
        let note = content(message, writer, demands, &gauge)?;
        nothing_follows(reader, Blanks::Refused)?;
        note
    } else {
        let mut dearmor = Dearmor::new(&mut *reader);
        dearmor.read_header().map_err(|error| parsing(&error))?;
        if !matches!(dearmor.typ, Some(BlockType::Message | BlockType::File)) {
            let detail = "the armor says that it is something else";
            return Err(crypto(CryptoFault::NotAMessage(detail.into())));
        }
        let message = Message::from_bytes(BufReader::new(&mut dearmor));
        let message = message.map_err(|error| parsing(&error))?;
        let note = content(message, writer, demands, &gauge)?;
        // Reads the end of the armor, too, which has to be there.
        if dearmor.read(&mut [0]).map_err(|error| reading(&error))? != 0 {
            return Err(crypto(CryptoFault::TrailingGarbage));
        }
        let (_, _, _, mut rest) = dearmor.into_parts();
        nothing_follows(&mut rest, Blanks::Accepted)?;
        note
    };
    let note = Some(note);
    Ok(Done { note, side: None })
}

/// Hands out the content of a message, and checks who signed it.
fn content(
    message: Message<'_>,
    writer: &mut PipeWriter,
    demands: Demands<'_>,
    gauge: &Gauge,
) -> Result<String, StepError> {
    let (message, verdict) = match demands.wanted {
        Wanted::Encrypted(key) => decrypt(message, key)?,
        Wanted::Signed => (message, None),
    };
    let mut message = unwrap(message)?;
    if matches!(demands.wanted, Wanted::Signed) && !message.is_signed() {
        return Err(crypto(CryptoFault::NotSigned));
    }
    copy(&mut message, writer, demands.limits, gauge)?;
    if verdict.is_some_and(|verdict| !verdict.is_good()) {
        let detail = "its protection against changes was not reached";
        return Err(crypto(CryptoFault::Damaged(detail.into())));
    }
    let signer = if demands.signed_by.is_empty() {
        None
    } else {
        Some(signer(&message, demands.signed_by, demands.now).map_err(crypto)?)
    };
    Ok(note(demands.wanted, &message, signer))
}

fn note(wanted: &Wanted<'_>, message: &Message<'_>, signer: Option<String>) -> String {
    let encrypted = match wanted {
        Wanted::Encrypted(_) => "OpenPGP, decrypted",
        Wanted::Signed => "OpenPGP",
    };
    match signer {
        Some(signer) => format!("{encrypted}, signed by {signer}"),
        None if message.is_signed() => format!("{encrypted}, signed, not checked"),
        None => format!("{encrypted}, not signed"),
    }
}

/// What it means that a message cannot be read at all.
fn parsing(error: &pgp::errors::Error) -> StepError {
    if let pgp::errors::Error::IO { source, .. } = error {
        return reading(source);
    }
    let text = error.to_string();
    crypto(CryptoFault::NotAMessage(text.into()))
}

/// What it means that reading fails within a message.
fn reading(error: &io::Error) -> StepError {
    crypto(match error.kind() {
        io::ErrorKind::UnexpectedEof => CryptoFault::Truncated,
        _ => CryptoFault::Damaged(error.to_string().into()),
    })
}

/// The message inside; with a verdict, if the library does not check the protection against changes, but we do.
fn decrypt<'a>(
    message: Message<'a>,
    key: &PrivateKey,
) -> Result<(Message<'a>, Option<Verdict>), StepError> {
    let Message::Encrypted { esk, edata, .. } = &message else {
        return Err(crypto(CryptoFault::NotEncrypted));
    };
    if matches!(edata, Edata::SymEncryptedData { .. }) {
        return Err(crypto(CryptoFault::NoIntegrity));
    }
    let mut recipients = Vec::new();
    for one in esk {
        if let Esk::PublicKeyEncryptedSessionKey(one) = one {
            recipients.push(match (one.id(), one.fingerprint()) {
                (_, Ok(Some(fingerprint))) => fingerprint.to_string(),
                (Ok(id), _) => id.to_string(),
                _ => "an unknown key".to_owned(),
            });
        }
    }
    if recipients.is_empty() {
        return Err(crypto(CryptoFault::PassphraseMessage));
    }
    let is_old = matches!(edata, Edata::SymEncryptedProtectedData { reader } if matches!(
        reader.config(),
        ProtectedDataConfig::Seipd(SymEncryptedProtectedDataConfig::V1)
    ));
    if is_old
        && let Some(session) = key.session_key(esk)
        && let PlainSessionKey::V3_4 { sym_alg, key } = &session
        && protected::reads(*sym_alg)
    {
        let message = with_mdc(message, *sym_alg, key.as_ref());
        return message.map(|(message, verdict)| (message, Some(verdict)));
    }
    let count = recipients.len();
    recipients.truncate(MAX_NAMED);
    if count > MAX_NAMED {
        recipients.push(format!("{} more", count - MAX_NAMED));
    }
    let password = Password::empty();
    let ring = TheRing {
        secret_keys: vec![key.key()],
        key_passwords: vec![&password],
        decrypt_options: DecryptionOptions::new()
            .enable_gnupg_aead()
            .set_seipdv1_read_mode(Seipdv1ReadMode::Streaming),
        ..TheRing::default()
    };
    match message.decrypt_the_ring(ring, true) {
        Ok((message, _)) => Ok((message, None)),
        Err(pgp::errors::Error::MissingKey) => {
            Err(crypto(CryptoFault::NotForUs(recipients.join(", "))))
        }
        Err(error) => Err(decrypting(&error)),
    }
}

/// What it means that what was decrypted cannot be read at all.
fn decrypting(error: &pgp::errors::Error) -> StepError {
    match error {
        pgp::errors::Error::IO { source, .. } => reading(source),
        error => crypto(CryptoFault::Damaged(error.to_string().into())),
    }
}

/// The message inside of one with MDC.
fn with_mdc<'a>(
    message: Message<'a>,
    algorithm: pgp::crypto::sym::SymmetricKeyAlgorithm,
    key: &[u8],
) -> Result<(Message<'a>, Verdict), StepError> {
    let unfit = || crypto(CryptoFault::Damaged("its session key does not fit".into()));
    let Message::Encrypted {
        edata: Edata::SymEncryptedProtectedData { reader },
        ..
    } = message
    else {
        return Err(unfit());
    };
    let protected = Protected::new(reader.into_inner(), algorithm, key).ok_or_else(unfit)?;
    let verdict = protected.verdict();
    let message = Message::from_bytes(protected).map_err(|error| decrypting(&error))?;
    Ok((message, verdict))
}

/// Removes compression, so that what is left is signed or literal content.
fn unwrap(mut message: Message<'_>) -> Result<Message<'_>, StepError> {
    for _ in 0..MAX_LAYERS {
        let inner = match &message {
            Message::Signed { reader, .. } => reader.get_ref(),
            other => other,
        };
        match inner {
            Message::Compressed { .. } => {
                message = message.decompress().map_err(|error| parsing(&error))?;
            }
            Message::Encrypted { .. } => {
                let detail = "an encrypted message inside of another";
                return Err(crypto(CryptoFault::NotAMessage(detail.into())));
            }
            Message::Signed { .. } | Message::Literal { .. } => return Ok(message),
        }
    }
    let option = "layers of compression inside of a message";
    let allowed = MAX_LAYERS as u64;
    Err(crypto(CryptoFault::Limit { option, allowed }))
}

fn copy(
    message: &mut Message<'_>,
    writer: &mut PipeWriter,
    limits: Limits,
    gauge: &Gauge,
) -> Result<(), StepError> {
    let mut output: u64 = 0;
    loop {
        // Of the reader within: that of the message would go on to what follows the content.
        let piece = match &mut *message {
            Message::Literal { reader, .. } => reader.fill_buf(),
            Message::Signed { reader, .. } => reader.fill_buf(),
            other => other.fill_buf(),
        };
        let piece = piece.map_err(|error| reading(&error))?;
        if piece.is_empty() {
            break;
        }
        let length = piece.len();
        output += length as u64;
        let ratio = u64::from(limits.max_ratio);
        let most = gauge
            .consumed()
            .saturating_mul(ratio)
            .max(RATIO_GRACE_BYTES);
        let broken = if output > limits.max_output {
            Some(("max_output", limits.max_output))
        } else {
            (output > most).then_some(("max_ratio", ratio))
        };
        if let Some((option, allowed)) = broken {
            return Err(crypto(CryptoFault::Limit { option, allowed }));
        }
        writer.write_all(piece).map_err(|error| reading(&error))?;
        message.consume(length);
    }
    // The library reads what follows into memory, to see that it is only padding, and verifies the
    // protection against changes on the way.
    gauge.limit_rest(MAX_REST_BYTES);
    match message.read(&mut [0]) {
        Ok(0) => Ok(()),
        Ok(_) => Err(crypto(CryptoFault::TrailingGarbage)),
        Err(error) => Err(reading(&error)),
    }
}

/// Whose signature the message carries, if it is a good one.
fn signer(
    message: &Message<'_>,
    signed_by: &[Certificate],
    now: i64,
) -> Result<String, CryptoFault> {
    let Message::Signed { reader, .. } = message else {
        return Err(CryptoFault::NotSigned);
    };
    let mut worst: Option<CryptoFault> = None;
    for index in 0..reader.num_signatures().min(MAX_SIGNATURES) {
        let Some(signature) = reader.signature(index) else {
            continue;
        };
        match check(message, index, signature, signed_by, now) {
            Ok(name) => return Ok(name),
            // Somebody unknown says the least.
            Err(fault) => {
                if matches!(worst, None | Some(CryptoFault::UnknownSigner(_))) {
                    worst = Some(fault);
                }
            }
        }
    }
    Err(worst.unwrap_or(CryptoFault::NotSigned))
}

fn check(
    message: &Message<'_>,
    index: usize,
    signature: &Signature,
    signed_by: &[Certificate],
    now: i64,
) -> Result<String, CryptoFault> {
    let prints = signature.issuer_fingerprint();
    let ids = signature.issuer_key_id();
    let mut fault = None;
    for certificate in signed_by {
        for verifier in certificate.verifiers() {
            let key = verifier.key;
            let is_named =
                prints.contains(&&key.fingerprint()) || ids.contains(&&key.legacy_key_id());
            let names_nobody = prints.is_empty() && ids.is_empty();
            if !is_named && !names_nobody {
                continue;
            }
            let name = fingerprint(key);
            if message.verify_nested_explicit(index, key).is_err() {
                fault = Some(CryptoFault::BadSignature(name));
                continue;
            }
            verifier.health?;
            return acceptable(signature, name, now);
        }
    }
    let issuer = || {
        let print = prints.first().map(ToString::to_string);
        let id = ids.first().map(ToString::to_string);
        print.or(id).unwrap_or_else(|| "an unknown key".to_owned())
    };
    Err(fault.unwrap_or_else(|| CryptoFault::UnknownSigner(issuer())))
}

/// Whether a signature that fits is one to rely on.
fn acceptable(signature: &Signature, name: String, now: i64) -> Result<String, CryptoFault> {
    let refused = |name, why| Err(CryptoFault::SignatureRefused(name, why));
    if !signature.hash_alg().is_some_and(is_strong) {
        return refused(name, "it is made with a broken hash function");
    }
    let Some(created) = signature.created().map(|time| i64::from(time.as_secs())) else {
        return refused(name, "it does not say when it was made");
    };
    if created > now.saturating_add(CLOCK_TOLERANCE) {
        return refused(name, "it was made in the future");
    }
    let lifetime = signature
        .signature_expiration_time()
        .map_or(0, |time| std::time::Duration::from(time).as_secs());
    let lifetime = i64::try_from(lifetime).unwrap_or(i64::MAX);
    if lifetime != 0 && created.saturating_add(lifetime) <= now {
        return refused(name, "it is expired");
    }
    Ok(name)
}

/// What may follow a message.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Blanks {
    Accepted,
    Refused,
}

/// Reads the rest of the input, which has to be empty; behind text there may be blanks.
fn nothing_follows(reader: &mut impl Read, blanks: Blanks) -> Result<(), StepError> {
    let mut buffer = [0; 4096];
    loop {
        let length = reader.read(&mut buffer).map_err(|error| reading(&error))?;
        let rest = buffer.get(..length).unwrap_or_default();
        if rest.is_empty() {
            return Ok(());
        }
        if blanks == Blanks::Refused || !rest.iter().all(u8::is_ascii_whitespace) {
            return Err(crypto(CryptoFault::TrailingGarbage));
        }
    }
}
