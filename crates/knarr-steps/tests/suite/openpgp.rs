//! Messages to and from GnuPG.

use knarr_steps::{Context, Keys, Secret, StepError};
pub(crate) use knarr_testkit::gpg::{ED25519, Gpg, RSA};

use crate::files::{CHUNK_SIZES, Output, contents, context_with, run, run_one};
use crate::support::text;

/// Keys of ours, `our-key`, and of a partner, `partner.asc`, in one GnuPG.
pub(crate) fn two_keys(kind: &str) -> (Gpg, Keys) {
    let gpg = Gpg::new();
    gpg.generate(kind, "ours", &[], "%no-protection");
    gpg.generate(kind, "partner", &[], "%no-protection");
    let keys = Keys::new()
        .with_secret("our-key", Secret::new(gpg.secret("ours")))
        .with_file("ours.asc", gpg.public("ours"))
        .with_file("partner.asc", gpg.public("partner"));
    (gpg, keys)
}

pub(crate) const DECRYPT: &str = "[{ decrypt: { pgp: our-key } }]";
pub(crate) const DECRYPT_SIGNED: &str = "[{ decrypt: { pgp: our-key, signed_by: [partner.asc] } }]";

pub(crate) fn decrypt(context: &Context, message: &[u8]) -> Result<Vec<Output>, StepError> {
    run_one(DECRYPT_SIGNED, context, "d/a.csv.gpg", message)
}

fn gpg_messages_are_read(kind: &str) {
    let (gpg, keys) = two_keys(kind);
    let context = context_with(keys);
    for content in [Vec::new(), b"x".to_vec(), text(600_000)] {
        for more in [
            &[][..],
            &["--armor"],
            &["-z", "0"],
            &["--compress-algo", "bzip2"],
            &[
                "--compress-algo",
                "zlib",
                "--cipher-algo",
                "AES256",
                "--digest-algo",
                "SHA512",
            ],
        ] {
            let base = [
                "--encrypt",
                "--sign",
                "-u",
                "partner",
                "-r",
                "ours",
                "-r",
                "partner",
            ];
            let message = gpg.run(&[&base[..], more].concat(), &content);
            for chunk_bytes in [7, 65_536] {
                if chunk_bytes == 7 && content.len() > 1000 {
                    continue;
                }
                let input: [(&str, &[u8]); 1] = [("d/a.csv.gpg", &message)];
                let out = run(DECRYPT_SIGNED, &context, &input, chunk_bytes)
                    .unwrap_or_else(|error| panic!("{more:?}: {error}"));
                assert!(
                    contents(&out) == [("d/a.csv", content.as_slice())],
                    "{more:?}"
                );
            }
        }
        let signed = gpg.run(&["--sign", "-u", "partner"], &content);
        let verify = "[{ verify: { signed_by: [partner.asc] } }]";
        let out = run_one(verify, &context, "a.csv.gpg", &signed).unwrap();
        assert!(contents(&out) == [("a.csv", content.as_slice())]);
        let unsigned = gpg.run(&["--encrypt", "-r", "ours"], &content);
        let out = run_one(DECRYPT, &context, "a.csv.gpg", &unsigned).unwrap();
        assert!(contents(&out) == [("a.csv", content.as_slice())]);
    }
}

#[test]
fn messages_of_gnupg_for_rsa_keys_are_read() {
    gpg_messages_are_read(RSA);
}

#[test]
fn messages_of_gnupg_for_ed25519_and_x25519_keys_are_read() {
    gpg_messages_are_read(ED25519);
}

fn gpg_reads_ours(kind: &str) {
    let (gpg, keys) = two_keys(kind);
    let context = context_with(keys);
    for content in [Vec::new(), text(900_000)] {
        for encoding in ["binary", "armor"] {
            let yaml = format!(
                "[{{ encrypt: {{ pgp: {{ recipients: [partner.asc], sign_with: our-key }}, encoding: {encoding} }} }}]"
            );
            let out = run_one(&yaml, &context, "a", &content).unwrap();
            let suffix = if encoding == "armor" { "asc" } else { "pgp" };
            assert_eq!(out[0].path, format!("a.{suffix}"));
            let status = gpg.at().join("status");
            let status_argument = status.to_str().unwrap();
            let arguments = ["--status-file", status_argument, "--decrypt"];
            assert!(gpg.run(&arguments, &out[0].content) == content);
            let status = std::fs::read_to_string(&status).unwrap();
            assert!(
                status.contains("GOODSIG") && status.contains("GOODMDC"),
                "{status}"
            );

            let yaml = format!("[{{ sign: {{ pgp: our-key, encoding: {encoding} }} }}]");
            let out = run_one(&yaml, &context, "a", &content).unwrap();
            assert!(gpg.run(&["--decrypt"], &out[0].content) == content);

            let yaml =
                format!("[{{ sign: {{ pgp: our-key, encoding: {encoding}, mode: detached }} }}]");
            let out = run_one(&yaml, &context, "a", &content).unwrap();
            assert!(out[0].path == "a" && out[0].content == content);
            let name = if encoding == "armor" {
                "a.asc"
            } else {
                "a.sig"
            };
            assert_eq!(out[1].path, name);
            std::fs::write(gpg.at().join(name), &out[1].content).unwrap();
            std::fs::write(gpg.at().join("a"), &content).unwrap();
            gpg.run(&["--verify", name, "a"], b"");
        }
    }
}

#[test]
fn gnupg_reads_what_is_made_here_with_rsa_keys() {
    gpg_reads_ours(RSA);
}

#[test]
fn gnupg_reads_what_is_made_here_with_ed25519_and_x25519_keys() {
    gpg_reads_ours(ED25519);
}

#[test]
fn a_private_key_with_a_passphrase_is_unlocked_by_it_and_by_nothing_else() {
    let gpg = Gpg::new();
    gpg.generate(
        ED25519,
        "ours",
        &["--passphrase", "open sesame"],
        "Passphrase: open sesame",
    );
    let arguments = [
        "--passphrase",
        "open sesame",
        "--armor",
        "--export-secret-keys",
        "ours",
    ];
    let secret = gpg.run(&arguments, b"");
    let message = gpg.run(&["--encrypt", "-r", "ours"], b"content");
    let context = |passphrase: &str| {
        let keys = Keys::new()
            .with_secret("our-key", Secret::new(secret.clone()))
            .with_secret("our-pass", Secret::new(passphrase.as_bytes().to_vec()));
        context_with(keys)
    };
    let yaml = "[{ decrypt: { pgp: our-key, passphrase: our-pass } }]";
    let out = run_one(yaml, &context("open sesame"), "a.gpg", &message).unwrap();
    assert_eq!(out[0].content, b"content");
    for (yaml, context) in [(yaml, context("wrong")), (DECRYPT, context("open sesame"))] {
        let error = run_one(yaml, &context, "a.gpg", &message).unwrap_err();
        assert!(matches!(error, StepError::Key { .. }), "{error:?}");
        let shown = format!("{error} {error:?}");
        assert!(
            shown.contains("passphrase") && !shown.contains("sesame"),
            "{shown}"
        );
    }
}

/// A key of the new packet format, made by the library.
fn new_format_key(name: &str) -> (Vec<u8>, Vec<u8>) {
    use pgp::composed::{
        ArmorOptions, EncryptionCaps, KeyType, SecretKeyParamsBuilder, SignedPublicKey,
        SubkeyParamsBuilder,
    };
    use pgp::types::KeyVersion;
    let subkey = SubkeyParamsBuilder::default()
        .version(KeyVersion::V6)
        .key_type(KeyType::X25519)
        .can_encrypt(EncryptionCaps::All)
        .build()
        .unwrap();
    let parameters = SecretKeyParamsBuilder::default()
        .version(KeyVersion::V6)
        .key_type(KeyType::Ed25519)
        .can_certify(true)
        .can_sign(true)
        .feature_seipd_v1(true)
        .feature_seipd_v2(true)
        .primary_user_id(name.to_owned())
        .subkey(subkey)
        .build()
        .unwrap();
    let secret = parameters.generate(rand::rngs::OsRng).unwrap();
    let public = SignedPublicKey::from(secret.clone());
    let armor = ArmorOptions::default;
    (
        secret.to_armored_bytes(armor()).unwrap(),
        public.to_armored_bytes(armor()).unwrap(),
    )
}

#[test]
fn keys_and_messages_of_the_new_packet_format_make_the_round_trip() {
    let (our_secret, our_public) = new_format_key("ours");
    let (partner_secret, partner_public) = new_format_key("partner");
    let keys = Keys::new()
        .with_secret("our-key", Secret::new(our_secret))
        .with_secret("partner-key", Secret::new(partner_secret))
        .with_file("ours.asc", our_public)
        .with_file("partner.asc", partner_public);
    let context = context_with(keys);
    for chunk_bytes in CHUNK_SIZES {
        let content = text(if chunk_bytes == 65_536 { 700_000 } else { 3000 });
        for encoding in ["binary", "armor"] {
            let encrypt = format!(
                "encrypt: {{ pgp: {{ recipients: [ours.asc], sign_with: partner-key }}, encoding: {encoding} }}"
            );
            let message = run_one(&format!("[{{ {encrypt} }}]"), &context, "a", &content).unwrap();
            if encoding == "binary" {
                // A session key packet of version 6, and after it encrypted data of version 2.
                assert_eq!((message[0].content[0], message[0].content[2]), (0xc1, 6));
            }
            let yaml = format!(
                "[{{ {encrypt} }}, {{ decrypt: {{ pgp: our-key, signed_by: [partner.asc] }} }}]"
            );
            let out = run(&yaml, &context, &[("a", &content)], chunk_bytes).unwrap();
            assert!(contents(&out) == [("a", content.as_slice())]);
        }
    }
}

/// Revokes a key with the certificate that was made along with it.
pub(crate) fn revoke(gpg: &Gpg, name: &str) {
    let listed = gpg.run(&["--with-colons", "--fingerprint", name], b"");
    let listed = String::from_utf8(listed).unwrap();
    let line = listed
        .lines()
        .find(|line| line.starts_with("fpr:"))
        .unwrap();
    let fingerprint = line.split(':').nth(9).unwrap();
    let path = gpg.at().join(format!("openpgp-revocs.d/{fingerprint}.rev"));
    let certificate = std::fs::read_to_string(path).unwrap();
    gpg.run(
        &["--import"],
        certificate.replace(":-----BEGIN", "-----BEGIN").as_bytes(),
    );
}
