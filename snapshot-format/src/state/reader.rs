//! Reads a `state` file: everything is checked at `open`, sections are decoded when they are taken.

use versionize::Versionize;

use super::registry::version_map;
use super::{
    FormatVersion, Header, SECTIONS_MAX, STATE_MAX, Section, SectionEntry, SectionId, Table, header,
};

/// Why a `state` file is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("The state is cut off: {len} bytes are less than its header and table")]
    TooShort { len: usize },
    #[error("The state does not begin like one: this is no state file of an Ember bundle")]
    Magic,
    #[error(
        "The header of the state does not match its checksum: the file is damaged, bake or fetch it again"
    )]
    HeaderCrc,
    #[error(
        "The state has format {version}, written by {creator}, and this release reads {}: \
         use the release that wrote it or a newer one, or bake again",
        FormatVersion::readable_range()
    )]
    Version { version: FormatVersion, creator: String },
    #[error(
        "The header of the state is {len} bytes long instead of {}: no release writes this",
        header::HEADER_LEN
    )]
    HeaderLen { len: u32 },
    #[error(
        "The state is of architecture number {number} and this release restores only x86_64 (number 1): \
         bake on a host of the architecture you restore on"
    )]
    Arch { number: u16 },
    #[error(
        "The state is encoded with codec {number} and this release knows only codec 1: \
         use the release that wrote it"
    )]
    Codec { number: u16 },
    #[error("The state has {count} sections, more than the limit of {SECTIONS_MAX}")]
    TooManySections { count: u32 },
    #[error("The state is {len} bytes long, more than the limit of {STATE_MAX}")]
    TooLong { len: u64 },
    #[error(
        "The state is {found} bytes long instead of the {recorded} it was written with: \
         the file is damaged, bake or fetch it again"
    )]
    Length { recorded: u64, found: u64 },
    #[error(
        "The section table of the state does not match its checksum: the file is damaged, bake or fetch it again"
    )]
    TableCrc,
    #[error(
        "The state needs a section that this release does not know ({id}): use the release that wrote it"
    )]
    UnknownSection { id: SectionId },
    #[error("Section {id} {instance} of the state has flags that this release does not know")]
    UnknownFlags { id: SectionId, instance: u32 },
    #[error(
        "Section {id} {instance} of the state is encoded at version {version}, which is not its format's"
    )]
    SectionVersion { id: SectionId, instance: u32, version: u16 },
    #[error("Section {id} {instance} of the state does not lie right behind the one before it")]
    OutOfPlace { id: SectionId, instance: u32 },
    #[error(
        "Section {id} {instance} of the state does not match its checksum: \
         the file is damaged, bake or fetch it again"
    )]
    SectionCrc { id: SectionId, instance: u32 },
    #[error("The state ends with {len} bytes that belong to no section")]
    Unclaimed { len: u64 },
    #[error("The state holds section {id} {instance} twice")]
    Duplicate { id: SectionId, instance: u32 },
    #[error("The state has no section {id} {instance}")]
    Missing { id: SectionId, instance: u32 },
    #[error("Section {id} {instance} of the state cannot be decoded: {detail}")]
    Codec1 { id: SectionId, instance: u32, detail: String },
    #[error("Section {id} {instance} of the state has {len} bytes behind its last field")]
    Trailing { id: SectionId, instance: u32, len: usize },
    #[error("The state holds {id} {instance}, which this machine has no place for")]
    Leftover { id: SectionId, instance: u32 },
}

/// A `state` file whose header, table and checksums are right.
#[derive(Debug)]
pub struct Reader {
    bytes: Vec<u8>,
    header: Header,
    entries: Vec<SectionEntry>,
    taken: Vec<bool>,
}

impl Reader {
    /// Checks header, table and every CRC of a whole file; decodes nothing.
    ///
    /// # Errors
    /// The file is damaged, or not one that this release reads.
    pub fn open(bytes: &[u8]) -> Result<Reader, DecodeError> {
        Self::from_vec(bytes.to_vec())
    }

    /// [`Reader::open`] without the copy.
    ///
    /// # Errors
    /// The file is damaged, or not one that this release reads.
    pub fn from_vec(bytes: Vec<u8>) -> Result<Reader, DecodeError> {
        let Table { header, entries } = Table::check(&bytes, bytes.len() as u64)?;
        entries.iter().try_for_each(|entry| entry.body(&bytes).map(drop))?;
        let taken = vec![false; entries.len()];
        Ok(Reader { bytes, header, entries, taken })
    }

    /// The checked header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The checked section table, in the file's order.
    pub fn sections(&self) -> &[SectionEntry] {
        &self.entries
    }

    /// Instances of one kind of section that are in the file, in the file's order, taken or not.
    pub fn instances(&self, id: SectionId) -> Vec<u32> {
        self.entries.iter().filter(|entry| entry.id == id).map(|entry| entry.instance).collect()
    }

    /// Decodes one section and counts it as taken. Fields that the file's version does not have get their default.
    ///
    /// # Errors
    /// The section is not there (or was taken before), or its bytes are not exactly one value.
    pub fn take<S: Section>(&mut self, instance: u32) -> Result<S, DecodeError> {
        let id = S::ID;
        let position = self
            .entries
            .iter()
            .zip(&self.taken)
            .position(|(entry, taken)| !taken && entry.id == id && entry.instance == instance)
            .ok_or(DecodeError::Missing { id, instance })?;
        let section = self.decode(&self.entries[position])?;
        self.taken[position] = true;
        Ok(section)
    }

    fn decode<S: Versionize>(&self, entry: &SectionEntry) -> Result<S, DecodeError> {
        let (id, instance) = (entry.id, entry.instance);
        // `open` has checked that the section lies in the file and that the version is in the map.
        let root = self.header.version.root().unwrap_or(1);
        let mut rest = &self.bytes[entry.offset..entry.offset + entry.len];
        let section = S::deserialize(&mut rest, version_map(), root)
            .map_err(|error| DecodeError::Codec1 { id, instance, detail: brief(&error.to_string()) })?;
        match rest.len() {
            0 => Ok(section),
            len => Err(DecodeError::Trailing { id, instance, len }),
        }
    }

    /// Ends the reading: a required section that nobody took means a machine that lacks something.
    ///
    /// # Errors
    /// A required section is left over.
    pub fn finish(self) -> Result<(), DecodeError> {
        let left = self.entries.iter().zip(&self.taken).find(|(entry, taken)| entry.required && !**taken);
        match left {
            Some((entry, _)) => Err(DecodeError::Leftover { id: entry.id, instance: entry.instance }),
            None => Ok(()),
        }
    }
}

/// versionize quotes an error again at each nested vector, so that its text can grow with the input.
fn brief(text: &str) -> String {
    text.chars().take(200).collect()
}
