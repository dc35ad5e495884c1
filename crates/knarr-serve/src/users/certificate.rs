//! Certificates of users, signed by an authority.
//!
//! Constraint: a certificate counts only if everything in it that limits it was understood and holds. Its signature
//! and the proof that the client has its key were checked before (by russh), and are part of no decision here.

use std::net::IpAddr;

use jiff::Timestamp;
use russh::keys::{Certificate, PublicKey};

use crate::users::Network;
use crate::users::keys::is_strong;

/// Whether a certificate lets `user` in from `address` at `now`.
pub(crate) fn admits(
    certificate: &Certificate,
    authorities: &[PublicKey],
    user: &str,
    address: IpAddr,
    now: Timestamp,
) -> bool {
    let is_signed = authorities
        .iter()
        .any(|authority| authority.key_data() == certificate.signature_key());
    let now = u64::try_from(now.as_second()).unwrap_or(0);
    let holder = PublicKey::new(certificate.public_key().clone(), "");
    is_signed
        && certificate.cert_type().is_user()
        && certificate.verify_signature().is_ok()
        && is_strong(&holder)
        // Without principals it would be good for everyone.
        && certificate.valid_principals().iter().any(|name| name == user)
        && certificate.valid_after() <= now
        && now < certificate.valid_before()
        && certificate
            .critical_options()
            .iter()
            .all(|(name, value)| option_holds(name, value, address))
}

fn option_holds(name: &str, value: &str, address: IpAddr) -> bool {
    match name {
        "source-address" => value
            .split(',')
            .any(|network| Network::parse(network).is_ok_and(|network| network.contains(address))),
        "force-command" => value == "internal-sftp",
        _ => false,
    }
}
