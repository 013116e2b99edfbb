//! A bundle that is being written.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread::ScopedJoinHandle;

use sha2::{Digest, Sha256};
use snapshot_format::index::BuildError;
use snapshot_format::manifest::{FileEntry, Manifest, ManifestError, is_plain_name, names};
use snapshot_format::zero::content_runs;

use super::directory::PlainFile;
use super::memory_file::{MemoryReport, MemoryWriter};
use super::open::{Bundle, OpenError};
use super::workplace::Workplace;
use super::{hex, read_in_steps};
use crate::memory::{GuestMemory, visit_content};

/// Permission bits of every file of a bundle.
const OWNER_ONLY: u32 = 0o600;

/// Why a bundle could not be written. Nothing half written is left.
#[derive(Debug, thiserror::Error)]
pub enum DraftError {
    /// A path that cannot be a bundle's.
    #[error("{} names no bundle: give the name of the directory to make", path.display())]
    Target {
        /// The path.
        path: PathBuf,
    },
    /// The target exists and may not be replaced.
    #[error("{} exists already: choose another name, or replace it with --force", path.display())]
    Exists {
        /// The target.
        path: PathBuf,
    },
    /// The target exists and is something else.
    #[error("{} is no bundle and is not replaced: choose another name, or remove it yourself", path.display())]
    Foreign {
        /// The target.
        path: PathBuf,
    },
    /// The directory of the target cannot be used.
    #[error("Cannot use the directory {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The disk, or what the user may use of it, is full.
    #[error("No room is left for the bundle's file {name}: free some, or bake to another file system")]
    Full {
        /// The file.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The system refused a write.
    #[error("Cannot write the bundle's file {name}")]
    Write {
        /// The file.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file to be copied cannot be read.
    #[error("Cannot read {} for the bundle", path.display())]
    Source {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A name that no file of a bundle can have, or that has one already.
    #[error("{name:?} cannot be another file of the bundle: names are plain and used once")]
    Name {
        /// The name.
        name: String,
    },
    /// A file of another bundle is not what that bundle's manifest says.
    #[error(
        "The file {name} of the bundle that was run does not match its sha256: it is damaged, bake or fetch that bundle again"
    )]
    Damaged {
        /// The file.
        name: String,
    },
    /// Guest memory could not be read.
    #[error("Cannot read the guest's memory")]
    GuestMemory(#[from] io::Error),
    /// Guest memory could not be indexed.
    #[error("Cannot index the guest's memory")]
    Index(#[from] BuildError),
    /// The manifest says impossible things.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The other bundle has no such file.
    #[error(transparent)]
    Other(#[from] OpenError),
    /// What was written cannot be opened as a bundle.
    #[error("The bundle was written but cannot be opened again")]
    Unusable(#[source] OpenError),
    /// The finished bundle could not be given its name.
    #[error("Cannot move the finished bundle to {}", path.display())]
    Publish {
        /// The target.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file system cannot replace a directory in one step.
    #[error("The file system of {} cannot exchange two directories: remove the old bundle first", path.display())]
    NoExchange {
        /// The target.
        path: PathBuf,
    },
}

impl DraftError {
    /// The error for a write to the bundle's file `name` that failed.
    pub(super) fn write(name: &str, source: io::Error) -> Self {
        let name = name.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => DraftError::Full { name, source },
            _ => DraftError::Write { name, source },
        }
    }
}

/// Whether a file may be shared with the bundle instead of copied into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Always copied.
    Copy,
    /// A hard link where the file system and the file's permissions (0600) allow it: for a file that nobody will ever
    /// write again, as those of another bundle. Otherwise copied.
    HardLink,
}

/// How a file's digest comes into the manifest.
#[derive(Debug)]
enum Content {
    /// Known when the file was written.
    Hashed(String),
    /// Hashed at the end: somebody else writes it.
    Open,
    /// Not at all: the memory's index has its checksums.
    Indexed,
}

#[derive(Debug)]
struct Written {
    file: File,
    content: Content,
}

/// A finished bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// Where it is.
    pub path: PathBuf,
    /// Its files, by name.
    pub files: Vec<FinishedFile>,
    /// A replaced bundle that could not be removed.
    pub leftover: Option<PathBuf>,
}

/// A file of a finished bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FinishedFile {
    /// Its name.
    pub name: String,
    /// Length in bytes.
    pub len: u64,
    /// Bytes that it takes on the disk.
    pub allocated: u64,
}

/// A bundle that is being written, in a directory beside its target. Dropped unfinished it leaves nothing.
#[derive(Debug)]
pub struct Draft {
    workplace: Workplace,
    force: bool,
    files: BTreeMap<String, Written>,
}

impl Draft {
    /// Begins a bundle that will be `target`; with `force` it replaces a bundle of that name, in one step.
    ///
    /// # Errors
    /// The target exists (and is not to be replaced, or is no bundle), or its directory cannot be written.
    pub fn create(target: &Path, force: bool) -> Result<Self, DraftError> {
        Ok(Draft { workplace: Workplace::make(target, force)?, force, files: BTreeMap::new() })
    }

    /// Adds a file with this content.
    ///
    /// # Errors
    /// The name is taken or not plain, or the disk is full or fails.
    pub fn add_bytes(&mut self, name: &str, bytes: &[u8]) -> Result<(), DraftError> {
        let file = self.create_file(name)?;
        file.write_all_at(bytes, 0).map_err(|source| DraftError::write(name, source))?;
        self.record(name, file, Content::Hashed(hex(Sha256::new_with_prefix(bytes))));
        Ok(())
    }

    /// Adds a copy of the file at `source`, holes where it has zero pages; or the file itself, see [`Sharing`].
    ///
    /// # Errors
    /// The name is taken or not plain, the source cannot be read, or the disk is full or fails.
    pub fn add_file(&mut self, name: &str, source: &Path, sharing: Sharing) -> Result<(), DraftError> {
        let unreadable = |error| DraftError::Source { path: source.to_owned(), source: error };
        if sharing == Sharing::HardLink && self.link(name, source)? {
            return Ok(());
        }
        let from = File::open(source).map_err(unreadable)?;
        let metadata = from.metadata().map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(unreadable(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
        }
        let to = self.create_file(name)?;
        let digest = copy_sparse(&from, &to, metadata.len()).map_err(|error| match error {
            CopyError::Read(error) => unreadable(error),
            CopyError::Write(error) => DraftError::write(name, error),
        })?;
        self.record(name, to, Content::Hashed(digest));
        Ok(())
    }

    /// Adds a file of another bundle: the file itself where it can have a second name here, else a copy. Nothing is checked of
    /// `memory`, for which its index answers: share that as well.
    ///
    /// # Errors
    /// The other bundle has no such file, or a copy of it shows that it is damaged; the name is taken; or the disk is full or
    /// fails.
    pub fn share(&mut self, bundle: &Bundle, name: &str) -> Result<(), DraftError> {
        let other = bundle.plain(name)?;
        let failed = |source| DraftError::write(name, source);
        // Nobody has written it since, so it has the digest that it had: what happened to it is for `verify` to find.
        let digest = bundle.digest(name);
        let file = if self.link_open(name, other)? {
            self.workplace.directory().file(name).map_err(|fault| failed(fault.into()))?.file
        } else {
            let to = self.create_file(name)?;
            let copied = copy_sparse(&other.file, &to, other.len).map_err(|error| match error {
                CopyError::Read(error) | CopyError::Write(error) => failed(error),
            })?;
            if digest.is_some_and(|digest| digest != copied) {
                return Err(DraftError::Damaged { name: name.to_owned() });
            }
            to
        };
        self.record(name, file, digest.map_or(Content::Indexed, |known| Content::Hashed(known.to_owned())));
        Ok(())
    }

    /// What has been written so far, opened as the bundle that `manifest` describes: clones of it can be restored before it has
    /// its name.
    ///
    /// # Errors
    /// Something that every bundle has is missing, or the disk is full or fails.
    pub fn trial(&mut self, manifest: &Manifest) -> Result<Bundle, DraftError> {
        self.hash()?;
        let manifest = Manifest { files: self.entries()?, ..manifest.clone() };
        let directory = self.workplace.directory();
        let failed = |source| DraftError::write(names::MANIFEST, source);
        let file = directory.create(names::MANIFEST).map_err(failed)?;
        file.write_all_at(&manifest.to_json()?, 0).map_err(failed)?;
        let bundle = self.open();
        directory.remove_file(names::MANIFEST.as_ref()).map_err(failed)?;
        bundle
    }

    /// Hashes what somebody else wrote and is whole now.
    fn hash(&mut self) -> Result<(), DraftError> {
        for (name, written) in &mut self.files {
            if let (Content::Open, Some(digest)) = (&written.content, written.entry(name)?.sha256) {
                written.content = Content::Hashed(digest);
            }
        }
        Ok(())
    }

    fn open(&self) -> Result<Bundle, DraftError> {
        let target = self.workplace.target();
        let unusable = |source| DraftError::Directory { path: target.to_owned(), source };
        let directory = self.workplace.reopen().map_err(unusable)?;
        Bundle::in_directory(directory, target).map_err(DraftError::Unusable)
    }

    /// Gives an open file a name here; false where it cannot have one.
    fn link_open(&self, name: &str, other: &PlainFile) -> Result<bool, DraftError> {
        if !is_plain_name(name) || self.files.contains_key(name) {
            return Err(DraftError::Name { name: name.to_owned() });
        }
        // As in `add_file`: a file that others may read stays where it is.
        Ok(is_owner_only(&other.file) && self.workplace.directory().link_open(&other.file, name).is_ok())
    }

    /// Adds an empty file that the caller fills (an image, say) before [`finish`](Self::finish), which hashes it.
    ///
    /// # Errors
    /// The name is taken or not plain, or the file cannot be made.
    pub fn new_file(&mut self, name: &str) -> Result<File, DraftError> {
        let file = self.create_file(name)?;
        let own = file.try_clone().map_err(|source| DraftError::write(name, source))?;
        self.record(name, own, Content::Open);
        Ok(file)
    }

    /// The directory in which the bundle is written until it is finished.
    pub fn directory(&self) -> PathBuf {
        self.workplace.path()
    }

    /// Counts a file that somebody made in [`directory`](Self::directory) as one of the bundle's.
    ///
    /// # Errors
    /// It is not there, no regular file, or the name is taken.
    pub fn adopt(&mut self, name: &str) -> Result<(), DraftError> {
        if !is_plain_name(name) || self.files.contains_key(name) {
            return Err(DraftError::Name { name: name.to_owned() });
        }
        let failed = |source| DraftError::write(name, source);
        let plain = self.workplace.directory().file(name).map_err(|fault| failed(io::Error::from(fault)))?;
        plain.file.set_permissions(std::fs::Permissions::from_mode(OWNER_ONLY)).map_err(failed)?;
        self.record(name, plain.file, Content::Open);
        Ok(())
    }

    /// Adds guest memory and its index. `behind` is what the file behind the memory holds, [`Bundle::content`] of the bundle
    /// that a clone comes from; nothing for a guest that was booted. The vCPUs must be paused.
    ///
    /// # Errors
    /// Guest memory cannot be read, or the disk is full or fails.
    pub fn write_memory(
        &mut self,
        memory: &GuestMemory,
        behind: &[Range<u64>],
        memory_bytes: u64,
        tsc_khz: u32,
    ) -> Result<MemoryReport, DraftError> {
        let mut writer = self.memory(memory_bytes, tsc_khz)?;
        visit_content(memory, behind, |offset, bytes| writer.write(offset, bytes))?;
        writer.finish()
    }

    /// A writer of guest memory, for one that comes from elsewhere.
    ///
    /// # Errors
    /// No guest has that much memory, it was added before, or the file cannot be made.
    pub fn memory(&mut self, memory_bytes: u64, tsc_khz: u32) -> Result<MemoryWriter<'_>, DraftError> {
        MemoryWriter::new(self, memory_bytes, tsc_khz)
    }

    pub(super) fn create_memory(&mut self) -> Result<File, DraftError> {
        self.create_file(names::MEMORY)
    }

    pub(super) fn add_memory(&mut self, file: File) {
        self.record(names::MEMORY, file, Content::Indexed);
    }

    /// Completes `manifest` with the files, writes it, syncs everything and gives the bundle its name.
    ///
    /// # Errors
    /// A file that every bundle has was not added, the manifest says impossible things, the disk is full or fails, or
    /// the target has come into being meanwhile.
    pub fn finish(mut self, mut manifest: Manifest) -> Result<Finished, DraftError> {
        manifest.files = self.entries()?;
        self.add_bytes(names::MANIFEST, &manifest.to_json()?)?;
        let files = self.sync()?;
        self.check()?;
        let path = self.workplace.target().to_owned();
        let leftover = self.workplace.publish(self.force)?;
        Ok(Finished { path, files, leftover })
    }

    fn create_file(&self, name: &str) -> Result<File, DraftError> {
        if !is_plain_name(name) || self.files.contains_key(name) {
            return Err(DraftError::Name { name: name.to_owned() });
        }
        self.workplace.directory().create(name).map_err(|source| DraftError::write(name, source))
    }

    fn record(&mut self, name: &str, file: File, content: Content) {
        self.files.insert(name.to_owned(), Written { file, content });
    }

    /// False when the file must be copied after all.
    fn link(&mut self, name: &str, source: &Path) -> Result<bool, DraftError> {
        if !is_plain_name(name) || self.files.contains_key(name) {
            return Err(DraftError::Name { name: name.to_owned() });
        }
        let directory = self.workplace.directory();
        if directory.link(source, name).is_err() {
            return Ok(false);
        }
        // Looked at under its new name: the old one may be another file by now.
        let linked = directory.file(name).ok().filter(|linked| is_owner_only(&linked.file));
        let Some(linked) = linked else {
            let removed = directory.remove_file(name.as_ref());
            return removed.map(|()| false).map_err(|source| DraftError::write(name, source));
        };
        self.record(name, linked.file, Content::Open);
        Ok(true)
    }

    fn entries(&self) -> Result<BTreeMap<String, FileEntry>, DraftError> {
        self.files.iter().map(|(name, written)| Ok((name.clone(), written.entry(name)?))).collect()
    }

    fn sync(&self) -> Result<Vec<FinishedFile>, DraftError> {
        // At once: a file system writes its journal once for all that wait for it.
        std::thread::scope(|scope| {
            let start = |file| std::thread::Builder::new().spawn_scoped(scope, move || File::sync_all(file));
            let threads: Vec<_> = self.files.values().map(|written| start(&written.file)).collect();
            let files = self.files.iter().zip(threads);
            files.map(|((name, written), thread)| written.synced(name, thread)).collect()
        })
    }

    /// Nothing gets its name that `run` would refuse.
    fn check(&self) -> Result<(), DraftError> {
        let bundle = self.open()?;
        bundle.state().map(drop).map_err(DraftError::Unusable)?;
        bundle.memory().map(drop).map_err(DraftError::Unusable)
    }
}

impl Written {
    /// The file once the thread that syncs it has done so; without one it is synced here.
    fn synced(
        &self,
        name: &str,
        thread: io::Result<ScopedJoinHandle<'_, io::Result<()>>>,
    ) -> Result<FinishedFile, DraftError> {
        let failed = |source| DraftError::write(name, source);
        let ended = |_| Err(io::Error::other("the thread that syncs the file ended"));
        thread
            .map_or_else(|_| self.file.sync_all(), |thread| thread.join().unwrap_or_else(ended))
            .map_err(failed)?;
        let metadata = self.file.metadata().map_err(failed)?;
        Ok(FinishedFile { name: name.to_owned(), len: metadata.len(), allocated: metadata.blocks() * 512 })
    }

    fn entry(&self, name: &str) -> Result<FileEntry, DraftError> {
        let failed = |source| DraftError::write(name, source);
        let len = self.file.metadata().map_err(failed)?.len();
        let sha256 = match &self.content {
            Content::Hashed(digest) => Some(digest.clone()),
            Content::Open => Some(digest_of(&self.file, len).map_err(failed)?),
            Content::Indexed => None,
        };
        Ok(FileEntry { len, sha256 })
    }
}

fn is_owner_only(file: &File) -> bool {
    file.metadata().is_ok_and(|metadata| metadata.permissions().mode() & 0o7777 == OWNER_ONLY)
}

fn digest_of(file: &File, len: u64) -> io::Result<String> {
    let mut digest = Sha256::new();
    read_in_steps::<io::Error>(file, len, |_, bytes| {
        digest.update(bytes);
        Ok(())
    })?;
    Ok(hex(digest))
}

/// Which side of a copy failed.
enum CopyError {
    Read(io::Error),
    Write(io::Error),
}

impl From<io::Error> for CopyError {
    fn from(error: io::Error) -> Self {
        CopyError::Read(error)
    }
}

/// Copies `len` bytes into an empty file, leaves holes for zero pages, and gives the digest.
fn copy_sparse(from: &File, to: &File, len: u64) -> Result<String, CopyError> {
    to.set_len(len).map_err(CopyError::Write)?;
    let mut digest = Sha256::new();
    read_in_steps(from, len, |offset, bytes| {
        digest.update(bytes);
        content_runs(bytes)
            .try_for_each(|(start, run)| to.write_all_at(run, offset + start as u64))
            .map_err(CopyError::Write)
    })?;
    Ok(hex(digest))
}
