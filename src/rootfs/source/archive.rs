//! Where an image's files are: a directory, or a tar file that is read in place.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tar::{Archive, EntryType};

use super::ImageError;
use super::verify::Verifier;
use crate::rootfs::limits;
use crate::rootfs::spool::{Spool, SpoolError};

/// An image's files by name.
#[derive(Debug)]
pub enum Store {
    /// Files below a directory.
    Directory(PathBuf),
    /// Files in a tar file.
    Tar {
        /// The tar file, or what it unpacks to.
        file: File,
        files: BTreeMap<String, Place>,
    },
}

/// Where a file of an archive lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    Bytes {
        offset: u64,
        len: u64,
    },
    /// Older versions of docker save a layer that occurs twice as a symlink.
    Link(String),
}

/// A reader for what `from` holds, unpacked if its first bytes say gzip or zstd.
///
/// # Errors
/// Reading failed.
pub fn unpacked<'a>(from: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut from = BufReader::with_capacity(1 << 16, from);
    // As many bytes as there are: a reader may give fewer at first, an archive may be empty.
    let mut start = Vec::new();
    from.by_ref().take(4).read_to_end(&mut start)?;
    let packed = start.clone();
    let whole = io::Cursor::new(start).chain(from);
    Ok(match packed.as_slice() {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(whole)),
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::Decoder::new(whole)?),
        _ => Box::new(whole),
    })
}

impl Store {
    /// Lists a tar file, unpacking it first if need be.
    ///
    /// # Errors
    /// It cannot be read or has too many entries.
    pub fn archive(path: &Path, spool: &Spool) -> Result<Store, ImageError> {
        let failed = |source| ImageError::Read { path: path.into(), source };
        let file = plain(path, spool).map_err(|error| ImageError::copying(path, error))?;
        let files = list(&file).map_err(failed)?.ok_or(ImageError::TooMuch { what: "files" })?;
        Ok(Store::Tar { file, files })
    }

    /// Whether there is such a file.
    pub fn has(&self, name: &str) -> bool {
        match self {
            Store::Directory(dir) => dir.join(name).is_file(),
            Store::Tar { files, .. } => files.contains_key(name),
        }
    }

    /// Opens a file whose name was checked: one of our own, a digest's, or one of the archive.
    ///
    /// # Errors
    /// There is none, or it cannot be opened.
    pub fn open(&self, name: &str) -> Result<Box<dyn Read + '_>, ImageError> {
        let failed = |source| ImageError::Blob { name: name.into(), source };
        match self {
            Store::Directory(dir) => {
                let file = File::open(dir.join(name)).map_err(failed)?;
                let regular = file.metadata().map_err(failed)?.is_file();
                let checked = regular.then_some(file).ok_or_else(|| io::ErrorKind::InvalidInput.into());
                Ok(Box::new(checked.map_err(failed)?))
            }
            Store::Tar { file, files } => {
                let (at, len) = find(files, name).ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
                Ok(Box::new(Section { file, at, left: len }))
            }
        }
    }

    /// Reads a small file and tells what it is.
    ///
    /// # Errors
    /// It is missing or too long.
    pub fn read(&self, name: &str) -> Result<(Vec<u8>, super::verify::Summary), ImageError> {
        let failed = |source| ImageError::Blob { name: name.into(), source };
        let mut from = Verifier::new(self.open(name)?, limits::DOCUMENT);
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).map_err(failed)?;
        Ok((bytes, from.finish().map_err(failed)?))
    }
}

fn find(files: &BTreeMap<String, Place>, name: &str) -> Option<(u64, u64)> {
    let mut place = files.get(name)?;
    let mut from = name.to_owned();
    for _ in 0..limits::SYMLINKS {
        match place {
            Place::Bytes { offset, len } => return Some((*offset, *len)),
            Place::Link(target) => {
                from = relative(&from, target)?;
                place = files.get(&from)?;
            }
        }
    }
    None
}

/// The name that a symlink at `from` points to.
fn relative(from: &str, target: &str) -> Option<String> {
    let mut names: Vec<&str> = from.split('/').collect();
    names.pop();
    for name in target.split('/') {
        match name {
            "." | "" => {}
            ".." => drop(names.pop()?),
            _ => names.push(name),
        }
    }
    Some(names.join("/"))
}

/// The tar file itself: opened, or unpacked into an unnamed file beside `spool`.
fn plain(path: &Path, spool: &Spool) -> Result<File, SpoolError> {
    let mut file = File::open(path).map_err(SpoolError::Read)?;
    let mut start = [0; 512];
    let is_tar = file.read_exact(&mut start).is_ok() && start.get(257..262) == Some(b"ustar");
    file.seek(SeekFrom::Start(0)).map_err(SpoolError::Read)?;
    if is_tar {
        return Ok(file);
    }
    let mut spool = spool.another().map_err(SpoolError::Write)?;
    let mut from = unpacked(file).map_err(SpoolError::Read)?.take(limits::CONTENT + 1);
    let content = spool.append(&mut from)?;
    if content.bytes() > limits::CONTENT {
        return Err(SpoolError::Read(io::ErrorKind::FileTooLarge.into()));
    }
    Ok(spool.into_file())
}

/// Every file of a tar file; `None` when there are too many.
fn list(file: &File) -> io::Result<Option<BTreeMap<String, Place>>> {
    let mut files = BTreeMap::new();
    let mut reader = file;
    reader.seek(SeekFrom::Start(0))?;
    let mut archive = Archive::new(reader);
    // Raw: an image's files have short names, and a header that brings a long one could be of any length.
    for (count, entry) in archive.entries_with_seek()?.raw(true).enumerate() {
        let entry = entry?;
        if count == limits::ARCHIVE_ENTRIES {
            return Ok(None);
        }
        let name = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_owned();
        let place = match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous => {
                Place::Bytes { offset: entry.raw_file_position(), len: entry.size() }
            }
            EntryType::Symlink | EntryType::Link => {
                let target = entry.link_name_bytes().unwrap_or_default();
                Place::Link(String::from_utf8_lossy(&target).into_owned())
            }
            _ => continue,
        };
        files.insert(name, place);
    }
    Ok(Some(files))
}

/// A part of a file.
struct Section<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl Read for Section<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let len = to.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let count = self.file.read_at(&mut to[..len], self.at)?;
        self.at += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_within_an_archive_are_followed_and_end() {
        let place = |target: &str| Place::Link(target.into());
        let files = BTreeMap::from([
            ("a/layer.tar".to_owned(), place("../b/layer.tar")),
            ("b/layer.tar".to_owned(), Place::Bytes { offset: 512, len: 7 }),
            ("out".to_owned(), place("../../etc/passwd")),
            ("loop".to_owned(), place("loop")),
        ]);
        assert_eq!(find(&files, "a/layer.tar"), Some((512, 7)));
        assert_eq!(find(&files, "out"), None);
        assert_eq!(find(&files, "loop"), None);
    }

    #[test]
    fn packed_streams_are_unpacked_and_others_left_alone() {
        let zstd = zstd::encode_all(b"layer".as_slice(), 1).unwrap();
        for bytes in [zstd.as_slice(), b"layer"] {
            let mut found = Vec::new();
            unpacked(bytes).unwrap().read_to_end(&mut found).unwrap();
            assert_eq!(found, b"layer");
        }
        assert_eq!(unpacked(b"".as_slice()).unwrap().read(&mut [0; 8]).unwrap(), 0);
    }
}
