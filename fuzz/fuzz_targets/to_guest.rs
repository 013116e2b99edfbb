//! What a host says to an agent.
#![no_main]

use guest_protocol::{Decoder, ToGuest};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut decoder = Decoder::new();
    decoder.push(bytes);
    while let Ok(Some(raw)) = decoder.next_frame() {
        let Ok(frame) = ToGuest::decode(raw) else { return };
        let mut again = Vec::new();
        frame.append_to(&mut again);
        let mut check = Decoder::new();
        check.push(&again);
        let raw = check.next_frame().expect("a frame").expect("a whole frame");
        assert_eq!(ToGuest::decode(raw), Ok(frame));
    }
});
