//! Where the `memory` file has content.

use std::fs::File;
use std::io;
use std::ops::Range;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use snapshot_format::index::{MemoryMap, Place, Run};

use super::names;
use super::open::{Bundle, OpenError};

impl Bundle {
    /// The ranges of the `memory` file that are not zero, sorted: what the index says has content, without the holes in it.
    ///
    /// # Errors
    /// The index is refused, or the file cannot be looked at.
    pub fn content(&self) -> Result<Vec<Range<u64>>, OpenError> {
        let (map, file) = (self.memory_map()?, &self.plain(names::MEMORY)?.file);
        content_of(file, &map).map_err(|source| OpenError::Read { name: names::MEMORY.to_owned(), source })
    }

    /// The guest's memory, as [`memory`](Self::memory) gives it, and the ranges of it that the index says are zero, sorted.
    ///
    /// # Errors
    /// As there.
    pub fn memory_and_zeros(&self) -> Result<(&File, Vec<Range<u64>>), OpenError> {
        let map = self.memory_map()?;
        let zeros = map.runs().filter(|run| run.place == Place::Zero).map(|run| span(&run, &map)).collect();
        Ok((self.memory_of(&map)?, zeros))
    }
}

fn content_of(file: &File, map: &MemoryMap) -> io::Result<Vec<Range<u64>>> {
    let mut ranges = Vec::new();
    for run in map.runs().filter(|run| run.place != Place::Zero) {
        let span = span(&run, map);
        let mut at = span.start;
        while let Some(data) = next_data(file, at, span.end)? {
            at = data.end;
            ranges.push(data);
        }
    }
    Ok(ranges)
}

/// Where a run begins and ends in the `memory` file.
pub(super) fn span(run: &Run, map: &MemoryMap) -> Range<u64> {
    let granule = map.granule().bytes();
    let end = (u64::from(run.first) + u64::from(run.count)) * granule;
    u64::from(run.first) * granule..end.min(map.memory_len())
}

/// The next bytes that the file system stores, from `at` on and before `end`; `None` when only a hole is left. A file system
/// without holes stores everything.
pub(super) fn next_data(file: &File, at: u64, end: u64) -> io::Result<Option<Range<u64>>> {
    match seek(file, SeekFrom::Data(at)) {
        Ok(start) if start < end => Ok(Some(start..seek(file, SeekFrom::Hole(start))?.min(end))),
        Ok(_) | Err(Errno::NXIO) => Ok(None),
        Err(e) => Err(e.into()),
    }
}
