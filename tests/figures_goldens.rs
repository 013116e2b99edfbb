//! Golden bundles answer as they are where they were baked: in the emulated host, its clock counting instructions.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

mod common;

use common::bundles::goldens;
use common::{HOST_CANNOT, Place, finish, in_rig, run_command};

#[test]
fn goldens_answer_untouched() {
    let place = Place::new();
    for (format, bundle) in goldens(&place) {
        let ended = finish(run_command(&bundle, "verdict").args(["--repeat", "2"]));
        if !in_rig() && ended.code() == HOST_CANNOT {
            // Any other host may have another processor and surely has another clock.
            ended.fails(HOST_CANNOT, "this host");
            continue;
        }
        assert_eq!(ended.succeeds().text(), "ok 40ok 80", "{format}");
    }
}
