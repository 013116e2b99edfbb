//! A machine's saved state, taken from a bundle as a whole before anything of it is applied.

use kvm_bindings::{kvm_clock_data, kvm_irqchip};
use snapshot_format::sections::{MachineState, RegionState, VcpuState, VmState};
use snapshot_format::state::{DecodeError, Reader};

use crate::devices::DeviceStates;
use crate::memory::layout;
use crate::vcpu::{AbiError, align_tsc, from_blob};

use super::machine::Shape;

/// Why a saved state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    /// The state file is damaged or not for this version.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A KVM structure in it has another length.
    #[error(transparent)]
    Abi(#[from] AbiError),
    /// State and manifest describe different machines.
    #[error(
        "The saved state has {found}, the manifest says {expected}; the bundle's files do not belong together"
    )]
    Shape {
        /// What the state says.
        found: String,
        /// What the manifest says.
        expected: String,
    },
    /// A clock that is to go on from a time that is not known.
    #[error(
        "The bundle lets its clocks advance and does not say when it was frozen; bake it in format 1.1 or newer"
    )]
    NoFreezeTime,
}

/// Everything a restore applies.
#[derive(Debug)]
pub struct SavedMachine {
    pub(super) machine: MachineState,
    pub(super) clock: kvm_clock_data,
    pub(super) irqchips: [kvm_irqchip; 3],
    pub(super) vcpus: Vec<VcpuState>,
    pub(super) devices: DeviceStates,
    pub(super) frozen_at_unix_ns: u64,
    /// Whether the guest's clocks go on by the time since the freeze.
    pub(super) advances: bool,
}

impl SavedMachine {
    /// Takes every section out of `reader` and checks them against the machine's `shape`; a required section that
    /// nobody takes is an error.
    ///
    /// # Errors
    /// See [`SavedError`].
    pub fn take(mut reader: Reader, shape: &Shape) -> Result<Self, SavedError> {
        let machine: MachineState = reader.take(0)?;
        check_shape(&machine, shape)?;
        let vm: VmState = reader.take(0)?;
        let mut vcpus = (0..shape.vcpus).map(|index| reader.take(index)).collect::<Result<Vec<_>, _>>()?;
        align_tsc(&mut vcpus, 0)?;
        let devices = DeviceStates::take(&mut reader)?;
        reader.finish()?;
        let irqchips = [
            from_blob("PIC", &vm.pic_master)?,
            from_blob("PIC", &vm.pic_slave)?,
            from_blob("I/O APIC", &vm.ioapic)?,
        ];
        let (clock, frozen_at_unix_ns) = (from_blob("clock", &vm.clock)?, vm.frozen_at_unix_ns);
        let advances = false;
        Ok(SavedMachine { machine, clock, irqchips, vcpus, devices, frozen_at_unix_ns, advances })
    }

    /// Lets the guest's clocks go on by the time since the freeze, by the host's wall clock when they are set.
    ///
    /// # Errors
    /// The state does not tell when the guest was frozen.
    pub fn advance_clocks(&mut self) -> Result<(), SavedError> {
        if self.frozen_at_unix_ns == 0 {
            return Err(SavedError::NoFreezeTime);
        }
        self.advances = true;
        Ok(())
    }
}

/// The guest's clocks, and where they begin.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clocks {
    pub tsc_khz: u32,
    /// kvm-clock at the freeze.
    clock_ns: u64,
    /// When the freeze was, where they go on from there.
    since_unix_ns: Option<u64>,
}

impl Clocks {
    pub fn of(saved: &SavedMachine) -> Self {
        Clocks {
            tsc_khz: saved.machine.tsc_khz,
            clock_ns: saved.clock.clock,
            since_unix_ns: saved.advances.then_some(saved.frozen_at_unix_ns),
        }
    }

    /// What kvm-clock is to show when the host's wall clock shows `unix_ns`.
    pub fn clock_ns(&self, unix_ns: u64) -> u64 {
        self.clock_ns.saturating_add(self.behind(unix_ns))
    }

    /// How far the saved TSC is behind when the host's wall clock shows `unix_ns`.
    pub fn ticks(&self, unix_ns: u64) -> u64 {
        let ticks = u128::from(self.behind(unix_ns)) * u128::from(self.tsc_khz) / 1_000_000;
        u64::try_from(ticks).unwrap_or(0)
    }

    /// Nanoseconds since the freeze that count; none if the host's clock was set back.
    fn behind(&self, unix_ns: u64) -> u64 {
        self.since_unix_ns.map_or(0, |since| unix_ns.saturating_sub(since))
    }
}

fn check_shape(machine: &MachineState, shape: &Shape) -> Result<(), SavedError> {
    if machine.vcpus != shape.vcpus {
        let (found, expected) = (format!("{} vCPUs", machine.vcpus), shape.vcpus.to_string());
        return Err(SavedError::Shape { found, expected });
    }
    if machine.regions != regions(shape.memory_bytes) {
        let found = format!("{} bytes of memory in {} regions", total(machine), machine.regions.len());
        return Err(SavedError::Shape { found, expected: format!("{} bytes", shape.memory_bytes) });
    }
    Ok(())
}

fn total(machine: &MachineState) -> u64 {
    machine.regions.iter().fold(0, |sum, region| sum.saturating_add(region.len))
}

/// The layout as it is saved.
pub(super) fn regions(bytes: u64) -> Vec<RegionState> {
    layout::regions(bytes)
        .iter()
        .map(|r| RegionState { start: r.start, len: r.len, file_offset: r.file_offset })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_go_on_from_the_freeze_where_they_are_to() {
        let still = Clocks { tsc_khz: 2_000_000, clock_ns: 7, since_unix_ns: None };
        assert_eq!((still.clock_ns(5000), still.ticks(5000)), (7, 0));
        let advancing = Clocks { since_unix_ns: Some(4000), ..still };
        assert_eq!((advancing.clock_ns(5000), advancing.ticks(5000)), (1007, 2000));
        assert_eq!(
            (advancing.clock_ns(3000), advancing.ticks(3000)),
            (7, 0),
            "the host's clock was set back"
        );
    }

    #[test]
    fn a_state_of_another_shape_is_refused() {
        let shape = Shape { memory_bytes: 64 << 20, vcpus: 1 };
        let good = MachineState { vcpus: 1, regions: regions(64 << 20), tsc_khz: 0 };
        assert!(check_shape(&good, &shape).is_ok());
        assert!(check_shape(&MachineState { vcpus: 2, ..good.clone() }, &shape).is_err());
        let moved = RegionState { start: 4096, len: 64 << 20, file_offset: 0 };
        assert!(check_shape(&MachineState { regions: vec![moved], ..good }, &shape).is_err());
    }
}
