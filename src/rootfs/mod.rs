//! Root images: an ext4 file system made from a directory, an OCI image layout, or an OCI or docker archive.
//!
//! Nothing is extracted: the merged tree is kept in memory, file contents in an unnamed file, and the ext4 image is written
//! directly. So owners, modes, capabilities and device nodes are right without root, the same input gives the same
//! bytes, and no tool is needed. Sources are hostile input: bounded, digests checked, no path leads out of the tree.

mod ext4;
mod layer;
mod limits;
mod source;
mod spool;
mod tree;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

pub use ext4::Ext4Error;
pub use layer::LayerError;
pub use source::{DetectError, ImageError, Source};
pub use tree::TreeError;

use source::{Loaded, directory, image};
use spool::Spool;

/// How an image runs when nobody says otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// Entrypoint and its default arguments.
    pub command: Vec<String>,
    /// Environment.
    pub env: BTreeMap<String, String>,
    /// Working directory.
    pub workdir: Option<String>,
    /// `user[:group]`, names or numbers.
    pub user: Option<String>,
}

/// What [`build`] made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// Of sources that have one.
    pub config: Option<ImageConfig>,
    /// Length of the image, bytes. The file is sparse.
    pub bytes: u64,
}

/// How far [`build`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// A layer is being read.
    Layer {
        /// Counts from 1.
        number: usize,
        /// Layers of the image.
        of: usize,
    },
    /// File contents are being written.
    Content {
        /// Bytes written.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
}

/// Why a root image could not be built.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// The source cannot be read or is no image.
    #[error(transparent)]
    Source(ImageError),
    /// The disk, or what the user may use of it, is full.
    #[error("No room is left for the root image {}: free some, or make it on another file system", path.display())]
    Full {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The image could not be written.
    #[error("Cannot write the root image {}", path.display())]
    Write {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: Ext4Error,
    },
    /// The output file could not be made.
    #[error("Cannot create {}", path.display())]
    Create {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// File contents have no place to wait in.
    #[error("Cannot make a temporary file in {}", dir.display())]
    Spool {
        /// Directory of the image.
        dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An existing file system is used as it is.
    #[error("An existing ext4 image cannot be given another size; resize it with resize2fs")]
    Resize,
}

impl RootfsError {
    /// What came while the source was read and its contents were kept.
    fn of_source(out: &Path, error: ImageError) -> Self {
        match error.into_write() {
            Ok(source) => RootfsError::of_writing(out, Ext4Error::Write(source)),
            Err(error) => RootfsError::Source(error),
        }
    }

    fn of_writing(out: &Path, error: Ext4Error) -> Self {
        let path = out.into();
        match error {
            Ext4Error::Write(source) if is_full(&source) => RootfsError::Full { path, source },
            source => RootfsError::Write { path, source },
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Makes an ext4 image of `source` in the new file `out` (mode 0600); `size` bytes long if given, else as long as the
/// content needs and some free space. A file that could not be finished is removed.
///
/// # Errors
/// See [`RootfsError`].
pub fn build(
    source: &Source,
    out: &Path,
    size: Option<u64>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Built, RootfsError> {
    let create = |source| RootfsError::Create { path: out.into(), source };
    let file =
        OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(out).map_err(create)?;
    let built = fill(source, &file, out, size, progress);
    if built.is_err() {
        // The error that matters is the one that is returned.
        fs::remove_file(out).ok();
    }
    built
}

fn fill(
    source: &Source,
    file: &File,
    out: &Path,
    size: Option<u64>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Built, RootfsError> {
    if let Source::Ext4Image(path) = source {
        if size.is_some() {
            return Err(RootfsError::Resize);
        }
        let bytes =
            source::copy_ext4(path, file, progress).map_err(|error| RootfsError::of_source(out, error))?;
        return Ok(Built { config: None, bytes });
    }
    let dir = out.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut spool = Spool::new(dir).map_err(|source| RootfsError::Spool { dir: dir.into(), source })?;
    let Loaded { tree, config } = match source {
        Source::Directory(path) => directory(path).map(|tree| Loaded { tree, config: None }),
        _ => image(source, &mut spool, progress),
    }
    .map_err(|error| RootfsError::of_source(out, error))?;
    let bytes = ext4::write(&tree, &spool, file, size, progress)
        .map_err(|error| RootfsError::of_writing(out, error))?;
    Ok(Built { config, bytes })
}

#[cfg(test)]
mod tests;
