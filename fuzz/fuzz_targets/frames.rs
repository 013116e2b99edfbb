//! What a shell says to the daemon: whoever has broken into one chooses every byte.
#![no_main]

use ember::serve::fuzz_entry::{self, Verdict};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    assert_ne!(fuzz_entry::frames(bytes), Verdict::Broken);
});
