//! Reading a frozen machine's state into the bytes of a `state` file.

use std::time::{SystemTime, UNIX_EPOCH};

use snapshot_format::sections::{MachineState, VmState};
use snapshot_format::state::{EncodeError, FormatVersion, Writer};

use crate::devices::{DeviceError, DeviceTable};
use crate::kvm::{IrqChip, KvmVm, VmError};
use crate::vcpu::{MsrSelection, ThreadError, VcpuThread, blob};

use super::machine::Shape;
use super::saved::regions;

/// Why a frozen machine could not be captured.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// A device's state could not be read.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A vCPU's state could not be read.
    #[error(transparent)]
    Vcpu(#[from] ThreadError),
    /// The VM's state could not be read.
    #[error("Cannot read the VM's state")]
    Vm(#[from] VmError),
    /// The state could not be encoded.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The machine was not built to be saved.
    #[error("This machine cannot be saved: it was restored, and which MSRs to save was chosen at its bake")]
    NotSavable,
}

/// What a capture reads.
pub(super) struct Parts<'a> {
    pub shape: &'a Shape,
    pub tsc_khz: u32,
    pub vm: &'a KvmVm,
    pub vcpus: &'a [VcpuThread],
    pub devices: &'a DeviceTable,
    pub msrs: Option<&'a MsrSelection>,
}

/// The bytes of the `state` file, in format `version`.
pub(super) fn capture(parts: &Parts<'_>, version: FormatVersion) -> Result<Vec<u8>, CaptureError> {
    let selection = parts.msrs.ok_or(CaptureError::NotSavable)?;
    let mut writer = Writer::new(version);
    writer.put(0, &machine_state(parts))?;
    // Devices first: saving one can raise an interrupt, which the reads of the interrupt controllers below must see.
    parts.devices.save(&mut writer)?;
    for (index, vcpu) in (0u32..).zip(parts.vcpus) {
        writer.put(index, &vcpu.save(selection)?)?;
    }
    writer.put(0, &vm_state(parts.vm)?)?;
    Ok(writer.finish()?)
}

fn machine_state(parts: &Parts<'_>) -> MachineState {
    MachineState {
        vcpus: parts.shape.vcpus,
        regions: regions(parts.shape.memory_bytes),
        tsc_khz: parts.tsc_khz,
    }
}

fn vm_state(vm: &KvmVm) -> Result<VmState, VmError> {
    Ok(VmState {
        clock: blob(&vm.clock()?),
        pic_master: blob(&vm.irqchip(IrqChip::PicMaster)?),
        pic_slave: blob(&vm.irqchip(IrqChip::PicSlave)?),
        ioapic: blob(&vm.irqchip(IrqChip::IoApic)?),
        frozen_at_unix_ns: unix_ns(),
    })
}

/// The host's wall clock; 0 when the host's clock stands before 1970.
pub(super) fn unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(0)
}
