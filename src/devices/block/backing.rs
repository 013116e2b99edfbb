//! What a drive is backed by.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::devices::error::DeviceError;
use crate::devices::{DriveBacking, DriveSetup};

use super::overlay::{self, Overlay};

/// The file or files behind a drive.
#[derive(Debug)]
pub(super) enum Backing {
    /// One file that every clone reads.
    ReadOnly(File),
    /// A file that every clone reads, and this clone's own changes.
    CopyOnWrite(Overlay),
}

/// Length of the drive's file, bytes.
pub(super) fn len(setup: &DriveSetup) -> Result<u64, DeviceError> {
    let (DriveBacking::ReadOnly(base) | DriveBacking::CopyOnWrite { base, .. }) = &setup.backing;
    // By fstat(2): where nothing can be opened any more statx(2) is not allowed either.
    let status = rustix::fs::fstat(base);
    let status = status.map_err(|e| DeviceError::Drive { id: setup.id.clone(), source: e.into() })?;
    Ok(u64::try_from(status.st_size).unwrap_or(0))
}

impl Backing {
    /// Drive `id` of `len` bytes on `files`.
    ///
    /// # Errors
    /// A writable drive is too long for the bitmap of its changes.
    pub(super) fn new(id: &str, files: DriveBacking, len: u64) -> Result<Self, DeviceError> {
        match files {
            DriveBacking::ReadOnly(base) => Ok(Backing::ReadOnly(base)),
            DriveBacking::CopyOnWrite { base, delta } => {
                let overlay = Overlay::new(base, delta, len).ok_or_else(|| DeviceError::DriveLength {
                    id: id.to_owned(),
                    bytes: len,
                    max: overlay::LEN_MAX,
                })?;
                Ok(Backing::CopyOnWrite(overlay))
            }
        }
    }

    pub(super) fn is_read_only(&self) -> bool {
        matches!(self, Backing::ReadOnly(_))
    }

    /// Fills `to` from `offset` on.
    ///
    /// # Errors
    /// The file failed, or has become shorter.
    pub(super) fn read_at(&self, to: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Backing::ReadOnly(base) => base.read_exact_at(to, offset),
            Backing::CopyOnWrite(overlay) => overlay.read_at(to, offset),
        }
    }
}
