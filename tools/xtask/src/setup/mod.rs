//! `cargo xtask setup`: everything the other commands need, fetched once.
//!
//! Debian packages are installed; the guest's kernel and userland and the emulator are only downloaded and unpacked under `target/guest`,
//! because a guest kernel has no business in the host's boot menu, nor a backport among its programs. Every step has a stamp, so a second run only looks.

mod debian;
mod emulator;
mod kernel;
mod python;
mod root;
mod stamp;
mod stress;
mod userland;

pub use debian::is_root;
pub use emulator::Emulator;
pub use stamp::digest;

use std::fs::File;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::progress::say;
use crate::workspace::{Workspace, make_dir};

/// What set-up leaves for guests and for the host that is emulated for them.
#[derive(Debug, Clone)]
pub struct Guest {
    /// The kernel as a bzImage.
    pub kernel: PathBuf,
    /// Its release, `uname -r` of a guest.
    pub release: String,
    /// Its modules, with `modules.dep`.
    pub modules: PathBuf,
    /// What emulates a host.
    pub emulator: Emulator,
    /// Debian's static busybox.
    pub busybox: PathBuf,
    /// The python root as an ext4 image.
    pub python_image: PathBuf,
    /// The root with stress-ng as an ext4 image.
    pub stress_image: PathBuf,
}

/// Prints what there is after making sure of it.
pub fn run(workspace: &Workspace) -> Result<()> {
    let guest = prepare(workspace)?;
    say(&format!("Set up: guest kernel {}, python root {}", guest.release, guest.python_image.display()));
    Ok(())
}

/// Makes sure that everything is there.
pub fn prepare(workspace: &Workspace) -> Result<Guest> {
    debian::check_release()?;
    let lock = lock(workspace)?;
    debian::install_missing()?;
    let kernel = kernel::prepare(workspace)?;
    let emulator = emulator::prepare(workspace)?;
    let (python_image, busybox) = python::prepare(workspace)?;
    let stress_image = stress::prepare(workspace)?;
    drop(lock);
    Ok(Guest {
        kernel: kernel.image,
        release: kernel.release,
        modules: kernel.modules,
        emulator,
        busybox,
        python_image,
        stress_image,
    })
}

/// Keeps a second set-up in the same checkout waiting until this one is done.
pub fn lock(workspace: &Workspace) -> Result<File> {
    let path = workspace.guest("lock");
    make_dir(&workspace.guest("downloads"))?;
    let file = File::create(&path).with_context(|| format!("Cannot create {}", path.display()))?;
    file.lock().with_context(|| format!("Cannot lock {}", path.display()))?;
    Ok(file)
}
