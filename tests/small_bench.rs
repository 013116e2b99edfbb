//! `ember bench` measures cold against warm starts, tells a failure once, and leaves nothing running.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

mod common;

use std::path::Path;
use std::process::Command;

use common::processes::{has_living_thread, runs_guest_in, signal, wait_until_gone};
use common::{BAD_BUNDLE, GUEST_FAILED, Place, TIMEOUT, USAGE, ember, end_of, finish, start};
use rustix::process::Signal;
use serde_json::Value;

fn bench(bundle: &Path, event: &str, pairs: &str) -> Command {
    let mut command = ember(["bench", "--pairs", pairs, "--event-text", event]);
    command.arg(bundle);
    command
}

fn measured(bundle: &Path, pairs: &str) -> Value {
    let ended = finish(bench(bundle, "hello", pairs).arg("--json"));
    assert_eq!(ended.succeeds().errors, "");
    ended.json()
}

/// The samples of a row, which must hold its least and its greatest.
#[track_caller]
fn samples(told: &Value, row: &str) -> Vec<f64> {
    let row = &told[row];
    let samples: Vec<f64> =
        row["samples"].as_array().unwrap().iter().map(|sample| sample.as_f64().unwrap()).collect();
    assert!(samples.iter().all(|sample| *sample > 0.0), "{told}");
    let extreme = |pick: fn(f64, f64) -> f64| samples.iter().copied().reduce(pick);
    assert_eq!(row["min"].as_f64(), extreme(f64::min), "{told}");
    assert_eq!(row["max"].as_f64(), extreme(f64::max), "{told}");
    samples
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

#[test]
fn json_holds_every_sample_and_no_percentile_of_two() {
    let place = Place::new();
    let told = measured(&place.bake("echo"), "2");
    let middles = ["cold_us", "warm_us"].map(|row| {
        let samples = samples(&told, row);
        assert_eq!(samples.len(), 2, "{told}");
        assert_eq!((&told[row]["p50"], &told[row]["p99"]), (&Value::Null, &Value::Null), "{told}");
        f64::midpoint(samples[0], samples[1])
    });
    let ratio = told["cold_over_warm"].as_f64().unwrap();
    assert!((ratio - middles[0] / middles[1]).abs() < 1e-9, "{told}");
}

#[test]
fn json_holds_percentiles_of_three_and_names_the_host() {
    let place = Place::new();
    let told = measured(&place.bake("echo"), "3");
    let medians = ["cold_us", "warm_us"].map(|row| {
        let samples = samples(&told, row);
        assert_eq!(samples.len(), 3, "{told}");
        // By nearest rank the 99th percentile of three is the greatest.
        assert_eq!(told[row]["p99"], told[row]["max"], "{told}");
        let median = median(samples);
        assert_eq!(told[row]["p50"].as_f64(), Some(median), "{told}");
        median
    });
    let ratio = told["cold_over_warm"].as_f64().unwrap();
    assert!((ratio - medians[0] / medians[1]).abs() < 1e-9, "{told}");
    let host = &told["host"];
    let release = rustix::system::uname().release().to_str().unwrap().to_owned();
    assert_eq!(host["kernel"], release, "{told}");
    assert!(host["cpus"].as_u64().unwrap() > 0 && !host["cpu"].as_str().unwrap().is_empty(), "{told}");
}

#[test]
fn the_table_has_percentiles_from_three_pairs_on() {
    let place = Place::new();
    let bundle = place.bake("echo");
    for pairs in ["2", "3"] {
        let ended = finish(&mut bench(&bundle, "hello", pairs));
        let lines: Vec<&str> = ended.succeeds().text().lines().map(str::trim).collect();
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(lines[0]), ["ms", "min", "p50", "p99", "max"], "{ended:?}");
        for (line, name) in lines[1..3].iter().zip(["cold boot", "warm restore"]) {
            let cells = words(line.strip_prefix(name).unwrap());
            let numbers = cells.iter().filter(|cell| cell.parse::<f64>().is_ok()).count();
            assert_eq!((cells.len(), numbers), (4, if pairs == "2" { 2 } else { 4 }), "{ended:?}");
            assert!(pairs != "2" || cells[1..3] == ["-", "-"], "{ended:?}");
        }
        assert!(lines[3].starts_with("warm is "), "{ended:?}");
        assert!(lines[3].ends_with(&format!(", {pairs} pairs, to the first answer byte")), "{ended:?}");
        assert_eq!(lines.len(), 4, "{ended:?}");
    }
}

#[test]
fn a_start_that_fails_is_told_once_as_run_tells_it() {
    let place = Place::new();
    let faulty = place.bake("faulty");
    // An answer is no sample when the function says that it failed.
    finish(&mut bench(&faulty, "exit 7", "2")).fails(GUEST_FAILED, "The function failed (exit status: 7)");
    finish(&mut bench(&faulty, "halt", "2")).fails(GUEST_FAILED, "");
    finish(bench(&faulty, "spin", "2").args(["--timeout", "500ms"])).fails(TIMEOUT, "was awaited");
    let told = finish(bench(&faulty, "spin", "2").args(["--timeout", "500ms", "--json"]));
    assert_eq!((told.code(), &told.json()["error"]["kind"]), (TIMEOUT, &"timeout".into()), "{told:?}");
    finish(&mut bench(&place.join("nothing"), "x", "2")).fails(BAD_BUNDLE, "Cannot open the bundle");
    finish(&mut bench(&faulty, "exit 0", "0")).fails(USAGE, "--pairs");
    // One that says nothing has no first byte to measure.
    finish(&mut bench(&place.bake("echo"), "", "2")).fails(GUEST_FAILED, "The function answered nothing");
}

#[test]
fn a_signal_while_a_start_is_measured_leaves_no_process_and_no_vm() {
    let place = Place::new();
    let faulty = place.bake("faulty");
    for how in [Signal::TERM, Signal::INT, Signal::HUP] {
        let bench = start(bench(&faulty, "spin", "2").args(["--timeout", "10m"]));
        let group = bench.id();
        let machine = runs_guest_in(group);
        // To it alone, as who has started it would: what it has begun must hear of it from it.
        signal(i32::try_from(group).unwrap(), how);
        assert_eq!(end_of(bench).signal(), Some(how.as_raw()));
        wait_until_gone(group);
        assert!(!has_living_thread(machine), "{how:?}");
    }
    assert_eq!(place.names(), ["faulty.ember"]);
}
