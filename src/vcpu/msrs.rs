//! Which MSRs belong to a snapshot: everything KVM lists, and the MTRRs, except a deny-list; some must be there.

use std::ops::RangeInclusive;

use crate::kvm::{KvmVcpu, VmError};

/// Time-stamp counter.
pub const TSC: u32 = 0x10;
/// Deadline of the local APIC's timer; set last, since it is compared with the TSC when it is written.
pub const TSC_DEADLINE: u32 = 0x6e0;

/// MSRs that are not a guest's state, with the reason.
const DENIED: [(RangeInclusive<u32>, &str); 13] = [
    (0xc1..=0xc8, "performance counters; the guest has no PMU"),
    (0x186..=0x193, "performance event selectors"),
    (0x309..=0x30c, "fixed performance counters"),
    (0x345..=0x345, "PMU capabilities"),
    (0x38d..=0x390, "PMU control"),
    (0x3f1..=0x3f2, "PEBS"),
    (0x600..=0x600, "debug store area of the PMU"),
    (0x480..=0x493, "VMX capabilities; guests do not nest"),
    (0x4000_0000..=0x4000_01ff, "Hyper-V, never offered"),
    (0xc000_0300..=0xc000_0304, "AMD PMU version 2"),
    (0xc001_0000..=0xc001_0007, "AMD performance counters"),
    (0xc001_0117..=0xc001_0117, "SVM host save area; guests do not nest"),
    (0xc001_0200..=0xc001_020b, "AMD extended performance counters"),
];

/// MTRRs: KVM keeps them per vCPU but leaves them out of its list (the guest's view of memory types depends on them).
const MTRRS: [RangeInclusive<u32>; 5] =
    [0x200..=0x20f, 0x250..=0x250, 0x258..=0x259, 0x268..=0x26f, 0x2ff..=0x2ff];

/// Without one of these a guest would come back broken, so a host that does not give them is refused.
const MUST_HAVE: [(u32, &str); 13] = [
    (TSC, "IA32_TSC"),
    (0x1a0, "IA32_MISC_ENABLE"),
    (0x174, "IA32_SYSENTER_CS"),
    (0x175, "IA32_SYSENTER_ESP"),
    (0x176, "IA32_SYSENTER_EIP"),
    (0x277, "IA32_PAT"),
    (0xc000_0081, "STAR"),
    (0xc000_0082, "LSTAR"),
    (0xc000_0083, "CSTAR"),
    (0xc000_0084, "SYSCALL_MASK"),
    (0xc000_0102, "KERNEL_GS_BASE"),
    (0x4b56_4d00, "MSR_KVM_WALL_CLOCK_NEW"),
    (0x4b56_4d01, "MSR_KVM_SYSTEM_TIME_NEW"),
];

/// A host that cannot save a guest.
#[derive(Debug, thiserror::Error)]
pub enum SelectError {
    /// A must-have MSR is missing.
    #[error("This host's KVM does not give {name} ({index:#x}), without which no guest can be saved")]
    Missing {
        /// Its name.
        name: &'static str,
        /// Its number.
        index: u32,
    },
}

/// The MSRs that are saved on this host, chosen once per machine.
#[derive(Debug, Clone)]
pub struct MsrSelection(Vec<u32>);

impl MsrSelection {
    /// Chooses from what KVM `listed`, by asking a fresh `vcpu` for each: what cannot be read on this host at all is
    /// left out here, so that a short count while saving is an error.
    ///
    /// # Errors
    /// A must-have MSR is missing.
    pub fn choose(listed: &[u32], vcpu: &KvmVcpu) -> Result<Self, SelectError> {
        let candidates = listed.iter().copied().chain(MTRRS.into_iter().flatten());
        let mut chosen: Vec<u32> = candidates.filter(|index| !is_denied(*index)).collect();
        chosen.sort_unstable();
        chosen.dedup();
        chosen.retain(|index| is_readable(vcpu, *index));
        match MUST_HAVE.iter().find(|(index, _)| !chosen.contains(index)) {
            Some((index, name)) => Err(SelectError::Missing { name, index: *index }),
            None => Ok(MsrSelection(in_restore_order(chosen))),
        }
    }

    /// The numbers, in the order to read and to set them.
    pub fn indices(&self) -> &[u32] {
        &self.0
    }
}

fn is_readable(vcpu: &KvmVcpu, index: u32) -> bool {
    !matches!(vcpu.msrs(&[index]), Err(VmError::Msr { .. } | VmError::Ioctl { .. }))
}

fn is_denied(index: u32) -> bool {
    DENIED.iter().any(|(range, _)| range.contains(&index))
}

/// The TSC first (what depends on it comes later), the deadline last.
fn in_restore_order(mut indices: Vec<u32>) -> Vec<u32> {
    let rank = |index: u32| match index {
        TSC => 0,
        TSC_DEADLINE => 2,
        _ => 1,
    };
    indices.sort_by_key(|index| rank(*index));
    indices
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deadline_is_set_after_everything_else_and_the_tsc_before() {
        assert_eq!(in_restore_order(vec![TSC_DEADLINE, 0x1b, TSC, 0x277]), [TSC, 0x1b, 0x277, TSC_DEADLINE]);
    }

    #[test]
    fn no_must_have_is_denied() {
        assert!(MUST_HAVE.iter().all(|(index, _)| !is_denied(*index)));
        assert!(!is_denied(TSC_DEADLINE));
    }
}
