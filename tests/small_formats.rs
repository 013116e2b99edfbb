//! Every format that this release reads it also writes, and what it wrote answers.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

mod common;

use common::{Place, USAGE, bake_command, ember, finish, run_command};
use snapshot_format::state::FormatVersion;

#[test]
fn a_guest_can_be_written_in_every_format_and_restored_from_it() {
    for version in FormatVersion::readable() {
        let place = Place::new();
        let version = version.to_string();
        let bundle = place.bake_with("counter", &["--format", &version]);
        finish(ember(["verify"]).arg(&bundle)).succeeds();
        let told = finish(ember(["inspect", "--json"]).arg(&bundle)).json();
        assert_eq!(
            (&told["state"]["format"], &told["manifest"]["format"]),
            (&version.clone().into(), &version.into())
        );
        let ended = finish(run_command(&bundle, "verdict").args(["--repeat", "3"]));
        assert_eq!(ended.succeeds().text().matches("ok ").count(), 3, "{ended:?}");
    }
}

#[test]
fn the_wall_clock_at_the_freeze_is_what_1_1_has_and_1_0_has_not() {
    let place = Place::new();
    let frozen_at = |version: &str| {
        let bundle = place.bake_with("echo", &["--format", version, "--force"]);
        let mut at = 0;
        common::bundles::change_state(&bundle, |state| at = state.vm.frozen_at_unix_ns);
        at
    };
    assert_eq!(frozen_at("1.0"), 0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
    assert!(now.abs_diff(frozen_at("1.1").into()) < 600_000_000_000);
}

#[test]
fn a_format_that_this_release_does_not_write_is_refused() {
    let place = Place::new();
    for version in ["0.9", "1.2", "2.0"] {
        let ended = finish(bake_command("echo", &place.join("out")).args(["--format", version]));
        assert_eq!(ended.code(), USAGE, "{ended:?}");
        assert!(ended.errors.contains(version), "{ended:?}");
        assert_eq!(place.names(), [""; 0]);
    }
}
