//! A guest agent replaced by an attacker ends its own machine, with a sentence and an exit code, in its time and with little memory.
//! Its neighbours answer as ever.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

mod common;

use std::path::Path;

use common::attacker::{Lair, Watched, beside_a_neighbour, run_command};
use common::{Ended, GUEST_FAILED, TIMEOUT, ember, finish};

/// The clone did not become unique (docs/exit-codes.md).
const NOT_UNIQUE: i32 = 125;

/// How a machine must end.
type End = (i32, &'static str);

const LATE: End = (TIMEOUT, "The time limit passed while the answer was awaited");
const MISSPOKE: End = (GUEST_FAILED, "does not keep to the guest protocol");

/// Short where it must pass; where it must not, nothing on a busy host comes near it.
fn limit_of((code, _): End) -> &'static str {
    if code == TIMEOUT { "600ms" } else { "20s" }
}

#[track_caller]
fn ends_with(attack: &str, ended: &Ended, (code, words): End) {
    assert_eq!(ended.status.code(), Some(code), "{attack}: {ended:?}");
    assert!(ended.errors.contains(words), "{attack}: {ended:?}");
    let obeyed = ended.errors.bytes().any(|byte| byte == 0x1b);
    assert!(!obeyed, "{attack}: a terminal would obey this: {ended:?}");
}

#[track_caller]
fn answers_with(attacks: &[(&str, End)]) {
    let lair = Lair::new();
    let bundle = lair.bake("", &[]);
    for (attack, end) in attacks {
        let ended = beside_a_neighbour(&mut run_command(&bundle, attack, limit_of(*end)), &bundle);
        ends_with(attack, &ended, *end);
    }
}

#[test]
fn an_attacker_that_answers_honestly_is_a_guest_like_any_other() {
    let lair = Lair::new();
    let bundle = lair.bake("", &["--warm-up", "honest"]);
    finish(run_command(&bundle, "honest", "10s").args(["--repeat", "3"])).answers("finefinefine");
    let json =
        finish(run_command(&bundle, "honest", "10s").args(["--json", "--paging", "uffd"])).succeeds().json();
    assert_eq!(json["answer"]["output"], "fine");
}

#[test]
fn frames_that_are_none_end_the_machine() {
    answers_with(&[
        ("garbage", MISSPOKE),
        ("huge-frame", (GUEST_FAILED, "a payload of 4294967295 bytes")),
        ("reserved", MISSPOKE),
        ("unknown-kind", (GUEST_FAILED, "kind 0x7f")),
        ("short-payload", (GUEST_FAILED, "cut off")),
        ("greet-again", (GUEST_FAILED, "sent a frame of kind hello")),
        ("other-generation", (NOT_UNIQUE, "acknowledged when nobody had asked it to")),
        ("failed", (GUEST_FAILED, "did not answer the event")),
    ]);
}

#[test]
fn an_answer_without_an_end_meets_the_time_limit() {
    answers_with(&[("silence", LATE), ("drip", LATE), ("output", LATE), ("answer", LATE), ("crumbs", LATE)]);
}

#[test]
fn endless_errors_and_logs_meet_the_time_limit() {
    answers_with(&[("errors", LATE), ("log", LATE), ("console", LATE)]);
}

#[test]
fn floods_of_connections_and_packets_meet_the_time_limit() {
    answers_with(&[("connections", LATE), ("deaf", LATE), ("packets", LATE), ("doorbells", LATE)]);
}

#[test]
fn a_control_stream_that_is_spoilt_ends_the_machine() {
    let closed = (GUEST_FAILED, "closed its control stream while the answer was awaited");
    let lair = Lair::new();
    let bundle = lair.bake("", &[]);
    for attack in ["hang-up", "reopen"] {
        let ended = beside_a_neighbour(&mut run_command(&bundle, attack, "20s"), &bundle);
        ends_with(attack, &ended, closed);
    }
    // What was sent before it was too much is read first: whichever is found first is told.
    let overrun = beside_a_neighbour(&mut run_command(&bundle, "overrun", "20s"), &bundle);
    assert!([GUEST_FAILED, NOT_UNIQUE].contains(&overrun.code()), "{overrun:?}");
}

#[test]
fn more_answers_than_events_are_not_waited_for() {
    let lair = Lair::new();
    let bundle = lair.bake("", &[]);
    // An exit code of its own choice, from the lowest byte of what it says.
    let ended = beside_a_neighbour(&mut run_command(&bundle, "done", "10s"), &bundle);
    assert_eq!((ended.code(), ended.errors.as_str()), (i32::from(b'x'), ""), "{ended:?}");
}

#[test]
fn responses_without_an_end_are_bounded() {
    let lair = Lair::new();
    let honest = lair.bake("answer=http", &["--interface", "http", "--port", "80"]);
    let run = |bundle: &Path, limit| {
        let mut command = ember(["run", "--path", "/", "--timeout", limit]);
        command.arg(bundle);
        command
    };
    for (attack, end) in [
        ("headers", (GUEST_FAILED, "Its head is longer than 65536 bytes")),
        ("answer", (GUEST_FAILED, "Its head is longer than 65536 bytes")),
        ("interim", LATE),
        ("body", LATE),
    ] {
        let words = format!("answer=http at=event do={attack}");
        let bundle = lair.bake(&words, &["--interface", "http", "--port", "80"]);
        let attack_run = Watched::start(&mut run(&bundle, limit_of(end)));
        finish(&mut run(&honest, "20s")).answers("fine");
        ends_with(attack, &attack_run.end(), end);
    }
}

#[test]
fn a_clone_that_is_attacked_before_its_acknowledgement_is_not_unique() {
    let lair = Lair::new();
    let honest = lair.bake("", &[]);
    for attack in [
        "garbage",
        "huge-frame",
        "short-payload",
        "other-generation",
        "done",
        "output",
        "answer",
        "failed",
        "greet-again",
        "hang-up",
        "overrun",
        "power-off",
        "reset",
    ] {
        let bundle = lair.bake(&format!("at=restore do={attack}"), &[]);
        let ended = beside_a_neighbour(&mut run_command(&bundle, "honest", "20s"), &honest);
        ends_with(attack, &ended, (NOT_UNIQUE, "The clone did not become unique"));
    }
}

#[test]
fn a_flood_in_place_of_the_acknowledgement_is_not_waited_out_for_ever() {
    let lair = Lair::new();
    let attacks = ["log", "connections", "crumbs"];
    let bundles = attacks.map(|attack| lair.bake(&format!("at=restore do={attack}"), &[]));
    // At once: each is waited for as long as an honest clone may take.
    let runs = bundles.each_ref().map(|bundle| Watched::start(&mut run_command(bundle, "honest", "20s")));
    for (attack, run) in attacks.into_iter().zip(runs) {
        ends_with(attack, &run.end(), (NOT_UNIQUE, "The clone did not become unique"));
    }
}

#[test]
fn an_attacker_is_not_baked_and_leaves_nothing() {
    let lair = Lair::new();
    let late = (TIMEOUT, "The time limit passed");
    let not_ready = (GUEST_FAILED, "did not get ready in time");
    for (stage, attack, end) in [
        ("greeting", "silence", late),
        ("greeting", "garbage", MISSPOKE),
        ("greeting", "huge-frame", MISSPOKE),
        ("greeting", "output", (GUEST_FAILED, "output")),
        ("greeting", "connections", late),
        ("greeting", "doorbells", late),
        ("greeting", "console", late),
        ("greeting", "power-off", (GUEST_FAILED, "powered off")),
        ("start", "garbage", MISSPOKE),
        ("start", "output", not_ready),
        ("start", "log", not_ready),
        ("start", "done", (GUEST_FAILED, "sent a frame of kind done")),
        ("start", "greet-again", (GUEST_FAILED, "sent a frame of kind hello")),
        ("freeze", "garbage", MISSPOKE),
        ("freeze", "answer", (GUEST_FAILED, "sent a frame of kind answer")),
        ("freeze", "reset", (GUEST_FAILED, "reset")),
    ] {
        let words = format!("at={stage} do={attack}");
        let limit = if end == not_ready { "1s" } else { limit_of(end) };
        let limits = ["--boot-timeout", limit, "--ready-timeout", "300ms"];
        let ended = Watched::start(&mut lair.bake_command("b", &words, &limits)).end();
        assert_eq!(lair.bundles(), [""; 0], "{words}: {ended:?}");
        assert_eq!(ended.status.code(), Some(end.0), "{words}: {ended:?}");
        assert!(ended.errors.contains(end.1), "{words}: {ended:?}");
    }
}
