//! Any bytes as `knarr.yaml`. The test suite of `knarr` replays the corpus.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    knarr::exercise::configuration(data);
});
