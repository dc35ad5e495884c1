//! Several steps one after another, each for one layer of compression.

use knarr_steps::{Format, MAX_STEPS, Pipeline, StepError, StepSpec, StepSummary};

use crate::files::{context, drive, path};
use crate::support::{compress, text};

/// The name, the content and what each step did, of a file that goes through so many steps in chunks of 1000 bytes.
type Outcome = Result<(String, Vec<u8>, Vec<StepSummary>), StepError>;

fn run(count: usize, name: &str, content: &[u8]) -> Outcome {
    let steps = vec![StepSpec::decompress(); count];
    let pipeline = Pipeline::new(&steps, &context())?;
    let head = knarr_steps::Head::file(path(name));
    let (outputs, summaries) = drive(pipeline, vec![(head, content)], 1000)?;
    let [output] = <[_; 1]>::try_from(outputs).unwrap_or_else(|_| panic!("one file"));
    let summaries = summaries.into_iter().map(|(_, summary)| summary);
    Ok((output.path, output.content, summaries.collect()))
}

#[test]
fn each_step_removes_one_layer_and_its_suffix() {
    let content = text(900_000);
    let whole = compress(Format::Gzip, &compress(Format::Zstd, &content));
    let name = "in/a.csv.zst.gz";

    let (path, once, _) = run(1, name, &whole).unwrap();
    assert!(once == compress(Format::Zstd, &content));
    assert_eq!(path, "in/a.csv.zst");

    let (path, twice, summaries) = run(2, name, &whole).unwrap();
    assert!(twice == content);
    assert_eq!(path, "in/a.csv");
    assert_eq!(summaries[1].output_bytes, 900_000);
    let formats: Vec<_> = summaries.iter().map(|summary| summary.format).collect();
    assert_eq!(formats, [Some(Format::Gzip), Some(Format::Zstd)]);

    let (path, three_times, summaries) = run(3, name, &whole).unwrap();
    assert!(three_times == content);
    assert_eq!(path, "in/a.csv");
    assert_eq!(summaries[2].format, None);
}

#[test]
fn no_steps_change_nothing() {
    for content in [
        Vec::new(),
        text(700_000),
        compress(Format::Gzip, b"content"),
    ] {
        let (path, output, summaries) = run(0, "a.gz", &content).unwrap();
        assert!(output == content);
        assert_eq!(path, "a.gz");
        assert!(summaries.is_empty());
    }
}

#[test]
fn h13_a_truncated_file_is_seen_by_its_name_even_if_one_byte_is_left_of_it() {
    let whole = compress(Format::Gzip, b"content");
    for length in 0..whole.len() {
        let error = run(1, "x.csv.GZ", whole.get(..length).unwrap()).unwrap_err();
        assert_eq!(
            error,
            StepError::Truncated {
                format: Format::Gzip,
                offset: length as u64
            }
        );
    }
}

#[test]
fn h13_damage_in_an_inner_layer_voids_the_whole() {
    let inner = compress(Format::Bzip2, &text(5000));
    let cut = inner.get(..inner.len() - 1).unwrap();
    let error = run(2, "a.bz2.xz", &compress(Format::Xz, cut)).unwrap_err();
    assert!(
        matches!(
            error,
            StepError::Truncated {
                format: Format::Bzip2,
                ..
            }
        ),
        "{error:?}"
    );
}

#[test]
fn h12_the_number_of_steps_is_limited() {
    assert!(run(MAX_STEPS, "a", b"").is_ok());
    assert_eq!(
        run(MAX_STEPS + 1, "a", b"").unwrap_err(),
        StepError::TooManySteps {
            count: MAX_STEPS + 1
        }
    );
}

#[test]
fn h12_as_many_layers_as_steps_are_removed_and_no_more() {
    let mut layers = vec![b"content".to_vec()];
    for number in 0..=MAX_STEPS {
        let format = Format::ALL[number % Format::ALL.len()];
        layers.push(compress(format, layers.last().unwrap()));
    }
    let (_, output, _) = run(MAX_STEPS, "layers", layers.last().unwrap()).unwrap();
    assert!(output == layers[1], "one layer is left");
}
