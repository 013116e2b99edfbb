//! Reading a frozen machine's state into the bytes of a `state` file.

use std::time::{SystemTime, UNIX_EPOCH};

use snapshot_format::sections::{MachineState, VcpuState, VmState};
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
}

/// What a capture reads.
pub(super) struct Parts<'a> {
    pub shape: &'a Shape,
    pub tsc_khz: u32,
    pub vm: &'a KvmVm,
    pub vcpus: &'a [VcpuThread],
    pub devices: &'a DeviceTable,
    pub msrs: &'a MsrSelection,
}

/// What KVM holds of a frozen guest. Its clocks (TSC, APIC timer, kvm-clock, the host's own) go on while it stands still, so
/// it is read once a freeze: whatever is written of that freeze tells the same time.
#[derive(Debug)]
pub(super) struct Moment {
    vcpus: Vec<VcpuState>,
    vm: VmState,
}

impl Moment {
    fn read(parts: &Parts<'_>) -> Result<Self, CaptureError> {
        let vcpus = parts.vcpus.iter().map(|vcpu| vcpu.save(parts.msrs)).collect::<Result<_, _>>()?;
        Ok(Moment { vcpus, vm: vm_state(parts.vm)? })
    }
}

/// The bytes of the `state` file, in format `version`; `moment` is read unless it was since the freeze.
pub(super) fn capture(
    parts: &Parts<'_>,
    moment: &mut Option<Moment>,
    version: FormatVersion,
) -> Result<Vec<u8>, CaptureError> {
    let mut writer = Writer::new(version);
    writer.put(0, &machine_state(parts))?;
    // Devices first: saving one can raise an interrupt, which the reads of the interrupt controllers below must see.
    parts.devices.save(&mut writer)?;
    let moment = match moment {
        Some(moment) => moment,
        None => moment.insert(Moment::read(parts)?),
    };
    for (index, vcpu) in (0u32..).zip(&moment.vcpus) {
        writer.put(index, vcpu)?;
    }
    writer.put(0, &moment.vm)?;
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
