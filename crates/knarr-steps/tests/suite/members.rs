//! Files of several members, and the optional parts of the formats.

use flate2::{Compression, GzBuilder};
use knarr_steps::{Format, Limit, StepError};
use std::io::Write as _;

use crate::support::{compress, decompress, decompress_with, generous, text};

#[test]
fn all_members_of_a_file_come_out_one_after_another() {
    for format in Format::ALL {
        let parts = [text(300_000), Vec::new(), b"one more".to_vec(), text(5000)];
        let whole: Vec<u8> = parts
            .iter()
            .flat_map(|part| compress(format, part))
            .collect();
        let (output, summary) = decompress(&whole, Some(format)).unwrap();
        assert!(output == parts.concat(), "{format}");
        assert_eq!(summary.members, 4);
        assert_eq!(summary.input_bytes, whole.len() as u64);
        assert!(
            summary
                .to_string()
                .starts_with(&format!("{format}, 4 members, "))
        );
    }
}

#[test]
fn a_member_that_fills_the_output_buffer_exactly_is_followed_by_the_next() {
    for format in Format::ALL {
        for bytes in [32 << 10, (32 + 64) << 10, 256 << 10, 1 << 20] {
            let whole = [compress(format, &text(bytes)), compress(format, b"next")].concat();
            let (output, summary) = decompress(&whole, None).unwrap();
            assert!(
                output == [text(bytes), b"next".to_vec()].concat(),
                "{format} {bytes}"
            );
            assert_eq!(summary.members, 2);
        }
    }
}

#[test]
fn h12_only_one_layer_of_nested_compression_is_removed() {
    for outer in Format::ALL {
        let inner = compress(Format::Gzip, b"content");
        let (output, summary) = decompress(&compress(outer, &inner), None).unwrap();
        assert_eq!((output, summary.format), (inner, Some(outer)));
    }
}

#[test]
fn h13_a_second_member_that_is_cut_or_damaged_voids_the_file() {
    for format in Format::ALL {
        let first = compress(format, b"first");
        let second = compress(format, &text(400));
        let whole = [first.as_slice(), &second].concat();
        for length in first.len() + 1..whole.len() {
            let error = decompress(whole.get(..length).unwrap(), None).unwrap_err();
            assert_eq!(
                error,
                StepError::Truncated {
                    format,
                    offset: length as u64
                }
            );
        }
        let mut damaged = whole.clone();
        damaged[first.len() + second.len() / 2] ^= 1;
        assert!(decompress(&damaged, None).is_err(), "{format}");
    }
}

#[test]
fn h13_zero_padding_after_gzip_is_tolerated_and_nothing_may_follow_it() {
    let member = compress(Format::Gzip, b"content");
    let offset = member.len() as u64;
    for zeros in [1, 4, 511, 100_000] {
        let mut padded = member.clone();
        padded.resize(padded.len() + zeros, 0);
        let (output, summary) = decompress(&padded, None).unwrap();
        assert_eq!((output.as_slice(), summary.members), (&b"content"[..], 1));
        for follower in [b"x".to_vec(), member.clone()] {
            let error = decompress(&[padded.as_slice(), &follower].concat(), None).unwrap_err();
            let offset = offset + zeros as u64;
            assert_eq!(
                error,
                StepError::TrailingGarbage {
                    format: Format::Gzip,
                    offset
                }
            );
        }
    }
}

#[test]
fn h13_xz_padding_is_tolerated_in_fours_only_and_zstd_and_bzip2_have_none() {
    let stream = compress(Format::Xz, b"content");
    for zeros in 0..9_usize {
        let padding = vec![0; zeros];
        let offset = (stream.len() + zeros / 4 * 4) as u64;
        let wanted = StepError::TrailingGarbage {
            format: Format::Xz,
            offset,
        };
        match decompress(&[stream.as_slice(), &padding].concat(), None) {
            Ok((output, _)) => assert!(zeros.is_multiple_of(4) && output == b"content"),
            Err(error) => assert!(
                !zeros.is_multiple_of(4) && error == wanted,
                "{zeros}: {error}"
            ),
        }
        let between = [stream.as_slice(), &padding, &stream].concat();
        assert_eq!(
            decompress(&between, None).is_ok(),
            zeros.is_multiple_of(4),
            "{zeros}"
        );
    }
    for format in [Format::Zstd, Format::Bzip2] {
        let whole = [compress(format, b"content"), vec![0; 4]].concat();
        assert!(matches!(
            decompress(&whole, None),
            Err(StepError::TrailingGarbage { .. })
        ));
    }
}

#[test]
fn gzip_headers_with_every_optional_field_are_read() {
    for with_extra in [None, Some(Vec::new()), Some(vec![7; 70_000 % 65_536])] {
        for name in [None, Some("name.csv")] {
            for comment in [None, Some("a comment")] {
                let mut builder = GzBuilder::new();
                if let Some(extra) = with_extra.clone() {
                    builder = builder.extra(extra);
                }
                if let Some(name) = name {
                    builder = builder.filename(name);
                }
                if let Some(comment) = comment {
                    builder = builder.comment(comment);
                }
                let mut encoder = builder.write(Vec::new(), Compression::fast());
                encoder.write_all(b"content").unwrap();
                let whole = encoder.finish().unwrap();
                assert_eq!(decompress(&whole, None).unwrap().0, b"content");
            }
        }
    }
}

#[test]
fn h13_the_checksum_of_a_gzip_header_is_verified_and_reserved_flags_are_refused() {
    let mut encoder = GzBuilder::new().write(Vec::new(), Compression::fast());
    encoder.write_all(b"content").unwrap();
    let plain = encoder.finish().unwrap();
    let (header, body) = plain.split_at(10);
    let mut header = header.to_vec();
    header[3] |= 0b10;
    let mut crc = flate2::Crc::new();
    crc.update(&header);
    let [low, high, ..] = crc.sum().to_le_bytes();

    let right = [&header, &[low, high][..], body].concat();
    assert_eq!(decompress(&right, None).unwrap().0, b"content");
    let wrong = [&header, &[low, high ^ 1][..], body].concat();
    assert!(matches!(
        decompress(&wrong, None),
        Err(StepError::Corrupt { .. })
    ));
    for flag in [0x20, 0x40, 0x80] {
        let mut reserved = plain.clone();
        reserved[3] |= flag;
        assert!(matches!(
            decompress(&reserved, None),
            Err(StepError::Corrupt { .. })
        ));
    }
}

/// A zstd frame without content, with this window byte.
fn zstd_frame(window: u8) -> Vec<u8> {
    [&[0x28, 0xb5, 0x2f, 0xfd, 0, window][..], &[1, 0, 0]].concat()
}

#[test]
fn h12_a_zstd_window_beyond_the_memory_limit_is_refused_with_its_size() {
    let (output, summary) = decompress(&zstd_frame((27 - 10) << 3), None).unwrap();
    assert_eq!((output.len(), summary.members), (0, 1), "`--long=27` fits");
    for (window, wanted) in [
        ((27 - 10) << 3 | 1, (1 << 27) + (1 << 24)),
        ((31 - 10) << 3, 1 << 31),
    ] {
        let error = decompress(&zstd_frame(window), None).unwrap_err();
        let limit = Limit::Memory {
            allowed: 1 << 27,
            wanted: Some(wanted),
        };
        assert_eq!(
            error,
            StepError::LimitExceeded {
                format: Format::Zstd,
                offset: 6,
                limit
            }
        );
        assert!(error.to_string().contains("raise `max_memory`"), "{error}");
    }
}

#[test]
fn h12_an_xz_dictionary_beyond_the_memory_limit_is_refused() {
    let whole = compress(Format::Xz, &text(1000));
    let mut options = generous();
    options.max_memory = 100_000;
    let error = decompress_with(options, [&whole[..]], None).unwrap_err();
    let limit = Limit::Memory {
        allowed: 100_000,
        wanted: None,
    };
    assert!(
        matches!(error, StepError::LimitExceeded { limit: met, .. } if met == limit),
        "{error:?}"
    );
}

#[test]
fn a_zstd_frame_that_needs_a_dictionary_is_refused_by_its_number() {
    let frame = [&[0x28, 0xb5, 0x2f, 0xfd, 1, 0, 42][..], &[1, 0, 0]].concat();
    let error = decompress(&frame, None).unwrap_err();
    assert!(matches!(error, StepError::Unsupported { .. }), "{error:?}");
    assert!(error.to_string().contains("dictionary 42"), "{error}");
}

#[test]
fn h13_skippable_zstd_frames_are_skipped_wherever_they_stand_and_have_to_be_whole() {
    let skippable = |content: &[u8]| {
        let length = u32::try_from(content.len()).unwrap().to_le_bytes();
        [&[0x5c, 0x2a, 0x4d, 0x18][..], &length, content].concat()
    };
    let frame = compress(Format::Zstd, b"content");
    let whole = [
        skippable(b""),
        frame.clone(),
        skippable(b"index"),
        frame.clone(),
        skippable(&[7; 400_000]),
    ]
    .concat();
    let (output, summary) = decompress(&whole, None).unwrap();
    assert_eq!(
        (output.as_slice(), summary.members),
        (&b"contentcontent"[..], 2)
    );
    assert_eq!(summary.input_bytes, whole.len() as u64);

    let (output, summary) = decompress(&skippable(b"only"), None).unwrap();
    assert_eq!(
        (output.len(), summary.format, summary.members),
        (0, Some(Format::Zstd), 0)
    );
    for length in 4..skippable(b"only").len() {
        let cut = skippable(b"only");
        let error = decompress(cut.get(..length).unwrap(), None).unwrap_err();
        assert_eq!(
            error,
            StepError::Truncated {
                format: Format::Zstd,
                offset: length as u64
            }
        );
    }
}
