//! The thread that serves page faults, and its handle.
//!
//! It touches no guest memory itself: whoever waits for a page waits for this thread.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use userfaultfd::{Event, EventBuffer, Uffd};

use super::super::place::{Mapped, address_of, offset_of};
use super::super::source::{ChunkError, ChunkSource};
use super::fill::{self, FillError, PAGE};
use super::plan::overlap;

/// Bytes that are brought in for a fault, where the chunks of the index are not longer: the aligned window around it.
const WINDOW: u64 = 64 << 10;

/// Bytes of a window of memory that comes from `source`.
pub(super) fn window_of(source: &dyn ChunkSource) -> u64 {
    source.granule().max(WINDOW)
}

/// Faults taken from the kernel at a time.
const EVENTS: usize = 64;

/// Why the pager cannot go on. Its clone cannot either.
#[derive(Debug, thiserror::Error)]
pub enum PagerError {
    /// A chunk cannot be had.
    #[error(transparent)]
    Chunk(#[from] ChunkError),
    /// The pager's thread could not be confined.
    #[error("Cannot confine the pager's thread")]
    Confine(#[source] io::Error),
    /// The kernel does not tell of faults.
    #[error("Cannot take page faults of the guest from userfaultfd")]
    Events(#[source] io::Error),
    /// A fault that is not in the memory that is served.
    #[error("userfaultfd told of a page fault at {address:#x}, where no memory of the guest is served")]
    Foreign {
        /// Address in this process.
        address: usize,
    },
    /// The kernel does not take a chunk.
    #[error("Cannot bring the memory at offset {offset:#x} into the guest")]
    Fill {
        /// Where it begins in the `memory` file.
        offset: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What a pager has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PagerStatistics {
    /// Page faults that userfaultfd told of.
    pub faults: u64,
    /// Bytes copied from the bundle for faults.
    pub copied: u64,
    /// Bytes for which the zero page was mapped.
    pub zeroed: u64,
    /// Bytes copied from the bundle ahead of faults.
    pub prefetched: u64,
}

#[derive(Debug, Default)]
struct Counters {
    faults: AtomicU64,
    copied: AtomicU64,
    zeroed: AtomicU64,
    prefetched: AtomicU64,
}

/// Ranges to bring in ahead of faults, and whom to tell when they are in.
#[derive(Debug)]
struct Ahead {
    ranges: VecDeque<Range<u64>>,
    done: Sender<()>,
}

/// What handle and thread share.
#[derive(Debug)]
pub(super) struct Shared {
    counters: Counters,
    asked: Mutex<Vec<Ahead>>,
    /// Wakes the thread for `asked`.
    bell: OwnedFd,
}

impl Shared {
    pub fn new() -> io::Result<Arc<Self>> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Arc::new(Shared { counters: Counters::default(), asked: Mutex::default(), bell }))
    }

    fn asked(&self) -> MutexGuard<'_, Vec<Ahead>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The handle of a pager. The thread lives as long as the process, as the memory does that it serves: without it a page that is
/// missing would be found zero.
#[derive(Debug, Clone)]
pub struct Pager(pub(super) Arc<Shared>);

impl Pager {
    /// What it has done so far.
    pub fn statistics(&self) -> PagerStatistics {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Counters { faults, copied, zeroed, prefetched } = &self.0.counters;
        PagerStatistics {
            faults: count(faults),
            copied: count(copied),
            zeroed: count(zeroed),
            prefetched: count(prefetched),
        }
    }

    /// Asks for `ranges` (offsets in the `memory` file) ahead of demand, in this order and in whole chunks; what lies outside
    /// of the content is passed over. A fault waits for at most one chunk of them. The receiver gets one message when all
    /// are in.
    ///
    /// # Errors
    /// The thread cannot be woken.
    pub fn prefetch(&self, ranges: impl IntoIterator<Item = Range<u64>>) -> io::Result<Receiver<()>> {
        let (done, receiver) = channel();
        self.0.asked().push(Ahead { ranges: ranges.into_iter().collect(), done });
        rustix::io::write(&self.0.bell, &1u64.to_ne_bytes())?;
        Ok(receiver)
    }
}

/// Lives on the pager's thread.
pub(super) struct Server {
    pub uffd: Uffd,
    pub source: Box<dyn ChunkSource>,
    /// The guest's regions.
    pub mapped: Vec<Mapped>,
    /// What is registered, in file order.
    pub registered: Vec<Range<u64>>,
    pub shared: Arc<Shared>,
    content: Vec<Range<u64>>,
    window: u64,
    /// Which windows have been brought in, by number.
    served: Vec<bool>,
    buffer: Vec<u8>,
    ahead: VecDeque<Ahead>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("source", &self.source).finish_non_exhaustive()
    }
}

/// Why the thread stops.
pub(super) enum Stop {
    /// The process ends, and nobody waits for pages any more.
    Gone,
    Failed(PagerError),
}

impl<E: Into<PagerError>> From<E> for Stop {
    fn from(error: E) -> Self {
        Stop::Failed(error.into())
    }
}

/// What pages are brought in for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum For {
    Fault,
    Prefetch,
}

impl Server {
    pub fn new(
        uffd: Uffd,
        source: Box<dyn ChunkSource>,
        mapped: Vec<Mapped>,
        registered: Vec<Range<u64>>,
        shared: Arc<Shared>,
    ) -> Self {
        let window = window_of(source.as_ref());
        let len = registered.last().map_or(0, |last| last.end);
        let windows = usize::try_from(len.div_ceil(window)).unwrap_or(0);
        Server {
            content: source.content(),
            window,
            served: vec![false; windows],
            buffer: Vec::new(),
            ahead: VecDeque::new(),
            uffd,
            source,
            mapped,
            registered,
            shared,
        }
    }

    /// Serves until something is wrong or the process ends.
    pub fn serve(&mut self) -> Stop {
        let mut events = EventBuffer::new(EVENTS);
        loop {
            if let Err(stop) = self.turn(&mut events) {
                return stop;
            }
        }
    }

    /// Waits, then serves all faults that are there, else a piece of what was asked for ahead of them.
    fn turn(&mut self, events: &mut EventBuffer) -> Result<(), Stop> {
        let (faults, bell) = self.wait().map_err(PagerError::Events)?;
        if bell {
            rustix::io::read(&self.shared.bell, &mut [0; 8]).map_err(|e| PagerError::Events(e.into()))?;
            self.ahead.extend(self.shared.asked().drain(..));
        }
        if faults { self.faults(events) } else { self.one_ahead() }
    }

    /// Whether there are faults, and whether the bell was rung.
    fn wait(&self) -> io::Result<(bool, bool)> {
        let mut ready =
            [PollFd::new(&self.uffd, PollFlags::IN), PollFd::new(&self.shared.bell, PollFlags::IN)];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        match poll(&mut ready, (!self.ahead.is_empty()).then_some(&now)) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok((false, false)),
            Err(error) => return Err(error.into()),
        }
        let [faults, bell] = ready.map(|descriptor| descriptor.revents());
        if faults.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL) {
            return Err(io::Error::other("poll(2) finds the descriptor broken"));
        }
        Ok((faults.contains(PollFlags::IN), bell.contains(PollFlags::IN)))
    }

    fn faults(&mut self, events: &mut EventBuffer) -> Result<(), Stop> {
        let mut addresses = Vec::with_capacity(EVENTS);
        let told = self.uffd.read_events(events).map_err(|e| PagerError::Events(io::Error::other(e)))?;
        for event in told {
            match event.map_err(|e| PagerError::Events(io::Error::other(e)))? {
                Event::Pagefault { addr, .. } => addresses.push(addr as usize),
                other => return Err(PagerError::Events(io::Error::other(format!("{other:?}"))).into()),
            }
        }
        self.shared.counters.faults.fetch_add(addresses.len() as u64, Ordering::Relaxed);
        // Several vCPUs that wait for one window are served, and woken, at once.
        let mut last = None;
        for address in addresses {
            let offset =
                offset_of(&self.mapped, address & !(PAGE - 1)).ok_or(PagerError::Foreign { address })?;
            let window = offset / self.window;
            if last.replace(window) != Some(window) {
                self.bring_in(window, offset, For::Fault)?;
            }
        }
        Ok(())
    }

    /// Brings in the part of window `number` that lies in the registered range around `offset`. A page that is there keeps its
    /// content, so that a window that was served already may be again.
    fn bring_in(&mut self, number: u64, offset: u64, why: For) -> Result<(), Stop> {
        let start = number.saturating_mul(self.window);
        let window = start..start.saturating_add(self.window);
        let range = find(&self.registered, offset);
        let address = address_of(&self.mapped, offset).map_or(0, |(address, _)| address);
        let part = overlap(&window, &range.ok_or(PagerError::Foreign { address })?);
        let mut at = part.start;
        while at < part.end {
            let next = self.next_content(at, part.end);
            self.zero(at..next.start)?;
            self.copy(next.clone(), why)?;
            at = next.end;
        }
        if let Some(served) = self.served.get_mut(usize::try_from(number).unwrap_or(usize::MAX)) {
            *served = true;
        }
        Ok(())
    }

    /// The first content from `at` on and before `end`; an empty range at `end` when there is none.
    fn next_content(&self, at: u64, end: u64) -> Range<u64> {
        let first = self.content.partition_point(|range| range.end <= at);
        let next = self.content.get(first).map(|range| overlap(range, &(at..end)));
        next.filter(|range| !range.is_empty()).unwrap_or(end..end)
    }

    fn zero(&mut self, range: Range<u64>) -> Result<(), Stop> {
        if range.is_empty() {
            return Ok(());
        }
        let len = usize::try_from(range.end - range.start).unwrap_or(0);
        self.shared.counters.zeroed.fetch_add(len as u64, Ordering::Relaxed);
        self.put(range.start, |uffd, to, _| fill::zero(uffd, to, len))
    }

    /// Reads and checks whole chunks, and only then lets the guest see them.
    fn copy(&mut self, range: Range<u64>, why: For) -> Result<(), Stop> {
        if range.is_empty() {
            return Ok(());
        }
        let len = usize::try_from(range.end - range.start).unwrap_or(0);
        self.buffer.resize(len, 0);
        self.source.read(range.start, &mut self.buffer)?;
        let counter = match why {
            For::Fault => &self.shared.counters.copied,
            For::Prefetch => &self.shared.counters.prefetched,
        };
        // First, so that whoever has been woken finds his pages counted.
        counter.fetch_add(len as u64, Ordering::Relaxed);
        self.put(range.start, fill::copy)
    }

    fn put(
        &self,
        offset: u64,
        fill: impl FnOnce(&Uffd, usize, &[u8]) -> Result<(), FillError>,
    ) -> Result<(), Stop> {
        let (to, _) = address_of(&self.mapped, offset).ok_or(PagerError::Foreign { address: 0 })?;
        fill(&self.uffd, to, &self.buffer).map_err(|error| match error {
            FillError::Gone => Stop::Gone,
            FillError::Refused(source) => PagerError::Fill { offset, source }.into(),
        })
    }

    /// Brings in one window of what was asked for ahead of faults.
    fn one_ahead(&mut self) -> Result<(), Stop> {
        let Some(ahead) = self.ahead.front() else { return Ok(()) };
        let Some(range) = ahead.ranges.front().cloned() else {
            // Whoever asked need not wait for it.
            ahead.done.send(()).ok();
            self.ahead.pop_front();
            return Ok(());
        };
        let next = self.next_content(range.start, range.end);
        let number = next.start / self.window;
        self.shorten_ahead(number.saturating_add(1).saturating_mul(self.window)..range.end);
        let has_been = self.served.get(usize::try_from(number).unwrap_or(usize::MAX)).copied();
        match has_been {
            Some(false) if !next.is_empty() => self.bring_in(number, next.start, For::Prefetch),
            _ => Ok(()),
        }
    }

    /// `rest` is left of the range that comes next.
    fn shorten_ahead(&mut self, rest: Range<u64>) {
        let Some(ahead) = self.ahead.front_mut() else { return };
        match ahead.ranges.front_mut() {
            Some(range) if !rest.is_empty() => *range = rest,
            _ => drop(ahead.ranges.pop_front()),
        }
    }
}

/// The range that holds `offset`.
fn find(ranges: &[Range<u64>], offset: u64) -> Option<Range<u64>> {
    let first = ranges.partition_point(|range| range.end <= offset);
    ranges.get(first).filter(|range| range.contains(&offset)).cloned()
}
