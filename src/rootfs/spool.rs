//! An unnamed file that holds the contents of layers until the image is written.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::tree::Content;

/// Bytes moved at a time.
pub const PIECE: usize = 1 << 17;

/// Whose fault it is that contents could not be taken over.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The source cannot be read.
    #[error("The contents cannot be read")]
    Read(#[source] io::Error),
    /// The spool cannot be written.
    #[error("The contents cannot be written")]
    Write(#[source] io::Error),
}

/// The file is gone with its descriptor, however the process ends.
#[derive(Debug)]
pub struct Spool {
    dir: PathBuf,
    file: File,
    len: u64,
}

impl Spool {
    /// An empty spool on the file system of `dir`.
    ///
    /// # Errors
    /// The directory cannot be written, or its file system has no unnamed files.
    pub fn new(dir: &Path) -> io::Result<Self> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR)?;
        Ok(Spool { dir: dir.into(), file: file.into(), len: 0 })
    }

    /// An empty spool in the same place.
    ///
    /// # Errors
    /// See [`Spool::new`].
    pub fn another(&self) -> io::Result<Self> {
        Spool::new(&self.dir)
    }

    /// Appends everything that `from` has.
    ///
    /// # Errors
    /// See [`SpoolError`].
    pub fn append(&mut self, from: &mut dyn Read) -> Result<Content, SpoolError> {
        let offset = self.len;
        let mut buffer = vec![0; PIECE];
        loop {
            let count = from.read(&mut buffer).map_err(SpoolError::Read)?;
            if count == 0 {
                return Ok(Content::Spool { offset, len: self.len - offset });
            }
            self.file.write_all(&buffer[..count]).map_err(SpoolError::Write)?;
            self.len += count as u64;
        }
    }

    /// The file, for who wants to read it otherwise.
    pub fn into_file(self) -> File {
        self.file
    }

    /// Fills `to` from `offset`.
    ///
    /// # Errors
    /// Reading failed.
    pub fn read_at(&self, to: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(to, offset)
    }
}
