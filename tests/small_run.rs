//! `ember run` gives a fresh clone one event, prints its answer and ends with the guest's exit code.
//!
//! Small guests: the whole command, without Linux in the guest.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

mod common;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use common::{Place, TIMEOUT, USAGE, ember, end_of, finish, guest, run_command, start};

/// Longest event, bytes.
const EVENT_MAX: u64 = 32 << 20;

#[test]
fn an_event_is_answered() {
    let place = Place::new();
    finish(&mut run_command(&place.bake("echo"), "hello")).answers("hello");
}

#[test]
fn the_exit_code_is_the_guests() {
    let place = Place::new();
    let faulty = place.bake("faulty");
    for code in [0, 1, 7, 119, 255] {
        let ended = finish(&mut run_command(&faulty, &format!("exit {code}")));
        assert_eq!((ended.code(), ended.text(), ended.errors.as_str()), (code, "exiting", ""), "{ended:?}");
    }
}

#[test]
fn twenty_clones_in_a_row_start_from_the_same_state() {
    let place = Place::new();
    let counter = place.bake("counter");
    let toucher = place.bake("toucher");
    for _ in 0..20 {
        let ended = finish(&mut run_command(&counter, "verdict"));
        assert!(ended.succeeds().text().starts_with("ok "), "{ended:?}");
        finish(&mut run_command(&toucher, "write 0 8 1")).answers("0x0");
    }
}

#[test]
fn an_event_comes_from_standard_input_a_file_or_the_command_line() {
    let place = Place::new();
    let echo = place.bake("echo");
    let file = place.join("event");
    std::fs::write(&file, "from a file").unwrap();

    let mut stdin = start(ember(["run"]).arg(&echo).stdin(Stdio::piped()));
    stdin.stdin.take().unwrap().write_all(b"from stdin\n").unwrap();
    end_of(stdin).answers("from stdin\n");

    let dash = File::open(&file).unwrap();
    finish(ember(["run", "--event", "-"]).arg(&echo).stdin(dash)).answers("from a file");
    finish(ember(["run", "--event"]).arg(&file).arg(&echo)).answers("from a file");
    finish(ember(["run", "--event-json", r#"{"a": 1}"#]).arg(&echo)).answers(r#"{"a": 1}"#);
    finish(ember(["run"]).arg(&echo)).answers("");
}

#[test]
fn an_event_that_is_promised_to_be_json_must_be_json() {
    let place = Place::new();
    let echo = place.bake("echo");
    finish(ember(["run", "--event-json", "{"]).arg(&echo)).fails(USAGE, "is not valid JSON");
}

#[test]
fn bytes_of_every_value_come_back_as_they_went() {
    let place = Place::new();
    let echo = place.bake("echo");
    let event: Vec<u8> = (0..=255).cycle().take(3000).collect();
    std::fs::write(place.join("event"), &event).unwrap();
    let ended = finish(ember(["run", "--event"]).arg(place.join("event")).arg(&echo));
    assert!(ended.succeeds().output == event);
    let told = finish(ember(["run", "--json", "--event"]).arg(place.join("event")).arg(&echo)).json();
    assert_eq!(told["answer"]["output"], serde_json::json!(event), "what is no text is told as bytes");
}

#[test]
fn the_longest_event_reaches_the_guest_and_one_byte_more_is_refused() {
    let place = Place::new();
    // It says what it was given is too much for its 2 MiB: so it has seen the length.
    let strings = place.bake("strings");
    let event = place.join("event");
    let file = File::create(&event).unwrap();
    file.set_len(EVENT_MAX).unwrap();
    let ended = finish(ember(["run", "--event"]).arg(&event).arg(&strings));
    assert_eq!((ended.code(), ended.text()), (2, "too long"), "{ended:?}");
    file.set_len(EVENT_MAX + 1).unwrap();
    finish(ember(["run", "--event"]).arg(&event).arg(&strings))
        .fails(USAGE, "longer than the 33554432 bytes");
    finish(ember(["run"]).arg(&strings).stdin(File::open(&event).unwrap()))
        .fails(USAGE, "standard input is longer than");
}

#[test]
fn json_holds_the_answer_and_the_exit_code() {
    let place = Place::new();
    let ended = finish(run_command(&place.bake("faulty"), "exit 9").arg("--json"));
    let told = ended.json();
    assert_eq!(
        (ended.code(), &told["exit_code"], &told["answer"]["output"]),
        (9, &9.into(), &"exiting".into())
    );
    assert_eq!(told["timing"], serde_json::Value::Null);
}

#[test]
fn json_tells_a_failure_of_ember_from_one_of_the_guest() {
    let place = Place::new();
    let mut command = run_command(&place.bake("faulty"), "spin");
    let ended = finish(command.args(["--timeout", "200ms", "--json"]));
    assert_eq!(ended.code(), TIMEOUT, "{ended:?}");
    let error = &ended.json()["error"];
    assert_eq!((&error["kind"], &error["exit_code"]), (&"timeout".into(), &TIMEOUT.into()));
    assert!(error["message"].as_str().unwrap().contains("while the answer was awaited"), "{error}");
}

#[test]
fn the_phases_of_a_run_add_up_to_the_whole() {
    let place = Place::new();
    let echo = place.bake("echo");
    for more in [vec![], vec!["--cold"]] {
        let told = finish(run_command(&echo, "x").args(["--json", "--timing"]).args(&more)).json();
        let timing = &told["timing"];
        let phases = timing["phases_us"].as_array().unwrap();
        let sum_until = |last: &str| -> f64 {
            let end = phases.iter().position(|phase| phase[0] == last).unwrap();
            phases[..=end].iter().map(|phase| phase[1].as_f64().unwrap()).sum()
        };
        let close = |sum: f64, whole: &serde_json::Value| (sum - whole.as_f64().unwrap()).abs() < 1.0;
        assert!(close(sum_until("guest may run"), &timing["restore_to_first_instruction_us"]), "{told}");
        assert!(close(sum_until("first answer byte"), &timing["first_answer_us"]), "{told}");
        assert!(close(sum_until("answer complete"), &timing["answered_us"]), "{told}");
        assert_eq!(timing["block_requests"], 0);
    }
}

#[test]
fn timing_goes_to_standard_error_and_leaves_the_answer_alone() {
    let place = Place::new();
    let ended = finish(run_command(&place.bake("echo"), "x").arg("--timing"));
    ended.answers("x");
    for phase in ["process start", "create VM", "guest may run", "answer complete", "sum"] {
        assert!(ended.errors.lines().any(|line| line.trim_start().starts_with(phase)), "{phase}: {ended:?}");
    }
}

#[test]
fn count_asks_so_many_fresh_clones_and_prints_the_distribution() {
    let place = Place::new();
    let toucher = place.bake("toucher");
    let ended = finish(run_command(&toucher, "write 0 8 1").args(["--count", "5"]));
    assert_eq!(ended.succeeds().text(), "0x0".repeat(5), "each began with untouched memory");
    assert!(ended.errors.contains("p50") && ended.errors.contains("p99"), "{ended:?}");

    let ended = finish(run_command(&toucher, "write 0 8 1").args(["--count", "5", "--json"]));
    let told = ended.succeeds().json();
    assert_eq!(told["clones"], 5);
    for row in ["to the first instruction", "to the first answer byte", "to the end of the answer"] {
        let row = &told["us"][row];
        let number = |name: &str| row[name].as_f64().unwrap_or_else(|| panic!("{name}: {told}"));
        assert_eq!(row["samples"].as_array().unwrap().len(), 5);
        assert!(0.0 < number("min") && number("min") <= number("p50") && number("p50") <= number("p99"));
        assert!(number("p99") <= number("max"));
    }
}

#[test]
fn repeat_asks_the_same_clone_again() {
    let place = Place::new();
    let ended = finish(run_command(&place.bake("toucher"), "write 0 8 1").args(["--repeat", "4"]));
    ended.answers("0x00x80x100x18");
}

#[test]
fn a_cold_start_answers_the_same() {
    let place = Place::new();
    let echo = place.bake("echo");
    finish(run_command(&echo, "hello").arg("--cold")).answers("hello");
    // The warm-up is in the snapshot and not in a cold start.
    let warmed = place.bake_with("toucher", &["--warm-up", "write 0 8 1"]);
    finish(&mut run_command(&warmed, "read 0 8 1")).answers("0x10");
    finish(run_command(&warmed, "read 0 8 1").arg("--cold")).answers("0x0");
}

#[test]
fn wrong_flags_are_told_at_once() {
    let place = Place::new();
    let echo = place.bake("echo");
    finish(run_command(&echo, "x").args(["--path", "/x"])).fails(USAGE, "belong to the http interface");
    for wrong in [["--count", "0"], ["--repeat", "0"], ["--timeout", "soon"], ["--env", "novalue"]] {
        let ended = finish(run_command(&echo, "x").args(wrong));
        assert_eq!((ended.code(), ended.text()), (USAGE, ""), "{wrong:?}: {ended:?}");
        assert!(ended.errors.contains(wrong[0]), "{ended:?}");
    }
    assert_eq!(finish(ember(["run", "--event-text", "a", "--event-json", "1"]).arg(&echo)).code(), USAGE);
}

#[test]
fn the_example_without_linux_answers_in_upper_case() {
    let examples = std::env::var_os("EMBER_EXAMPLES")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("examples"), PathBuf::from);
    let place = Place::new();
    let bundle = place.join("shout");
    let mut bake = ember(["bake", "--kernel"]);
    bake.arg(guest("shout")).arg("--config").arg(examples.join("port/ember.toml")).arg(&bundle);
    finish(&mut bake).succeeds();
    finish(&mut run_command(&bundle, "shout, please")).answers("SHOUT, PLEASE");
}

#[test]
fn the_smallest_and_a_larger_machine_run() {
    let place = Place::new();
    for memory in ["2MiB", "64MiB", "3GiB"] {
        let bundle = place.bake_in(memory, "memory", &["--force"]);
        let size: u64 = finish(&mut run_command(&bundle, "size")).succeeds().text().parse().unwrap();
        let whole = std::fs::metadata(bundle.join("memory")).unwrap().len();
        assert!(size < whole && size > whole - (2 << 20), "{memory}: {size}");
        // The last word there is.
        finish(&mut run_command(&bundle, &format!("write {} 0xfeed", (size - 8) & !7))).answers("ok");
    }
}
