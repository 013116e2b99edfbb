//! The guest kernel: Debian's cloud kernel, unpacked and never installed. The emulated host boots it too.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::debian::{self, Apt};
use super::stamp;
use crate::process::{self, command};
use crate::workspace::{Workspace, make_empty_dir, replace_dir};

/// Names the newest 6.12 of Debian 12: the patch level moves with every security update.
const META_PACKAGE: &str = "linux-image-6.12-cloud-amd64";

/// An unpacked kernel.
pub struct Kernel {
    pub image: PathBuf,
    pub release: String,
    pub modules: PathBuf,
}

/// Unpacks the newest kernel that apt knows, unless it is there.
pub fn prepare(workspace: &Workspace) -> Result<Kernel> {
    let tree = workspace.guest("kernel");
    match newest() {
        Ok((name, version)) => {
            stamp::once(workspace, "kernel", &version, &tree, &format!("Unpacking {name}"), || {
                unpack(workspace, &name, &tree)
            })?;
        }
        // A kernel from an earlier run serves a machine whose package lists are gone.
        Err(_) if tree.exists() => {}
        Err(error) => return Err(error),
    }
    kernel_in(&tree)
}

/// The name of the real package, and what apt would download for it.
fn newest() -> Result<(String, String)> {
    let apt = Apt::of_host();
    let name = apt.real_package(META_PACKAGE)?;
    let version = apt.available(std::slice::from_ref(&name))?;
    Ok((name, version))
}

fn unpack(workspace: &Workspace, name: &str, tree: &Path) -> Result<()> {
    let debs = Apt::of_host().download(&[name.to_owned()], &workspace.guest("downloads/kernel"))?;
    let fresh = workspace.guest("kernel.new");
    make_empty_dir(&fresh)?;
    debian::unpack(&debs, &fresh)?;
    let release = kernel_in(&fresh)?.release;
    // The package leaves this to its installation scripts, which are not run.
    process::quiet(command("depmod").arg("-b").arg(&fresh).arg(&release))?;
    replace_dir(&fresh, tree)
}

/// The one kernel of an unpacked tree.
fn kernel_in(tree: &Path) -> Result<Kernel> {
    let boot = tree.join("boot");
    let files = std::fs::read_dir(&boot).with_context(|| format!("Cannot read {}", boot.display()))?;
    let release = files
        .flatten()
        .find_map(|entry| entry.file_name().to_string_lossy().strip_prefix("vmlinuz-").map(str::to_owned))
        .with_context(|| format!("No kernel in {}", boot.display()))?;
    let modules = tree.join("lib/modules").join(&release);
    Ok(Kernel { image: boot.join(format!("vmlinuz-{release}")), release, modules })
}
