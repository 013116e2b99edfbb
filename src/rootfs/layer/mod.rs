//! Layers: tar archives of changes (OCI image specification, "Image Layer Filesystem Changeset").

mod apply;
mod pax;
mod read;

use std::io;

use super::spool::SpoolError;
use super::tree::{Kind, Metadata, TreeError};

pub use apply::apply;
pub use read::read;

/// Why a layer is refused.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The archive is damaged or cut off, or reading it failed.
    #[error("The archive cannot be read")]
    Read(#[source] io::Error),
    /// The contents cannot be kept.
    #[error("The contents of the layer cannot be written")]
    Write(#[source] io::Error),
    /// A header whose numbers make no sense.
    #[error("The entry {path:?} has a damaged {what}")]
    Entry {
        /// As in the archive.
        path: String,
        /// Field of the header.
        what: &'static str,
    },
    /// Sparse files, multi-volume archives.
    #[error("The entry {path:?} is of type {kind:?}, which is not supported")]
    Type {
        /// As in the archive.
        path: String,
        /// Type flag of its header.
        kind: char,
    },
    /// More than a layer may hold.
    #[error("The layer has too many entries or unpacks to too many bytes")]
    TooLarge,
    /// An entry that cannot be put into the tree.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

impl From<SpoolError> for LayerError {
    fn from(error: SpoolError) -> Self {
        match error {
            SpoolError::Read(source) => LayerError::Read(source),
            SpoolError::Write(source) => LayerError::Write(source),
        }
    }
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub path: Vec<u8>,
    pub what: What,
}

/// What a change does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// Puts something at the path.
    Put(Metadata, Kind),
    /// Makes the path another name of a file.
    Link(Vec<u8>),
    /// Removes what lower layers have at the path.
    Remove,
    /// Removes everything lower layers have below the path.
    Clear,
}
