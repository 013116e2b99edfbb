//! Guest RAM as mappings of this process.
//!
//! A mapping is made once and lives as long as the process: one process runs one machine, and KVM, the vCPU threads and
//! the devices all hold raw addresses into it. Leaking it makes that sound, and its teardown is nobody's latency.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, VolatileMemory, VolatileSlice,
};

use super::layout::{self, Region};
use super::place::{self, HUGE, Mapped, page_entries};
use super::{GuestMemory, Touch};

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
    /// A part that is zero could not be left out of the mapping.
    #[error("Cannot map {len} bytes of zeros in the place of the memory file's")]
    Zeros {
        /// How many there are.
        len: usize,
        /// Why.
        #[source]
        source: io::Error,
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
    build(bytes, |region| map(region, None))
}

/// A private copy-on-write view of a bundle's `memory` file: pages are read from the page cache, which every clone
/// shares, until the guest writes them. Of `zeros`, ranges of the file that hold nothing but zeros, those of 2 MiB and more are
/// anonymous memory instead: a page of a hole that is touched would take room in the page cache too, on a tmpfs for as long as the
/// file is there.
///
/// # Errors
/// The file's real length is not `bytes` (a page behind its end would raise SIGBUS), or the host has no room.
pub fn copy_on_write(file: &File, bytes: u64, zeros: &[Range<u64>]) -> Result<GuestMemory, MapError> {
    let found = file_len(file)?;
    if found != bytes {
        return Err(MapError::Length { found, expected: bytes });
    }
    let memory = build(bytes, |region| map(region, Some(file)))?;
    leave_out(&memory, zeros)?;
    Ok(memory)
}

/// Puts a private copy-on-write view of a bundle's `memory` file in the place of memory that nobody has used yet. The addresses
/// stay, and with them KVM's memory slots, which hold addresses and not mappings; what the guest had of the old pages the kernel
/// takes away from it. `zeros` are as for [`copy_on_write`].
///
/// # Errors
/// The file's real length is not that of the memory, or the host has no room; a part may have been replaced then.
pub fn copy_on_write_over(memory: &GuestMemory, file: &File, zeros: &[Range<u64>]) -> Result<(), MapError> {
    let found = file_len(file)?;
    let expected = memory.iter().map(GuestMemoryRegion::len).sum();
    if found != expected {
        return Err(MapError::Length { found, expected });
    }
    layout::regions(expected).iter().zip(memory.iter()).try_for_each(|(region, mapped)| {
        replace(mapped, file, region.file_offset).map_err(|e| failed(region)(e.into()))
    })?;
    leave_out(memory, zeros)
}

/// Puts anonymous memory in the place of the huge pages' worth of a mapped file that lie in `zeros`. What is smaller is not worth a
/// mapping of its own: it costs a start more than it saves (docs/performance.md).
fn leave_out(memory: &GuestMemory, zeros: &[Range<u64>]) -> Result<(), MapError> {
    let regions = place::mapped(memory);
    let parts = regions.iter().flat_map(|region| zeros.iter().filter_map(|zeros| huge_part(region, zeros)));
    parts.into_iter().try_for_each(|part| {
        anonymous_over(&part).map_err(|e| MapError::Zeros { len: part.len(), source: e.into() })
    })
}

/// The addresses of the whole huge pages of a region that lie in a range of the file.
fn huge_part(region: &Mapped, range: &Range<u64>) -> Option<Range<usize>> {
    let inside =
        |offset: u64| usize::try_from(offset.saturating_sub(region.file_offset)).unwrap_or(usize::MAX);
    let first = inside(range.start).checked_next_multiple_of(HUGE)?;
    let end = inside(range.end).min(region.addresses.len()) / HUGE * HUGE;
    (first < end).then(|| region.addresses.start + first..region.addresses.start + end)
}

fn anonymous_over(part: &Range<usize>) -> Result<(), rustix::io::Errno> {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
    let (address, len) = (part.start as *mut std::ffi::c_void, part.len());
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
    // SAFETY: the range lies within a mapping of guest memory, which lives for ever and is replaced in one step by another of the same
    // length and protection; it is reached by volatile accesses only, which find either content.
    unsafe { mmap_anonymous(address, len, ProtFlags::READ | ProtFlags::WRITE, flags) }?;
    advise(part, rustix::mm::Advice::LinuxNoHugepage);
    Ok(())
}

/// Has page faults bring in 4 KiB each: clones that touch a page here and there are to cost no more than that.
pub(super) fn in_small_pages(memory: &GuestMemory) {
    addresses(memory).iter().for_each(|range| advise(range, rustix::mm::Advice::LinuxNoHugepage));
}

/// A kernel without huge pages refuses advice about them, and does what it does anyway.
fn advise(range: &Range<usize>, advice: rustix::mm::Advice) {
    // SAFETY: the range lies within guest memory, which is mapped for the life of the process; advice about huge pages changes no content.
    unsafe { rustix::mm::madvise(range.start as *mut std::ffi::c_void, range.len(), advice) }.ok();
}

/// Tells the kernel that the guest is about to write nearly all of it, so that a page fault brings in 2 MiB wherever nothing is yet.
/// Pages that are there already stay as they are.
pub fn expect_to_be_filled(memory: &GuestMemory) {
    addresses(memory).iter().for_each(|range| advise(range, rustix::mm::Advice::LinuxHugepage));
}

fn replace(mapped: &GuestRegionMmap<()>, file: &File, offset: u64) -> Result<(), rustix::io::Errno> {
    use rustix::mm::{MapFlags, ProtFlags, mmap};
    let len = usize::try_from(mapped.len()).map_err(|_| rustix::io::Errno::OVERFLOW)?;
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
    // SAFETY: the range is a whole mapping of guest memory, which lives for ever and is replaced in one step by another of the
    // same length and protection; it is reached by volatile accesses only, which find either content.
    unsafe { mmap(mapped.as_ptr().cast(), len, ProtFlags::READ | ProtFlags::WRITE, flags, file, offset) }?;
    Ok(())
}

/// The file's real length. By fstat(2): where nothing can be opened any more statx(2) is not allowed either.
fn file_len(file: &File) -> Result<u64, MapError> {
    let status = rustix::fs::fstat(file).map_err(|e| MapError::File(e.into()))?;
    Ok(u64::try_from(status.st_size).unwrap_or(0))
}

/// Where a guest's memory lies in this process, region by region.
pub fn addresses(memory: &GuestMemory) -> Vec<Range<usize>> {
    let range = |region: &GuestRegionMmap<()>| {
        let start = region.as_ptr() as usize;
        start..start + usize::try_from(region.len()).unwrap_or(0)
    };
    memory.iter().map(range).collect()
}

fn build(bytes: u64, map: impl Fn(&Region) -> Result<Mapping, MapError>) -> Result<GuestMemory, MapError> {
    let regions = layout::regions(bytes);
    let mapped = regions.iter().map(|region| adopt(region, map(region)?)).collect::<Result<Vec<_>, _>>()?;
    let whole = Region { start: 0, len: bytes, file_offset: 0 };
    GuestMemory::from_regions(mapped).map_err(|_| no_region(&whole))
}

/// A mapping that nobody removes.
struct Mapping {
    address: *mut libc::c_void,
    len: usize,
}

/// Maps a region where a huge page of the host's can stand behind each huge page of the guest's: hardware maps 2 MiB at once only
/// where both addresses are multiples of it. A file system without huge pages gives addresses that are not.
fn map(region: &Region, file: Option<&File>) -> Result<Mapping, MapError> {
    let len = length(region)?;
    let room = len.checked_add(HUGE).ok_or_else(|| no_region(region))?;
    let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE;
    let anonymous = flags | libc::MAP_ANONYMOUS;
    // SAFETY: the kernel chooses the place, so that nothing that is mapped is touched; nobody can access what it gives.
    let reserved = unsafe { libc::mmap(std::ptr::null_mut(), room, libc::PROT_NONE, anonymous, -1, 0) };
    let reserved = checked(reserved).map_err(failed(region))?;
    let address = reserved.wrapping_byte_add((reserved as usize).next_multiple_of(HUGE) - reserved as usize);
    let (descriptor, offset) = match file {
        Some(file) => (file.as_raw_fd(), region.file_offset),
        None => (-1, 0),
    };
    let offset = libc::off_t::try_from(offset).map_err(|_| no_region(region))?;
    let flags = libc::MAP_FIXED | if file.is_some() { flags } else { anonymous };
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the range lies within what was reserved above and is this function's alone. A mapping of a file is private and the
    // file lies in a bundle, which is never written again; the guest's accesses are volatile, so that even a file that changes
    // under us cannot break this process's own invariants.
    let mapped = unsafe { libc::mmap(address, len, protection, flags, descriptor, offset) };
    checked(mapped).map_err(failed(region))?;
    Ok(Mapping { address, len })
}

fn checked(mapped: *mut libc::c_void) -> io::Result<*mut libc::c_void> {
    if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(mapped) }
}

/// Turns a mapping that lives for ever into a region of guest memory.
fn adopt(region: &Region, map: Mapping) -> Result<GuestRegionMmap<()>, MapError> {
    let builder = MmapRegionBuilder::new(map.len)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_NORESERVE);
    // SAFETY: the pointer is the start of a mapping of exactly this length and protection, which nobody ever removes.
    let builder = unsafe { builder.with_raw_mmap_pointer(map.address.cast()) };
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

/// Hands out all of a guest's memory that may not be zero, in file order: `visit(offset in the memory file, bytes)`. That is
/// every page that was touched, and of the pages that never were those in `behind`: the ranges of the file behind the
/// mapping that have content, sorted; none for anonymous memory. Nothing else is read, and so nothing that is zero is
/// brought in for it.
///
/// The vCPUs must be paused: a page that changes while it is copied is copied torn.
///
/// # Errors
/// `visit`'s own, or the kernel's about which pages exist.
pub fn visit_content<E: From<io::Error>>(
    memory: &GuestMemory,
    behind: &[Range<u64>],
    mut visit: impl FnMut(u64, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let page = rustix::param::page_size();
    let pagemap = File::open("/proc/self/pagemap")?;
    let mut buffer = vec![0u8; STEP];
    let mut behind = behind;
    let mut file_offset = 0u64;
    for region in memory.iter() {
        let len = usize::try_from(region.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        for at in (0..len).step_by(STEP) {
            let step = slice(region, at, STEP.min(len - at))?;
            let mut pages = touched_pages(&pagemap, &step, page)?;
            mark(&mut pages, &mut behind, file_offset + at as u64, page as u64);
            for (first, count) in runs(&pages) {
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

/// Marks those of `pages`, the first of which lies at `start`, that a range of `behind` touches. Ranges that end before the
/// last of the pages are dropped.
fn mark(pages: &mut [bool], behind: &mut &[Range<u64>], start: u64, page: u64) {
    let end = start + pages.len() as u64 * page;
    while let Some((range, rest)) = behind.split_first().filter(|(range, _)| range.start < end) {
        let first = range.start.saturating_sub(start) / page;
        let last = range.end.clamp(start, end).saturating_sub(start).div_ceil(page);
        let marked = usize::try_from(first).unwrap_or(usize::MAX)..usize::try_from(last).unwrap_or(0);
        pages.get_mut(marked).unwrap_or_default().fill(true);
        if range.end > end {
            return;
        }
        *behind = rest;
    }
}

fn slice(region: &GuestRegionMmap<()>, at: usize, len: usize) -> io::Result<VolatileSlice<'_>> {
    VolatileMemory::get_slice(&**region, at, len).map_err(io::Error::other)
}

/// For each page of `slice`, whether it has content of its own: bit 63 (present) or 62 (swapped) of its pagemap entry
/// (Documentation/admin-guide/mm/pagemap.rst). mincore() would call a swapped page absent.
fn touched_pages(pagemap: &File, slice: &VolatileSlice<'_>, page: usize) -> io::Result<Vec<bool>> {
    let entries = page_entries(pagemap, slice.ptr_guard().as_ptr() as usize, slice.len(), page)?;
    Ok(entries.into_iter().map(|entry| entry >> 62 != 0).collect())
}

/// Which pages of a copied file are the process's own because they were written, in the file's order: those that exist and are not
/// of the file (bit 61 of a pagemap entry), and those that were swapped out.
///
/// # Errors
/// The kernel does not tell.
pub fn own_pages(memory: &GuestMemory) -> io::Result<Vec<Touch>> {
    let page = rustix::param::page_size();
    let pagemap = File::open("/proc/self/pagemap")?;
    let mut own = Vec::new();
    for region in addresses(memory) {
        own.extend(page_entries(&pagemap, region.start, region.len(), page)?.into_iter().map(|entry| {
            let is_own = entry >> 61 & 0b111 == 0b100 || entry >> 62 & 1 != 0;
            if is_own { Touch::Written } else { Touch::None }
        }));
    }
    Ok(own)
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
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::memory::Bytes;

    #[test]
    fn untouched_pages_are_not_visited() {
        let memory = anonymous(8 << 20).unwrap();
        memory.write_obj(7u8, GuestAddress(5 << 20)).unwrap();
        let mut seen = Vec::new();
        visit_content::<io::Error>(&memory, &[], |offset, bytes| {
            seen.push((offset, bytes.len(), bytes[0]));
            Ok(())
        })
        .unwrap();
        assert!(seen.iter().any(|(offset, _, first)| *offset == 5 << 20 && *first == 7));
        assert!(seen.iter().map(|(_, len, _)| len).sum::<usize>() <= 2 << 20);
    }

    #[test]
    fn pages_that_were_written_are_the_process_s_own_and_pages_that_were_read_are_not() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[5; 1 << 20], 0).unwrap();
        let memory = copy_on_write(&file, 1 << 20, &[]).unwrap();
        assert_eq!(memory.read_obj::<u8>(GuestAddress(4096)).unwrap(), 5);
        memory.write_obj(9u8, GuestAddress(3 * 4096)).unwrap();
        let own = own_pages(&memory).unwrap();
        let found: Vec<_> =
            own.iter().enumerate().filter(|(_, touch)| **touch == Touch::Written).map(|(n, _)| n).collect();
        assert_eq!((own.len(), found), (256, vec![3]));
    }

    /// Offset and first byte of every page that is visited.
    fn visited(memory: &GuestMemory, behind: &[Range<u64>]) -> Vec<(u64, u8)> {
        let mut seen = Vec::new();
        visit_content::<io::Error>(memory, behind, |offset, bytes| {
            let pages = (offset..).step_by(4096).zip(bytes.chunks(4096));
            seen.extend(pages.map(|(offset, page)| (offset, page[0])));
            Ok(())
        })
        .unwrap();
        seen
    }

    #[test]
    fn of_a_copied_file_content_and_changes_are_visited_and_holes_are_not() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4 << 20).unwrap();
        file.write_all_at(&[5; 8192], 1 << 20).unwrap();
        file.write_all_at(&[6; 4096], 3 << 20).unwrap();
        let memory = copy_on_write(&file, 4 << 20, &[]).unwrap();
        memory.write_obj(9u8, GuestAddress((1 << 20) + 4096)).unwrap();
        memory.write_obj(7u8, GuestAddress(2 << 20)).unwrap();
        let behind = [1 << 20..(1 << 20) + 8192, 3 << 20..(3 << 20) + 4096];
        // The kernel brings neighbours of what is read in with it, so the second time there are more.
        for _ in 0..2 {
            let seen = visited(&memory, &behind);
            let content: Vec<_> = seen.iter().filter(|(_, first)| *first != 0).copied().collect();
            assert_eq!(content, [(1 << 20, 5), ((1 << 20) + 4096, 9), (2 << 20, 7), (3 << 20, 6)]);
            assert!(seen.len() < 100, "holes were visited: {seen:?}");
        }
    }

    #[test]
    fn ranges_mark_every_page_they_touch_across_steps() {
        let ranges = [0..1, 4096..12288, 20480..40960];
        let mut behind = &ranges[..];
        let mut pages = [false; 6];
        mark(&mut pages, &mut behind, 0, 4096);
        assert_eq!(pages, [true, true, true, false, false, true]);
        assert_eq!(behind.len(), 1, "a range that goes on stays");
        let mut pages = [false; 6];
        mark(&mut pages, &mut behind, 24576, 4096);
        assert_eq!(pages, [true, true, true, true, false, false]);
        assert!(behind.is_empty());
    }

    #[test]
    fn copies_of_one_file_do_not_see_each_others_writes() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![3u8; 2 << 20]).unwrap();
        let one = copy_on_write(&file, 2 << 20, &[]).unwrap();
        let two = copy_on_write(&file, 2 << 20, &[]).unwrap();
        one.write_obj(9u8, GuestAddress(4096)).unwrap();
        assert_eq!(one.read_obj::<u8>(GuestAddress(4096)).unwrap(), 9);
        assert_eq!(two.read_obj::<u8>(GuestAddress(4096)).unwrap(), 3);
    }

    #[test]
    fn a_file_takes_the_place_of_memory_that_waited() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[3; 2 << 20], 0).unwrap();
        let memory = anonymous(2 << 20).unwrap();
        let before = addresses(&memory);
        memory.write_obj(9u8, GuestAddress(4096)).unwrap();
        copy_on_write_over(&memory, &file, &[]).unwrap();
        assert_eq!(addresses(&memory), before);
        assert_eq!(memory.read_obj::<u8>(GuestAddress(4096)).unwrap(), 3);
        memory.write_obj(7u8, GuestAddress(8192)).unwrap();
        let mut page = [0; 1];
        file.read_exact_at(&mut page, 8192).unwrap();
        assert_eq!(page, [3], "it is a copy");
        file.set_len(1 << 20).unwrap();
        assert!(matches!(
            copy_on_write_over(&memory, &file, &[]),
            Err(MapError::Length { found: 1_048_576, .. })
        ));
    }

    /// The offsets of 2 MiB each that belong to no file.
    fn anonymous_parts(memory: &GuestMemory) -> Vec<u64> {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let belongs = |address: usize| {
            maps.lines().any(|line| {
                let fields: Vec<&str> = line.split_whitespace().collect();
                let (start, end) = fields[0].split_once('-').unwrap();
                let number = |text| usize::from_str_radix(text, 16).unwrap();
                (number(start)..number(end)).contains(&address) && fields[4] != "0"
            })
        };
        let region = addresses(memory).remove(0);
        let parts = region.clone().step_by(HUGE).filter(|address| !belongs(*address));
        parts.map(|address| (address - region.start) as u64 >> 20).collect()
    }

    #[test]
    fn long_zeros_are_anonymous_and_everything_else_is_the_file_s() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(16 << 20).unwrap();
        file.write_all_at(&[5; 4096], 5 << 20).unwrap();
        let content = 5 << 20..(5 << 20) + 4096;
        let zeros = [0..content.start, content.end..(8 << 20) - 4096, 9 << 20..u64::MAX];
        let over = anonymous(16 << 20).unwrap();
        copy_on_write_over(&over, &file, &zeros).unwrap();
        for memory in [copy_on_write(&file, 16 << 20, &zeros).unwrap(), over] {
            assert_eq!(anonymous_parts(&memory), [0, 2, 10, 12, 14]);
            assert_eq!(memory.read_obj::<u8>(GuestAddress(5 << 20)).unwrap(), 5);
            memory.write_obj(7u8, GuestAddress(12 << 20)).unwrap();
            let seen = visited(&memory, std::slice::from_ref(&content));
            let seen: Vec<_> = seen.iter().filter(|(_, first)| *first != 0).copied().collect();
            assert_eq!(seen, [(5 << 20, 5), (12 << 20, 7)]);
        }
        assert!(anonymous_parts(&copy_on_write(&file, 16 << 20, &[]).unwrap()).is_empty());
    }

    #[test]
    fn what_is_touched_in_long_zeros_takes_no_room_in_a_tmpfs() {
        use std::os::unix::fs::MetadataExt;
        let Ok(file) = tempfile::tempfile_in("/dev/shm") else { return };
        file.set_len(4 << 20).unwrap();
        let all = 0..4 << 20;
        let memory = copy_on_write(&file, all.end, std::slice::from_ref(&all)).unwrap();
        for page in 0..1024 {
            memory.write_obj(7u8, GuestAddress(page * 4096)).unwrap();
        }
        assert_eq!(file.metadata().unwrap().blocks(), 0);
    }

    #[test]
    fn a_memory_file_of_another_length_is_refused() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        assert!(matches!(copy_on_write(&file, 2 << 20, &[]), Err(MapError::Length { found: 1_048_576, .. })));
    }

    #[test]
    fn huge_pages_of_host_and_guest_coincide() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(6 << 20).unwrap();
        for memory in [anonymous(6 << 20).unwrap(), copy_on_write(&file, 6 << 20, &[]).unwrap()] {
            assert!(addresses(&memory).iter().all(|region| region.start.is_multiple_of(2 << 20)));
        }
    }

    #[test]
    fn runs_of_resident_pages_are_found() {
        assert_eq!(runs(&[false, true, true, false, true]).collect::<Vec<_>>(), [(1, 2), (4, 1)]);
        assert_eq!(runs(&[false, false]).count(), 0);
    }
}
