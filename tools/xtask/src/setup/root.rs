//! Root images of the tests' guests, made of Debian's packages.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::debian::{self, Apt};
use super::{stamp, userland};
use crate::image;
use crate::workspace::{Workspace, make_empty_dir, replace_dir};

/// A root image to be made.
pub struct Root {
    /// Names its files and its stamp.
    pub name: &'static str,
    /// Debian packages, separated by white space.
    pub packages: &'static str,
    /// What else the image depends on: a change makes it anew.
    pub recipe: String,
    /// What is added to the unpacked packages.
    pub complete: fn(&Workspace, &Path) -> Result<()>,
}

impl Root {
    /// Makes the image unless it is there, and returns its path.
    pub fn prepare(&self, workspace: &Workspace) -> Result<PathBuf> {
        let image = workspace.guest(&format!("{}-root.ext4", self.name));
        let packages: Vec<String> = self.packages.split_whitespace().map(str::to_owned).collect();
        match Apt::of_host().available(&packages) {
            Ok(versions) => {
                let inputs = format!("{versions}\n{}", self.recipe);
                let title = format!("Making the guest's {} root", self.name);
                stamp::once(workspace, self.name, &inputs, &image, &title, || {
                    self.make(workspace, &packages, &image)
                })?;
            }
            // An image from an earlier run serves a machine whose package lists are gone.
            Err(_) if image.exists() => {}
            Err(error) => return Err(error),
        }
        Ok(image)
    }

    fn make(&self, workspace: &Workspace, packages: &[String], image: &Path) -> Result<()> {
        let debs =
            Apt::of_host().download(packages, &workspace.guest(&format!("downloads/{}", self.name)))?;
        let root = workspace.guest(&format!("{}-root.new", self.name));
        make_empty_dir(&root)?;
        debian::unpack(&debs, &root)?;
        userland::lay_out(&root)?;
        (self.complete)(workspace, &root)?;
        let done = workspace.guest(&format!("{}-root", self.name));
        replace_dir(&root, &done)?;
        image::of_directory(&done, image)
    }
}
