//! Frames: a header of eight bytes and a bounded payload.

/// Length of a frame's header, bytes.
pub const HEADER_LEN: usize = 8;
/// Longest frame, header included, bytes: what fits into one packet of a virtio vsock.
pub const FRAME_MAX: usize = 65_536;
/// Longest payload, bytes.
pub const PAYLOAD_MAX: usize = FRAME_MAX - HEADER_LEN;

/// Why a byte stream is no sequence of frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The payload is longer than a payload may be.
    #[error("A frame announces a payload of {len} bytes, more than the limit of {PAYLOAD_MAX}")]
    TooLong {
        /// The announced length.
        len: u32,
    },
    /// Bytes 1 to 3 of the header, which are zero in every version so far, are not.
    #[error("A frame's header has {value:#08x} where it must be zero")]
    Reserved {
        /// What they hold.
        value: u32,
    },
}

/// A frame that has arrived whole, its payload not yet looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Raw<'a> {
    /// What kind of frame it is.
    pub kind: u8,
    /// The bytes behind the header, [`PAYLOAD_MAX`] at most.
    pub payload: &'a [u8],
}

/// Where encoded frames go.
pub trait Sink {
    /// Takes `bytes`.
    fn put(&mut self, bytes: &[u8]);
}

impl Sink for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// The header of a frame with a payload of `len` bytes; [`PAYLOAD_MAX`] is the longest that a receiver takes.
pub const fn header(kind: u8, len: u32) -> [u8; HEADER_LEN] {
    let [a, b, c, d] = len.to_le_bytes();
    [kind, 0, 0, 0, a, b, c, d]
}

/// Puts a frame whose payload is `parts`, one behind the other.
pub(crate) fn put(sink: &mut impl Sink, kind: u8, parts: &[&[u8]]) {
    let len = parts.iter().map(|part| part.len()).sum::<usize>();
    debug_assert!(len <= PAYLOAD_MAX);
    sink.put(&header(kind, u32::try_from(len).unwrap_or(u32::MAX)));
    for part in parts {
        sink.put(part);
    }
}

/// The first frame in `bytes` and its whole length, or `None` while it has not arrived whole.
///
/// # Errors
/// See [`FrameError`]; the stream cannot be made sense of from there on.
pub fn split(bytes: &[u8]) -> Result<Option<(Raw<'_>, usize)>, FrameError> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else { return Ok(None) };
    let [kind, r0, r1, r2, l0, l1, l2, l3] = *header;
    let reserved = u32::from_le_bytes([r0, r1, r2, 0]);
    if reserved != 0 {
        return Err(FrameError::Reserved { value: reserved });
    }
    let announced = u32::from_le_bytes([l0, l1, l2, l3]);
    let len = usize::try_from(announced).unwrap_or(usize::MAX);
    if len > PAYLOAD_MAX {
        return Err(FrameError::TooLong { len: announced });
    }
    Ok(rest.get(..len).map(|payload| (Raw { kind, payload }, HEADER_LEN + len)))
}

/// Cuts a byte stream into frames as it arrives. It holds the bytes it was given and never more, whatever they say.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    taken: usize,
}

impl Decoder {
    /// An empty decoder.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        // Only here, not per frame: a frame that is handed out borrows the buffer.
        self.buffer.drain(..self.taken);
        self.taken = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame.
    ///
    /// # Errors
    /// See [`split`]; every later call gives the same error.
    pub fn next_frame(&mut self) -> Result<Option<Raw<'_>>, FrameError> {
        let rest = self.buffer.get(self.taken..).unwrap_or_default();
        let Some((frame, len)) = split(rest)? else { return Ok(None) };
        self.taken += len;
        Ok(Some(frame))
    }

    /// Bytes that belong to no whole frame yet.
    pub fn pending(&self) -> usize {
        self.buffer.len() - self.taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_cut_off_until_its_last_byte_is_there() {
        let mut bytes = Vec::new();
        put(&mut bytes, 7, &[b"ab", b"c"]);
        assert_eq!(bytes, [7, 0, 0, 0, 3, 0, 0, 0, b'a', b'b', b'c']);
        for end in 0..bytes.len() {
            assert_eq!(split(&bytes[..end]), Ok(None));
        }
        assert_eq!(split(&bytes), Ok(Some((Raw { kind: 7, payload: b"abc" }, 11))));
    }

    #[test]
    fn a_hostile_length_is_refused_before_its_payload_arrives() {
        let mut decoder = Decoder::new();
        decoder.push(&header(1, u32::MAX));
        assert_eq!(decoder.next_frame(), Err(FrameError::TooLong { len: u32::MAX }));
        assert!(decoder.buffer.capacity() < 1024);
    }

    #[test]
    fn the_longest_payload_passes_and_one_byte_more_does_not() {
        let longest = u32::try_from(PAYLOAD_MAX).unwrap();
        assert_eq!(split(&header(1, longest)), Ok(None));
        assert_eq!(split(&header(1, longest + 1)), Err(FrameError::TooLong { len: longest + 1 }));
    }

    #[test]
    fn a_reserved_byte_that_is_not_zero_is_refused() {
        assert_eq!(split(&[1, 0, 2, 0, 0, 0, 0, 0]), Err(FrameError::Reserved { value: 0x200 }));
    }
}
