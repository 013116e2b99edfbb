//! Writes an ext4 file system whose whole tree is known beforehand (Documentation/filesystems/ext4).
//!
//! Because nothing changes later, the image is laid out in one go: superblock, group descriptors, bitmaps and inode
//! tables at the front, then every file in one piece. No journal and no backups of the superblock (`sparse_super2`): the
//! image is a read-only root, or a drive whose writes go elsewhere. Times, UUID and hash seed follow from the content.

mod directory;
mod inode;
mod layout;
mod plan;
mod superblock;
mod xattr;

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::Progress;
use super::limits;
use super::spool::{PIECE, Spool};
use super::tree::{Content, Kind, Tree};

use layout::Layout;
use plan::{Plan, Planned};

/// Bytes of a block.
const BLOCK: u64 = 4096;
/// [`BLOCK`] for lengths in memory.
const BLOCK_LEN: usize = 4096;

/// Why an image could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Ext4Error {
    /// Writing failed.
    #[error("The file cannot be written")]
    Write(#[source] io::Error),
    /// A file of the source cannot be read any more, or has another length than it had.
    #[error("Cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Extended attributes that do not fit an inode and one block.
    #[error("The extended attributes of {name:?} are too long for ext4")]
    Xattrs {
        /// Last name of its path.
        name: String,
    },
    /// More than an image may hold.
    #[error("The content of {bytes} bytes is more than the {} that a root image may hold", limits::CONTENT)]
    TooMuch {
        /// Bytes of all files.
        bytes: u64,
    },
    /// The size asked for is too small.
    #[error("An image of {size} bytes is too small: the content needs at least {need}")]
    TooSmall {
        /// What was asked for.
        size: u64,
        /// Least that is enough.
        need: u64,
    },
}

/// Writes `tree` into the empty file `out` and returns the image's length in bytes.
///
/// # Errors
/// See [`Ext4Error`].
pub fn write(
    tree: &Tree,
    spool: &Spool,
    out: &File,
    size: Option<u64>,
    progress: &mut dyn FnMut(Progress),
) -> Result<u64, Ext4Error> {
    let plan = Plan::new(tree)?;
    let layout = Layout::new(plan.blocks(), plan.inodes(), size)?;
    let image = Image { out };
    out.set_len(layout.bytes()).map_err(Ext4Error::Write)?;
    let mut table = inode::Table::new(&layout);
    let mut content = Contents { spool, image: &image, progress, done: 0, total: plan.content };
    let mut next = layout.first_data_block();
    for planned in &plan.files {
        let first = next;
        next += planned.blocks();
        table.add(planned, first);
        write_data(planned, first, &mut content)?;
    }
    image.write(&table.bytes, layout.inode_table() * BLOCK)?;
    let used = layout::Used { blocks: next, inodes: plan.inodes(), directories: &plan.directories() };
    layout.write_bitmaps(&used, &image)?;
    superblock::write(&layout, &used, &table.digest(), &image)?;
    Ok(layout.bytes())
}

/// The blocks of one inode, in the order in which [`Planned::blocks`] counts them: data, extent index, attributes.
fn write_data(planned: &Planned<'_>, first: u64, contents: &mut Contents<'_>) -> Result<(), Ext4Error> {
    let image = contents.image;
    match &planned.inode.kind {
        Kind::Directory(_) => image.write(&planned.directory, first * BLOCK)?,
        Kind::Symlink(target) if planned.data_blocks > 0 => image.write(target, first * BLOCK)?,
        Kind::File(content) => contents.copy(content, first * BLOCK)?,
        _ => {}
    }
    if let Some(leaf) = planned.extent_leaf(first) {
        image.write(&leaf, (first + planned.data_blocks) * BLOCK)?;
    }
    if let Some(block) = &planned.xattrs.block {
        image.write(block, (first + planned.blocks() - 1) * BLOCK)?;
    }
    Ok(())
}

/// The file that is written.
struct Image<'a> {
    out: &'a File,
}

impl Image<'_> {
    /// Writes what is not zero already: the file was empty, so that holes stay holes.
    fn write(&self, bytes: &[u8], at: u64) -> Result<(), Ext4Error> {
        for (offset, piece) in (at..).step_by(BLOCK_LEN).zip(bytes.chunks(BLOCK_LEN)) {
            if piece.iter().any(|byte| *byte != 0) {
                self.out.write_all_at(piece, offset).map_err(Ext4Error::Write)?;
            }
        }
        Ok(())
    }
}

/// Copies file contents and says how far it is.
struct Contents<'a> {
    spool: &'a Spool,
    image: &'a Image<'a>,
    progress: &'a mut dyn FnMut(Progress),
    done: u64,
    total: u64,
}

impl Contents<'_> {
    fn copy(&mut self, content: &Content, at: u64) -> Result<(), Ext4Error> {
        match content {
            Content::Spool { offset, len } => {
                let spool = self.spool;
                self.pieces(*len, at, |to, done| spool.read_at(to, offset + done)).map_err(|e| match e {
                    CopyError::Read(e) => Ext4Error::Write(e),
                    CopyError::Write(e) => e,
                })
            }
            Content::Host { path, len } => {
                let failed = |source| Ext4Error::Read { path: path.clone(), source };
                let file = open(path, *len).map_err(failed)?;
                self.pieces(*len, at, |to, done| file.read_exact_at(to, done)).map_err(|e| match e {
                    CopyError::Read(e) => failed(e),
                    CopyError::Write(e) => e,
                })
            }
        }
    }

    fn pieces(
        &mut self,
        len: u64,
        at: u64,
        read: impl Fn(&mut [u8], u64) -> io::Result<()>,
    ) -> Result<(), CopyError> {
        let mut buffer = vec![0; usize::try_from(len).unwrap_or(PIECE).min(PIECE)];
        let mut done = 0;
        while done < len {
            let count = usize::try_from(len - done).unwrap_or(PIECE).min(PIECE);
            read(&mut buffer[..count], done).map_err(CopyError::Read)?;
            self.image.write(&buffer[..count], at + done).map_err(CopyError::Write)?;
            done += count as u64;
            self.done += count as u64;
            (self.progress)(Progress::Content { done: self.done, total: self.total });
        }
        Ok(())
    }
}

enum CopyError {
    Read(io::Error),
    Write(Ext4Error),
}

/// Opens a file that was found with `len` bytes. It may have been replaced since: by a symlink, a pipe, a longer file.
fn open(path: &Path, len: u64) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    let meta = file.metadata()?;
    if meta.is_file() && meta.len() == len {
        Ok(file)
    } else {
        Err(io::Error::other("It changed while it was read"))
    }
}

/// True when `file` begins with an ext2, ext3 or ext4 superblock.
///
/// # Errors
/// Reading failed.
pub fn is_one(mut file: impl Read) -> io::Result<bool> {
    let mut start = Vec::new();
    file.by_ref().take(superblock::END).read_to_end(&mut start)?;
    Ok(superblock::has_magic(&start))
}

/// Bytes that the file system in `start` (its first 2 KiB) says it has.
pub fn length(start: &[u8]) -> Option<u64> {
    superblock::length(start)
}
