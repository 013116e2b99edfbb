//! The emulator of the rig: QEMU 10, Debian's backport, unpacked and never installed.
//!
//! Debian 12's own QEMU 7.2, which brings the libraries, takes longer (docs/rig.md). It serves where the mirror has no backports.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::debian::{self, Apt};
use super::stamp;
use crate::process::{self, command};
use crate::progress::say;
use crate::workspace::{Workspace, make_empty_dir, replace_dir};

const PROGRAM: &str = "qemu-system-x86_64";

/// The program, its option roms and its firmware.
const PACKAGES: [&str; 3] = ["qemu-system-x86", "qemu-system-data", "seabios"];

/// An emulator that can be started.
#[derive(Debug, Clone)]
pub struct Emulator {
    pub program: PathBuf,
    /// Where it finds firmware; empty for the places it was built for.
    pub firmware: Vec<PathBuf>,
    /// As it calls itself, `10.0.2`.
    pub version: String,
}

/// The newest emulator there is.
pub fn prepare(workspace: &Workspace) -> Result<Emulator> {
    let tree = workspace.guest("qemu");
    match unpack_newest(workspace, &tree) {
        Ok(()) => emulator_in(&tree),
        // One from an earlier run serves a machine without a network.
        Err(_) if tree.exists() => emulator_in(&tree),
        Err(error) => {
            say(&format!(
                "Debian 12's own QEMU emulates the host, which takes longer: {}",
                first_line(&error)
            ));
            let program = process::find(PROGRAM).with_context(|| format!("No {PROGRAM} in the PATH"))?;
            Ok(Emulator { version: version_of(&program)?, program, firmware: Vec::new() })
        }
    }
}

fn unpack_newest(workspace: &Workspace, tree: &Path) -> Result<()> {
    let apt = Apt::of_backports(&workspace.guest("backports"))?;
    let names = PACKAGES.map(str::to_owned);
    let versions = apt.available(&names)?;
    stamp::once(workspace, "qemu", &versions, tree, "Unpacking the emulator", || {
        let debs = apt.download(&names, &workspace.guest("downloads/qemu"))?;
        let fresh = workspace.guest("qemu.new");
        make_empty_dir(&fresh)?;
        debian::unpack(&debs, &fresh)?;
        // A library may be missing, and what does not start here must not take the place of one that does.
        emulator_in(&fresh)?;
        replace_dir(&fresh, tree)
    })
}

fn emulator_in(tree: &Path) -> Result<Emulator> {
    let program = tree.join("usr/bin").join(PROGRAM);
    let firmware = ["usr/share/qemu", "usr/share/seabios"].map(|dir| tree.join(dir)).to_vec();
    Ok(Emulator { version: version_of(&program)?, program, firmware })
}

fn version_of(program: &Path) -> Result<String> {
    let told = process::read(command(&program.to_string_lossy()).arg("--version"))?;
    let version = told.split_whitespace().skip_while(|word| *word != "version").nth(1);
    version.map(str::to_owned).with_context(|| format!("{} does not tell its version", program.display()))
}

fn first_line(error: &anyhow::Error) -> String {
    format!("{error:#}").lines().next().unwrap_or_default().to_owned()
}
