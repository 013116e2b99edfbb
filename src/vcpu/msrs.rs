//! Which MSRs belong to a snapshot: everything KVM lists, and the MTRRs, except a deny-list; some must be there.

use std::ops::RangeInclusive;

use kvm_bindings::kvm_msr_entry;

use crate::kvm::{KvmVcpu, VmError};

/// Time-stamp counter.
pub const TSC: u32 = 0x10;
/// What the guest has added to the TSC, by writing to it or to this.
pub const TSC_ADJUST: u32 = 0x3b;
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

/// Control registers of the machine-check banks, which KVM leaves out of its list too. What a bank holds besides is zero:
/// nobody injects machine checks.
fn bank_controls() -> impl Iterator<Item = u32> {
    (0x400..0x480).step_by(4)
}

/// What is saved of a guest although no KVM lists it.
fn never_listed() -> impl Iterator<Item = u32> {
    MTRRS.into_iter().flatten().chain(bank_controls())
}

/// Without one of these a guest would come back broken, so a host that does not give them is refused.
const MUST_HAVE: [(u32, &str); 14] = [
    (TSC, "IA32_TSC"),
    (TSC_DEADLINE, "IA32_TSC_DEADLINE"),
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

/// Names of other MSRs that one host has and another lacks (Intel SDM volume 4, AMD APM volume 2, appendix A).
const NAMES: [(u32, &str); 15] = [
    (0x3b, "IA32_TSC_ADJUST"),
    (0x48, "IA32_SPEC_CTRL"),
    (0x122, "IA32_TSX_CTRL"),
    (0x140, "MISC_FEATURES_ENABLES"),
    (0x1c4, "IA32_XFD"),
    (0x1c5, "IA32_XFD_ERR"),
    (0x1d9, "IA32_DEBUGCTL"),
    (0xda0, "IA32_XSS"),
    (0xd90, "IA32_BNDCFGS"),
    (0xe1, "IA32_UMWAIT_CONTROL"),
    (0xc000_0103, "TSC_AUX"),
    (0xc000_0104, "TSC_RATIO"),
    (0xc001_0015, "HWCR"),
    (0xc001_011f, "VIRT_SPEC_CTRL"),
    (0xc001_1029, "DE_CFG"),
];

/// An MSR as a message names it.
pub fn name(index: u32) -> String {
    let known = MUST_HAVE.iter().chain(&NAMES).find(|(known, _)| *known == index);
    known.map_or_else(|| format!("MSR {index:#x}"), |(_, name)| format!("MSR {name} ({index:#x})"))
}

/// MSRs that cannot be saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum SelectError {
    /// KVM refused to be asked.
    #[error(transparent)]
    Kvm(#[from] VmError),
    /// A must-have MSR is missing.
    #[error("This host's KVM does not give {name} ({index:#x}), without which no guest can be saved")]
    Missing {
        /// Its name.
        name: &'static str,
        /// Its number.
        index: u32,
    },
    /// A saved state without a must-have MSR.
    #[error("The saved state has no value for {}; the bundle is damaged", name(*index))]
    NotSaved {
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
        let candidates = listed.iter().copied().chain(never_listed());
        let mut chosen = in_restore_order(candidates.filter(|index| !is_denied(*index)).collect());
        for index in std::mem::take(&mut chosen) {
            if is_readable(vcpu, index)? {
                chosen.push(index);
            }
        }
        match missing_must_have(&chosen) {
            Some((index, name)) => Err(SelectError::Missing { name, index }),
            None => Ok(MsrSelection(chosen)),
        }
    }

    /// What is saved of a machine that was restored from `saved`: the same MSRs again. This host has just taken every one of
    /// them; those that it offers beyond belong to features that this guest was never shown.
    ///
    /// # Errors
    /// A must-have MSR is not among them.
    pub fn of_saved(saved: &[kvm_msr_entry]) -> Result<Self, SelectError> {
        let chosen = in_restore_order(saved.iter().map(|msr| msr.index).collect());
        match missing_must_have(&chosen) {
            Some((index, _)) => Err(SelectError::NotSaved { index }),
            None => Ok(MsrSelection(chosen)),
        }
    }

    /// The numbers, in the order to read and to set them.
    pub fn indices(&self) -> &[u32] {
        &self.0
    }
}

/// Names of those of `saved` that this host's KVM does not have among what it `listed`.
pub fn unknown(saved: &[kvm_msr_entry], listed: &[u32]) -> Vec<String> {
    saved.iter().filter(|msr| !is_known(msr.index, listed)).map(|msr| name(msr.index)).collect()
}

fn is_known(index: u32, listed: &[u32]) -> bool {
    listed.contains(&index) || never_listed().any(|known| known == index)
}

/// Names of those of `saved` that this host lacks: its KVM does not have them among the `listed`, or refuses their value. The
/// list is asked as well because KVM takes some MSRs, TSC_AUX among them, whose instructions the CPU does not have.
pub fn missing(saved: &[kvm_msr_entry], listed: &[u32], vcpu: &KvmVcpu) -> Vec<String> {
    let takes = |msr: &kvm_msr_entry| vcpu.set_msrs(std::slice::from_ref(msr)).is_ok();
    saved
        .iter()
        .filter(|msr| !is_known(msr.index, listed) || !takes(msr))
        .map(|msr| name(msr.index))
        .collect()
}

fn missing_must_have(chosen: &[u32]) -> Option<(u32, &'static str)> {
    MUST_HAVE.into_iter().find(|(index, _)| !chosen.contains(index))
}

fn is_readable(vcpu: &KvmVcpu, index: u32) -> Result<bool, VmError> {
    match vcpu.msrs(&[index]) {
        Ok(_) => Ok(true),
        Err(VmError::Msr { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_denied(index: u32) -> bool {
    DENIED.iter().any(|(range, _)| range.contains(&index))
}

/// Each once: the TSC first (what depends on it comes later), the deadline last.
fn in_restore_order(mut indices: Vec<u32>) -> Vec<u32> {
    let rank = |index: u32| match index {
        TSC => 0,
        TSC_DEADLINE => 2,
        _ => 1,
    };
    indices.sort_by_key(|index| (rank(*index), *index));
    indices.dedup();
    indices
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deadline_is_set_after_everything_else_and_the_tsc_before() {
        assert_eq!(in_restore_order(vec![TSC_DEADLINE, 0x1b, TSC, 0x277]), [TSC, 0x1b, 0x277, TSC_DEADLINE]);
    }

    fn saved(indices: impl Iterator<Item = u32>) -> Vec<kvm_msr_entry> {
        indices.map(|index| kvm_msr_entry { index, ..Default::default() }).collect()
    }

    #[test]
    fn a_restored_machine_saves_what_was_saved_of_it_before() {
        let all = MUST_HAVE.iter().map(|(index, _)| *index).chain([0x1b, 0x1b]);
        let chosen = MsrSelection::of_saved(&saved(all)).unwrap();
        assert_eq!(chosen.indices().len(), MUST_HAVE.len() + 1);
        assert_eq!((chosen.indices()[0], chosen.indices().last()), (TSC, Some(&TSC_DEADLINE)));
    }

    #[test]
    fn a_state_without_any_of_the_must_haves_is_refused() {
        for (missing, _) in MUST_HAVE {
            let rest = MUST_HAVE.iter().map(|(index, _)| *index).filter(|index| *index != missing);
            let error = MsrSelection::of_saved(&saved(rest)).unwrap_err();
            assert!(matches!(error, SelectError::NotSaved { index } if index == missing), "{error}");
        }
    }

    #[test]
    fn an_msr_is_called_by_its_name_where_it_has_one() {
        assert_eq!(name(0xc000_0103), "MSR TSC_AUX (0xc0000103)");
        assert_eq!(name(0x10), "MSR IA32_TSC (0x10)");
        assert_eq!(name(0x1234), "MSR 0x1234");
    }

    #[test]
    fn no_must_have_is_denied() {
        assert!(MUST_HAVE.iter().all(|(index, _)| !is_denied(*index)));
        assert!(!is_denied(TSC_DEADLINE));
    }
}
