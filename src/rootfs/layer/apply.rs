//! Merges a layer into the tree of the layers below it.

use super::{Change, LayerError, What};
use crate::rootfs::tree::{Inode, Tree};

/// Applies a whole layer. Whiteouts speak about lower layers only, wherever in the archive they stand, so they come first.
///
/// # Errors
/// A path is not allowed, or a hard link leads nowhere.
pub fn apply(tree: &mut Tree, changes: Vec<Change>) -> Result<(), LayerError> {
    for change in &changes {
        match change.what {
            What::Remove => tree.remove(&change.path)?,
            What::Clear => tree.clear(&change.path)?,
            _ => {}
        }
    }
    for Change { path, what } in changes {
        match what {
            What::Put(meta, kind) => {
                tree.insert(&path, Inode { meta, kind })?;
            }
            What::Link(target) => tree.link(&path, &target)?,
            What::Remove | What::Clear => {}
        }
    }
    Ok(())
}
