//! The CPUID a cold-booted guest sees. A restored one sees exactly what was baked.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

/// Leaf 1, ECX: TSC-deadline timer (Intel SDM volume 2A, CPUID). KVM's in-kernel APIC has it, but does not report it.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1, ECX: a hypervisor is present.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, ECX: VMX; leaf 0x80000001, ECX: SVM. What a guest's own guests leave in KVM is not saved.
const VMX: u32 = 1 << 5;
const SVM: u32 = 1 << 2;
/// Leaf 7, ECX: WAITPKG, which needs hardware that a restore on another host may lack.
const WAITPKG: u32 = 1 << 5;
/// AMX. Its state is given to a process that asks the kernel for it, which Ember does not; a host before Linux 6.4 reports the
/// instructions all the same. Leaf 7, EDX: BF16, TILE, INT8; leaf 7.1, EAX: FP16, EDX: COMPLEX; leaf 0xd, EAX: its two components.
const AMX: u32 = 1 << 22 | 1 << 24 | 1 << 25;
const AMX_FP16: u32 = 1 << 21;
const AMX_COMPLEX: u32 = 1 << 8;
const AMX_STATE: u32 = 1 << 17 | 1 << 18;
/// Leaf 0xd.1, EAX: extended feature disable, which exists for AMX alone.
const XFD: u32 = 1 << 4;
/// Leaf 0x40000001, EAX: what KVM offers since Linux 5.10, so that a bundle asks for nothing of a newer one
/// (Documentation/virt/kvm/x86/cpuid.rst).
const KVM_FEATURES: u32 = 1 << 24 | 0x7fff;
/// Leaf 0x40000001, EAX: asynchronous page faults, which a restore would leave waiting for a token for ever
/// (Documentation/virt/kvm/x86/cpuid.rst: bits 4, 10 and 14).
const ASYNC_PF: u32 = 1 << 4 | 1 << 10 | 1 << 14;
/// Leaf 1, ECX: XSAVE is switched on in CR4; MONITOR is.
const OSXSAVE: u32 = 1 << 27;
const MONITOR: u32 = 1 << 3;
/// Leaf 1, EDX: the APIC is switched on.
const APIC: u32 = 1 << 9;
/// Leaf 7, ECX: protection keys are switched on in CR4.
const OSPKE: u32 = 1 << 4;
/// Leaf 1, EDX: more than one logical processor in the package.
const HTT: u32 = 1 << 28;

/// What vCPU `index` of `count` is shown, from what the host supports.
pub fn for_vcpu(supported: &CpuId, index: u32, count: u32) -> CpuId {
    let mut cpuid = supported.clone();
    for entry in cpuid.as_mut_slice() {
        normalise(entry, index, count);
    }
    cpuid
}

/// Whether two lists show the same CPU. What KVM itself sets in them does not count, as it follows registers that are set later:
/// the bits of CR4 and of the APIC's base, MONITOR with IA32_MISC_ENABLE, and the sizes of what XCR0 and IA32_XSS switch on.
pub fn is_same(one: &[kvm_cpuid_entry2], other: &[kvm_cpuid_entry2]) -> bool {
    one.len() == other.len() && one.iter().zip(other).all(|(a, b)| fixed(*a) == fixed(*b))
}

fn fixed(mut entry: kvm_cpuid_entry2) -> kvm_cpuid_entry2 {
    match (entry.function, entry.index) {
        (0x1, _) => {
            entry.ecx &= !(OSXSAVE | MONITOR);
            entry.edx &= !APIC;
        }
        (0x7, 0) => entry.ecx &= !OSPKE,
        (0xd, 0 | 1) => entry.ebx = 0,
        _ => {}
    }
    entry
}

fn normalise(entry: &mut kvm_cpuid_entry2, index: u32, count: u32) {
    match entry.function {
        0x1 => {
            entry.ebx = entry.ebx & 0xffff | (count & 0xff) << 16 | (index & 0xff) << 24;
            entry.ecx = entry.ecx & !VMX | TSC_DEADLINE | HYPERVISOR;
            entry.edx = if count > 1 { entry.edx | HTT } else { entry.edx & !HTT };
        }
        // Cache sharing: nothing is shared between vCPUs, each is a core of its own.
        0x4 | 0x8000_001d => {
            entry.eax = entry.eax & 0x3fff & !(0xfff << 14) | cores_field(entry.function, count)
        }
        0x7 if entry.index == 0 => {
            entry.ecx &= !WAITPKG;
            entry.edx &= !AMX;
        }
        0x7 if entry.index == 1 => {
            entry.eax &= !AMX_FP16;
            entry.edx &= !AMX_COMPLEX;
        }
        0xd if entry.index == 0 => entry.eax &= !AMX_STATE,
        0xd if entry.index == 1 => entry.eax &= !XFD,
        // The components' places, and what AMX can do.
        0xd if matches!(entry.index, 17 | 18) => clear(entry),
        0x1d | 0x1e => clear(entry),
        // No PMU: its MSRs are not saved.
        0xa => clear(entry),
        0xb | 0x1f => topology(entry, index, count),
        0x4000_0001 => entry.eax &= KVM_FEATURES & !ASYNC_PF,
        0x8000_0001 => entry.ecx &= !SVM,
        // What SVM can do.
        0x8000_000a => clear(entry),
        0x8000_0008 => entry.ecx = entry.ecx & !0xf0ff | (count - 1) & 0xff | apic_id_bits(count) << 12,
        0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (index, index & 0xff, 0),
        _ => {}
    }
}

fn clear(entry: &mut kvm_cpuid_entry2) {
    (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
}

/// Leaf 4, EAX bits 26 to 31: cores in the package - 1. AMD's leaf has no such field.
fn cores_field(function: u32, count: u32) -> u32 {
    if function == 4 { ((count - 1) & 0x3f) << 26 } else { 0 }
}

/// Leaves 0xb and 0x1f: level 0 is a thread (one a core), level 1 the cores of the one package.
fn topology(entry: &mut kvm_cpuid_entry2, index: u32, count: u32) {
    const LEVEL_SMT: u32 = 1;
    const LEVEL_CORE: u32 = 2;
    let (shift, logical, level) = match entry.index {
        0 => (0, 1, LEVEL_SMT),
        1 => (apic_id_bits(count), count, LEVEL_CORE),
        _ => (0, 0, 0),
    };
    entry.eax = shift;
    entry.ebx = logical;
    entry.ecx = entry.index & 0xff | level << 8;
    entry.edx = index;
}

/// Bits that hold an APIC id below `count`.
fn apic_id_bits(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
            ..Default::default()
        }
    }

    #[test]
    fn each_vcpu_has_its_own_apic_id_everywhere() {
        let supported =
            CpuId::from_entries(&[entry(1, 0), entry(0xb, 0), entry(0xb, 1), entry(0x8000_001e, 0)]).unwrap();
        let cpuid = for_vcpu(&supported, 3, 4);
        let all = cpuid.as_slice();
        assert_eq!(all[0].ebx >> 16, 3 << 8 | 4);
        assert_eq!((all[1].edx, all[2].edx, all[3].eax), (3, 3, 3));
        assert_eq!((all[2].eax, all[2].ebx), (2, 4));
    }

    #[test]
    fn a_cpu_is_the_same_whatever_its_guest_has_switched_on() {
        let shown = [entry(1, 0), entry(7, 0), entry(0xd, 0), entry(0x4000_0001, 0)];
        let mut saved = shown;
        (saved[0].ecx, saved[0].edx) = (!(OSXSAVE | MONITOR), !APIC);
        (saved[1].ecx, saved[2].ebx) = (!OSPKE, 576);
        assert!(is_same(&shown, &saved));
        let changes: [fn(&mut kvm_cpuid_entry2); 6] = [
            |entry| entry.eax ^= 1,
            |entry| entry.ebx ^= 1 << 16,
            |entry| entry.ecx ^= 1 << 5,
            |entry| entry.edx ^= 1 << 31,
            |entry| entry.function ^= 1 << 4,
            |entry| entry.flags ^= 1,
        ];
        for change in changes {
            let mut other = saved;
            change(&mut other[3]);
            assert!(!is_same(&shown, &other));
            let mut other = saved;
            change(&mut other[0]);
            assert!(!is_same(&shown, &other));
        }
        assert!(!is_same(&shown, &saved[..3]));
    }

    #[test]
    fn guests_do_not_nest() {
        let supported =
            CpuId::from_entries(&[entry(1, 0), entry(0x8000_0001, 0), entry(0x8000_000a, 0)]).unwrap();
        let cpuid = for_vcpu(&supported, 0, 1);
        assert_eq!((cpuid.as_slice()[0].ecx & VMX, cpuid.as_slice()[1].ecx & SVM), (0, 0));
        assert_eq!(cpuid.as_slice()[2].edx, 0);
    }

    #[test]
    fn amx_is_hidden_as_a_whole() {
        let leaves = [entry(7, 0), entry(7, 1), entry(0xd, 0), entry(0xd, 1), entry(0xd, 17), entry(0x1d, 1)];
        let cpuid = for_vcpu(&CpuId::from_entries(&leaves).unwrap(), 0, 1);
        let [first, second, components, more, tiles, palette] = cpuid.as_slice() else { panic!() };
        assert_eq!((first.edx & (1 << 22 | 1 << 24 | 1 << 25), first.edx & 1 << 23), (0, 1 << 23));
        assert_eq!((second.eax & 1 << 21, second.edx & 1 << 8, second.eax & 1 << 4), (0, 0, 1 << 4));
        assert_eq!((components.eax & 3 << 17, components.eax & 7, more.eax & 0x1f), (0, 7, 0xf));
        assert_eq!((tiles.eax, tiles.ebx, palette.eax, palette.ebx), (0, 0, 0, 0));
    }

    #[test]
    fn nothing_is_asked_of_a_kvm_that_is_newer_than_the_oldest() {
        let cpuid = for_vcpu(&CpuId::from_entries(&[entry(0x4000_0001, 0)]).unwrap(), 0, 1);
        assert_eq!(cpuid.as_slice()[0].eax, 0x0100_7fff & !ASYNC_PF);
    }

    #[test]
    fn asynchronous_page_faults_and_the_pmu_are_hidden() {
        let supported = CpuId::from_entries(&[entry(0x4000_0001, 0), entry(0xa, 0)]).unwrap();
        let cpuid = for_vcpu(&supported, 0, 1);
        assert_eq!(cpuid.as_slice()[0].eax & (1 << 4 | 1 << 10 | 1 << 14), 0);
        assert_eq!(cpuid.as_slice()[1].eax, 0);
    }
}
