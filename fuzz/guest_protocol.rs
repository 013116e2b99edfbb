//! One entry point per decoder of the guest protocol, for the fuzz targets and for the mutation tests of tools/guest-protocol:
//! whether an input was accepted whole, `None` where the decoder is broken.
#![allow(dead_code, reason = "each fuzz target uses its part")]

use guest_protocol::{Chunked, Decoder, Raw, ToGuest, ToHost};

/// What a guest agent says, cut into packets by the first byte: the attacker's own bytes reach this decoder first.
pub fn to_host(bytes: &[u8]) -> Option<bool> {
    let Some((step, bytes)) = bytes.split_first() else { return Some(false) };
    frames(bytes.chunks(usize::from(*step).max(1)), |raw| {
        let Ok(frame) = ToHost::decode(raw) else { return Some(false) };
        let mut again = Vec::new();
        frame.append_to(&mut again);
        is_alone(&again, |raw| ToHost::decode(raw) == Ok(frame))
    })
}

/// What a host says to an agent.
pub fn to_guest(bytes: &[u8]) -> Option<bool> {
    frames([bytes].into_iter(), |raw| {
        let Ok(frame) = ToGuest::decode(raw) else { return Some(false) };
        let mut again = Vec::new();
        frame.append_to(&mut again);
        is_alone(&again, |raw| ToGuest::decode(raw) == Ok(frame))
    })
}

/// A chunked body, cut into pieces by the first byte.
pub fn chunked(bytes: &[u8]) -> Option<bool> {
    let Some((step, bytes)) = bytes.split_first() else { return Some(false) };
    let (mut chunked, mut length) = (Chunked::default(), 0);
    for mut piece in bytes.chunks(usize::from(*step).max(1)) {
        loop {
            match chunked.next(&mut piece) {
                Ok(Some(content)) => length += content.len(),
                Ok(None) => break,
                Err(_) => return Some(false),
            }
        }
        if length > bytes.len() {
            return None;
        }
    }
    Some(true)
}

/// Whether all that arrives are frames that `read` accepts.
fn frames<'a>(
    packets: impl Iterator<Item = &'a [u8]>,
    read: impl Fn(Raw<'_>) -> Option<bool>,
) -> Option<bool> {
    let (mut decoder, mut arrived) = (Decoder::new(), 0);
    for packet in packets {
        decoder.push(packet);
        arrived += packet.len();
        loop {
            match decoder.next_frame() {
                Ok(Some(raw)) if !read(raw)? => return Some(false),
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return Some(false),
            }
        }
        if decoder.pending() > arrived {
            return None;
        }
    }
    Some(decoder.pending() == 0)
}

/// Whether a frame that was encoded is one, and the same.
fn is_alone(bytes: &[u8], is_same: impl Fn(Raw<'_>) -> bool) -> Option<bool> {
    let mut decoder = Decoder::new();
    decoder.push(bytes);
    let same = is_same(decoder.next_frame().ok()??);
    (same && decoder.pending() == 0).then_some(true)
}
