//! H-25: secrets are readable with the key only, and are nowhere to be seen.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use knarr_store::secrets::{KeySource, SecretError, SecretValue, Secrets};
use rusqlite::Connection;

use crate::fixture::Fixture;

const SENTINEL: &str = "sentinel-0d9f2c-of-the-secret";

fn value(text: &str) -> SecretValue {
    SecretValue::new(text.as_bytes().to_vec())
}

fn secrets(fixture: &Fixture) -> (Secrets, std::path::PathBuf) {
    let key = fixture.directory.path().join("config/secret.key");
    (
        Secrets::new(fixture.store.clone(), KeySource::File(key.clone())),
        key,
    )
}

fn contains(directory: &Path, needle: &[u8]) -> bool {
    std::fs::read_dir(directory).unwrap().any(|entry| {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        bytes.windows(needle.len()).any(|window| window == needle)
    })
}

#[test]
fn h25_a_secret_reads_back_and_is_nowhere_in_the_clear() {
    let fixture = Fixture::new();
    let (secrets, key) = secrets(&fixture);
    secrets.set("partner-password", &value(SENTINEL)).unwrap();
    secrets.set("other", &value("short")).unwrap();
    assert_eq!(
        secrets.get("partner-password").unwrap().as_text(),
        Some(SENTINEL)
    );
    assert_eq!(key.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let state = fixture.state();
    assert!(
        contains(&state, b"partner-password"),
        "the files are looked at"
    );
    assert!(!contains(&state, SENTINEL.as_bytes()));
    let key = std::fs::read(&key).unwrap();
    assert!(!contains(&state, &key[..64]));
    let names: Vec<_> = secrets
        .list()
        .unwrap()
        .into_iter()
        .map(|info| info.name)
        .collect();
    assert_eq!(names, ["other", "partner-password"]);
    let Fixture {
        store, directory, ..
    } = fixture;
    drop((store, secrets));
    assert!(
        !contains(&state, SENTINEL.as_bytes()),
        "after the log came home"
    );
    drop(directory);
}

#[test]
fn h25_nothing_shows_a_secret() {
    let fixture = Fixture::new();
    let (secrets, key) = secrets(&fixture);
    let secret = value(SENTINEL);
    secrets.set("name", &secret).unwrap();
    let key = std::fs::read_to_string(key).unwrap();
    let given = KeySource::Given(value(key.trim()));
    for text in [
        format!("{secret:?}"),
        format!("{secrets:?}"),
        format!("{given:?}"),
    ] {
        assert!(
            !text.contains("sentinel") && !text.contains(key.trim()),
            "{text}"
        );
        assert!(
            !text.contains(&format!("{:?}", SENTINEL.as_bytes())),
            "{text}"
        );
    }
}

#[test]
fn a_secret_is_replaced_and_removed() {
    let fixture = Fixture::new();
    let (secrets, _) = secrets(&fixture);
    secrets.set("name", &value("old")).unwrap();
    secrets.set("name", &value("new")).unwrap();
    assert_eq!(secrets.get("name").unwrap().as_text(), Some("new"));
    secrets.remove("name").unwrap();
    assert!(matches!(
        secrets.get("name"),
        Err(SecretError::Missing { .. })
    ));
    assert!(matches!(
        secrets.remove("name"),
        Err(SecretError::Missing { .. })
    ));
    for name in ["", "a b", "../x", &"x".repeat(200), "a\nb"] {
        assert!(
            matches!(
                secrets.set(name, &value("x")),
                Err(SecretError::Name { .. })
            ),
            "{name}"
        );
    }
    let long = SecretValue::new(vec![0; 70_000]);
    assert!(matches!(
        secrets.set("long", &long),
        Err(SecretError::TooLong { .. })
    ));
}

#[test]
fn h25_a_key_that_others_can_read_is_refused() {
    let fixture = Fixture::new();
    let (secrets, key) = secrets(&fixture);
    secrets.set("name", &value("x")).unwrap();
    for mode in [0o644, 0o640, 0o660] {
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(mode)).unwrap();
        let error = secrets.get("name").unwrap_err();
        assert!(
            matches!(error, SecretError::Exposed { .. }),
            "{mode:o}: {error:?}"
        );
        assert!(matches!(
            secrets.set("name", &value("y")),
            Err(SecretError::Exposed { .. })
        ));
    }
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o440)).unwrap();
    let credential = Secrets::new(fixture.store.clone(), KeySource::Credential(key.clone()));
    assert_eq!(credential.get("name").unwrap().as_text(), Some("x"));
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o444)).unwrap();
    assert!(matches!(
        credential.get("name"),
        Err(SecretError::Exposed { .. })
    ));
}

#[test]
fn a_wrong_a_missing_and_a_broken_key_are_told_apart() {
    let fixture = Fixture::new();
    let (secrets, key) = secrets(&fixture);
    secrets.set("name", &value("x")).unwrap();
    let with = |text: &str| Secrets::new(fixture.store.clone(), KeySource::Given(value(text)));
    let digits = std::fs::read_to_string(&key).unwrap();
    assert_eq!(
        with(&digits.to_uppercase()).get("name").unwrap().as_text(),
        Some("x")
    );
    let wrong = with(&"0".repeat(64)).get("name").unwrap_err();
    assert!(matches!(wrong, SecretError::WrongKey { .. }), "{wrong:?}");
    for broken in ["", "zz", &"g".repeat(64), &digits.repeat(2)] {
        let error = with(broken).get("name").unwrap_err();
        assert!(matches!(error, SecretError::NotAKey { .. }), "{error:?}");
    }
    std::fs::remove_file(&key).unwrap();
    assert!(matches!(
        secrets.get("name"),
        Err(SecretError::NoKey { .. })
    ));
    let set = secrets.set("another", &value("y"));
    assert!(
        matches!(set, Err(SecretError::NoKey { .. })),
        "a lost key is not replaced: {set:?}"
    );
    assert!(!key.exists());
}

#[test]
fn a_secret_that_was_changed_or_put_under_another_name_is_refused() {
    let fixture = Fixture::new();
    let (secrets, _) = secrets(&fixture);
    secrets.set("a", &value("secret of a")).unwrap();
    secrets.set("b", &value("secret of b")).unwrap();
    let connection = Connection::open(fixture.state().join("knarr.db")).unwrap();
    connection
        .execute_batch(
            "UPDATE secrets SET (nonce, ciphertext) = \
             (SELECT nonce, ciphertext FROM secrets WHERE name = 'b') WHERE name = 'a'; \
             UPDATE secrets SET ciphertext = substr(ciphertext, 1, 5) WHERE name = 'b';",
        )
        .unwrap();
    for name in ["a", "b"] {
        let error = secrets.get(name).unwrap_err();
        assert!(matches!(error, SecretError::Damaged { .. }), "{error:?}");
    }
}

#[test]
fn two_that_set_the_first_secret_at_once_make_one_key() {
    for _ in 0..5 {
        let fixture = Fixture::new();
        let (first, _) = secrets(&fixture);
        let second_store = crate::fixture::open(&fixture.state());
        let (_, key) = secrets(&fixture);
        let second = Secrets::new(second_store, KeySource::File(key));
        std::thread::scope(|scope| {
            for (name, secrets) in [("a", &first), ("b", &second)] {
                scope.spawn(move || secrets.set(name, &value(name)).unwrap());
            }
        });
        for name in ["a", "b"] {
            assert_eq!(first.get(name).unwrap().as_text(), Some(name));
        }
    }
}
