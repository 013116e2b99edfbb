//! Guest memory of a bundle, chunk by chunk, each checked when it is read.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use snapshot_format::crc::crc64;
use snapshot_format::index::{MemoryIndex, Place};
use snapshot_format::manifest::names;

use super::content::span;
use super::open::{Bundle, OpenError};
use crate::memory::{ChunkError, ChunkSource};

/// The `memory` file and what its index says of it.
#[derive(Debug)]
pub struct MemoryChunks {
    file: File,
    index: MemoryIndex,
    check: bool,
}

impl Bundle {
    /// The guest's memory to be read chunk by chunk; with `check` each is held against its checksum.
    ///
    /// # Errors
    /// The index is refused, says that this bundle does not hold all of the memory, or no descriptor is left.
    pub fn chunks(&self, check: bool) -> Result<MemoryChunks, OpenError> {
        let index = self.index()?;
        let file = self.memory_of(index.map())?;
        let read = |source| OpenError::Read { name: names::MEMORY.to_owned(), source };
        Ok(MemoryChunks { file: file.try_clone().map_err(read)?, index, check })
    }
}

impl MemoryChunks {
    /// Another handle on the `memory` file.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn file(&self) -> io::Result<File> {
        self.file.try_clone()
    }
}

impl ChunkSource for MemoryChunks {
    fn granule(&self) -> u64 {
        self.index.map().granule().bytes()
    }

    fn content(&self) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for run in self.index.map().runs().filter(|run| run.place != Place::Zero) {
            let next = span(&run, self.index.map());
            match ranges.last_mut().filter(|last| last.end == next.start) {
                Some(last) => last.end = next.end,
                None => ranges.push(next),
            }
        }
        ranges
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), ChunkError> {
        if self.file.read_exact_at(into, offset).is_err() {
            // A system that refuses one chunk may give its neighbours, and the one it refuses is to be named.
            for (offset, chunk) in self.parts(offset, into) {
                self.file.read_exact_at(chunk, offset).map_err(|source| refused(offset, source))?;
            }
        }
        if !self.check {
            return Ok(());
        }
        match self.parts(offset, into).find(|(offset, chunk)| !self.is_right(*offset, chunk)) {
            Some((offset, _)) => Err(ChunkError::Damaged { offset }),
            None => Ok(()),
        }
    }
}

impl MemoryChunks {
    /// The chunks that `bytes` from `offset` on are, and where each begins.
    fn parts<'a>(
        &self,
        offset: u64,
        bytes: &'a mut [u8],
    ) -> impl Iterator<Item = (u64, &'a mut [u8])> + use<'a> {
        let granule = self.granule();
        let len = usize::try_from(granule).unwrap_or(usize::MAX);
        (0u64..).zip(bytes.chunks_mut(len)).map(move |(nth, chunk)| (offset + nth * granule, chunk))
    }

    /// Whether a chunk has the length and the checksum that the index says.
    fn is_right(&self, offset: u64, chunk: &[u8]) -> bool {
        let number = u32::try_from(offset / self.granule()).unwrap_or(u32::MAX);
        self.index.map().extent(number) == Some((offset, chunk.len() as u64))
            && self.index.chunk(number).is_some_and(|expected| expected.crc == crc64(chunk))
    }
}

fn refused(offset: u64, source: io::Error) -> ChunkError {
    match source.kind() {
        io::ErrorKind::UnexpectedEof => ChunkError::Short { offset },
        _ => ChunkError::Read { offset, source },
    }
}
