//! Any bytes as a path. The test suite of `knarr-core` replays the corpus through the same function.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    knarr_core::exercise::path(data);
});
