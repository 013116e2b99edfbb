//! The emulated host's initramfs: busybox, the modules that must be there before any disk, and the first scripts.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};

use crate::process::{self, command};
use crate::setup::Guest;
use crate::workspace::{Workspace, make_dir, make_empty_dir, read, rename, write};

/// Drivers of the host: KVM, its disks, and what tests of root images and networks use. ext4 is built in.
const MODULES: [&str; 7] = ["kvm-amd", "virtio_blk", "overlay", "loop", "tun", "dummy", "vsock"];

const INIT: &str = include_str!("../../rig/init");
const START: &str = include_str!("../../rig/start");

/// Makes the initramfs, and returns its path.
pub fn prepare(workspace: &Workspace, guest: &Guest) -> Result<PathBuf> {
    let tree = workspace.target("rig/initramfs");
    let image = workspace.target("rig/initramfs.cpio");
    make_empty_dir(&tree)?;
    copy_busybox(&guest.busybox, &tree)?;
    for (name, script) in [("init", INIT), ("start", START)] {
        let path = tree.join(name);
        write(&path, script)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    }
    copy_modules(guest, &tree.join("modules"))?;
    pack(&tree, &image)?;
    Ok(image)
}

/// The guest's: a host may have one that needs libraries.
fn copy_busybox(busybox: &Path, tree: &Path) -> Result<()> {
    make_dir(&tree.join("bin"))?;
    std::fs::copy(busybox, tree.join("bin/busybox"))
        .with_context(|| format!("Cannot copy {}", busybox.display()))?;
    std::os::unix::fs::symlink("busybox", tree.join("bin/sh")).context("Cannot link the shell")
}

fn copy_modules(guest: &Guest, into: &Path) -> Result<()> {
    make_dir(into)?;
    let order = load_order(&read(&guest.modules.join("modules.dep"))?, &MODULES)?;
    for (number, module) in order.iter().enumerate() {
        let name = module.rsplit('/').next().unwrap_or(module);
        let to = into.join(format!("{number:02}-{}.ko", stem(name)));
        decompress(&guest.modules.join(module), &to)?;
    }
    Ok(())
}

fn decompress(module: &Path, to: &Path) -> Result<()> {
    let program = match module.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => "cat",
    };
    let file = File::create(to).with_context(|| format!("Cannot create {}", to.display()))?;
    let mut unpack = command(program);
    if program != "cat" {
        unpack.arg("-dc");
    }
    process::run(unpack.arg(module).stdout(Stdio::from(file)))
}

/// The modules and what they depend on, each after its dependencies.
fn load_order(dependencies: &str, wanted: &[&str]) -> Result<Vec<String>> {
    let mut order = Vec::new();
    let mut seen = BTreeSet::new();
    for name in wanted {
        let line =
            dependencies.lines().find(|line| stem(line.split(':').next().unwrap_or_default()) == *name);
        let (module, needs) = line
            .and_then(|line| line.split_once(':'))
            .with_context(|| format!("The kernel package has no module {name}"))?;
        // modules.dep names the nearest dependency first and the deepest last.
        for path in needs.split_whitespace().rev().chain([module]) {
            if seen.insert(path.to_owned()) {
                order.push(path.to_owned());
            }
        }
    }
    Ok(order)
}

/// `kvm-amd` of `kernel/arch/x86/kvm/kvm-amd.ko.xz`.
fn stem(path: &str) -> &str {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.split(".ko").next().unwrap_or(name)
}

fn pack(tree: &Path, image: &Path) -> Result<()> {
    let fresh = image.with_extension("new");
    let file = File::create(&fresh).with_context(|| format!("Cannot create {}", fresh.display()))?;
    let mut find = command("find").arg(".").current_dir(tree).stdout(Stdio::piped()).spawn()?;
    let names = find.stdout.take().context("find has no output")?;
    let mut cpio = command("cpio");
    cpio.args(["--create", "--format=newc", "--quiet", "--owner=0:0"]).current_dir(tree);
    process::run(cpio.stdin(Stdio::from(names)).stdout(Stdio::from(file)))?;
    ensure!(find.wait()?.success(), "find failed in {}", tree.display());
    rename(&fresh, image)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/arch/x86/kvm/kvm.ko.xz: kernel/virt/lib/irqbypass.ko.xz\n\
        kernel/arch/x86/kvm/kvm-amd.ko.xz: kernel/arch/x86/kvm/kvm.ko.xz kernel/virt/lib/irqbypass.ko.xz\n\
        kernel/virt/lib/irqbypass.ko.xz:\n";

    #[test]
    fn a_module_comes_after_what_it_needs_and_once() {
        let order = load_order(DEP, &["kvm", "kvm-amd"]).unwrap();
        let names: Vec<&str> = order.iter().map(|path| stem(path)).collect();
        assert_eq!(names, ["irqbypass", "kvm", "kvm-amd"]);
    }

    #[test]
    fn a_missing_module_is_named() {
        assert!(load_order(DEP, &["tun"]).unwrap_err().to_string().contains("tun"));
    }
}
