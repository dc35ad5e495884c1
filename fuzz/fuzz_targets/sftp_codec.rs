//! Any bytes as a packet of SFTP, in both directions: no panic, and what decodes survives a round
//! trip. The test suite of `knarr-sftp` replays the corpus through the same function.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    knarr_sftp::codec::exercise(&Bytes::copy_from_slice(data));
});
