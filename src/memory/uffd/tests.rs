//! The pager against the kernel. They need a userfaultfd (see `lazy_paging` in `ember doctor`): `cargo xtask test` runs them in the
//! emulated host, and natively where this user gets one.

use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use memmap2::{MmapMut, MmapOptions};
use userfaultfd::{Event, Uffd};
use vm_memory::{Bytes, GuestAddress};

use super::fill::{self, FillError, PAGE};
use super::*;
use crate::memory::source::ChunkError;

const CHUNK: u64 = 64 << 10;
/// Longest time of what must happen at once.
const SOON: Duration = Duration::from_secs(20);

/// Every page of the content holds its own number.
#[derive(Debug)]
struct Pages {
    content: Vec<Range<u64>>,
    granule: u64,
    /// A chunk that is not as it should be.
    bad: Option<u64>,
    /// A chunk that the disk does not give.
    unreadable: Option<u64>,
    read: Arc<Mutex<Vec<Range<u64>>>>,
}

impl Pages {
    fn new(content: &[Range<u64>]) -> Self {
        Pages { content: content.to_vec(), granule: CHUNK, bad: None, unreadable: None, read: Arc::default() }
    }
}

impl Pages {
    /// Content without a gap.
    fn whole(content: Range<u64>) -> Self {
        Pages::new(std::slice::from_ref(&content))
    }
}

fn page_of(offset: u64) -> u8 {
    u8::try_from(offset / 4096 % 251 + 1).unwrap()
}

impl ChunkSource for Pages {
    fn granule(&self) -> u64 {
        self.granule
    }

    fn content(&self) -> Vec<Range<u64>> {
        self.content.clone()
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), ChunkError> {
        let range = offset..offset + into.len() as u64;
        assert!(offset.is_multiple_of(self.granule), "whole chunks are read");
        self.read.lock().unwrap().push(range.clone());
        if let Some(bad) = self.bad.filter(|bad| range.contains(bad)) {
            return Err(ChunkError::Damaged { offset: bad });
        }
        if let Some(offset) = self.unreadable.filter(|offset| range.contains(offset)) {
            return Err(ChunkError::Read { offset, source: io::Error::from_raw_os_error(libc::EIO) });
        }
        for (page, at) in into.chunks_mut(4096).zip((offset..).step_by(4096)) {
            page.fill(page_of(at));
        }
        Ok(())
    }
}

fn memory_of(source: Pages, bytes: u64) -> (GuestMemory, Pager, Receiver<PagerError>) {
    let (sender, failures) = channel();
    let failed = Box::new(move |error| sender.send(error).unwrap());
    let (memory, pager) = paged(Box::new(source), bytes, Door::Host, Box::new(|| Ok(())), failed).unwrap();
    (memory, pager, failures)
}

fn byte(memory: &GuestMemory, offset: u64) -> u8 {
    memory.read_obj(GuestAddress(offset)).unwrap()
}

#[test]
fn every_page_has_its_content_and_what_is_zero_is_zero() {
    let content = [0..CHUNK * 2, CHUNK * 3..CHUNK * 4, CHUNK * 40..CHUNK * 41];
    let (memory, pager, _) = memory_of(Pages::new(&content), 4 << 20);
    for offset in (0..1024u32).rev().map(|page| u64::from(page) * 4096) {
        let is_content = content.iter().any(|range| range.contains(&offset));
        assert_eq!(byte(&memory, offset), if is_content { page_of(offset) } else { 0 }, "{offset:#x}");
    }
    let done = pager.statistics();
    assert_eq!((done.faults, done.copied, done.zeroed), (4, 4 * CHUNK, 0));
}

#[test]
fn a_short_last_chunk_is_served() {
    let len = CHUNK + 8192;
    let (memory, pager, _) = memory_of(Pages::whole(0..len), len);
    assert_eq!(byte(&memory, len - 1), page_of(len - 4096));
    assert_eq!(pager.statistics().copied, 8192);
}

#[test]
fn small_chunks_come_with_their_neighbours_and_the_zeros_between() {
    let mut source = Pages::new(&[0..4096, 8192..12288, 40960..45056]);
    source.granule = 4096;
    let read = source.read.clone();
    let (memory, pager, _) = memory_of(source, 2 << 20);
    assert_eq!(byte(&memory, 8192), page_of(8192));
    assert_eq!((byte(&memory, 4096), byte(&memory, 40960)), (0, page_of(40960)));
    let done = pager.statistics();
    assert_eq!((done.faults, done.copied, done.zeroed), (2, 3 * 4096, 4 * 4096));
    assert_eq!(read.lock().unwrap().len(), 3);
    assert_eq!(byte(&memory, 60 << 10), 0, "what lies behind the last content is the kernel's");
}

#[test]
fn what_the_guest_wrote_stays() {
    let (memory, _, _) = memory_of(Pages::whole(0..CHUNK * 4), 2 << 20);
    memory.write_obj(77u8, GuestAddress(5000)).unwrap();
    memory.write_obj(78u8, GuestAddress(1 << 20)).unwrap();
    for offset in (0..2 << 20).step_by(4096) {
        byte(&memory, offset);
    }
    assert_eq!((byte(&memory, 5000), byte(&memory, 1 << 20)), (77, 78));
    assert_eq!(byte(&memory, 5001), page_of(4096));
}

#[test]
fn many_threads_that_wait_for_the_same_pages_all_go_on() {
    let bytes = 8 << 20;
    let (memory, _, _) = memory_of(Pages::whole(0..bytes), bytes);
    std::thread::scope(|scope| {
        for thread in 0..8u64 {
            let memory = &memory;
            scope.spawn(move || {
                for page in 0..bytes / 4096 {
                    let offset = (page * 97 + thread) % (bytes / 4096) * 4096;
                    assert_eq!(byte(memory, offset), page_of(offset));
                }
            });
        }
    });
}

#[test]
fn a_bad_chunk_is_named_and_never_seen() {
    let mut source = Pages::whole(0..CHUNK * 8);
    source.bad = Some(CHUNK * 5);
    let (memory, _, failures) = memory_of(source, 2 << 20);
    assert_eq!(byte(&memory, CHUNK * 4), page_of(CHUNK * 4));
    let seen = Arc::new(AtomicBool::new(false));
    let (touched, by) = (memory.clone(), seen.clone());
    // It waits for ever, as a guest would.
    std::thread::spawn(move || {
        byte(&touched, CHUNK * 5 + 1);
        by.store(true, Ordering::SeqCst);
    });
    let error = failures.recv_timeout(SOON).unwrap();
    assert!(matches!(error, PagerError::Chunk(ChunkError::Damaged { offset }) if offset == CHUNK * 5));
    std::thread::sleep(Duration::from_millis(50));
    assert!(!seen.load(Ordering::SeqCst), "somebody saw the chunk");
}

#[test]
fn what_is_asked_for_ahead_is_there_without_a_fault() {
    let content = [0..CHUNK * 2, CHUNK * 10..CHUNK * 20];
    let (memory, pager, _) = memory_of(Pages::new(&content), 4 << 20);
    byte(&memory, 0);
    // Some of it is there already, is zero, or lies behind the end.
    let asked = [CHUNK * 11 + 5..CHUNK * 13, 0..CHUNK * 2, CHUNK * 5..CHUNK * 6, 1 << 40..2 << 40];
    let done = pager.prefetch(asked, Duration::from_millis(1));
    done.unwrap().recv_timeout(SOON).unwrap();
    let before = pager.statistics();
    assert_eq!((before.faults, before.prefetched), (1, 3 * CHUNK));
    for offset in [CHUNK, CHUNK * 11, CHUNK * 13 - 1] {
        assert_eq!(byte(&memory, offset), page_of(offset));
    }
    assert_eq!(pager.statistics(), before);
    assert_eq!(byte(&memory, CHUNK * 13), page_of(CHUNK * 13));
}

#[test]
fn only_the_pages_that_are_asked_for_come_ahead_from_chunks_that_are_read_once() {
    let source = Pages::whole(0..CHUNK * 4);
    let read = source.read.clone();
    let (memory, pager, _) = memory_of(source, 2 << 20);
    let page = |number: u64| number * 4096..(number + 1) * 4096;
    let done = pager.prefetch([page(9), page(2), page(20), page(3)], Duration::ZERO).unwrap();
    done.recv_timeout(SOON).unwrap();
    assert_eq!(*read.lock().unwrap(), [0..CHUNK, CHUNK..CHUNK * 2]);
    assert_eq!((byte(&memory, 9 << 12), byte(&memory, 20 << 12)), (page_of(9 << 12), page_of(20 << 12)));
    let before = pager.statistics();
    assert_eq!((before.faults, before.prefetched), (0, 4 * 4096));
    for offset in (0..CHUNK).step_by(4096) {
        assert_eq!(byte(&memory, offset), page_of(offset));
    }
    assert_eq!(pager.statistics().copied, 13 * 4096, "the rest of the chunk comes with its first fault");
    assert_eq!(read.lock().unwrap().len(), 3);
}

#[test]
fn zeros_that_are_asked_for_come_ahead_where_they_are_served() {
    let mut source = Pages::new(&[0..4096, 16384..20480]);
    source.granule = 4096;
    let (memory, pager, _) = memory_of(source, 2 << 20);
    pager
        .prefetch([4096..12288, 1 << 20..(1 << 20) + 4096], Duration::ZERO)
        .unwrap()
        .recv_timeout(SOON)
        .unwrap();
    assert_eq!((byte(&memory, 4096), byte(&memory, 1 << 20)), (0, 0));
    let done = pager.statistics();
    assert_eq!((done.faults, done.prefetched, done.zeroed), (0, 0, 8192));
}

#[test]
fn a_faulty_chunk_that_is_brought_in_ahead_fails_too() {
    let mut source = Pages::whole(0..CHUNK * 8);
    source.bad = Some(CHUNK * 2);
    let (_memory, pager, failures) = memory_of(source, 2 << 20);
    let _done = pager.prefetch(std::iter::once(0..CHUNK * 8), Duration::ZERO).unwrap();
    assert!(matches!(failures.recv_timeout(SOON).unwrap(), PagerError::Chunk(_)));
}

/// `len` bytes that are registered, and their descriptor.
#[test]
fn a_disk_that_fails_ahead_of_faults_fails_whoever_needs_the_page_and_nobody_else() {
    let mut source = Pages::whole(0..CHUNK * 4);
    source.unreadable = Some(CHUNK);
    let (memory, pager, failures) = memory_of(source, 2 << 20);
    pager.prefetch(std::iter::once(0..CHUNK * 4), Duration::ZERO).unwrap().recv_timeout(SOON).unwrap();
    assert_eq!(byte(&memory, CHUNK * 3), page_of(CHUNK * 3));
    assert!(failures.try_recv().is_err());
    std::thread::spawn(move || byte(&memory, CHUNK));
    let failure = failures.recv_timeout(SOON).unwrap();
    assert!(matches!(failure, PagerError::Chunk(ChunkError::Read { offset: CHUNK, .. })), "{failure}");
}

fn registered(len: usize, features: u64) -> (Uffd, MmapMut) {
    let uffd = door::open_with(Door::Host, features).unwrap();
    let map = MmapOptions::new().len(len).map_anon().unwrap();
    uffd.register(map.as_ptr() as *mut _, len).unwrap();
    (uffd, map)
}

#[test]
fn pages_that_are_there_already_are_passed_over() {
    let (uffd, map) = registered(16 * PAGE, 0);
    let at = map.as_ptr() as usize;
    fill::copy(&uffd, at + 5 * PAGE, &[5; PAGE]).unwrap();
    fill::zero(&uffd, at + 9 * PAGE, PAGE).unwrap();
    // The kernel copies five pages and says EAGAIN, then EEXIST.
    fill::copy(&uffd, at, &[7; 16 * PAGE]).unwrap();
    let firsts: Vec<u8> = map.chunks(PAGE).map(|page| page[0]).collect();
    assert_eq!(firsts, [7, 7, 7, 7, 7, 5, 7, 7, 7, 0, 7, 7, 7, 7, 7, 7]);
    fill::zero(&uffd, at, 16 * PAGE).unwrap();
    assert_eq!(map[0], 7);
}

#[test]
fn what_is_not_registered_is_refused() {
    let (uffd, map) = registered(4 * PAGE, 0);
    let foreign = MmapOptions::new().len(PAGE).map_anon().unwrap();
    let error = fill::copy(&uffd, foreign.as_ptr() as usize, &[1; PAGE]).unwrap_err();
    assert!(matches!(error, FillError::Refused(error) if error.raw_os_error() == Some(libc::ENOENT)));
    drop(map);
}

/// `UFFD_FEATURE_EVENT_REMOVE`: whoever gives pages back waits until that was read, and until then nothing is filled.
const EVENT_REMOVE: u64 = 1 << 3;

#[test]
fn the_kernel_may_ask_to_come_again() {
    let (uffd, map) = registered(4 * PAGE, EVENT_REMOVE);
    let at = map.as_ptr() as usize;
    std::thread::scope(|scope| {
        let giving_back = scope.spawn(|| {
            // SAFETY: the first page of a live mapping that nobody looks at meanwhile.
            unsafe { libc::madvise(at as *mut _, PAGE, libc::MADV_DONTNEED) }
        });
        let mut pending = [rustix::event::PollFd::new(&uffd, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut pending, None).unwrap();
        // SAFETY: fills missing pages of a mapping that nobody looks at meanwhile.
        let raw = unsafe { uffd.copy([1u8; PAGE].as_ptr().cast(), (at + PAGE) as *mut _, PAGE, true) };
        assert!(matches!(raw, Err(userfaultfd::Error::PartiallyCopied(n)) if n > isize::MAX.cast_unsigned()));
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(20));
            assert!(matches!(uffd.read_event().unwrap(), Some(Event::Remove { .. })));
        });
        fill::copy(&uffd, at + PAGE, &[9; 3 * PAGE]).unwrap();
        assert_eq!(giving_back.join().unwrap(), 0);
    });
    assert_eq!((map[PAGE], map[4 * PAGE - 1]), (9, 9));
}

/// A userfaultfd and an address of a process that has ended.
fn of_a_dead_process() -> (Uffd, usize) {
    let map = MmapOptions::new().len(PAGE).map_anon().unwrap();
    let at = map.as_ptr() as usize;
    let (report, reporter) = rustix::pipe::pipe().unwrap();
    let (stay, leave) = rustix::pipe::pipe().unwrap();
    // SAFETY: the child makes system calls only, and leaves by _exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let uffd = door::open(Door::Host).ok();
        let is_registered = uffd.as_ref().is_some_and(|uffd| uffd.register(at as *mut _, PAGE).is_ok());
        let number = uffd.as_ref().filter(|_| is_registered).map_or(-1, |uffd| uffd.as_raw_fd());
        rustix::io::write(&reporter, &number.to_ne_bytes()).ok();
        drop(leave);
        rustix::io::read(&stay, &mut [0; 1]).ok();
        // SAFETY: ends the child without running what belongs to its parent.
        unsafe { libc::_exit(0) };
    }
    let mut number = [0; 4];
    rustix::io::read(&report, &mut number).unwrap();
    let pid = rustix::process::Pid::from_raw(child).unwrap();
    let handle = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
    let flags = rustix::process::PidfdGetfdFlags::empty();
    let uffd: OwnedFd = rustix::process::pidfd_getfd(&handle, i32::from_ne_bytes(number), flags).unwrap();
    drop(leave);
    rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()).unwrap();
    // SAFETY: the descriptor is ours alone.
    (unsafe { Uffd::from_raw_fd(std::os::fd::IntoRawFd::into_raw_fd(uffd)) }, at)
}

#[test]
fn nobody_waits_for_pages_of_a_process_that_has_ended() {
    let (uffd, at) = of_a_dead_process();
    assert!(matches!(fill::copy(&uffd, at, &[1; PAGE]), Err(FillError::Gone)));
    assert!(matches!(fill::zero(&uffd, at, PAGE), Err(FillError::Gone)));
}
