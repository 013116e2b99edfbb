//! What a root image can be made from.

mod archive;
mod directory;
mod document;
mod image;
mod verify;

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::layer::LayerError;
use super::spool::SpoolError;
use super::tree::Tree;
use super::{ImageConfig, Progress, ext4, limits};

pub use directory::directory;
pub use image::image;

/// Where a root image comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A directory whose content becomes the root.
    Directory(PathBuf),
    /// An ext4 (or ext2, ext3) image, used as it is.
    Ext4Image(PathBuf),
    /// A directory in OCI image layout.
    OciLayout {
        /// The directory with `index.json`.
        dir: PathBuf,
        /// The image's name in the index, needed when there are several.
        reference: Option<String>,
    },
    /// A tar file, possibly packed with gzip or zstd: an OCI image layout, or what `docker save` writes.
    Archive(PathBuf),
}

/// Why a path is no source.
#[derive(Debug, thiserror::Error)]
pub enum DetectError {
    /// It cannot be read.
    #[error("Cannot read {}", path.display())]
    Read {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Some other file.
    #[error("{} is no root: give a directory, an ext4 image, an OCI image layout, or an OCI or docker archive", path.display())]
    Unknown {
        /// The path.
        path: PathBuf,
    },
}

/// Why a source cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file or directory cannot be read.
    #[error("Cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file of the image is missing or cannot be read.
    #[error("Cannot read {name} of the image")]
    Blob {
        /// Its name in the image.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file of the image is not what its digest or length says.
    #[error("{name} of the image is damaged: its {what} is not what the image says")]
    Damaged {
        /// Its name in the image.
        name: String,
        /// `length` or `digest`.
        what: &'static str,
    },
    /// An index, manifest or configuration that cannot be understood.
    #[error("{name} of the image is no valid {what}")]
    Document {
        /// Its name in the image.
        name: String,
        /// `image index`, ...
        what: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A digest in another form than `sha256:` and 64 hexadecimal digits.
    #[error("The digest {digest:?} is not supported; only sha256 is")]
    Digest {
        /// As in the image.
        digest: String,
    },
    /// More or larger parts than an image has.
    #[error("The image has too many or too large {what}")]
    TooMuch {
        /// Of what.
        what: &'static str,
    },
    /// No image, or none of that name.
    #[error("There is no image {wanted:?}; there are: {}", available.join(", "))]
    NoSuchImage {
        /// What was asked for.
        wanted: String,
        /// Names in the index.
        available: Vec<String>,
    },
    /// Several images and no name.
    #[error("There is more than one image or none; name one of: {}", available.join(", "))]
    Ambiguous {
        /// Names in the index.
        available: Vec<String>,
    },
    /// An image for something else.
    #[error("The image is for {found}, not for linux/amd64")]
    Platform {
        /// os/architecture.
        found: String,
    },
    /// Neither kind of archive.
    #[error("{} is neither an OCI archive (index.json) nor a docker archive (manifest.json)", path.display())]
    NotAnImage {
        /// The file.
        path: PathBuf,
    },
    /// Layers and the configuration's list of them do not match.
    #[error("The image has {layers} layers, its configuration names {named}")]
    LayerCount {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        named: usize,
    },
    /// A layer is refused.
    #[error("Layer {number} ({name}) cannot be used")]
    Layer {
        /// Counts from 1.
        number: usize,
        /// Its name in the image.
        name: String,
        /// Why.
        #[source]
        source: LayerError,
    },
    /// A directory tree that is too large or too deep.
    #[error("{} holds too many files or nests them too deep", path.display())]
    TooLarge {
        /// The directory.
        path: PathBuf,
    },
    /// An ext4 image that is shorter than its file system.
    #[error("{} is cut off: its file system has {expected} bytes, the file {found}", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// What the superblock says.
        expected: u64,
        /// Length of the file.
        found: u64,
    },
    /// The output cannot be written.
    #[error("Cannot write the root image")]
    Write(#[source] io::Error),
}

impl ImageError {
    /// What came while the content of `path` was copied.
    fn copying(path: &Path, error: SpoolError) -> Self {
        match error {
            SpoolError::Read(source) => ImageError::Read { path: path.into(), source },
            SpoolError::Write(source) => ImageError::Write(source),
        }
    }

    /// The failed write of the output behind this, if that is what it is.
    pub fn into_write(self) -> Result<io::Error, Self> {
        match self {
            ImageError::Write(source) | ImageError::Layer { source: LayerError::Write(source), .. } => {
                Ok(source)
            }
            other => Err(other),
        }
    }
}

/// A source that has been read.
#[derive(Debug)]
pub struct Loaded {
    pub tree: Tree,
    pub config: Option<ImageConfig>,
}

/// How tar, gzip and zstd files begin, and where.
const MAGICS: [(usize, &[u8]); 3] = [(257, b"ustar"), (0, b"\x1f\x8b"), (0, b"\x28\xb5\x2f\xfd")];

impl Source {
    /// Finds out what `path` is. An OCI image layout may be followed by `:` and the name of an image in it.
    ///
    /// # Errors
    /// The path cannot be read, or is no source.
    pub fn detect(path: &Path) -> Result<Source, DetectError> {
        let failed = |source| DetectError::Read { path: path.into(), source };
        let meta = match fs::metadata(path) {
            Ok(meta) => meta,
            Err(e) => return named_layout(path).ok_or_else(|| failed(e)),
        };
        if meta.is_dir() {
            return Ok(if is_layout(path) {
                Source::OciLayout { dir: path.into(), reference: None }
            } else {
                Source::Directory(path.into())
            });
        }
        // A pipe would be waited for without end.
        if !meta.is_file() {
            return Err(DetectError::Unknown { path: path.into() });
        }
        detect_file(path).map_err(failed)?.ok_or_else(|| DetectError::Unknown { path: path.into() })
    }

    /// The image called `name` of an OCI image layout; anything else has no names and stays as it is.
    pub fn named(self, name: Option<String>) -> Source {
        match (self, name) {
            (Source::OciLayout { dir, .. }, Some(name)) => Source::OciLayout { dir, reference: Some(name) },
            (source, _) => source,
        }
    }
}

fn detect_file(path: &Path) -> io::Result<Option<Source>> {
    if ext4::is_one(File::open(path)?)? {
        return Ok(Some(Source::Ext4Image(path.into())));
    }
    let mut start = Vec::new();
    File::open(path)?.take(512).read_to_end(&mut start)?;
    let known = MAGICS.iter().any(|(at, magic)| start.get(*at..at + magic.len()) == Some(magic));
    Ok(known.then(|| Source::Archive(path.into())))
}

fn is_layout(dir: &Path) -> bool {
    dir.join("index.json").is_file() && dir.join("blobs").is_dir()
}

fn named_layout(path: &Path) -> Option<Source> {
    let (dir, reference) = path.to_str()?.rsplit_once(':')?;
    is_layout(Path::new(dir))
        .then(|| Source::OciLayout { dir: dir.into(), reference: Some(reference.into()) })
}

/// Copies an ext4 image into the empty file `out`, holes as holes, and tells its length.
///
/// # Errors
/// It is no ext4 image, is cut off, or copying failed.
pub fn copy_ext4(path: &Path, out: &File, progress: &mut dyn FnMut(Progress)) -> Result<u64, ImageError> {
    let failed = |source| ImageError::Read { path: path.into(), source };
    let mut file = File::open(path).map_err(failed)?;
    let found = file.metadata().map_err(failed)?.len();
    let mut start = Vec::new();
    file.by_ref().take(2048).read_to_end(&mut start).map_err(failed)?;
    let not_one = || failed(io::Error::new(io::ErrorKind::InvalidData, "It is no ext4 image"));
    let expected = ext4::length(&start).ok_or_else(not_one)?;
    if found < expected {
        return Err(ImageError::Truncated { path: path.into(), expected, found });
    }
    if found > limits::CONTENT {
        return Err(ImageError::TooMuch { what: "blocks" });
    }
    out.set_len(found).map_err(ImageError::Write)?;
    copy_data(&file, out, found, progress).map_err(|error| ImageError::copying(path, error))?;
    Ok(found)
}

/// Copies what is not zero.
fn copy_data(from: &File, to: &File, len: u64, progress: &mut dyn FnMut(Progress)) -> Result<(), SpoolError> {
    use std::os::unix::fs::FileExt;
    const PIECE: usize = 1 << 16;
    let mut buffer = vec![0; PIECE];
    let mut done = 0;
    while done < len {
        let count = usize::try_from(len - done).unwrap_or(PIECE).min(PIECE);
        from.read_exact_at(&mut buffer[..count], done).map_err(SpoolError::Read)?;
        if buffer[..count].iter().any(|byte| *byte != 0) {
            to.write_all_at(&buffer[..count], done).map_err(SpoolError::Write)?;
        }
        done += count as u64;
        progress(Progress::Content { done, total: len });
    }
    Ok(())
}
