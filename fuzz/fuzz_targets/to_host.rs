//! What a guest agent says, cut into packets by the first byte: the attacker's own bytes reach this decoder first.
#![no_main]

#[path = "../guest_protocol.rs"]
mod entry;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    assert!(entry::to_host(bytes).is_some());
});
