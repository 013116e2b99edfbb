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

    /// Checks length, table and every section's CRC of the whole file that this header begins.
    pub(super) fn check_sections(&self, bytes: &[u8]) -> Result<Vec<SectionEntry>, DecodeError> {
        if bytes.len() as u64 != self.total_len {
            return Err(DecodeError::Length { recorded: self.total_len, found: bytes.len() });
        }
        let table_end = HEADER_LEN + self.section_count as usize * ENTRY_LEN;
        let table = bytes.get(HEADER_LEN..table_end).ok_or(DecodeError::TooShort { len: bytes.len() })?;
        if crc64(table) != self.table_crc {
            return Err(DecodeError::TableCrc);
        }
        let raw = <[RawEntry]>::ref_from_bytes(table).map_err(|_| DecodeError::TableCrc)?;
        let mut offset = table_end;
        let mut entries = Vec::with_capacity(raw.len());
        for entry in raw {
            let entry = SectionEntry::check(entry, self.version, offset, bytes)?;
            offset += entry.len;
            entries.push(entry);
        }
        if offset != bytes.len() {
            return Err(DecodeError::Unclaimed { len: bytes.len() - offset });
        }
        check_unique(&entries)?;
        Ok(entries)
    }
}

impl SectionEntry {
    /// Checks one entry whose section must begin at `expected`, and its section's CRC.
    fn check(
        raw: &RawEntry,
        version: FormatVersion,
        expected: usize,
        bytes: &[u8],
    ) -> Result<SectionEntry, DecodeError> {
        let (id, instance) = (SectionId(raw.id.get()), raw.instance.get());
        let required = raw.flags.get() & FLAG_REQUIRED != 0;
        if required && id.name().is_none() {
            return Err(DecodeError::UnknownSection { id });
        }
        if raw.flags.get() & !FLAG_REQUIRED != 0 || raw.reserved.get() != 0 {
            return Err(DecodeError::UnknownFlags { id, instance });
        }
        if Some(raw.version.get()) != version.root() {
            return Err(DecodeError::SectionVersion { id, instance, version: raw.version.get() });
        }
        let out_of_place = DecodeError::OutOfPlace { id, instance };
        if raw.offset.get() != expected as u64 {
            return Err(out_of_place);
        }
        let body = usize::try_from(raw.len.get())
            .ok()
            .and_then(|len| bytes.get(expected..expected.checked_add(len)?))
            .ok_or(out_of_place)?;
        if crc64(body) != raw.crc.get() {
            return Err(DecodeError::SectionCrc { id, instance });
        }
        Ok(SectionEntry { id, instance, required, offset: expected, len: body.len(), crc: raw.crc.get() })
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
