//! Which algorithms are offered, and which combinations are refused.

use std::borrow::Cow;

use russh::keys::{Algorithm, EcdsaCurve, HashAlg};
use russh::{Preferred, cipher, compression, kex, mac};

use crate::ssh::Cipher;

const KEX: &[kex::Name] = &[
    kex::MLKEM768X25519_SHA256,
    kex::CURVE25519,
    kex::CURVE25519_PRE_RFC_8731,
    kex::ECDH_SHA2_NISTP256,
    kex::ECDH_SHA2_NISTP384,
    kex::ECDH_SHA2_NISTP521,
    kex::DH_GEX_SHA256,
    kex::DH_G18_SHA512,
    kex::DH_G16_SHA512,
    kex::DH_G14_SHA256,
    kex::EXTENSION_SUPPORT_AS_CLIENT,
    kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT,
];

/// Only for ciphers that need one.
const MACS: &[mac::Name] = &[
    mac::HMAC_SHA256_ETM,
    mac::HMAC_SHA512_ETM,
    mac::HMAC_SHA256,
    mac::HMAC_SHA512,
];

/// The types of host keys, best first.
pub(super) const HOST_KEYS: [Algorithm; 6] = [
    Algorithm::Ed25519,
    Algorithm::Ecdsa {
        curve: EcdsaCurve::NistP256,
    },
    Algorithm::Ecdsa {
        curve: EcdsaCurve::NistP384,
    },
    Algorithm::Ecdsa {
        curve: EcdsaCurve::NistP521,
    },
    Algorithm::Rsa {
        hash: Some(HashAlg::Sha512),
    },
    Algorithm::Rsa {
        hash: Some(HashAlg::Sha256),
    },
];

/// What is offered to a server with these types of host keys.
pub(super) fn preferred(
    ciphers: &[Cipher],
    host_keys: Vec<Algorithm>,
    certificates: Vec<Algorithm>,
) -> Preferred {
    Preferred {
        kex: Cow::Borrowed(KEX),
        key: Cow::Owned(host_keys),
        host_key_certificates: Cow::Owned(certificates),
        cipher: Cow::Owned(ciphers.iter().copied().map(cipher_name).collect()),
        mac: Cow::Borrowed(MACS),
        compression: Cow::Borrowed(&[compression::NONE]),
    }
}

/// The types of host keys, those first by which the host is known: asking for another first would
/// make a known host look like an unknown one.
pub(super) fn host_keys_known_first(known: &[Algorithm]) -> Vec<Algorithm> {
    let is_known = |algorithm: &Algorithm| known.iter().any(|known| same_type(known, algorithm));
    let (mut first, rest): (Vec<_>, Vec<_>) = HOST_KEYS.into_iter().partition(is_known);
    first.extend(rest);
    first
}

/// Whether two algorithms are about the same type of key; RSA keys have no hash of their own.
pub(super) fn same_type(a: &Algorithm, b: &Algorithm) -> bool {
    match (a, b) {
        (Algorithm::Rsa { .. }, Algorithm::Rsa { .. }) => true,
        (a, b) => a == b,
    }
}

/// Why what was negotiated is not safe, if it is not: a prefix of the encrypted stream could be cut
/// out unnoticed (Terrapin, CVE-2023-48795).
pub(super) fn weakness(names: &russh::Names) -> Option<&'static str> {
    if names.strict_kex() {
        return None;
    }
    let gcm = [cipher::AES_128_GCM, cipher::AES_256_GCM].contains(&names.cipher);
    if names.cipher == cipher::CHACHA20_POLY1305 {
        return Some("ChaCha20-Poly1305");
    }
    let encrypt_then_mac = [mac::HMAC_SHA256_ETM, mac::HMAC_SHA512_ETM];
    let is_etm = [&names.client_mac, &names.server_mac]
        .into_iter()
        .any(|name| encrypt_then_mac.contains(name));
    (!gcm && is_etm).then_some("encrypt-then-MAC")
}

fn cipher_name(cipher: Cipher) -> cipher::Name {
    match cipher {
        Cipher::Aes128Gcm => cipher::AES_128_GCM,
        Cipher::Aes256Gcm => cipher::AES_256_GCM,
        Cipher::ChaCha20Poly1305 => cipher::CHACHA20_POLY1305,
        Cipher::Aes256Ctr => cipher::AES_256_CTR,
        Cipher::Aes128Ctr => cipher::AES_128_CTR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h52_nothing_with_sha1_or_cbc_is_offered() {
        let offered = preferred(&Cipher::PREFERENCE, HOST_KEYS.to_vec(), HOST_KEYS.to_vec());
        let mut names: Vec<String> = Vec::new();
        names.extend(offered.kex.iter().map(|name| name.as_ref().to_owned()));
        names.extend(offered.cipher.iter().map(|name| name.as_ref().to_owned()));
        names.extend(offered.mac.iter().map(|name| name.as_ref().to_owned()));
        names.extend(offered.key.iter().map(ToString::to_string));
        assert!(names.contains(&"aes128-gcm@openssh.com".to_owned()));
        for name in &names {
            for weak in [
                "sha1", "cbc", "3des", "arcfour", "md5", "none", "group1-", "dss",
            ] {
                assert!(!name.contains(weak), "{name} is offered");
            }
            assert_ne!(name, "ssh-rsa");
        }
        assert_eq!(
            names.iter().position(|name| name.starts_with("aes128-gcm")),
            Some(KEX.len())
        );
    }

    #[test]
    fn h50_the_types_by_which_a_host_is_known_are_asked_for_first() {
        let rsa = Algorithm::Rsa { hash: None };
        let order = host_keys_known_first(&[rsa]);
        assert_eq!(
            order[0],
            Algorithm::Rsa {
                hash: Some(HashAlg::Sha512)
            }
        );
        assert_eq!(
            order[1],
            Algorithm::Rsa {
                hash: Some(HashAlg::Sha256)
            }
        );
        assert_eq!(order.len(), HOST_KEYS.len());
        assert_eq!(host_keys_known_first(&[]), HOST_KEYS);
    }
}
