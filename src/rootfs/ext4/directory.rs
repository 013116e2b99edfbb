//! Directory blocks: linear lists of entries (ext4, "Linear (Classic) Directories").

use super::BLOCK_LEN;
use super::layout::{low16, low32};
use crate::rootfs::tree::Kind;

/// One entry.
#[derive(Debug, Clone, Copy)]
pub struct Name<'a> {
    pub number: u64,
    pub kind: &'a Kind,
    /// 1 to 255 bytes.
    pub name: &'a [u8],
}

/// Bytes of an entry before its name.
const ENTRY_HEADER: usize = 8;
/// Entries begin at multiples of this.
const ALIGN: usize = 4;

/// The blocks of a directory. No entry crosses a block; the last of a block reaches to its end.
pub fn blocks<'a>(names: impl Iterator<Item = Name<'a>>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut last = 0;
    for entry in names {
        let len = (ENTRY_HEADER + entry.name.len()).next_multiple_of(ALIGN);
        let block_end = bytes.len().next_multiple_of(BLOCK_LEN);
        if bytes.len() + len > block_end && !bytes.is_empty() && bytes.len() != block_end {
            close(&mut bytes, last);
        }
        last = bytes.len();
        bytes.extend(low32(entry.number));
        bytes.extend(low16(len as u64));
        bytes.push(entry.name.len().to_le_bytes()[0]);
        bytes.push(file_type(entry.kind));
        bytes.extend(entry.name);
        bytes.resize(last + len, 0);
    }
    close(&mut bytes, last);
    bytes
}

/// Stretches the entry at `last` to the end of its block.
fn close(bytes: &mut Vec<u8>, last: usize) {
    bytes.resize(bytes.len().next_multiple_of(BLOCK_LEN), 0);
    let len = low16((bytes.len() - last) as u64);
    if let Some(field) = bytes.get_mut(last + 4..last + 6) {
        field.copy_from_slice(&len);
    }
}

/// The `file_type` of an entry.
fn file_type(kind: &Kind) -> u8 {
    match kind {
        Kind::File(_) => 1,
        Kind::Directory(_) => 2,
        Kind::Device { block: false, .. } => 3,
        Kind::Device { block: true, .. } => 4,
        Kind::Fifo => 5,
        Kind::Symlink(_) => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let mut found = Vec::new();
        for block in bytes.chunks(BLOCK_LEN) {
            let mut at = 0;
            while at < BLOCK_LEN {
                let len = usize::from(u16::from_le_bytes([block[at + 4], block[at + 5]]));
                assert!(len >= ENTRY_HEADER && at + len <= BLOCK_LEN && len % 4 == 0);
                let number = u32::from_le_bytes(block[at..at + 4].try_into().unwrap());
                found.push((number, block[at + 8..at + 8 + usize::from(block[at + 6])].to_vec()));
                at += len;
            }
        }
        found
    }

    #[test]
    fn entries_fill_whole_blocks_and_never_cross_one() {
        for name_len in [1, 100, 255] {
            let names: Vec<Vec<u8>> = (0..500u32)
                .map(|n| [format!("{n:03}").into_bytes(), vec![b'x'; name_len]].concat())
                .map(|mut name| {
                    name.truncate(255);
                    name
                })
                .collect();
            let entries = (1..).zip(&names).map(|(number, name)| Name {
                number,
                kind: &Kind::Fifo,
                name: name.as_slice(),
            });
            let bytes = blocks(entries);
            assert_eq!(bytes.len() % BLOCK_LEN, 0);
            let expected: Vec<(u32, Vec<u8>)> = (1..).zip(names).collect();
            assert_eq!(parse(&bytes), expected);
        }
    }

    #[test]
    fn a_block_that_is_exactly_full_is_followed_by_the_next() {
        // 16 entries of 256 bytes fill a block.
        let name = [b'n'; 248];
        for count in [16, 17, 32] {
            let bytes = blocks((1..=count).map(|number| Name { number, kind: &Kind::Fifo, name: &name }));
            assert_eq!(bytes.len(), usize::try_from(count.div_ceil(16)).unwrap() * BLOCK_LEN);
            assert_eq!(parse(&bytes).len() as u64, count);
        }
    }
}
