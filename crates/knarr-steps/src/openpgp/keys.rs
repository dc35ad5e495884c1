//! Which key of a certificate may do what, now.
//!
//! Constraints: the library reads keys and computes; whether a part of a certificate counts is decided here:
//! it counts if the newest valid binding by the primary key says so, and neither it nor the primary key
//! is revoked or expired.

use knarr_core::Timestamp;
use pgp::composed::{Deserializable as _, Esk, PlainSessionKey, SignedPublicKey, SignedSecretKey};
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::{
    KeyFlags, PublicKey, PublicSubkey, SecretKey, SecretSubkey, Signature, SignatureType,
};
use pgp::types::{
    DecryptionKey, EskType, KeyDetails, Password, PkeskVersion, SigningKey, Tag, VerifyingKey,
};
use std::io::Cursor;

use crate::context::Secret;
use crate::faults::{CryptoFault, KeyFault};

/// Bindings of a subkey that are looked at: more are an attack on our time.
const MAX_BINDINGS: usize = 64;

/// The most certificates of one file.
const MAX_CERTIFICATES: usize = 64;

/// What can be expected of the software of a recipient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protection {
    Mdc,
    Aead,
}

/// A part of a certificate.
#[derive(Debug, Clone)]
pub(super) enum PublicPart {
    Primary(PublicKey),
    Subkey(PublicSubkey),
}

/// For whom a message is encrypted.
#[derive(Debug)]
pub(super) struct Recipient {
    pub(super) key: PublicPart,
    pub(super) fingerprint: String,
    pub(super) protection: Protection,
}

/// A part of a certificate that may have signed.
pub(super) struct Verifier<'a> {
    pub(super) key: &'a dyn VerifyingKey,
    pub(super) health: Result<(), CryptoFault>,
}

/// A public key with its subkeys.
#[derive(Debug)]
pub(super) struct Certificate {
    key: SignedPublicKey,
    now: i64,
}

impl Certificate {
    /// Every certificate of a file, armored or not. Nothing if it has none, or something else.
    pub(super) fn read_all(content: &[u8], now: Timestamp) -> Option<Vec<Self>> {
        let (keys, _) = SignedPublicKey::from_reader_many(Cursor::new(content)).ok()?;
        let mut found = Vec::new();
        for key in keys.take(MAX_CERTIFICATES) {
            let now = now.seconds();
            found.push(Self {
                key: key.ok()?,
                now,
            });
        }
        (!found.is_empty()).then_some(found)
    }

    /// The newest valid word of the primary key about itself.
    fn self_signature(&self) -> Option<&Signature> {
        let primary = &self.key.primary_key;
        let details = &self.key.details;
        let of_users = details.users.iter().flat_map(|user| {
            let valid = move |signature: &&Signature| {
                signature.is_certification()
                    && signature
                        .verify_certification(primary, Tag::UserId, &user.id)
                        .is_ok()
            };
            user.signatures.iter().filter(valid)
        });
        let direct = details
            .direct_signatures
            .iter()
            .filter(|signature| signature.verify_key(primary).is_ok());
        of_users
            .chain(direct)
            .max_by_key(|signature| created(signature))
    }

    /// Whether the primary key may be used at all.
    fn health(&self) -> Result<&Signature, CryptoFault> {
        let primary = &self.key.primary_key;
        let name = fingerprint(primary);
        let revocations = &self.key.details.revocation_signatures;
        if revocations
            .iter()
            .any(|one| one.verify_key(primary).is_ok())
        {
            return Err(CryptoFault::KeyRevoked(name));
        }
        let binding = self.self_signature().ok_or(CryptoFault::KeyUnusable(
            name.clone(),
            "it has no valid signature of its own",
        ))?;
        self.in_time(primary, binding)?;
        Ok(binding)
    }

    fn in_time(&self, key: &dyn KeyDetails, binding: &Signature) -> Result<(), CryptoFault> {
        let from = i64::from(key.created_at().as_secs());
        let lifetime = binding
            .key_expiration_time()
            .map_or(0, |time| std::time::Duration::from(time).as_secs());
        let lifetime = i64::try_from(lifetime).unwrap_or(i64::MAX);
        if lifetime != 0 && from.saturating_add(lifetime) <= self.now {
            return Err(CryptoFault::KeyExpired(fingerprint(key)));
        }
        Ok(())
    }

    /// When it stops to be of use: the primary key, or the last of its subkeys. Nothing if it never does.
    pub(super) fn expires(&self) -> Option<Timestamp> {
        let primary = &self.key.primary_key;
        let end = |key: &dyn KeyDetails, binding: &Signature| {
            let lifetime = std::time::Duration::from(binding.key_expiration_time()?).as_secs();
            let from = i64::from(key.created_at().as_secs());
            let lifetime = i64::try_from(lifetime)
                .ok()
                .filter(|lifetime| *lifetime > 0)?;
            Some(Timestamp::from_seconds(from.saturating_add(lifetime)))
        };
        let own = self
            .self_signature()
            .and_then(|binding| end(primary, binding));
        let of_subkeys = self.key.public_subkeys.iter().filter_map(|subkey| {
            let valid = subkey.signatures.iter().take(MAX_BINDINGS).filter(|one| {
                one.typ() == Some(SignatureType::SubkeyBinding)
                    && one.verify_subkey_binding(primary, &subkey.key).is_ok()
            });
            let newest = valid.max_by_key(|one| created(one))?;
            Some(end(&subkey.key, newest))
        });
        // A subkey that is for ever is later than all others.
        let never = Timestamp::from_nanoseconds(i64::MAX);
        let last = of_subkeys.map(|end| end.unwrap_or(never)).max();
        let last = last.filter(|last| *last != never);
        [own, last].into_iter().flatten().min()
    }

    /// The newest valid binding of each subkey, or why there is none.
    fn subkeys(&self) -> impl Iterator<Item = (&PublicSubkey, Result<&Signature, CryptoFault>)> {
        let primary = &self.key.primary_key;
        self.key.public_subkeys.iter().map(move |subkey| {
            let name = fingerprint(&subkey.key);
            let valid: Vec<&Signature> = subkey
                .signatures
                .iter()
                .take(MAX_BINDINGS)
                .filter(|one| one.verify_subkey_binding(primary, &subkey.key).is_ok())
                .collect();
            let is_revoked = valid
                .iter()
                .any(|one| one.typ() == Some(SignatureType::SubkeyRevocation));
            let newest = valid
                .into_iter()
                .filter(|one| one.typ() == Some(SignatureType::SubkeyBinding))
                .max_by_key(|one| created(one));
            let binding = match newest {
                _ if is_revoked => Err(CryptoFault::KeyRevoked(name)),
                None => Err(CryptoFault::KeyUnusable(
                    name,
                    "it is not bound to its certificate",
                )),
                Some(binding) => self.in_time(&subkey.key, binding).map(|()| binding),
            };
            (&subkey.key, binding)
        })
    }

    /// Every part of the certificate that could have signed, with whether it counts.
    pub(super) fn verifiers(&self) -> Vec<Verifier<'_>> {
        let primary = &self.key.primary_key;
        let of_primary = self.health();
        let mut found = vec![Verifier {
            key: primary,
            health: of_primary.clone().map(|_| ()),
        }];
        for (subkey, binding) in self.subkeys() {
            let health = of_primary.clone().and(binding).and_then(|binding| {
                let name = || fingerprint(subkey);
                if !binding.key_flags().sign() {
                    return Err(CryptoFault::KeyUnusable(
                        name(),
                        "it is not meant for signing",
                    ));
                }
                let back = binding.embedded_signature();
                match back.map(|back| back.verify_primary_key_binding(subkey, primary)) {
                    Some(Ok(())) => Ok(()),
                    _ => Err(CryptoFault::KeyUnusable(
                        name(),
                        "it does not confirm its certificate",
                    )),
                }
            });
            found.push(Verifier {
                key: subkey,
                health,
            });
        }
        found
    }

    /// The key that messages for this certificate are encrypted with.
    pub(super) fn recipient(&self) -> Result<Recipient, CryptoFault> {
        let own = self.health()?;
        let is_modern = own.features().is_some_and(|features| features.seipd_v2());
        let protection = if is_modern {
            Protection::Aead
        } else {
            Protection::Mdc
        };
        let encrypts = |flags: KeyFlags| flags.encrypt_comms() || flags.encrypt_storage();
        let mut best: Option<(u32, &PublicSubkey)> = None;
        let mut fault = None;
        for (subkey, binding) in self.subkeys() {
            match binding {
                Ok(binding) if encrypts(binding.key_flags()) => {
                    let age = subkey.created_at().as_secs();
                    if best.is_none_or(|(newest, _)| age >= newest) {
                        best = Some((age, subkey));
                    }
                }
                Ok(_) => {}
                Err(other) => fault = Some(other),
            }
        }
        let primary = &self.key.primary_key;
        let key = match best {
            Some((_, subkey)) => PublicPart::Subkey(subkey.clone()),
            None if encrypts(own.key_flags()) => PublicPart::Primary(primary.clone()),
            None => {
                let unusable = || {
                    CryptoFault::KeyUnusable(fingerprint(primary), "it is not meant for encryption")
                };
                return Err(fault.unwrap_or_else(unusable));
            }
        };
        Ok(Recipient {
            key,
            fingerprint: fingerprint(primary),
            protection,
        })
    }
}

fn created(signature: &Signature) -> u32 {
    signature
        .created()
        .map_or(0, pgp::types::Timestamp::as_secs)
}

pub(super) fn fingerprint(key: &dyn KeyDetails) -> String {
    key.fingerprint().to_string()
}

/// Our own key, unlocked.
pub(super) struct PrivateKey(SignedSecretKey);

impl PrivateKey {
    pub(super) fn read(secret: &Secret, passphrase: Option<&Secret>) -> Result<Self, KeyFault> {
        let unreadable = KeyFault::Unreadable("OpenPGP private key");
        let (mut key, _) = SignedSecretKey::from_reader_single(Cursor::new(secret.expose()))
            .map_err(|_| unreadable.clone())?;
        let password = passphrase.map_or_else(Password::empty, |passphrase| {
            Password::from(passphrase.expose())
        });
        // A part may be missing: the primary key is often kept elsewhere.
        let mut usable = 0;
        if key.primary_key.remove_password(&password).is_ok() {
            usable += 1;
        }
        for subkey in &mut key.secret_subkeys {
            if subkey.key.remove_password(&password).is_ok() {
                usable += 1;
            }
        }
        if usable == 0 {
            return Err(KeyFault::Locked);
        }
        Ok(Self(key))
    }

    pub(super) fn key(&self) -> &SignedSecretKey {
        &self.0
    }

    /// The key of a message with MDC, if one of its recipients is ours.
    pub(super) fn session_key(&self, recipients: &[Esk]) -> Option<PlainSessionKey> {
        let opened = |part: &dyn DecryptionKey, values| {
            let opened = part.decrypt(&Password::empty(), values, EskType::V3_4);
            opened.ok().and_then(Result::ok)
        };
        for recipient in recipients {
            let Esk::PublicKeyEncryptedSessionKey(recipient) = recipient else {
                continue;
            };
            if recipient.version() != PkeskVersion::V3 {
                continue;
            }
            let Ok(values) = recipient.values() else {
                continue;
            };
            let primary = &self.0.primary_key;
            if recipient.match_identity(primary.public_key())
                && let Some(session) = opened(primary, values)
            {
                return Some(session);
            }
            for subkey in self.0.secret_subkeys.iter().map(|subkey| &subkey.key) {
                if recipient.match_identity(subkey.public_key())
                    && let Some(session) = opened(subkey, values)
                {
                    return Some(session);
                }
            }
        }
        None
    }

    /// The part that signs: the newest subkey that is meant for it, or the primary key.
    pub(super) fn into_signer(self, now: Timestamp) -> Result<Signer, CryptoFault> {
        let certificate = Certificate {
            key: self.0.to_public_key(),
            now: now.seconds(),
        };
        let own = certificate.health()?;
        let mut best: Option<(u32, String)> = None;
        for (subkey, binding) in certificate.subkeys() {
            if binding.is_ok_and(|binding| binding.key_flags().sign()) {
                let age = subkey.created_at().as_secs();
                if best.as_ref().is_none_or(|(newest, _)| age >= *newest) {
                    best = Some((age, fingerprint(subkey)));
                }
            }
        }
        let name = fingerprint(&self.0.primary_key);
        let locked = || CryptoFault::KeyUnusable(name.clone(), "the part that signs is not there");
        if let Some((_, wanted)) = best {
            let mut subkeys = self.0.secret_subkeys.into_iter().map(|subkey| subkey.key);
            let found = subkeys.find(|subkey| fingerprint(subkey) == wanted);
            let found = found.filter(|key| !key.secret_params().is_encrypted());
            return found.map(Signer::Subkey).ok_or_else(locked);
        }
        if !own.key_flags().sign() {
            return Err(CryptoFault::KeyUnusable(
                name,
                "it is not meant for signing",
            ));
        }
        let primary = self.0.primary_key;
        if primary.secret_params().is_encrypted() {
            return Err(locked());
        }
        Ok(Signer::Primary(primary))
    }
}

/// What signs.
pub(super) enum Signer {
    Primary(SecretKey),
    Subkey(SecretSubkey),
}

impl Signer {
    pub(super) fn key(&self) -> &dyn SigningKey {
        match self {
            Self::Primary(key) => key,
            Self::Subkey(key) => key,
        }
    }

    /// The hash function to sign with: what the key recommends, but never a broken one.
    pub(super) fn hash(&self) -> HashAlgorithm {
        let recommended = self.key().hash_alg();
        if is_strong(recommended) {
            recommended
        } else {
            HashAlgorithm::Sha256
        }
    }
}

/// Whether a signature made with this function is believed.
pub(super) fn is_strong(hash: HashAlgorithm) -> bool {
    matches!(
        hash,
        HashAlgorithm::Sha224
            | HashAlgorithm::Sha256
            | HashAlgorithm::Sha384
            | HashAlgorithm::Sha512
            | HashAlgorithm::Sha3_256
            | HashAlgorithm::Sha3_512
    )
}
