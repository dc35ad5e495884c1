//! Whether a part that a store lists holds the bytes that are about to be sent.
//!
//! Only parts that were answered but not yet on record when a process died are compared, so speed
//! matters little here: they are a few of each interrupted upload. What proves a part is a CRC-64/NVME
//! that the store lists for it, or else an ETag that is the MD5 of the part, as it is on most stores.
//! An ETag of any other making is simply not equal, and the part is sent again. Both guard against
//! accidents, as everything does that a store says about what it has; not against a store that lies.

use bytes::Bytes;

use super::resume::ListedPart;
use super::s3::bare;

/// The reflected polynomial of CRC-64/NVME.
const CRC_POLYNOMIAL: u64 = 0x9a6c_9329_ac4b_c9b5;
const CRC_TABLE: [u64; 256] = crc_table();

/// Whether `listed` is about the bytes of `chunks`, as far as the store says enough to tell.
pub(super) fn is_of(listed: &ListedPart, chunks: &[Bytes]) -> bool {
    let length: u64 = chunks.iter().map(|chunk| chunk.len() as u64).sum();
    if listed.size != length {
        return false;
    }
    if let Some(checksum) = &listed.crc64nvme {
        return *checksum == base64(&crc64nvme(chunks).to_be_bytes());
    }
    let etag = bare(&listed.etag);
    etag.len() == 32 && etag.eq_ignore_ascii_case(&hexadecimal(&md5(chunks)))
}

const fn crc_table() -> [u64; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut value = byte as u64;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 {
                value >> 1 ^ CRC_POLYNOMIAL
            } else {
                value >> 1
            };
            bit += 1;
        }
        table[byte] = value;
        byte += 1;
    }
    table
}

fn crc64nvme(chunks: &[Bytes]) -> u64 {
    let mut crc = u64::MAX;
    for byte in chunks.iter().flatten() {
        let [low, ..] = crc.to_le_bytes();
        crc = crc >> 8 ^ CRC_TABLE[usize::from(low ^ byte)];
    }
    !crc
}

/// With padding, as headers and answers have it.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let shift = 18 - 6 * digit;
            let index = usize::try_from(bits >> shift & 63).unwrap_or(0);
            text.push(if digit <= group.len() {
                char::from(DIGITS[index])
            } else {
                '='
            });
        }
    }
    text
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

const MD5_SHIFTS: [[u32; 4]; 4] = [
    [7, 12, 17, 22],
    [5, 9, 14, 20],
    [4, 11, 16, 23],
    [6, 10, 15, 21],
];
const MD5_TABLE: [u32; 64] = [
    0xd76a_a478,
    0xe8c7_b756,
    0x2420_70db,
    0xc1bd_ceee,
    0xf57c_0faf,
    0x4787_c62a,
    0xa830_4613,
    0xfd46_9501,
    0x6980_98d8,
    0x8b44_f7af,
    0xffff_5bb1,
    0x895c_d7be,
    0x6b90_1122,
    0xfd98_7193,
    0xa679_438e,
    0x49b4_0821,
    0xf61e_2562,
    0xc040_b340,
    0x265e_5a51,
    0xe9b6_c7aa,
    0xd62f_105d,
    0x0244_1453,
    0xd8a1_e681,
    0xe7d3_fbc8,
    0x21e1_cde6,
    0xc337_07d6,
    0xf4d5_0d87,
    0x455a_14ed,
    0xa9e3_e905,
    0xfcef_a3f8,
    0x676f_02d9,
    0x8d2a_4c8a,
    0xfffa_3942,
    0x8771_f681,
    0x6d9d_6122,
    0xfde5_380c,
    0xa4be_ea44,
    0x4bde_cfa9,
    0xf6bb_4b60,
    0xbebf_bc70,
    0x289b_7ec6,
    0xeaa1_27fa,
    0xd4ef_3085,
    0x0488_1d05,
    0xd9d4_d039,
    0xe6db_99e5,
    0x1fa2_7cf8,
    0xc4ac_5665,
    0xf429_2244,
    0x432a_ff97,
    0xab94_23a7,
    0xfc93_a039,
    0x655b_59c3,
    0x8f0c_cc92,
    0xffef_f47d,
    0x8584_5dd1,
    0x6fa8_7e4f,
    0xfe2c_e6e0,
    0xa301_4314,
    0x4e08_11a1,
    0xf753_7e82,
    0xbd3a_f235,
    0x2ad7_d2bb,
    0xeb86_d391,
];

/// MD5 (RFC 1321), to compare with the ETags of stores and for nothing else.
fn md5(chunks: &[Bytes]) -> [u8; 16] {
    let mut state = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];
    let mut block = [0; 64];
    let mut filled = 0;
    let mut length: u64 = 0;
    let mut take = |byte: u8, state: &mut [u32; 4], filled: &mut usize| {
        block[*filled] = byte;
        *filled += 1;
        if *filled == block.len() {
            md5_block(state, &block);
            *filled = 0;
        }
    };
    for byte in chunks.iter().flatten() {
        take(*byte, &mut state, &mut filled);
        length += 1;
    }
    take(0x80, &mut state, &mut filled);
    while filled != 56 {
        take(0, &mut state, &mut filled);
    }
    for byte in length.wrapping_mul(8).to_le_bytes() {
        take(byte, &mut state, &mut filled);
    }
    let mut digest = [0; 16];
    for (to, word) in digest.chunks_exact_mut(4).zip(state) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    digest
}

fn md5_block(state: &mut [u32; 4], block: &[u8; 64]) {
    let mut words = [0; 16];
    for (word, bytes) in words.iter_mut().zip(block.chunks_exact(4)) {
        *word = bytes
            .iter()
            .rev()
            .fold(0, |word: u32, byte| word << 8 | u32::from(*byte));
    }
    let [mut a, mut b, mut c, mut d] = *state;
    for step in 0..64 {
        let round = step / 16;
        let (mixed, word) = match round {
            0 => (b & c | !b & d, step),
            1 => (d & b | !d & c, (5 * step + 1) % 16),
            2 => (b ^ c ^ d, (3 * step + 5) % 16),
            _ => (c ^ (b | !d), 7 * step % 16),
        };
        let sum = a
            .wrapping_add(mixed)
            .wrapping_add(MD5_TABLE[step])
            .wrapping_add(words[word]);
        (a, d, c) = (d, c, b);
        b = b.wrapping_add(sum.rotate_left(MD5_SHIFTS[round][step % 4]));
    }
    for (state, word) in state.iter_mut().zip([a, b, c, d]) {
        *state = state.wrapping_add(word);
    }
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
        for (bytes, text) in [
            (&b"f"[..], "Zg=="),
            (b"fo", "Zm8="),
            (b"foo", "Zm9v"),
            (b"foob", "Zm9vYg=="),
        ] {
            assert_eq!(base64(bytes), text);
        }
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
