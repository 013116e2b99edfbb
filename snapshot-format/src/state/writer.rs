//! Writes a `state` file, at any version this release reads.

use zerocopy::IntoBytes;

use super::header::{
    self, Arch, CODEC_VERSIONIZE, ENTRY_LEN, FLAG_REQUIRED, HEADER_LEN, MAGIC, RawEntry, RawHeader,
};
use super::registry::version_map;
use super::{FormatVersion, SECTIONS_MAX, STATE_MAX, Section, SectionId};
use crate::crc::crc64;

/// Why a machine's state cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    #[error("Format {version} cannot be written, only {}", FormatVersion::readable_range())]
    Version { version: FormatVersion },
    #[error("Section {id} {instance} is put into the state twice")]
    Duplicate { id: SectionId, instance: u32 },
    #[error("Section {id} {instance} cannot be encoded: {detail}")]
    Codec1 { id: SectionId, instance: u32, detail: String },
    #[error("The state has more than {SECTIONS_MAX} sections")]
    TooManySections,
    #[error("The state is {len} bytes long, more than the limit of {STATE_MAX}")]
    TooLong { len: usize },
}

/// Collects sections and lays them out behind header and table.
#[derive(Debug)]
pub struct Writer {
    version: FormatVersion,
    creator: String,
    entries: Vec<RawEntry>,
    body: Vec<u8>,
}

impl Writer {
    /// A writer of the given format. A version that cannot be written is refused by `put` and `finish`.
    pub fn new(version: FormatVersion) -> Self {
        let creator = format!("ember {}", env!("CARGO_PKG_VERSION"));
        Writer { version, creator, entries: Vec::new(), body: Vec::new() }
    }

    /// Replaces the name of the program that writes the file; cut to 32 bytes.
    pub fn with_creator(mut self, creator: &str) -> Self {
        creator.clone_into(&mut self.creator);
        self
    }

    /// Encodes a section at the end of the file.
    ///
    /// # Errors
    /// The same section twice, a vector, string or blob over its limit, or a format that cannot be written.
    pub fn put<S: Section>(&mut self, instance: u32, section: &S) -> Result<(), EncodeError> {
        let (id, root) = (S::ID, self.root()?);
        if self.entries.iter().any(|entry| entry.id == id.0 && entry.instance == instance) {
            return Err(EncodeError::Duplicate { id, instance });
        }
        let start = self.body.len();
        section.serialize(&mut self.body, version_map(), root).map_err(|error| EncodeError::Codec1 {
            id,
            instance,
            detail: error.to_string().chars().take(200).collect(),
        })?;
        let encoded = &self.body[start..];
        self.entries.push(RawEntry {
            id: id.0.into(),
            instance: instance.into(),
            flags: if S::REQUIRED { FLAG_REQUIRED } else { 0 }.into(),
            version: root.into(),
            reserved: 0.into(),
            // Counted from the first section here; `finish` knows where that lies.
            offset: (start as u64).into(),
            len: (encoded.len() as u64).into(),
            crc: crc64(encoded).into(),
        });
        Ok(())
    }

    fn root(&self) -> Result<u16, EncodeError> {
        self.version.root().ok_or(EncodeError::Version { version: self.version })
    }

    /// The whole file.
    ///
    /// # Errors
    /// Too many sections, too long, or a format that cannot be written.
    pub fn finish(mut self) -> Result<Vec<u8>, EncodeError> {
        self.root()?;
        let count = u32::try_from(self.entries.len())
            .ok()
            .filter(|count| *count as usize <= SECTIONS_MAX)
            .ok_or(EncodeError::TooManySections)?;
        let sections_start = HEADER_LEN + self.entries.len() * ENTRY_LEN;
        let total_len = sections_start + self.body.len();
        if total_len > STATE_MAX {
            return Err(EncodeError::TooLong { len: total_len });
        }
        for entry in &mut self.entries {
            entry.offset += sections_start as u64;
        }
        let table = self.entries.as_bytes();
        let header = self.header(count, total_len as u64, crc64(table));
        let mut file = Vec::with_capacity(total_len);
        file.extend_from_slice(header.as_bytes());
        file.extend_from_slice(table);
        file.append(&mut self.body);
        Ok(file)
    }

    fn header(&self, section_count: u32, total_len: u64, table_crc: u64) -> RawHeader {
        header::seal(RawHeader {
            magic: MAGIC,
            header_len: header::HEADER_LEN_FIELD.into(),
            major: self.version.major.into(),
            minor: self.version.minor.into(),
            arch: Arch::X86_64.number().into(),
            codec: CODEC_VERSIONIZE.into(),
            section_count: section_count.into(),
            total_len: total_len.into(),
            creator: header::creator_bytes(&self.creator),
            table_crc: table_crc.into(),
            header_crc: 0.into(),
        })
    }
}
