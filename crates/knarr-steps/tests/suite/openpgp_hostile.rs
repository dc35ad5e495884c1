//! Messages that must not be believed.

use knarr_steps::{CryptoFault, KeyFault, Keys, Secret, StepError};

use crate::files::{context_with, run, run_one, steps};
use crate::openpgp::{DECRYPT, DECRYPT_SIGNED, ED25519, Gpg, RSA, decrypt, revoke, two_keys};
use crate::support::text;

const VERIFY: &str = "[{ verify: { signed_by: [partner.asc] } }]";

fn fault<T: std::fmt::Debug>(result: Result<T, StepError>) -> CryptoFault {
    match result {
        Err(error @ StepError::Crypto { .. }) => {
            assert!(error.is_permanent());
            let StepError::Crypto { fault, .. } = error else {
                unreachable!("it was matched")
            };
            fault
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn h21_a_message_cut_at_any_byte_never_finishes() {
    let (gpg, keys) = two_keys(ED25519);
    let context = context_with(keys);
    let content = text(900);
    let base = [
        "--encrypt",
        "--sign",
        "-u",
        "partner",
        "-r",
        "ours",
        "-z",
        "0",
    ];
    for more in [&[][..], &["--armor"]] {
        let message = gpg.run(&[&base[..], more].concat(), &content);
        let end = message.trim_ascii_end().len();
        let step = if more.is_empty() { 1 } else { 3 };
        for length in (0..end).step_by(step).chain(end - 40..end) {
            let cut = message.get(..length).unwrap();
            let result = decrypt(&context, cut);
            assert!(
                result.is_err(),
                "{more:?}: cut at {length} of {}",
                message.len()
            );
        }
        assert!(decrypt(&context, &message).is_ok());
    }
    let signed = gpg.run(&["--sign", "-u", "partner", "-z", "0"], &content);
    for length in 0..signed.len() {
        let result = run_one(VERIFY, &context, "a.gpg", signed.get(..length).unwrap());
        assert!(
            result.is_err(),
            "signed: cut at {length} of {}",
            signed.len()
        );
    }
}

#[test]
fn h21_any_flipped_bit_of_the_ciphertext_is_an_error() {
    let (gpg, keys) = two_keys(ED25519);
    let context = context_with(keys);
    let content = text(200);
    let message = gpg.run(
        &["--encrypt", "--sign", "-u", "partner", "-r", "ours"],
        &content,
    );
    for position in 0..message.len() {
        let mut flipped = message.clone();
        flipped[position] ^= 1 << (position % 8);
        if let Ok(out) = decrypt(&context, &flipped) {
            assert!(
                out[0].content == content,
                "byte {position} changes the content"
            );
            assert!(position < 16, "byte {position} is not noticed");
        }
    }
}

#[test]
fn h21_what_follows_a_message_or_precedes_it_is_an_error() {
    let (gpg, keys) = two_keys(ED25519);
    let context = context_with(keys);
    for more in [&[][..], &["--armor"]] {
        let base = ["--encrypt", "--sign", "-u", "partner", "-r", "ours"];
        let message = gpg.run(&[&base[..], more].concat(), b"content");
        for garbage in [&b"x"[..], b"\x00\x00", &message] {
            let result = decrypt(&context, &[message.as_slice(), garbage].concat());
            assert!(result.is_err(), "{more:?} {garbage:02x?}");
        }
    }
}

#[test]
fn h22_only_who_is_listed_may_have_signed() {
    let (gpg, keys) = two_keys(ED25519);
    gpg.generate(ED25519, "stranger", &[], "%no-protection");
    let context = context_with(keys);
    let sign_as = |name: &str| {
        gpg.run(
            &["--encrypt", "--sign", "-u", name, "-r", "ours"],
            b"content",
        )
    };
    assert!(decrypt(&context, &sign_as("partner")).is_ok());
    let fault_of = |message: &[u8]| fault(decrypt(&context, message));
    assert!(matches!(
        fault_of(&sign_as("stranger")),
        CryptoFault::UnknownSigner(_)
    ));
    let unsigned = gpg.run(&["--encrypt", "-r", "ours"], b"content");
    assert_eq!(fault_of(&unsigned), CryptoFault::NotSigned);
    // Both have signed: one of them counts.
    let both = [
        "--encrypt",
        "--sign",
        "-u",
        "stranger",
        "-u",
        "partner",
        "-r",
        "ours",
    ];
    assert!(decrypt(&context, &gpg.run(&both, b"content")).is_ok());
    // A signature alone does not encrypt, and encryption alone does not sign.
    let signed = gpg.run(&["--sign", "-u", "partner"], b"content");
    assert_eq!(fault_of(&signed), CryptoFault::NotEncrypted);
    let result = run_one(
        VERIFY,
        &context,
        "a",
        &gpg.run(&["--sign", "-u", "stranger"], b"x"),
    );
    assert!(matches!(fault(result), CryptoFault::UnknownSigner(_)));
    let literal = gpg.run(&["--store", "-z", "0"], b"content");
    assert_eq!(
        fault(run_one(VERIFY, &context, "a", &literal)),
        CryptoFault::NotSigned
    );
}

#[test]
fn h22_a_signature_over_other_content_or_with_a_broken_hash_is_refused() {
    let (gpg, keys) = two_keys(RSA);
    let context = context_with(keys);
    let signed = gpg.run(
        &["--sign", "-u", "partner", "-z", "0"],
        b"pay 100 to partner",
    );
    let position = signed
        .windows(3)
        .position(|window| window == b"100")
        .unwrap();
    let mut changed = signed.clone();
    changed[position] = b'9';
    let result = run_one(VERIFY, &context, "a", &changed);
    assert!(matches!(fault(result), CryptoFault::BadSignature(_)));
    let weak = ["--sign", "-u", "partner", "--digest-algo", "SHA1"];
    let result = run_one(VERIFY, &context, "a", &gpg.run(&weak, b"x"));
    assert!(matches!(fault(result), CryptoFault::SignatureRefused(_, _)));
    let future = [
        "--faked-system-time",
        "20400101T000000",
        "--sign",
        "-u",
        "partner",
    ];
    let result = run_one(VERIFY, &context, "a", &gpg.run(&future, b"x"));
    assert!(matches!(fault(result), CryptoFault::SignatureRefused(_, _)));
}

#[test]
fn h22_a_message_for_others_or_without_protection_is_refused() {
    let (gpg, keys) = two_keys(ED25519);
    let context = context_with(keys);
    let others = gpg.run(&["--encrypt", "-r", "partner"], b"content");
    assert!(matches!(
        fault(run_one(DECRYPT, &context, "a", &others)),
        CryptoFault::NotForUs(_)
    ));
    let passphrase = gpg.run(&["--passphrase", "x", "--symmetric"], b"content");
    assert_eq!(
        fault(run_one(DECRYPT, &context, "a", &passphrase)),
        CryptoFault::PassphraseMessage
    );
    // The packet of the session key, and behind it one without protection (packet type 9).
    let ours = gpg.run(&["--encrypt", "-r", "ours"], b"content");
    assert_eq!(ours[0], 0x84, "an old packet with a short length");
    let session_key = ours.get(..2 + usize::from(ours[1])).unwrap();
    let unprotected = [session_key, &[0xc9, 40], &[7; 40]].concat();
    assert_eq!(
        fault(run_one(DECRYPT, &context, "a", &unprotected)),
        CryptoFault::NoIntegrity
    );
}

#[test]
fn h22_expired_and_revoked_keys_are_refused_by_name() {
    let gpg = Gpg::new();
    gpg.generate(ED25519, "ours", &[], "%no-protection");
    let past = ["--faked-system-time", "20200101T000000"];
    gpg.generate(ED25519, "partner", &past, "Expire-Date: 30\n%no-protection");
    let sign = ["--encrypt", "--sign", "-u", "partner", "-r", "ours"];
    // Encrypting in the past needs our key then, so it is signed in two steps.
    let signed = gpg.run(
        &[&past[..], &["--sign", "-u", "partner"]].concat(),
        b"content",
    );
    let keys = |partner: Vec<u8>| {
        Keys::new()
            .with_secret("our-key", Secret::new(gpg.secret("ours")))
            .with_file("partner.asc", partner)
    };
    let context = context_with(keys(gpg.public("partner")));
    assert!(matches!(
        fault(run_one(VERIFY, &context, "a", &signed)),
        CryptoFault::KeyExpired(_)
    ));
    let encrypt = "[{ encrypt: { pgp: { recipients: [partner.asc] } } }]";
    let error = run_one(encrypt, &context, "a", b"content").unwrap_err();
    let is_expired = |fault: &CryptoFault| matches!(fault, CryptoFault::KeyExpired(_));
    assert!(
        matches!(&error, StepError::Key { fault: KeyFault::Key(fault), .. } if is_expired(fault)),
        "{error:?}"
    );

    gpg.generate(ED25519, "revoked", &[], "%no-protection");
    let sign: Vec<&str> = sign
        .iter()
        .map(|word| if *word == "partner" { "revoked" } else { *word })
        .collect();
    let message = gpg.run(&sign, b"content");
    let before = context_with(keys(gpg.public("revoked")));
    assert!(run_one(DECRYPT_SIGNED, &before, "a", &message).is_ok());
    revoke(&gpg, "revoked");
    let after = context_with(keys(gpg.public("revoked")));
    let result = run_one(DECRYPT_SIGNED, &after, "a", &message);
    assert!(matches!(fault(result), CryptoFault::KeyRevoked(_)));
    assert!(matches!(
        run_one(encrypt, &after, "a", b"x"),
        Err(StepError::Key { .. })
    ));
}

#[test]
fn h20_garbage_armor_without_end_and_bombs_are_errors() {
    let (gpg, keys) = two_keys(ED25519);
    let context = context_with(keys);
    for garbage in [
        &b""[..],
        b"garbage",
        &[0xff; 5000],
        &[0x00; 5000],
        &[0xcb; 5000],
        b"-----BEGIN PGP MESSAGE-----",
        b"-----BEGIN PGP MESSAGE-----\n\n",
        b"-----BEGIN PGP MESSAGE-----\n\nhQEMA",
        b"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\ntext\n",
        b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n",
        // Session keys of an unknown version, encrypted data of an unknown version.
        b"\xc1\x02\x63\x00",
        b"\xd2\x05\x63\x00\x00\x00\x00",
    ] {
        for yaml in [DECRYPT, DECRYPT_SIGNED, VERIFY] {
            let result = run_one(yaml, &context, "a", garbage);
            assert!(
                matches!(result, Err(StepError::Crypto { .. })),
                "{garbage:02x?}: {result:?}"
            );
        }
    }
    let bomb = gpg.run(&["--encrypt", "-r", "ours", "-z", "9"], &vec![0; 40 << 20]);
    for (limits, option) in [
        ("max_output: 1MiB", "max_output"),
        ("max_ratio: 20", "max_ratio"),
    ] {
        let yaml = format!("[{{ decrypt: {{ pgp: our-key, {limits} }} }}]");
        let fault = fault(run_one(&yaml, &context, "a", &bomb));
        assert!(
            matches!(fault, CryptoFault::Limit { option: met, .. } if met == option),
            "{fault:?}"
        );
    }
    // Compressed again and again, as in a quine.
    let mut nested = gpg.run(&["--store", "-z", "6"], b"content");
    for _ in 0..8 {
        let mut deflate =
            flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::new(1));
        std::io::Write::write_all(&mut deflate, &nested).unwrap();
        let body = deflate.finish().unwrap();
        let length = u32::try_from(body.len() + 1).unwrap().to_be_bytes();
        nested = [&[0xc8, 0xff][..], &length, &[1], &body].concat();
    }
    let result = run_one(VERIFY, &context, "a", &nested);
    assert!(matches!(fault(result), CryptoFault::Limit { .. }));
}

#[test]
fn h20_a_message_for_a_thousand_recipients_is_read_or_refused_in_bounded_time() {
    let (gpg, keys) = two_keys(ED25519);
    let context = context_with(keys);
    let ours = gpg.run(&["--encrypt", "-r", "ours"], b"content");
    let others = gpg.run(&["--encrypt", "-r", "partner"], b"content");
    let session_key = others.get(..2 + usize::from(others[1])).unwrap();
    let crowd = [session_key.repeat(1000), ours].concat();
    let out = run_one(DECRYPT, &context, "a", &crowd).unwrap();
    assert_eq!(out[0].content, b"content");
}

#[test]
fn h22_the_name_inside_of_a_message_is_not_used() {
    let (gpg, keys) = two_keys(ED25519);
    let context = context_with(keys);
    let message = gpg.run(
        &[
            "--set-filename",
            "../../etc/passwd",
            "--encrypt",
            "-r",
            "ours",
        ],
        b"content",
    );
    let out = run_one(DECRYPT, &context, "d/a.csv.pgp", &message).unwrap();
    assert_eq!(out[0].path, "d/a.csv");
}

#[test]
fn keys_that_are_none_are_named() {
    let keys = Keys::new()
        .with_secret("our-key", Secret::new(b"no key".to_vec()))
        .with_file("partner.asc", b"no key".to_vec());
    let context = context_with(keys);
    for (yaml, name) in [
        (DECRYPT, "our-key"),
        (VERIFY, "partner.asc"),
        (
            "[{ encrypt: { pgp: { recipients: [missing.asc] } } }]",
            "missing.asc",
        ),
    ] {
        let error = knarr_steps::Recipe::new(&steps(yaml), &context).unwrap_err();
        assert!(
            matches!(&error, StepError::Key { name: at, .. } if at == name),
            "{error:?}"
        );
    }
}

#[test]
fn h20_padding_behind_a_message_is_bounded() {
    let (gpg, keys) = two_keys(ED25519);
    let context = context_with(keys);
    let signed = gpg.run(&["--sign", "-u", "partner", "-z", "0"], b"content");
    for (bytes, is_accepted) in [(100, true), (8 << 20, false)] {
        let length = u32::try_from(bytes).unwrap().to_be_bytes();
        let padded = [&signed[..], &[0xd5, 0xff], &length, &vec![0; bytes]].concat();
        let result = run(VERIFY, &context, &[("a", &padded)], 65_536);
        assert_eq!(result.is_ok(), is_accepted, "{bytes}: {:?}", result.err());
    }
}
