//! The guest's stress root: Debian's stress-ng with its libraries, and busybox.

use std::path::PathBuf;

use anyhow::Result;

use super::root::Root;
use super::userland;
use crate::workspace::Workspace;

/// The program and every library that it and its libraries are linked with.
const PACKAGES: &str = "stress-ng libapparmor1 libbsd0 libmd0 libegl1 libglvnd0 libgles2 libgbm1 libdrm2 \
    libwayland-server0 libexpat1 libffi8 libipsec-mb1 libjpeg62-turbo libjudydebian1 libkmod2 libzstd1 liblzma5 libssl3 \
    libsctp1 libxxhash0 zlib1g libcrypt1 libc6 libgcc-s1 busybox-static";

/// Goes into the stamp: raise it when the steps below change.
const RECIPE: &str = "recipe 1";

/// Makes the root image unless it is there, and returns its path.
pub fn prepare(workspace: &Workspace) -> Result<PathBuf> {
    let complete = |_: &Workspace, root: &_| userland::trim(root);
    Root { name: "stress", packages: PACKAGES, recipe: RECIPE.to_owned(), complete }.prepare(workspace)
}
