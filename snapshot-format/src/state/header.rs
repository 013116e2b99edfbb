//! Header and section table: what can be known of a `state` file without decoding it.

use std::fmt;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{DecodeError, FormatVersion, SECTIONS_MAX, STATE_MAX, SectionId};
use crate::crc::crc64;

/// First bytes of the file: not text, not UTF-8, and visibly spoilt by a transfer that rewrites line ends.
pub(super) const MAGIC: [u8; 8] = *b"\x89EMBER\r\n";
/// Length of the header, bytes. Part of the format: every major keeps it, so that the version is always readable.
pub(super) const HEADER_LEN: usize = HEADER_LEN_FIELD as usize;
/// The same as the header records it.
pub(super) const HEADER_LEN_FIELD: u32 = 80;
/// Length of one entry of the section table, bytes.
pub(super) const ENTRY_LEN: usize = size_of::<RawEntry>();
/// How many bytes of the header its own CRC covers.
const HEADER_CRC_COVERS: usize = HEADER_LEN - size_of::<u64>();
/// Codec 1: versionize over bincode 1, fixed-width little-endian integers.
pub(super) const CODEC_VERSIONIZE: u16 = 1;
/// The section must be known to the reader and taken by it.
pub(super) const FLAG_REQUIRED: u16 = 1;
/// Longest creator text, bytes.
pub(super) const CREATOR_MAX: usize = 32;

const _: () = assert!(size_of::<RawHeader>() == HEADER_LEN && ENTRY_LEN == 40);

#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawHeader {
    pub magic: [u8; 8],
    pub header_len: U32,
    pub major: U16,
    pub minor: U16,
    pub arch: U16,
    pub codec: U16,
    pub section_count: U32,
    pub total_len: U64,
    pub creator: [u8; CREATOR_MAX],
    pub table_crc: U64,
    pub header_crc: U64,
}

#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawEntry {
    pub id: U32,
    pub instance: U32,
    pub flags: U16,
    pub version: U16,
    pub reserved: U32,
    pub offset: U64,
    pub len: U64,
    pub crc: U64,
}

/// Architecture of the saved machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    X86_64,
}

impl Arch {
    pub(super) const fn number(self) -> u16 {
        match self {
            Arch::X86_64 => 1,
        }
    }

    fn from_number(number: u16) -> Option<Arch> {
        (number == Arch::X86_64.number()).then_some(Arch::X86_64)
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Arch::X86_64 => f.write_str("x86_64"),
        }
    }
}

/// A checked header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub version: FormatVersion,
    pub arch: Arch,
    /// Program and version that wrote the file.
    pub creator: String,
    pub section_count: u32,
    /// Length of the whole file, bytes.
    pub total_len: u64,
    table_crc: u64,
}

/// A checked entry of the section table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SectionEntry {
    pub id: SectionId,
    /// Tells sections of one kind apart: the vCPU's index, the device's slot.
    pub instance: u32,
    pub required: bool,
    /// Where the section begins in the file, and how long it is, bytes.
    pub offset: usize,
    pub len: usize,
    /// CRC-64/Jones of the section's bytes.
    pub crc: u64,
}

impl Header {
    /// Checks the first bytes of a `state` file, whatever follows them.
    ///
    /// # Errors
    /// Not a state file, damaged, of another version or architecture, or of a codec this release does not know.
    pub fn check(bytes: &[u8]) -> Result<Header, DecodeError> {
        let (raw, _) =
            RawHeader::ref_from_prefix(bytes).map_err(|_| DecodeError::TooShort { len: bytes.len() })?;
        if raw.magic != MAGIC {
            return Err(DecodeError::Magic);
        }
        if crc64(&raw.as_bytes()[..HEADER_CRC_COVERS]) != raw.header_crc.get() {
            return Err(DecodeError::HeaderCrc);
        }
        Self::from_undamaged(raw)
    }

    fn from_undamaged(raw: &RawHeader) -> Result<Header, DecodeError> {
        let creator = creator_text(&raw.creator);
        let version = FormatVersion { major: raw.major.get(), minor: raw.minor.get() };
        if version.root().is_none() {
            return Err(DecodeError::Version { version, creator });
        }
        if raw.header_len.get() as usize != HEADER_LEN {
            return Err(DecodeError::HeaderLen { len: raw.header_len.get() });
        }
        let arch = Arch::from_number(raw.arch.get()).ok_or(DecodeError::Arch { number: raw.arch.get() })?;
        if raw.codec.get() != CODEC_VERSIONIZE {
            return Err(DecodeError::Codec { number: raw.codec.get() });
        }
        if raw.section_count.get() as usize > SECTIONS_MAX {
            return Err(DecodeError::TooManySections { count: raw.section_count.get() });
        }
        if raw.total_len.get() > STATE_MAX as u64 {
            return Err(DecodeError::TooLong { len: raw.total_len.get() });
        }
        Ok(Header {
            version,
            arch,
            creator,
            section_count: raw.section_count.get(),
            total_len: raw.total_len.get(),
            table_crc: raw.table_crc.get(),
        })
    }
}

/// A checked header and section table: everything of a `state` file but its sections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    pub header: Header,
    /// In the file's order.
    pub entries: Vec<SectionEntry>,
}

impl Table {
    /// No table ends behind this many bytes of a file.
    pub const MAX_LEN: usize = HEADER_LEN + SECTIONS_MAX * ENTRY_LEN;

    /// Checks header and table at the beginning of a `state` file of `file_len` bytes, of which `bytes` are the first.
    ///
    /// # Errors
    /// Not a state file that this release reads, damaged, or of another length than it was written with.
    pub fn check(bytes: &[u8], file_len: u64) -> Result<Table, DecodeError> {
        let header = Header::check(bytes)?;
        if file_len != header.total_len {
            return Err(DecodeError::Length { recorded: header.total_len, found: file_len });
        }
        let table_end = HEADER_LEN + header.section_count as usize * ENTRY_LEN;
        let table = bytes.get(HEADER_LEN..table_end).ok_or(DecodeError::TooShort { len: bytes.len() })?;
        if crc64(table) != header.table_crc {
            return Err(DecodeError::TableCrc);
        }
        let raw = <[RawEntry]>::ref_from_bytes(table).map_err(|_| DecodeError::TableCrc)?;
        let mut offset = table_end as u64;
        let mut entries = Vec::with_capacity(raw.len());
        for raw in raw {
            let entry = SectionEntry::check(raw, &header, offset)?;
            offset += entry.len as u64;
            entries.push(entry);
        }
        if offset != header.total_len {
            return Err(DecodeError::Unclaimed { len: header.total_len.saturating_sub(offset) });
        }
        check_unique(&entries)?;
        Ok(Table { header, entries })
    }
}

impl SectionEntry {
    /// Checks one entry whose section must begin at `expected`.
    fn check(raw: &RawEntry, header: &Header, expected: u64) -> Result<SectionEntry, DecodeError> {
        let (id, instance) = (SectionId(raw.id.get()), raw.instance.get());
        let required = raw.flags.get() & FLAG_REQUIRED != 0;
        if required && id.name().is_none() {
            return Err(DecodeError::UnknownSection { id });
        }
        if raw.flags.get() & !FLAG_REQUIRED != 0 || raw.reserved.get() != 0 {
            return Err(DecodeError::UnknownFlags { id, instance });
        }
        if Some(raw.version.get()) != header.version.root() {
            return Err(DecodeError::SectionVersion { id, instance, version: raw.version.get() });
        }
        let (offset, len) = (raw.offset.get(), raw.len.get());
        let fits = offset.checked_add(len).is_some_and(|end| end <= header.total_len);
        match (usize::try_from(offset), usize::try_from(len)) {
            (Ok(offset), Ok(len)) if fits && offset as u64 == expected => {
                Ok(SectionEntry { id, instance, required, offset, len, crc: raw.crc.get() })
            }
            _ => Err(DecodeError::OutOfPlace { id, instance }),
        }
    }

    /// The section's bytes in the whole file, once they match their CRC.
    pub(super) fn body<'a>(&self, bytes: &'a [u8]) -> Result<&'a [u8], DecodeError> {
        let (id, instance) = (self.id, self.instance);
        let body =
            bytes.get(self.offset..self.offset + self.len).ok_or(DecodeError::OutOfPlace { id, instance })?;
        if crc64(body) == self.crc { Ok(body) } else { Err(DecodeError::SectionCrc { id, instance }) }
    }
}

fn check_unique(entries: &[SectionEntry]) -> Result<(), DecodeError> {
    let mut keys: Vec<_> = entries.iter().map(|entry| (entry.id, entry.instance)).collect();
    keys.sort_unstable();
    match keys.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(DecodeError::Duplicate { id: pair[0].0, instance: pair[0].1 }),
        None => Ok(()),
    }
}

/// The creator as text fit for a message, whatever the bytes are.
fn creator_text(bytes: &[u8; CREATOR_MAX]) -> String {
    let len = bytes.iter().position(|byte| *byte == 0).unwrap_or(CREATOR_MAX);
    String::from_utf8_lossy(&bytes[..len]).chars().filter(|c| !c.is_control()).collect()
}

/// `creator` cut at a character boundary to what the header has room for, padded with zeros.
pub(super) fn creator_bytes(creator: &str) -> [u8; CREATOR_MAX] {
    let mut bytes = [0; CREATOR_MAX];
    let len = creator.floor_char_boundary(CREATOR_MAX);
    bytes[..len].copy_from_slice(&creator.as_bytes()[..len]);
    bytes
}

/// Fills in the CRC of the header.
pub(super) fn seal(mut raw: RawHeader) -> RawHeader {
    raw.header_crc = crc64(&raw.as_bytes()[..HEADER_CRC_COVERS]).into();
    raw
}

/// Makes lengths and CRCs of a spoilt file right again, so that fuzzing reaches what they hide.
pub(crate) fn reseal(bytes: &mut [u8]) {
    let total_len = bytes.len() as u64;
    let Some((head, rest)) = bytes.split_at_mut_checked(HEADER_LEN) else { return };
    let Ok(raw) = RawHeader::mut_from_bytes(head) else { return };
    let count = (raw.section_count.get() as usize).min(rest.len() / ENTRY_LEN);
    let table_len = count * ENTRY_LEN;
    let (table, sections) = rest.split_at_mut(table_len);
    let sections_start = (HEADER_LEN + table_len) as u64;
    if let Ok(entries) = <[RawEntry]>::mut_from_bytes(table) {
        for entry in entries {
            let start = usize::try_from(entry.offset.get().saturating_sub(sections_start)).unwrap_or(0);
            let end = start.saturating_add(usize::try_from(entry.len.get()).unwrap_or(0));
            entry.crc = sections.get(start..end).map_or(0, crc64).into();
        }
    }
    raw.total_len = total_len.into();
    raw.table_crc = crc64(table).into();
    *raw = seal(raw.clone());
}
