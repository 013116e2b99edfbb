//! A chunked body, cut into pieces by the first byte.
#![no_main]

#[path = "../guest_protocol.rs"]
mod entry;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    assert!(entry::chunked(bytes).is_some());
});
