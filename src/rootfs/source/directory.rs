//! A directory of the host as a tree.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, Metadata as HostMetadata};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{lgetxattr, llistxattr};

use super::ImageError;
use crate::rootfs::limits;
use crate::rootfs::tree::{Content, Inode, InodeId, Kind, Metadata, ROOT, Time, Tree};

/// Longest list of names and longest value of extended attributes, bytes (XATTR_LIST_MAX and XATTR_SIZE_MAX of Linux).
const XATTR_MAX: usize = 65_536;

/// Reads a directory. Sockets are left out: they mean nothing without the process behind them.
///
/// An ordinary user cannot have made files of root, so what belongs to the caller becomes root's, as with `tar --owner=0`.
///
/// # Errors
/// Something cannot be read, or there is too much of it.
pub fn directory(path: &Path) -> Result<Tree, ImageError> {
    let meta = fs::metadata(path).map_err(|source| ImageError::Read { path: path.into(), source })?;
    let me = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let mut walk = Walk { tree: Tree::default(), links: BTreeMap::new(), left: limits::ENTRIES, me };
    let root = walk.metadata(path, &meta).map_err(|source| ImageError::Read { path: path.into(), source })?;
    walk.tree.describe_root(root);
    // Without recursion: directories are nested as deep as a path is long.
    let mut waiting = vec![(path.to_path_buf(), ROOT, 0)];
    while let Some((dir, id, depth)) = waiting.pop() {
        if depth > limits::DEPTH {
            return Err(ImageError::TooLarge { path: path.into() });
        }
        waiting.extend(walk.children(&dir, id)?.into_iter().map(|(path, id)| (path, id, depth + 1)));
    }
    Ok(walk.tree)
}

struct Walk {
    tree: Tree,
    /// Files with more than one name, by device and inode number.
    links: BTreeMap<(u64, u64), InodeId>,
    left: usize,
    /// User and group that run this.
    me: (u32, u32),
}

impl Walk {
    /// Adds what a directory holds; returns the directories among it.
    fn children(&mut self, dir: &Path, id: InodeId) -> Result<Vec<(PathBuf, InodeId)>, ImageError> {
        let failed = |path: &Path, source| ImageError::Read { path: path.into(), source };
        let mut directories = Vec::new();
        for entry in fs::read_dir(dir).map_err(|e| failed(dir, e))? {
            let entry = entry.map_err(|e| failed(dir, e))?;
            let (path, name) = (entry.path(), entry.file_name().into_vec());
            self.left = self.left.checked_sub(1).ok_or_else(|| ImageError::TooLarge { path: dir.into() })?;
            let meta = fs::symlink_metadata(&path).map_err(|e| failed(&path, e))?;
            if let Some(known) = self.links.get(&(meta.dev(), meta.ino())).filter(|_| !meta.is_dir()) {
                self.tree.name(id, name, *known);
            } else if let Some(inode) = self.inode(&path, &meta).map_err(|e| failed(&path, e))? {
                let child = self.tree.attach(id, name, inode);
                if meta.is_dir() {
                    directories.push((path, child));
                } else if meta.nlink() > 1 {
                    self.links.insert((meta.dev(), meta.ino()), child);
                }
            }
        }
        Ok(directories)
    }

    fn inode(&self, path: &Path, meta: &HostMetadata) -> io::Result<Option<Inode>> {
        let kind = meta.file_type();
        let kind = if kind.is_dir() {
            Kind::Directory(BTreeMap::new())
        } else if kind.is_file() {
            Kind::File(Content::Host { path: path.into(), len: meta.len() })
        } else if kind.is_symlink() {
            Kind::Symlink(fs::read_link(path)?.into_os_string().into_vec())
        } else if kind.is_fifo() {
            Kind::Fifo
        } else if kind.is_block_device() || kind.is_char_device() {
            let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
            Kind::Device { block: kind.is_block_device(), major, minor }
        } else {
            return Ok(None);
        };
        Ok(Some(Inode { meta: self.metadata(path, meta)?, kind }))
    }

    fn metadata(&self, path: &Path, meta: &HostMetadata) -> io::Result<Metadata> {
        let owner = |id, mine| if id == mine { 0 } else { id };
        Ok(Metadata {
            mode: (meta.mode() & 0o7777) as u16,
            uid: owner(meta.uid(), self.me.0),
            gid: owner(meta.gid(), self.me.1),
            mtime: Time {
                seconds: meta.mtime(),
                nanoseconds: u32::try_from(meta.mtime_nsec()).unwrap_or_default(),
            },
            xattrs: xattrs(path)?,
        })
    }
}

/// Attributes that belong to a file rather than to the host: not SELinux labels, not those of the host's overlayfs.
fn carried(name: &[u8]) -> bool {
    name.starts_with(b"user.") || name == b"security.capability" || name.starts_with(b"system.posix_acl_")
}

fn xattrs(path: &Path) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut names = vec![0u8; XATTR_MAX];
    let len = match llistxattr(path, &mut names) {
        Ok(len) => len,
        // A file system without them.
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        Err(e) => return Err(e.into()),
    };
    let names = names.get(..len).unwrap_or_default();
    let carried = names.split(|byte| *byte == 0).filter(|name| carried(name));
    carried.map(|name| Ok((name.to_vec(), xattr(path, name)?))).collect()
}

fn xattr(path: &Path, name: &[u8]) -> io::Result<Vec<u8>> {
    let mut value = vec![0u8; XATTR_MAX];
    let len = lgetxattr(path, OsStr::from_bytes(name), &mut value)?;
    value.truncate(len);
    Ok(value)
}
