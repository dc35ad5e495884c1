//! Whether a part that a store lists holds the bytes that are about to be sent.
//!
//! Only parts that were answered but not yet on record when a process died are compared, so speed
//! matters little here: they are a few of each interrupted upload. What proves a part is a CRC-64/NVME
//! that the store lists for it, or else an ETag that is the MD5 of the part, as it is on most stores.
//! An ETag of any other making is simply not equal, and the part is sent again. Both guard against
//! accidents, as everything does that a store says about what it has; not against a store that lies.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use md5::{Digest as _, Md5};

use super::resume::ListedPart;
use super::s3::bare;

/// Whether `listed` is about the bytes of `chunks`, as far as the store says enough to tell.
pub(super) fn is_of(listed: &ListedPart, chunks: &[Bytes]) -> bool {
    let length: u64 = chunks.iter().map(|chunk| chunk.len() as u64).sum();
    if listed.size != length {
        return false;
    }
    if let Some(checksum) = &listed.crc64nvme {
        return *checksum == STANDARD.encode(crc64nvme(chunks).to_be_bytes());
    }
    let etag = bare(&listed.etag);
    etag.len() == 32 && etag.eq_ignore_ascii_case(&hexadecimal(&md5(chunks)))
}

fn crc64nvme(chunks: &[Bytes]) -> u64 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
    for chunk in chunks {
        digest.update(chunk);
    }
    digest.finalize()
}

/// To compare with the ETags of stores, and for nothing else.
fn md5(chunks: &[Bytes]) -> [u8; 16] {
    let mut digest = Md5::new();
    for chunk in chunks {
        digest.update(chunk);
    }
    digest.finalize().into()
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(text: &str) -> Vec<Bytes> {
        // In pieces, which must not matter.
        text.as_bytes()
            .chunks(7)
            .map(Bytes::copy_from_slice)
            .collect()
    }

    #[test]
    fn checksums_are_those_of_their_definitions() {
        for (text, digest) in [
            ("", "d41d8cd98f00b204e9800998ecf8427e"),
            ("abc", "900150983cd24fb0d6963f7d28e17f72"),
            (
                "12345678901234567890123456789012345678901234567890123456789012345678901234567890",
                "57edf4a22be3c955ac49da2e2107b67a",
            ),
        ] {
            assert_eq!(hexadecimal(&md5(&chunks(text))), digest, "{text}");
        }
        assert_eq!(crc64nvme(&chunks("123456789")), 0xae8b_1486_0a79_9888);
    }

    #[test]
    fn k3_only_a_part_with_the_same_bytes_is_taken_for_ours() {
        let listed = |size, etag: &str, crc64nvme: Option<&str>| ListedPart {
            size,
            etag: etag.to_owned(),
            crc64nvme: crc64nvme.map(str::to_owned),
        };
        let md5_of_abc = "\"900150983CD24FB0D6963F7D28E17F72\"";
        let crc_of_digits = "rosUhgp5mIg=";
        assert!(is_of(&listed(3, md5_of_abc, None), &chunks("abc")));
        assert!(!is_of(&listed(3, md5_of_abc, None), &chunks("abd")));
        assert!(!is_of(&listed(4, md5_of_abc, None), &chunks("abc")));
        assert!(!is_of(&listed(3, "\"opaque\"", None), &chunks("abc")));
        assert!(!is_of(&listed(0, "", None), &chunks("")));
        let digits = chunks("123456789");
        assert!(is_of(
            &listed(9, "\"opaque\"", Some(crc_of_digits)),
            &digits
        ));
        assert!(!is_of(&listed(9, "", Some("AAAAAAAAAAA=")), &digits));
    }
}
