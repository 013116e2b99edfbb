//! ext4 images made without mounting anything.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::{self, command};
use crate::workspace::rename;

const BLOCK: u64 = 4096;
const MIB: u64 = 1 << 20;

/// Makes a read-only image of a directory, as small as it can be made in one go.
///
/// The same tree, times included, gives the same bytes: caches go by their content.
pub fn of_directory(dir: &Path, image: &Path) -> Result<()> {
    let need = measure(dir)?;
    let inodes = need.entries + 64;
    // 5 % for the block groups' own tables and for directories that mke2fs lays out differently.
    let bytes = (need.blocks * BLOCK + inodes * 256) / 100 * 105 + 4 * MIB;
    let fresh = image.with_extension("new");
    create_sparse(&fresh, bytes.next_multiple_of(MIB))?;
    let mut mke2fs = as_root("mke2fs");
    mke2fs
        .args(["-q", "-F", "-t", "ext4", "-m", "0", "-b", "4096", "-O", "^has_journal,^resize_inode"])
        .args(["-N", &inodes.to_string(), "-E", "hash_seed=5b1f35c6-0000-4000-8000-000000000001"])
        .args(["-U", "5b1f35c6-0000-4000-8000-000000000002", "-d"])
        .arg(dir)
        .arg(&fresh)
        .env("E2FSPROGS_FAKE_TIME", "1700000000");
    process::quiet(&mut mke2fs)?;
    rename(&fresh, image)
}

/// Makes an empty image for writing to; it takes room on the disk only as it fills.
pub fn empty(image: &Path, bytes: u64) -> Result<()> {
    create_sparse(image, bytes)?;
    process::quiet(command("mke2fs").args(["-q", "-F", "-t", "ext4", "-m", "0"]).arg(image))
}

/// Makes a file of a length that takes no room.
pub fn create_sparse(path: &Path, bytes: u64) -> Result<()> {
    let file = File::create(path).with_context(|| format!("Cannot create {}", path.display()))?;
    file.set_len(bytes).with_context(|| format!("Cannot give {} a length of {bytes} bytes", path.display()))
}

/// A command to whom the caller's files seem to be root's: that is how they must look inside an image.
fn as_root(program: &str) -> Command {
    let user_namespaces = || process::succeeds(command("unshare").args(["--map-root-user", "true"]));
    if process::read(command("id").arg("-u")).is_ok_and(|id| id.trim() == "0") || !user_namespaces() {
        return command(program);
    }
    let mut unshare = command("unshare");
    unshare.arg("--map-root-user").arg(program);
    unshare
}

#[derive(Default)]
struct Need {
    blocks: u64,
    entries: u64,
}

fn measure(path: &Path) -> Result<Need> {
    let metadata = path.symlink_metadata().with_context(|| format!("Cannot read {}", path.display()))?;
    // Holes stay holes, so what counts is the blocks in use; one more for extents and long links.
    let mut need = Need { blocks: metadata.blocks() * 512 / BLOCK + 1, entries: 1 };
    if metadata.is_dir() {
        for entry in path.read_dir().with_context(|| format!("Cannot read {}", path.display()))? {
            let inner = measure(&entry?.path())?;
            need.blocks += inner.blocks;
            need.entries += inner.entries;
        }
    }
    Ok(need)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_tree_gives_the_same_image() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        std::fs::create_dir(&tree).unwrap();
        std::fs::write(tree.join("file"), vec![7; 100_000]).unwrap();
        // Whoever reads a file that was written since moves the time of its last access.
        of_directory(&tree, &dir.path().join("first.img")).unwrap();
        let images = ["one.img", "two.img"].map(|name| dir.path().join(name));
        for image in &images {
            of_directory(&tree, image).unwrap();
        }
        let [one, two] = images.map(|image| std::fs::read(image).unwrap());
        assert!(one == two, "the images differ");
    }
}
