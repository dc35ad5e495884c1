//! Small files that expand to enormous ones.

use bytes::Bytes;
use knarr_steps::{
    CHUNK_BYTES, Decompress, DecompressOptions, Format, Limit, Pulled, RATIO_GRACE_BYTES,
    Step as _, StepError,
};

use crate::support::{Encoder, compress, decompress_with, generous, text};

const MIB: u64 = 1 << 20;
const BOMB_BYTES: u64 = 1024 * MIB;

/// What became of a bomb.
struct Explosion {
    result: Result<(), StepError>,
    /// Zero bytes that were compressed until then.
    compressed_bytes: u64,
    /// Output that was handed out until then.
    emitted_bytes: u64,
}

/// Compresses 1 GiB of zeros, only as fast as the step asks for it.
fn explode(format: Format, options: DecompressOptions) -> Explosion {
    let zeros = vec![0; 1 << 20];
    let mut encoder = Some(Encoder::new(format));
    let mut step = Decompress::new(options, Some(format));
    let (mut compressed_bytes, mut emitted_bytes) = (0, 0);
    let result = loop {
        match step.pull() {
            Ok(Pulled::Chunk(chunk)) => {
                assert!(chunk.len() <= CHUNK_BYTES);
                assert!(Some(&chunk[..]) == zeros.get(..chunk.len()));
                emitted_bytes += chunk.len() as u64;
            }
            Ok(Pulled::NeedsInput) if encoder.is_none() => step.end(),
            Ok(Pulled::NeedsInput) => {
                let mut fresh = Vec::new();
                while let Some(going) = &mut encoder
                    && fresh.is_empty()
                {
                    if compressed_bytes < BOMB_BYTES {
                        going.write(&zeros);
                        compressed_bytes += MIB;
                        fresh = going.take();
                    } else {
                        fresh = encoder.take().map(Encoder::finish).unwrap_or_default();
                    }
                }
                step.feed(Bytes::from(fresh)).unwrap();
            }
            Ok(Pulled::Finished) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    Explosion {
        result,
        compressed_bytes,
        emitted_bytes,
    }
}

#[test]
fn h12_a_bomb_stops_at_the_output_limit_long_before_its_end() {
    for format in Format::ALL {
        let explosion = explode(
            format,
            DecompressOptions {
                max_output: 10 * MIB,
                ..generous()
            },
        );
        let limit = Limit::Output { allowed: 10 * MIB };
        let error = explosion.result.unwrap_err();
        assert!(
            matches!(error, StepError::LimitExceeded { limit: met, .. } if met == limit),
            "{format}: {error:?}"
        );
        assert!(error.to_string().contains("raise `max_output`"), "{error}");
        assert!(
            explosion.emitted_bytes <= 10 * MIB,
            "{format}: {}",
            explosion.emitted_bytes
        );
        assert!(
            explosion.compressed_bytes <= 128 * MIB,
            "{format}: {}",
            explosion.compressed_bytes
        );
    }
}

#[test]
fn h12_a_bomb_stops_at_the_ratio_limit() {
    for format in Format::ALL {
        let options = DecompressOptions {
            max_ratio: 100,
            ..generous()
        };
        let explosion = explode(format, options);
        let error = explosion.result.unwrap_err();
        let StepError::LimitExceeded {
            limit:
                Limit::Ratio {
                    allowed: 100,
                    output_bytes,
                },
            offset,
            ..
        } = error
        else {
            panic!("{format}: {error:?}");
        };
        assert!(output_bytes > RATIO_GRACE_BYTES && output_bytes > offset * 100);
        assert!(
            explosion.emitted_bytes < output_bytes,
            "what breaks the limit is kept back"
        );
        assert!(explosion.emitted_bytes <= RATIO_GRACE_BYTES + MIB);
    }
}

#[test]
fn h12_a_gibibyte_of_output_flows_through_in_flat_memory() {
    let explosion = explode(Format::Zstd, generous());
    assert_eq!(explosion.result, Ok(()));
    assert_eq!(explosion.emitted_bytes, BOMB_BYTES);
    let peak_kib = peak_memory_kib();
    assert!(
        peak_kib < 256 << 10,
        "{peak_kib} KiB for one stream and its encoder"
    );
}

#[test]
fn h12_output_up_to_the_limit_passes_and_one_byte_more_does_not() {
    let content = text(600_000);
    for format in Format::ALL {
        let whole = compress(format, &content);
        let with_limit = |max_output| {
            let options = DecompressOptions {
                max_output,
                ..DecompressOptions::default()
            };
            decompress_with(options, [&whole[..]], None)
        };
        assert!(with_limit(600_000).is_ok(), "{format}");
        assert!(
            matches!(with_limit(599_999), Err(StepError::LimitExceeded { .. })),
            "{format}"
        );
        assert!(
            matches!(with_limit(0), Err(StepError::LimitExceeded { .. })),
            "{format}"
        );
    }
}

#[test]
fn h12_the_output_limit_counts_all_members_together() {
    for format in Format::ALL {
        let member = compress(format, &vec![0; 1 << 20]);
        let options = DecompressOptions {
            max_output: 10 * MIB,
            ..generous()
        };
        let members = |count| std::iter::repeat_n(member.as_slice(), count);
        assert!(
            decompress_with(options, members(10), None).is_ok(),
            "{format}"
        );
        let error = decompress_with(options, members(1000), None).unwrap_err();
        assert!(
            matches!(error, StepError::LimitExceeded { .. }),
            "{format}: {error:?}"
        );
    }
}

#[test]
fn h12_what_is_not_compressed_does_not_expand_and_meets_no_limit() {
    let options = DecompressOptions {
        max_output: 10,
        max_ratio: 1,
        ..DecompressOptions::default()
    };
    assert!(decompress_with(options, [&text(1000)[..]], None).is_ok());
}

/// The most memory this process had, as the kernel counts it.
fn peak_memory_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
