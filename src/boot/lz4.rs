//! The LZ4 legacy frame, which kernels are packed with (lz4_Frame_format.md, "Legacy frame", and lz4_Block_format.md).

use std::io;

use super::unpack::UnpackError;

/// How a legacy frame begins.
pub const MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
/// A match is at least this long.
const MATCH_MIN: usize = 4;
/// A length field of four bits that is full goes on in further bytes.
const LONG: usize = 15;

/// Unpacks a legacy frame. It ends where no whole block follows: kernels append their unpacked length in four bytes.
///
/// # Errors
/// A block is damaged, or the result is longer than `limit` bytes.
pub fn unpack(packed: &[u8], limit: u64) -> Result<Vec<u8>, UnpackError> {
    let mut rest = packed.get(MAGIC.len()..).unwrap_or_default();
    let mut out = Vec::new();
    while let Some((len, after)) = rest.split_first_chunk::<4>() {
        let Some(block) = after.get(..u32::from_le_bytes(*len) as usize).filter(|b| !b.is_empty()) else {
            break;
        };
        let start = out.len();
        Block { rest: block, start }.unpack(&mut out, limit)?;
        rest = &after[block.len()..];
    }
    Ok(out)
}

/// A block that is being unpacked.
struct Block<'a> {
    rest: &'a [u8],
    /// Where its output begins: blocks of a legacy frame do not refer to each other.
    start: usize,
}

impl Block<'_> {
    fn unpack(&mut self, out: &mut Vec<u8>, limit: u64) -> Result<(), UnpackError> {
        while !self.rest.is_empty() {
            let token = self.bytes(1).and_then(|b| b.first().copied()).ok_or_else(damaged)?;
            let literals = self.length(usize::from(token >> 4)).ok_or_else(damaged)?;
            out.extend_from_slice(self.bytes(literals).ok_or_else(damaged)?);
            // The last sequence of a block has literals only.
            if !self.rest.is_empty() {
                let (distance, len) = self.copy(usize::from(token & 0xf)).ok_or_else(damaged)?;
                // Before the copy, which one length field can make as long as 255 times the block.
                check(out.len().saturating_add(len), limit)?;
                self.repeat(out, distance, len).ok_or_else(damaged)?;
            }
            check(out.len(), limit)?;
        }
        Ok(())
    }

    fn bytes(&mut self, len: usize) -> Option<&[u8]> {
        let (taken, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(taken)
    }

    fn length(&mut self, field: usize) -> Option<usize> {
        let mut length = field;
        let mut more = field == LONG;
        while more {
            let byte = *self.bytes(1)?.first()?;
            length = length.checked_add(usize::from(byte))?;
            more = byte == u8::MAX;
        }
        Some(length)
    }

    /// Distance and length of a match.
    fn copy(&mut self, field: usize) -> Option<(usize, usize)> {
        let distance = self.bytes(2)?.iter().rev().fold(0, |value, byte| value << 8 | usize::from(*byte));
        Some((distance, self.length(field)?.checked_add(MATCH_MIN)?))
    }

    /// Byte by byte in effect: a match may overlap what it produces.
    fn repeat(&self, out: &mut Vec<u8>, distance: usize, len: usize) -> Option<()> {
        let from = out.len().checked_sub(distance).filter(|from| distance > 0 && *from >= self.start)?;
        let mut left = len;
        while left > 0 {
            let run = left.min(out.len() - from);
            out.extend_from_within(from..from + run);
            left -= run;
        }
        Some(())
    }
}

fn check(len: usize, limit: u64) -> Result<(), UnpackError> {
    if len as u64 > limit { Err(UnpackError::TooLarge { limit }) } else { Ok(()) }
}

fn damaged() -> UnpackError {
    UnpackError::Damaged(io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(block: &[u8]) -> Vec<u8> {
        [MAGIC.as_slice(), &u32::try_from(block.len()).unwrap().to_le_bytes(), block].concat()
    }

    #[test]
    fn literals_and_overlapping_matches_are_unpacked() {
        // "ab", then 9 bytes from 2 back, then "end".
        let block = [&[0x25][..], b"ab", &[2, 0], &[0x30], b"end"].concat();
        assert_eq!(
            unpack(&frame(&block), 100).unwrap(),
            b"ababababababend".get(..11).unwrap().iter().chain(b"end").copied().collect::<Vec<_>>()
        );
    }

    #[test]
    fn long_lengths_go_on_in_further_bytes() {
        let block = [&[0x1f][..], b"x", &[1, 0, 255, 6], &[0x00]].concat();
        assert_eq!(unpack(&frame(&block), 1000).unwrap(), vec![b'x'; 1 + 15 + 255 + 6 + 4]);
        assert!(matches!(unpack(&frame(&block), 100), Err(UnpackError::TooLarge { .. })));
    }

    #[test]
    fn a_match_before_the_block_is_damage() {
        for distance in [0, 2] {
            let block = [&[0x10][..], b"x", &[distance, 0], &[0x00]].concat();
            assert!(matches!(unpack(&frame(&block), 100), Err(UnpackError::Damaged(_))));
        }
    }

    proptest! {
        #[test]
        fn random_blocks_never_panic_or_grow(block in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(out) = unpack(&frame(&block), 1000) {
                prop_assert!(out.len() <= 1000);
            }
        }
    }
}
