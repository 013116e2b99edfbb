//! The `working-set` file.
#![no_main]

use snapshot_format::fuzz_entry::{self, Verdict};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    assert_ne!(fuzz_entry::working_set(bytes), Verdict::Broken);
});
