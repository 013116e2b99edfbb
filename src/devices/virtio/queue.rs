//! One virtqueue: the ring on the `virtio-queue` crate, with every chain checked before a device sees it.

use snapshot_format::sections::QueueState;
use virtio_queue::{Queue, QueueOwnedT, QueueT};

use crate::devices::error::StateFault;
use crate::memory::{GuestAddress, GuestMemory};

use super::DriverFault;
use super::chain::{Chain, Segment};

/// Largest ring that is taken from a saved state. Today's devices offer at most 128 entries.
const SIZE_MAX: u16 = 1024;

/// One of the three addresses of a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Area {
    Descriptors,
    Driver,
    Device,
}

/// Which half of an address a register holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Half {
    Low,
    High,
}

/// A virtqueue, and the vector that chains are walked into.
#[derive(Debug)]
pub(in crate::devices) struct Virtqueue {
    queue: Queue,
    room: Vec<Segment>,
    /// Whether anything was completed since the driver was last told.
    completed: bool,
}

/// A queue that no driver has set up.
pub(super) fn cold_state(size: u16) -> QueueState {
    QueueState { max_size: size, size, ..QueueState::default() }
}

impl Virtqueue {
    /// A queue in the given state.
    ///
    /// # Errors
    /// No driver could have brought it there, or its rings are not in RAM.
    pub(super) fn new(state: QueueState, memory: &GuestMemory) -> Result<Self, StateFault> {
        let QueueState {
            max_size,
            size,
            ready,
            event_idx,
            next_avail,
            next_used,
            desc_table,
            avail_ring,
            used_ring,
        } = state;
        if max_size > SIZE_MAX {
            return Err(StateFault::Queue);
        }
        let state = virtio_queue::QueueState {
            max_size,
            next_avail,
            next_used,
            event_idx_enabled: event_idx,
            size,
            ready,
            desc_table,
            avail_ring,
            used_ring,
        };
        let queue = Queue::try_from(state).map_err(|_| StateFault::Queue)?;
        if ready && !queue.is_valid(memory) {
            return Err(StateFault::Queue);
        }
        Ok(Virtqueue { queue, room: Vec::new(), completed: false })
    }

    /// Its saved form.
    pub(super) fn state(&self) -> QueueState {
        // `room` is only a buffer; `completed` is false whenever the device's lock is free.
        let Virtqueue { queue, room: _, completed: _ } = self;
        let virtio_queue::QueueState {
            max_size,
            next_avail,
            next_used,
            event_idx_enabled,
            size,
            ready,
            desc_table,
            avail_ring,
            used_ring,
        } = queue.state();
        QueueState {
            max_size,
            size,
            ready,
            event_idx: event_idx_enabled,
            next_avail,
            next_used,
            desc_table,
            avail_ring,
            used_ring,
        }
    }

    pub(super) fn max_size(&self) -> u16 {
        self.queue.max_size()
    }

    pub(super) fn ready(&self) -> bool {
        self.queue.ready()
    }

    pub(super) fn event_idx(&self) -> bool {
        self.queue.event_idx_enabled()
    }

    pub(super) fn reset(&mut self) {
        self.queue.reset();
        self.completed = false;
    }

    pub(super) fn set_size(&mut self, size: u32) -> Result<(), DriverFault> {
        let size = u16::try_from(size).map_err(|_| DriverFault::Setup)?;
        Ok(self.queue.try_set_size(size)?)
    }

    /// Sets one half of one of the ring's addresses.
    pub(super) fn set_address(&mut self, area: Area, half: Half, value: u32) -> Result<(), DriverFault> {
        let old = match area {
            Area::Descriptors => self.queue.desc_table(),
            Area::Driver => self.queue.avail_ring(),
            Area::Device => self.queue.used_ring(),
        };
        let new = GuestAddress(match half {
            Half::Low => old & !u64::from(u32::MAX) | u64::from(value),
            Half::High => old & u64::from(u32::MAX) | u64::from(value) << 32,
        });
        match area {
            Area::Descriptors => self.queue.try_set_desc_table_address(new)?,
            Area::Driver => self.queue.try_set_avail_ring_address(new)?,
            Area::Device => self.queue.try_set_used_ring_address(new)?,
        }
        Ok(())
    }

    /// Starts or stops the queue.
    ///
    /// # Errors
    /// Its rings are not in RAM.
    pub(super) fn set_ready(
        &mut self,
        ready: bool,
        event_idx: bool,
        memory: &GuestMemory,
    ) -> Result<(), DriverFault> {
        self.queue.set_event_idx(event_idx);
        self.queue.set_ready(ready);
        if ready && !self.queue.is_valid(memory) {
            self.queue.set_ready(false);
            return Err(DriverFault::Setup);
        }
        Ok(())
    }

    /// The next request, if there is one. The driver is not asked to notify about the one after that.
    pub(in crate::devices) fn pop(&mut self, memory: &GuestMemory) -> Result<Option<Chain>, DriverFault> {
        if !self.queue.ready() {
            return Ok(None);
        }
        let Some(descriptors) = self.queue.iter(memory)?.next() else { return Ok(None) };
        let room = std::mem::take(&mut self.room);
        Chain::walk(descriptors, memory, self.queue.size(), room).map(Some)
    }

    /// The next request; when there is none, the driver's next one will come with a notification.
    pub(in crate::devices) fn pop_or_listen(
        &mut self,
        memory: &GuestMemory,
    ) -> Result<Option<Chain>, DriverFault> {
        if let Some(chain) = self.pop(memory)? {
            return Ok(Some(chain));
        }
        // A request that came just before notifications were switched on would never be announced.
        if self.queue.ready() && self.queue.enable_notification(memory)? {
            return self.pop(memory);
        }
        Ok(None)
    }

    /// Hands a request back with `written` bytes filled in.
    pub(in crate::devices) fn complete(
        &mut self,
        memory: &GuestMemory,
        chain: Chain,
        written: usize,
    ) -> Result<(), DriverFault> {
        let written = u32::try_from(written).unwrap_or(u32::MAX);
        self.queue.add_used(memory, chain.head(), written)?;
        self.room = chain.into_room();
        self.completed = true;
        Ok(())
    }

    /// Whether the driver wants an interrupt for what was completed since the last call.
    pub(super) fn take_interrupt(&mut self, memory: &GuestMemory) -> Result<bool, DriverFault> {
        if !std::mem::take(&mut self.completed) {
            return Ok(false);
        }
        Ok(self.queue.needs_notification(memory)?)
    }
}
