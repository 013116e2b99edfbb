//! Where everything lies, given how many blocks and inodes there are.

use super::{BLOCK, BLOCK_LEN, Ext4Error, Image};

/// Blocks, and at most inodes, of a group: what one bitmap block can count.
pub const GROUP_BLOCKS: u64 = BLOCK * 8;
/// Bytes of an inode.
pub const INODE_LEN: usize = 256;
/// Inodes of one block of an inode table.
const INODES_PER_BLOCK: u64 = BLOCK / INODE_LEN as u64;
/// Bytes of a group descriptor (without the 64bit feature).
pub const DESCRIPTOR_LEN: usize = 32;
/// Inodes left for files that a guest makes in a writable root.
const SPARE_INODES: u64 = 1024;
/// Free space when no size is given: an eighth of the content and this many blocks. It is a hole in the image's file.
const SPARE_BLOCKS: u64 = 1024;

/// The layout: superblock and descriptors, block bitmaps, inode bitmaps, inode tables, data. With `flex_bg` the bitmaps and
/// tables of a group need not lie in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Blocks of the image.
    pub blocks: u64,
    /// Block groups; the last may be short.
    pub groups: u64,
    /// A multiple of 16, so that the tables of all groups together are one table.
    pub inodes_per_group: u64,
}

/// What is taken; all of it from the start.
#[derive(Debug, Clone, Copy)]
pub struct Used<'a> {
    /// Blocks.
    pub blocks: u64,
    /// Inodes.
    pub inodes: u64,
    /// Inode numbers of directories, ascending.
    pub directories: &'a [u64],
}

impl Layout {
    /// A layout for `data` blocks of content and `inodes` inodes, `size` bytes long if given.
    ///
    /// # Errors
    /// The size asked for is too small.
    pub fn new(data: u64, inodes: u64, size: Option<u64>) -> Result<Layout, Ext4Error> {
        let spare = if size.is_some() { 0 } else { data / 8 + SPARE_BLOCKS };
        let asked = size.map_or(0, |size| size / BLOCK);
        let mut groups = 1;
        loop {
            let layout = Layout::with_groups(groups, data + spare, inodes, asked);
            let needed = layout.blocks.div_ceil(GROUP_BLOCKS);
            if needed <= groups && layout.inodes_per_group <= GROUP_BLOCKS {
                return match size {
                    Some(size) if layout.blocks > asked => {
                        Err(Ext4Error::TooSmall { size, need: layout.bytes() })
                    }
                    _ => Ok(layout),
                };
            }
            groups = needed.max(groups + 1);
        }
    }

    /// At least one block of the last group is there: a group without blocks is none.
    fn with_groups(groups: u64, data: u64, inodes: u64, asked: u64) -> Layout {
        let inodes_per_group = (inodes + SPARE_INODES).div_ceil(groups).next_multiple_of(INODES_PER_BLOCK);
        let layout = Layout { blocks: 0, groups, inodes_per_group };
        let least = (groups - 1) * GROUP_BLOCKS + 1;
        Layout { blocks: (layout.first_data_block() + data).max(least).max(asked), ..layout }
    }

    /// Length of the image.
    pub fn bytes(&self) -> u64 {
        self.blocks * BLOCK
    }

    /// Inodes in all, used or not.
    pub fn inodes(&self) -> u64 {
        self.groups * self.inodes_per_group
    }

    fn block_bitmaps(&self) -> u64 {
        1 + (self.groups * DESCRIPTOR_LEN as u64).div_ceil(BLOCK)
    }

    fn inode_bitmaps(&self) -> u64 {
        self.block_bitmaps() + self.groups
    }

    /// First block of the inode table of all groups.
    pub fn inode_table(&self) -> u64 {
        self.inode_bitmaps() + self.groups
    }

    /// First block that belongs to a file.
    pub fn first_data_block(&self) -> u64 {
        self.inode_table() + self.inodes() / INODES_PER_BLOCK
    }

    /// Writes the bitmaps of every group. Bits behind the last block or inode of a group are set, as if they were taken.
    ///
    /// # Errors
    /// Writing failed.
    pub fn write_bitmaps(&self, used: &Used<'_>, image: &Image<'_>) -> Result<(), Ext4Error> {
        for group in 0..self.groups {
            let blocks = bitmap(self.used_blocks(group, used), self.group_blocks(group));
            image.write(&blocks, (self.block_bitmaps() + group) * BLOCK)?;
            let inodes = bitmap(self.used_inodes(group, used), self.inodes_per_group);
            image.write(&inodes, (self.inode_bitmaps() + group) * BLOCK)?;
        }
        Ok(())
    }

    /// The descriptors of all groups (ext4, "Block Group Descriptors").
    pub fn descriptors(&self, used: &Used<'_>) -> Vec<u8> {
        (0..self.groups).flat_map(|group| self.descriptor(group, used)).collect()
    }

    fn descriptor(&self, group: u64, used: &Used<'_>) -> [u8; DESCRIPTOR_LEN] {
        let numbers = group * self.inodes_per_group + 1..=(group + 1) * self.inodes_per_group;
        let directories = used.directories.partition_point(|number| number <= numbers.end())
            - used.directories.partition_point(|number| number < numbers.start());
        let table = self.inode_table() + group * self.inodes_per_group / INODES_PER_BLOCK;
        let mut bytes = [0; DESCRIPTOR_LEN];
        bytes[0..4].copy_from_slice(&low32(self.block_bitmaps() + group));
        bytes[4..8].copy_from_slice(&low32(self.inode_bitmaps() + group));
        bytes[8..12].copy_from_slice(&low32(table));
        bytes[12..14].copy_from_slice(&low16(self.group_blocks(group) - self.used_blocks(group, used)));
        bytes[14..16].copy_from_slice(&low16(self.inodes_per_group - self.used_inodes(group, used)));
        bytes[16..18].copy_from_slice(&low16(directories as u64));
        bytes
    }

    fn group_blocks(&self, group: u64) -> u64 {
        (self.blocks - group * GROUP_BLOCKS).min(GROUP_BLOCKS)
    }

    fn used_blocks(&self, group: u64, used: &Used<'_>) -> u64 {
        used.blocks.saturating_sub(group * GROUP_BLOCKS).min(GROUP_BLOCKS)
    }

    fn used_inodes(&self, group: u64, used: &Used<'_>) -> u64 {
        used.inodes.saturating_sub(group * self.inodes_per_group).min(self.inodes_per_group)
    }
}

/// A number that is known to fit, little-endian.
pub fn low32(value: u64) -> [u8; 4] {
    ((value & 0xffff_ffff) as u32).to_le_bytes()
}

/// A number that is known to fit, little-endian.
pub fn low16(value: u64) -> [u8; 2] {
    ((value & 0xffff) as u16).to_le_bytes()
}

/// A bitmap with the first `used` bits set, and all behind the first `total`.
fn bitmap(used: u64, total: u64) -> Vec<u8> {
    let mut bytes = vec![0u8; BLOCK_LEN];
    for (bits, byte) in (0u64..).step_by(8).zip(&mut bytes) {
        let below = |count: u64| (1u16 << count.saturating_sub(bits).min(8)) - 1;
        *byte = (below(used) | !below(total)).to_le_bytes()[0];
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bitmaps_have_used_and_missing_bits_set() {
        let bytes = bitmap(11, 21);
        assert_eq!(bytes[..4], [0xff, 0b0000_0111, 0b1110_0000, 0xff]);
        assert!(bitmap(GROUP_BLOCKS, GROUP_BLOCKS).iter().all(|byte| *byte == 0xff));
        assert!(bitmap(0, GROUP_BLOCKS).iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_layout_holds_its_data_and_every_group_has_blocks() {
        for (data, inodes) in
            [(0, 11), (1, 11), (31_000, 100), (32_768, 100), (1 << 20, 50_000), (10, 1_000_000)]
        {
            let layout = Layout::new(data, inodes, None).unwrap();
            assert!(layout.first_data_block() + data <= layout.blocks, "{layout:?}");
            assert!(layout.inodes() >= inodes && layout.inodes_per_group <= GROUP_BLOCKS, "{layout:?}");
            assert!(layout.blocks > (layout.groups - 1) * GROUP_BLOCKS, "{layout:?}");
            assert!(layout.blocks <= layout.groups * GROUP_BLOCKS, "{layout:?}");
        }
    }

    #[test]
    fn a_size_is_kept_or_refused_with_what_is_needed() {
        let layout = Layout::new(1000, 100, Some(64 << 20)).unwrap();
        assert_eq!(layout.bytes(), 64 << 20);
        let Err(Ext4Error::TooSmall { need, .. }) = Layout::new(1000, 100, Some(1 << 20)) else {
            panic!("fits")
        };
        assert_eq!(Layout::new(1000, 100, Some(need)).unwrap().bytes(), need);
        assert!(Layout::new(1000, 100, Some(need - BLOCK)).is_err());
    }
}
