//! What earlier formats' releases baked is restored until it answers.
//!
//! The goldens come from the emulated host with its clock that counts instructions, where everything that a bundle
//! depends on is the same on every machine: processor, features, 1000.000 MHz. `figures_goldens.rs` restores them there
//! as they are. Here they get this host's frequency, which their guest does not look at.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

mod common;

use common::bundles::{change_state, goldens};
use common::{HOST_CANNOT, Place, ember, finish, in_rig, run_command};
use snapshot_format::state::FormatVersion;

#[test]
fn every_format_that_is_read_has_a_golden_bundle() {
    let place = Place::new();
    let formats: Vec<String> = goldens(&place).into_iter().map(|(format, _)| format).collect();
    for version in FormatVersion::readable() {
        assert!(formats.contains(&version.to_string()), "{version}: {formats:?}");
    }
}

#[test]
fn goldens_are_whole_and_say_their_format() {
    let place = Place::new();
    for (format, bundle) in goldens(&place) {
        finish(ember(["verify"]).arg(&bundle)).succeeds();
        let told = finish(ember(["inspect", "--json"]).arg(&bundle)).succeeds().json();
        assert_eq!(told["state"]["format"], format);
    }
}

#[test]
fn goldens_answer() {
    let place = Place::new();
    let own = tsc_khz(&place);
    for (format, bundle) in goldens(&place) {
        change_state(&bundle, |state| state.machine.tsc_khz = own);
        let ended = finish(run_command(&bundle, "verdict").args(["--repeat", "2"]));
        if !in_rig() && ended.code() == HOST_CANNOT {
            // Another processor, or another KVM, has not all that the emulated host has; then it must say what.
            ended.fails(HOST_CANNOT, "");
            assert!(
                ["This host's CPU lacks", "KVM could not set MSR"]
                    .iter()
                    .any(|words| ended.errors.contains(words))
            );
            continue;
        }
        // 80 values before the freeze (two warm-up events of 40), 40 more for each event.
        let expected = ["ok 40", "ok 80"].concat();
        assert_eq!(ended.succeeds().text(), expected, "{format}");
    }
}

/// The frequency that a guest of this host is baked with.
fn tsc_khz(place: &Place) -> u32 {
    common::bundles::manifest(&place.bake("echo")).cpu.tsc_khz
}
