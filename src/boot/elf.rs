//! The part of an ELF file that loading a kernel needs, with every number checked against the file's real length.

use std::ops::Range;

/// Why an ELF file is no kernel.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ElfError {
    /// The first four bytes are something else.
    #[error("The file does not begin with an ELF header")]
    NotElf,
    /// The file ends in the middle of a table or a segment.
    #[error("The {what} lies outside the file")]
    Truncated {
        /// What is cut off.
        what: &'static str,
    },
    /// 32-bit, big-endian or for another processor.
    #[error("The ELF file is not for x86-64 (64 bits, little-endian)")]
    Machine,
    /// More program headers than any kernel has, or of a wrong size.
    #[error(
        "The ELF file has {count} program headers of {size} bytes; 1 to {PROGRAM_HEADERS_MAX} of 56 bytes are accepted"
    )]
    ProgramHeaders {
        /// Number of headers.
        count: u16,
        /// Length of one.
        size: u16,
    },
    /// A segment whose numbers contradict each other.
    #[error("The segment at {address:#x} is longer in the file than in memory or runs past the last address")]
    Segment {
        /// Physical address.
        address: u64,
    },
    /// Nothing to load.
    #[error("The ELF file has nothing to load")]
    Empty,
    /// The entry point is not in what is loaded.
    #[error("The entry point {entry:#x} lies outside everything that is loaded")]
    Entry {
        /// Physical address.
        entry: u64,
    },
}

/// Kernels have about five.
const PROGRAM_HEADERS_MAX: u16 = 64;
const HEADER_LEN: usize = 64;
const PROGRAM_HEADER_LEN: u16 = 56;
const TYPE_LOAD: u32 = 1;
const TYPE_NOTE: u32 = 4;
const MACHINE_X86_64: u16 = 62;
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;

/// A loadable segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Its bytes in the file; inside the file.
    pub file: Range<usize>,
    /// Guest physical address.
    pub address: u64,
    /// Length in memory, at least that in the file; the rest is zeros. `address + len` does not wrap.
    pub len: u64,
}

/// What is loaded where, and where execution begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elf {
    /// Physical address of the first instruction, inside a segment.
    pub entry: u64,
    /// At least one.
    pub segments: Vec<Segment>,
}

impl Elf {
    /// Reads headers (System V ABI, "Object Files") and checks everything that [`Segment`] promises.
    ///
    /// # Errors
    /// The file is damaged, not for x86-64, or has nothing to load.
    pub fn parse(bytes: &[u8]) -> Result<Elf, ElfError> {
        let header: &[u8; HEADER_LEN] = match bytes.first_chunk() {
            Some(header) if header.starts_with(b"\x7fELF") => header,
            _ if bytes.starts_with(b"\x7fELF") => return Err(ElfError::Truncated { what: "ELF header" }),
            _ => return Err(ElfError::NotElf),
        };
        if (header[4], header[5], u16_at(header, 18)) != (CLASS_64, LITTLE_ENDIAN, MACHINE_X86_64) {
            return Err(ElfError::Machine);
        }
        let segments = segments(bytes, header)?;
        if segments.is_empty() {
            return Err(ElfError::Empty);
        }
        let entry = u64_at(header, 24);
        let inside = |s: &Segment| (s.address..s.address + s.len).contains(&entry);
        if !segments.iter().any(inside) {
            return Err(ElfError::Entry { entry });
        }
        Ok(Elf { entry, segments })
    }

    /// Lowest physical address that is loaded.
    pub fn start(&self) -> u64 {
        self.segments.iter().map(|s| s.address).min().unwrap_or(0)
    }

    /// First physical address behind everything that is loaded.
    pub fn end(&self) -> u64 {
        self.segments.iter().map(|s| s.address + s.len).max().unwrap_or(0)
    }
}

/// The descriptor of the first note of this owner and type (System V ABI, "Note Section"), if the file has it and it lies
/// inside the file. Damaged notes are no notes.
pub fn note<'a>(bytes: &'a [u8], owner: &[u8], kind: u32) -> Option<&'a [u8]> {
    let header: &[u8; HEADER_LEN] = bytes.first_chunk()?;
    let (size, count) = (u16_at(header, 54), u16_at(header, 56));
    (size == PROGRAM_HEADER_LEN).then_some(())?;
    let table = &bytes[part(bytes, u64_at(header, 32), u64::from(size) * u64::from(count))?];
    let notes = table.chunks_exact(usize::from(size)).filter(|h| u32_at(h, 0) == TYPE_NOTE);
    notes.filter_map(|h| part(bytes, u64_at(h, 8), u64_at(h, 32))).find_map(|segment| {
        let mut rest = &bytes[segment];
        while let Some((found, behind)) = first_note(rest) {
            if (found.owner, found.kind) == (owner, kind) {
                return Some(found.descriptor);
            }
            rest = behind;
        }
        None
    })
}

struct Note<'a> {
    owner: &'a [u8],
    kind: u32,
    descriptor: &'a [u8],
}

/// The first note of a segment and what follows it. Owner and descriptor are padded to 4 bytes.
fn first_note(bytes: &[u8]) -> Option<(Note<'_>, &[u8])> {
    const HEADER: usize = 12;
    let (header, rest) = bytes.split_at_checked(HEADER)?;
    let padded = |at: usize| {
        let len = usize::try_from(u32_at(header, at)).ok()?;
        Some((len, len.checked_next_multiple_of(4)?))
    };
    let ((owner_len, owner_padded), (len, padded)) = (padded(0)?, padded(4)?);
    let (owner, rest) = rest.split_at_checked(owner_padded)?;
    let (descriptor, rest) = rest.split_at_checked(padded)?;
    let note =
        Note { owner: owner.get(..owner_len)?, kind: u32_at(header, 8), descriptor: descriptor.get(..len)? };
    Some((note, rest))
}

fn segments(bytes: &[u8], header: &[u8; HEADER_LEN]) -> Result<Vec<Segment>, ElfError> {
    let (size, count) = (u16_at(header, 54), u16_at(header, 56));
    if size != PROGRAM_HEADER_LEN || !(1..=PROGRAM_HEADERS_MAX).contains(&count) {
        return Err(ElfError::ProgramHeaders { count, size });
    }
    let table = part(bytes, u64_at(header, 32), u64::from(size) * u64::from(count))
        .ok_or(ElfError::Truncated { what: "program header table" })?;
    let headers = bytes[table].chunks_exact(usize::from(size));
    headers.filter(|h| u32_at(h, 0) == TYPE_LOAD && u64_at(h, 40) != 0).map(|h| segment(bytes, h)).collect()
}

fn segment(bytes: &[u8], header: &[u8]) -> Result<Segment, ElfError> {
    let (offset, address) = (u64_at(header, 8), u64_at(header, 24));
    let (in_file, len) = (u64_at(header, 32), u64_at(header, 40));
    if in_file > len || address.checked_add(len).is_none() {
        return Err(ElfError::Segment { address });
    }
    let file = part(bytes, offset, in_file).ok_or(ElfError::Truncated { what: "content of a segment" })?;
    Ok(Segment { file, address, len })
}

/// The range `offset..offset + len` if it lies inside `bytes`.
fn part(bytes: &[u8], offset: u64, len: u64) -> Option<Range<usize>> {
    let end = usize::try_from(offset.checked_add(len)?).ok()?;
    (end <= bytes.len()).then_some(end - usize::try_from(len).ok()?..end)
}

/// Little-endian numbers at fixed offsets of a header whose length was checked.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// Sections of a relocatable file: what kernel modules need.
pub mod sections {
    use super::{part, u16_at, u32_at, u64_at};

    const SECTION_HEADER_LEN: u64 = 64;
    const HEADER_LEN: usize = super::HEADER_LEN;

    /// The content of section `name`, if the file has it and it lies inside the file.
    pub fn find<'a>(bytes: &'a [u8], name: &str) -> Option<&'a [u8]> {
        let header: &[u8; HEADER_LEN] = bytes.first_chunk()?;
        header.starts_with(b"\x7fELF\x02\x01").then_some(())?;
        let (size, count, names) = (u16_at(header, 58), u16_at(header, 60), u16_at(header, 62));
        (u64::from(size) == SECTION_HEADER_LEN).then_some(())?;
        let table = &bytes[part(bytes, u64_at(header, 40), SECTION_HEADER_LEN * u64::from(count))?];
        let mut headers = table.chunks_exact(usize::from(size));
        let names = content(bytes, headers.clone().nth(usize::from(names))?)?;
        let found = headers.find(|h| string(names, u32_at(h, 0)) == Some(name.as_bytes()))?;
        content(bytes, found)
    }

    fn content<'a>(bytes: &'a [u8], header: &[u8]) -> Option<&'a [u8]> {
        Some(&bytes[part(bytes, u64_at(header, 24), u64_at(header, 32))?])
    }

    fn string(table: &[u8], at: u32) -> Option<&[u8]> {
        table.get(usize::try_from(at).ok()?..)?.split(|b| *b == 0).next()
    }
}

#[cfg(test)]
pub mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An ELF file with one segment of `content` at `address`, `len` bytes long in memory, entered at its start.
    pub fn file(address: u64, content: &[u8], len: u64) -> Vec<u8> {
        let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
        bytes.resize(16, 0);
        bytes.extend([2, 0, 62, 0, 1, 0, 0, 0]);
        bytes.extend(address.to_le_bytes());
        bytes.extend(64u64.to_le_bytes());
        bytes.extend([0; 12]);
        bytes.extend([64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
        bytes.extend([1, 0, 0, 0, 7, 0, 0, 0]);
        for number in [120, address, address, content.len() as u64, len, 4096] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(content);
        bytes
    }

    /// [`file`] with a second program header, for these notes.
    pub fn file_with_notes(address: u64, content: &[u8], notes: &[u8]) -> Vec<u8> {
        let mut bytes = file(address, content, content.len() as u64);
        let offset = bytes.len() as u64 + 56;
        bytes[56] = 2;
        bytes[72..80].copy_from_slice(&(120u64 + 56).to_le_bytes());
        let mut header = [4u32, 4].map(u32::to_le_bytes).concat();
        for number in [offset, 0, 0, notes.len() as u64, notes.len() as u64, 4] {
            header.extend(number.to_le_bytes());
        }
        bytes.splice(120..120, header);
        bytes.extend(notes);
        bytes
    }

    /// A note as it stands in a file.
    pub fn note_bytes(owner: &[u8], kind: u32, descriptor: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for number in [u32::try_from(owner.len()).unwrap(), u32::try_from(descriptor.len()).unwrap(), kind] {
            bytes.extend(number.to_le_bytes());
        }
        for part in [owner, descriptor] {
            bytes.extend(part);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }

    #[test]
    fn a_note_is_found_among_others() {
        let notes = [
            note_bytes(b"GNU\0", 1, b"no"),
            note_bytes(b"Ember\0", 2, b""),
            note_bytes(b"Ember\0", 1, b"yes"),
        ];
        let bytes = file_with_notes(0x10_0000, b"code", &notes.concat());
        assert_eq!(Elf::parse(&bytes).unwrap().entry, 0x10_0000);
        assert_eq!(note(&bytes, b"Ember\0", 1), Some(&b"yes"[..]));
        assert_eq!(note(&bytes, b"Ember\0", 3), None);
        assert_eq!(note(&file(0x10_0000, b"code", 4), b"Ember\0", 1), None);
    }

    #[test]
    fn notes_that_are_cut_off_are_no_notes() {
        let whole = note_bytes(b"Ember\0", 1, b"content");
        for len in 0..whole.len() {
            let bytes = file_with_notes(0x10_0000, b"code", &whole[..len]);
            assert_eq!(note(&bytes, b"Ember\0", 1), None, "{len} bytes");
        }
        let mut huge = whole;
        huge[4..8].fill(0xff);
        assert_eq!(note(&file_with_notes(0x10_0000, b"code", &huge), b"Ember\0", 1), None);
    }

    #[test]
    fn a_segment_and_the_entry_are_found() {
        let elf = Elf::parse(&file(0x10_0000, b"code", 0x2000)).unwrap();
        assert_eq!(elf.entry, 0x10_0000);
        assert_eq!(elf.segments, [Segment { file: 120..124, address: 0x10_0000, len: 0x2000 }]);
        assert_eq!((elf.start(), elf.end()), (0x10_0000, 0x10_2000));
    }

    #[test]
    fn a_file_cut_off_anywhere_is_refused() {
        let whole = file(0x10_0000, b"code", 0x2000);
        for len in 0..whole.len() {
            assert!(Elf::parse(&whole[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn contradictory_segments_are_refused() {
        assert_eq!(Elf::parse(&file(0x10_0000, b"code", 3)), Err(ElfError::Segment { address: 0x10_0000 }));
        assert_eq!(
            Elf::parse(&file(u64::MAX - 4, b"code", 64)),
            Err(ElfError::Segment { address: u64::MAX - 4 })
        );
        assert_eq!(Elf::parse(&file(0x10_0000, b"", 0)), Err(ElfError::Empty));
    }

    #[test]
    fn an_entry_outside_the_segments_is_refused() {
        let mut bytes = file(0x10_0000, b"code", 0x2000);
        bytes[24..32].copy_from_slice(&0x10_2000u64.to_le_bytes());
        assert_eq!(Elf::parse(&bytes), Err(ElfError::Entry { entry: 0x10_2000 }));
    }

    #[test]
    fn other_processors_are_refused() {
        for (at, value) in [(4, 1), (5, 2), (18, 183)] {
            let mut bytes = file(0x10_0000, b"code", 0x2000);
            bytes[at] = value;
            assert_eq!(Elf::parse(&bytes), Err(ElfError::Machine));
        }
    }

    proptest! {
        #[test]
        fn damaged_headers_never_panic(at in 0usize..120, value: u8, address: u64, len: u64) {
            let mut bytes = file(address, b"code", len);
            bytes[at] = value;
            if let Ok(elf) = Elf::parse(&bytes) {
                prop_assert!(elf.segments.iter().all(|s| s.file.end <= bytes.len() && s.address.checked_add(s.len).is_some()));
            }
            sections::find(&bytes, ".modinfo");
            note(&bytes, b"Ember\0", 1);
        }

        #[test]
        fn damaged_notes_never_panic(notes in proptest::collection::vec(any::<u8>(), 0..100), at in 120usize..176, value: u8) {
            let mut bytes = file_with_notes(0x10_0000, b"code", &notes);
            bytes[at] = value;
            note(&bytes, b"Ember\0", 1);
        }

        #[test]
        fn random_bytes_after_the_magic_never_panic(tail in proptest::collection::vec(any::<u8>(), 0..300)) {
            let bytes = [b"\x7fELF\x02\x01".as_slice(), &tail].concat();
            prop_assert!(Elf::parse(&bytes).is_err() || !tail.is_empty());
            sections::find(&bytes, ".modinfo");
        }
    }
}
