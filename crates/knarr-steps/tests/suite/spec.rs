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
