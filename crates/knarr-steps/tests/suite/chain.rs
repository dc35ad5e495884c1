//! Several steps one after another.

use bytes::Bytes;
use knarr_steps::{CHUNK_BYTES, Chain, Format, MAX_STEPS, Pulled, StepError, StepSpec};

use crate::support::{compress, text};

/// Drives a chain over chunks of 1000 bytes.
fn run(chain: &mut Chain, content: &[u8]) -> Result<Vec<u8>, StepError> {
    let mut chunks = content.chunks(1000);
    let mut output = Vec::new();
    loop {
        match chain.pull()? {
            Pulled::Chunk(chunk) => {
                assert!(!chunk.is_empty() && chunk.len() <= CHUNK_BYTES);
                output.extend_from_slice(&chunk);
            }
            Pulled::NeedsInput => match chunks.next() {
                Some(chunk) => chain.feed(Bytes::copy_from_slice(chunk))?,
                None => chain.end(),
            },
            Pulled::Finished => return Ok(output),
        }
    }
}

fn steps(count: usize) -> Vec<StepSpec> {
    vec![StepSpec::decompress(); count]
}

#[test]
fn each_step_removes_one_layer_and_its_suffix() {
    let content = text(900_000);
    let whole = compress(Format::Gzip, &compress(Format::Zstd, &content));
    let name = b"in/a.csv.zst.gz";

    let mut once = Chain::new(&steps(1), name).unwrap();
    assert!(run(&mut once, &whole).unwrap() == compress(Format::Zstd, &content));
    assert_eq!(once.output_name(name), b"in/a.csv.zst");

    let mut twice = Chain::new(&steps(2), name).unwrap();
    assert!(run(&mut twice, &whole).unwrap() == content);
    assert_eq!(twice.output_name(name), b"in/a.csv");
    assert_eq!(twice.output_bytes(), 900_000);
    let formats: Vec<_> = twice
        .summaries()
        .iter()
        .map(|summary| summary.format)
        .collect();
    assert_eq!(formats, [Some(Format::Gzip), Some(Format::Zstd)]);

    let mut three_times = Chain::new(&steps(3), name).unwrap();
    assert!(run(&mut three_times, &whole).unwrap() == content);
    assert_eq!(three_times.output_name(name), b"in/a.csv");
    assert_eq!(three_times.summaries()[2].format, None);
}

#[test]
fn a_chain_without_steps_changes_nothing() {
    for content in [
        Vec::new(),
        text(700_000),
        compress(Format::Gzip, b"content"),
    ] {
        let mut chain = Chain::new(&[], b"a.gz").unwrap();
        assert!(run(&mut chain, &content).unwrap() == content);
        assert_eq!(chain.output_name(b"a.gz"), b"a.gz");
        assert_eq!(chain.output_bytes(), content.len() as u64);
        assert!(chain.summaries().is_empty());
    }
}

#[test]
fn h13_a_truncated_file_is_seen_by_its_name_even_if_one_byte_is_left_of_it() {
    let whole = compress(Format::Gzip, b"content");
    for length in 0..whole.len() {
        let mut chain = Chain::new(&steps(1), b"x.csv.GZ").unwrap();
        let error = run(&mut chain, whole.get(..length).unwrap()).unwrap_err();
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
    let mut chain = Chain::new(&steps(2), b"a.bz2.xz").unwrap();
    let error = run(&mut chain, &compress(Format::Xz, cut)).unwrap_err();
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
    assert!(Chain::new(&steps(MAX_STEPS), b"a").is_ok());
    let error = Chain::new(&steps(MAX_STEPS + 1), b"a").unwrap_err();
    assert_eq!(
        error,
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
    let mut chain = Chain::new(&steps(MAX_STEPS), b"layers").unwrap();
    let output = run(&mut chain, layers.last().unwrap()).unwrap();
    assert!(output == layers[1], "one layer is left");
}
