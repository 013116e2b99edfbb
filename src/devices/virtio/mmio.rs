//! The MMIO transport, version 2 (virtio 1.2, 4.2): registers, feature negotiation, queue set-up, interrupts.
//!
//! vCPU threads reach it as a bus device, the main thread to serve the queues; both under one lock. Interrupts for served
//! requests are raised by the caller once the lock is free ([`VirtioMmio::take_due`]): a vCPU that wakes at once
//! would only run into the lock.

use std::sync::Arc;
use std::time::Instant;

use snapshot_format::sections::VirtioState;
use virtio_bindings::{virtio_config, virtio_mmio, virtio_ring};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::{BusDevice, IrqLine};
use crate::devices::error::{DeviceError, StateFault};
use crate::memory::GuestMemory;

use super::queue::{Area, Half};
use super::status::Status;
use super::{DriverFault, TRANSPORT_FEATURES, VirtioDevice, Virtqueue, Work};

/// "virt" (4.2.2).
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// No vendor: nobody looks at it.
const VENDOR: u32 = 0;
/// QueueReset (4.2.2, with VIRTIO_F_RING_RESET), which the bindings do not know.
const QUEUE_RESET: u32 = 0xc0;
/// Where the configuration space begins.
const CONFIG: u64 = virtio_mmio::VIRTIO_MMIO_CONFIG as u64;
/// Length and base of a shared memory region that does not exist (4.2.2.1).
const NO_REGION: u32 = u32::MAX;

/// What a transport is built from.
#[derive(Debug)]
pub(in crate::devices) struct Parts {
    /// The device's id, which the state must name too.
    pub id: String,
    /// The transport's part of the device's state.
    pub state: VirtioState,
    /// Guest RAM.
    pub memory: GuestMemory,
    /// The device's interrupt.
    pub line: IrqLine,
    /// One for each queue, where the device listens.
    pub doorbells: Vec<Option<Arc<EventFd>>>,
}

/// A device behind its transport.
#[derive(Debug)]
pub(in crate::devices) struct VirtioMmio<D> {
    device: D,
    queues: Vec<Virtqueue>,
    id: String,
    status: Status,
    interrupt_status: u32,
    features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    config_generation: u32,
    memory: GuestMemory,
    line: IrqLine,
    doorbells: Vec<Option<Arc<EventFd>>>,
    /// Why the device stopped.
    fault: Option<DriverFault>,
    /// An interrupt is to be raised.
    due: bool,
}

impl<D: VirtioDevice> VirtioMmio<D> {
    /// Puts `device` behind a transport in the given state.
    ///
    /// # Errors
    /// The state is not one that a driver can have brought about.
    pub(in crate::devices) fn new(device: D, parts: Parts) -> Result<Self, StateFault> {
        let Parts { id: expected, state, memory, line, doorbells } = parts;
        let VirtioState {
            id,
            device_type,
            status,
            interrupt_status,
            features_select,
            driver_features_select,
            driver_features,
            queue_select,
            config_generation,
            queues,
        } = state;
        if id != expected || device_type != D::TYPE || queues.len() != D::QUEUES.len() {
            return Err(StateFault::Identity { found: id });
        }
        let queues =
            queues.into_iter().map(|queue| Virtqueue::new(queue, &memory)).collect::<Result<Vec<_>, _>>()?;
        let status = Status::from_saved(status).ok_or(StateFault::Status)?;
        let transport = VirtioMmio {
            device,
            queues,
            id,
            status,
            interrupt_status,
            features_select,
            driver_features_select,
            driver_features,
            queue_select,
            config_generation,
            memory,
            line,
            doorbells,
            fault: None,
            due: false,
        };
        transport.check()?;
        Ok(transport)
    }

    fn check(&self) -> Result<(), StateFault> {
        let fixed = self.status.features_fixed();
        if fixed && !self.features_acceptable() {
            return Err(StateFault::Features { offered: self.offered(), chosen: self.driver_features });
        }
        let known = virtio_mmio::VIRTIO_MMIO_INT_VRING | virtio_mmio::VIRTIO_MMIO_INT_CONFIG;
        if self.interrupt_status & !known != 0 {
            return Err(StateFault::Status);
        }
        let event_idx = self.has(virtio_ring::VIRTIO_RING_F_EVENT_IDX);
        let possible = |queue: &Virtqueue| !queue.ready() || fixed && queue.event_idx() == event_idx;
        if self.queues.iter().all(possible) { Ok(()) } else { Err(StateFault::Queue) }
    }

    /// The transport's part of the device's section.
    pub(in crate::devices) fn state(&self) -> VirtioState {
        let VirtioMmio {
            device: _,
            queues,
            id,
            status,
            interrupt_status,
            features_select,
            driver_features_select,
            driver_features,
            queue_select,
            config_generation,
            // The machine's, not the guest's.
            memory: _,
            line: _,
            doorbells: _,
            // The status says that there was one; the words are for this process's user.
            fault: _,
            // Follows from `interrupt_status` at restore.
            due: _,
        } = self;
        VirtioState {
            id: id.clone(),
            device_type: D::TYPE,
            status: status.bits(),
            interrupt_status: *interrupt_status,
            features_select: *features_select,
            driver_features_select: *driver_features_select,
            driver_features: *driver_features,
            queue_select: *queue_select,
            config_generation: *config_generation,
            queues: queues.iter().map(Virtqueue::state).collect(),
        }
    }

    /// The device's section.
    ///
    /// # Errors
    /// The device cannot be saved as it is now.
    pub(in crate::devices) fn save(&self) -> Result<D::State, DeviceError> {
        self.device.save(self.state())
    }

    /// The device itself.
    pub(in crate::devices) fn device(&self) -> &D {
        &self.device
    }

    /// The device itself, for what has no part in its queues.
    pub(in crate::devices) fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// Whether the device may use its queues.
    pub(in crate::devices) fn live(&self) -> bool {
        self.status.live()
    }

    /// Lets the device work with its queues; `None` when it may not, or when the driver was at fault, which stops it.
    pub(in crate::devices) fn act<R>(
        &mut self,
        work: impl FnOnce(&mut D, &mut [Virtqueue], &GuestMemory) -> Result<R, DriverFault>,
    ) -> Option<R> {
        if !self.status.live() {
            return None;
        }
        let result = work(&mut self.device, &mut self.queues, &self.memory);
        match result.and_then(|result| self.collect_interrupts().map(|()| result)) {
            Ok(result) => Some(result),
            Err(fault) => {
                self.fail(fault);
                None
            }
        }
    }

    fn collect_interrupts(&mut self) -> Result<(), DriverFault> {
        for queue in &mut self.queues {
            if queue.take_interrupt(&self.memory)? {
                self.interrupt_status |= virtio_mmio::VIRTIO_MMIO_INT_VRING;
                self.due = true;
            }
        }
        Ok(())
    }

    /// Stops the device until the driver resets it (2.1.2).
    fn fail(&mut self, fault: DriverFault) {
        self.status = self.status.broken();
        self.fault = Some(fault);
        if self.status.driver_ok() {
            self.interrupt_status |= virtio_mmio::VIRTIO_MMIO_INT_CONFIG;
            self.due = true;
        }
    }

    /// Serves every queue once.
    pub(in crate::devices) fn serve(&mut self) {
        if self.act(|device, queues, memory| device.serve(queues, memory)) == Some(Work::More) {
            self.ring_all();
        }
    }

    /// Whether the caller is to raise the interrupt now.
    pub(in crate::devices) fn take_due(&mut self) -> bool {
        std::mem::take(&mut self.due)
    }

    /// When the device is to serve its queues though nobody notifies it.
    pub(in crate::devices) fn due(&self) -> Option<Instant> {
        self.device.due().filter(|_| self.status.live())
    }

    /// Whether the driver has an interrupt to acknowledge.
    pub(in crate::devices) fn interrupt_pending(&self) -> bool {
        self.interrupt_status != 0
    }

    /// Why the device stopped, for the user.
    pub(in crate::devices) fn fault(&self) -> Option<String> {
        self.fault.as_ref().map(|fault| format!("{}: {fault}", self.id))
    }

    /// Doorbells and interrupt line, as the machine has them.
    #[cfg(test)]
    pub(in crate::devices) fn wires(&self) -> (Vec<Option<Arc<EventFd>>>, IrqLine) {
        (self.doorbells.clone(), self.line.clone())
    }

    fn ring(&self, queue: usize) {
        if let Some(Some(bell)) = self.doorbells.get(queue) {
            // Fails only when 2^64 - 1 notifications wait already.
            bell.write(1).ok();
        }
    }

    fn ring_all(&self) {
        (0..self.doorbells.len()).for_each(|queue| self.ring(queue));
    }

    fn offered(&self) -> u64 {
        self.device.features() | TRANSPORT_FEATURES
    }

    fn has(&self, feature: u32) -> bool {
        self.driver_features & 1 << feature != 0
    }

    fn features_acceptable(&self) -> bool {
        self.driver_features & !self.offered() == 0 && self.has(virtio_config::VIRTIO_F_VERSION_1)
    }

    fn selected(&self) -> Option<&Virtqueue> {
        self.queues.get(usize::try_from(self.queue_select).ok()?)
    }

    fn read_register(&self, register: u32) -> u32 {
        match register {
            virtio_mmio::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            virtio_mmio::VIRTIO_MMIO_VERSION => VERSION,
            virtio_mmio::VIRTIO_MMIO_DEVICE_ID => D::TYPE,
            virtio_mmio::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            virtio_mmio::VIRTIO_MMIO_DEVICE_FEATURES => word(self.offered(), self.features_select),
            virtio_mmio::VIRTIO_MMIO_QUEUE_NUM_MAX => {
                self.selected().map_or(0, |queue| queue.max_size().into())
            }
            virtio_mmio::VIRTIO_MMIO_QUEUE_READY => self.selected().map_or(0, |queue| queue.ready().into()),
            virtio_mmio::VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt_status,
            virtio_mmio::VIRTIO_MMIO_STATUS => self.status.bits(),
            virtio_mmio::VIRTIO_MMIO_SHM_LEN_LOW..=virtio_mmio::VIRTIO_MMIO_SHM_BASE_HIGH => NO_REGION,
            virtio_mmio::VIRTIO_MMIO_CONFIG_GENERATION => self.config_generation,
            // Among them QUEUE_RESET: a reset is over before its write returns.
            _ => 0,
        }
    }

    fn write_register(&mut self, register: u32, value: u32) {
        match register {
            virtio_mmio::VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.features_select = value,
            virtio_mmio::VIRTIO_MMIO_DRIVER_FEATURES => self.choose_features(value),
            virtio_mmio::VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_select = value,
            virtio_mmio::VIRTIO_MMIO_QUEUE_SEL => self.queue_select = value,
            virtio_mmio::VIRTIO_MMIO_QUEUE_NUM => self.set_up(|queue| queue.set_size(value)),
            virtio_mmio::VIRTIO_MMIO_QUEUE_READY => self.set_ready(value),
            virtio_mmio::VIRTIO_MMIO_QUEUE_NOTIFY => self.ring(usize::try_from(value).unwrap_or(usize::MAX)),
            virtio_mmio::VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt_status &= !value,
            virtio_mmio::VIRTIO_MMIO_STATUS => self.write_status(value),
            QUEUE_RESET => self.reset_queue(value),
            _ => {
                if let Some((area, half)) = address_register(register) {
                    self.set_up(|queue| queue.set_address(area, half, value));
                }
            }
        }
    }

    fn choose_features(&mut self, value: u32) {
        if !self.status.features_open() {
            return;
        }
        let value = u64::from(value);
        match self.driver_features_select {
            0 => self.driver_features = self.driver_features & !u64::from(u32::MAX) | value,
            1 => self.driver_features = self.driver_features & u64::from(u32::MAX) | value << 32,
            _ => {}
        }
    }

    /// Changes the selected queue while that is allowed: after the features are fixed, before the queue is ready.
    fn set_up(&mut self, change: impl FnOnce(&mut Virtqueue) -> Result<(), DriverFault>) {
        if !self.status.queues_open() {
            return;
        }
        let queue = usize::try_from(self.queue_select).ok().and_then(|index| self.queues.get_mut(index));
        let Some(queue) = queue.filter(|queue| !queue.ready()) else { return };
        if let Err(fault) = change(queue) {
            self.fail(fault);
        }
    }

    fn set_ready(&mut self, value: u32) {
        match value {
            0 => self.stop_selected(),
            1 => {
                let event_idx = self.has(virtio_ring::VIRTIO_RING_F_EVENT_IDX);
                let memory = self.memory.clone();
                self.set_up(|queue| queue.set_ready(true, event_idx, &memory));
            }
            _ => {}
        }
    }

    /// Resets one queue (2.6.1). Nothing is in flight: requests are served whole, under the lock.
    fn reset_queue(&mut self, value: u32) {
        if value == 1 && self.has(virtio_config::VIRTIO_F_RING_RESET) {
            self.stop_selected();
        }
    }

    fn stop_selected(&mut self) {
        if self.status.queues_open()
            && let Ok(index) = usize::try_from(self.queue_select)
            && let Some(queue) = self.queues.get_mut(index)
        {
            queue.reset();
        }
    }

    fn write_status(&mut self, value: u32) {
        if value == 0 {
            self.reset();
            return;
        }
        let was_live = self.status.live();
        self.status = self.status.after_write(value, self.features_acceptable());
        if self.status.live() && !was_live {
            // What the driver queued and announced before was not looked at.
            self.ring_all();
        }
    }

    fn reset(&mut self) {
        self.device.reset();
        self.queues.iter_mut().for_each(Virtqueue::reset);
        self.status = Status::default();
        self.interrupt_status = 0;
        self.features_select = 0;
        self.driver_features_select = 0;
        self.driver_features = 0;
        self.queue_select = 0;
        self.fault = None;
        self.due = false;
    }
}

/// The `select`-th 32 bits of `bits`.
fn word(bits: u64, select: u32) -> u32 {
    let shifted = bits.checked_shr(select.saturating_mul(32)).unwrap_or(0);
    u32::try_from(shifted & u64::from(u32::MAX)).unwrap_or(0)
}

fn address_register(register: u32) -> Option<(Area, Half)> {
    Some(match register {
        virtio_mmio::VIRTIO_MMIO_QUEUE_DESC_LOW => (Area::Descriptors, Half::Low),
        virtio_mmio::VIRTIO_MMIO_QUEUE_DESC_HIGH => (Area::Descriptors, Half::High),
        virtio_mmio::VIRTIO_MMIO_QUEUE_AVAIL_LOW => (Area::Driver, Half::Low),
        virtio_mmio::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => (Area::Driver, Half::High),
        virtio_mmio::VIRTIO_MMIO_QUEUE_USED_LOW => (Area::Device, Half::Low),
        virtio_mmio::VIRTIO_MMIO_QUEUE_USED_HIGH => (Area::Device, Half::High),
        _ => return None,
    })
}

impl<D: VirtioDevice> BusDevice for VirtioMmio<D> {
    /// Control registers are read whole and aligned (4.2.2.2); the configuration space in any width.
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let Some(at) = offset.checked_sub(CONFIG) {
            let config = usize::try_from(at).ok().and_then(|at| self.device.config().get(at..));
            for (to, from) in data.iter_mut().zip(config.unwrap_or_default()) {
                *to = *from;
            }
        } else if let (Ok(register), Ok(data)) = (u32::try_from(offset), <&mut [u8; 4]>::try_from(data)) {
            *data = self.read_register(register).to_le_bytes();
        }
    }

    /// No device has a configuration field that the driver may write.
    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (Ok(register), Ok(data)) = (u32::try_from(offset), <[u8; 4]>::try_from(data)) {
            self.write_register(register, u32::from_le_bytes(data));
        }
        if self.take_due() {
            // Fails only when 2^64 - 1 interrupts wait already.
            self.line.trigger().ok();
        }
    }
}
