//! What the guests' roots have in common beside their packages.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::process;
use crate::workspace::{make_dir, write};

/// Directories a guest mounts things on or a function expects.
const DIRS: [&str; 12] =
    ["dev", "proc", "sys", "tmp", "run", "root", "mnt", "bin", "etc", "var/tmp", "var/task", "opt/function"];

/// What installation scripts and base packages would have made.
pub fn lay_out(root: &Path) -> Result<()> {
    for dir in DIRS {
        make_dir(&root.join(dir))?;
    }
    for dir in ["tmp", "var/tmp"] {
        let open = std::fs::Permissions::from_mode(0o1777);
        std::fs::set_permissions(root.join(dir), open)
            .with_context(|| format!("Cannot open /{dir} to all"))?;
    }
    write(
        &root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    )?;
    write(&root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")?;
    write(&root.join("etc/hosts"), "127.0.0.1 localhost\n")?;
    link_applets(root)
}

/// Gives the root a shell and the usual small programs.
fn link_applets(root: &Path) -> Result<()> {
    let applets = process::read(Command::new(root.join("bin/busybox")).arg("--list"))?;
    for applet in applets.lines() {
        let link = root.join("bin").join(applet);
        if link.symlink_metadata().is_err() {
            symlink("busybox", &link).with_context(|| format!("Cannot link {}", link.display()))?;
        }
    }
    Ok(())
}

/// Drops what no function reads.
pub fn trim(root: &Path) -> Result<()> {
    for dir in ["doc", "man", "locale", "lintian", "bug", "doc-base", "pixmaps", "applications", "menu"] {
        let dir = root.join("usr/share").join(dir);
        if dir.exists() {
            std::fs::remove_dir_all(&dir).with_context(|| format!("Cannot remove {}", dir.display()))?;
        }
    }
    Ok(())
}
