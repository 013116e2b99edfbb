//! Limits of one clone: what goes beyond them is left out, waits, or ends it with a sentence.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

mod common;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::attacker::{Lair, run_command};
use common::{GUEST_FAILED, Place, TIMEOUT, USAGE, ember, finish};

const LIMIT: &str = "600ms";
const TOO_LONG: &str = "Cannot write the answer: It is longer than the";

#[test]
fn an_answer_may_be_as_long_as_its_limit_and_not_a_byte_longer() {
    let (lair, place) = (Lair::new(), Place::new());
    let http = ["--interface", "http", "--port", "80"];
    let bundles = [lair.bake("", &[]), lair.bake("answer=http", &http), place.bake("echo")];
    for bundle in &bundles {
        let run = |max: &str, more: &[&str]| {
            let mut command = run_command(bundle, "fine", "30s");
            finish(command.args(["--answer-max", max]).args(more))
        };
        run("4", &[]).answers("fine");
        run("3", &[]).fails(GUEST_FAILED, "It is longer than the 3 bytes that --answer-max allows");
        let json = run("3", &["--json"]);
        assert_eq!(
            (json.code(), &json.json()["error"]["kind"]),
            (GUEST_FAILED, &"guest_failed".into()),
            "{json:?}"
        );
    }
}

#[test]
fn an_endless_answer_ends_at_its_limit() {
    let lair = Lair::new();
    let bundle = lair.bake("", &[]);
    let ended = finish(run_command(&bundle, "output", "30s").args(["--answer-max", "200KiB"]));
    assert_eq!(ended.code(), GUEST_FAILED, "{ended:?}");
    assert!(ended.errors.contains(TOO_LONG) && ended.errors.contains("200 KiB"), "{ended:?}");
    assert!((64 << 10..=200 << 10).contains(&ended.output.len()), "{}", ended.output.len());
    let apart =
        finish(run_command(&bundle, "output", "30s").args(["--answer-max", "200KiB", "--count", "2"]));
    assert_eq!(apart.code(), GUEST_FAILED, "{apart:?}");
}

#[test]
fn a_log_is_cut_off_at_its_limit_and_the_function_goes_on() {
    let lair = Lair::new();
    let bundle = lair.bake("", &[]);
    let run = |more: &[&str]| finish(run_command(&bundle, "words 20", "30s").args(more));
    let all = run(&["--log-max", "20000"]);
    all.answers("fine");
    assert_eq!(all.errors, "x".repeat(20_000), "not a byte more was said");
    let cut = format!("{}\n[the rest of the log is left out: --log-max was reached]\n", "x".repeat(10_500));
    let ended = run(&["--log-max", "10500"]);
    ended.answers("fine");
    assert_eq!(ended.errors, cut);
    let json = run(&["--log-max", "10500", "--json"]);
    assert_eq!(json.succeeds().json()["answer"]["log"], cut.as_str());
}

#[test]
fn a_console_is_cut_off_at_its_limit() {
    let lair = Lair::new();
    let bundle = lair.bake("", &[]);
    let ended = finish(run_command(&bundle, "console", "3s").args(["--console", "--console-max", "1KiB"]));
    assert_eq!(ended.code(), TIMEOUT, "{ended:?}");
    let note = "\n[the rest of the guest's console is left out: --console-max was reached]\n";
    let (console, rest) = ended.errors.split_once(note).unwrap();
    assert_eq!(console.len(), 1024, "{ended:?}");
    // The end of it is told with what went wrong, as it is where no console is shown.
    assert!(rest.contains("--- last output of the guest ---") && rest.len() < 20 << 10, "{ended:?}");
}

/// How long an event takes that reads 64 KiB `count` times.
fn reading(bundle: &Path, count: u64, more: &[&str]) -> Duration {
    let start = Instant::now();
    finish(run_command(bundle, &format!("read {count}"), "60s").args(more)).answers("fine");
    start.elapsed()
}

#[test]
fn a_drive_is_no_faster_than_its_rate() {
    let lair = Lair::new();
    let bundle = lair.bake("", &[]);
    // 1 MiB, of which 128 KiB may come at once and one request goes into debt.
    assert!(reading(&bundle, 16, &["--block-rate", "1MiB/s:128KiB"]) > Duration::from_millis(800));
    assert!(
        reading(&bundle, 16, &["--block-rate", "1MiB/s:128KiB", "--paging", "uffd"])
            > Duration::from_millis(800)
    );
    // All of it may come at once: a limit without a burst of its own lets a second's bytes through.
    reading(&bundle, 16, &["--block-rate", "1MiB"]);
    reading(&bundle, 1000, &[]);
}

#[test]
fn an_event_that_waits_for_a_slow_drive_meets_its_time_limit() {
    let lair = Lair::new();
    let bundle = lair.bake("", &[]);
    let ended = finish(run_command(&bundle, "read 100", LIMIT).args(["--block-rate", "64KiB/s"]));
    ended.fails(TIMEOUT, "while the answer was awaited");
}

#[test]
fn limits_that_are_none_are_refused() {
    let refused = |flag: &str, value: &str| {
        let mut command: Command = ember(["run", "nowhere", flag, value]);
        let ended = finish(&mut command);
        assert_eq!(ended.code(), USAGE, "{ended:?}");
        assert!(ended.errors.contains(flag), "{ended:?}");
    };
    for flag in ["--answer-max", "--log-max", "--console-max"] {
        refused(flag, "much");
    }
    for rate in ["0", "1MiB:0", "fast", "1MiB/m"] {
        refused("--block-rate", rate);
    }
}
