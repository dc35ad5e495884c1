//! Which algorithms are offered. `ssh-audit` finds nothing to complain of.
//!
//! Constraints: no SHA-1, no CBC, no curves of NIST in the key exchange. Strict key exchange is offered, but russh does
//! not say whether the client took it, so what can be attacked without it (Terrapin: ChaCha20-Poly1305 and
//! encrypt-then-MAC) is not offered at all. AES-GCM is what nearly every client takes; AES-CTR is for old ones.

use std::borrow::Cow;

use russh::keys::{Algorithm, HashAlg};
use russh::{Preferred, cipher, compression, kex, mac};

const KEX: &[kex::Name] = &[
    kex::MLKEM768X25519_SHA256,
    kex::CURVE25519,
    kex::CURVE25519_PRE_RFC_8731,
    kex::DH_G16_SHA512,
    kex::DH_G18_SHA512,
    kex::EXTENSION_SUPPORT_AS_SERVER,
    kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER,
];

const CIPHERS: &[cipher::Name] = &[
    cipher::AES_128_GCM,
    cipher::AES_256_GCM,
    cipher::AES_256_CTR,
    cipher::AES_128_CTR,
];

const MACS: &[mac::Name] = &[mac::HMAC_SHA256, mac::HMAC_SHA512];

/// What is offered with host keys of these types.
pub(crate) fn preferred(keys: &[Algorithm]) -> Preferred {
    let mut host_keys = Vec::new();
    for key in keys {
        match key {
            Algorithm::Rsa { .. } => {
                for hash in [HashAlg::Sha512, HashAlg::Sha256] {
                    host_keys.push(Algorithm::Rsa { hash: Some(hash) });
                }
            }
            other => host_keys.push(other.clone()),
        }
    }
    Preferred {
        kex: Cow::Borrowed(KEX),
        key: Cow::Owned(host_keys),
        host_key_certificates: Cow::Borrowed(&[]),
        cipher: Cow::Borrowed(CIPHERS),
        mac: Cow::Borrowed(MACS),
        compression: Cow::Borrowed(&[compression::NONE]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h52_nothing_weak_is_offered_to_clients() {
        let offered = preferred(&[Algorithm::Ed25519, Algorithm::Rsa { hash: None }]);
        let mut names: Vec<String> = Vec::new();
        names.extend(offered.kex.iter().map(|name| name.as_ref().to_owned()));
        names.extend(offered.cipher.iter().map(|name| name.as_ref().to_owned()));
        names.extend(offered.mac.iter().map(|name| name.as_ref().to_owned()));
        names.extend(offered.key.iter().map(ToString::to_string));
        assert!(names.contains(&"kex-strict-s-v00@openssh.com".to_owned()));
        for name in &names {
            for weak in [
                "sha1", "cbc", "3des", "arcfour", "md5", "none", "group1-", "group14-", "dss",
                "nistp", "etm", "chacha",
            ] {
                assert!(!name.contains(weak), "{name} is offered");
            }
            assert_ne!(name, "ssh-rsa");
        }
    }
}
