//! What a guest agent says, cut into packets by the first byte: the attacker's own bytes reach this decoder first.
#![no_main]

use guest_protocol::{Decoder, ToHost};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((step, bytes)) = bytes.split_first() else { return };
    let mut decoder = Decoder::new();
    for packet in bytes.chunks(usize::from(*step).max(1)) {
        decoder.push(packet);
        while let Ok(Some(raw)) = decoder.next_frame() {
            let Ok(frame) = ToHost::decode(raw) else { return };
            let mut again = Vec::new();
            frame.append_to(&mut again);
            let mut check = Decoder::new();
            check.push(&again);
            let raw = check.next_frame().expect("a frame").expect("a whole frame");
            assert_eq!(ToHost::decode(raw), Ok(frame));
        }
        assert!(decoder.pending() <= bytes.len());
    }
});
