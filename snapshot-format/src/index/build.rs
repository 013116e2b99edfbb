//! Writes a `memory.index`.

use zerocopy::IntoBytes;
use zerocopy::little_endian::U64;

use super::layout::{
    self, CRC_LEN, HEADER_LEN, KIND_HERE, KIND_PARENT, KIND_ZERO, RUN_LEN, RawHeader, RawRun,
};
use super::{Binding, Chunk, Granule, Place, Run, is_in_parent};
use crate::crc::Crc64;
use crate::sections::MachineState;
use crate::zero::{PAGE, is_zero};

/// Why an index cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    #[error(
        "A guest memory of this layout cannot be indexed: it is empty, over 8 GiB or no multiple of 4 KiB"
    )]
    Memory,
    #[error("Memory is indexed in file order, and offset {offset:#x} comes after {position:#x}")]
    Order { offset: u64, position: u64 },
    #[error("{len} bytes at {offset:#x} run past the end of guest memory")]
    PastEnd { offset: u64, len: usize },
    #[error("The memory has {expected} chunks and the index {found}")]
    Chunks { found: u64, expected: u64 },
    #[error("No parent bundle can hold a chunk at generation {generation}, offset {offset:#x}")]
    Parent { generation: u16, offset: u64 },
}

/// Lays out an index chunk by chunk.
#[derive(Debug)]
pub struct Encoder {
    binding: Binding,
    granule: Granule,
    runs: Vec<Run>,
    crcs: Vec<U64>,
}

impl Encoder {
    /// An index of the memory of `machine`, bound to its regions and its TSC frequency.
    ///
    /// # Errors
    /// The machine's memory cannot be indexed.
    pub fn new(machine: &MachineState, granule: Granule) -> Result<Self, BuildError> {
        let binding = Binding::of(machine).ok_or(BuildError::Memory)?;
        Ok(Self::bound(binding, granule))
    }

    pub(super) fn bound(binding: Binding, granule: Granule) -> Self {
        Encoder { binding, granule, runs: Vec::new(), crcs: Vec::new() }
    }

    /// Bytes of guest memory.
    pub fn memory_len(&self) -> u64 {
        self.binding.memory_len
    }

    /// Chunks laid out so far.
    fn chunks(&self) -> u64 {
        self.runs.last().map_or(0, Run::end)
    }

    /// Adds the next chunk. The CRC of a zero chunk is not stored.
    ///
    /// # Errors
    /// Memory has no further chunk, or no parent can hold this one.
    pub fn push(&mut self, chunk: Chunk) -> Result<(), BuildError> {
        if let Place::Parent { generation, offset } = chunk.place
            && !is_in_parent(generation, offset, self.granule)
        {
            return Err(BuildError::Parent { generation, offset });
        }
        if chunk.place != Place::Zero {
            self.crcs.push(chunk.crc.into());
        }
        self.extend(chunk.place, 1)
    }

    /// Adds zero chunks until `end` are there.
    fn push_zeros_to(&mut self, end: u64) -> Result<(), BuildError> {
        match end.saturating_sub(self.chunks()) {
            0 => Ok(()),
            count => self.extend(Place::Zero, count),
        }
    }

    fn extend(&mut self, place: Place, count: u64) -> Result<(), BuildError> {
        let (first, expected) = (self.chunks(), self.expected());
        let too_many = BuildError::Chunks { found: first.saturating_add(count), expected };
        if count > expected - first {
            return Err(too_many);
        }
        let (Ok(first), Ok(count)) = (u32::try_from(first), u32::try_from(count)) else {
            return Err(too_many);
        };
        match self.runs.last_mut().filter(|run| run.goes_on_with(place, self.granule)) {
            Some(run) => run.count += count,
            None => self.runs.push(Run { first, count, place }),
        }
        Ok(())
    }

    fn expected(&self) -> u64 {
        self.granule.chunks(self.binding.memory_len)
    }

    /// The whole file.
    ///
    /// # Errors
    /// Chunks are missing.
    pub fn finish(self) -> Result<Vec<u8>, BuildError> {
        let (found, expected) = (self.chunks(), self.expected());
        if found != expected {
            return Err(BuildError::Chunks { found, expected });
        }
        let table: Vec<RawRun> = self.runs.iter().map(|run| raw_run(run, self.granule)).collect();
        let header = self.header(found, &table).ok_or(BuildError::Memory)?;
        Ok([header.as_bytes(), table.as_bytes(), self.crcs.as_bytes()].concat())
    }

    /// `None` when a count does not fit: more chunks than memory can have.
    fn header(&self, chunks: u64, table: &[RawRun]) -> Option<RawHeader> {
        let total_len = HEADER_LEN + table.len() * RUN_LEN + self.crcs.len() * CRC_LEN;
        let mut table_crc = Crc64::new();
        table_crc.update(table.as_bytes());
        table_crc.update(self.crcs.as_bytes());
        Some(layout::seal(RawHeader {
            magic: layout::MAGIC,
            header_len: layout::HEADER_LEN_FIELD.into(),
            version: layout::VERSION.into(),
            reserved: 0.into(),
            granule: self.granule.0.into(),
            tsc_khz: self.binding.tsc_khz.into(),
            memory_len: self.binding.memory_len.into(),
            layout_check: self.binding.layout_check.into(),
            chunk_count: u32::try_from(chunks).ok()?.into(),
            run_count: u32::try_from(table.len()).ok()?.into(),
            crc_count: u32::try_from(self.crcs.len()).ok()?.into(),
            reserved2: 0.into(),
            total_len: (total_len as u64).into(),
            table_crc: table_crc.value().into(),
            header_crc: 0.into(),
        }))
    }
}

fn raw_run(run: &Run, granule: Granule) -> RawRun {
    let (kind, generation, offset) = match run.place {
        Place::Zero => (KIND_ZERO, 0, 0),
        Place::Here => (KIND_HERE, 0, u64::from(run.first) * granule.bytes()),
        Place::Parent { generation, offset } => (KIND_PARENT, generation, offset),
    };
    RawRun {
        kind: kind.into(),
        generation: generation.into(),
        count: run.count.into(),
        offset: offset.into(),
    }
}

/// Makes an index from memory content that comes in file order; what is left out is zero.
#[derive(Debug)]
pub struct Builder {
    encoder: Encoder,
    open: Option<OpenChunk>,
    position: u64,
}

/// A chunk with content, of which the end has not been seen.
#[derive(Debug)]
struct OpenChunk {
    number: u64,
    crc: Crc64,
    /// Bytes of it that are in the CRC.
    filled: u64,
}

impl OpenChunk {
    fn new(number: u64) -> Self {
        OpenChunk { number, crc: Crc64::new(), filled: 0 }
    }

    /// Adds the zeros between the last content and `end`.
    fn pad(&mut self, end: u64) {
        const ZEROS: [u8; PAGE] = [0; PAGE];
        while self.filled < end {
            let len = (end - self.filled).min(PAGE as u64);
            self.crc.update(&ZEROS[..usize::try_from(len).unwrap_or(PAGE)]);
            self.filled += len;
        }
    }
}

impl Builder {
    /// An index of the memory of `machine`, bound to its regions and its TSC frequency.
    ///
    /// # Errors
    /// The machine's memory cannot be indexed.
    pub fn new(machine: &MachineState, granule: Granule) -> Result<Self, BuildError> {
        Ok(Builder { encoder: Encoder::new(machine, granule)?, open: None, position: 0 })
    }

    /// Takes the content at `offset` of the `memory` file.
    ///
    /// # Errors
    /// It lies before what was added already, or past the end of memory.
    pub fn add(&mut self, offset: u64, bytes: &[u8]) -> Result<(), BuildError> {
        if offset < self.position {
            return Err(BuildError::Order { offset, position: self.position });
        }
        let end = offset
            .checked_add(bytes.len() as u64)
            .filter(|end| *end <= self.encoder.memory_len())
            .ok_or(BuildError::PastEnd { offset, len: bytes.len() })?;
        let granule = self.encoder.granule.bytes();
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let room = usize::try_from(granule - at % granule).unwrap_or(usize::MAX);
            let (piece, behind) = rest.split_at(room.min(rest.len()));
            if !is_zero(piece) {
                self.add_piece(at, piece)?;
            }
            at += piece.len() as u64;
            rest = behind;
        }
        self.position = end;
        Ok(())
    }

    /// Adds content that lies in one chunk.
    fn add_piece(&mut self, offset: u64, piece: &[u8]) -> Result<(), BuildError> {
        let granule = self.encoder.granule.bytes();
        let (number, inside) = (offset / granule, offset % granule);
        if self.open.as_ref().is_some_and(|open| open.number != number) {
            self.close()?;
        }
        let open = self.open.get_or_insert_with(|| OpenChunk::new(number));
        open.pad(inside);
        open.crc.update(piece);
        open.filled += piece.len() as u64;
        Ok(())
    }

    fn close(&mut self) -> Result<(), BuildError> {
        let Some(mut open) = self.open.take() else { return Ok(()) };
        let granule = self.encoder.granule.bytes();
        open.pad(granule.min(self.encoder.memory_len() - open.number * granule));
        self.encoder.push_zeros_to(open.number)?;
        self.encoder.push(Chunk { place: Place::Here, crc: open.crc.value() })
    }

    /// The whole file; memory behind the last content is zero.
    ///
    /// # Errors
    /// The index cannot be laid out.
    pub fn finish(mut self) -> Result<Vec<u8>, BuildError> {
        self.close()?;
        self.encoder.push_zeros_to(self.encoder.expected())?;
        self.encoder.finish()
    }
}
