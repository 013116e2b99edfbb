//! The host's end of the control stream.

use std::sync::{Arc, Mutex};

use crate::bus::{IrqLine, lock};
use crate::devices::ControlStream;
use crate::devices::virtio::{DriverFault, VirtioMmio, Virtqueue};
use crate::memory::GuestMemory;

use super::Vsock;

/// Reaches the device under its lock, and interrupts the guest when the lock is free again.
#[derive(Debug)]
pub(in crate::devices) struct VsockStream {
    /// The device.
    pub device: Arc<Mutex<VirtioMmio<Vsock>>>,
    /// Its interrupt.
    pub line: IrqLine,
}

impl VsockStream {
    fn act<R: Default>(
        &self,
        work: impl FnOnce(&mut Vsock, &mut [Virtqueue], &GuestMemory) -> Result<R, DriverFault>,
    ) -> R {
        let mut device = lock(&self.device);
        let result = device.act(work).unwrap_or_default();
        let due = device.take_due();
        drop(device);
        if due {
            // Fails only when 2^64 - 1 interrupts wait already.
            self.line.trigger().ok();
        }
        result
    }
}

impl ControlStream for VsockStream {
    fn write(&mut self, bytes: &[u8]) -> usize {
        self.act(|vsock, queues, memory| vsock.send(bytes, queues, memory))
    }

    fn read_into(&mut self, to: &mut Vec<u8>) -> usize {
        let mut device = lock(&self.device);
        let count = device.device_mut().read_into(to);
        let tell = count > 0 && device.device().has_pending();
        drop(device);
        if tell {
            self.act(|vsock, queues, memory| match queues {
                [rx, ..] => vsock.flush(rx, memory),
                [] => Ok(()),
            });
        }
        count
    }

    fn is_open(&self) -> bool {
        let device = lock(&self.device);
        device.live() && device.device().is_open()
    }
}
