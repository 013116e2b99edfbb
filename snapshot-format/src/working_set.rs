//! The `working-set` file: the guest pages a first invocation touches, those it reads and those it writes apart.
//!
//! It is a hint: a wrong one costs time and nothing else, so that a bundle without it, or with one of a layout that this
//! release does not know, runs all the same.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::crc::crc64;
use crate::index::MEMORY_MAX;
use crate::zero::PAGE;

/// First bytes of the file.
const MAGIC: [u8; 8] = *b"\x89EMWKS\r\n";
/// Layout of the file.
const VERSION: u8 = 3;
const HEADER_LEN: usize = size_of::<RawHeader>();
const RANGE_LEN: usize = size_of::<RawRange>();
/// How many bytes of the header its own CRC covers.
const HEADER_CRC_COVERS: usize = HEADER_LEN - size_of::<u64>();
/// Longest file, bytes: every other page of [`MEMORY_MAX`] on its own.
pub const WORKING_SET_MAX: u64 = 16 << 20;

const _: () = assert!(HEADER_LEN == 64 && RANGE_LEN == 8);

#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 8],
    version: u8,
    reserved: [u8; 3],
    read_count: U32,
    write_count: U32,
    late_read_count: U32,
    late_write_count: U32,
    reserved2: U32,
    memory_len: U64,
    index_mark: U64,
    table_crc: U64,
    header_crc: U64,
}

#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawRange {
    first: U32,
    count: U32,
}

/// Why a `working-set` file is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WorkingSetError {
    #[error("The working set is cut off: {len} bytes are less than its header")]
    TooShort { len: usize },
    #[error("The working set does not begin like one: this is no working set of an Ember bundle")]
    Magic,
    #[error("The working set does not match its checksum: the file is damaged, record it again or remove it")]
    Crc,
    #[error("The working set has layout {version} and this release reads layout {VERSION}: record it again")]
    Version { version: u8 },
    #[error("Reserved fields of the working set are in use: no release of this layout writes this")]
    Reserved,
    #[error("The working set is of {len} bytes of memory, which no guest has")]
    MemoryLen { len: u64 },
    #[error("The working set is {found} bytes long instead of {expected}")]
    Length { expected: u64, found: usize },
    #[error("Range {number} of the working set is empty, out of order or behind the end of memory")]
    Range { number: usize },
}

/// Neighbouring 4 KiB pages of guest memory, numbered in the `memory` file's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRange {
    pub first: u32,
    /// At least one.
    pub count: u32,
}

/// The pages of a first invocation. Of each list the ranges ascend and have a gap between them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WorkingSet {
    /// Bytes of guest memory.
    pub memory_len: u64,
    /// [Mark](crate::index::mark) of the memory that it was recorded with.
    pub index_mark: u64,
    /// Pages that are only read, before the first piece of the answer is there.
    pub read: Vec<PageRange>,
    /// Pages of that time that are written, then or later.
    pub write: Vec<PageRange>,
    /// Pages that are touched only afterwards, and only read.
    pub late_read: Vec<PageRange>,
    /// Pages that are touched only afterwards, and written.
    pub late_write: Vec<PageRange>,
}

impl PageRange {
    /// Where it lies in the `memory` file.
    pub fn bytes(&self) -> std::ops::Range<u64> {
        let first = u64::from(self.first) * PAGE as u64;
        first..first + u64::from(self.count) * PAGE as u64
    }
}

impl WorkingSet {
    /// Checks and decodes a whole file.
    ///
    /// # Errors
    /// The file is damaged, or not one that this release reads.
    pub fn decode(bytes: &[u8]) -> Result<WorkingSet, WorkingSetError> {
        let (raw, table) =
            RawHeader::ref_from_prefix(bytes).map_err(|_| WorkingSetError::TooShort { len: bytes.len() })?;
        raw.check()?;
        let counts = raw.counts();
        let ranges: u64 = counts.iter().map(|count| u64::from(count.get())).sum();
        let expected = HEADER_LEN as u64 + ranges * RANGE_LEN as u64;
        let wrong_length = WorkingSetError::Length { expected, found: bytes.len() };
        if expected != bytes.len() as u64 {
            return Err(wrong_length);
        }
        if crc64(table) != raw.table_crc.get() {
            return Err(WorkingSetError::Crc);
        }
        let ranges = <[RawRange]>::ref_from_bytes(table).map_err(|_| wrong_length)?;
        let mut ranges = ranges.iter();
        let [read, write, late_read, late_write] =
            counts.map(|count| ranges.by_ref().take(count.get() as usize).map(PageRange::from).collect());
        let (memory_len, index_mark) = (raw.memory_len.get(), raw.index_mark.get());
        let set = WorkingSet { memory_len, index_mark, read, write, late_read, late_write };
        set.check()?;
        Ok(set)
    }

    /// The whole file.
    ///
    /// # Errors
    /// Ranges are out of order or memory is of an impossible length.
    pub fn encode(&self) -> Result<Vec<u8>, WorkingSetError> {
        self.check()?;
        let too_many = |_| WorkingSetError::MemoryLen { len: self.memory_len };
        let raw = |range: &PageRange| RawRange { first: range.first.into(), count: range.count.into() };
        let count = |ranges: &Vec<PageRange>| u32::try_from(ranges.len()).map(U32::from).map_err(too_many);
        let table: Vec<RawRange> = self.lists().into_iter().flatten().map(raw).collect();
        let mut header = RawHeader {
            magic: MAGIC,
            version: VERSION,
            reserved: [0; 3],
            read_count: count(&self.read)?,
            write_count: count(&self.write)?,
            late_read_count: count(&self.late_read)?,
            late_write_count: count(&self.late_write)?,
            reserved2: 0.into(),
            memory_len: self.memory_len.into(),
            index_mark: self.index_mark.into(),
            table_crc: crc64(table.as_bytes()).into(),
            header_crc: 0.into(),
        };
        header.header_crc = header.crc().into();
        Ok([header.as_bytes(), table.as_bytes()].concat())
    }

    /// How many pages are only read.
    pub fn read_pages(&self) -> u64 {
        pages(&self.read) + pages(&self.late_read)
    }

    /// How many pages are written.
    pub fn written_pages(&self) -> u64 {
        pages(&self.write) + pages(&self.late_write)
    }

    /// How many of both are touched only once the first piece of the answer is there.
    pub fn late_pages(&self) -> u64 {
        pages(&self.late_read) + pages(&self.late_write)
    }

    fn lists(&self) -> [&Vec<PageRange>; 4] {
        [&self.read, &self.write, &self.late_read, &self.late_write]
    }

    fn check(&self) -> Result<(), WorkingSetError> {
        let len = self.memory_len;
        if len == 0 || len > MEMORY_MAX || !len.is_multiple_of(PAGE as u64) {
            return Err(WorkingSetError::MemoryLen { len });
        }
        let mut number = 0;
        for ranges in self.lists() {
            check_ranges(ranges, number, len)?;
            number += ranges.len();
        }
        Ok(())
    }
}

fn pages(ranges: &[PageRange]) -> u64 {
    ranges.iter().map(|range| u64::from(range.count)).sum()
}

/// Ranges ascend with gaps between them and end within memory; `number` is the first one's in the file.
fn check_ranges(ranges: &[PageRange], number: usize, memory_len: u64) -> Result<(), WorkingSetError> {
    let pages = memory_len / PAGE as u64;
    let mut free = 0;
    for (nth, range) in ranges.iter().enumerate() {
        let (first, end) = (u64::from(range.first), u64::from(range.first) + u64::from(range.count));
        if range.count == 0 || first < free || end > pages {
            return Err(WorkingSetError::Range { number: number + nth });
        }
        free = end + 1;
    }
    Ok(())
}

impl From<&RawRange> for PageRange {
    fn from(raw: &RawRange) -> Self {
        PageRange { first: raw.first.get(), count: raw.count.get() }
    }
}

impl RawHeader {
    fn counts(&self) -> [U32; 4] {
        [self.read_count, self.write_count, self.late_read_count, self.late_write_count]
    }

    fn check(&self) -> Result<(), WorkingSetError> {
        if self.magic != MAGIC {
            return Err(WorkingSetError::Magic);
        }
        if self.crc() != self.header_crc.get() {
            return Err(WorkingSetError::Crc);
        }
        if self.version != VERSION {
            return Err(WorkingSetError::Version { version: self.version });
        }
        if self.reserved != [0; 3] || self.reserved2.get() != 0 {
            return Err(WorkingSetError::Reserved);
        }
        Ok(())
    }

    fn crc(&self) -> u64 {
        crc64(&self.as_bytes()[..HEADER_CRC_COVERS])
    }
}

/// Makes the CRCs of a spoilt file right again, so that fuzzing reaches what they hide.
pub(crate) fn reseal(bytes: &mut [u8]) {
    let Ok((raw, table)) = RawHeader::mut_from_prefix(bytes) else { return };
    raw.table_crc = crc64(table).into();
    raw.header_crc = raw.crc().into();
}
