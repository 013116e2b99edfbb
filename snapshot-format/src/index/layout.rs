//! The bytes of the index: header and run entries.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::crc::crc64;

/// First bytes of the file.
pub(super) const MAGIC: [u8; 8] = *b"\x89EMIDX\r\n";
/// Layout of the file.
pub(super) const VERSION: u16 = 1;
/// Length of the header, bytes.
pub const HEADER_LEN: usize = HEADER_LEN_FIELD as usize;
/// The same as the header records it.
pub(super) const HEADER_LEN_FIELD: u32 = 80;
/// Length of a run's entry, bytes.
pub(super) const RUN_LEN: usize = size_of::<RawRun>();
/// Length of a chunk's CRC, bytes.
pub(super) const CRC_LEN: usize = size_of::<U64>();
/// How many bytes of the header its own CRC covers.
const HEADER_CRC_COVERS: usize = HEADER_LEN - CRC_LEN;

/// Kinds of run. 0 is none, so that a table of zeros is not a table.
pub(super) const KIND_ZERO: u16 = 1;
pub(super) const KIND_HERE: u16 = 2;
pub(super) const KIND_PARENT: u16 = 3;

const _: () = assert!(size_of::<RawHeader>() == HEADER_LEN && RUN_LEN == 16);

#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawHeader {
    pub magic: [u8; 8],
    pub header_len: U32,
    pub version: U16,
    pub reserved: U16,
    pub granule: U32,
    pub tsc_khz: U32,
    pub memory_len: U64,
    pub layout_check: U64,
    pub chunk_count: U32,
    pub run_count: U32,
    pub crc_count: U32,
    pub reserved2: U32,
    pub total_len: U64,
    pub table_crc: U64,
    pub header_crc: U64,
}

#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawRun {
    pub kind: U16,
    pub generation: U16,
    pub count: U32,
    pub offset: U64,
}

/// The CRC that belongs into the header.
pub(super) fn header_crc(raw: &RawHeader) -> u64 {
    crc64(&raw.as_bytes()[..HEADER_CRC_COVERS])
}

/// What the memory of one bundle has and that of another hardly: the header's CRC, which covers the tables' CRC, in which that of each
/// chunk's content is. Of a header that has not been checked it is as good as the header.
pub fn mark(header: &[u8; HEADER_LEN]) -> u64 {
    RawHeader::ref_from_bytes(header).map_or(0, |raw| raw.header_crc.get())
}

/// Fills in the CRC of the header.
pub(super) fn seal(mut raw: RawHeader) -> RawHeader {
    raw.header_crc = header_crc(&raw).into();
    raw
}

/// Makes length and CRCs of a spoilt file right again, so that fuzzing reaches what they hide.
pub(crate) fn reseal(bytes: &mut [u8]) {
    let total_len = bytes.len() as u64;
    let Ok((raw, table)) = RawHeader::mut_from_prefix(bytes) else { return };
    raw.total_len = total_len.into();
    raw.table_crc = crc64(table).into();
    raw.header_crc = header_crc(raw).into();
}
