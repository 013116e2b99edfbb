//! A bundle on a host whose processor or KVM lacks something of it: refused before its guest runs, with the whole list.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy takes helpers of tests for the product"
)]

mod common;

use std::path::{Path, PathBuf};

use common::bundles::{change_state, copy};
use common::{HOST_CANNOT, Place, bake_command, finish, run_command};

/// Where the cases of the first processor leave their bundle for those of the other.
fn bundle() -> PathBuf {
    Path::new(&std::env::var_os("EMBER_BUNDLES").unwrap()).join("of-another-processor")
}

#[test]
fn a_bundle_runs_on_the_processor_that_it_was_baked_on() {
    if !bundle().exists() {
        finish(&mut bake_command("xsave", &bundle())).succeeds();
    }
    finish(&mut run_command(&bundle(), "x")).answers("ok avx");
}

#[test]
fn msrs_that_this_kvm_does_not_know_are_all_named() {
    let place = Place::new();
    let bundle = copy(&place.bake("echo"), &place.join("changed"));
    change_state(&bundle, |state| {
        // `struct kvm_msr_entry`: index, padding, value.
        for index in [0x1234_5678u32, 0x1234_5679] {
            state.vcpu.msrs.0.extend([index.to_le_bytes(), [0; 4], [1, 0, 0, 0], [0; 4]].concat());
        }
    });
    let ended = finish(&mut run_command(&bundle, "x"));
    ended.fails(
        HOST_CANNOT,
        "This host's CPU lacks MSR 0x12345678, MSR 0x12345679, which the guest was baked with",
    );
}

mod other_cpu {
    use super::*;

    #[test]
    fn everything_that_is_missing_is_named() {
        let ended = finish(&mut run_command(&bundle(), "x"));
        ended.fails(HOST_CANNOT, "This host's CPU lacks ");
        for name in ["avx2", "bmi2", "rdtscp", "xsaveopt", "MSR TSC_AUX (0xc0000103)"] {
            assert!(ended.errors.contains(name), "{name} is not named: {ended:?}");
        }
    }

    #[test]
    fn a_bundle_baked_here_runs_here() {
        let place = Place::new();
        finish(&mut run_command(&place.bake("xsave"), "x")).answers("ok avx");
    }
}
