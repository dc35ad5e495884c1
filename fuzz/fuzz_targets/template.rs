//! Any text as a template, a location and a glob. The test suite of `knarr-core` replays the corpus.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    knarr_core::exercise::template(data);
});
