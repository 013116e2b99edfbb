//! The VM Generation ID (Microsoft, "Virtual Machine Generation ID", August 2012): 16 bytes in guest memory that no other
//! machine has, and an interrupt that tells the guest that they are others than before.
//!
//! The guest finds both in its ACPI tables. The device has no registers and no saved state: what a restore would bring back
//! is just what must not come back.

use crate::faults::{self, Fault};
use crate::memory::{Bytes, GuestAddress, GuestMemory, layout};

use super::error::DeviceError;

/// Length of a generation, bytes.
pub const GENERATION_LEN: usize = 16;

/// The device.
#[derive(Debug)]
pub(super) struct VmGenId {
    changed: bool,
}

impl VmGenId {
    /// Writes `generation` where the guest looks for it. With `changed` a guest is there that may know another one.
    pub fn new(
        generation: [u8; GENERATION_LEN],
        changed: bool,
        memory: &GuestMemory,
    ) -> Result<Self, DeviceError> {
        let place = GuestAddress(layout::VMGENID_ADDR);
        memory.write_slice(&generation, place).map_err(|_| DeviceError::NoGeneration)?;
        Ok(VmGenId { changed })
    }

    /// The global system interrupt that is to be raised before the guest's first instruction.
    pub fn due(&self) -> Option<u32> {
        (self.changed && !faults::injected(Fault::GenerationSilent)).then_some(layout::VMGENID_GSI)
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
    fn a_restored_guest_is_told_and_a_booting_one_is_not() {
        assert_eq!(device(true).0.due(), Some(layout::VMGENID_GSI));
        assert_eq!(device(false).0.due(), None);
    }
}
