//! What a machine is built from, opened ahead: once its process is jailed, nothing can be opened any more.

use std::fs::File;
use std::io;

use crate::bundle::Bundle;
use crate::devices::{DriveBacking, DriveSetup};
use crate::jail::{List, confine};
use crate::kvm::System;

use super::start::StartError;

/// The host's KVM, and how threads that run a guest on it are confined.
#[derive(Debug)]
pub struct Host {
    pub(super) system: System,
    confinement: Option<List>,
}

impl Host {
    /// Opens `/dev/kvm`. Each vCPU's thread confines itself to `confinement` before it runs the guest.
    ///
    /// # Errors
    /// See [`SystemError`](crate::kvm::SystemError).
    pub fn open(confinement: Option<List>) -> Result<Self, StartError> {
        Ok(Host { system: System::open()?, confinement })
    }

    /// What a vCPU's thread does first.
    pub(super) fn confine_vcpu(&self) -> impl FnOnce() -> Result<(), String> + Send + 'static {
        let list = self.confinement;
        move || list.map_or(Ok(()), |list| confine(list).map_err(|e| sentence(&e)))
    }
}

fn sentence(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

/// Everything a clone needs beside the files of its bundle, which are open.
#[derive(Debug)]
pub struct Opened {
    pub(super) host: Host,
    pub(super) drives: Vec<DriveSetup>,
    /// /proc/self/pagemap, which tells of huge pages.
    pub(super) pagemap: Option<File>,
}

impl Opened {
    /// Opens it. Writable drives get a private copy that nobody else can see.
    ///
    /// # Errors
    /// KVM is not usable, or there is no room for what a clone writes.
    pub fn new(bundle: &Bundle, confinement: Option<List>) -> Result<Self, StartError> {
        let drives = bundle.manifest().drives.iter().map(|drive| {
            let base = bundle.drive(&drive.id)?;
            let backing = if drive.read_only {
                DriveBacking::ReadOnly(base)
            } else {
                let delta =
                    private_file().map_err(|source| StartError::Delta { id: drive.id.clone(), source })?;
                DriveBacking::CopyOnWrite { base, delta }
            };
            Ok(DriveSetup { id: drive.id.clone(), backing })
        });
        let drives = drives.collect::<Result<_, StartError>>()?;
        let pagemap = File::open("/proc/self/pagemap").ok();
        Ok(Opened { host: Host::open(confinement)?, drives, pagemap })
    }
}

/// A file without a name: it is gone with the machine, however that ends.
///
/// # Errors
/// The folder for temporary files cannot hold one.
pub fn private_file() -> io::Result<File> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    Ok(rustix::fs::open(std::env::temp_dir(), flags, Mode::RUSR | Mode::WUSR)?.into())
}
