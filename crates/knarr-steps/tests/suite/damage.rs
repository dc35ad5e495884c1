//! Files that arrive cut, flipped, mislabelled or with something behind them.

use knarr_steps::{DecompressOptions, Format, StepError, Unrecognised};

use crate::support::{compress, decompress, decompress_with, text};

/// The bytes by which a format is recognised.
fn magic_bytes(format: Format) -> usize {
    match format {
        Format::Gzip => 2,
        Format::Zstd | Format::Bzip2 => 4,
        Format::Xz => 6,
    }
}

#[test]
fn h13_a_file_cut_at_any_byte_is_never_taken_for_complete() {
    for format in Format::ALL {
        for content in [text(3000), b"x".to_vec(), Vec::new()] {
            let whole = compress(format, &content);
            for length in 0..whole.len() {
                let cut = whole.get(..length).unwrap();
                let error = decompress(cut, Some(format)).unwrap_err();
                let wanted = StepError::Truncated {
                    format,
                    offset: length as u64,
                };
                assert_eq!(error, wanted, "{format} cut at {length}");
            }
            assert_eq!(decompress(&whole, Some(format)).unwrap().0, content);
        }
    }
}

#[test]
fn h13_without_a_telling_name_a_cut_is_seen_as_soon_as_the_format_shows() {
    for format in Format::ALL {
        let whole = compress(format, &text(500));
        for length in 0..whole.len() {
            let cut = whole.get(..length).unwrap();
            let outcome = decompress(cut, None);
            if length < magic_bytes(format) {
                let (output, summary) = outcome.unwrap();
                assert_eq!((output.as_slice(), summary.format), (cut, None));
                assert_eq!(
                    summary.to_string(),
                    format!("not compressed, {length} bytes passed on unchanged")
                );
            } else {
                let wanted = StepError::Truncated {
                    format,
                    offset: length as u64,
                };
                assert_eq!(outcome, Err(wanted), "{format} cut at {length}");
            }
        }
    }
}

#[test]
fn h13_any_flipped_bit_is_an_error_or_changes_nothing() {
    let content = text(700);
    for format in Format::ALL {
        let whole = compress(format, &content);
        let mut errors = 0;
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            match decompress(&flipped, Some(format)) {
                Ok((output, _)) => {
                    assert!(output == content, "{format}: bit {bit} changes the output");
                }
                Err(_) => errors += 1,
            }
            // Without a name the damaged magic makes it other content, passed on as it came.
            if let Ok((output, summary)) = decompress(&flipped, None) {
                if summary.format.is_some() {
                    assert!(output == content, "{format}: bit {bit} changes the output");
                } else {
                    assert!(
                        output == flipped && bit / 8 < magic_bytes(format),
                        "{format}: bit {bit}"
                    );
                }
            }
        }
        assert!(
            errors > whole.len() * 7,
            "{format}: only {errors} of the flips were seen"
        );
    }
}

#[test]
fn h13_a_wrong_checksum_at_the_end_is_corruption() {
    let content = text(1000);
    for (format, bytes_before_end) in [
        (Format::Gzip, 8),
        (Format::Gzip, 4),
        (Format::Zstd, 4),
        (Format::Xz, 12),
        (Format::Bzip2, 3),
    ] {
        let mut whole = compress(format, &content);
        let position = whole.len() - bytes_before_end;
        whole[position] ^= 0x10;
        let error = decompress(&whole, None).unwrap_err();
        assert!(
            matches!(error, StepError::Corrupt { .. }),
            "{format}: {error:?}"
        );
        assert!(error.is_permanent());
        assert!(error.to_string().contains("the source was kept"), "{error}");
    }
}

#[test]
fn h13_garbage_after_the_last_member_is_an_error_that_says_where_it_begins() {
    let content = text(1000);
    for format in Format::ALL {
        for garbage in [
            &b"x"[..],
            b"\x1f",
            b"\x1f\x8a",
            b"BZ!",
            b"BZh0",
            b"\xfd7zX!",
            b"\x28\xb5\x2e",
            b"\x51\x2a\x4e",
            b"trailing text",
        ] {
            let whole = compress(format, &content);
            let offset = whole.len() as u64;
            let with_garbage = [whole.as_slice(), garbage].concat();
            let error = decompress(&with_garbage, None).unwrap_err();
            let could_be_a_member = format == Format::Gzip && garbage == b"\x1f";
            let wanted = if could_be_a_member {
                StepError::Truncated {
                    format,
                    offset: offset + 1,
                }
            } else {
                StepError::TrailingGarbage { format, offset }
            };
            assert_eq!(error, wanted, "{garbage:02x?}");
        }
    }
}

#[test]
fn h13_a_name_that_promises_compression_is_held_to_it() {
    let expected = Format::Gzip;
    for content in [&b"plain text"[..], b"x", b"BZ"] {
        assert_eq!(
            decompress(content, Some(expected)),
            Err(StepError::NotAsNamed { expected })
        );
    }
    assert_eq!(
        decompress(b"", Some(expected)),
        Err(StepError::Truncated {
            format: expected,
            offset: 0
        })
    );
    // Compressed, only differently than named: content decides.
    let (output, summary) =
        decompress(&compress(Format::Zstd, b"content"), Some(expected)).unwrap();
    assert_eq!(
        (output.as_slice(), summary.format),
        (&b"content"[..], Some(Format::Zstd))
    );
}

#[test]
fn content_that_is_not_compressed_passes_unchanged_or_fails_as_configured() {
    let failing = DecompressOptions {
        unrecognised: Unrecognised::Fail,
        ..DecompressOptions::default()
    };
    for content in [
        text(700_000),
        b"(".to_vec(),
        b"\x1f".to_vec(),
        b"PK\x03\x04".to_vec(),
    ] {
        let (output, summary) = decompress(&content, None).unwrap();
        assert!(output == content);
        assert_eq!((summary.format, summary.members), (None, 0));
        assert_eq!(summary.input_bytes, content.len() as u64);
        assert_eq!(
            decompress_with(failing, [&content[..]], None),
            Err(StepError::Unrecognised)
        );
    }
    for options in [failing, DecompressOptions::default()] {
        let (output, summary) = decompress_with(options, [], None).unwrap();
        assert_eq!(
            (output.len(), summary.format),
            (0, None),
            "an empty file is an empty file"
        );
    }
}
