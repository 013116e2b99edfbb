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

/// Content of guest memory, in chunks that are read and checked whole. Offsets count as in the `memory` file.
pub trait ChunkSource: fmt::Debug + Send {
    /// Length of a chunk, bytes: a power of two, at least a page. The last chunk may be short.
    fn granule(&self) -> u64;

    /// The ranges that are not zero: whole chunks, sorted, with a gap between any two.
    fn content(&self) -> Vec<Range<u64>>;

    /// Reads the whole chunks from `offset` on that fill `into`, and checks them if they are to be checked.
    ///
    /// # Errors
    /// A chunk cannot be read, or is not what it should be; `into` may then hold anything.
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), ChunkError>;
}
