//! The one table of a machine's devices: who is where, and how each is reached.

use std::fmt::Debug;
use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use snapshot_format::state::Writer;
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_QUEUE_NOTIFY;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::bus::{Bus, IrqLine, RequestLine, lock};
use crate::memory::{GuestMemory, OnStart, layout};

use super::block::{Block, BlockRate};
use super::error::DeviceError;
use super::port::{PORT_LEN, Port, PortStream};
use super::power::{I8042_PORT, Keyboard, POWER_LEN, Power};
use super::rng::Rng;
use super::serial::{self, ConsoleSink, SERIAL_LEN, Serial};
use super::states::{DeviceStates, Kept};
use super::virtio::{self, Parts, VirtioDevice, VirtioMmio};
use super::vmgenid::{GENERATION_LEN, VmGenId};
use super::vsock::{Vsock, VsockStream};
use super::{ControlStream, DeviceSetup};

/// A virtio device, shared by the vCPU threads and the main thread.
type Shared<D> = Arc<Mutex<VirtioMmio<D>>>;

/// Where a virtio device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VirtioWindow {
    /// Guest physical address of its registers.
    pub base: u64,
    /// Their length, bytes.
    pub len: u64,
    /// Its interrupt.
    pub gsi: u32,
}

/// A queue's notification: a guest's 32-bit write of `queue` at `address` is to signal `event`.
#[derive(Debug)]
pub struct Doorbell {
    /// Becomes readable when the guest notifies the queue.
    pub event: Arc<EventFd>,
    /// Guest physical address of the device's QueueNotify register.
    pub address: u64,
    /// The value that is written: the queue's number.
    pub queue: u32,
}

/// Names a source of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventToken {
    doorbell: usize,
}

/// A virtio device whose kind the table need not know.
trait Slot: Debug + Send {
    fn serve(&mut self);
    fn take_due(&mut self) -> bool;
    fn due(&self) -> Option<Instant>;
    fn interrupt_pending(&self) -> bool;
    fn save(&self, instance: u32, writer: &mut Writer) -> Result<(), DeviceError>;
    fn fault(&self) -> Option<String>;
}

impl<D: VirtioDevice> Slot for VirtioMmio<D> {
    fn serve(&mut self) {
        VirtioMmio::serve(self);
    }

    fn take_due(&mut self) -> bool {
        VirtioMmio::take_due(self)
    }

    fn due(&self) -> Option<Instant> {
        VirtioMmio::due(self)
    }

    fn interrupt_pending(&self) -> bool {
        VirtioMmio::interrupt_pending(self)
    }

    fn save(&self, instance: u32, writer: &mut Writer) -> Result<(), DeviceError> {
        Ok(writer.put(instance, &VirtioMmio::save(self)?)?)
    }

    fn fault(&self) -> Option<String> {
        VirtioMmio::fault(self)
    }
}

/// A virtio device in its place.
#[derive(Debug)]
struct Seat {
    window: VirtioWindow,
    line: IrqLine,
    device: Arc<Mutex<dyn Slot>>,
}

impl Seat {
    /// Serves the device, and raises its interrupt once the lock is free; also again, when `again` is set and the driver
    /// has not acknowledged the last one.
    fn serve(&self, again: bool) -> Result<(), DeviceError> {
        let mut device = lock(&self.device);
        device.serve();
        let due = device.take_due() || again && device.interrupt_pending();
        drop(device);
        if due { self.line.trigger().map_err(DeviceError::Signal) } else { Ok(()) }
    }
}

/// Who speaks for the control stream.
#[derive(Debug)]
enum Control {
    None,
    Vsock(VsockStream),
    Port(PortStream),
}

/// All devices of a machine.
#[derive(Debug)]
pub struct DeviceTable {
    pio: Arc<Bus>,
    mmio: Arc<Bus>,
    seats: Vec<Seat>,
    doorbells: Vec<Doorbell>,
    /// For each doorbell its seat.
    doorbell_seats: Vec<usize>,
    drives: Vec<Shared<Block>>,
    /// Whether the drives' rate is limited: else nobody looks when they are due.
    limited: bool,
    serial: Arc<Mutex<Serial>>,
    serial_line: IrqLine,
    vmgenid: Option<VmGenId>,
    port: Option<Arc<Mutex<Port>>>,
    control: Control,
}

impl DeviceTable {
    /// Builds every device, cold or from its saved state.
    ///
    /// # Errors
    /// See [`DeviceError`].
    pub fn new(
        setup: DeviceSetup,
        memory: GuestMemory,
        requests: RequestLine,
        states: DeviceStates,
    ) -> Result<Self, DeviceError> {
        let DeviceSetup { drives, vsock_cid, rng, generation, port, console, thread_start } = setup;
        let mut builder = Builder::new(memory, states, console, thread_start)?;
        builder.add_power(&requests)?;
        for drive in drives {
            builder.add_drive(drive)?;
        }
        if let Some(cid) = vsock_cid {
            builder.add_vsock(cid)?;
        }
        if rng {
            builder.add::<Rng>(())?;
        }
        if let Some(generation) = generation {
            builder.add_vmgenid(generation)?;
        }
        if port {
            builder.add_port(requests)?;
        }
        builder.finish()
    }

    /// Interrupt lines to be joined to the guest's interrupt controller.
    pub fn irq_lines(&self) -> impl Iterator<Item = &IrqLine> {
        self.seats.iter().map(|seat| &seat.line).chain([&self.serial_line])
    }

    /// Notifications to be taken out of the guest's way.
    pub fn doorbells(&self) -> &[Doorbell] {
        &self.doorbells
    }

    /// Where the virtio devices are, in the order of their slots.
    pub fn virtio_windows(&self) -> Vec<VirtioWindow> {
        self.seats.iter().map(|seat| seat.window).collect()
    }

    /// The I/O ports.
    pub fn pio(&self) -> Arc<Bus> {
        self.pio.clone()
    }

    /// The memory-mapped registers.
    pub fn mmio(&self) -> Arc<Bus> {
        self.mmio.clone()
    }

    /// Descriptors that become readable when [`handle_event`](Self::handle_event) has something to do.
    pub fn event_sources(&self) -> Vec<(RawFd, EventToken)> {
        let source = |(doorbell, bell): (usize, &Doorbell)| (bell.event.as_raw_fd(), EventToken { doorbell });
        self.doorbells.iter().enumerate().map(source).collect()
    }

    /// Serves the device that a readable descriptor belongs to.
    ///
    /// # Errors
    /// An interrupt could not be raised. What the guest does wrong is no error here.
    pub fn handle_event(&self, token: EventToken) -> Result<(), DeviceError> {
        let EventToken { doorbell } = token;
        if let Some(bell) = self.doorbells.get(doorbell) {
            // EAGAIN: somebody has served the device since.
            bell.event.read().ok();
        }
        self.seat_of(token).map_or(Ok(()), |seat| seat.serve(false))
    }

    /// Whether [`handle_event`](Self::handle_event) brings what the guest says on the control stream.
    pub fn is_of_control(&self, token: EventToken) -> bool {
        let Control::Vsock(stream) = &self.control else { return false };
        self.seat_of(token).is_some_and(|seat| seat.line.gsi() == stream.line.gsi())
    }

    fn seat_of(&self, token: EventToken) -> Option<&Seat> {
        self.seats.get(*self.doorbell_seats.get(token.doorbell)?)
    }

    /// Limits the rate of each drive from now on.
    pub fn limit_drives(&mut self, rate: BlockRate) {
        self.limited = true;
        self.drives.iter().for_each(|drive| lock(drive).device_mut().limit(rate));
    }

    /// When a drive is to be served again that its rate holds back.
    pub fn due(&self) -> Option<Instant> {
        if !self.limited {
            return None;
        }
        self.drives.iter().filter_map(|drive| lock(drive).due()).min()
    }

    /// Serves the drives that are due.
    ///
    /// # Errors
    /// An interrupt could not be raised.
    pub fn serve_due(&self, now: Instant) -> Result<(), DeviceError> {
        let due = |seat: &&Seat| lock(&seat.device).due().is_some_and(|due| due <= now);
        self.seats.iter().filter(due).try_for_each(|seat| seat.serve(false))
    }

    /// Serves every queue once, before the vCPUs run (again): a notification that came just before a freeze is lost
    /// with its eventfd. Interrupts that the guest had not acknowledged are raised again, as an edge that nobody saw is
    /// lost too.
    ///
    /// # Errors
    /// An interrupt could not be raised.
    pub fn kick(&mut self) -> Result<(), DeviceError> {
        self.seats.iter().try_for_each(|seat| seat.serve(true))?;
        if lock(&self.serial).interrupt_pending() {
            self.serial_line.trigger().map_err(DeviceError::Signal)?;
        }
        Ok(())
    }

    /// The global system interrupt by which a restored guest is told of its generation. It is raised through KVM itself, once the
    /// interrupt controllers have their state: an irqfd's is delivered by a thread of the host's kernel, for which the guest does
    /// not wait.
    pub fn generation_due(&self) -> Option<u32> {
        self.vmgenid.as_ref().and_then(VmGenId::due)
    }

    /// Waits a moment until the console's sink has what the guest printed last; what it prints from now on is lost.
    pub fn end_console(&self) {
        let last_words = lock(&self.serial).last_words();
        last_words.wait();
    }

    /// The byte stream to the agent or the small guest.
    pub fn control(&mut self) -> Option<&mut dyn ControlStream> {
        match &mut self.control {
            Control::None => None,
            Control::Vsock(stream) => Some(stream),
            Control::Port(stream) => Some(stream),
        }
    }

    /// Puts every device's section into `writer`. The vCPUs must stand still.
    ///
    /// # Errors
    /// A device has something in hand that a saved state cannot hold, or a section could not be encoded.
    pub fn save(&self, writer: &mut Writer) -> Result<(), DeviceError> {
        let DeviceTable {
            seats,
            serial,
            port,
            // How the guest is reached, made anew by every machine.
            pio: _,
            mmio: _,
            doorbells: _,
            doorbell_seats: _,
            serial_line: _,
            // Another in every machine.
            vmgenid: _,
            // The same devices as in `seats` and `port`.
            drives: _,
            // Of this run alone.
            limited: _,
            control: _,
        } = self;
        writer.put(0, &lock(serial).save())?;
        for (instance, seat) in (0u32..).zip(seats) {
            lock(&seat.device).save(instance, writer)?;
        }
        if let Some(port) = port {
            writer.put(0, &lock(port).save())?;
        }
        Ok(())
    }

    /// The exit code of a small guest's last "done".
    pub fn port_exit_code(&self) -> Option<i32> {
        lock(self.port.as_ref()?).exit_code()
    }

    /// Requests that all drives have served since the machine was built.
    pub fn block_requests(&self) -> u64 {
        self.drives.iter().map(|drive| lock(drive).device().requests()).sum()
    }

    /// Writes the content of the writable drive `id`, as the guest sees it, to `to`, an empty file. Zeros become holes.
    /// The vCPUs must stand still.
    ///
    /// # Errors
    /// There is no such drive, or a file failed.
    pub fn write_drive(&self, id: &str, to: &File) -> Result<(), DeviceError> {
        let named = |drive: &&Shared<Block>| lock(drive).device().drive_id() == id;
        let drive = self.drives.iter().find(named);
        let drive = drive.ok_or_else(|| DeviceError::NoDrive { id: id.to_owned() })?;
        lock(drive).device().write_content(to)
    }

    /// For each device that its driver brought to a stop: which, and why.
    pub fn faults(&self) -> Vec<String> {
        self.seats.iter().filter_map(|seat| lock(&seat.device).fault()).collect()
    }
}

/// A table in the making.
struct Builder {
    memory: GuestMemory,
    states: DeviceStates,
    pio: Bus,
    mmio: Bus,
    seats: Vec<Seat>,
    doorbells: Vec<Doorbell>,
    doorbell_seats: Vec<usize>,
    drives: Vec<Shared<Block>>,
    serial: Arc<Mutex<Serial>>,
    serial_line: IrqLine,
    vmgenid: Option<VmGenId>,
    port: Option<Arc<Mutex<Port>>>,
    control: Control,
}

impl Builder {
    /// A table with nothing but the serial port, which every machine has.
    fn new(
        memory: GuestMemory,
        mut states: DeviceStates,
        console: ConsoleSink,
        thread_start: OnStart,
    ) -> Result<Self, DeviceError> {
        let state = states.of(0)?.unwrap_or_else(serial::cold_state);
        let serial_line = IrqLine::new(layout::SERIAL_GSI).map_err(DeviceError::Events)?;
        let serial = Arc::new(Mutex::new(Serial::new(state, serial_line.clone(), console, thread_start)?));
        let mut pio = Bus::default();
        pio.insert(layout::SERIAL_PORT, SERIAL_LEN, serial.clone())?;
        Ok(Builder {
            memory,
            states,
            pio,
            mmio: Bus::default(),
            seats: Vec::new(),
            doorbells: Vec::new(),
            doorbell_seats: Vec::new(),
            drives: Vec::new(),
            serial,
            serial_line,
            vmgenid: None,
            port: None,
            control: Control::None,
        })
    }

    fn add_power(&mut self, requests: &RequestLine) -> Result<(), DeviceError> {
        self.pio.insert(layout::POWER_PORT, POWER_LEN, Arc::new(Mutex::new(Power(requests.clone()))))?;
        Ok(self.pio.insert(I8042_PORT, 1, Arc::new(Mutex::new(Keyboard(requests.clone()))))?)
    }

    fn add_drive(&mut self, setup: super::DriveSetup) -> Result<(), DeviceError> {
        let (drive, _) = self.add::<Block>(setup)?;
        self.drives.push(drive);
        Ok(())
    }

    fn add_vsock(&mut self, cid: u64) -> Result<(), DeviceError> {
        let (device, line) = self.add::<Vsock>(cid)?;
        self.control = Control::Vsock(VsockStream { device, line });
        Ok(())
    }

    fn add_vmgenid(&mut self, generation: [u8; GENERATION_LEN]) -> Result<(), DeviceError> {
        self.vmgenid = Some(VmGenId::new(generation, self.states.is_saved(), &self.memory)?);
        Ok(())
    }

    fn add_port(&mut self, requests: RequestLine) -> Result<(), DeviceError> {
        let state = self.states.of(0)?.unwrap_or_default();
        let port = Arc::new(Mutex::new(Port::new(state, requests)?));
        self.pio.insert(layout::GUEST_PORT, PORT_LEN, port.clone())?;
        self.control = Control::Port(PortStream(port.clone()));
        self.port = Some(port);
        Ok(())
    }

    /// Seats a virtio device in the next slot.
    fn add<D>(&mut self, setup: D::Setup) -> Result<(Shared<D>, IrqLine), DeviceError>
    where
        D: VirtioDevice<State: Kept>,
    {
        let (slot, window) = self.next_window()?;
        let id = D::id(&setup);
        let cold = || D::cold(&setup, virtio::cold_transport::<D>(id.clone()));
        let state = self.states.of::<D::State>(slot)?.map_or_else(cold, Ok)?;
        let (device, state) = D::new(setup, state)?;
        let line = IrqLine::new(window.gsi).map_err(DeviceError::Events)?;
        let doorbells = self.add_doorbells::<D>(window.base)?;
        let parts =
            Parts { id: id.clone(), state, memory: self.memory.clone(), line: line.clone(), doorbells };
        let device = VirtioMmio::new(device, parts).map_err(|fault| fault.of(&id))?;
        let device = Arc::new(Mutex::new(device));
        self.mmio.insert(window.base, window.len, device.clone())?;
        self.seats.push(Seat { window, line: line.clone(), device: device.clone() });
        Ok((device, line))
    }

    fn next_window(&self) -> Result<(u32, VirtioWindow), DeviceError> {
        let max = layout::VIRTIO_DEVICES_MAX;
        let slot = u32::try_from(self.seats.len()).ok().filter(|slot| *slot < max);
        let slot = slot.ok_or(DeviceError::TooMany { max })?;
        let len = layout::VIRTIO_MMIO_LEN;
        let base = layout::VIRTIO_MMIO_START + u64::from(slot) * len;
        Ok((slot, VirtioWindow { base, len, gsi: layout::VIRTIO_GSI_START + slot }))
    }

    /// Doorbells of the device that is seated next.
    fn add_doorbells<D: VirtioDevice>(
        &mut self,
        base: u64,
    ) -> Result<Vec<Option<Arc<EventFd>>>, DeviceError> {
        let address = base + u64::from(VIRTIO_MMIO_QUEUE_NOTIFY);
        let mut all = Vec::with_capacity(D::QUEUES.len());
        for (queue, spec) in (0u32..).zip(D::QUEUES) {
            if !spec.doorbell {
                all.push(None);
                continue;
            }
            let event = Arc::new(EventFd::new(EFD_NONBLOCK).map_err(DeviceError::Events)?);
            self.doorbells.push(Doorbell { event: event.clone(), address, queue });
            self.doorbell_seats.push(self.seats.len());
            all.push(Some(event));
        }
        Ok(all)
    }

    fn finish(self) -> Result<DeviceTable, DeviceError> {
        self.states.finish()?;
        Ok(DeviceTable {
            pio: Arc::new(self.pio),
            mmio: Arc::new(self.mmio),
            seats: self.seats,
            doorbells: self.doorbells,
            doorbell_seats: self.doorbell_seats,
            drives: self.drives,
            limited: false,
            serial: self.serial,
            serial_line: self.serial_line,
            vmgenid: self.vmgenid,
            port: self.port,
            control: self.control,
        })
    }
}

#[cfg(test)]
mod tests;
