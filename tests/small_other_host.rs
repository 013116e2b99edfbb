//! A bundle for a host with another processor is refused before its guest runs, with what is missing.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

mod common;

use common::bundles::{State, change_state};
use common::{BAD_BUNDLE, Ended, GUEST_FAILED, HOST_CANNOT, Place, finish, run_command};

/// Runs a bundle whose machine was changed.
fn run_changed(change: impl FnOnce(&mut State)) -> Ended {
    let place = Place::new();
    let bundle = place.bake("echo");
    change_state(&bundle, change);
    finish(common::ember(["verify"]).arg(&bundle)).succeeds();
    finish(&mut run_command(&bundle, "x"))
}

#[test]
fn a_machine_that_was_only_written_anew_runs() {
    run_changed(|_| {}).answers("x");
}

/// `struct kvm_cpuid_entry2`: function, index, flags, eax, ebx, ecx, edx, three words of padding.
const CPUID_ENTRY: usize = 40;

/// Sets bits of a register (0 is EAX) of a CPUID leaf.
fn claim(state: &mut State, leaf: u32, register: usize, bits: u32) {
    let entries = state.vcpu.cpuid.0.chunks_exact_mut(CPUID_ENTRY);
    let mut claimed = 0;
    for entry in entries.filter(|entry| entry[..8] == [leaf.to_le_bytes(), [0; 4]].concat()[..]) {
        let word = &mut entry[12 + 4 * register..][..4];
        let value = u32::from_le_bytes((&*word).try_into().unwrap()) | bits;
        word.copy_from_slice(&value.to_le_bytes());
        claimed += 1;
    }
    assert_eq!(claimed, 1, "leaf {leaf:#x}");
}

#[test]
fn a_processor_that_lacks_what_the_guest_was_shown_is_refused_by_name() {
    // AVX-512 for Xeon Phi, of which no other processor has ever had anything: leaf 7, EBX bits 26 and 27.
    let ended = run_changed(|state| claim(state, 7, 1, 1 << 26 | 1 << 27));
    ended.fails(HOST_CANNOT, "This host's CPU lacks");
    assert!(ended.errors.contains("cpuid 0x7.0 ebx bit 26, cpuid 0x7.0 ebx bit 27"), "{ended:?}");
    // AMX tiles: no host of these tests has them, and they have a name.
    run_changed(|state| claim(state, 7, 3, 1 << 24)).fails(HOST_CANNOT, "lacks amx_tile");
}

#[test]
fn a_clock_that_this_host_cannot_give_is_refused() {
    if has_tsc_scaling() {
        run_changed(|state| state.machine.tsc_khz *= 2).answers("x");
        return;
    }
    // Faster than the host, KVM would take the frequency and let the guest's clock jump.
    for factor in [2.0, 0.5, 1.001, 0.999] {
        let ended = run_changed(|state| state.machine.tsc_khz = scaled(state.machine.tsc_khz, factor));
        ended.fails(HOST_CANNOT, "TSC runs at");
    }
}

#[test]
fn a_clock_as_exact_as_ntp_is_the_same_clock() {
    for factor in [1.0001, 0.9999] {
        run_changed(|state| state.machine.tsc_khz = scaled(state.machine.tsc_khz, factor)).answers("x");
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "kHz of a processor")]
fn scaled(khz: u32, factor: f64) -> u32 {
    (f64::from(khz) * factor) as u32
}

/// What the kernel says of the processor; where no SVM or VMX is there, KVM cannot use it either.
fn has_tsc_scaling() -> bool {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let has = |flag: &str| text.split_whitespace().any(|word| word == flag);
    has("tsc_scaling") && (has("svm") || has("vmx"))
}

#[test]
fn structures_of_another_length_are_refused() {
    run_changed(|state| state.vcpu.regs.0.truncate(8)).fails(BAD_BUNDLE, "registers");
    run_changed(|state| state.vcpu.cpuid.0.truncate(39)).fails(BAD_BUNDLE, "CPUID");
    run_changed(|state| state.vm.ioapic.0.push(0)).fails(BAD_BUNDLE, "I/O APIC");
    run_changed(|state| state.vcpu.cpuid.0 = vec![0; CPUID_ENTRY * 300]).fails(BAD_BUNDLE, "300 entries");
}

#[test]
fn an_xsave_area_of_another_length_is_no_crash() {
    for len in [0, 100, 4095, 4097, 1 << 20] {
        let ended = run_changed(|state| state.vcpu.xsave.0.resize(len, 0));
        ended.is_sane();
        assert!([BAD_BUNDLE, HOST_CANNOT].contains(&ended.code()), "{len}: {ended:?}");
    }
}

#[test]
fn registers_that_no_processor_takes_are_no_crash() {
    // `struct kvm_sregs`: eight segments of 24 bytes, two descriptor tables of 16, then CR0, 2, 3, 4, 8 and EFER.
    for (name, at) in [("CR0", 224), ("CR4", 248), ("EFER", 264)] {
        let ended = run_changed(|state| state.vcpu.sregs.0[at..at + 8].fill(0xff));
        // What KVM makes of it is KVM's affair; some take it and let the guest run on.
        ended.is_sane();
        assert!([0, HOST_CANNOT, GUEST_FAILED].contains(&ended.code()), "{name}: {ended:?}");
    }
}
