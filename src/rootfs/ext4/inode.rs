//! Inodes and extents (ext4, "Index Nodes" and "Extent Tree").

use sha2::{Digest, Sha256};

use super::BLOCK;
use super::layout::{INODE_LEN, Layout, low16, low32};
use super::plan::Planned;
use crate::rootfs::tree::{Kind, Metadata, Time};

/// Blocks of the longest extent.
pub const EXTENT_BLOCKS: u64 = 32_768;
/// Extents that an inode itself holds; more lie in one further block.
pub const EXTENTS_IN_INODE: u16 = 4;
/// A symlink shorter than this lies in its inode.
pub const FAST_SYMLINK: usize = 60;
/// Bytes of an inode behind the first 128 that are fields; the rest is for extended attributes.
const EXTRA_LEN: u16 = 32;
/// Where extended attributes in an inode begin.
pub const XATTR_OFFSET: usize = 128 + EXTRA_LEN as usize;

const EXTENT_MAGIC: u16 = 0xf30a;
/// Extents of a block behind its header; 12 bytes each.
const BLOCK_EXTENTS: u16 = 340;
/// EXT4_EXTENTS_FL: `i_block` holds extents.
const FLAG_EXTENTS: u32 = 0x8_0000;
/// With more links than this a directory says 1 (`dir_nlink`).
const LINKS_MAX: u64 = 65_000;
/// `i_block` in an inode.
const BLOCK_FIELD: std::ops::Range<usize> = 40..100;

impl Planned<'_> {
    /// The block that holds the extents of a file of more than 512 MiB, whose content begins at `first`.
    pub fn extent_leaf(&self, first: u64) -> Option<Vec<u8>> {
        (self.extents() > u64::from(EXTENTS_IN_INODE)).then(|| self.extent_list(first, BLOCK_EXTENTS))
    }

    /// An extent header and the extents behind it.
    fn extent_list(&self, first: u64, max: u16) -> Vec<u8> {
        let mut bytes = extent_header(self.extents(), max, 0);
        for at in (0..self.extents()).map(|extent| extent * EXTENT_BLOCKS) {
            let (len, start) = ((self.data_blocks - at).min(EXTENT_BLOCKS), first + at);
            bytes.extend([low32(at).as_slice(), &low16(len), &low16(start >> 32), &low32(start)].concat());
        }
        bytes
    }

    /// What `i_block` holds.
    fn block_field(&self, first: u64) -> Vec<u8> {
        match &self.inode.kind {
            Kind::Device { major, minor, .. } => device(*major, *minor),
            Kind::Fifo => Vec::new(),
            Kind::Symlink(target) if target.len() < FAST_SYMLINK => target.clone(),
            _ if self.extents() <= u64::from(EXTENTS_IN_INODE) => self.extent_list(first, EXTENTS_IN_INODE),
            _ => {
                let leaf = first + self.data_blocks;
                let index = [&[0; 4], low32(leaf).as_slice(), &low16(leaf >> 32), &[0; 2]].concat();
                [extent_header(1, EXTENTS_IN_INODE, 1), index].concat()
            }
        }
    }

    fn has_extents(&self) -> bool {
        match &self.inode.kind {
            Kind::Directory(_) | Kind::File(_) => true,
            Kind::Symlink(target) => target.len() >= FAST_SYMLINK,
            Kind::Device { .. } | Kind::Fifo => false,
        }
    }

    fn size(&self) -> u64 {
        match &self.inode.kind {
            Kind::Directory(_) => self.data_blocks * BLOCK,
            Kind::File(content) => content.bytes(),
            Kind::Symlink(target) => target.len() as u64,
            Kind::Device { .. } | Kind::Fifo => 0,
        }
    }

    fn links_field(&self) -> u64 {
        match self.inode.kind {
            Kind::Directory(_) if self.links > LINKS_MAX => 1,
            _ => self.links,
        }
    }

    /// The inode; its blocks begin at `first`.
    fn record(&self, first: u64) -> [u8; INODE_LEN] {
        let Metadata { uid, gid, mtime, .. } = &self.inode.meta;
        let (seconds, extra) = time(mtime);
        let (owner, group) = (u64::from(*uid), u64::from(*gid));
        let xattr_block = if self.xattrs.block.is_some() { first + self.blocks() - 1 } else { 0 };
        let size = self.size();
        let mut bytes = [0; INODE_LEN];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &(self.inode.meta.mode | file_kind(&self.inode.kind)).to_le_bytes());
        put(2, &low16(owner));
        put(4, &low32(size));
        // Access, change and modification: the one time that a layer tells.
        [8, 12, 16].into_iter().for_each(|at| put(at, &seconds));
        put(24, &low16(group));
        put(26, &low16(self.links_field()));
        put(28, &low32(self.blocks() * (BLOCK / 512)));
        put(32, &(if self.has_extents() { FLAG_EXTENTS } else { 0 }).to_le_bytes());
        put(BLOCK_FIELD.start, &self.block_field(first));
        put(104, &low32(xattr_block));
        put(108, &low32(size >> 32));
        put(120, &low16(owner >> 16));
        put(122, &low16(group >> 16));
        put(128, &EXTRA_LEN.to_le_bytes());
        [132, 136, 140, 148].into_iter().for_each(|at| put(at, &extra));
        put(144, &seconds);
        put(XATTR_OFFSET, &self.xattrs.in_inode);
        bytes
    }
}

fn extent_header(entries: u64, max: u16, depth: u16) -> Vec<u8> {
    let fields = [EXTENT_MAGIC.to_le_bytes(), low16(entries), max.to_le_bytes(), depth.to_le_bytes()];
    [fields.concat(), vec![0; 4]].concat()
}

/// Small device numbers in the first word, as they always were; others in the second.
fn device(major: u32, minor: u32) -> Vec<u8> {
    if major < 256 && minor < 256 {
        return (major << 8 | minor).to_le_bytes().to_vec();
    }
    let new = minor & 0xff | major << 8 | (minor & !0xff) << 12;
    [[0; 4], new.to_le_bytes()].concat()
}

/// The low 32 bits of the seconds; nanoseconds with the next two bits of the seconds. Times before 1901 or after 2446
/// become the nearest that can be told.
fn time(time: &Time) -> ([u8; 4], [u8; 4]) {
    const EARLIEST: i64 = i32::MIN as i64;
    let seconds = time.seconds.clamp(EARLIEST, EARLIEST + (4 << 32) - 1);
    let low = low32((seconds & 0xffff_ffff).cast_unsigned());
    let epoch = (seconds - i64::from(i32::from_le_bytes(low))) >> 32;
    (low, low32(u64::from(time.nanoseconds) << 2 | epoch.cast_unsigned()))
}

/// The file type bits of a mode.
fn file_kind(kind: &Kind) -> u16 {
    match kind {
        Kind::Fifo => 0o010_000,
        Kind::Device { block: false, .. } => 0o020_000,
        Kind::Directory(_) => 0o040_000,
        Kind::Device { block: true, .. } => 0o060_000,
        Kind::File(_) => 0o100_000,
        Kind::Symlink(_) => 0o120_000,
    }
}

/// The inode tables of all groups, which lie one behind the other.
pub struct Table {
    pub bytes: Vec<u8>,
}

impl Table {
    /// An empty table, long enough for every number that a plan gave.
    pub fn new(layout: &Layout) -> Table {
        Table { bytes: vec![0; usize::try_from(layout.inodes()).unwrap_or_default() * INODE_LEN] }
    }

    /// Puts an inode whose blocks begin at `first`. Numbers count from 1.
    pub fn add(&mut self, planned: &Planned<'_>, first: u64) {
        let at = usize::try_from(planned.number - 1).unwrap_or_default() * INODE_LEN;
        if let Some(record) = self.bytes.get_mut(at..at + INODE_LEN) {
            record.copy_from_slice(&planned.record(first));
        }
    }

    /// What UUID and hash seed are made from.
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(&self.bytes).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(at: Time) -> (i64, u32) {
        let (low, extra) = time(&at);
        let (low, extra) = (i32::from_le_bytes(low), u32::from_le_bytes(extra));
        (i64::from(low) + (i64::from(extra & 3) << 32), extra >> 2)
    }

    #[test]
    fn times_of_all_epochs_read_back() {
        for seconds in [-1 << 31, -1, 0, 1_700_000_000, 1 << 31, (1 << 32) + 5, 15_032_385_535] {
            assert_eq!(decoded(Time { seconds, nanoseconds: 999_999_999 }), (seconds, 999_999_999));
        }
        assert_eq!(decoded(Time { seconds: i64::MIN, nanoseconds: 0 }).0, -1 << 31);
        assert_eq!(decoded(Time { seconds: i64::MAX, nanoseconds: 0 }).0, 15_032_385_535);
    }

    #[test]
    fn device_numbers_use_the_old_form_when_they_fit() {
        assert_eq!(device(5, 1), [1, 5, 0, 0]);
        assert_eq!(device(259, 1), [0, 0, 0, 0, 1, 3, 1, 0]);
        assert_eq!(device(8, 256), [0, 0, 0, 0, 0, 8, 0x10, 0]);
    }
}
