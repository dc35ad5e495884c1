//! age (age-encryption.org/v1): encrypt and decrypt for X25519 keys.
//!
//! Constraints: no plugins (a name in a file would choose a program), no passphrases (a file would choose how
//! much memory and time scrypt takes), no SSH keys. The library reads and writes on a thread
//! ([`crate::worker`]); it holds one chunk of the format, 64 KiB. Each chunk is authenticated before it comes
//! out, but only the last one shows that none is missing, so the caller's quarantine counts here too.

use std::io::{self, BufRead as _, Read as _, Write as _};
use std::str::FromStr as _;
use std::sync::Arc;

use age::armor::{ArmoredReader, ArmoredWriter, Format as ArmorFormat};
use age::x25519::{Identity, Recipient};
use age::{DecryptError, Decryptor, Encryptor};
use zeroize::Zeroizing;

use crate::context::Context;
use crate::error::StepError;
use crate::faults::{CryptoFault, KeyFault};
use crate::spec::{AgeIdentity, AgeRecipients, DecryptOptions, Encoding, is_age_recipient};
use crate::stage::MakeStep;
use crate::worker::{Done, Job, Naming, PipeReader, PipeWriter, Worker};

const SYSTEM: &str = "age";
const BUFFER_BYTES: usize = 64 * 1024;
/// The most identities of one secret, and recipients of one step.
const MAX_KEYS: usize = 64;

fn crypto(fault: CryptoFault) -> StepError {
    StepError::Crypto {
        system: SYSTEM,
        fault,
    }
}

fn key_error(step: &'static str, name: &str, fault: KeyFault) -> StepError {
    StepError::Key {
        step,
        name: name.to_owned(),
        fault,
    }
}

/// Lines that are neither empty nor comments.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    let lines = text.lines().map(str::trim);
    lines.filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// The step `decrypt` with `age`.
pub(crate) fn decrypt(
    options: &DecryptOptions,
    age: &AgeIdentity,
    context: &Context,
) -> Result<MakeStep, StepError> {
    let name = &age.identity;
    let secret = context
        .keys
        .secret(name)
        .ok_or_else(|| key_error("decrypt", name, KeyFault::Missing))?;
    let unreadable = || key_error("decrypt", name, KeyFault::Unreadable("age identity"));
    let text = std::str::from_utf8(secret.expose()).map_err(|_| unreadable())?;
    let mut identities = Vec::new();
    for line in lines(text).take(MAX_KEYS) {
        identities.push(Identity::from_str(line).map_err(|_| unreadable())?);
    }
    if identities.is_empty() {
        return Err(unreadable());
    }
    let max_output = options.max_output;
    let identities = Arc::new(identities);
    Ok(Arc::new(move |_| {
        let identities = Arc::clone(&identities);
        let job: Job =
            Box::new(move |reader, writer| read(reader, writer, &identities, max_output));
        let naming = Naming::Remove(&[".age.asc", ".age"]);
        Ok(Box::new(Worker::new("decrypt", naming, job)))
    }))
}

fn read(
    reader: &mut PipeReader,
    writer: &mut PipeWriter,
    identities: &[Identity],
    max_output: u64,
) -> Result<Done, StepError> {
    {
        let mut armored = ArmoredReader::new(&mut *reader);
        let decryptor = Decryptor::new(&mut armored).map_err(|error| refused(&error))?;
        if decryptor.is_scrypt() {
            return Err(crypto(CryptoFault::PassphraseMessage));
        }
        let keys = identities
            .iter()
            .map(|identity| identity as &dyn age::Identity);
        let mut content = decryptor.decrypt(keys).map_err(|error| refused(&error))?;
        let mut buffer = Zeroizing::new(vec![0; BUFFER_BYTES]);
        let mut output = 0;
        loop {
            let length = content.read(&mut buffer).map_err(|error| damaged(&error))?;
            if length == 0 {
                break;
            }
            output += length as u64;
            if output > max_output {
                let option = "max_output";
                let allowed = max_output;
                return Err(crypto(CryptoFault::Limit { option, allowed }));
            }
            let piece = buffer.get(..length).unwrap_or_default();
            writer.write_all(piece).map_err(|error| damaged(&error))?;
        }
        // What the armor still holds: its end, and nothing behind it.
        if armored.read(&mut buffer).map_err(|error| damaged(&error))? != 0 {
            return Err(crypto(CryptoFault::TrailingGarbage));
        }
    }
    if !reader
        .fill_buf()
        .map_err(|error| damaged(&error))?
        .is_empty()
    {
        return Err(crypto(CryptoFault::TrailingGarbage));
    }
    let note = Some("age, decrypted".to_owned());
    Ok(Done { note, side: None })
}

fn refused(error: &DecryptError) -> StepError {
    crypto(match error {
        DecryptError::NoMatchingKeys => CryptoFault::NotForUs("others".to_owned()),
        DecryptError::Io(error) => return damaged(error),
        DecryptError::InvalidHeader | DecryptError::UnknownFormat => {
            CryptoFault::NotAMessage("it does not begin as one".into())
        }
        _ => CryptoFault::Damaged("its head does not fit".into()),
    })
}

fn damaged(error: &io::Error) -> StepError {
    crypto(match error.kind() {
        io::ErrorKind::UnexpectedEof => CryptoFault::Truncated,
        _ => CryptoFault::Damaged(error.to_string().into()),
    })
}

/// The step `encrypt` with `age`.
pub(crate) fn encrypt(
    options: &AgeRecipients,
    encoding: Encoding,
    context: &Context,
) -> Result<MakeStep, StepError> {
    let mut recipients = Vec::new();
    for entry in &options.recipients {
        let unreadable = || key_error("encrypt", entry, KeyFault::Unreadable("age recipient"));
        if is_age_recipient(entry) {
            recipients.push(Recipient::from_str(entry).map_err(|_| unreadable())?);
            continue;
        }
        let content = context
            .keys
            .file(entry)
            .ok_or_else(|| key_error("encrypt", entry, KeyFault::Missing))?;
        let text = std::str::from_utf8(content).map_err(|_| unreadable())?;
        let before = recipients.len();
        for line in lines(text).take(MAX_KEYS) {
            recipients.push(Recipient::from_str(line).map_err(|_| unreadable())?);
        }
        if recipients.len() == before {
            return Err(unreadable());
        }
    }
    let recipients = Arc::new(recipients);
    let suffix = match encoding {
        Encoding::Binary => ".age",
        Encoding::Armor => ".age.asc",
    };
    Ok(Arc::new(move |_| {
        let recipients = Arc::clone(&recipients);
        let job: Job = Box::new(move |reader, writer| write(reader, writer, &recipients, encoding));
        Ok(Box::new(Worker::new("encrypt", Naming::Add(suffix), job)))
    }))
}

fn write(
    reader: &mut PipeReader,
    writer: &mut PipeWriter,
    recipients: &[Recipient],
    encoding: Encoding,
) -> Result<Done, StepError> {
    let failed = |detail: String| crypto(CryptoFault::Failed(detail.into()));
    let keys = recipients.iter().map(|one| one as &dyn age::Recipient);
    let encryptor = Encryptor::with_recipients(keys).map_err(|error| failed(error.to_string()))?;
    let format = match encoding {
        Encoding::Binary => ArmorFormat::Binary,
        Encoding::Armor => ArmorFormat::AsciiArmor,
    };
    let encrypt = || -> io::Result<()> {
        let armored = ArmoredWriter::wrap_output(&mut *writer, format)?;
        let mut stream = encryptor.wrap_output(armored)?;
        loop {
            let piece = reader.fill_buf()?;
            if piece.is_empty() {
                break;
            }
            stream.write_all(piece)?;
            let length = piece.len();
            reader.consume(length);
        }
        stream.finish()?.finish()?;
        Ok(())
    };
    encrypt().map_err(|error| failed(error.to_string()))?;
    let count = recipients.len();
    let note = Some(format!("age, encrypted for {count} recipients"));
    Ok(Done { note, side: None })
}
