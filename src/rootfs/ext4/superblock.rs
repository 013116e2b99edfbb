//! The superblock (ext4, "Super Block").

use super::layout::{GROUP_BLOCKS, INODE_LEN, Layout, Used, low32};
use super::plan::FIRST_NUMBER;
use super::{BLOCK, Ext4Error, Image};

/// Where it begins.
const START: u16 = 1024;
/// Where it ends.
pub const END: u64 = 2048;
const LEN: usize = 1024;
const MAGIC: u16 = 0xef53;
/// Where the magic lies in it.
const MAGIC_OFFSET: usize = 56;
/// Block sizes are 1 KiB shifted by `s_log_block_size`.
const LOG_BLOCK: u32 = 2;

/// Features that a kernel may ignore: extended attributes, no backups (`sparse_super2`).
const COMPAT: u32 = 0x8 | 0x200;
/// Features that a kernel must know: file types in directories, extents, flexible groups.
const INCOMPAT: u32 = 0x2 | 0x40 | 0x200;
/// Features that a kernel must know to write: large files, directories with many links, fields behind the first 128 bytes.
const RO_COMPAT: u32 = 0x2 | 0x20 | 0x40;
/// Groups of a flexible group, as a power of two; any number will do.
const LOG_GROUPS_PER_FLEX: u8 = 4;
/// Extended attributes and access control lists are on without a mount option.
const DEFAULT_MOUNT_OPTIONS: u32 = 0x4 | 0x8;
const EXTRA_LEN: u16 = 32;
/// Half MD4, as everywhere.
const HASH_VERSION: u8 = 1;

/// Writes superblock and group descriptors; UUID and hash seed are taken from `digest`.
///
/// # Errors
/// Writing failed.
pub fn write(
    layout: &Layout,
    used: &Used<'_>,
    digest: &[u8; 32],
    image: &Image<'_>,
) -> Result<(), Ext4Error> {
    image.write(&superblock(layout, used, digest), u64::from(START))?;
    image.write(&layout.descriptors(used), BLOCK)
}

fn superblock(layout: &Layout, used: &Used<'_>, digest: &[u8; 32]) -> [u8; LEN] {
    let (uuid, seed) = digest.split_at(16);
    let mut bytes = [0; LEN];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(0, &low32(layout.inodes()));
    put(4, &low32(layout.blocks));
    put(12, &low32(layout.blocks - used.blocks));
    put(16, &low32(layout.inodes() - used.inodes));
    put(24, &LOG_BLOCK.to_le_bytes());
    put(28, &LOG_BLOCK.to_le_bytes());
    put(32, &low32(GROUP_BLOCKS));
    put(36, &low32(GROUP_BLOCKS));
    put(40, &low32(layout.inodes_per_group));
    // Checks after a number of mounts are off.
    put(54, &u16::MAX.to_le_bytes());
    put(MAGIC_OFFSET, &MAGIC.to_le_bytes());
    // Clean; errors are passed over.
    put(58, &[1, 0, 1, 0]);
    // Revision 1: inodes of any size, features.
    put(76, &1u32.to_le_bytes());
    put(84, &low32(FIRST_NUMBER));
    put(88, &low32(INODE_LEN as u64)[..2]);
    put(92, &COMPAT.to_le_bytes());
    put(96, &INCOMPAT.to_le_bytes());
    put(100, &RO_COMPAT.to_le_bytes());
    put(104, uuid);
    // Version and variant of RFC 9562: custom content.
    put(110, &[uuid[6] & 0x0f | 0x80]);
    put(112, &[uuid[8] & 0x3f | 0x80]);
    put(236, seed);
    put(252, &[HASH_VERSION]);
    put(256, &DEFAULT_MOUNT_OPTIONS.to_le_bytes());
    put(348, &EXTRA_LEN.to_le_bytes());
    put(350, &EXTRA_LEN.to_le_bytes());
    // Hashes of directory names treat bytes as unsigned.
    put(352, &2u32.to_le_bytes());
    put(372, &[LOG_GROUPS_PER_FLEX]);
    bytes
}

/// True when a file that begins with `start` holds a file system of this family.
pub fn has_magic(start: &[u8]) -> bool {
    let at = usize::from(START) + MAGIC_OFFSET;
    start.get(at..at + 2) == Some(&MAGIC.to_le_bytes())
}

/// Length of the file system that begins with `start`, bytes.
pub fn length(start: &[u8]) -> Option<u64> {
    has_magic(start).then_some(())?;
    let field = |at: usize| {
        let at = usize::from(START) + at;
        Some(u32::from_le_bytes(*start.get(at..at + 4)?.first_chunk()?))
    };
    let high = if field(96)? & 0x80 != 0 { field(336)? } else { 0 };
    let blocks = u64::from(high) << 32 | u64::from(field(4)?);
    blocks.checked_mul(1024u64.checked_shl(field(24)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_superblock_is_recognised_and_tells_its_length() {
        let layout = Layout::new(100, 20, Some(8 << 20)).unwrap();
        let used = Used { blocks: 50, inodes: 20, directories: &[2] };
        let start = [vec![0; 1024], superblock(&layout, &used, &[3; 32]).to_vec()].concat();
        assert!(has_magic(&start));
        assert_eq!(length(&start), Some(8 << 20));
        for len in 0..2048 {
            length(&start[..len]);
        }
        assert_eq!(length(&[0; 2048]), None);
    }
}
