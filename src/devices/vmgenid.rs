//! The VM Generation ID (Microsoft, "Virtual Machine Generation ID", August 2012): 16 bytes in guest memory that no other
//! machine has, and an interrupt that tells the guest that they are others than before.
//!
//! The guest finds both in its ACPI tables. The device has no registers and no saved state: what a restore would bring back
//! is just what must not come back.

use crate::bus::IrqLine;
use crate::faults::{self, Fault};
use crate::memory::{Bytes, GuestAddress, GuestMemory, layout};

use super::error::DeviceError;

/// Length of a generation, bytes.
pub const GENERATION_LEN: usize = 16;

/// The device.
#[derive(Debug)]
pub(super) struct VmGenId {
    line: IrqLine,
    /// Whether the guest has yet to be told.
    due: bool,
}

impl VmGenId {
    /// Writes `generation` where the guest looks for it. With `changed` a guest is there that may know another one.
    pub fn new(
        generation: [u8; GENERATION_LEN],
        changed: bool,
        memory: &GuestMemory,
    ) -> Result<Self, DeviceError> {
        let line = IrqLine::new(layout::VMGENID_GSI).map_err(DeviceError::Events)?;
        let place = GuestAddress(layout::VMGENID_ADDR);
        memory.write_slice(&generation, place).map_err(|_| DeviceError::NoGeneration)?;
        Ok(VmGenId { line, due: changed })
    }

    pub fn line(&self) -> &IrqLine {
        &self.line
    }

    /// Raises the interrupt, once. Before the state of the interrupt controllers is set it would be lost.
    pub fn kick(&mut self) -> Result<(), DeviceError> {
        if std::mem::take(&mut self.due) && !faults::injected(Fault::GenerationSilent) {
            self.line.trigger().map_err(DeviceError::Signal)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(changed: bool) -> (VmGenId, [u8; GENERATION_LEN]) {
        let memory = crate::memory::anonymous(2 << 20).unwrap();
        let device = VmGenId::new([7; GENERATION_LEN], changed, &memory).unwrap();
        (device, memory.read_obj(GuestAddress(layout::VMGENID_ADDR)).unwrap())
    }

    #[test]
    fn the_generation_is_there_before_the_guest_runs() {
        assert_eq!(device(true).1, [7; GENERATION_LEN]);
        assert_eq!(device(false).1, [7; GENERATION_LEN]);
    }

    #[test]
    fn a_restored_guest_is_told_once_and_a_booting_one_never() {
        for (changed, times) in [(true, 1), (false, 0)] {
            let (mut device, _) = device(changed);
            device.kick().unwrap();
            device.kick().unwrap();
            assert_eq!(device.line().event().read().unwrap_or(0), times);
        }
    }
}
