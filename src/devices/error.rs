//! Why a device cannot be built, served or saved.

use std::io;

use snapshot_format::state::{EncodeError, SectionId};

use crate::bus::BusError;

/// Why the devices cannot be built, served or saved. What a guest's driver does wrong is none of these: that stops the
/// one device, and the guest is told.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The process is out of descriptors.
    #[error("Cannot make the devices' event descriptors; raise the limit on open files")]
    Events(#[source] io::Error),
    /// No thread for a console that may block.
    #[error("Cannot start the console's thread")]
    Console(#[source] io::Error),
    /// An eventfd could not be read or written.
    #[error("Cannot signal between a device and the guest")]
    Signal(#[source] io::Error),
    /// Two devices share an address.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// More virtio devices than interrupt lines.
    #[error("The machine has more than {max} virtio devices; give it fewer drives")]
    TooMany {
        /// The limit.
        max: u32,
    },
    /// A drive's file cannot be used.
    #[error("Cannot use the file behind drive {id}")]
    Drive {
        /// The drive.
        id: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A writable drive that is too long.
    #[error("Drive {id} holds {bytes} bytes, a writable one may hold {max}")]
    DriveLength {
        /// The drive.
        id: String,
        /// Its length.
        bytes: u64,
        /// The limit.
        max: u64,
    },
    /// No writable drive has this id.
    #[error("The machine has no writable drive {id}")]
    NoDrive {
        /// The id.
        id: String,
    },
    /// The content of a drive could not be written.
    #[error("Cannot write the content of drive {id}")]
    WriteDrive {
        /// The drive.
        id: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The saved state lacks a device that this machine has.
    #[error("The saved state has no {section} {instance}, which this machine needs")]
    Missing {
        /// The kind of device.
        section: SectionId,
        /// Which one.
        instance: u32,
    },
    /// The saved state has a device that this machine lacks.
    #[error("The saved state has {section} {instance}, which this machine has no place for")]
    Leftover {
        /// The kind of device.
        section: SectionId,
        /// Which one.
        instance: u32,
    },
    /// The saved state of a device is one that it cannot be in.
    #[error("The saved state of device {id} cannot be used; bake the bundle again")]
    State {
        /// The device.
        id: String,
        /// Why.
        #[source]
        source: StateFault,
    },
    /// Bytes are on their way that a saved state has no room for.
    #[error(
        "The control stream holds {bytes} bytes that nobody has read; read them before the guest is saved"
    )]
    Unread {
        /// How many.
        bytes: usize,
    },
    /// Guest memory ends before the VM Generation ID.
    #[error("The guest's memory ends before the place of the VM Generation ID")]
    NoGeneration,
    /// A section could not be encoded.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

impl DeviceError {
    /// Whether a bundle's state is to blame, rather than the host.
    pub fn is_bad_state(&self) -> bool {
        matches!(self, DeviceError::Missing { .. } | DeviceError::Leftover { .. } | DeviceError::State { .. })
    }
}

/// What is wrong with a device's saved state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateFault {
    /// It belongs to another device.
    #[error("It belongs to a device {found} of another kind or place")]
    Identity {
        /// The id in it.
        found: String,
    },
    /// The status or interrupt register has bits that no device sets.
    #[error("Its status register has a value that no device reaches")]
    Status,
    /// The driver negotiated what this release does not offer.
    #[error("The driver chose features {chosen:#x}, this release offers {offered:#x}")]
    Features {
        /// By this release.
        offered: u64,
        /// By the driver.
        chosen: u64,
    },
    /// A queue has values that no driver can set, or lies outside of RAM.
    #[error("A queue has values that no driver can set, or lies outside of RAM")]
    Queue,
    /// A drive's file is not the one the guest knows.
    #[error("The guest knows a drive of {saved} sectors (read-only: {read_only}), the file has {found}")]
    Drive {
        /// Sectors in the state.
        saved: u64,
        /// Whether the guest took it for read-only.
        read_only: bool,
        /// Sectors in the file.
        found: u64,
    },
    /// Another context id than the machine's.
    #[error("The guest knows context id {saved}, the machine has {found}")]
    Cid {
        /// In the state.
        saved: u64,
        /// Of the machine.
        found: u64,
    },
    /// Connections that cannot be taken up or reset.
    #[error("Its connections are too many, or have counters that do not fit together")]
    Connections,
    /// More buffered bytes than the device holds.
    #[error("It holds more bytes than the device has room for")]
    Buffer,
}

impl StateFault {
    /// The fault as that of device `id`.
    pub(super) fn of(self, id: &str) -> DeviceError {
        DeviceError::State { id: id.to_owned(), source: self }
    }
}
