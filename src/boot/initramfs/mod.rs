//! The initramfs: the guest agent as `/init`, and the kernel modules it loads.
//!
//! The archive is not packed: the guest would only spend time on unpacking it. The same input gives the same bytes.

mod cpio;
mod modules;

use std::path::Path;

pub use modules::ModuleError;

use cpio::Archive;

/// Why an initramfs could not be built.
#[derive(Debug, thiserror::Error)]
pub enum InitramfsError {
    /// A kernel module is missing or does not belong to the kernel.
    #[error(transparent)]
    Module(#[from] ModuleError),
    /// A file of the archive is longer than its format can say.
    #[error("{name} is longer than an initramfs can hold")]
    TooLong {
        /// The file.
        name: String,
    },
}

/// What the agent needs of the kernel. Each comes with what it depends on; what a kernel has built in is left out.
const MODULES: &[&str] = &[
    // The transport of every device, announced by ACPI.
    "virtio_mmio",
    // Drives.
    "virtio_blk",
    // The control stream.
    "vmw_vsock_virtio_transport",
    // Entropy at boot.
    "virtio_rng",
    // The function's writable root over the read-only one.
    "overlay",
    // The root image.
    "ext4",
];

/// Mount points and directories that the agent expects.
const DIRECTORIES: &[&str] = &["dev", "modules", "newroot", "proc", "run", "sys", "tmp"];

/// Builds an initramfs (cpio, newc): `agent` as `/init`, and `/modules/NN-name.ko`, unpacked, to be loaded in the order of
/// their numbers.
///
/// `modules` is the directory that holds a directory `release` (Debian: `lib/modules`), or that directory itself.
///
/// # Errors
/// A module is missing, damaged, or of another kernel; the error says which.
pub fn build(agent: &[u8], modules: &Path, release: &str) -> Result<Vec<u8>, InitramfsError> {
    let modules = modules::collect(modules, release, MODULES)?;
    let mut archive = Archive::default();
    DIRECTORIES.iter().for_each(|name| archive.directory(name));
    // Without it the kernel cannot give /init a standard output.
    archive.console("dev/console");
    add(&mut archive, "init", 0o755, agent)?;
    for (number, module) in modules.iter().enumerate() {
        add(&mut archive, &format!("modules/{number:02}-{}.ko", module.name), 0o644, &module.bytes)?;
    }
    Ok(archive.finish())
}

fn add(archive: &mut Archive, name: &str, mode: u32, content: &[u8]) -> Result<(), InitramfsError> {
    archive.file(name, mode, content).ok_or_else(|| InitramfsError::TooLong { name: name.into() })
}
