//! Which parts of guest memory the pager serves. The rest is zero, and the kernel's own affair: a page there costs no way to
//! user space, and one that is written at once is not mapped twice.

use std::ops::Range;

use super::super::layout::Region;

/// Most ranges that are registered. Each is a mapping of its own to the kernel, which costs time at the start and of which a
/// process may have 65 530 (vm.max_map_count).
const RANGES_MAX: usize = 256;

/// The ranges to register, in file order: all of `content`, with those zero extents between that are shorter than `hole_min`
/// bytes, or than it takes for the ranges to be few; cut where regions begin.
pub(super) fn registered(content: &[Range<u64>], regions: &[Region], hole_min: u64) -> Vec<Range<u64>> {
    let mut hole_min = hole_min.max(1);
    let mut ranges = joined(content, hole_min);
    while ranges.len() > RANGES_MAX {
        hole_min *= 2;
        ranges = joined(&ranges, hole_min);
    }
    let in_region = |range: &Range<u64>, region: &Region| {
        let cut = overlap(range, &(region.file_offset..region.file_offset + region.len));
        (!cut.is_empty()).then_some(cut)
    };
    ranges.iter().flat_map(|range| regions.iter().filter_map(|region| in_region(range, region))).collect()
}

/// What two ranges have in common; empty when that is nothing.
pub(super) fn overlap(one: &Range<u64>, other: &Range<u64>) -> Range<u64> {
    one.start.max(other.start)..one.end.min(other.end)
}

/// Joins neighbours with less than `hole_min` bytes between them.
fn joined(ranges: &[Range<u64>], hole_min: u64) -> Vec<Range<u64>> {
    let mut all: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match all.last_mut().filter(|last| range.start.saturating_sub(last.end) < hole_min) {
            Some(last) => last.end = range.end,
            None => all.push(range.clone()),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::layout;

    const CHUNK: u64 = 64 << 10;

    #[test]
    fn long_zero_extents_are_left_out_and_short_ones_are_not() {
        let content = [0..4096, 8192..12288, CHUNK * 2..CHUNK * 3];
        let regions = layout::regions(2 << 20);
        assert_eq!(registered(&content, &regions, CHUNK), [0..12288, CHUNK * 2..CHUNK * 3]);
    }

    #[test]
    fn a_scattered_memory_is_registered_in_few_ranges_that_hold_all_of_it() {
        let content: Vec<_> = (0..10_000).map(|nth| nth * 2 * CHUNK..(nth * 2 + 1) * CHUNK).collect();
        let ranges = registered(&content, &layout::regions(2 << 30), CHUNK);
        assert!(ranges.len() <= RANGES_MAX, "{}", ranges.len());
        let is_held = |one: &Range<u64>| ranges.iter().any(|r| r.start <= one.start && one.end <= r.end);
        assert!(content.iter().all(is_held));
    }

    #[test]
    fn ranges_are_cut_where_a_region_begins() {
        let gap = layout::MMIO_GAP_START;
        let ranges =
            registered(std::slice::from_ref(&(gap - CHUNK..gap + CHUNK)), &layout::regions(4 << 30), CHUNK);
        assert_eq!(ranges, [gap - CHUNK..gap, gap..gap + CHUNK]);
    }
}
