//! Bringing in the pages of a recorded working set before the guest asks for them, where that pays.
//!
//! A page of a warm page cache is not brought in for reading: its fault costs the same afterwards. A page that will be
//! written is copied: with the copy in place the guest takes one fault for it instead of two, or of one that copies. Pages of a
//! cold page cache are asked for in few large requests, which a disk serves many times faster than one after the other.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};

use rustix::fs::Advice;
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use super::ahead::MappedAhead;
use super::place::{Mapped, address_of, mapped};
use super::uffd::OnStart;
use super::{Bytes, GuestAddress, GuestMemory, layout};

/// A page, bytes.
const PAGE: usize = 4096;

/// Most bytes copied before the first instruction. What a working set has beyond this is copied beside the guest.
const COPIED_MAX: u64 = 32 << 20;
/// Most bytes copied beside it before its answer begins. What is beyond this too is left to its own faults.
const BESIDE_MAX: u64 = 256 << 20;
/// Of what a limit leaves, the part that may be filled ahead of need.
const SHARE: u64 = 2;
/// Pages whose residence in the page cache stands for that of all.
const PROBES: u64 = 8;
/// Most bytes asked of a disk. Asking for more waits for the disk all the same, once its queue is full.
const READ_AHEAD_MAX: u64 = 256 << 20;
/// Bytes of one request: of a longer one the kernel takes no more than the device's read-ahead (force_page_cache_ra() in
/// mm/readahead.c), which is at least so much unless somebody has made it less.
const REQUEST: u64 = 128 << 10;
/// Bytes between two ranges that are read along with them from a disk, which costs it no more than another request. What the guest asks
/// for meanwhile waits behind all of them.
const GAP: u64 = 16 << 10;

/// What an answer is expected to touch, as ranges of the `memory` file, sorted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expected {
    /// Only read.
    pub read: Vec<Range<u64>>,
    /// Written.
    pub written: Vec<Range<u64>>,
    /// Only read, and only once the answer's first piece is there.
    pub late_read: Vec<Range<u64>>,
    /// Written only then.
    pub late_written: Vec<Range<u64>>,
}

/// The first pages of ranges, as many as `left` bytes have room for.
fn first_bytes(mut ranges: Vec<Range<u64>>, mut left: u64) -> Vec<Range<u64>> {
    for range in &mut ranges {
        let len = (range.end - range.start).min(left) / PAGE as u64 * PAGE as u64;
        range.end = range.start + len;
        left -= len;
    }
    ranges.retain(|range| !range.is_empty());
    ranges
}

/// Bytes that may be filled ahead of need where a limit leaves `left`: the rest is for what the clone does next.
pub fn fillable(left: u64) -> u64 {
    left / SHARE
}

/// Bytes of all ranges together.
pub fn bytes_of(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

impl Expected {
    /// All of it, in no order.
    pub fn all(&self) -> impl Iterator<Item = &Range<u64>> {
        self.read.iter().chain(&self.written).chain(&self.late_read).chain(&self.late_written)
    }

    /// As a pager is to bring it in: read and written alike, because all is copied, within what a memory limit leaves (`most` bytes).
    /// Tells whether that left out something that is touched before the answer begins.
    #[must_use]
    pub fn for_pager(self, most: Option<u64>) -> (Self, bool) {
        let mut left = most.unwrap_or(u64::MAX).min(COPIED_MAX);
        let mut fitting = |mut ranges: Vec<Range<u64>>| {
            let wanted = bytes_of(&ranges).min(COPIED_MAX);
            ranges.sort_unstable_by_key(|range| range.start);
            let fit = first_bytes(ranges, left);
            let bytes = bytes_of(&fit);
            left -= bytes;
            (fit, bytes < wanted)
        };
        let (read, cut_short) = fitting([self.read, self.written].concat());
        let (late_read, _) = fitting([self.late_read, self.late_written].concat());
        (Expected { read, late_read, ..Expected::default() }, cut_short)
    }

    /// What [`copy_written`] left out of the written ranges.
    #[must_use]
    pub fn beyond(&self, done: &Prefetched) -> Vec<Range<u64>> {
        let mut copied = done.copied;
        let mut rest = self.written.clone();
        for range in &mut rest {
            let len = (range.end - range.start).min(copied);
            range.start += len;
            copied -= len;
        }
        rest.retain(|range| !range.is_empty());
        rest
    }

    /// Without what [`copy_written`] left out of the written ranges.
    #[must_use]
    pub fn as_copied(mut self, done: &Prefetched) -> Self {
        self.written = first_bytes(self.written, done.copied);
        self
    }
}

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Prefetched {
    /// Bytes copied into memory of the clone's own.
    pub copied: u64,
    /// Bytes that the kernel was asked to read from the disk.
    pub read_ahead: u64,
    /// What was mapped for the guest before it asked.
    pub mapped: MappedAhead,
    /// Bytes that were checked for it, where a pager does not check all that it brings in.
    pub checked: u64,
    /// Whether a memory limit, or the lack of memory, left something out.
    pub cut_short: bool,
    /// Whether pages are known to be on the disk only.
    pub is_cold: bool,
}

/// What the page cache has of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cache {
    Warm,
    Cold,
    /// The file system does not tell.
    Unknown,
}

/// Asks the kernel to read what is expected and not in the page cache. It does not wait for the disk.
pub fn read_ahead(file: &File, expected: &Expected) -> Prefetched {
    let mut all: Vec<Range<u64>> = expected.all().cloned().collect();
    all.sort_unstable_by_key(|range| range.start);
    let cache = cache(file, &all);
    if cache == Cache::Warm {
        return Prefetched::default();
    }
    let mut done = Prefetched { is_cold: cache == Cache::Cold, ..Prefetched::default() };
    for request in requests(first_bytes(merged(&all, GAP), READ_AHEAD_MAX)) {
        let len = request.end - request.start;
        // A hint that is refused costs time and nothing else.
        if rustix::fs::fadvise(file, request.start, std::num::NonZero::new(len), Advice::WillNeed).is_ok() {
            done.read_ahead += len;
        }
    }
    done
}

/// Ranges in pieces that the kernel takes as a whole.
fn requests(ranges: Vec<Range<u64>>) -> impl Iterator<Item = Range<u64>> {
    let pieces = |range: Range<u64>| {
        let end = range.end;
        let step = usize::try_from(REQUEST).unwrap_or(usize::MAX);
        range.step_by(step).map(move |start| start..end.min(start.saturating_add(REQUEST)))
    };
    ranges.into_iter().flat_map(pieces)
}

/// Copies the pages that are expected to be written before an answer begins, within what a memory limit leaves (`most` bytes):
/// beyond it the kernel would end the process instead of failing.
pub fn copy_written(memory: &GuestMemory, expected: &Expected, most: Option<u64>) -> Prefetched {
    let wanted = bytes_of(&expected.written).min(COPIED_MAX);
    let mut done = Prefetched::default();
    copy(memory, &expected.written, most.unwrap_or(u64::MAX).min(COPIED_MAX), |range| {
        done.copied += range.end - range.start;
    });
    done.cut_short = done.copied < wanted;
    done
}

/// What a thread copies beside the guest: at once what there was no time for before the first instruction, and what is expected to be
/// written late once it is told to begin with that.
#[derive(Debug)]
pub struct Late {
    begin: Sender<()>,
    copied: Arc<AtomicU64>,
}

impl Late {
    /// Makes the thread, which begins with `on_start`; it copies within what a memory limit leaves (`most` bytes).
    ///
    /// # Errors
    /// The host has no room for another thread.
    pub fn new(
        memory: GuestMemory,
        rest: Vec<Range<u64>>,
        late: Vec<Range<u64>>,
        most: Option<u64>,
        on_start: OnStart,
    ) -> io::Result<Self> {
        let (begin, begun) = channel();
        let copied = Arc::new(AtomicU64::new(0));
        let told = copied.clone();
        let beside = move || {
            // Without its walls it does nothing, and the guest's own faults copy.
            if on_start().is_err() {
                return;
            }
            let most = most.unwrap_or(u64::MAX);
            let tell = |range: &Range<u64>| {
                told.fetch_add(range.end - range.start, Ordering::Relaxed);
            };
            copy(&memory, &rest, most.min(BESIDE_MAX), tell);
            if begun.recv().is_ok() {
                // Whoever reads the answer needs the processor first.
                std::thread::yield_now();
                let left = most.saturating_sub(told.load(Ordering::Relaxed));
                copy(&memory, &late, left.min(COPIED_MAX), tell);
            }
        };
        std::thread::Builder::new().name("prefetch".to_owned()).spawn(beside)?;
        Ok(Late { begin, copied })
    }

    /// Lets the thread begin with what is late; a second time nothing happens.
    pub fn begin(&self) {
        // A thread that is done listens no longer.
        self.begin.send(()).unwrap_or_default();
    }

    /// Bytes that were copied so far.
    pub fn copied(&self) -> u64 {
        self.copied.load(Ordering::Relaxed)
    }
}

/// Copies ranges until `left` bytes are used up or the kernel refuses.
fn copy(memory: &GuestMemory, ranges: &[Range<u64>], left: u64, copied: impl FnMut(&Range<u64>)) {
    let places = mapped(memory);
    let fitting = first_bytes(ranges.to_vec(), left);
    fitting.iter().take_while(|range| populated(&places, range)).for_each(copied);
}

/// How many pages of ranges of the `memory` file are in memory as they are in the file.
///
/// # Errors
/// The file cannot be read.
pub fn unchanged_pages(memory: &GuestMemory, file: &File, ranges: &[Range<u64>]) -> io::Result<u64> {
    let (mut is, mut was) = ([0; PAGE], [0; PAGE]);
    let mut unchanged = 0;
    for offset in ranges.iter().flat_map(|range| range.clone().step_by(PAGE)) {
        let place = GuestAddress(layout::guest_address(offset));
        memory.read_slice(&mut is, place).map_err(io::Error::other)?;
        file.read_exact_at(&mut was, offset)?;
        unchanged += u64::from(is == was);
    }
    Ok(unchanged)
}

/// Whether pages spread over the ranges, their first and last among them, are in the page cache. mincore() says so of every page of a
/// file that this user may not write.
fn cache(file: &File, ranges: &[Range<u64>]) -> Cache {
    let probe = |offset| preadv2(file, &mut [IoSliceMut::new(&mut [0])], offset, ReadWriteFlags::NOWAIT);
    match told(probes(ranges).into_iter().map(probe)) {
        Cache::Unknown if is_in_memory(file) => Cache::Warm,
        cache => cache,
    }
}

/// Whether a file is one of a tmpfs, which tells nothing of its page cache and has nothing on a disk.
fn is_in_memory(file: &File) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|system| system.f_type == libc::TMPFS_MAGIC)
}

/// What reads that must not wait say of the page cache.
fn told(reads: impl Iterator<Item = Result<usize, Errno>>) -> Cache {
    let mut cache = Cache::Warm;
    for read in reads {
        match read {
            Err(Errno::AGAIN) => return Cache::Cold,
            // Overlay and network file systems, and tmpfs.
            Err(Errno::OPNOTSUPP) => cache = Cache::Unknown,
            _ => {}
        }
    }
    cache
}

/// Offsets in the ranges, at even distances of their bytes.
fn probes(ranges: &[Range<u64>]) -> Vec<u64> {
    let last = bytes_of(ranges).saturating_sub(1);
    let mut wanted = (0..PROBES).map(|probe| last / (PROBES - 1) * probe).peekable();
    let (mut offsets, mut before) = (Vec::new(), 0);
    for range in ranges {
        let len = range.end - range.start;
        while let Some(at) = wanted.next_if(|at| *at < before + len) {
            offsets.push(range.start + (at - before));
        }
        before += len;
    }
    offsets
}

fn populated(places: &[Mapped], range: &Range<u64>) -> bool {
    let Some((address, len)) = address(places, range) else { return false };
    // SAFETY: the range lies in guest memory, which is mapped for the life of the process; populating changes no content.
    unsafe { libc::madvise(address as *mut libc::c_void, len, libc::MADV_POPULATE_WRITE) == 0 }
}

/// `None` unless the range lies in one region as a whole.
fn address(mapped: &[Mapped], range: &Range<u64>) -> Option<(usize, usize)> {
    let (start, left) = address_of(mapped, range.start)?;
    let len = usize::try_from(range.end - range.start).ok()?;
    (len <= left).then_some((start, len))
}

/// Ranges with less than `gap` between them made one.
fn merged(ranges: &[Range<u64>], gap: u64) -> Vec<Range<u64>> {
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match merged.last_mut().filter(|last| range.start <= last.end.saturating_add(gap)) {
            Some(last) => last.end = last.end.max(range.end),
            None => merged.push(range.clone()),
        }
    }
    merged
}

/// Ranges of pages of 4 KiB cut where one region of guest memory ends: nothing outside of `bytes` of memory is left.
pub fn within(ranges: impl IntoIterator<Item = Range<u64>>, bytes: u64) -> Vec<Range<u64>> {
    let regions = layout::regions(bytes);
    let mut cut = Vec::new();
    for range in ranges {
        let part = |region: &layout::Region| {
            range.start.max(region.file_offset)..range.end.min(region.file_offset + region.len)
        };
        cut.extend(regions.iter().map(part).filter(|part| part.start < part.end));
    }
    cut
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Touch, copy_on_write, own_pages};

    #[test]
    fn what_is_copied_ahead_has_the_file_s_content_and_is_the_clone_s_own() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 4 << 20], 0).unwrap();
        let memory = copy_on_write(&file, 4 << 20, &[]).unwrap();
        let expected = Expected {
            read: std::iter::once(0..4096).collect(),
            written: vec![8192..16384, 1 << 20..(1 << 20) + 4096],
            ..Expected::default()
        };
        let done = copy_written(&memory, &expected, None);
        assert_eq!(done, Prefetched { copied: 12288, ..Prefetched::default() });
        assert_eq!(expected.clone().as_copied(&done), expected);
        let less = expected.clone().as_copied(&Prefetched { copied: 8192, ..done });
        assert_eq!((less.written.as_slice(), &less.read), (&expected.written[..1], &expected.read));
        assert_eq!(memory.read_obj::<u8>(GuestAddress(8192)).unwrap(), 7);
        assert_eq!(unchanged_pages(&memory, &file, &expected.written).unwrap(), 3);
        memory.write_obj(9u8, GuestAddress(8192)).unwrap();
        assert_eq!(unchanged_pages(&memory, &file, &expected.written).unwrap(), 2);
        let mut page = [0; 4096];
        file.read_exact_at(&mut page, 8192).unwrap();
        assert_eq!(page[0], 7);
    }

    #[test]
    fn a_pager_brings_in_what_is_read_and_written_in_the_file_s_order_and_within_the_budget() {
        let page = |number: u64| number * 4096..(number + 1) * 4096;
        let expected = Expected {
            read: vec![page(1), page(7)],
            written: vec![page(3)],
            late_read: vec![page(9)],
            late_written: vec![page(8)],
        };
        let (all, cut) = expected.clone().for_pager(None);
        assert_eq!((all.read, all.late_read), (vec![page(1), page(3), page(7)], vec![page(8), page(9)]));
        assert!(all.written.is_empty() && all.late_written.is_empty() && !cut);
        let (some, cut) = expected.clone().for_pager(Some(4 * 4096));
        assert_eq!((some.read.len(), some.late_read, cut), (3, vec![page(8)], false));
        let (few, cut) = expected.for_pager(Some(2 * 4096));
        assert_eq!((few.read, few.late_read.len(), cut), (vec![page(1), page(3)], 0, true));
    }

    #[test]
    fn what_is_late_is_copied_beside_once_it_is_time() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 1 << 20], 0).unwrap();
        let memory = copy_on_write(&file, 1 << 20, &[]).unwrap();
        let (rest, late) = (vec![262_144..266_240, 524_288..528_384], vec![0..8192, 65536..69632]);
        let late = Late::new(memory.clone(), rest, late, None, Box::new(|| Ok(()))).unwrap();
        let wait_for = |bytes| {
            while late.copied() < bytes {
                std::thread::yield_now();
            }
            let own = own_pages(&memory).unwrap().into_iter().filter(|touch| *touch == Touch::Written);
            assert_eq!(own.count() as u64 * 4096, bytes);
        };
        wait_for(2 * 4096);
        late.begin();
        wait_for(5 * 4096);
        late.begin();
    }

    #[test]
    fn copying_ends_where_the_budget_does() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let memory = copy_on_write(&file, 1 << 20, &[]).unwrap();
        let mut copied = Vec::new();
        copy(&memory, &[0..4096, 8192..16384, 65536..69632], 8192, |range| copied.push(range.clone()));
        assert_eq!(copied, [0..4096, 8192..12288]);
    }

    #[test]
    fn a_warm_page_cache_is_left_alone() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 1 << 20], 0).unwrap();
        let expected = Expected { read: std::iter::once(0..65536).collect(), ..Expected::default() };
        assert_eq!(read_ahead(&file, &expected), Prefetched::default());
    }

    #[test]
    fn what_is_in_memory_is_not_asked_of_a_disk() {
        let file = File::from(rustix::fs::memfd_create("memory", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        file.write_all_at(&[7; 1 << 20], 0).unwrap();
        let expected = Expected { read: std::iter::once(0..65536).collect(), ..Expected::default() };
        assert_eq!(read_ahead(&file, &expected), Prefetched::default());
        assert!(is_in_memory(&file));
    }

    #[test]
    fn a_file_system_that_does_not_tell_is_asked_for_what_it_may_have() {
        let cache = |reads: &[Result<usize, Errno>]| told(reads.iter().copied());
        assert_eq!(cache(&[Ok(1), Ok(1)]), Cache::Warm);
        assert_eq!(cache(&[Ok(1), Err(Errno::OPNOTSUPP)]), Cache::Unknown);
        assert_eq!(cache(&[Err(Errno::OPNOTSUPP), Err(Errno::AGAIN)]), Cache::Cold);
    }

    #[test]
    fn ranges_near_each_other_are_asked_for_together_and_in_requests_that_the_kernel_takes() {
        assert_eq!(merged(&[0..10, 12..20, 40..50], 5), [0..20, 40..50]);
        let long = 4096..4096 + 2 * REQUEST + 8192;
        let pieces: Vec<_> = requests(vec![long.clone(), 0..4096]).collect();
        assert_eq!(
            pieces.iter().map(|piece| piece.end - piece.start).collect::<Vec<_>>(),
            [REQUEST, REQUEST, 8192, 4096]
        );
        assert_eq!((pieces[0].start, pieces[2].end), (long.start, long.end));
    }

    #[test]
    fn the_page_cache_is_asked_for_first_and_last_pages_and_evenly_between() {
        let ranges = [0..4096, 1 << 20..(1 << 20) + 6 * 4096, 8 << 20..(8 << 20) + 4096];
        let offsets = probes(&ranges);
        assert_eq!(offsets.len() as u64, PROBES);
        assert_eq!(
            offsets.iter().map(|offset| offset / 4096).collect::<Vec<_>>(),
            [0, 256, 257, 258, 259, 260, 261, 2048]
        );
        assert!(probes(&[]).is_empty());
        assert_eq!(probes(std::slice::from_ref(&(4096..4097))), [4096; 8]);
    }

    #[test]
    fn a_range_that_does_not_fit_is_copied_as_far_as_it_does() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 << 20).unwrap();
        let memory = copy_on_write(&file, 64 << 20, &[]).unwrap();
        let expected = Expected { written: vec![4096..33 << 20, 40 << 20..41 << 20], ..Expected::default() };
        let limited = copy_written(&memory, &expected, Some(2 << 20));
        assert_eq!(limited, Prefetched { copied: 2 << 20, cut_short: true, ..Prefetched::default() });
        let copied = std::iter::once(4096..(2 << 20) + 4096).collect::<Vec<_>>();
        assert_eq!(expected.clone().as_copied(&limited).written, copied);
        // No limit has left this out.
        let most = copy_written(&memory, &expected, None);
        assert_eq!(most, Prefetched { copied: COPIED_MAX, ..Prefetched::default() });
        assert_eq!(expected.beyond(&most), [4096 + COPIED_MAX..33 << 20, 40 << 20..41 << 20]);
    }

    #[test]
    fn ranges_outside_of_memory_are_cut_off() {
        assert_eq!(within([0..4096, 8192..1 << 30, 2 << 30..3 << 30], 2 << 20), [0..4096, 8192..2 << 20]);
        let hole = layout::MMIO_GAP_START;
        let across = within(std::iter::once(hole - 4096..hole + 4096), 8 << 30);
        assert_eq!(across, [hole - 4096..hole, hole..hole + 4096]);
    }
}
