//! What a host says to an agent.
#![no_main]

#[path = "../guest_protocol.rs"]
mod entry;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    assert!(entry::to_guest(bytes).is_some());
});
