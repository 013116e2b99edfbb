//! Reads a `memory.index`.

use zerocopy::little_endian::U64;
use zerocopy::{FromZeros, IntoBytes};

use super::layout::{
    self, CRC_LEN, HEADER_LEN, KIND_HERE, KIND_PARENT, KIND_ZERO, RUN_LEN, RawHeader, RawRun,
};
use super::{Binding, Chunk, Granule, Place, Run, is_in_parent, is_memory_len};
use crate::crc::Crc64;
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

/// Where every chunk of the memory has its one place: a checked index without the chunks' CRCs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryMap {
    binding: Binding,
    granule: Granule,
    chunk_count: u32,
    runs: Vec<PlacedRun>,
}

/// A checked index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryIndex {
    map: MemoryMap,
    crcs: Vec<u64>,
}

/// Bytes of CRCs read at a time.
const STEP: usize = 4 << 10;

impl MemoryIndex {
    /// Checks and decodes a whole file.
    ///
    /// # Errors
    /// The file is damaged, or not one that this release reads.
    pub fn decode(bytes: &[u8]) -> Result<MemoryIndex, IndexError> {
        let short = || IndexError::TooShort { len: bytes.len() };
        Self::read(bytes.len(), |offset, into: &mut [u8]| {
            let from = bytes.get(offset..).and_then(|rest| rest.get(..into.len())).ok_or_else(short)?;
            into.copy_from_slice(from);
            Ok(())
        })
    }

    /// The same of a file of `len` bytes, of which `read` fills a slice from an offset on.
    ///
    /// # Errors
    /// The file is damaged, or not one that this release reads; or `read`'s own.
    pub fn read<E: From<IndexError>>(
        len: usize,
        read: impl FnMut(usize, &mut [u8]) -> Result<(), E>,
    ) -> Result<MemoryIndex, E> {
        // Nobody makes this longer than the file is.
        let mut crcs = Vec::with_capacity(len / CRC_LEN);
        let map = read_tables(len, read, |some| crcs.extend(some.iter().map(|crc| crc.get())))?;
        Ok(MemoryIndex { map, crcs })
    }

    /// Where the chunks are.
    pub fn map(&self) -> &MemoryMap {
        &self.map
    }

    /// Chunk `number`; `None` behind the last one.
    pub fn chunk(&self, number: u32) -> Option<Chunk> {
        let runs = &self.map.runs;
        let behind = runs.partition_point(|placed| placed.run.first <= number);
        let placed = runs.get(behind.checked_sub(1)?)?;
        let nth = number - placed.run.first;
        let place = (nth < placed.run.count).then(|| placed.run.place_of(nth, self.map.granule))?;
        let crc = match place {
            Place::Zero => 0,
            Place::Here | Place::Parent { .. } => *self.crcs.get(placed.first_crc + nth as usize)?,
        };
        Some(Chunk { place, crc })
    }

    /// Every chunk in file order.
    pub fn chunks(&self) -> impl Iterator<Item = (u32, Chunk)> + '_ {
        (0..self.map.chunk_count).filter_map(|number| Some((number, self.chunk(number)?)))
    }

    /// The file again: the same bytes that were decoded.
    ///
    /// # Errors
    /// None for a decoded index.
    pub fn encode(&self) -> Result<Vec<u8>, super::BuildError> {
        let mut encoder = super::Encoder::bound(self.map.binding, self.map.granule);
        self.chunks().try_for_each(|(_, chunk)| encoder.push(chunk))?;
        encoder.finish()
    }
}

/// Reads and checks a whole file of `len` bytes, whose CRCs `take` is given in order. They may be any, and many, until all is checked.
fn read_tables<E: From<IndexError>>(
    len: usize,
    mut read: impl FnMut(usize, &mut [u8]) -> Result<(), E>,
    mut take: impl FnMut(&[U64]),
) -> Result<MemoryMap, E> {
    if len < HEADER_LEN {
        return Err(IndexError::TooShort { len }.into());
    }
    let mut raw = RawHeader::new_zeroed();
    read(0, raw.as_mut_bytes())?;
    let mut map = MemoryMap::from_header(&raw)?;
    let expected = table_len(&raw).saturating_add(HEADER_LEN as u64);
    if expected != len as u64 || raw.total_len.get() != expected {
        return Err(IndexError::Length { expected, found: len }.into());
    }
    // Room for no more than the file really has.
    let mut runs = vec![RawRun::new_zeroed(); raw.run_count.get() as usize];
    read(HEADER_LEN, runs.as_mut_bytes())?;
    let mut crc = Crc64::new();
    crc.update(runs.as_bytes());
    let mut step = [U64::ZERO; STEP / CRC_LEN];
    let mut at = HEADER_LEN + size_of_val(runs.as_slice());
    while at < len {
        let some = step.split_at_mut(((len - at) / CRC_LEN).min(STEP / CRC_LEN)).0;
        read(at, some.as_mut_bytes())?;
        crc.update(some.as_bytes());
        take(some);
        at += size_of_val(some);
    }
    if crc.value() != raw.table_crc.get() {
        return Err(IndexError::TableCrc.into());
    }
    map.place(&runs)?;
    map.check_counts(u64::from(raw.crc_count.get()))?;
    Ok(map)
}

impl MemoryMap {
    /// Checks a whole file of `len` bytes, of which `read` fills a slice from an offset on, and keeps where the chunks are.
    ///
    /// # Errors
    /// As of [`MemoryIndex::read`].
    pub fn read<E: From<IndexError>>(
        len: usize,
        read: impl FnMut(usize, &mut [u8]) -> Result<(), E>,
    ) -> Result<MemoryMap, E> {
        read_tables(len, read, |_| {})
    }

    /// A map without chunks, with what the header says.
    fn from_header(raw: &RawHeader) -> Result<MemoryMap, IndexError> {
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
        Ok(MemoryMap {
            binding: Binding { memory_len, tsc_khz: raw.tsc_khz.get(), layout_check: raw.layout_check.get() },
            granule,
            chunk_count: raw.chunk_count.get(),
            runs: Vec::new(),
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

    fn check_counts(&self, crcs: u64) -> Result<(), IndexError> {
        let found = self.runs.last().map_or(0, |last| last.run.end());
        let expected = u64::from(self.chunk_count);
        if found != expected {
            return Err(IndexError::Count { what: "chunks", found, expected });
        }
        let expected = expected - self.count(|place| place == Place::Zero);
        if crcs == expected {
            Ok(())
        } else {
            Err(IndexError::Count { what: "checksums", found: crcs, expected })
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
}

/// Bytes of both tables, as the header counts them: no overflow, each count has 32 bits.
fn table_len(raw: &RawHeader) -> u64 {
    u64::from(raw.run_count.get()) * RUN_LEN as u64 + u64::from(raw.crc_count.get()) * CRC_LEN as u64
}
