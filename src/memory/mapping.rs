//! Guest RAM as mappings of this process.
//!
//! A mapping is made once and lives as long as the process: one process runs one machine, and KVM, the vCPU threads and
//! the devices all hold raw addresses into it. Leaking it makes that sound, and its teardown is nobody's latency.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use memmap2::{MmapMut, MmapOptions};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, VolatileMemory, VolatileSlice,
};

use super::GuestMemory;
use super::layout::{self, Region};

/// Why guest memory could not be mapped.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// mmap failed.
    #[error("Cannot map {len} bytes of guest memory at {start:#x}")]
    Map {
        /// Guest physical address of the region.
        start: u64,
        /// Its length.
        len: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file that holds the guest's memory is not as long as the memory.
    #[error("The memory file holds {found} bytes, the guest has {expected}")]
    Length {
        /// Length of the file.
        found: u64,
        /// Length of the guest's memory.
        expected: u64,
    },
    /// The memory file could not be examined.
    #[error("Cannot examine the memory file")]
    File(#[source] io::Error),
    /// A region that cannot exist.
    #[error("{len} bytes of guest memory at {start:#x} are no usable region")]
    Region {
        /// Guest physical address of the region.
        start: u64,
        /// Its length.
        len: u64,
    },
}

/// Fresh zeroed memory for a guest that boots.
///
/// # Errors
/// The host has no room for it.
pub fn anonymous(bytes: u64) -> Result<GuestMemory, MapError> {
    build(bytes, |region| {
        MmapOptions::new().len(length(region)?).no_reserve_swap().map_anon().map_err(failed(region))
    })
}

/// A private copy-on-write view of a bundle's `memory` file: pages are read from the page cache, which every clone
/// shares, until the guest writes them.
///
/// # Errors
/// The file's real length is not `bytes` (a page behind its end would raise SIGBUS), or the host has no room.
pub fn copy_on_write(file: &File, bytes: u64) -> Result<GuestMemory, MapError> {
    let found = file.metadata().map_err(MapError::File)?.len();
    if found != bytes {
        return Err(MapError::Length { found, expected: bytes });
    }
    build(bytes, |region| {
        let mut options = MmapOptions::new();
        options.offset(region.file_offset).len(length(region)?).no_reserve_swap();
        // SAFETY: the mapping is private and the file lies in a bundle, which is never written again; the guest's
        // accesses are volatile, so even a file that changes under us cannot break this process's own invariants.
        unsafe { options.map_copy(file) }.map_err(failed(region))
    })
}

fn build(bytes: u64, map: impl Fn(&Region) -> Result<MmapMut, MapError>) -> Result<GuestMemory, MapError> {
    let regions = layout::regions(bytes);
    let mapped = regions.iter().map(|region| adopt(region, map(region)?)).collect::<Result<Vec<_>, _>>()?;
    let whole = Region { start: 0, len: bytes, file_offset: 0 };
    GuestMemory::from_regions(mapped).map_err(|_| no_region(&whole))
}

/// Turns a mapping that lives for ever into a region of guest memory.
fn adopt(region: &Region, map: MmapMut) -> Result<GuestRegionMmap<()>, MapError> {
    let map: &'static mut MmapMut = Box::leak(Box::new(map));
    let builder = MmapRegionBuilder::new(map.len())
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_NORESERVE);
    // SAFETY: the pointer is the start of a leaked mapping of exactly this length and protection.
    let builder = unsafe { builder.with_raw_mmap_pointer(map.as_mut_ptr()) };
    let mapping = builder.build().map_err(|_| no_region(region))?;
    GuestRegionMmap::new(mapping, GuestAddress(region.start)).ok_or_else(|| no_region(region))
}

fn length(region: &Region) -> Result<usize, MapError> {
    usize::try_from(region.len).ok().filter(|len| *len > 0).ok_or_else(|| no_region(region))
}

fn no_region(region: &Region) -> MapError {
    MapError::Region { start: region.start, len: region.len }
}

fn failed(region: &Region) -> impl Fn(io::Error) -> MapError {
    let (start, len) = (region.start, region.len);
    move |source| MapError::Map { start, len, source }
}

/// Bytes copied out of guest memory at a time.
const STEP: usize = 1 << 20;

/// Hands out everything a guest in anonymous memory can have changed, in file order: `visit(offset in the memory file,
/// bytes)`. Pages that were never touched read as zeros and are left out, without being faulted in.
///
/// The vCPUs must be paused: a page that changes while it is copied is copied torn.
///
/// # Errors
/// `visit`'s own, or the kernel's about which pages exist.
pub fn visit_touched<E: From<io::Error>>(
    memory: &GuestMemory,
    mut visit: impl FnMut(u64, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let page = rustix::param::page_size();
    let pagemap = File::open("/proc/self/pagemap")?;
    let mut buffer = vec![0u8; STEP];
    let mut file_offset = 0u64;
    for region in memory.iter() {
        let len = usize::try_from(region.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        for at in (0..len).step_by(STEP) {
            let step = slice(region, at, STEP.min(len - at))?;
            for (first, count) in runs(&touched_pages(&pagemap, &step, page)?) {
                let start = first * page;
                let bytes = (count * page).min(step.len() - start);
                slice(region, at + start, bytes)?.copy_to(&mut buffer[..bytes]);
                visit(file_offset + (at + start) as u64, &buffer[..bytes])?;
            }
        }
        file_offset += region.len();
    }
    Ok(())
}

fn slice(region: &GuestRegionMmap<()>, at: usize, len: usize) -> io::Result<VolatileSlice<'_>> {
    VolatileMemory::get_slice(&**region, at, len).map_err(io::Error::other)
}

/// For each page of `slice`, whether it has content of its own: bit 63 (present) or 62 (swapped) of its pagemap entry
/// (Documentation/admin-guide/mm/pagemap.rst). mincore() would call a swapped page absent.
fn touched_pages(pagemap: &File, slice: &VolatileSlice<'_>, page: usize) -> io::Result<Vec<bool>> {
    let first = slice.ptr_guard().as_ptr() as usize / page;
    let mut entries = vec![0u8; slice.len().div_ceil(page) * 8];
    pagemap.read_exact_at(&mut entries, first as u64 * 8)?;
    Ok(entries.as_chunks::<8>().0.iter().map(|entry| u64::from_le_bytes(*entry) >> 62 != 0).collect())
}

/// Runs of touched pages: (first, count).
fn runs(pages: &[bool]) -> impl Iterator<Item = (usize, usize)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let first = at + pages[at..].iter().position(|touched| *touched)?;
        let count = pages[first..].iter().take_while(|touched| **touched).count();
        at = first + count;
        Some((first, count))
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::memory::Bytes;

    #[test]
    fn untouched_pages_are_not_visited() {
        let memory = anonymous(8 << 20).unwrap();
        memory.write_obj(7u8, GuestAddress(5 << 20)).unwrap();
        let mut seen = Vec::new();
        visit_touched::<io::Error>(&memory, |offset, bytes| {
            seen.push((offset, bytes.len(), bytes[0]));
            Ok(())
        })
        .unwrap();
        assert!(seen.iter().any(|(offset, _, first)| *offset == 5 << 20 && *first == 7));
        assert!(seen.iter().map(|(_, len, _)| len).sum::<usize>() <= 2 << 20);
    }

    #[test]
    fn copies_of_one_file_do_not_see_each_others_writes() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![3u8; 2 << 20]).unwrap();
        let one = copy_on_write(&file, 2 << 20).unwrap();
        let two = copy_on_write(&file, 2 << 20).unwrap();
        one.write_obj(9u8, GuestAddress(4096)).unwrap();
        assert_eq!(one.read_obj::<u8>(GuestAddress(4096)).unwrap(), 9);
        assert_eq!(two.read_obj::<u8>(GuestAddress(4096)).unwrap(), 3);
    }

    #[test]
    fn a_memory_file_of_another_length_is_refused() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        assert!(matches!(copy_on_write(&file, 2 << 20), Err(MapError::Length { found: 1_048_576, .. })));
    }

    #[test]
    fn runs_of_resident_pages_are_found() {
        assert_eq!(runs(&[false, true, true, false, true]).collect::<Vec<_>>(), [(1, 2), (4, 1)]);
        assert_eq!(runs(&[false, false]).count(), 0);
    }
}
