//! Which CPU features a saved guest was shown that this host's CPU does not have.
//!
//! KVM accepts a CPUID that promises more than the CPU can do; the guest would then die of an invalid instruction at some
//! later time. So a restore compares before it applies.

use std::arch::x86_64::__cpuid_count;

use kvm_bindings::kvm_cpuid_entry2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// A register of CPUID whose bits are features of the CPU (Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E).
struct Word {
    leaf: u32,
    subleaf: u32,
    register: Register,
    /// Bits that KVM emulates, that mirror another register, or that are topology: a host may lack them.
    ignored: u32,
    /// Names of the bits a user may know.
    names: &'static [(u32, &'static str)],
}

const fn word(
    leaf: u32,
    subleaf: u32,
    register: Register,
    ignored: u32,
    names: &'static [(u32, &'static str)],
) -> Word {
    Word { leaf, subleaf, register, ignored, names }
}

/// MONITOR, x2APIC, TSC deadline, OSXSAVE, hypervisor.
const IGNORED_1_ECX: u32 = 1 << 3 | 1 << 21 | 1 << 24 | 1 << 27 | 1 << 31;
/// Multi-threading: topology.
const IGNORED_1_EDX: u32 = 1 << 28;
/// TSC_ADJUST is emulated.
const IGNORED_7_EBX: u32 = 1 << 1;
/// OSPKE mirrors CR4.
const IGNORED_7_ECX: u32 = 1 << 4;
/// Mitigations, which KVM derives from AMD's bits or emulates: bits 10 and 26 to 31.
const IGNORED_7_EDX: u32 = 1 << 10 | 0xfc00_0000;
/// Legacy multi-processing: topology.
const IGNORED_8_ECX: u32 = 1 << 1 | 1 << 22;

/// Leaf 7.2: MCDT_NO tells of an erratum, not of something that can be used.
const IGNORED_7_2_EDX: u32 = 1 << 5;
/// All but CLZERO, XSAVEERPTR and WBNOINVD: mitigations, which KVM derives from Intel's bits, and sizes.
const IGNORED_8_8_EBX: u32 = !(1 | 1 << 2 | 1 << 9);
/// All but automatic IBRS, which EFER has a bit for: KVM tells of others where the CPU has no such leaf.
const IGNORED_8_21_EAX: u32 = !(1 << 8);

const WORDS: [Word; 15] = [
    word(
        1,
        0,
        Register::Ecx,
        IGNORED_1_ECX,
        &[
            (0, "sse3"),
            (1, "pclmulqdq"),
            (9, "ssse3"),
            (12, "fma"),
            (13, "cx16"),
            (19, "sse4_1"),
            (20, "sse4_2"),
            (22, "movbe"),
            (23, "popcnt"),
            (25, "aes"),
            (26, "xsave"),
            (28, "avx"),
            (29, "f16c"),
            (30, "rdrand"),
        ],
    ),
    word(1, 0, Register::Edx, IGNORED_1_EDX, &[(25, "sse"), (26, "sse2")]),
    word(
        7,
        0,
        Register::Ebx,
        IGNORED_7_EBX,
        &[
            (0, "fsgsbase"),
            (3, "bmi1"),
            (5, "avx2"),
            (7, "smep"),
            (8, "bmi2"),
            (9, "erms"),
            (10, "invpcid"),
            (16, "avx512f"),
            (17, "avx512dq"),
            (18, "rdseed"),
            (19, "adx"),
            (20, "smap"),
            (21, "avx512ifma"),
            (23, "clflushopt"),
            (24, "clwb"),
            (28, "avx512cd"),
            (29, "sha_ni"),
            (30, "avx512bw"),
            (31, "avx512vl"),
        ],
    ),
    word(
        7,
        0,
        Register::Ecx,
        IGNORED_7_ECX,
        &[
            (1, "avx512vbmi"),
            (3, "pku"),
            (6, "avx512_vbmi2"),
            (8, "gfni"),
            (9, "vaes"),
            (10, "vpclmulqdq"),
            (11, "avx512_vnni"),
            (12, "avx512_bitalg"),
            (14, "avx512_vpopcntdq"),
            (16, "la57"),
            (22, "rdpid"),
        ],
    ),
    word(7, 0, Register::Edx, IGNORED_7_EDX, &[(4, "fsrm"), (8, "avx512_vp2intersect"), (24, "amx_tile")]),
    word(7, 1, Register::Eax, 0, &[(4, "avx_vnni"), (5, "avx512_bf16"), (23, "avx_ifma")]),
    word(7, 1, Register::Ecx, 0, &[]),
    word(7, 1, Register::Edx, 0, &[(4, "avx_vnni_int8"), (5, "avx_ne_convert"), (10, "avx_vnni_int16")]),
    word(
        7,
        2,
        Register::Edx,
        IGNORED_7_2_EDX,
        &[(0, "psfd"), (1, "ipred_ctrl"), (2, "rrsba_ctrl"), (4, "bhi_ctrl")],
    ),
    word(
        0xd,
        0,
        Register::Eax,
        0,
        &[(1, "xsave component sse"), (2, "xsave component avx"), (5, "xsave component opmask")],
    ),
    word(
        0xd,
        1,
        Register::Eax,
        0,
        &[(0, "xsaveopt"), (1, "xsavec"), (2, "xgetbv1"), (3, "xsaves"), (4, "xfd")],
    ),
    word(
        0x8000_0001,
        0,
        Register::Ecx,
        IGNORED_8_ECX,
        &[(0, "lahf_lm"), (5, "abm"), (6, "sse4a"), (7, "misalignsse"), (8, "3dnowprefetch")],
    ),
    word(0x8000_0001, 0, Register::Edx, 0, &[(20, "nx"), (26, "pdpe1gb"), (27, "rdtscp"), (29, "lm")]),
    word(
        0x8000_0008,
        0,
        Register::Ebx,
        IGNORED_8_8_EBX,
        &[(0, "clzero"), (2, "xsaveerptr"), (9, "wbnoinvd")],
    ),
    word(0x8000_0021, 0, Register::Eax, IGNORED_8_21_EAX, &[(8, "autoibrs")]),
];

/// Vendor string of this host's CPU: leaf 0, in the order EBX, EDX, ECX.
pub fn vendor() -> String {
    let leaf = __cpuid_count(0, 0);
    let bytes: Vec<u8> = [leaf.ebx, leaf.edx, leaf.ecx].into_iter().flat_map(u32::to_le_bytes).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Names of the features in a saved CPUID that this host's CPU lacks, empty where the guest can run.
pub fn missing(saved: &[kvm_cpuid_entry2]) -> Vec<String> {
    missing_on(saved, host)
}

/// The same by what this host's KVM `supports`, which may be less than the CPU has: an old one, or one whose kernel was told to leave
/// features out. Not asked before, for KVM names less than it takes.
pub fn missing_in_kvm(saved: &[kvm_cpuid_entry2], supported: &[kvm_cpuid_entry2]) -> Vec<String> {
    missing_on(saved, |word| word.shown(supported))
}

fn missing_on(saved: &[kvm_cpuid_entry2], host: impl Fn(&Word) -> u32) -> Vec<String> {
    WORDS.iter().flat_map(|word| word.names_of(word.shown(saved) & !host(word) & !word.ignored)).collect()
}

fn host(word: &Word) -> u32 {
    // Above the highest leaf of its range a CPU answers with the highest one's content.
    if __cpuid_count(word.leaf & 0x8000_0000, 0).eax < word.leaf {
        return 0;
    }
    // Leaf 7 tells its highest subleaf.
    if word.leaf == 7 && __cpuid_count(7, 0).eax < word.subleaf {
        return 0;
    }
    let leaf = __cpuid_count(word.leaf, word.subleaf);
    match word.register {
        Register::Eax => leaf.eax,
        Register::Ebx => leaf.ebx,
        Register::Ecx => leaf.ecx,
        Register::Edx => leaf.edx,
    }
}

impl Word {
    /// The word as the guest was shown it; 0 where it was not.
    fn shown(&self, saved: &[kvm_cpuid_entry2]) -> u32 {
        let entry = saved.iter().find(|entry| entry.function == self.leaf && entry.index == self.subleaf);
        entry.map_or(0, |entry| match self.register {
            Register::Eax => entry.eax,
            Register::Ebx => entry.ebx,
            Register::Ecx => entry.ecx,
            Register::Edx => entry.edx,
        })
    }

    fn names_of(&self, bits: u32) -> impl Iterator<Item = String> + '_ {
        (0..32).filter(move |bit| bits & 1 << bit != 0).map(|bit| {
            let known = self.names.iter().find(|(known, _)| *known == bit);
            known.map_or_else(
                || {
                    format!("CPUID {:#x}.{} {:?} bit {bit}", self.leaf, self.subleaf, self.register)
                        .to_lowercase()
                },
                |(_, name)| (*name).to_owned(),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, ecx: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, ecx, ..Default::default() }
    }

    #[test]
    fn what_the_host_lacks_is_named() {
        let saved = [entry(1, 1 << 28 | 1 << 12 | 1 << 5 | 1 << 31)];
        let host =
            |word: &Word| if word.leaf == 1 && word.register == Register::Ecx { 1 << 12 } else { u32::MAX };
        assert_eq!(missing_on(&saved, host), ["cpuid 0x1.0 ecx bit 5", "avx"]);
    }

    #[test]
    fn what_kvm_does_not_offer_is_named() {
        let saved = [entry(1, 1 << 28 | 1 << 12)];
        assert_eq!(missing_in_kvm(&saved, &[entry(1, 1 << 12)]), ["avx"]);
        assert_eq!(missing_in_kvm(&saved, &[]), ["fma", "avx"]);
    }

    #[test]
    fn a_guest_that_was_shown_this_very_cpu_lacks_nothing() {
        let leaf = __cpuid_count(1, 0);
        let saved = [kvm_cpuid_entry2 { function: 1, ecx: leaf.ecx, edx: leaf.edx, ..Default::default() }];
        assert!(missing(&saved).is_empty());
    }
}
