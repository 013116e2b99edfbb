//! A vCPU's state, and the one order in which it is read and set.

use kvm_bindings::{CpuId, kvm_cpuid_entry2, kvm_msr_entry};
use snapshot_format::sections::{Blob, VcpuState};

use crate::kvm::{KvmVcpu, System, SystemError, VmError};

use super::abi::{AbiError, blob, from_blob, list_blob, list_from_blob};
use super::cpuid::is_same;
use super::features;
use super::msrs::{self, MsrSelection, SelectError, TSC_DEADLINE};

/// Why a vCPU could not be saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// KVM refused a step.
    #[error("Cannot {verb} the state of vCPU {index}")]
    Kvm {
        /// `save` or `restore`.
        verb: &'static str,
        /// Which vCPU.
        index: u32,
        /// The step.
        #[source]
        source: VmError,
    },
    /// The saved bytes are no such structure.
    #[error(transparent)]
    Abi(#[from] AbiError),
    /// The CPUID list is longer than KVM takes.
    #[error("The saved CPUID has {count} entries, more than KVM accepts; the bundle is damaged")]
    Cpuid {
        /// Entries found.
        count: usize,
    },
    /// The guest was shown a CPU that can do more than this one.
    #[error(
        "This host's CPU lacks {}, which the guest was baked with; run it on a host that has them, or bake on this one",
        missing.join(", ")
    )]
    Lacking {
        /// Names of all features and MSRs that are missing.
        missing: Vec<String>,
    },
    /// Which MSRs the host has could not be asked.
    #[error(transparent)]
    System(#[from] SystemError),
    /// This host's MSRs do not suffice.
    #[error(transparent)]
    Msrs(#[from] SelectError),
}

impl VcpuError {
    /// Whether a bundle's state is to blame, rather than the host.
    pub fn is_bad_state(&self) -> bool {
        matches!(
            self,
            VcpuError::Abi(_) | VcpuError::Cpuid { .. } | VcpuError::Msrs(SelectError::NotSaved { .. })
        )
    }
}

/// Reads everything. The vCPU must be paused with nothing half done (see `thread`), and this runs on its own thread.
///
/// # Errors
/// KVM refused a step; nothing was changed.
pub fn save(vcpu: &KvmVcpu, index: u32, selection: &MsrSelection) -> Result<VcpuState, VcpuError> {
    read_all(vcpu, index, selection).map_err(|source| VcpuError::Kvm { verb: "save", index, source })
}

fn read_all(vcpu: &KvmVcpu, index: u32, selection: &MsrSelection) -> Result<VcpuState, VmError> {
    // First: it delivers a pending INIT or SIPI, which changes registers and the APIC.
    let mp_state = blob(&vcpu.mp_state()?);
    let regs = blob(&vcpu.regs()?);
    let sregs = blob(&vcpu.sregs()?);
    let xsave = Blob(vcpu.xsave()?);
    let xcrs = blob(&vcpu.xcrs()?);
    let debugregs = blob(&vcpu.debugregs()?);
    let (lapic, msrs) = read_timer(vcpu, selection)?;
    let cpuid = list_blob(vcpu.cpuid()?.as_slice());
    // Last: the other reads affect it.
    let events = blob(&vcpu.events()?);
    Ok(VcpuState { index, cpuid, mp_state, regs, sregs, xsave, xcrs, debugregs, lapic, msrs, events })
}

/// Local APIC and MSRs. The timer goes on while the vCPU stands still: a deadline that has passed is either still in its MSR,
/// from where it fires at once when it is set again, or it is 0 and its interrupt is in the APIC. What is between the two
/// reads must not be in neither, nor in both: a timer fires once.
fn read_timer(vcpu: &KvmVcpu, selection: &MsrSelection) -> Result<(Blob, Blob), VmError> {
    let was_armed = deadline_of(&vcpu.msrs(&[TSC_DEADLINE])?) != 0;
    let lapic = vcpu.lapic()?;
    let msrs = vcpu.msrs(selection.indices())?;
    let lapic = if was_armed && deadline_of(&msrs) == 0 { vcpu.lapic()? } else { lapic };
    Ok((blob(&lapic), list_blob(&msrs)))
}

fn deadline_of(msrs: &[kvm_msr_entry]) -> u64 {
    msrs.iter().find(|msr| msr.index == TSC_DEADLINE).map_or(0, |msr| msr.data)
}

/// Sets everything, on a vCPU that has never run. Gives what a later save of it reads; `host` is asked when something is missing.
/// A vCPU that has been shown the saved CPUID already, as part of what this host supports, is not shown it again.
///
/// # Errors
/// The saved bytes are damaged, or KVM refused a step: the vCPU is then unusable.
pub fn restore(
    host: &System,
    vcpu: &KvmVcpu,
    shown: Option<&CpuId>,
    state: &VcpuState,
) -> Result<MsrSelection, VcpuError> {
    // Everything is parsed before anything is set.
    let cpuid = list_from_blob::<kvm_cpuid_entry2>("CPUID", &state.cpuid)?;
    let saved_msrs = list_from_blob::<kvm_msr_entry>("MSRs", &state.msrs)?;
    let selection = MsrSelection::of_saved(&saved_msrs)?;
    let msrs = settable(saved_msrs);
    let is_shown = shown.is_some_and(|shown| is_same(shown.as_slice(), &cpuid));
    if !is_shown {
        check(host, &cpuid, &msrs)?;
    }
    let cpuid = CpuId::from_entries(&cpuid).map_err(|_| VcpuError::Cpuid { count: cpuid.len() })?;
    let mp_state = from_blob("multiprocessor state", &state.mp_state)?;
    let regs = from_blob("registers", &state.regs)?;
    let sregs = from_blob("special registers", &state.sregs)?;
    let xcrs = from_blob("extended control registers", &state.xcrs)?;
    let debugregs = from_blob("debug registers", &state.debugregs)?;
    let lapic = from_blob("local APIC", &state.lapic)?;
    let events = from_blob("pending events", &state.events)?;

    let set_all = || -> Result<(), VmError> {
        // First: the later steps are checked against it.
        if !is_shown {
            vcpu.set_cpuid(&cpuid)?;
        }
        vcpu.set_mp_state(mp_state)?;
        // Before the events: it clears a pending exception.
        vcpu.set_regs(&regs)?;
        // Before the APIC: it holds the APIC's base and mode.
        vcpu.set_sregs(&sregs)?;
        // XCR0 before the area it governs would drop components the guest has switched off; KVM takes the area as is.
        vcpu.set_xsave(&state.xsave.0)?;
        vcpu.set_xcrs(&xcrs)?;
        vcpu.set_debugregs(&debugregs)?;
        // Before the deadline: the APIC's timer mode decides whether a deadline is taken at all.
        vcpu.set_lapic(&lapic)?;
        vcpu.set_msrs(&msrs)?;
        // After the registers, which clear them.
        vcpu.set_events(&events)?;
        vcpu.clock_was_stopped()
    };
    match set_all() {
        Ok(()) => Ok(selection),
        // It names the first alone; the user wants to know all of them.
        Err(VmError::Msr { .. }) => {
            Err(VcpuError::Lacking { missing: msrs::missing(&msrs, &host.msr_indices()?, vcpu) })
        }
        Err(source) => {
            let missing = features::missing_in_kvm(cpuid.as_slice(), host.supported_cpuid()?.as_slice());
            Err(if missing.is_empty() {
                VcpuError::Kvm { verb: "restore", index: state.index, source }
            } else {
                VcpuError::Lacking { missing }
            })
        }
    }
}

/// Compared before anything is set: KVM accepts a CPUID that promises more than the CPU can do, and with the parameter `ignore_msrs`
/// any MSR.
fn check(host: &System, cpuid: &[kvm_cpuid_entry2], saved: &[kvm_msr_entry]) -> Result<(), VcpuError> {
    let mut missing = features::missing(cpuid);
    missing.extend(msrs::unknown(saved, &host.msr_indices()?));
    if missing.is_empty() { Ok(()) } else { Err(VcpuError::Lacking { missing }) }
}

/// IA32_DEBUGCTL. A host without virtualised branch records complains about every write to it in its log, even of the 0
/// that a fresh vCPU has.
const DEBUGCTL: u32 = 0x1d9;

fn settable(mut msrs: Vec<kvm_msr_entry>) -> Vec<kvm_msr_entry> {
    msrs.retain(|msr| msr.index != DEBUGCTL || msr.data != 0);
    msrs
}
