//! `memory.index`: where each chunk of guest memory lies and what its content must be.
//!
//! Memory is cut into chunks of one granule. Neighbours of one kind share a run, so that the file costs 16 bytes per
//! run and 8 bytes (a CRC) per chunk that is not zero: for a guest of 256 MiB with chunks of 4 KiB 512 KiB when no chunk is
//! zero, and some 110 KiB when a fifth has content.

mod build;
mod decode;
mod layout;

pub use build::{BuildError, Builder, Encoder};
pub use decode::{IndexError, MemoryIndex, MemoryMap};
pub(crate) use layout::reseal;
pub use layout::{HEADER_LEN, mark};

use crate::sections::{MachineState, RegionState};

/// Longest `memory.index`, bytes: [`MEMORY_MAX`] at the smallest granule, every other chunk in another file.
pub const INDEX_MAX: u64 = 64 << 20;
/// Most chunks that a release writes: whatever the memory's size, its checksums take 1 MiB at most.
const CHUNKS_MAX: u64 = 128 << 10;
/// Most guest memory, bytes.
pub const MEMORY_MAX: u64 = 8 << 30;

/// Length of a chunk: a power of two from 4 to 64 KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Granule(u32);

impl Granule {
    pub const MIN: Granule = Granule(4 << 10);
    pub const MAX: Granule = Granule(64 << 10);

    /// `None` unless `bytes` is a power of two from 4 to 64 KiB.
    pub const fn new(bytes: u32) -> Option<Granule> {
        let fits = bytes.is_power_of_two() && bytes >= Self::MIN.0 && bytes <= Self::MAX.0;
        if fits { Some(Granule(bytes)) } else { None }
    }

    /// What a release writes for `memory_len` bytes of memory: a page up to 512 MiB, and more where there would be more than
    /// 131 072 chunks. Who checks pages as they are touched reads and checks whole chunks for them, so that large ones cost time;
    /// every restore reads and checks the index, so that many do.
    pub fn for_memory(memory_len: u64) -> Granule {
        let enough = |granule: &Granule| granule.chunks(memory_len) <= CHUNKS_MAX;
        (12..=16).map(|shift| Granule(1 << shift)).find(enough).unwrap_or(Granule::MAX)
    }

    /// Bytes of a chunk.
    pub const fn bytes(self) -> u64 {
        self.0 as u64
    }

    /// How many chunks `memory_len` bytes have; the last one may be short.
    const fn chunks(self, memory_len: u64) -> u64 {
        memory_len.div_ceil(self.bytes())
    }
}

/// Where a chunk's content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// Nowhere: every byte is zero.
    Zero,
    /// In the `memory` file beside the index, at the chunk's own offset.
    Here,
    /// In the `memory` file of an ancestor (1 is the parent), at `offset` bytes.
    Parent { generation: u16, offset: u64 },
}

/// One chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    pub place: Place,
    /// CRC-64/Jones of the chunk's bytes; 0 when they are zero.
    pub crc: u64,
}

/// Neighbouring chunks of one place. For [`Place::Parent`] it is the first chunk's; the others follow it there too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Number of the first chunk.
    pub first: u32,
    /// Chunks in the run, at least one.
    pub count: u32,
    pub place: Place,
}

impl Run {
    /// The chunk behind the run.
    fn end(&self) -> u64 {
        u64::from(self.first) + u64::from(self.count)
    }

    /// Where chunk `first + nth` lies.
    fn place_of(&self, nth: u32, granule: Granule) -> Place {
        match self.place {
            Place::Parent { generation, offset } => {
                Place::Parent { generation, offset: offset + u64::from(nth) * granule.bytes() }
            }
            place => place,
        }
    }

    /// Whether a chunk at `next` belongs to this run rather than to one of its own.
    fn goes_on_with(&self, next: Place, granule: Granule) -> bool {
        self.place_of(self.count, granule) == next
    }
}

/// What an index is bound to, so that it is never used with another machine's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Binding {
    memory_len: u64,
    tsc_khz: u32,
    layout_check: u64,
}

impl Binding {
    /// `None` when the machine's memory is empty, no multiple of a page, or over [`MEMORY_MAX`].
    fn of(machine: &MachineState) -> Option<Binding> {
        let memory_len = machine.regions.iter().try_fold(0u64, |sum, region| sum.checked_add(region.len))?;
        let layout_check = layout_check(&machine.regions);
        is_memory_len(memory_len).then_some(Binding { memory_len, tsc_khz: machine.tsc_khz, layout_check })
    }
}

/// Whether an ancestor's `memory` file can hold a chunk there.
fn is_in_parent(generation: u16, offset: u64, granule: Granule) -> bool {
    generation > 0 && offset < MEMORY_MAX && offset.is_multiple_of(granule.bytes())
}

fn is_memory_len(len: u64) -> bool {
    len > 0 && len <= MEMORY_MAX && len.is_multiple_of(crate::zero::PAGE as u64)
}

/// CRC-64/Jones over the count and then start, length and file offset of each region, little-endian.
fn layout_check(regions: &[RegionState]) -> u64 {
    let mut crc = crate::crc::Crc64::new();
    crc.update(&(regions.len() as u64).to_le_bytes());
    for region in regions {
        for field in [region.start, region.len, region.file_offset] {
            crc.update(&field.to_le_bytes());
        }
    }
    crc.value()
}
