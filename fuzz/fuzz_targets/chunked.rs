//! A chunked body, cut into pieces by the first byte.
#![no_main]

use guest_protocol::Chunked;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((step, bytes)) = bytes.split_first() else { return };
    let (mut chunked, mut length) = (Chunked::default(), 0);
    for mut piece in bytes.chunks(usize::from(*step).max(1)) {
        loop {
            match chunked.next(&mut piece) {
                Ok(Some(content)) => length += content.len(),
                Ok(None) => break,
                Err(_) => return,
            }
        }
        assert!(length <= bytes.len());
    }
});
