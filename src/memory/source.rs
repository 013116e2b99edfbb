//! Where the content of guest memory comes from when it is brought in piece by piece.

use std::fmt;
use std::io;
use std::ops::Range;

/// Why a chunk cannot be had. Each names the chunk by its offset in the `memory` file.
#[derive(Debug, thiserror::Error)]
pub enum ChunkError {
    /// Its content is not what the index says.
    #[error(
        "The memory does not match its index at offset {offset:#x}: it is damaged, bake or fetch the bundle again"
    )]
    Damaged {
        /// Where the chunk begins.
        offset: u64,
    },
    /// The file ends before the chunk does.
    #[error("The memory ends before offset {offset:#x}: its file was cut short while the clone ran")]
    Short {
        /// Where the chunk begins.
        offset: u64,
    },
    /// The system refused the read.
    #[error("Cannot read the memory at offset {offset:#x}")]
    Read {
        /// Where the chunk begins.
        offset: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl ChunkError {
    /// Whether the content is to blame, rather than the host.
    pub fn is_bad_content(&self) -> bool {
        match self {
            ChunkError::Damaged { .. } | ChunkError::Short { .. } => true,
            ChunkError::Read { .. } => false,
        }
    }
}

/// Longest chunk, bytes.
pub(super) const CHUNK_MAX: u64 = 64 << 10;

/// Content of guest memory, in chunks that are read and checked whole. Offsets count as in the `memory` file.
pub trait ChunkSource: fmt::Debug + Send {
    /// Length of a chunk, bytes: a power of two from a page to 64 KiB. The last chunk may be short.
    fn granule(&self) -> u64;

    /// The ranges that are not zero: whole chunks, sorted, with a gap between any two.
    fn content(&self) -> Vec<Range<u64>>;

    /// Reads the whole chunks from `offset` on that fill `into`, and checks them if they are to be checked.
    ///
    /// # Errors
    /// A chunk cannot be read, or is not what it should be; `into` may then hold anything.
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), ChunkError>;
}

/// The chunks of `source` that `ranges` touch, once each, as ranges of the `memory` file of at most [`CHUNK_MAX`] bytes.
pub fn chunks_around(
    source: &dyn ChunkSource,
    ranges: impl IntoIterator<Item = Range<u64>>,
) -> Vec<Range<u64>> {
    let (granule, content) = (source.granule(), source.content());
    let whole = |range: Range<u64>| {
        range.start - range.start % granule..range.end.checked_next_multiple_of(granule).unwrap_or(range.end)
    };
    let mut ranges: Vec<Range<u64>> = ranges.into_iter().map(whole).collect();
    ranges.sort_unstable_by_key(|range| range.start);
    let mut chunks = Vec::new();
    let mut done = 0;
    for range in ranges {
        let first = content.partition_point(|content| content.end <= range.start.max(done));
        for here in content.get(first..).unwrap_or_default() {
            let (mut at, end) = (here.start.max(range.start).max(done), here.end.min(range.end));
            if at >= end {
                break;
            }
            while at < end {
                let next = end.min(at + CHUNK_MAX);
                chunks.push(at..next);
                at = next;
            }
            done = end;
        }
    }
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Chunks(Vec<Range<u64>>);

    impl ChunkSource for Chunks {
        fn granule(&self) -> u64 {
            8192
        }

        fn content(&self) -> Vec<Range<u64>> {
            self.0.clone()
        }

        fn read(&self, _: u64, _: &mut [u8]) -> Result<(), ChunkError> {
            Ok(())
        }
    }

    #[test]
    fn chunks_around_ranges_are_whole_and_come_once_and_without_zeros() {
        let source = Chunks(vec![8192..32768, 65536..262_144 + 4096]);
        let ranges = [12288..16384, 8192..12288, 28672..69632, 0..4096, 262_144..1 << 30];
        let around = chunks_around(&source, ranges);
        assert_eq!(around, [8192..16384, 24576..32768, 65536..73728, 262_144..262_144 + 4096]);
        let all = chunks_around(&source, [0..u64::MAX, 0..u64::MAX]);
        assert_eq!(all[..2], [8192..32768, 65536..131_072]);
        assert_eq!(all.iter().map(|range| range.end - range.start).sum::<u64>(), 24576 + 196_608 + 4096);
    }
}
