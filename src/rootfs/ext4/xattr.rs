//! Extended attributes: in the inode if they fit, else in one block (ext4, "Extended Attributes").

use std::collections::BTreeMap;

use super::layout::{INODE_LEN, low16, low32};
use super::{BLOCK_LEN, inode};

/// The attributes of an inode as they are written.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Goes behind the inode's fields.
    pub in_inode: Vec<u8>,
    /// A block of its own.
    pub block: Option<Vec<u8>>,
}

const MAGIC: u32 = 0xea02_0000;
const IN_INODE_HEADER: usize = 4;
const BLOCK_HEADER: usize = 32;
const ENTRY_LEN: usize = 16;
/// Entries and values begin at multiples of this.
const ALIGN: usize = 4;
/// Four zero bytes close the list of entries.
const END: usize = 4;

/// Prefixes that are written as a number. The longer ones, which name an attribute whole, come first.
const PREFIXES: [(&str, u8); 6] = [
    ("system.posix_acl_access", 2),
    ("system.posix_acl_default", 3),
    ("user.", 1),
    ("trusted.", 4),
    ("security.", 6),
    ("system.", 7),
];

/// One attribute, its prefix turned into a number.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Attribute<'a> {
    // In the order in which the entries of a block are sorted.
    prefix: u8,
    name_len: u8,
    name: &'a [u8],
    value: Vec<u8>,
}

/// Lays attributes out; `None` when they do not fit or ext4 cannot hold one of them.
pub fn store(xattrs: &BTreeMap<Vec<u8>, Vec<u8>>) -> Option<Stored> {
    if xattrs.is_empty() {
        return Some(Stored::default());
    }
    let mut attributes =
        xattrs.iter().map(|(name, value)| attribute(name, value)).collect::<Option<Vec<_>>>()?;
    attributes.sort();
    let room = INODE_LEN - inode::XATTR_OFFSET - IN_INODE_HEADER;
    if let Some(body) = list(&attributes, room, 0) {
        return Some(Stored { in_inode: [&MAGIC.to_le_bytes(), body.as_slice()].concat(), block: None });
    }
    let body = list(&attributes, BLOCK_LEN - BLOCK_HEADER, BLOCK_HEADER)?;
    Some(Stored { in_inode: Vec::new(), block: Some([block_header(&attributes), body].concat()) })
}

fn attribute<'a>(full: &'a [u8], value: &[u8]) -> Option<Attribute<'a>> {
    let (prefix, name) =
        PREFIXES.iter().find_map(|(text, number)| Some((*number, full.strip_prefix(text.as_bytes())?)))?;
    let whole = matches!(prefix, 2 | 3);
    let value = if whole { acl(value)? } else { value.to_vec() };
    (name.is_empty() == whole).then_some(())?;
    Some(Attribute { prefix, name_len: u8::try_from(name.len()).ok()?, name, value })
}

/// An access control list in ext4's form: entries without a subject lose the unused id, and the version is another
/// (linux/fs/ext4/acl.h and include/uapi/linux/posix_acl_xattr.h).
fn acl(value: &[u8]) -> Option<Vec<u8>> {
    const GIVEN_VERSION: u32 = 2;
    const STORED_VERSION: u32 = 1;
    const USER: u16 = 2;
    const GROUP: u16 = 8;
    let (version, entries) = value.split_first_chunk::<4>()?;
    (u32::from_le_bytes(*version) == GIVEN_VERSION && entries.len() % 8 == 0).then_some(())?;
    let mut stored = STORED_VERSION.to_le_bytes().to_vec();
    for entry in entries.chunks_exact(8) {
        let named = matches!(u16::from_le_bytes([entry[0], entry[1]]), USER | GROUP);
        stored.extend(if named { entry } else { &entry[..4] });
    }
    Some(stored)
}

/// Entries from the front, values from the back of `room` bytes; offsets count from `base` bytes before them.
fn list(attributes: &[Attribute<'_>], room: usize, base: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; room];
    let (mut front, mut back) = (0, room);
    for attribute in attributes {
        let Attribute { prefix, name_len, name, value } = attribute;
        back = back.checked_sub(value.len().next_multiple_of(ALIGN))?;
        let end = front + (ENTRY_LEN + name.len()).next_multiple_of(ALIGN);
        (end + END <= back).then_some(())?;
        // An empty value has no place.
        let offset = if value.is_empty() { 0 } else { base + back };
        bytes[front..front + 2].copy_from_slice(&[*name_len, *prefix]);
        bytes[front + 2..front + 4].copy_from_slice(&low16(offset as u64));
        bytes[front + 8..front + 12].copy_from_slice(&low32(value.len() as u64));
        bytes[front + 12..front + 16].copy_from_slice(&hash(attribute).to_le_bytes());
        bytes[front + 16..front + 16 + name.len()].copy_from_slice(name);
        bytes[back..back + value.len()].copy_from_slice(value);
        front = end;
    }
    Some(bytes)
}

fn block_header(attributes: &[Attribute<'_>]) -> Vec<u8> {
    let hash = attributes.iter().fold(0u32, |sum, attribute| sum.rotate_left(16) ^ hash(attribute));
    // Magic, reference count, blocks, hash of all entries.
    let mut bytes: Vec<u8> = [MAGIC, 1, 1, hash].iter().flat_map(|field| field.to_le_bytes()).collect();
    bytes.resize(BLOCK_HEADER, 0);
    bytes
}

/// Of one entry: name byte by byte, then the value in padded little-endian words.
fn hash(attribute: &Attribute<'_>) -> u32 {
    let name = attribute.name.iter().fold(0u32, |sum, byte| sum.rotate_left(5) ^ u32::from(*byte));
    attribute.value.chunks(ALIGN).fold(name, |sum, piece| {
        let word = piece.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte));
        sum.rotate_left(16) ^ word
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(xattrs: &[(&str, Vec<u8>)]) -> Option<Stored> {
        store(&xattrs.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.clone())).collect())
    }

    #[test]
    fn a_file_capability_lies_in_the_inode_and_much_goes_to_a_block() {
        let small = stored(&[("security.capability", vec![7; 20])]).unwrap();
        assert_eq!((small.in_inode.len(), small.block), (INODE_LEN - inode::XATTR_OFFSET, None));
        let large = stored(&[("user.a", vec![7; 3000]), ("user.b", vec![1; 900])]).unwrap();
        assert_eq!((large.in_inode.len(), large.block.unwrap().len()), (0, BLOCK_LEN));
        assert_eq!(stored(&[("user.a", vec![7; 4096])]), None);
    }

    #[test]
    fn names_without_a_known_prefix_or_without_a_name_are_refused() {
        for name in ["nothing", "user.", "other.x", ""] {
            assert_eq!(stored(&[(name, vec![1])]), None, "{name}");
        }
    }

    #[test]
    fn access_control_lists_lose_their_unused_ids() {
        // Version 2; owner rwx, user 1000 r, mask r.
        let given =
            [&[2, 0, 0, 0][..], &[1, 0, 7, 0, 255, 255, 255, 255], &[2, 0, 4, 0, 0xe8, 3, 0, 0]].concat();
        assert_eq!(
            acl(&given).unwrap(),
            [&[1, 0, 0, 0][..], &[1, 0, 7, 0], &[2, 0, 4, 0, 0xe8, 3, 0, 0]].concat()
        );
        assert_eq!(acl(&given[..9]), None);
    }
}
