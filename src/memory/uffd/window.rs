//! Windows of the `memory` file: 64 KiB each, aligned, so that a chunk of any length lies in one; and sets of a window's pages.

use std::ops::Range;

use super::super::source::CHUNK_MAX;
use super::fill::PAGE;

/// Bytes of a window.
const WINDOW: u64 = CHUNK_MAX;
/// The same, to be the length of a buffer.
pub(super) const LEN: usize = COUNT as usize * PAGE;
/// Pages of a window.
const COUNT: u32 = u16::BITS;

const _: () = assert!(WINDOW == COUNT as u64 * PAGE as u64);

/// Some pages of a window, a bit each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Pages(u16);

impl Pages {
    /// Those of window `number` that `range` touches.
    pub fn of(number: u64, range: &Range<u64>) -> Self {
        let start = number.saturating_mul(WINDOW);
        let first = range.start.saturating_sub(start) / PAGE as u64;
        let end = range.end.saturating_sub(start).div_ceil(PAGE as u64);
        Pages(below(end) & !below(first))
    }

    /// Those that are in both.
    pub fn and(self, other: Pages) -> Self {
        Pages(self.0 & other.0)
    }

    /// Those that are in either.
    pub fn or(self, other: Pages) -> Self {
        Pages(self.0 | other.0)
    }

    /// Those that are not in the other.
    pub fn without(self, other: Pages) -> Self {
        Pages(self.0 & !other.0)
    }

    /// All pages of the chunks of `granule` bytes that these lie in.
    pub fn in_chunks(self, granule: u64) -> Self {
        let chunk = Pages::of(0, &(0..granule));
        let step = usize::try_from(granule / PAGE as u64).unwrap_or(usize::MAX);
        let chunks = (0..COUNT).step_by(step.max(1)).map(|first| Pages(chunk.0 << first));
        chunks.filter(|chunk| !self.and(*chunk).is_empty()).fold(Pages::default(), Pages::or)
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn count(self) -> u32 {
        self.0.count_ones()
    }

    /// Ranges of the file: each run of pages, in order.
    pub fn ranges(self, number: u64) -> impl Iterator<Item = Range<u64>> {
        let start = number.saturating_mul(WINDOW);
        let at = move |page: u32| start + u64::from(page) * PAGE as u64;
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let first = rest.trailing_zeros();
            let end = first + rest.checked_shr(first)?.trailing_ones();
            rest &= !below(u64::from(end));
            Some(at(first)..at(end))
        })
    }
}

/// The first `count` pages.
fn below(count: u64) -> u16 {
    let missing = COUNT.saturating_sub(u32::try_from(count).unwrap_or(COUNT));
    u16::MAX.checked_shr(missing).unwrap_or(0)
}

/// Pages of one window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Of the window.
    pub number: u64,
    pub pages: Pages,
}

/// The window that holds `offset`.
pub(super) fn number_of(offset: u64) -> u64 {
    offset / WINDOW
}

/// How many windows `len` bytes have; the last one may be short.
pub(super) fn windows(len: u64) -> usize {
    usize::try_from(len.div_ceil(WINDOW)).unwrap_or(0)
}

/// The pages that `ranges` touch before `end`, window by window in the file's order.
pub(super) fn wanted(ranges: impl IntoIterator<Item = Range<u64>>, end: u64) -> Vec<Wanted> {
    let mut ranges: Vec<Range<u64>> =
        ranges.into_iter().map(|range| range.start..range.end.min(end)).collect();
    ranges.sort_unstable_by_key(|range| range.start);
    let mut all: Vec<Wanted> = Vec::new();
    for range in ranges.iter().filter(|range| !range.is_empty()) {
        for number in number_of(range.start)..=number_of(range.end - 1) {
            let pages = Pages::of(number, range);
            match all.last_mut().filter(|last| last.number >= number) {
                Some(last) if last.number == number => last.pages = last.pages.or(pages),
                // One that began earlier goes further, and has these pages.
                Some(_) => {}
                None => all.push(Wanted { number, pages }),
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(number: u64) -> Range<u64> {
        number * 4096..(number + 1) * 4096
    }

    #[test]
    fn pages_of_a_window_come_back_as_ranges() {
        let some = Pages::of(2, &page(33)).or(Pages::of(2, &(140_000..150_000))).or(Pages::of(2, &page(47)));
        let ranges: Vec<_> = some.ranges(2).collect();
        assert_eq!(ranges, [33 * 4096..37 * 4096, page(47)]);
        assert_eq!(some.count(), 5);
        let all = Pages::of(2, &(0..u64::MAX));
        assert!(all.ranges(2).eq(std::iter::once(2 * WINDOW..3 * WINDOW)));
        assert_eq!(all.without(some).or(some), all);
        for outside in [0..2 * WINDOW, 3 * WINDOW..4 * WINDOW] {
            assert!(Pages::of(2, &outside).is_empty() && Pages::of(2, &outside).ranges(2).next().is_none());
        }
    }

    #[test]
    fn chunks_are_whole_whatever_their_length() {
        let some = Pages::of(0, &page(5)).or(Pages::of(0, &page(15)));
        for (granule, pages) in [(4096, 2), (8192, 4), (16 << 10, 8), (32 << 10, 16), (64 << 10, 16)] {
            let chunks = some.in_chunks(granule);
            assert_eq!(chunks.count(), pages);
            assert!(chunks.ranges(0).all(|range| range.start % granule == 0 && range.end % granule == 0));
        }
        assert!(Pages::default().in_chunks(WINDOW).is_empty());
    }

    #[test]
    fn ranges_in_any_order_are_wanted_once_and_not_behind_the_end() {
        let ranges = [page(40), 2 * 4096..20 * 4096, page(3), page(41), page(100), 1 << 40..2 << 40];
        let all = wanted(ranges, 41 * 4096 + 1);
        let ranges: Vec<_> = all.iter().flat_map(|one| one.pages.ranges(one.number)).collect();
        assert_eq!(ranges, [2 * 4096..16 * 4096, 16 * 4096..20 * 4096, 40 * 4096..42 * 4096]);
        assert_eq!(wanted(std::iter::once(5..5), u64::MAX), []);
    }
}
