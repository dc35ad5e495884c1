//! How the configuration writes steps.

use knarr_steps::{DecompressOptions, StepSpec, StepSummary, Unrecognised};

fn steps(yaml: &str) -> Result<Vec<StepSpec>, String> {
    serde_saphyr::from_str(yaml).map_err(|error| error.to_string())
}

#[test]
fn a_step_is_a_bare_name_or_a_name_with_options() {
    for yaml in ["[decompress]", "- decompress:\n", "- decompress: {}\n"] {
        assert_eq!(steps(yaml).unwrap(), [StepSpec::decompress()], "{yaml}");
    }
    let options = DecompressOptions {
        max_output: 10 << 30,
        max_ratio: 1000,
        max_memory: 64_000_000,
        unrecognised: Unrecognised::Fail,
    };
    let yaml = "- decompress: { max_output: 10GiB, max_ratio: 1000, max_memory: 64 MB, unrecognised: fail }";
    assert_eq!(steps(yaml).unwrap(), [StepSpec::Decompress(options)]);
    let yaml = "- decompress:\n    max_output: 4096\n";
    let options = DecompressOptions {
        max_output: 4096,
        ..DecompressOptions::default()
    };
    assert_eq!(steps(yaml).unwrap(), [StepSpec::Decompress(options)]);
}

#[test]
fn what_is_wrong_is_refused_and_named() {
    for (yaml, says) in [
        ("[decompres]", "decompress"),
        ("- decompres: {}", "decompress"),
        ("- decompress: { max_outputs: 1 }", "max_output"),
        ("- decompress: { max_output: lots }", "10GiB"),
        ("- decompress: { max_output: -1 }", "10GiB"),
        ("- decompress: { max_ratio: 0 }", "max_ratio"),
        ("- decompress: { unrecognised: maybe }", "pass"),
        ("[{}]", "a step"),
        ("[7]", "a step"),
    ] {
        let error = steps(yaml).unwrap_err();
        assert!(error.contains(says), "{yaml}: {error}");
    }
}

#[test]
fn what_is_stored_as_json_is_read_back_the_same() {
    let spec = StepSpec::Decompress(DecompressOptions {
        max_output: 1 << 40,
        ..DecompressOptions::default()
    });
    let json = serde_json::to_string(&spec).unwrap();
    assert_eq!(
        json,
        r#"{"decompress":{"max_output":1099511627776,"max_ratio":2000,"max_memory":134217728,"unrecognised":"pass"}}"#
    );
    assert_eq!(serde_json::from_str::<StepSpec>(&json).unwrap(), spec);

    let summary = StepSummary {
        format: None,
        input_bytes: 1,
        output_bytes: 1,
        members: 0,
        note: None,
    };
    let json = serde_json::to_string(&summary).unwrap();
    assert_eq!(
        json,
        r#"{"format":null,"input_bytes":1,"output_bytes":1,"members":0}"#
    );
    assert_eq!(serde_json::from_str::<StepSummary>(&json).unwrap(), summary);
}

#[test]
fn the_schema_knows_both_forms_and_every_option() {
    let schema = serde_json::to_value(schemars::schema_for!(StepSpec)).unwrap();
    assert_eq!(schema["oneOf"][0]["const"], "decompress");
    let options = &schema["$defs"]["DecompressOptions"];
    assert_eq!(options["additionalProperties"], false);
    for option in ["max_output", "max_ratio", "max_memory", "unrecognised"] {
        assert!(
            options["properties"][option].is_object(),
            "{option} in {schema}"
        );
    }
    assert!(options["required"].is_null(), "every option has a default");
}

#[test]
fn every_step_can_be_written_and_is_stored_the_same() {
    for (yaml, name) in [
        ("[compress]", "compress"),
        ("[{ compress: xz }]", "compress"),
        ("[{ compress: { format: zstd, level: 19 } }]", "compress"),
        ("[extract]", "extract"),
        (
            "[{ extract: { max_output: 1GiB, max_entries: 10, links: refuse } }]",
            "extract",
        ),
        ("[archive]", "archive"),
        ("[{ archive: zip }]", "archive"),
        (
            "[{ archive: { format: tar.gz, name: out/all.tar.gz, level: 9 } }]",
            "archive",
        ),
        (
            "[{ decrypt: { pgp: our-key, signed_by: [partner.asc] } }]",
            "decrypt",
        ),
        ("[{ decrypt: { age: { identity: our-age } } }]", "decrypt"),
        ("[{ verify: { signed_by: [partner.asc] } }]", "verify"),
        (
            "[{ encrypt: { pgp: { recipients: [p.asc], sign_with: our-key } } }]",
            "encrypt",
        ),
        (
            "[{ encrypt: { age: { recipients: [age1x, team.txt] }, encoding: armor } }]",
            "encrypt",
        ),
        (
            "[{ sign: { pgp: our-key, passphrase: our-pass, mode: detached } }]",
            "sign",
        ),
        ("[checksum]", "checksum"),
        ("[{ checksum: md5 }]", "checksum"),
        ("[{ checksum: { algorithm: sha512 } }]", "checksum"),
    ] {
        let step = steps(yaml)
            .unwrap_or_else(|error| panic!("{yaml}: {error}"))
            .remove(0);
        assert_eq!(step.name(), name, "{yaml}");
        let json = serde_json::to_string(&step).unwrap();
        assert_eq!(
            serde_json::from_str::<StepSpec>(&json).unwrap(),
            step,
            "{json}"
        );
    }
}

#[test]
fn what_makes_no_sense_is_refused_with_what_would() {
    for (yaml, says) in [
        ("[decrypt]", "keys"),
        ("[{ decrypt: {} }]", "pgp: name-of-a-secret"),
        ("[{ decrypt: { pgp: a, age: { identity: b } } }]", "either"),
        (
            "[{ decrypt: { age: { identity: b }, signed_by: [c] } }]",
            "age knows neither",
        ),
        ("[{ decrypt: { pgp: a, signd_by: [b] } }]", "signed_by"),
        ("[{ verify: { signed_by: [] } }]", "names no key"),
        ("[{ encrypt: { pgp: { recipients: [] } } }]", "nobody"),
        ("[{ encrypt: { age: { recipients: [] } } }]", "nobody"),
        ("[{ encrypt: { encoding: armor } }]", "either"),
        (
            "[{ encrypt: { pgp: { recipients: [a], passphrase: b } } }]",
            "sign_with",
        ),
        ("[{ compress: lzma }]", "zstd"),
        ("[{ compress: { format: gzip, level: 0 } }]", "1 to 9"),
        ("[{ archive: rar }]", "tar.zst"),
        ("[{ archive: { format: tar, level: 3 } }]", "not compressed"),
        ("[{ archive: { name: ../x.zip } }]", "`..`"),
        ("[{ checksum: crc32 }]", "sha256"),
        ("[{ extract: { links: keep } }]", "inside"),
    ] {
        let error = steps(yaml).unwrap_err();
        assert!(error.contains(says), "{yaml}: {error}");
    }
}

#[test]
fn h25_a_step_refers_to_keys_by_name_and_says_which() {
    let yaml =
        "[{ encrypt: { pgp: { recipients: [a.asc, b.asc], sign_with: k, passphrase: p } } }]";
    let references = steps(yaml).unwrap().remove(0).references();
    assert_eq!(references.secrets, ["k", "p"]);
    assert_eq!(references.files, ["a.asc", "b.asc"]);
    let yaml = "[{ encrypt: { age: { recipients: [age1qqq, team.txt] } } }]";
    let references = steps(yaml).unwrap().remove(0).references();
    assert_eq!(
        (references.secrets.len(), references.files),
        (0, vec!["team.txt".to_owned()])
    );
    assert_eq!(
        StepSpec::extract().references(),
        knarr_steps::References::default()
    );
}

#[test]
fn every_example_of_the_documentation_can_be_read() {
    let text = include_str!("../../../../docs/steps.md");
    let examples: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("steps: "))
        .collect();
    assert!(examples.len() > 15, "{}", examples.len());
    for example in examples {
        steps(example).unwrap_or_else(|error| panic!("{example}: {error}"));
    }
}
