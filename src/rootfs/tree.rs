//! A file system tree in memory: what layers are merged into and what an image is written from.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::limits;

/// Why an entry cannot be put into a tree.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TreeError {
    /// `..`, an empty or overlong name.
    #[error("The path {path:?} is not allowed: it has \"..\", or a name or itself is too long")]
    Path {
        /// As in the source.
        path: String,
    },
    /// Something on the way is a file.
    #[error("The path {path:?} leads through something that is no directory")]
    NotADirectory {
        /// As in the source.
        path: String,
    },
    /// Symlinks in a circle.
    #[error("The path {path:?} leads through too many symbolic links")]
    SymlinkLoop {
        /// As in the source.
        path: String,
    },
    /// A hard link to nothing, or to a directory.
    #[error("The hard link {path:?} points to {target:?}, which is no file of the image")]
    LinkTarget {
        /// As in the source.
        path: String,
        /// What it should be another name of.
        target: String,
    },
}

/// Index of an inode; the root directory is 0.
pub type InodeId = usize;
/// The root directory.
pub const ROOT: InodeId = 0;

/// A point in time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Time {
    /// Since the epoch.
    pub seconds: i64,
    /// 0 to 999 999 999.
    pub nanoseconds: u32,
}

/// What every inode has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Permission bits with setuid, setgid and sticky: 12 bits.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Time,
    /// By full name, `security.capability`.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Metadata {
    /// A directory that nobody described.
    pub fn implied() -> Self {
        Metadata { mode: 0o755, ..Default::default() }
    }
}

/// Where a file's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// In the spool.
    Spool {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// In a file of the host.
    Host {
        /// The file.
        path: PathBuf,
        /// Bytes it had when it was found.
        len: u64,
    },
}

impl Content {
    /// Bytes.
    pub fn bytes(&self) -> u64 {
        match self {
            Content::Spool { len, .. } | Content::Host { len, .. } => *len,
        }
    }
}

/// What an inode is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Directory(BTreeMap<Vec<u8>, InodeId>),
    File(Content),
    Symlink(Vec<u8>),
    Device { block: bool, major: u32, minor: u32 },
    Fifo,
}

/// A file, directory, ...
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    pub meta: Metadata,
    pub kind: Kind,
}

/// A tree. Inodes that no directory names any more stay behind unseen.
#[derive(Debug, Clone)]
pub struct Tree {
    inodes: Vec<Inode>,
}

impl Default for Tree {
    fn default() -> Self {
        Tree { inodes: vec![Inode { meta: Metadata::implied(), kind: Kind::Directory(BTreeMap::new()) }] }
    }
}

impl Tree {
    /// An inode by the number a directory of this tree gave.
    pub fn inode(&self, id: InodeId) -> &Inode {
        &self.inodes[id]
    }

    /// Puts `inode` at `path` in place of what was there. A directory on a directory keeps the children.
    ///
    /// # Errors
    /// The path is not allowed or leads through a file.
    pub fn insert(&mut self, path: &[u8], inode: Inode) -> Result<InodeId, TreeError> {
        let Some((dir, name)) = self.place(path)? else {
            // The root itself: it can only be described.
            if let Kind::Directory(_) = inode.kind {
                self.inodes[ROOT].meta = inode.meta;
                return Ok(ROOT);
            }
            return Err(TreeError::NotADirectory { path: text(path) });
        };
        if let (Some(id), Kind::Directory(_)) = (self.child(dir, &name), &inode.kind)
            && let Kind::Directory(_) = self.inodes[id].kind
        {
            self.inodes[id].meta = inode.meta;
            return Ok(id);
        }
        Ok(self.attach(dir, name, inode))
    }

    /// Makes `path` another name of `target`.
    ///
    /// # Errors
    /// The target is missing or a directory, or a path is not allowed.
    pub fn link(&mut self, path: &[u8], target: &[u8]) -> Result<(), TreeError> {
        let wrong = || TreeError::LinkTarget { path: text(path), target: text(target) };
        let found = self.find(target)?.ok_or_else(wrong)?;
        let (dir, name) = self.place(path)?.ok_or_else(wrong)?;
        if matches!(self.inodes[found].kind, Kind::Directory(_)) {
            return Err(wrong());
        }
        self.name(dir, name, found);
        Ok(())
    }

    /// Removes what is at `path`, if anything is.
    ///
    /// # Errors
    /// The path is not allowed.
    pub fn remove(&mut self, path: &[u8]) -> Result<(), TreeError> {
        let (parents, name) = split(path)?;
        if let Some(name) = name
            && let Some(dir) = self.walk(path, &parents, false)?
            && let Kind::Directory(children) = &mut self.inodes[dir].kind
        {
            children.remove(name);
        }
        Ok(())
    }

    /// Empties the directory at `path`, if there is one; it may be the root.
    ///
    /// # Errors
    /// The path is not allowed.
    pub fn clear(&mut self, path: &[u8]) -> Result<(), TreeError> {
        if let Some(id) = self.find(path)?
            && let Kind::Directory(children) = &mut self.inodes[id].kind
        {
            children.clear();
        }
        Ok(())
    }

    /// Puts a new inode into a directory of this tree; for sources that are walked from directory to directory.
    pub fn attach(&mut self, dir: InodeId, name: Vec<u8>, inode: Inode) -> InodeId {
        self.inodes.push(inode);
        let id = self.inodes.len() - 1;
        self.name(dir, name, id);
        id
    }

    /// Gives an inode a name in a directory.
    pub fn name(&mut self, dir: InodeId, name: Vec<u8>, id: InodeId) {
        if let Kind::Directory(children) = &mut self.inodes[dir].kind {
            children.insert(name, id);
        }
    }

    /// Describes the root directory.
    pub fn describe_root(&mut self, meta: Metadata) {
        self.inodes[ROOT].meta = meta;
    }

    fn child(&self, dir: InodeId, name: &[u8]) -> Option<InodeId> {
        match &self.inodes[dir].kind {
            Kind::Directory(children) => children.get(name).copied(),
            _ => None,
        }
    }

    /// What is at `path`; symlinks are followed on the way, not at its end.
    fn find(&mut self, path: &[u8]) -> Result<Option<InodeId>, TreeError> {
        let (parents, name) = split(path)?;
        let dir = self.walk(path, &parents, false)?;
        Ok(match name {
            Some(name) => dir.and_then(|dir| self.child(dir, name)),
            None => dir,
        })
    }

    /// The directory that `path` lies in, made if need be, and its last name; nothing for the root.
    fn place(&mut self, path: &[u8]) -> Result<Option<(InodeId, Vec<u8>)>, TreeError> {
        let (parents, name) = split(path)?;
        let Some(name) = name else { return Ok(None) };
        let dir = self.walk(path, &parents, true)?;
        Ok(dir.map(|dir| (dir, name.to_vec())))
    }

    /// Follows directories and symlinks from the root, which nothing leads out of: `..` in a link's target stops there,
    /// as in a chroot.
    fn walk(&mut self, path: &[u8], parents: &[&[u8]], create: bool) -> Result<Option<InodeId>, TreeError> {
        let mut way = vec![ROOT];
        let mut rest: Vec<Vec<u8>> = parents.iter().rev().map(|name| name.to_vec()).collect();
        let mut links = 0;
        while let Some(name) = rest.pop() {
            let dir = way.last().copied().unwrap_or(ROOT);
            match (name.as_slice(), self.child(dir, &name)) {
                (b"" | b".", _) => {}
                (b"..", _) => way.truncate((way.len() - 1).max(1)),
                (_, None) if create && way.len() < limits::DEPTH => {
                    let inode = Inode { meta: Metadata::implied(), kind: Kind::Directory(BTreeMap::new()) };
                    way.push(self.attach(dir, name, inode));
                }
                (_, None) => return Ok(None),
                (_, Some(id)) => match &self.inodes[id].kind {
                    Kind::Directory(_) => way.push(id),
                    Kind::Symlink(_) if links == limits::SYMLINKS => {
                        return Err(TreeError::SymlinkLoop { path: text(path) });
                    }
                    Kind::Symlink(target) => {
                        links += 1;
                        if target.starts_with(b"/") {
                            way.truncate(1);
                        }
                        rest.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
                    }
                    _ if create => return Err(TreeError::NotADirectory { path: text(path) }),
                    _ => return Ok(None),
                },
            }
        }
        Ok(way.last().copied())
    }
}

/// A path as text, for messages.
pub fn text(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

type Split<'a> = (Vec<&'a [u8]>, Option<&'a [u8]>);

/// The directories of a path and its last name, which the root does not have. A leading `/` or `./` means nothing.
fn split(path: &[u8]) -> Result<Split<'_>, TreeError> {
    let wrong = || TreeError::Path { path: text(path) };
    let mut names: Vec<&[u8]> =
        path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b".")).collect();
    let bad = |name: &&[u8]| **name == *b".." || name.len() > limits::NAME || name.contains(&0);
    if path.len() > limits::PATH || names.len() > limits::DEPTH || names.iter().any(bad) {
        return Err(wrong());
    }
    let last = names.pop();
    Ok((names, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> Inode {
        Inode { meta: Metadata { mode: 0o700, ..Default::default() }, kind: Kind::Directory(BTreeMap::new()) }
    }

    fn symlink(target: &str) -> Inode {
        Inode { meta: Metadata::default(), kind: Kind::Symlink(target.into()) }
    }

    fn fifo() -> Inode {
        Inode { meta: Metadata::default(), kind: Kind::Fifo }
    }

    fn paths(tree: &Tree, id: InodeId, prefix: &str, to: &mut Vec<String>) {
        if let Kind::Directory(children) = &tree.inode(id).kind {
            for (name, child) in children {
                let path = format!("{prefix}/{}", text(name));
                to.push(path.clone());
                paths(tree, *child, &path, to);
            }
        }
    }

    fn all(tree: &Tree) -> Vec<String> {
        let mut found = Vec::new();
        paths(tree, ROOT, "", &mut found);
        found
    }

    #[test]
    fn missing_parents_are_made_and_directories_keep_their_children() {
        let mut tree = Tree::default();
        tree.insert(b"./a/b/c", fifo()).unwrap();
        let id = tree.insert(b"a/b/", directory()).unwrap();
        assert_eq!(all(&tree), ["/a", "/a/b", "/a/b/c"]);
        assert_eq!(tree.inode(id).meta.mode, 0o700);
        tree.insert(b"a/b", fifo()).unwrap();
        assert_eq!(all(&tree), ["/a", "/a/b"]);
    }

    #[test]
    fn symlinks_on_the_way_stay_inside_the_root() {
        let mut tree = Tree::default();
        tree.insert(b"usr/lib", directory()).unwrap();
        tree.insert(b"lib", symlink("usr/lib")).unwrap();
        tree.insert(b"usr/out", symlink("../../../../etc")).unwrap();
        tree.insert(b"usr/abs", symlink("/var/./x")).unwrap();
        tree.insert(b"lib/one", fifo()).unwrap();
        tree.insert(b"usr/out/two", fifo()).unwrap();
        tree.insert(b"usr/abs/three", fifo()).unwrap();
        let found = all(&tree);
        for path in ["/usr/lib/one", "/etc/two", "/var/x/three"] {
            assert!(found.iter().any(|p| p == path), "{path} in {found:?}");
        }
    }

    #[test]
    fn a_symlink_at_the_end_is_replaced_not_followed() {
        let mut tree = Tree::default();
        tree.insert(b"passwd", symlink("/etc/passwd")).unwrap();
        tree.insert(b"passwd", fifo()).unwrap();
        assert_eq!(all(&tree), ["/passwd"]);
    }

    #[test]
    fn paths_that_lead_out_or_in_circles_are_refused() {
        let mut tree = Tree::default();
        for path in ["../x", "a/../../x", "a/.."] {
            assert_eq!(tree.insert(path.as_bytes(), fifo()), Err(TreeError::Path { path: path.into() }));
        }
        assert!(tree.insert("x".repeat(256).as_bytes(), fifo()).is_err());
        assert!(tree.insert("x/".repeat(300).as_bytes(), fifo()).is_err());
        tree.insert(b"loop", symlink("loop")).unwrap();
        assert_eq!(tree.insert(b"loop/x", fifo()), Err(TreeError::SymlinkLoop { path: "loop/x".into() }));
        tree.insert(b"file", fifo()).unwrap();
        assert_eq!(tree.insert(b"file/x", fifo()), Err(TreeError::NotADirectory { path: "file/x".into() }));
        assert_eq!(tree.insert(b"/", fifo()), Err(TreeError::NotADirectory { path: "/".into() }));
    }

    #[test]
    fn a_hard_link_shares_the_inode_and_needs_a_file() {
        let mut tree = Tree::default();
        let id = tree.insert(b"dir/file", fifo()).unwrap();
        tree.link(b"other/name", b"/dir/file").unwrap();
        assert_eq!(tree.find(b"other/name"), Ok(Some(id)));
        assert!(matches!(tree.link(b"x", b"gone"), Err(TreeError::LinkTarget { .. })));
        assert!(matches!(tree.link(b"x", b"dir"), Err(TreeError::LinkTarget { .. })));
        assert!(matches!(tree.link(b"x", b"../etc"), Err(TreeError::Path { .. })));
    }

    #[test]
    fn removing_and_clearing_forgive_what_is_not_there() {
        let mut tree = Tree::default();
        tree.insert(b"a/b", fifo()).unwrap();
        tree.insert(b"a/c", fifo()).unwrap();
        tree.remove(b"a/b").unwrap();
        tree.remove(b"a/gone/deeper").unwrap();
        tree.clear(b"a/c").unwrap();
        assert_eq!(all(&tree), ["/a", "/a/c"]);
        tree.clear(b"").unwrap();
        assert!(all(&tree).is_empty());
    }
}
