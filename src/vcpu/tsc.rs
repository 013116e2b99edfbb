//! One TSC for all vCPUs of a machine. Values that are read or written one vCPU after the other differ by the time between,
//! and Linux stops trusting a TSC that does not agree with itself.

use kvm_bindings::kvm_msr_entry;
use snapshot_format::sections::VcpuState;

use crate::kvm::{KvmVcpu, VmError};

use super::abi::{AbiError, list_blob, list_from_blob};
use super::msrs::{TSC, TSC_ADJUST};

/// Sets the saved TSC of every vCPU to the first one's, `ticks` later. What the guest itself made differ stays: whatever it
/// writes to a TSC, KVM also adds to its IA32_TSC_ADJUST.
///
/// # Errors
/// The saved MSRs are damaged.
pub fn align_tsc(states: &mut [VcpuState], ticks: u64) -> Result<(), AbiError> {
    if states.len() < 2 && ticks == 0 {
        return Ok(());
    }
    let mut first = None;
    for state in states {
        let mut msrs = list_from_blob::<kvm_msr_entry>("MSRs", &state.msrs)?;
        let adjust = value(&msrs, TSC_ADJUST).unwrap_or(0);
        let Some(tsc) = msrs.iter_mut().find(|msr| msr.index == TSC) else { continue };
        let (first_tsc, first_adjust) = *first.get_or_insert((tsc.data.wrapping_add(ticks), adjust));
        tsc.data = first_tsc.wrapping_add(adjust.wrapping_sub(first_adjust));
        state.msrs = list_blob(&msrs);
    }
    Ok(())
}

fn value(msrs: &[kvm_msr_entry], index: u32) -> Option<u64> {
    msrs.iter().find(|msr| msr.index == index).map(|msr| msr.data)
}

/// Gives all vCPUs the offset to the host's TSC that the first has, once their MSRs are set. Where KVM has no such attribute
/// (before Linux 5.16) the equal values that [`align_tsc`] has left must do: KVM takes values written within a second for
/// attempts to synchronise.
///
/// # Errors
/// KVM refused an offset.
pub fn share_tsc_offset(vcpus: &[KvmVcpu]) -> Result<(), VmError> {
    let [first, _, ..] = vcpus else { return Ok(()) };
    if !first.has_tsc_offset() {
        return Ok(());
    }
    let (offset, adjust) = (first.tsc_offset()?, adjust(first)?);
    // The first is given its own again: where the MSRs were written more than a second apart, KVM has begun to count anew which vCPUs
    // agree, and would take it for one that does not.
    for vcpu in vcpus {
        let apart = self::adjust(vcpu)?.wrapping_sub(adjust);
        vcpu.set_tsc_offset(offset.wrapping_add(apart))?;
    }
    Ok(())
}

/// What the guest's TSC is now.
///
/// # Errors
/// KVM does not give it.
pub fn tsc(vcpu: &KvmVcpu) -> Result<u64, VmError> {
    Ok(value(&vcpu.msrs(&[TSC])?, TSC).unwrap_or(0))
}

fn adjust(vcpu: &KvmVcpu) -> Result<u64, VmError> {
    Ok(value(&vcpu.msrs(&[TSC_ADJUST])?, TSC_ADJUST).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(tsc: u64, adjust: u64) -> VcpuState {
        let msr = |index, data| kvm_msr_entry { index, data, ..Default::default() };
        VcpuState { msrs: list_blob(&[msr(TSC, tsc), msr(TSC_ADJUST, adjust)]), ..Default::default() }
    }

    fn tscs(states: &[VcpuState]) -> Vec<u64> {
        let msrs = |state: &VcpuState| list_from_blob::<kvm_msr_entry>("MSRs", &state.msrs).unwrap();
        states.iter().map(|state| value(&msrs(state), TSC).unwrap()).collect()
    }

    #[test]
    fn every_vcpu_gets_the_first_ones_tsc() {
        let mut states = [state(1000, 0), state(1300, 0), state(1450, 0)];
        align_tsc(&mut states, 0).unwrap();
        assert_eq!(tscs(&states), [1000, 1000, 1000]);
        align_tsc(&mut states, 50).unwrap();
        assert_eq!(tscs(&states), [1050, 1050, 1050]);
    }

    #[test]
    fn what_the_guest_made_differ_stays() {
        let mut states = [state(1000, 5), state(1300, 0), state(1450, 105)];
        align_tsc(&mut states, 0).unwrap();
        assert_eq!(tscs(&states), [1000, 995, 1100]);
    }

    #[test]
    fn one_vcpu_is_left_alone_and_damage_is_told() {
        let mut broken = [VcpuState { msrs: snapshot_format::sections::Blob(vec![1]), ..Default::default() }];
        assert!(align_tsc(&mut broken, 0).is_ok());
        assert!(align_tsc(&mut broken, 1).is_err());
        let mut one = [state(1000, 3)];
        align_tsc(&mut one, 7).unwrap();
        assert_eq!(tscs(&one), [1007]);
    }
}
