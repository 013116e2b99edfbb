//! What a daemon answers a client, in chunks.
#![no_main]

use ember::serve::fuzz_entry::{self, Verdict};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    assert_ne!(fuzz_entry::response(bytes), Verdict::Broken);
});
