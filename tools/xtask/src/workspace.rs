//! Where things lie in the repository and under `target/`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The checkout that xtask works on.
#[derive(Debug, Clone)]
pub struct Workspace {
    root: PathBuf,
    target: PathBuf,
}

impl Workspace {
    /// The checkout that `cargo xtask` was called in.
    pub fn find() -> Result<Self> {
        // Cargo sets the variable at run time too: a binary that was moved or copied still finds the right checkout.
        let here = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").into());
        let root = Path::new(&here).ancestors().nth(2).context("tools/xtask has no parent directory")?;
        let root = root.canonicalize().with_context(|| format!("Cannot find {}", root.display()))?;
        let target =
            std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir));
        Ok(Self { root, target })
    }

    /// The top of the checkout.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A path inside the checkout.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// A path inside the target directory.
    pub fn target(&self, relative: &str) -> PathBuf {
        self.target.join(relative)
    }

    /// The kernel, the root images and their downloads.
    pub fn guest(&self, relative: &str) -> PathBuf {
        self.target.join("guest").join(relative)
    }
}

/// Makes a directory and its parents.
pub fn make_dir(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).with_context(|| format!("Cannot make the directory {}", path.display()))
}

/// Makes a directory that is empty.
pub fn make_empty_dir(path: &Path) -> Result<()> {
    if path.exists() {
        std::fs::remove_dir_all(path).with_context(|| format!("Cannot empty {}", path.display()))?;
    }
    make_dir(path)
}

/// Writes a whole file, with its path in the error.
pub fn write(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    std::fs::write(path, content).with_context(|| format!("Cannot write {}", path.display()))
}

/// Reads a whole text file, with its path in the error.
pub fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("Cannot read {}", path.display()))
}

/// Puts a directory in the place of another, which need not be there.
pub fn replace_dir(fresh: &Path, place: &Path) -> Result<()> {
    make_empty_dir(place)?;
    rename(fresh, place)
}

/// Renames, with both paths in the error.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to).with_context(|| format!("Cannot rename {} to {}", from.display(), to.display()))
}
