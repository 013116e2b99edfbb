//! The devices of a machine: a file or folder for each, the virtio transport they share, and the one table.
//!
//! A device knows guest memory, the bus, and its own section of the `state` file; it knows neither KVM nor the other
//! devices. vCPU threads reach its registers through the bus; the main thread serves its queues. Both take its lock.
//!
//! Boot and restore use the same constructors: a device that boots starts from its cold state. To add a device, write its
//! file, its section, and its line in [`table`](DeviceTable) and in [`states`](DeviceStates).

mod block;
mod error;
mod port;
mod power;
mod rng;
mod serial;
mod states;
mod table;
mod virtio;
mod vmgenid;
mod vsock;

use std::fmt;
use std::fs::File;

use crate::memory::OnStart;

pub use block::BlockRate;
pub use error::{DeviceError, StateFault};
pub use serial::ConsoleSink;
pub use states::DeviceStates;
pub use table::{DeviceTable, Doorbell, EventToken, VirtioWindow};
pub use vmgenid::GENERATION_LEN;

/// What the machine gives its devices.
pub struct DeviceSetup {
    /// Block devices in the order of their slots.
    pub drives: Vec<DriveSetup>,
    /// The guest's context id, for a machine with a socket device.
    pub vsock_cid: Option<u64>,
    /// Whether there is an entropy device.
    pub rng: bool,
    /// What the VM Generation ID shows, for a machine that has one.
    pub generation: Option<[u8; GENERATION_LEN]>,
    /// Whether there is a small guests' port device.
    pub port: bool,
    /// Where the serial port's output goes. The guest does not wait for it.
    pub console: ConsoleSink,
    /// What a thread of a device does first: it confines itself.
    pub thread_start: OnStart,
}

impl fmt::Debug for DeviceSetup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DeviceSetup { drives, vsock_cid, rng, generation, port, console, thread_start: _ } = self;
        f.debug_struct("DeviceSetup")
            .field("drives", drives)
            .field("vsock_cid", vsock_cid)
            .field("rng", rng)
            .field("generation", generation)
            .field("port", port)
            .field("console", console)
            .finish_non_exhaustive()
    }
}

/// One drive.
#[derive(Debug)]
pub struct DriveSetup {
    /// Its symbolic id; the guest can read the first 20 bytes of it.
    pub id: String,
    /// The files behind it.
    pub backing: DriveBacking,
}

/// The files behind a drive.
#[derive(Debug)]
pub enum DriveBacking {
    /// A file that is only read.
    ReadOnly(File),
    /// A file that is only read, and one for what the guest writes.
    CopyOnWrite {
        /// Never written.
        base: File,
        /// Empty, private to this machine, and gone with it.
        delta: File,
    },
}

impl DriveBacking {
    fn is_read_only(&self) -> bool {
        matches!(self, DriveBacking::ReadOnly(_))
    }
}

/// The byte stream between the host and the guest's agent, or a small guest. Neither call ever blocks.
pub trait ControlStream {
    /// Gives the guest as many bytes as it has room for, and tells how many. More room comes with a device event.
    fn write(&mut self, bytes: &[u8]) -> usize;
    /// Appends what the guest has sent to `to`, and tells how many bytes that was. It is fastest with an empty vector.
    fn read_into(&mut self, to: &mut Vec<u8>) -> usize;
    /// Whether the guest's end is there and open both ways. What came before it closed can still be read.
    fn is_open(&self) -> bool;
}
