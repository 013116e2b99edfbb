//! A directory that is opened once, and the files in it, each reached through that handle.
//!
//! Nobody can swap the directory for another between two of our steps, and no symbolic link in it is ever followed.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

/// An open directory.
#[derive(Debug)]
pub(super) struct Directory(OwnedFd);

/// What is still known of a directory.
#[derive(Debug)]
pub(super) enum Listing {
    /// It is open.
    Open(Directory),
    /// It was closed, and these were the names in it.
    Read(Vec<OsString>),
    /// It was closed and nobody will ask.
    Closed,
}

impl Listing {
    /// The names in it.
    pub fn names(&self) -> io::Result<Vec<OsString>> {
        match self {
            Listing::Open(directory) => directory.names(),
            Listing::Read(names) => Ok(names.clone()),
            Listing::Closed => Err(io::Error::other("the directory was closed")),
        }
    }
}

/// A regular file and its real length in bytes.
#[derive(Debug)]
pub(super) struct PlainFile {
    pub file: File,
    pub len: u64,
}

/// Why a file of a directory cannot be had.
#[derive(Debug)]
pub(super) enum FileFault {
    /// There is none of this name.
    Missing,
    /// A link, a directory, a pipe, a device.
    NotPlain,
    /// The system refused it.
    Io(io::Error),
}

impl From<FileFault> for io::Error {
    fn from(fault: FileFault) -> Self {
        match fault {
            FileFault::Missing => io::ErrorKind::NotFound.into(),
            FileFault::NotPlain => io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"),
            FileFault::Io(error) => error,
        }
    }
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

impl Directory {
    /// Opens the directory that a user named; the path may lead through symbolic links.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Directory(rustix::fs::open(path, DIRECTORY, Mode::empty())?))
    }

    /// Opens a directory in this one; a symbolic link is not followed.
    pub fn open_inside(&self, name: &OsStr) -> io::Result<Self> {
        Ok(Directory(rustix::fs::openat(&self.0, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?))
    }

    /// Opens a regular file for reading.
    pub fn file(&self, name: &str) -> Result<PlainFile, FileFault> {
        // Without NONBLOCK, opening a pipe that somebody put here would wait for its writer.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file: File = match rustix::fs::openat(&self.0, name, flags, Mode::empty()) {
            Ok(fd) => fd.into(),
            Err(Errno::NOENT) => return Err(FileFault::Missing),
            Err(Errno::LOOP | Errno::NXIO) => return Err(FileFault::NotPlain),
            Err(e) => return Err(FileFault::Io(e.into())),
        };
        let metadata = file.metadata().map_err(FileFault::Io)?;
        if metadata.is_file() {
            Ok(PlainFile { file, len: metadata.len() })
        } else {
            Err(FileFault::NotPlain)
        }
    }

    /// Makes a new file that only its owner may read and write.
    pub fn create(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.0, name, flags, Mode::RUSR | Mode::WUSR)?.into())
    }

    /// Gives a file elsewhere a second name here.
    pub fn link(&self, source: &Path, name: &str) -> io::Result<()> {
        Ok(rustix::fs::linkat(rustix::fs::CWD, source, &self.0, name, AtFlags::empty())?)
    }

    /// Gives an open file another name here.
    pub fn link_open(&self, file: &File, name: &str) -> io::Result<()> {
        // Through its path the name could lead to another file by now; AT_EMPTY_PATH would need a capability.
        let source = format!("/proc/self/fd/{}", file.as_raw_fd());
        let linked = rustix::fs::linkat(rustix::fs::CWD, source, &self.0, name, AtFlags::SYMLINK_FOLLOW);
        Ok(linked?)
    }

    /// Makes a directory that only its owner may enter.
    pub fn make(&self, name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::mkdirat(&self.0, name, Mode::RWXU)?)
    }

    /// Names of everything in it.
    pub fn names(&self) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.0)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(OsStr::from_bytes(name).to_owned());
            }
        }
        Ok(names)
    }

    /// Whether something of this name is in it, whatever it is.
    pub fn has(&self, name: &OsStr) -> io::Result<bool> {
        match rustix::fs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Removes a file.
    pub fn remove_file(&self, name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.0, name, AtFlags::empty())?)
    }

    /// Removes a directory that holds files only, and them.
    pub fn remove_flat(&self, name: &OsStr) -> io::Result<()> {
        let inside = self.open_inside(name)?;
        inside.names()?.iter().try_for_each(|file| inside.remove_file(file))?;
        Ok(rustix::fs::unlinkat(&self.0, name, AtFlags::REMOVEDIR)?)
    }

    /// Renames within the directory.
    pub fn rename(&self, from: &OsStr, to: &OsStr, flags: RenameFlags) -> Result<(), Errno> {
        rustix::fs::renameat_with(&self.0, from, &self.0, to, flags)
    }

    /// Locks it for as long as this handle (and its duplicates) are open; false when somebody else has.
    pub fn try_lock(&self) -> io::Result<bool> {
        match rustix::fs::flock(&self.0, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Whether this handle's directory is (still) the one called `name` in `parent`.
    pub fn is_called(&self, parent: &Directory, name: &OsStr) -> io::Result<bool> {
        let own = rustix::fs::fstat(&self.0)?;
        match rustix::fs::statat(&parent.0, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(there) => Ok((own.st_dev, own.st_ino) == (there.st_dev, there.st_ino)),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Writes its entries to the disk.
    pub fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.0)?)
    }
}

impl PlainFile {
    /// All of its bytes. The caller has bounded the length.
    pub fn read(&self) -> io::Result<Vec<u8>> {
        let len = usize::try_from(self.len).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn directory() -> (tempfile::TempDir, Directory) {
        let temporary = tempfile::tempdir().unwrap();
        let directory = Directory::open(temporary.path()).unwrap();
        (temporary, directory)
    }

    #[test]
    fn links_directories_and_pipes_are_no_plain_files() {
        let (temporary, directory) = directory();
        std::fs::write(temporary.path().join("real"), "x").unwrap();
        symlink("real", temporary.path().join("link")).unwrap();
        std::fs::create_dir(temporary.path().join("dir")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            temporary.path().join("pipe"),
            rustix::fs::FileType::Fifo,
            Mode::RUSR,
            0,
        )
        .unwrap();
        for name in ["link", "dir", "pipe"] {
            assert!(matches!(directory.file(name), Err(FileFault::NotPlain)), "{name}");
        }
        assert!(matches!(directory.file("nothing"), Err(FileFault::Missing)));
        assert_eq!(directory.file("real").unwrap().read().unwrap(), b"x");
    }

    #[test]
    fn a_lock_is_seen_by_another_handle() {
        let (temporary, directory) = directory();
        assert!(directory.try_lock().unwrap());
        let other = Directory::open(temporary.path()).unwrap();
        assert!(!other.try_lock().unwrap());
        drop(directory);
        assert!(other.try_lock().unwrap());
    }
}
