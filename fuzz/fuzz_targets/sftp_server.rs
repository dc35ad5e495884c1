//! Any bytes as the stream of an SFTP client: the server neither panics nor hangs, keeps its limits, and what it sends is
//! SFTP. The first byte says into which pieces the stream is cut. The test suite of `knarr-sftp` replays the corpus
//! through the same function.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Some((piece, stream)) = data.split_first() {
        knarr_sftp::server::exercise(&Bytes::copy_from_slice(stream), usize::from(*piece));
    }
});
