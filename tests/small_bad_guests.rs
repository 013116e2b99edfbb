//! A guest that misbehaves is ended within its time with an exit code and a sentence of its own, and costs the host little.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

mod common;

use std::path::Path;

use common::{Ended, GUEST_FAILED, Place, TIMEOUT, bake_command, finish, guest, program, run_command};

/// A bake that must fail, and leave nothing.
fn bake(name: &str) -> Ended {
    let place = Place::new();
    let mut command = bake_command(name, &place.join("out"));
    let ended = finish(command.args(["--boot-timeout", "200ms", "--ready-timeout", "200ms"]));
    assert_eq!(place.names(), [""; 0], "{ended:?}");
    ended
}

#[test]
fn a_guest_that_is_never_warm_is_a_timeout() {
    bake("spin").fails(TIMEOUT, "The time limit passed while the guest's warm point was awaited");
}

#[test]
fn a_guest_that_halts_before_it_is_warm_has_failed() {
    bake("halt").fails(GUEST_FAILED, "The guest reset while the guest's warm point was awaited");
}

#[test]
fn a_triple_fault_before_the_warm_point_is_a_failure() {
    bake("triple-fault").fails(GUEST_FAILED, "The guest reset while the guest's warm point was awaited");
}

/// Runs `ember` with this much address space, KiB: whatever grows with what the guest writes hits it.
fn within_memory(kib: u64, arguments: &[&Path], words: &[&str]) -> Ended {
    let script = format!("ulimit -v {kib} && exec \"$@\"");
    finish(
        std::process::Command::new("sh")
            .args(["-c", &script, "sh"])
            .arg(program())
            .args(words)
            .args(arguments),
    )
}

#[test]
fn a_guest_that_floods_its_port_before_it_is_warm_costs_the_host_no_memory() {
    let place = Place::new();
    let limits = ["--boot-timeout", "1s", "--ready-timeout", "1s"];
    let words = [&["bake", "--interface", "port", "--memory", "2MiB"], &limits[..], &["--kernel"]].concat();
    let ended = within_memory(400 << 10, &[&guest("flood"), &place.join("out")], &words);
    ended.is_sane();
    assert!([GUEST_FAILED, TIMEOUT].contains(&ended.code()), "{ended:?}");
    assert_eq!(place.names(), [""; 0]);
}

#[test]
fn an_answer_without_end_costs_the_host_no_memory() {
    let place = Place::new();
    let faulty = place.bake("faulty");
    for json in [&[][..], &["--json"]] {
        let words = [&["run", "--event-text", "flood", "--timeout", "1s"], json].concat();
        let ended = within_memory(400 << 10, &[&faulty], &words);
        assert_eq!(ended.code(), TIMEOUT, "{ended:?}");
    }
}

/// A run of `faulty` that must fail without an answer.
fn run(event: &str) -> Ended {
    let place = Place::new();
    finish(run_command(&place.bake("faulty"), event).args(["--timeout", "200ms"]))
}

#[test]
fn an_answer_that_never_comes_is_a_timeout() {
    run("spin").fails(TIMEOUT, "The time limit passed while the answer was awaited");
}

#[test]
fn an_answer_that_never_ends_is_a_timeout() {
    let ended = run("stall");
    assert_eq!(ended.code(), TIMEOUT, "{ended:?}");
    assert!(ended.errors.contains("while the answer was awaited"), "{ended:?}");
}

#[test]
fn a_triple_fault_instead_of_an_answer_is_a_failure() {
    run("fault").fails(GUEST_FAILED, "The guest reset while the answer was awaited");
    run("halt").fails(GUEST_FAILED, "The guest reset while the answer was awaited");
}

#[test]
fn a_guest_that_gets_warm_again_instead_of_answering_has_failed() {
    run("wait").fails(GUEST_FAILED, "warm point");
}

#[test]
fn the_bundle_says_how_long_an_event_may_take() {
    let place = Place::new();
    let faulty = place.bake_with("faulty", &["--event-timeout", "200ms"]);
    finish(&mut run_command(&faulty, "spin")).fails(TIMEOUT, "while the answer was awaited");
}

#[test]
fn a_warm_up_event_that_fails_fails_the_bake() {
    let place = Place::new();
    let bake = |event: &str| {
        let mut command = bake_command("faulty", &place.join("out"));
        let ended = finish(command.args(["--event-timeout", "200ms", "--warm-up", event]));
        assert_eq!(place.names(), [""; 0], "{ended:?}");
        ended
    };
    bake("exit 3").fails(GUEST_FAILED, "failed on warm-up event 1 with exit code 3");
    bake("spin").fails(TIMEOUT, "Warm-up event 1 got no answer");
    bake("fault").fails(GUEST_FAILED, "Warm-up event 1 got no answer");
}

#[test]
fn a_clone_that_failed_does_not_spoil_the_next() {
    let place = Place::new();
    let faulty = place.bake("faulty");
    for event in ["fault", "halt", "wait"] {
        finish(run_command(&faulty, event).args(["--timeout", "200ms"])).is_sane();
        let ended = finish(&mut run_command(&faulty, "exit 0"));
        ended.answers("exiting");
    }
}

#[test]
fn count_ends_with_the_first_clone_that_fails() {
    let place = Place::new();
    let faulty = place.bake("faulty");
    finish(run_command(&faulty, "fault").args(["--count", "3"])).fails(GUEST_FAILED, "The guest reset");
}
