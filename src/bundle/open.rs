//! Opening a bundle: everything that is used of it is checked first.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use snapshot_format::index::{HEADER_LEN, IndexError, MemoryIndex, MemoryMap, Place, mark};
use snapshot_format::manifest::{FileEntry, MANIFEST_MAX, Manifest, ManifestError, Parent, names};
use snapshot_format::state::{DecodeError, FormatVersion, Reader};

use snapshot_format::working_set::{WorkingSet, WorkingSetError};

use super::directory::{Directory, FileFault, Listing, PlainFile};
use super::{hex, machine_state};

/// Longest kernel or initramfs, bytes: they are read whole.
const IMAGE_MAX: u64 = 512 << 20;

/// Why a bundle, or a file of it, cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory cannot be opened.
    #[error("Cannot open the bundle {}", path.display())]
    Directory {
        /// The bundle.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A directory, but no bundle.
    #[error("{} is no bundle: it has no manifest.json", path.display())]
    NotABundle {
        /// The directory.
        path: PathBuf,
    },
    /// The manifest is damaged, of another format, or says impossible things.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A file that the manifest names is not there.
    #[error("The bundle's file {name} is missing: bake or fetch the bundle again")]
    Missing {
        /// The file.
        name: String,
    },
    /// Not a regular file.
    #[error("The bundle's file {name} is a link or no regular file: copy the bundle with its files")]
    NotPlain {
        /// The file.
        name: String,
    },
    /// A file has another length than the manifest says.
    #[error(
        "The bundle's file {name} is {found} bytes long instead of {expected}: bake or fetch the bundle again"
    )]
    Length {
        /// The file.
        name: String,
        /// Its real length.
        found: u64,
        /// Its length in the manifest.
        expected: u64,
    },
    /// A file that is read whole is too long for that.
    #[error("The bundle's file {name} is {len} bytes long, more than the limit of {limit}")]
    TooLong {
        /// The file.
        name: String,
        /// Its length.
        len: u64,
        /// The limit.
        limit: u64,
    },
    /// The system refused a file.
    #[error("Cannot read the bundle's file {name}")]
    Read {
        /// The file.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The state file is damaged or of another format.
    #[error(transparent)]
    State(#[from] DecodeError),
    /// State and manifest have different formats.
    #[error(
        "The bundle's state has format {state}, its manifest {manifest}: its files do not belong together"
    )]
    Formats {
        /// Of the state.
        state: FormatVersion,
        /// Of the manifest.
        manifest: FormatVersion,
    },
    /// The memory index is damaged or of another machine.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// Memory that is not in the bundle.
    #[error("{chunks} chunks of the memory lie in a parent bundle, which this release cannot restore from")]
    Parent {
        /// How many.
        chunks: u64,
    },
    /// The bundle has no such drive.
    #[error("The bundle has no drive {id}")]
    NoDrive {
        /// The drive.
        id: String,
    },
    /// The bundle has no such file.
    #[error("The bundle has no file {name}: bake it with one")]
    NoFile {
        /// The file.
        name: String,
    },
}

/// Why a working set is not used.
#[derive(Debug, thiserror::Error)]
pub enum HintError {
    /// It cannot be read.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It is damaged or of another release.
    #[error(transparent)]
    Format(#[from] WorkingSetError),
    /// It belongs to another bundle.
    #[error(
        "The working set is of {found} bytes of memory, the bundle's machine has {expected}: record it again"
    )]
    OtherMachine {
        /// Bytes of memory in the working set.
        found: u64,
        /// Of the machine.
        expected: u64,
    },
    /// It was recorded with other memory.
    #[error("The working set was recorded with another bundle's memory: record it again")]
    OtherMemory,
}

impl OpenError {
    /// Whether the bundle is to blame, rather than the host it is on.
    pub fn is_bad_bundle(&self) -> bool {
        match self {
            OpenError::Directory { source, .. } => {
                matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
            }
            // The file became shorter after it was opened.
            OpenError::Read { source, .. } => source.kind() == io::ErrorKind::UnexpectedEof,
            _ => true,
        }
    }
}

/// An open bundle: its manifest is possible, and every file is there, plain, and as long as the manifest says.
///
/// The contents of `state` and `memory.index` are checked when they are asked for; those of the other files by
/// [`verify`](Self::verify) only.
#[derive(Debug)]
pub struct Bundle {
    pub(super) listing: Listing,
    manifest: Manifest,
    manifest_text: Vec<u8>,
    /// One handle per file: what was measured is what is mapped.
    files: BTreeMap<String, PlainFile>,
}

impl Bundle {
    /// Opens the bundle at `path`. Symbolic links are followed to the bundle, never in it.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let directory =
            Directory::open(path).map_err(|source| OpenError::Directory { path: path.to_owned(), source })?;
        Self::in_directory(directory, path)
    }

    pub(super) fn in_directory(directory: Directory, path: &Path) -> Result<Self, OpenError> {
        let manifest_text = read_manifest(&directory, path)?;
        let manifest = Manifest::from_json(&manifest_text)?;
        let open = |(name, entry): (&String, &FileEntry)| {
            let file = directory.file(name).map_err(|fault| refused(name, fault))?;
            match file.len {
                len if len == entry.len => Ok((name.clone(), file)),
                found => Err(OpenError::Length { name: name.clone(), found, expected: entry.len }),
            }
        };
        let files = manifest.files.iter().map(open).collect::<Result<_, OpenError>>()?;
        Ok(Bundle { listing: Listing::Open(directory), manifest, manifest_text, files })
    }

    /// Closes the directory: whoever has this bundle reaches the files that are open, and no other. Only with `verifiable` can all
    /// of it be [verified](Self::verify) afterwards.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn detach(&mut self, verifiable: bool) -> Result<(), OpenError> {
        let read = |source| OpenError::Read { name: ".".to_owned(), source };
        let names = verifiable.then(|| self.listing.names().map_err(read)).transpose()?;
        self.listing = names.map_or(Listing::Closed, Listing::Read);
        Ok(())
    }

    /// A bundle of which a manifest and open files are all there is: in a process that can open nothing. Files that were not sent
    /// are found missing when they are asked for.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn from_files(manifest_text: Vec<u8>, sent: Vec<(String, File)>) -> Result<Self, OpenError> {
        let manifest = Manifest::from_json(&manifest_text)?;
        let measure = |(name, file): (String, File)| {
            let entry = manifest.files.get(&name).ok_or_else(|| OpenError::NoFile { name: name.clone() })?;
            match real_len(&file).map_err(|source| OpenError::Read { name: name.clone(), source })? {
                len if len == entry.len => Ok((name, PlainFile { file, len })),
                found => Err(OpenError::Length { name, found, expected: entry.len }),
            }
        };
        let files = sent.into_iter().map(measure).collect::<Result<_, OpenError>>()?;
        Ok(Bundle { listing: Listing::Read(Vec::new()), manifest, manifest_text, files })
    }

    /// What [`from_files`](Self::from_files) needs to restore a clone: the manifest's text, and of every file but those of a cold
    /// start its name and handle.
    pub fn to_send(&self) -> (&[u8], Vec<(&str, &File)>) {
        let wanted = self.files().filter(|(name, _)| ![names::KERNEL, names::INITRAMFS].contains(name));
        (&self.manifest_text, wanted.map(|(name, plain)| (name, &plain.file)).collect())
    }

    /// The length of its longest writable drive, bytes; 0 without one. A clone's private copy is never longer.
    pub fn longest_written(&self) -> u64 {
        let drives = self.manifest.drives.iter().filter(|drive| !drive.read_only);
        let files = drives.filter_map(|drive| self.manifest.files.get(&drive.file));
        files.map(|file| file.len).max().unwrap_or_default()
    }

    /// What the bundle is.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// How a bundle baked from a clone of this one names it.
    pub fn as_parent(&self) -> Parent {
        Parent { manifest_sha256: hex(Sha256::new_with_prefix(&self.manifest_text)) }
    }

    /// The machine's saved state, every checksum of it right.
    ///
    /// # Errors
    /// The file is damaged, or of another format than the manifest says.
    pub fn state(&self) -> Result<Reader, OpenError> {
        let reader = Reader::from_vec(self.read(names::STATE)?)?;
        let (state, manifest) = (reader.header().version, self.manifest.version()?);
        if state == manifest { Ok(reader) } else { Err(OpenError::Formats { state, manifest }) }
    }

    /// The memory index, its checksums right and bound to this bundle's machine.
    ///
    /// # Errors
    /// The file is damaged, or belongs to another machine.
    pub fn index(&self) -> Result<MemoryIndex, OpenError> {
        let file = self.plain(names::INDEX)?;
        let index =
            MemoryIndex::read(index_len(file), |offset, into: &mut [u8]| read_index(file, offset, into))?;
        self.check_machine(index.map())?;
        Ok(index)
    }

    /// What the memory index says of where the memory is, without its checksums of content; checked like [`index`](Self::index).
    ///
    /// # Errors
    /// As there.
    pub fn memory_map(&self) -> Result<MemoryMap, OpenError> {
        let file = self.plain(names::INDEX)?;
        let map = MemoryMap::read(index_len(file), |offset, into: &mut [u8]| read_index(file, offset, into))?;
        self.check_machine(&map)?;
        Ok(map)
    }

    fn check_machine(&self, map: &MemoryMap) -> Result<(), IndexError> {
        let machine = &self.manifest.machine;
        let tsc_khz = self.manifest.cpu.tsc_khz;
        map.check_machine(&machine_state(machine.memory_bytes, machine.vcpus, tsc_khz))
    }

    /// What a working set of this memory names it by. The index is not checked.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn index_mark(&self) -> Result<u64, OpenError> {
        let mut header = [0; HEADER_LEN];
        read_index(self.plain(names::INDEX)?, 0, &mut header)?;
        Ok(mark(&header))
    }

    /// The guest's memory, as long as the manifest says, once its index has been found good.
    ///
    /// # Errors
    /// The index is refused, or says that this bundle does not hold all of the memory.
    pub fn memory(&self) -> Result<&File, OpenError> {
        self.memory_of(&self.memory_map()?)
    }

    /// The guest's memory, of which `map` is.
    pub(super) fn memory_of(&self, map: &MemoryMap) -> Result<&File, OpenError> {
        match map.count(|place| matches!(place, Place::Parent { .. })) {
            0 => Ok(&self.plain(names::MEMORY)?.file),
            chunks => Err(OpenError::Parent { chunks }),
        }
    }

    /// Looks whether every file is still as long as the manifest says: whoever cuts one short while a clone runs takes its
    /// pages away.
    ///
    /// # Errors
    /// The first file that is not.
    pub fn check_lengths(&self) -> Result<(), OpenError> {
        for (name, file) in self.files() {
            let read = |source| OpenError::Read { name: name.to_owned(), source };
            let found = real_len(&file.file).map_err(read)?;
            if found != file.len {
                return Err(OpenError::Length { name: name.to_owned(), found, expected: file.len });
            }
        }
        Ok(())
    }

    /// The recorded working set, where there is one.
    ///
    /// # Errors
    /// It is damaged, or of another machine's memory. It is a hint, without which a clone runs all the same.
    pub fn working_set(&self) -> Result<Option<WorkingSet>, HintError> {
        if !self.has(names::WORKING_SET) {
            return Ok(None);
        }
        let set = WorkingSet::decode(&self.read(names::WORKING_SET)?)?;
        let expected = self.manifest.machine.memory_bytes;
        if set.memory_len != expected {
            return Err(HintError::OtherMachine { found: set.memory_len, expected });
        }
        if set.index_mark != self.index_mark()? {
            return Err(HintError::OtherMemory);
        }
        Ok(Some(set))
    }

    /// The image behind a drive. Its content is not checked: what is wrong in it is the guest's own affair.
    ///
    /// # Errors
    /// There is no such drive, or no descriptor left for it.
    pub fn drive(&self, id: &str) -> Result<File, OpenError> {
        let drive = self.manifest.drives.iter().find(|drive| drive.id == id);
        let drive = drive.ok_or_else(|| OpenError::NoDrive { id: id.to_owned() })?;
        let file = &self.plain(&drive.file)?.file;
        file.try_clone().map_err(|source| OpenError::Read { name: drive.file.clone(), source })
    }

    /// The kernel, for a cold start.
    ///
    /// # Errors
    /// The bundle has none, or it cannot be read.
    pub fn kernel(&self) -> Result<Vec<u8>, OpenError> {
        self.read(names::KERNEL)
    }

    /// The initramfs, for a cold start.
    ///
    /// # Errors
    /// The bundle has none, or it cannot be read.
    pub fn initramfs(&self) -> Result<Vec<u8>, OpenError> {
        self.read(names::INITRAMFS)
    }

    /// Whether the bundle has a file of this name.
    pub fn has(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }

    pub(super) fn plain(&self, name: &str) -> Result<&PlainFile, OpenError> {
        self.files.get(name).ok_or_else(|| OpenError::NoFile { name: name.to_owned() })
    }

    /// sha256 of a file as the manifest has it; `memory` has none.
    pub(super) fn digest(&self, name: &str) -> Option<&str> {
        self.manifest.files.get(name)?.sha256.as_deref()
    }

    pub(super) fn files(&self) -> impl Iterator<Item = (&str, &PlainFile)> {
        self.files.iter().map(|(name, file)| (name.as_str(), file))
    }

    /// All of a file. The manifest bounds `state` and `memory.index` closer than this does.
    pub(super) fn read(&self, name: &str) -> Result<Vec<u8>, OpenError> {
        let file = self.plain(name)?;
        if file.len > IMAGE_MAX {
            return Err(OpenError::TooLong { name: name.to_owned(), len: file.len, limit: IMAGE_MAX });
        }
        file.read().map_err(|source| OpenError::Read { name: name.to_owned(), source })
    }
}

/// The manifest bounds it.
fn index_len(file: &PlainFile) -> usize {
    usize::try_from(file.len).unwrap_or(usize::MAX)
}

fn read_index(file: &PlainFile, offset: usize, into: &mut [u8]) -> Result<(), OpenError> {
    let done = file.file.read_exact_at(into, offset as u64);
    done.map_err(|source| OpenError::Read { name: names::INDEX.to_owned(), source })
}

/// By fstat(2): where nothing can be opened any more statx(2) is not allowed either.
fn real_len(file: &File) -> io::Result<u64> {
    Ok(u64::try_from(rustix::fs::fstat(file)?.st_size).unwrap_or(0))
}

/// The manifest has no length recorded elsewhere: it is bounded, and ends with a checksum of its own.
fn read_manifest(directory: &Directory, path: &Path) -> Result<Vec<u8>, OpenError> {
    let file = directory.file(names::MANIFEST).map_err(|fault| match fault {
        FileFault::Missing => OpenError::NotABundle { path: path.to_owned() },
        fault => refused(names::MANIFEST, fault),
    })?;
    if file.len > MANIFEST_MAX as u64 {
        return Err(ManifestError::TooLong { len: usize::try_from(file.len).unwrap_or(usize::MAX) }.into());
    }
    file.read().map_err(|source| OpenError::Read { name: names::MANIFEST.to_owned(), source })
}

fn refused(name: &str, fault: FileFault) -> OpenError {
    let name = name.to_owned();
    match fault {
        FileFault::Missing => OpenError::Missing { name },
        FileFault::NotPlain => OpenError::NotPlain { name },
        FileFault::Io(source) => OpenError::Read { name, source },
    }
}
