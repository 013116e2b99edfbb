//! Reads a `memory.index`.

use zerocopy::FromBytes;
use zerocopy::little_endian::U64;

use super::layout::{
    self, CRC_LEN, HEADER_LEN, KIND_HERE, KIND_PARENT, KIND_ZERO, RUN_LEN, RawHeader, RawRun,
};
use super::{Binding, Chunk, Granule, Place, Run, is_in_parent, is_memory_len};
use crate::crc::crc64;
use crate::sections::MachineState;

/// Why a `memory.index` is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    #[error("The memory index is cut off: {len} bytes are less than its header")]
    TooShort { len: usize },
    #[error("The memory index does not begin like one: this is no index of an Ember bundle")]
    Magic,
    #[error(
        "The header of the memory index does not match its checksum: the file is damaged, bake or fetch it again"
    )]
    HeaderCrc,
    #[error(
        "The memory index has layout {version} and this release reads layout {}: use the release that wrote it",
        layout::VERSION
    )]
    Version { version: u16 },
    #[error("The memory index has chunks of {granule} bytes, not a power of two from 4 to 64 KiB")]
    Granule { granule: u32 },
    #[error("The memory index is of {len} bytes of memory, which no guest has")]
    MemoryLen { len: u64 },
    #[error(
        "The memory index is {found} bytes long instead of {expected}: the file is damaged, bake or fetch it again"
    )]
    Length { expected: u64, found: usize },
    #[error(
        "The tables of the memory index do not match their checksum: the file is damaged, bake or fetch it again"
    )]
    TableCrc,
    #[error("Reserved fields of the memory index are in use: no release of this format writes this")]
    Reserved,
    #[error("Run {number} of the memory index is none that a release of this format writes")]
    Run { number: usize },
    #[error("The runs of the memory index have {found} {what} instead of {expected}")]
    Count { what: &'static str, found: u64, expected: u64 },
    #[error(
        "The memory index belongs to another machine: its {what} differs; the bundle's files do not belong together"
    )]
    Machine { what: &'static str },
}

/// A run and where its chunks' CRCs begin.
#[derive(Debug, Clone, PartialEq, Eq)]
struct PlacedRun {
    run: Run,
    first_crc: usize,
}

/// A checked index: every chunk of the memory has its one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryIndex {
    binding: Binding,
    granule: Granule,
    chunk_count: u32,
    runs: Vec<PlacedRun>,
    crcs: Vec<u64>,
}

impl MemoryIndex {
    /// Checks and decodes a whole file.
    ///
    /// # Errors
    /// The file is damaged, or not one that this release reads.
    pub fn decode(bytes: &[u8]) -> Result<MemoryIndex, IndexError> {
        let (raw, tables) =
            RawHeader::ref_from_prefix(bytes).map_err(|_| IndexError::TooShort { len: bytes.len() })?;
        let mut index = Self::from_header(raw)?;
        let expected = table_len(raw).saturating_add(HEADER_LEN as u64);
        if expected != bytes.len() as u64 || raw.total_len.get() != expected {
            return Err(IndexError::Length { expected, found: bytes.len() });
        }
        if crc64(tables) != raw.table_crc.get() {
            return Err(IndexError::TableCrc);
        }
        let short = IndexError::TooShort { len: bytes.len() };
        let (runs, crcs) = <[RawRun]>::ref_from_prefix_with_elems(tables, raw.run_count.get() as usize)
            .map_err(|_| short.clone())?;
        let crcs = <[U64]>::ref_from_bytes(crcs).map_err(|_| short)?;
        index.place(runs)?;
        index.crcs = crcs.iter().map(|crc| crc.get()).collect();
        index.check_counts()?;
        Ok(index)
    }

    /// An index without chunks, with what the header says.
    fn from_header(raw: &RawHeader) -> Result<MemoryIndex, IndexError> {
        if raw.magic != layout::MAGIC {
            return Err(IndexError::Magic);
        }
        if layout::header_crc(raw) != raw.header_crc.get() {
            return Err(IndexError::HeaderCrc);
        }
        if raw.version.get() != layout::VERSION || raw.header_len.get() != layout::HEADER_LEN_FIELD {
            return Err(IndexError::Version { version: raw.version.get() });
        }
        if raw.reserved.get() != 0 || raw.reserved2.get() != 0 {
            return Err(IndexError::Reserved);
        }
        let granule =
            Granule::new(raw.granule.get()).ok_or(IndexError::Granule { granule: raw.granule.get() })?;
        let memory_len = raw.memory_len.get();
        if !is_memory_len(memory_len) {
            return Err(IndexError::MemoryLen { len: memory_len });
        }
        let (found, expected) = (u64::from(raw.chunk_count.get()), granule.chunks(memory_len));
        if found != expected {
            return Err(IndexError::Count { what: "chunks", found, expected });
        }
        Ok(MemoryIndex {
            binding: Binding { memory_len, tsc_khz: raw.tsc_khz.get(), layout_check: raw.layout_check.get() },
            granule,
            chunk_count: raw.chunk_count.get(),
            runs: Vec::new(),
            crcs: Vec::new(),
        })
    }

    /// Puts the runs one behind the other.
    fn place(&mut self, raw: &[RawRun]) -> Result<(), IndexError> {
        let (mut first, mut first_crc) = (0u32, 0usize);
        self.runs.reserve_exact(raw.len());
        for (number, raw) in raw.iter().enumerate() {
            let bad = IndexError::Run { number };
            let run = self.run(raw, first).ok_or(bad.clone())?;
            first = first.checked_add(run.count).filter(|end| *end <= self.chunk_count).ok_or(bad)?;
            self.runs.push(PlacedRun { run, first_crc });
            if run.place != Place::Zero {
                first_crc += run.count as usize;
            }
        }
        Ok(())
    }

    /// The run that begins at chunk `first`, if it is one that an encoder writes.
    fn run(&self, raw: &RawRun, first: u32) -> Option<Run> {
        let (generation, count, offset) = (raw.generation.get(), raw.count.get(), raw.offset.get());
        let place =
            match raw.kind.get() {
                KIND_ZERO => (generation == 0 && offset == 0).then_some(Place::Zero),
                KIND_HERE => (generation == 0 && offset == u64::from(first) * self.granule.bytes())
                    .then_some(Place::Here),
                KIND_PARENT => is_in_parent(generation, offset, self.granule)
                    .then_some(Place::Parent { generation, offset }),
                _ => None,
            }?;
        let merged = self.runs.last().is_some_and(|last| last.run.goes_on_with(place, self.granule));
        (count > 0 && !merged).then_some(Run { first, count, place })
    }

    fn check_counts(&self) -> Result<(), IndexError> {
        let found = self.runs.last().map_or(0, |last| last.run.end());
        let expected = u64::from(self.chunk_count);
        if found != expected {
            return Err(IndexError::Count { what: "chunks", found, expected });
        }
        let expected = expected - self.count(|place| place == Place::Zero);
        match self.crcs.len() as u64 {
            found if found == expected => Ok(()),
            found => Err(IndexError::Count { what: "checksums", found, expected }),
        }
    }

    /// Whether this is the index of the memory of `machine`.
    ///
    /// # Errors
    /// Memory size, regions or TSC frequency differ.
    pub fn check_machine(&self, machine: &MachineState) -> Result<(), IndexError> {
        let other = Binding::of(machine).ok_or(IndexError::Machine { what: "memory size" })?;
        let checks = [
            (self.binding.memory_len == other.memory_len, "memory size"),
            (self.binding.layout_check == other.layout_check, "memory layout"),
            (self.binding.tsc_khz == other.tsc_khz, "TSC frequency"),
        ];
        match checks.into_iter().find(|(same, _)| !same) {
            Some((_, what)) => Err(IndexError::Machine { what }),
            None => Ok(()),
        }
    }

    /// Length of a chunk.
    pub fn granule(&self) -> Granule {
        self.granule
    }

    /// Bytes of guest memory.
    pub fn memory_len(&self) -> u64 {
        self.binding.memory_len
    }

    /// Guest TSC frequency at the freeze, kHz.
    pub fn tsc_khz(&self) -> u32 {
        self.binding.tsc_khz
    }

    /// How many chunks there are; the last one may be short.
    pub fn chunk_count(&self) -> u32 {
        self.chunk_count
    }

    /// The runs, in file order, without gaps.
    pub fn runs(&self) -> impl Iterator<Item = Run> + '_ {
        self.runs.iter().map(|placed| placed.run)
    }

    /// How many chunks have a place that `is` accepts.
    pub fn count(&self, is: impl Fn(Place) -> bool) -> u64 {
        self.runs().filter(|run| is(run.place)).map(|run| u64::from(run.count)).sum()
    }

    /// Where chunk `number` begins in the `memory` file, and its length; `None` behind the last one.
    pub fn extent(&self, number: u32) -> Option<(u64, u64)> {
        let start = u64::from(number) * self.granule.bytes();
        (number < self.chunk_count).then(|| (start, self.granule.bytes().min(self.memory_len() - start)))
    }

    /// Chunk `number`; `None` behind the last one.
    pub fn chunk(&self, number: u32) -> Option<Chunk> {
        let behind = self.runs.partition_point(|placed| placed.run.first <= number);
        let placed = self.runs.get(behind.checked_sub(1)?)?;
        let nth = number - placed.run.first;
        let place = (nth < placed.run.count).then(|| placed.run.place_of(nth, self.granule))?;
        let crc = match place {
            Place::Zero => 0,
            Place::Here | Place::Parent { .. } => *self.crcs.get(placed.first_crc + nth as usize)?,
        };
        Some(Chunk { place, crc })
    }

    /// Every chunk in file order.
    pub fn chunks(&self) -> impl Iterator<Item = (u32, Chunk)> + '_ {
        (0..self.chunk_count).filter_map(|number| Some((number, self.chunk(number)?)))
    }

    /// The file again: the same bytes that were decoded.
    ///
    /// # Errors
    /// None for a decoded index.
    pub fn encode(&self) -> Result<Vec<u8>, super::BuildError> {
        let mut encoder = super::Encoder::bound(self.binding, self.granule);
        self.chunks().try_for_each(|(_, chunk)| encoder.push(chunk))?;
        encoder.finish()
    }
}

/// Bytes of both tables, as the header counts them: no overflow, each count has 32 bits.
fn table_len(raw: &RawHeader) -> u64 {
    u64::from(raw.run_count.get()) * RUN_LEN as u64 + u64::from(raw.crc_count.get()) * CRC_LEN as u64
}
