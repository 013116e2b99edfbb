//! The guest's stress root: Debian's stress-ng with its libraries, and busybox.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{debian, stamp, userland};
use crate::image;
use crate::workspace::{Workspace, make_empty_dir, rename};

/// The program and every library that it and its libraries are linked with.
const PACKAGES: &str = "stress-ng libapparmor1 libbsd0 libmd0 libegl1 libglvnd0 libgles2 libgbm1 libdrm2 \
    libwayland-server0 libexpat1 libffi8 libipsec-mb1 libjpeg62-turbo libjudydebian1 libkmod2 libzstd1 liblzma5 libssl3 \
    libsctp1 libxxhash0 zlib1g libcrypt1 libc6 libgcc-s1 busybox-static";

/// Goes into the stamp: raise it when the steps below change.
const RECIPE: &str = "recipe 1";

/// Makes the root image unless it is there, and returns its path.
pub fn prepare(workspace: &Workspace) -> Result<PathBuf> {
    let image = workspace.guest("stress-root.ext4");
    let names: Vec<String> = PACKAGES.split_whitespace().map(str::to_owned).collect();
    match debian::available(&names) {
        Ok(versions) => {
            let inputs = [versions.as_str(), RECIPE].join("\n");
            stamp::once(workspace, "stress", &inputs, &image, "Making the guest's stress root", || {
                make(workspace, &names, &image)
            })?;
        }
        // An image from an earlier run serves a machine whose package lists are gone.
        Err(_) if image.exists() => {}
        Err(error) => return Err(error),
    }
    Ok(image)
}

fn make(workspace: &Workspace, names: &[String], image: &Path) -> Result<()> {
    let debs = debian::download(names, &workspace.guest("downloads/stress"))?;
    let root = workspace.guest("stress-root.new");
    make_empty_dir(&root)?;
    debian::unpack(&debs, &root)?;
    userland::lay_out(&root)?;
    userland::trim(&root)?;
    let done = workspace.guest("stress-root");
    make_empty_dir(&done)?;
    rename(&root, &done)?;
    image::of_directory(&done, image)
}
