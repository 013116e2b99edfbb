//! What a caller asks the daemon, with its body.
#![no_main]

use ember::serve::fuzz_entry::{self, Verdict};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    assert_ne!(fuzz_entry::request(bytes), Verdict::Broken);
});
