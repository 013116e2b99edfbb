//! The guest's python root: Debian's interpreter with its libraries, busybox, and the wheels of the tests.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::root::Root;
use super::{debian, userland};
use crate::process::{self, command};
use crate::progress;
use crate::workspace::{Workspace, make_dir, make_empty_dir, write};

/// The interpreter, its standard library, and every library they load.
const PACKAGES: &str = "python3-minimal python3.11-minimal libpython3.11-minimal libpython3.11-stdlib \
    libc6 libgcc-s1 libstdc++6 zlib1g libexpat1 libssl3 libffi8 libbz2-1.0 liblzma5 libsqlite3-0 libuuid1 \
    libncursesw6 libtinfo6 libreadline8 libcrypt1 libdb5.3 libnsl2 libtirpc3 libgssapi-krb5-2 libkrb5-3 \
    libk5crypto3 libkrb5support0 libkeyutils1 libcom-err2 media-types busybox-static";

/// Goes into the stamp: raise it when the steps below change.
const RECIPE: &str = "recipe 1";

const REQUIREMENTS: &str = include_str!("../../python-requirements.txt");

/// Where Debian's python looks for what its administrator installed.
const SITE: &str = "usr/local/lib/python3.11/dist-packages";

/// Makes the root image unless it is there, and returns its path and that of the busybox in it.
pub fn prepare(workspace: &Workspace) -> Result<(PathBuf, PathBuf)> {
    let recipe = [REQUIREMENTS, RECIPE].join("\n");
    let image = Root { name: "python", packages: PACKAGES, recipe, complete }.prepare(workspace)?;
    Ok((image, workspace.guest("python-root/bin/busybox")))
}

fn complete(workspace: &Workspace, root: &Path) -> Result<()> {
    unpack_wheels(&download_wheels(workspace)?, root)?;
    userland::trim(root)?;
    compile(root)
}

/// pip checks the digests in the requirements before it keeps a file.
fn download_wheels(workspace: &Workspace) -> Result<Vec<PathBuf>> {
    let dir = workspace.guest("downloads/wheels");
    let list = workspace.guest("downloads/python-requirements.txt");
    write(&list, REQUIREMENTS)?;
    let python = debian::python_with_pip()?;
    process::retry("pip download", || {
        make_empty_dir(&dir)?;
        let mut pip = command(python);
        pip.args([
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--require-hashes",
            "--no-deps",
        ])
        .args(["--only-binary=:all:", "--python-version", "3.11", "--implementation", "cp"])
        .args(["--platform", "manylinux2014_x86_64", "--dest"])
        .arg(&dir)
        .arg("--requirement")
        .arg(&list);
        process::quiet(&mut pip)
    })?;
    let files = std::fs::read_dir(&dir).with_context(|| format!("Cannot read {}", dir.display()))?;
    Ok(files.flatten().map(|entry| entry.path()).collect())
}

fn unpack_wheels(wheels: &[PathBuf], root: &Path) -> Result<()> {
    let site = root.join(SITE);
    make_dir(&site)?;
    for wheel in wheels {
        process::quiet(
            command(debian::python_with_pip()?).args(["-m", "zipfile", "-e"]).arg(wheel).arg(&site),
        )?;
    }
    Ok(())
}

/// Compiles the standard library and the wheels, which packages do when they are installed.
///
/// A guest's root is read-only and its overlay is new with every boot: without this every cold start would compile again.
/// The guest's own interpreter does it, run by its own loader, so the files fit it whatever python the host has.
fn compile(root: &Path) -> Result<()> {
    progress::say("    compiling the standard library");
    let libraries = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"].map(|dir| root.join(dir));
    let mut python = Command::new(root.join("lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"));
    python
        .arg("--library-path")
        .arg(std::env::join_paths(&libraries)?)
        .arg(root.join("usr/bin/python3.11"))
        .args(["-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash", "-s"])
        .arg(root)
        .args(["-p", "/"])
        .arg(root.join("usr/lib/python3.11"))
        .arg(root.join(SITE))
        .env("PYTHONHOME", root.join("usr"))
        .env_remove("PYTHONPATH");
    process::quiet(&mut python)
}
