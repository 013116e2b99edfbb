//! Mapping what is expected for the guest before it asks, so that it does not fault.
//!
//! A page that is not mapped costs an exit from the guest, and so does each of its neighbours: hardware maps 4 KiB at a time,
//! unless a whole huge page of the host's stands behind them. So a region in which nothing is written is mapped at once where
//! the page cache holds it in a huge page, and page by page elsewhere. Where something is written, a private mapping has pages
//! of 4 KiB only.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

use super::place::{HUGE, Mapped, address_of, mapped};
use super::{Expected, GuestMemory, layout};

/// Most ranges that are mapped one by one: each costs a call. A hint that is longer than this is no help.
const CALLS_MAX: usize = 4096;
/// Most bytes that are mapped one by one, for the same reason: what is not in the page cache is waited for.
const MAPPED_MAX: u64 = 64 << 20;

/// Who can map pages for the guest.
pub trait GuestTables {
    /// Maps the pages of a range of guest physical addresses as they are now, without waiting for the guest to touch them.
    ///
    /// # Errors
    /// The host cannot, or there is no memory there.
    fn map(&self, range: Range<u64>) -> io::Result<()>;
}

/// What was mapped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MappedAhead {
    /// Pages, of which a huge one counts as one.
    pub pages: u64,
    /// Huge ones among them.
    pub huge: u64,
}

/// Maps what is expected, and tells how much. `pagemap` is /proc/self/pagemap; without it huge pages are not looked for. A host
/// that cannot leaves the guest to its own faults.
pub fn map_ahead(
    tables: &dyn GuestTables,
    memory: &GuestMemory,
    expected: &Expected,
    pagemap: Option<&File>,
) -> MappedAhead {
    // Not before it is known that the host can is it worth while to look for huge pages.
    let probe = expected.written.first().or(expected.read.first());
    if probe.is_none_or(|range| tables.map(guest_range(&(range.start..range.start + 4096))).is_err()) {
        return MappedAhead::default();
    }
    let places = mapped(memory);
    let (mut pages, huge) = (0, Cell::new(0));
    let is_huge = |first| {
        let found = pagemap.is_some_and(|file| is_huge(file, &places, first));
        huge.set(huge.get() + u64::from(found));
        found
    };
    for range in wanted(expected, is_huge).iter().take(CALLS_MAX) {
        let left = MAPPED_MAX - pages * 4096;
        let range = range.start..range.end.min(range.start.saturating_add(left));
        if range.is_empty() || tables.map(guest_range(&range)).is_err() {
            break;
        }
        pages += (range.end - range.start) / 4096;
    }
    MappedAhead { pages, huge: huge.get() }
}

/// The ranges to ask for. Of a region that is only read and that `is_huge` the first page stands for all.
fn wanted(expected: &Expected, is_huge: impl Fn(u64) -> bool) -> Vec<Range<u64>> {
    let mut written: Vec<u64> = expected.written.iter().flat_map(regions_of).collect();
    written.dedup();
    let mut all: Vec<Range<u64>> =
        expected.read.iter().chain(&expected.written).flat_map(|range| cut(range.clone())).collect();
    all.sort_unstable_by_key(|range| range.start);
    let mut wanted: Vec<Range<u64>> = Vec::new();
    let mut whole = None;
    for range in all {
        let region = range.start / HUGE as u64;
        if whole == Some(region) {
            continue;
        }
        let is_new = wanted.last().is_none_or(|last| last.start / HUGE as u64 != region);
        if is_new && written.binary_search(&region).is_err() && is_huge(range.start) {
            whole = Some(region);
            wanted.push(range.start..range.start + 4096);
            continue;
        }
        // Guest memory has a hole where the file has none: a range ends there.
        let follows = |last: &&mut Range<u64>| {
            last.end == range.start && guest_range(last).end == layout::guest_address(range.start)
        };
        match wanted.last_mut().filter(follows) {
            Some(last) => last.end = range.end,
            None => wanted.push(range),
        }
    }
    wanted
}

/// The regions of 2 MiB that a range lies in.
fn regions_of(range: &Range<u64>) -> Range<u64> {
    range.start / HUGE as u64..range.end.div_ceil(HUGE as u64)
}

/// A range in parts that lie in one region each.
fn cut(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let huge = HUGE as u64;
    regions_of(&range).map(move |region| range.start.max(region * huge)..range.end.min((region + 1) * huge))
}

/// The guest physical addresses of a range of the `memory` file that lies in one region.
fn guest_range(range: &Range<u64>) -> Range<u64> {
    let start = layout::guest_address(range.start);
    start..start + (range.end - range.start)
}

/// Whether what the page cache has for a page of the file is a huge page that can be mapped as one. Maps it for this process.
fn is_huge(pagemap: &File, places: &[Mapped], offset: u64) -> bool {
    let Some((address, _)) = address_of(places, offset) else { return false };
    // SAFETY: the page lies in guest memory, which is mapped for the life of the process; populating changes no content.
    let populated = unsafe { libc::madvise(address as *mut libc::c_void, 4096, libc::MADV_POPULATE_READ) };
    populated == 0 && scan(pagemap, address)
}

/// `struct pm_scan_arg` (Documentation/admin-guide/mm/pagemap.rst).
#[repr(C)]
#[derive(Default)]
struct ScanArguments {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region`.
#[repr(C)]
#[derive(Default)]
struct Found {
    start: u64,
    end: u64,
    categories: u64,
}

/// `_IOWR('f', 16, struct pm_scan_arg)`, Linux 6.7.
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;
/// Mapped by an entry for a huge page.
const PAGE_IS_HUGE: u64 = 1 << 6;

/// Whether the page at an address is mapped as part of a huge page.
fn scan(pagemap: &File, address: usize) -> bool {
    let mut found = Found::default();
    let mut arguments = ScanArguments {
        size: size_of::<ScanArguments>() as u64,
        start: address as u64,
        end: address as u64 + 4096,
        vec: &raw mut found as u64,
        vec_len: 1,
        category_mask: PAGE_IS_HUGE,
        return_mask: PAGE_IS_HUGE,
        ..ScanArguments::default()
    };
    // SAFETY: the kernel reads and writes the arguments, and writes at most the one entry that they name.
    let count = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut arguments) };
    count == 1
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::memory::copy_on_write;

    const REGION: u64 = 2 << 20;

    fn expected(read: &[Range<u64>], written: &[Range<u64>]) -> Expected {
        Expected { read: read.to_vec(), written: written.to_vec(), ..Expected::default() }
    }

    #[test]
    fn neighbours_are_one_call_whether_read_or_written() {
        let set = expected(&[0..4096, 12288..16384], &[4096..12288, 40960..45056]);
        assert_eq!(wanted(&set, |_| false), [0..16384, 40960..45056]);
    }

    #[test]
    fn one_page_stands_for_a_huge_one_unless_something_is_written_there() {
        let set = expected(
            &[4096..8192, 16384..20480, REGION + 4096..REGION + 8192, REGION + 16384..REGION + 20480],
            std::slice::from_ref(&(REGION..REGION + 4096)),
        );
        let second = [REGION..REGION + 8192, REGION + 16384..REGION + 20480];
        let whole = std::iter::once(4096..8192).chain(second.clone()).collect::<Vec<_>>();
        assert_eq!(wanted(&set, |_| true), whole);
        let each = [4096..8192, 16384..20480].into_iter().chain(second).collect::<Vec<_>>();
        assert_eq!(wanted(&set, |_| false), each);
    }

    #[test]
    fn a_range_across_regions_is_cut() {
        let across = REGION - 4096..REGION + 4096;
        let set = expected(std::slice::from_ref(&across), &[]);
        assert_eq!(wanted(&set, |first| first >= REGION), [REGION - 4096..REGION, REGION..REGION + 4096]);
        assert_eq!(wanted(&set, |_| false), [across]);
    }

    struct Tables {
        calls: RefCell<Vec<Range<u64>>>,
        most: usize,
    }

    impl GuestTables for Tables {
        fn map(&self, range: Range<u64>) -> io::Result<()> {
            if self.calls.borrow().len() == self.most {
                return Err(io::ErrorKind::Unsupported.into());
            }
            self.calls.borrow_mut().push(range);
            Ok(())
        }
    }

    #[test]
    fn no_more_is_mapped_than_a_start_has_time_for() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(256 << 20).unwrap();
        let memory = copy_on_write(&file, 256 << 20, &[]).unwrap();
        let set = expected(&[0..4096, 8192..200 << 20, 220 << 20..221 << 20], &[]);
        let tables = Tables { calls: RefCell::default(), most: usize::MAX };
        assert_eq!(
            map_ahead(&tables, &memory, &set, None),
            MappedAhead { pages: MAPPED_MAX / 4096, huge: 0 }
        );
        let asked: u64 = tables.calls.borrow().iter().skip(1).map(|range| range.end - range.start).sum();
        assert_eq!(asked, MAPPED_MAX);
    }

    #[test]
    fn a_host_that_cannot_is_asked_once_and_what_was_mapped_is_told() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 1 << 20], 0).unwrap();
        let memory = copy_on_write(&file, 1 << 20, &[]).unwrap();
        let set = expected(&[0..4096, 8192..16384, 40960..45056], &[]);
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        for (most, pages) in [(0, 0), (3, 3), (4, 4)] {
            let tables = Tables { calls: RefCell::default(), most };
            assert_eq!(map_ahead(&tables, &memory, &set, Some(&pagemap)), MappedAhead { pages, huge: 0 });
            assert_eq!(tables.calls.borrow().len(), most);
        }
    }
}
