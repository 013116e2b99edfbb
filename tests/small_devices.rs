//! What a small guest has at hand works before and after a snapshot: registers, serial port, string instructions, and
//! nothing where there is nothing.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

mod common;

use common::{Place, TIMEOUT, bake_command, ember, finish, run_command};

#[test]
fn vector_mask_and_x87_registers_survive() {
    let place = Place::new();
    let xsave = place.bake("xsave");
    let width = widest();
    for mode in [vec![], vec!["--cold"], vec!["--repeat", "3"]] {
        let ended = finish(run_command(&xsave, "").args(&mode));
        let times = if mode.contains(&"--repeat") { 3 } else { 1 };
        ended.answers(&format!("ok {width}").repeat(times));
    }
}

/// As wide as this host's processor.
fn widest() -> &'static str {
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
        "avx512"
    } else if is_x86_feature_detected!("avx") {
        "avx"
    } else {
        "sse"
    }
}

#[test]
fn what_is_printed_on_the_serial_port_is_shown_when_asked_for() {
    let place = Place::new();
    let bundle = place.join("serial.ember");
    let bake = || {
        let mut bake = bake_command("serial", &bundle);
        bake.args(["--force", "--kernel-args", "one two"]);
        bake
    };
    assert!(!finish(&mut bake()).succeeds().errors.contains("small guest:"));
    let ended = finish(bake().arg("--console"));
    assert!(ended.succeeds().errors.contains("small guest: one two\n"), "{ended:?}");

    let quiet = finish(&mut run_command(&bundle, "to the port"));
    quiet.answers("printed 11");
    assert_eq!(quiet.errors, "");
    let shown = finish(run_command(&bundle, "to the port").arg("--console"));
    shown.answers("printed 11");
    assert_eq!(shown.errors, "to the port");
}

#[test]
fn a_guest_that_fails_is_quoted_by_its_last_lines_alone() {
    let place = Place::new();
    let serial = place.bake("serial");
    std::fs::write(place.join("event"), "last words\n".repeat(1 << 20)).unwrap();
    let mut run = ember(["run", "--timeout", "300ms", "--event"]);
    let ended = finish(run.arg(place.join("event")).arg(&serial));
    assert_eq!(ended.code(), TIMEOUT, "{ended:?}");
    let (_, quoted) = ended.errors.split_once("--- last output of the guest ---\n").unwrap();
    assert!(quoted.contains("last words\n") && quoted.lines().count() <= 26, "{ended:?}");
}

#[test]
fn string_instructions_move_every_byte_once() {
    let place = Place::new();
    let strings = place.bake("strings");
    // Around 1024, the most that KVM moves an exit; and around a page.
    for length in [1, 2, 1023, 1024, 1025, 4095, 4096, 4097] {
        let event: String = ('a'..='z').cycle().take(length).collect();
        finish(&mut run_command(&strings, &event)).answers(&event);
    }
}

#[test]
fn accesses_to_nothing_do_nothing() {
    let place = Place::new();
    let wild = place.bake("wild");
    finish(run_command(&wild, "still here").args(["--repeat", "3"])).answers(&"still here".repeat(3));
    finish(run_command(&wild, "still here").arg("--cold")).answers("still here");
}

#[test]
fn counted_port_reads_go_on_where_the_snapshot_left_them() {
    let place = Place::new();
    let counter = place.bake_with("counter", &["--warm-up", "a", "--warm-up", "b"]);
    let ended = finish(run_command(&counter, "verdict").args(["--repeat", "20"]));
    let answers = ended.succeeds().text();
    let reads: Vec<u64> = answers.split("ok ").skip(1).map(|number| number.parse().unwrap()).collect();
    assert_eq!(reads.len(), 20, "{ended:?}");
    assert!(reads.is_sorted_by(|a, b| a < b), "{ended:?}");
}
