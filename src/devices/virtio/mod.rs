//! What every virtio device shares: rings, the MMIO transport, and the saved form of both.
//!
//! Everything a driver hands over is hostile. What it does wrong is a [`DriverFault`]: the transport then stops the
//! device (DEVICE_NEEDS_RESET, virtio 1.2, 2.1.2) until the driver resets it; the machine runs on.

mod chain;
mod mmio;
mod queue;
mod status;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Instant;

use snapshot_format::sections::VirtioState;
use snapshot_format::state::Section;
use virtio_bindings::{virtio_config, virtio_ring};

use crate::memory::{GuestMemory, GuestMemoryError};

use super::error::DeviceError;

pub(super) use chain::{Chain, ChainReader, ChainWriter};
pub(super) use mmio::{Parts, VirtioMmio};
pub(super) use queue::Virtqueue;

/// Features of the transport itself, offered by every device.
pub(super) const TRANSPORT_FEATURES: u64 = 1 << virtio_config::VIRTIO_F_VERSION_1
    | 1 << virtio_config::VIRTIO_F_RING_RESET
    | 1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX;

/// One queue of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct QueueSpec {
    /// Most entries, a power of two.
    pub size: u16,
    /// Whether the device ever acts on the driver's notifications. A queue that it does not listen to gets no doorbell,
    /// which saves a restore an eventfd and its registration.
    pub doorbell: bool,
}

/// Whether a device has served all there was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) enum Work {
    /// Its queues are empty, or wait for the other side.
    Done,
    /// It stopped to let others have their turn; more is waiting.
    More,
}

/// What the transport asks of a device. Its methods run under the device's lock.
pub(super) trait VirtioDevice: fmt::Debug + Send + Sized + 'static {
    /// What the machine gives it.
    type Setup;
    /// Its section of the `state` file.
    type State: Section;

    /// virtio device type (virtio 1.2, chapter 5).
    const TYPE: u32;
    /// Its queues.
    const QUEUES: &'static [QueueSpec];

    /// The symbolic id that binds a saved state to this device.
    fn id(setup: &Self::Setup) -> String;
    /// The state in which a guest that boots finds it.
    fn cold(setup: &Self::Setup, transport: VirtioState) -> Result<Self::State, DeviceError>;
    /// The device in the given state, and the transport's part of that.
    fn new(setup: Self::Setup, state: Self::State) -> Result<(Self, VirtioState), DeviceError>;
    /// The device's state, with the transport's part filled in.
    fn save(&self, transport: VirtioState) -> Result<Self::State, DeviceError>;

    /// Feature bits beyond [`TRANSPORT_FEATURES`].
    fn features(&self) -> u64;
    /// The configuration space.
    fn config(&self) -> &[u8];
    /// Serves every queue once, within bounds.
    fn serve(&mut self, queues: &mut [Virtqueue], memory: &GuestMemory) -> Result<Work, DriverFault>;
    /// When the device is to serve its queues though nobody notifies it.
    fn due(&self) -> Option<Instant> {
        None
    }
    /// Forgets what belongs to the driver, which starts anew.
    fn reset(&mut self);
}

/// The transport of a device that nobody has touched.
pub(super) fn cold_transport<D: VirtioDevice>(id: String) -> VirtioState {
    VirtioState {
        id,
        device_type: D::TYPE,
        queues: D::QUEUES.iter().map(|spec| queue::cold_state(spec.size)).collect(),
        ..VirtioState::default()
    }
}

/// What a driver did that no correct driver does.
#[derive(Debug, thiserror::Error)]
pub(super) enum DriverFault {
    /// The ring's indices or addresses are wrong.
    #[error("The driver's ring is unusable")]
    Ring(#[from] virtio_queue::Error),
    /// A chain that ends nowhere: a loop, an index or an indirect table out of range.
    #[error("A descriptor chain loops or leaves its table")]
    Endless,
    /// A descriptor without bytes.
    #[error("A descriptor is empty")]
    Empty,
    /// A buffer outside of RAM.
    #[error("A buffer of {len} bytes at {address:#x} is not in RAM")]
    OutOfRange {
        /// Guest physical address.
        address: u64,
        /// Its length.
        len: usize,
    },
    /// A readable buffer behind a writable one, or one that the queue's direction forbids.
    #[error("A descriptor has the wrong direction")]
    Direction,
    /// A request without room for its header, its data or its answer.
    #[error("A request is too short")]
    TooShort,
    /// A queue's size, address or alignment cannot be used.
    #[error("A queue was set up with values that cannot be used")]
    Setup,
    /// Memory that was in range when the chain was taken could not be reached.
    #[error("Guest memory could not be accessed")]
    Memory(#[from] GuestMemoryError),
}
