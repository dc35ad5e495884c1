//! The output does not depend on how the input was cut into chunks.

use bytes::Bytes;
use knarr_steps::{Decompress, DecompressOptions, Format, Pulled, Step as _, StepError};
use proptest::prelude::{Strategy, any, prop, prop_assert, prop_assert_eq, proptest};
use proptest::sample::Index;

use crate::support::{Outcome, compress, decompress, decompress_chunks, text};

/// The input, cut at these places.
fn cut<'a>(input: &'a [u8], places: &[Index]) -> Vec<&'a [u8]> {
    let mut positions: Vec<usize> = places
        .iter()
        .map(|place| place.index(input.len() + 1))
        .collect();
    positions.sort_unstable();
    let mut chunks = Vec::new();
    let mut start = 0;
    for position in positions {
        chunks.push(input.get(start..position).unwrap());
        start = position;
    }
    chunks.push(input.get(start..).unwrap());
    chunks
}

fn contents() -> impl Strategy<Value = Vec<u8>> {
    let runs = prop::collection::vec((any::<u8>(), 1..3000_usize), 0..40);
    runs.prop_map(|runs| {
        runs.into_iter()
            .flat_map(|(byte, times)| vec![byte; times])
            .collect()
    })
}

/// An outcome without the place of an error, which may be seen earlier or later.
fn kind(outcome: &Outcome) -> Result<&Vec<u8>, std::mem::Discriminant<StepError>> {
    outcome
        .as_ref()
        .map(|(output, _)| output)
        .map_err(std::mem::discriminant)
}

proptest! {
    #[test]
    fn any_split_of_the_input_gives_the_same_output(
        parts in prop::collection::vec(contents(), 1..4),
        format in prop::sample::select(&Format::ALL[..]),
        places in prop::collection::vec(any::<Index>(), 0..30),
    ) {
        let whole: Vec<u8> = parts.iter().flat_map(|part| compress(format, part)).collect();
        let (output, summary) = decompress_chunks(cut(&whole, &places), Some(format)).unwrap();
        prop_assert!(output == parts.concat());
        prop_assert_eq!(&summary, &decompress(&whole, None).unwrap().1);
        prop_assert_eq!(summary.members, parts.len() as u64);
    }

    #[test]
    fn any_split_of_a_damaged_input_fails_in_the_same_way(
        content in contents(),
        format in prop::sample::select(&Format::ALL[..]),
        damage in (any::<Index>(), any::<u8>()),
        kept in any::<Index>(),
        places in prop::collection::vec(any::<Index>(), 0..30),
    ) {
        let mut whole = compress(format, &content);
        let position = damage.0.index(whole.len());
        whole[position] = damage.1;
        whole.truncate(kept.index(whole.len()) + 1);
        for expected in [None, Some(format)] {
            let at_once = decompress(&whole, expected);
            let in_pieces = decompress_chunks(cut(&whole, &places), expected);
            prop_assert!(kind(&at_once) == kind(&in_pieces), "{at_once:?} {in_pieces:?}");
        }
    }

    #[test]
    fn any_bytes_are_passed_on_or_refused_and_never_a_panic(
        format in prop::sample::select(&Format::ALL[..]),
        keep in 0..20_usize,
        bytes in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        let mut content = compress(format, b"x");
        content.truncate(keep);
        content.extend_from_slice(&bytes);
        if let Ok((output, summary)) = decompress(&content, None) {
            prop_assert!(summary.format.is_some() || output == content);
        }
    }
}

#[test]
fn one_byte_at_a_time_and_empty_chunks_give_the_same_output() {
    let content = text(40_000);
    for format in Format::ALL {
        let whole = [compress(format, &content), compress(format, b"")].concat();
        let empty: &[u8] = &[];
        let chunks = whole
            .chunks(1)
            .flat_map(|byte| [empty; 20].into_iter().chain([byte]));
        let (output, summary) = decompress_chunks(chunks, Some(format)).unwrap();
        assert!(output == content, "{format}");
        assert_eq!(summary.members, 2);
    }
    let plain = b"\xfd7zXZ but no xz";
    assert_eq!(decompress_chunks(plain.chunks(1), None).unwrap().0, plain);
}

#[test]
fn a_step_that_is_fed_out_of_turn_says_so() {
    let fed = || Bytes::from_static(b"plain text that is not compressed");
    let mut step = Decompress::new(DecompressOptions::default(), None);
    step.feed(fed()).unwrap();
    assert!(matches!(step.feed(fed()), Err(StepError::OutOfTurn { .. })));
    assert_eq!(step.pull(), Ok(Pulled::Chunk(fed())));
    step.feed(fed()).unwrap();
    assert!(matches!(step.feed(fed()), Err(StepError::OutOfTurn { .. })));
    assert_eq!(step.pull(), Ok(Pulled::Chunk(fed())));
    assert_eq!(step.pull(), Ok(Pulled::NeedsInput));
    step.end();
    assert!(matches!(step.feed(fed()), Err(StepError::OutOfTurn { .. })));
    assert_eq!(step.pull(), Ok(Pulled::Finished));
}

#[test]
fn what_is_not_compressed_is_passed_on_without_a_copy() {
    let content = Bytes::from(text(1000));
    let mut step = Decompress::new(DecompressOptions::default(), None);
    step.feed(content.clone()).unwrap();
    let Pulled::Chunk(chunk) = step.pull().unwrap() else {
        panic!("no output");
    };
    assert_eq!(chunk.as_ptr(), content.as_ptr());
}
