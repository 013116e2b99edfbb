//! The thread that serves page faults, and its handle.
//!
//! It touches no guest memory itself: whoever waits for a page waits for this thread.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use userfaultfd::{Event, EventBuffer};

use super::super::source::ChunkError;
use super::bring::{For, Served};
use super::window::{self, Wanted};

/// Faults taken from the kernel at a time.
const EVENTS: usize = 64;
/// Pages brought in ahead of faults before it is looked whether there are some.
const AT_A_TIME: u32 = 16;

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
pub(super) struct Counters {
    faults: AtomicU64,
    pub copied: AtomicU64,
    pub zeroed: AtomicU64,
    pub prefetched: AtomicU64,
}

/// Pages to bring in ahead of faults, and whom to tell when they are in.
#[derive(Debug)]
struct Ahead {
    wanted: VecDeque<Wanted>,
    not_before: Instant,
    done: Sender<()>,
}

/// What handle and thread share.
#[derive(Debug)]
pub(super) struct Shared {
    pub counters: Counters,
    asked: Mutex<Vec<Ahead>>,
    /// Bytes of memory.
    len: u64,
    /// Wakes the thread for `asked`.
    bell: OwnedFd,
}

impl Shared {
    pub fn new(len: u64) -> io::Result<Arc<Self>> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Arc::new(Shared { counters: Counters::default(), asked: Mutex::default(), len, bell }))
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

    /// Asks for the pages of `ranges` (offsets in the `memory` file) ahead of demand, in the file's order, once `pause` has passed; what
    /// the pager does not serve is left out. A fault waits for a few of these pages at most. The receiver gets one message when all
    /// are in.
    ///
    /// # Errors
    /// The thread cannot be woken.
    pub fn prefetch(
        &self,
        ranges: impl IntoIterator<Item = Range<u64>>,
        pause: Duration,
    ) -> io::Result<Receiver<()>> {
        let (done, receiver) = channel();
        let not_before = Instant::now() + pause;
        let wanted = window::wanted(ranges, self.0.len).into();
        self.0.asked().push(Ahead { wanted, not_before, done });
        rustix::io::write(&self.0.bell, &1u64.to_ne_bytes())?;
        Ok(receiver)
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

/// Lives on the pager's thread.
#[derive(Debug)]
pub(super) struct Server {
    served: Served,
    shared: Arc<Shared>,
    ahead: VecDeque<Ahead>,
}

impl Server {
    pub fn new(served: Served, shared: Arc<Shared>) -> Self {
        Server { served, shared, ahead: VecDeque::new() }
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
        if faults { self.faults(events) } else { self.some_ahead() }
    }

    /// Whether there are faults, and whether the bell was rung.
    fn wait(&self) -> io::Result<(bool, bool)> {
        let mut ready =
            [PollFd::new(&self.served.uffd, PollFlags::IN), PollFd::new(&self.shared.bell, PollFlags::IN)];
        let pause =
            self.ahead.front().map(|ahead| ahead.not_before.saturating_duration_since(Instant::now()));
        let limit = pause.and_then(|pause| Timespec::try_from(pause).ok());
        match poll(&mut ready, limit.as_ref()) {
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
        let told =
            self.served.uffd.read_events(events).map_err(|e| PagerError::Events(io::Error::other(e)))?;
        for event in told {
            match event.map_err(|e| PagerError::Events(io::Error::other(e)))? {
                Event::Pagefault { addr, .. } => addresses.push(addr as usize),
                other => return Err(PagerError::Events(io::Error::other(format!("{other:?}"))).into()),
            }
        }
        self.shared.counters.faults.fetch_add(addresses.len() as u64, Ordering::Relaxed);
        for address in addresses {
            match self.served.around(address)? {
                Some(wanted) => self.served.bring_in(wanted, For::Fault)?,
                // It came with another's. Whoever waits for it began to before it came.
                None => self.served.wake(address)?,
            }
        }
        Ok(())
    }

    /// Brings in some of what was asked for ahead of faults.
    fn some_ahead(&mut self) -> Result<(), Stop> {
        let (mut pages, now) = (0, Instant::now());
        let is_time = |ahead: &&mut Ahead| ahead.not_before <= now;
        while let Some(ahead) = self.ahead.front_mut().filter(is_time).filter(|_| pages < AT_A_TIME) {
            if let Some(wanted) = ahead.wanted.pop_front() {
                pages += wanted.pages.count();
                match self.served.bring_in(wanted, For::Prefetch) {
                    // No room for it, or a disk that fails: nobody has asked yet, and whoever does is told.
                    Err(Stop::Failed(
                        PagerError::Fill { .. } | PagerError::Chunk(ChunkError::Read { .. }),
                    )) => ahead.wanted.clear(),
                    outcome => outcome?,
                }
            } else {
                // Whoever asked need not wait for it.
                ahead.done.send(()).ok();
                self.ahead.pop_front();
            }
        }
        Ok(())
    }
}
