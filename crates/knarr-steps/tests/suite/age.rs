//! age files, to and from the program age.

use std::path::Path;

use knarr_steps::{Context, CryptoFault, Keys, Secret, StepError};
use tempfile::TempDir;

use crate::files::{CHUNK_SIZES, contents, context_with, run, run_one};
use crate::programs::{output_of, run_in};
use crate::support::text;

const DECRYPT: &str = "[{ decrypt: { age: { identity: our-age } } }]";

/// A directory with our identity in `key.txt`, its recipient, and a context that knows both.
fn set_up() -> (TempDir, String, Context) {
    let directory = TempDir::new().unwrap();
    output_of(directory.path(), "age-keygen", &["-o", "key.txt"]);
    let identity = std::fs::read(directory.path().join("key.txt")).unwrap();
    let recipient = output_of(directory.path(), "age-keygen", &["-y", "key.txt"]);
    let recipient = String::from_utf8(recipient).unwrap().trim().to_owned();
    let keys = Keys::new()
        .with_secret("our-age", Secret::new(identity))
        .with_file(
            "team.txt",
            format!("# the team\n{recipient}\n").into_bytes(),
        );
    (directory, recipient, context_with(keys))
}

fn age(at: &Path, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    run_in(at, "age", arguments, input).unwrap_or_else(|error| panic!("{error}"))
}

fn fault<T: std::fmt::Debug>(result: Result<T, StepError>) -> CryptoFault {
    match result {
        Err(StepError::Crypto { fault, .. }) => fault,
        other => panic!("{other:?}"),
    }
}

#[test]
fn files_of_age_are_read_and_age_reads_ours() {
    let (directory, recipient, context) = set_up();
    let at = directory.path();
    for content in [Vec::new(), b"x".to_vec(), text(65_536), text(500_000)] {
        for more in [&[][..], &["-a"]] {
            let whole = age(
                at,
                &[&["-r", recipient.as_str()][..], more].concat(),
                &content,
            );
            let out = run_one(DECRYPT, &context, "d/a.csv.age", &whole).unwrap();
            assert!(contents(&out) == [("d/a.csv", content.as_slice())]);
        }
        for (recipients, encoding) in [(recipient.as_str(), "binary"), ("team.txt", "armor")] {
            let yaml = format!(
                "[{{ encrypt: {{ age: {{ recipients: [{recipients}] }}, encoding: {encoding} }} }}]"
            );
            let out = run_one(&yaml, &context, "a", &content).unwrap();
            assert!(out[0].path.starts_with("a.age"));
            assert!(age(at, &["-d", "-i", "key.txt"], &out[0].content) == content);
        }
    }
}

#[test]
fn a_round_trip_works_with_chunks_of_any_size() {
    let (_directory, recipient, context) = set_up();
    for chunk_bytes in CHUNK_SIZES {
        let content = text(if chunk_bytes == 65_536 { 900_000 } else { 2000 });
        for encoding in ["binary", "armor"] {
            let yaml = format!(
                "[{{ encrypt: {{ age: {{ recipients: [{recipient}] }}, encoding: {encoding} }} }}, \
                 {{ decrypt: {{ age: {{ identity: our-age }} }} }}]"
            );
            let out = run(&yaml, &context, &[("a", &content)], chunk_bytes).unwrap();
            assert!(contents(&out) == [("a", content.as_slice())]);
        }
    }
}

#[test]
fn h21_a_file_cut_at_any_byte_or_changed_or_appended_to_never_finishes() {
    let (directory, recipient, context) = set_up();
    for more in [&[][..], &["-a"]] {
        let whole = age(
            directory.path(),
            &[&["-r", recipient.as_str()][..], more].concat(),
            &text(100),
        );
        let end = whole.trim_ascii_end().len();
        for length in 0..end {
            let result = run_one(DECRYPT, &context, "a", whole.get(..length).unwrap());
            assert!(result.is_err(), "{more:?}: cut at {length}");
        }
        for position in 0..end {
            let mut flipped = whole.clone();
            flipped[position] ^= 1 << (position % 8);
            let result = run_one(DECRYPT, &context, "a", &flipped);
            if let Ok(out) = result {
                assert!(out[0].content == text(100), "{more:?}: byte {position}");
            }
        }
        for garbage in [&b"x"[..], b"\0", &whole] {
            let result = run_one(
                DECRYPT,
                &context,
                "a",
                &[whole.as_slice(), garbage].concat(),
            );
            assert!(result.is_err(), "{more:?}: {garbage:02x?}");
        }
    }
}

#[test]
fn h23_files_for_others_with_passphrases_or_plugins_are_refused() {
    let (directory, recipient, context) = set_up();
    let at = directory.path();
    output_of(at, "age-keygen", &["-o", "other.txt"]);
    let other = output_of(at, "age-keygen", &["-y", "other.txt"]);
    let other = String::from_utf8(other).unwrap();
    let whole = age(at, &["-r", other.trim()], b"content");
    assert!(matches!(
        fault(run_one(DECRYPT, &context, "a", &whole)),
        CryptoFault::NotForUs(_)
    ));

    let scrypt = b"age-encryption.org/v1\n-> scrypt AAAAAAAAAAAAAAAAAAAAAA 30\n\
        AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n--- AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n0123456789abcdef0123456789";
    assert_eq!(
        fault(run_one(DECRYPT, &context, "a", scrypt)),
        CryptoFault::PassphraseMessage
    );

    for recipients in ["age1yubikey1qqqq", "age1../../bin/sh1qqq", "missing.txt"] {
        let yaml = format!("[{{ encrypt: {{ age: {{ recipients: ['{recipients}'] }} }} }}]");
        let result = run_one(&yaml, &context, "a", b"x");
        assert!(matches!(result, Err(StepError::Key { .. })), "{result:?}");
    }
    let plugin = b"AGE-PLUGIN-../../BIN/SH-1QQQQ".to_vec();
    let with_plugin = context_with(Keys::new().with_secret("our-age", Secret::new(plugin)));
    let whole = age(at, &["-r", &recipient], b"content");
    let error = run_one(DECRYPT, &with_plugin, "a", &whole).unwrap_err();
    assert!(
        matches!(error, StepError::Key { .. }) && !format!("{error:?}").contains("BIN"),
        "{error:?}"
    );
}
