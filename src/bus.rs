//! What a vCPU and a device agree on: addresses that are read and written, interrupt lines, requests to the machine.
//!
//! This room imports nothing of ours, so that `vcpu` can dispatch an access without knowing any device.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// A device's register window on the port or the MMIO bus.
///
/// Whatever a guest does with it must not panic: an access of a wrong size or place reads as zeros (the buffer comes
/// zeroed) and writes nothing.
pub trait BusDevice: Send + fmt::Debug {
    /// Fills `data` from the register at `offset` bytes into the window.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// Writes `data` to the register at `offset` bytes into the window.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// A device on a bus, shared between the vCPU threads and the device loop.
pub type SharedDevice = Arc<Mutex<dyn BusDevice>>;

/// Why a window could not be put on a bus.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BusError {
    /// Two windows share an address.
    #[error("The window {base:#x}+{len:#x} overlaps one that is on the bus already")]
    Overlap {
        /// First address of the refused window.
        base: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// An empty window, or one that runs past the last address.
    #[error("The window {base:#x}+{len:#x} is empty or runs past the last address")]
    Range {
        /// First address of the refused window.
        base: u64,
        /// Its length in bytes.
        len: u64,
    },
}

/// One address space (ports or MMIO) and the windows in it. Built once, then only read.
#[derive(Debug, Default)]
pub struct Bus {
    /// Sorted by base address, free of overlaps.
    windows: Vec<Window>,
}

#[derive(Debug)]
struct Window {
    base: u64,
    len: u64,
    device: SharedDevice,
}

impl Bus {
    /// Puts `device` at `base`, `len` bytes long.
    ///
    /// # Errors
    /// The window is empty, wraps, or overlaps another.
    pub fn insert(&mut self, base: u64, len: u64, device: SharedDevice) -> Result<(), BusError> {
        let end = base.checked_add(len).filter(|_| len > 0).ok_or(BusError::Range { base, len })?;
        if self.windows.iter().any(|w| base < w.base + w.len && w.base < end) {
            return Err(BusError::Overlap { base, len });
        }
        let at = self.windows.partition_point(|w| w.base < base);
        self.windows.insert(at, Window { base, len, device });
        Ok(())
    }

    /// Reads `data.len()` bytes at `address`; false when no device is there (`data` is then all ones, as on a PC).
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        match self.find(address, data.len()) {
            Some((window, offset)) => {
                data.fill(0);
                lock(&window.device).read(offset, data);
                true
            }
            None => {
                data.fill(0xff);
                false
            }
        }
    }

    /// Writes `data` at `address`; false when no device is there.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        match self.find(address, data.len()) {
            Some((window, offset)) => {
                lock(&window.device).write(offset, data);
                true
            }
            None => false,
        }
    }

    /// The device at `address`: a test that holds its lock stops a vCPU in the middle of an access.
    #[cfg(test)]
    pub fn device_at(&self, address: u64) -> Option<SharedDevice> {
        self.find(address, 1).map(|(window, _)| window.device.clone())
    }

    fn find(&self, address: u64, len: usize) -> Option<(&Window, u64)> {
        let window = self.windows[..self.windows.partition_point(|w| w.base <= address)].last()?;
        let offset = address - window.base;
        let end = offset.checked_add(len as u64)?;
        (end <= window.len).then_some((window, offset))
    }
}

/// Locks a device. A poisoned lock is entered all the same: with `panic = "abort"` nobody can have left it half done.
pub fn lock<T: ?Sized>(device: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An edge-triggered interrupt line of the guest, raised through an irqfd.
#[derive(Debug, Clone)]
pub struct IrqLine {
    gsi: u32,
    event: Arc<EventFd>,
}

impl IrqLine {
    /// A line for `gsi`; it reaches the guest once the machine has registered its eventfd with KVM.
    ///
    /// # Errors
    /// The process is out of descriptors.
    pub fn new(gsi: u32) -> io::Result<Self> {
        Ok(IrqLine { gsi, event: Arc::new(EventFd::new(EFD_NONBLOCK)?) })
    }

    /// The global system interrupt this line drives.
    pub fn gsi(&self) -> u32 {
        self.gsi
    }

    /// The eventfd to register with KVM.
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// Raises the interrupt once.
    ///
    /// # Errors
    /// The eventfd's counter is full (nobody consumed 2^64 edges) or the descriptor is gone.
    pub fn trigger(&self) -> io::Result<()> {
        self.event.write(1)
    }
}

/// What the guest, through a device, asks of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Request {
    /// The guest powered itself off.
    PowerOff = 1,
    /// The guest asked for a reset, or triple-faulted.
    Reset = 2,
    /// A small guest is at its warm point.
    Warm = 3,
    /// A small guest has finished its answer.
    Done = 4,
    /// A vCPU or a device cannot go on.
    Broken = 5,
}

/// Carries [`Request`]s from a device on a vCPU thread to the machine's main loop. Each kind
/// stands until it is taken, so that none hides another.
#[derive(Debug, Clone)]
pub struct RequestLine {
    pending: Arc<AtomicU32>,
    count: Arc<AtomicU32>,
    event: Arc<EventFd>,
}

impl RequestLine {
    /// An idle line.
    ///
    /// # Errors
    /// The process is out of descriptors.
    pub fn new() -> io::Result<Self> {
        let event = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        Ok(RequestLine { pending: Arc::default(), count: Arc::default(), event })
    }

    /// The eventfd that becomes readable when a request is pending.
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// Leaves a request and wakes the main loop.
    ///
    /// # Errors
    /// The eventfd could not be written.
    pub fn raise(&self, request: Request) -> io::Result<()> {
        self.pending.fetch_or(1 << request as u32, Ordering::AcqRel);
        self.count.fetch_add(1, Ordering::AcqRel);
        self.event.write(1)
    }

    /// How many requests have been made so far, modulo 2^32. A vCPU stops when it goes up instead of running past its
    /// own request: a small guest is frozen at its warm point, not somewhere behind it.
    pub fn count(&self) -> u32 {
        self.count.load(Ordering::Acquire)
    }

    /// Takes every pending request, most drastic first.
    pub fn take(&self) -> Vec<Request> {
        // EAGAIN: nothing was written since the last take; the bits below are the truth.
        self.event.read().ok();
        let bits = self.pending.swap(0, Ordering::AcqRel);
        [Request::PowerOff, Request::Reset, Request::Broken, Request::Warm, Request::Done]
            .into_iter()
            .filter(|r| bits & (1 << *r as u32) != 0)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default)]
    struct Echo(Vec<u8>);
    impl BusDevice for Echo {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data[0] = offset.to_le_bytes()[0];
        }
        fn write(&mut self, _offset: u64, data: &[u8]) {
            self.0 = data.to_vec();
        }
    }

    #[test]
    fn an_access_reaches_the_window_it_lies_in() {
        let mut bus = Bus::default();
        bus.insert(0x100, 8, Arc::new(Mutex::new(Echo::default()))).unwrap();
        bus.insert(0x10, 8, Arc::new(Mutex::new(Echo::default()))).unwrap();
        let mut data = [9u8; 2];
        assert!(bus.read(0x103, &mut data));
        assert_eq!(data, [3, 0]);
        assert!(!bus.read(0x107, &mut data), "an access may not run over the end of a window");
        assert_eq!(data, [0xff, 0xff]);
        assert!(!bus.write(0x0, &[1]));
        assert!(!bus.read(u64::MAX, &mut data));
    }

    #[test]
    fn windows_may_not_overlap_or_wrap() {
        let mut bus = Bus::default();
        let device: SharedDevice = Arc::new(Mutex::new(Echo::default()));
        bus.insert(0x10, 8, device.clone()).unwrap();
        assert_eq!(bus.insert(0x17, 1, device.clone()), Err(BusError::Overlap { base: 0x17, len: 1 }));
        assert!(bus.insert(0x18, 0, device.clone()).is_err());
        assert!(bus.insert(u64::MAX, 2, device).is_err());
    }

    #[test]
    fn requests_are_taken_once_and_in_order_of_weight() {
        let line = RequestLine::new().unwrap();
        line.raise(Request::Done).unwrap();
        line.raise(Request::PowerOff).unwrap();
        assert_eq!(line.take(), [Request::PowerOff, Request::Done]);
        assert!(line.take().is_empty());
    }
}
