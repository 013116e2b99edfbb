//! Numbers the inodes of a tree and counts their blocks.

use std::collections::BTreeMap;

use super::directory::{self, Name};
use super::inode::{EXTENT_BLOCKS, EXTENTS_IN_INODE, FAST_SYMLINK};
use super::xattr::{self, Stored};
use super::{BLOCK, Ext4Error};
use crate::rootfs::limits;
use crate::rootfs::tree::{Inode, InodeId, Kind, ROOT, Tree, text};

/// The root directory's inode number.
const ROOT_NUMBER: u64 = 2;
/// Numbers below are reserved (ext4, "Special inodes").
pub const FIRST_NUMBER: u64 = 11;

/// An inode that has its number.
#[derive(Debug)]
pub struct Planned<'a> {
    pub number: u64,
    pub inode: &'a Inode,
    /// Names that lead to it.
    pub links: u64,
    /// Blocks of content.
    pub data_blocks: u64,
    /// Blocks of a directory's entries.
    pub directory: Vec<u8>,
    pub xattrs: Stored,
}

impl Planned<'_> {
    /// Extents of its content, which lies in one piece.
    pub fn extents(&self) -> u64 {
        self.data_blocks.div_ceil(EXTENT_BLOCKS)
    }

    /// Every block it takes.
    pub fn blocks(&self) -> u64 {
        self.data_blocks
            + u64::from(self.extents() > u64::from(EXTENTS_IN_INODE))
            + u64::from(self.xattrs.block.is_some())
    }
}

/// Every inode that will be written, in ascending order of their numbers.
#[derive(Debug)]
pub struct Plan<'a> {
    pub files: Vec<Planned<'a>>,
    /// Bytes of all files.
    pub content: u64,
}

impl<'a> Plan<'a> {
    /// Numbers the inodes that the root leads to, parents before children.
    ///
    /// # Errors
    /// Content or extended attributes are more than an image can hold.
    pub fn new(tree: &'a Tree) -> Result<Plan<'a>, Ext4Error> {
        let mut numbering =
            Numbering { tree, order: Vec::new(), numbers: BTreeMap::new(), links: BTreeMap::new() };
        numbering.visit();
        let content = numbering.order.iter().fold(0, |sum: u64, (id, ..)| match &tree.inode(*id).kind {
            Kind::File(content) => sum.saturating_add(content.bytes()),
            _ => sum,
        });
        if content > limits::CONTENT {
            return Err(Ext4Error::TooMuch { bytes: content });
        }
        let files = numbering.order.iter().map(|found| numbering.planned(found)).collect::<Result<_, _>>()?;
        Ok(Plan { files, content })
    }

    /// Blocks of all of them.
    pub fn blocks(&self) -> u64 {
        self.files.iter().map(Planned::blocks).sum()
    }

    /// Highest inode number in use.
    pub fn inodes(&self) -> u64 {
        FIRST_NUMBER - 1 + self.files.len() as u64 - 1
    }

    /// Inode numbers of directories.
    pub fn directories(&self) -> Vec<u64> {
        let directories = self.files.iter().filter(|f| matches!(f.inode.kind, Kind::Directory(_)));
        directories.map(|f| f.number).collect()
    }
}

/// An inode, its parent directory, and its name there.
type Found<'a> = (InodeId, InodeId, &'a [u8]);

struct Numbering<'a> {
    tree: &'a Tree,
    order: Vec<Found<'a>>,
    numbers: BTreeMap<InodeId, u64>,
    links: BTreeMap<InodeId, u64>,
}

impl<'a> Numbering<'a> {
    /// Without recursion: a hostile tree is deep.
    fn visit(&mut self) {
        let tree = self.tree;
        let mut waiting: Vec<Found<'a>> = vec![(ROOT, ROOT, b"/")];
        while let Some(found @ (id, ..)) = waiting.pop() {
            *self.links.entry(id).or_default() += 1;
            if self.numbers.contains_key(&id) {
                continue;
            }
            let number = if id == ROOT { ROOT_NUMBER } else { FIRST_NUMBER - 1 + self.order.len() as u64 };
            self.numbers.insert(id, number);
            self.order.push(found);
            if let Kind::Directory(children) = &tree.inode(id).kind {
                waiting.extend(children.iter().rev().map(|(name, child)| (*child, id, name.as_slice())));
            }
        }
    }

    fn number(&self, id: InodeId) -> u64 {
        self.numbers.get(&id).copied().unwrap_or_default()
    }

    fn planned(&self, (id, parent, name): &Found<'a>) -> Result<Planned<'a>, Ext4Error> {
        let inode = self.tree.inode(*id);
        let mut planned = Planned {
            number: self.number(*id),
            inode,
            links: self.links.get(id).copied().unwrap_or_default(),
            data_blocks: 0,
            directory: Vec::new(),
            xattrs: xattr::store(&inode.meta.xattrs).ok_or_else(|| Ext4Error::Xattrs { name: text(name) })?,
        };
        match &inode.kind {
            Kind::Directory(children) => {
                planned.directory = self.directory(*id, *parent, children);
                planned.data_blocks = planned.directory.len() as u64 / BLOCK;
                let is_directory =
                    |child: &&InodeId| matches!(self.tree.inode(**child).kind, Kind::Directory(_));
                planned.links = 2 + children.values().filter(is_directory).count() as u64;
            }
            Kind::File(content) => planned.data_blocks = content.bytes().div_ceil(BLOCK),
            Kind::Symlink(target) => planned.data_blocks = u64::from(target.len() >= FAST_SYMLINK),
            Kind::Device { .. } | Kind::Fifo => {}
        }
        Ok(planned)
    }

    fn directory(&self, id: InodeId, parent: InodeId, children: &BTreeMap<Vec<u8>, InodeId>) -> Vec<u8> {
        let name = |id, name| Name { number: self.number(id), kind: &self.tree.inode(id).kind, name };
        let own: [Name<'_>; 2] = [name(id, b"."), name(parent, b"..")];
        directory::blocks(own.into_iter().chain(children.iter().map(|(text, child)| name(*child, text))))
    }
}
