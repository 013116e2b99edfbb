//! Bringing pages in: read and checked in whole chunks, and only then put where the guest can see them.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use userfaultfd::Uffd;

use super::super::place::{Mapped, address_of, offset_of};
use super::super::source::ChunkSource;
use super::fill::{self, FillError, PAGE};
use super::pager::{PagerError, Shared, Stop};
use super::window::{self, Pages, Wanted, number_of, windows};

/// Bytes that are brought in for a fault, where the index's chunks are not longer: aligned, around it.
const AROUND: u64 = 16 << 10;

/// What pages are brought in for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum For {
    Fault,
    Prefetch,
}

/// The memory that is served, and what of it is there.
pub(super) struct Served {
    pub uffd: Uffd,
    source: Box<dyn ChunkSource>,
    granule: u64,
    /// The guest's regions.
    mapped: Vec<Mapped>,
    /// What is registered, in file order.
    registered: Vec<Range<u64>>,
    content: Vec<Range<u64>>,
    /// Of each window, the pages that were brought in.
    there: Vec<Pages>,
    buffer: Vec<u8>,
    shared: Arc<Shared>,
}

impl fmt::Debug for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Served").field("source", &self.source).finish_non_exhaustive()
    }
}

impl Served {
    pub fn new(
        uffd: Uffd,
        source: Box<dyn ChunkSource>,
        mapped: Vec<Mapped>,
        registered: Vec<Range<u64>>,
        shared: Arc<Shared>,
    ) -> Self {
        let len = registered.last().map_or(0, |last| last.end);
        Served {
            granule: source.granule(),
            content: source.content(),
            there: vec![Pages::default(); windows(len)],
            buffer: vec![0; window::LEN],
            uffd,
            source,
            mapped,
            registered,
            shared,
        }
    }

    /// The pages to bring in for a fault at an address of this process. `None` where that page is there by now.
    pub fn around(&self, address: usize) -> Result<Option<Wanted>, PagerError> {
        let foreign = PagerError::Foreign { address };
        let Some(offset) = offset_of(&self.mapped, address) else { return Err(foreign) };
        let number = number_of(offset);
        let page = Pages::of(number, &(offset..offset + 1));
        if page.and(pages_of(&self.registered, number)).is_empty() {
            return Err(foreign);
        }
        let start = offset & !(AROUND - 1);
        // What has to be read and checked anyway need not be so a second time.
        let pages = Pages::of(number, &(start..start + AROUND)).in_chunks(self.granule);
        Ok((!page.without(self.there(number)).is_empty()).then_some(Wanted { number, pages }))
    }

    /// Lets whoever waits for a page that is there go on.
    pub fn wake(&self, address: usize) -> Result<(), Stop> {
        let offset = offset_of(&self.mapped, address).unwrap_or_default();
        fill::wake(&self.uffd, address & !(PAGE - 1)).map_err(|error| stopped(offset, error))
    }

    /// Brings in those of the pages that are served and are not there: others keep their content.
    pub fn bring_in(&mut self, wanted: Wanted, why: For) -> Result<(), Stop> {
        let Wanted { number, pages } = wanted;
        let missing = pages.and(pages_of(&self.registered, number)).without(self.there(number));
        let content = pages_of(&self.content, number);
        for zeros in missing.without(content).ranges(number) {
            self.zero(&zeros)?;
        }
        let filled = missing.and(content);
        for chunks in filled.in_chunks(self.granule).and(content).ranges(number) {
            self.read(&chunks)?;
            for part in filled.and(Pages::of(number, &chunks)).ranges(number) {
                self.copy(&chunks, &part, why)?;
            }
        }
        if let Some(there) = usize::try_from(number).ok().and_then(|number| self.there.get_mut(number)) {
            *there = there.or(missing);
        }
        Ok(())
    }

    fn there(&self, number: u64) -> Pages {
        let number = usize::try_from(number).unwrap_or(usize::MAX);
        self.there.get(number).copied().unwrap_or_default()
    }

    fn zero(&self, range: &Range<u64>) -> Result<(), Stop> {
        let (to, len) = self.place(range)?;
        self.shared.counters.zeroed.fetch_add(len as u64, Ordering::Relaxed);
        fill::zero(&self.uffd, to, len).map_err(|error| stopped(range.start, error))
    }

    fn read(&mut self, chunks: &Range<u64>) -> Result<(), Stop> {
        let len = usize::try_from(chunks.end - chunks.start).unwrap_or(usize::MAX);
        // A window's chunks always fit.
        let into = self.buffer.get_mut(..len).ok_or(PagerError::Foreign { address: 0 })?;
        Ok(self.source.read(chunks.start, into)?)
    }

    /// Puts a part of the chunks that were read where it belongs.
    fn copy(&self, chunks: &Range<u64>, part: &Range<u64>, why: For) -> Result<(), Stop> {
        let (to, len) = self.place(part)?;
        let at = usize::try_from(part.start - chunks.start).unwrap_or(usize::MAX);
        let bytes = self.buffer.get(at..).and_then(|rest| rest.get(..len)).unwrap_or_default();
        let counter = match why {
            For::Fault => &self.shared.counters.copied,
            For::Prefetch => &self.shared.counters.prefetched,
        };
        // First, so that whoever has been woken finds his pages counted.
        counter.fetch_add(len as u64, Ordering::Relaxed);
        fill::copy(&self.uffd, to, bytes).map_err(|error| stopped(part.start, error))
    }

    /// Where a range lies in this process, and how long it is.
    fn place(&self, range: &Range<u64>) -> Result<(usize, usize), PagerError> {
        let place = address_of(&self.mapped, range.start);
        let (to, left) = place.ok_or(PagerError::Foreign { address: 0 })?;
        let len = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        if len <= left { Ok((to, len)) } else { Err(PagerError::Foreign { address: to }) }
    }
}

fn stopped(offset: u64, error: FillError) -> Stop {
    match error {
        FillError::Gone => Stop::Gone,
        FillError::Refused(source) => PagerError::Fill { offset, source }.into(),
    }
}

/// The pages of a window that lie in sorted ranges.
fn pages_of(ranges: &[Range<u64>], number: u64) -> Pages {
    let whole = Pages::of(number, &(0..u64::MAX));
    let Some(window) = whole.ranges(number).next() else { return whole };
    let first = ranges.partition_point(|range| range.end <= window.start);
    let here = ranges.get(first..).unwrap_or_default().iter().take_while(|range| range.start < window.end);
    here.map(|range| Pages::of(number, range)).fold(Pages::default(), Pages::or)
}
