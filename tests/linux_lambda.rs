//! The `lambda` interface with the official awslambdaric, unmodified, and ordinary handlers.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

mod common;
#[path = "common/linux.rs"]
mod linux;

use std::path::PathBuf;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use common::{Ended, GUEST_FAILED, Place, TIMEOUT, USAGE, ember, finish};
use linux::{
    ALIVE_SECONDS, NOT_UNIQUE, bake, clones_do_not_see_each_other, example_bundle, lambda, lambda_arguments,
};
use serde_json::{Value, json};

/// A handler that does what the event says, and hooks that tell when they were run.
const PROBE: &str = r#"
import json, os, sys, time
from snapshot_restore_py import register_after_restore, register_before_snapshot

memory = bytearray(b"original")
with open("/var/tmp/file", "w") as file:
    file.write("original")
hooks = []

@register_before_snapshot
def before():
    hooks.append("before")

@register_after_restore
def after():
    hooks.append("after")
    print("restored", flush=True)

class Custom(Exception):
    pass

def read():
    with open("/var/tmp/file") as file:
        return {"memory": "memory " + memory.decode(), "file": "file " + file.read()}

def handler(event, context):
    do = event.get("do")
    if do == "context":
        return {
            "remaining_ms": context.get_remaining_time_in_millis(),
            "request": context.aws_request_id,
            "arn": context.invoked_function_arn,
            "name": context.function_name,
            "version": context.function_version,
            "memory": context.memory_limit_in_mb,
            "group": context.log_group_name,
            "trace": os.environ.get("_X_AMZN_TRACE_ID"),
            "type": os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE"),
            "root": os.environ.get("LAMBDA_TASK_ROOT"),
            "handler": os.environ.get("_HANDLER"),
        }
    if do == "raise":
        raise Custom("it went wrong: ä")
    if do == "log":
        print("to stdout")
        print("to stderr", file=sys.stderr)
        return "logged"
    if do == "exit":
        print("going", flush=True)
        os._exit(3)
    if do == "hooks":
        return hooks
    if do == "env":
        with open("/run/ember/env", "rb") as file:
            return file.read().decode().split("\0")[:-1]
    if do == "length":
        return len(event["text"])
    if do == "text":
        return "y" * event["length"]
    if do == "sleep":
        time.sleep(100)
    if do == "write":
        memory[:] = event["word"].encode()
        with open("/var/tmp/file", "w") as file:
            file.write(event["word"])
        print("written", flush=True)
        time.sleep(ALIVE_SECONDS)
        return read()
    if do == "read":
        return read()
    return event
"#;

fn probe_source() -> String {
    PROBE.replace("ALIVE_SECONDS", &ALIVE_SECONDS.to_string())
}

fn probe() -> PathBuf {
    lambda("probe", &probe_source(), "")
}

fn command(event: &Value) -> Command {
    let mut command = ember(["run", "--event-json", &event.to_string()]);
    command.arg(probe());
    command
}

fn ask(event: &Value) -> Ended {
    finish(&mut command(event))
}

#[track_caller]
fn told(event: &Value) -> Value {
    ask(event).succeeds().json()
}

#[test]
fn an_event_is_answered_by_an_ordinary_handler() {
    let greeter = example_bundle("lambda");
    let ended = finish(ember(["run", "--event-json", r#"{"name": "Ada"}"#]).arg(&greeter));
    let told = ended.succeeds().json();
    assert_eq!((&told["greeting"], &told["function"]), (&"Hello, Ada!".into(), &"greeter".into()));
    assert!(ended.errors.contains("\"name\": \"Ada\""), "its log is on standard error: {ended:?}");
    // The warm-up event was answered by a client before this one, whose hooks had yet to run.
    assert_eq!((&told["answered"], &told["entries"]), (&1.into(), &1000.into()));
}

#[test]
fn json_comes_back_as_it_went() {
    let event = json!({"a": [1, 2.5, null, true], "text": "äöü \u{1F525} \"quoted\"", "deep": {"er": {}}});
    assert_eq!(told(&event), event);
    let nothing = finish(ember(["run"]).arg(probe()));
    assert_eq!(nothing.succeeds().json(), json!({}), "no content is an empty object");
}

#[test]
fn an_exception_is_exit_code_1_with_the_error_as_the_answer() {
    let ended = ask(&json!({"do": "raise"}));
    assert_eq!(ended.code(), 1, "{ended:?}");
    let told = ended.json();
    assert_eq!((&told["errorType"], &told["errorMessage"]), (&"Custom".into(), &"it went wrong: ä".into()));
    assert!(told["stackTrace"].to_string().contains("in handler"), "{told}");
    assert!(ended.errors.contains("[ERROR] Custom: it went wrong"), "{ended:?}");
}

#[test]
fn the_handlers_log_is_on_standard_error() {
    let ended = ask(&json!({"do": "log"}));
    assert!(ended.errors.contains("to stdout\n") && ended.errors.contains("to stderr\n"), "{ended:?}");
    ended.answers("\"logged\"");
}

#[test]
fn the_context_has_deadline_request_function_and_trace() {
    let event = json!({"do": "context"});
    let first = finish(command(&event).args(["--timeout", "25s"])).succeeds().json();
    let remaining = first["remaining_ms"].as_i64().unwrap();
    assert!((1..=25_000).contains(&remaining), "{first}");
    assert_eq!(first["arn"], "arn:aws:lambda:us-east-1:000000000000:function:probe:1");
    assert_eq!((&first["name"], &first["version"]), (&"probe".into(), &"1".into()));
    let memory: u64 = first["memory"].as_str().unwrap().parse().unwrap();
    assert!((256..=512).contains(&memory), "{first}");
    assert_eq!((&first["group"], &first["type"]), (&"/aws/lambda/probe".into(), &"snap-start".into()));
    assert_eq!((&first["root"], &first["handler"]), (&"/mnt/function".into(), &"app.handler".into()));
    assert!(first["trace"].as_str().unwrap().starts_with("Root=1-"), "{first}");
    let second = told(&event);
    for unique in ["request", "trace"] {
        assert_ne!(first[unique], second[unique], "each invocation has its own");
    }
}

#[test]
fn snap_start_hooks_run_before_the_freeze_and_after_each_restore() {
    let ended = ask(&json!({"do": "hooks"}));
    assert_eq!(ended.succeeds().json(), json!(["before", "after"]));
    assert!(ended.errors.contains("restored"), "in the clone, not before: {ended:?}");
}

#[test]
fn with_warm_up_events_the_restore_hooks_run_in_each_clone_all_the_same() {
    let warmed = lambda("warmed", &probe_source(), "[[warm_up]]\njson = '{\"do\": \"hooks\"}'");
    let ended = finish(ember(["run", "--event-json", r#"{"do": "hooks"}"#]).arg(&warmed));
    assert_eq!(ended.succeeds().json(), json!(["before", "after"]));
    assert!(ended.errors.contains("restored"), "in the clone, not before: {ended:?}");
}

#[test]
fn without_snap_start_there_are_no_hooks() {
    let bundle = lambda("on-demand", &probe_source(), "snap_start = false");
    let ask = |event: &str| finish(ember(["run", "--event-json", event]).arg(&bundle)).succeeds().json();
    assert_eq!(ask(r#"{"do": "hooks"}"#), json!([]));
    assert_eq!(ask(r#"{"do": "context"}"#)["type"], "on-demand");
}

#[test]
fn values_given_to_run_are_in_a_file_of_the_guest() {
    let ended = finish(command(&json!({"do": "env"})).args(["--env", "A=1", "--env", "B=two words"]));
    assert_eq!(ended.succeeds().json(), json!(["A=1", "B=two words"]));
}

/// An event of about `length` bytes, and an answer.
#[track_caller]
fn pass_long_events_and_answers(length: usize) {
    let place = Place::new();
    let event = json!({"do": "length", "text": "x".repeat(length)});
    std::fs::write(place.join("event"), event.to_string()).unwrap();
    let ended = finish(ember(["run", "--timeout", "150s", "--event"]).arg(place.join("event")).arg(probe()));
    assert_eq!(ended.succeeds().json(), json!(length));
    let ended = finish(command(&json!({"do": "text", "length": length})).args(["--timeout", "150s"]));
    assert!(ended.succeeds().json().as_str().is_some_and(|text| text == "y".repeat(length)));
}

#[test]
fn long_events_and_long_answers_pass() {
    pass_long_events_and_answers(6 << 20);
}

#[test]
fn the_same_clone_and_twenty_clones_in_a_row_answer() {
    let event = json!({"name": "Ada"}).to_string();
    let greeter = example_bundle("lambda");
    let ended = finish(ember(["run", "--event-json", &event, "--repeat", "3"]).arg(&greeter));
    let answered = |ended: &Ended| -> Vec<u64> {
        let answers = serde_json::Deserializer::from_slice(&ended.succeeds().output).into_iter::<Value>();
        answers.map(|answer| answer.unwrap()["answered"].as_u64().unwrap()).collect()
    };
    assert_eq!(answered(&ended), [1, 2, 3]);
    let ended = finish(ember(["run", "--event-json", &event, "--count", "20"]).arg(&greeter));
    assert_eq!(answered(&ended), [1; 20]);
}

#[test]
fn clones_alive_at_once_share_no_memory_and_no_file() {
    clones_do_not_see_each_other("original", |word| {
        command(&word.map_or(json!({"do": "read"}), |word| json!({"do": "write", "word": word})))
    });
}

#[test]
fn a_cold_start_answers_the_same() {
    let mut command = ember(["run", "--cold", "--event-json", r#"{"name": "Ada"}"#]);
    let told = finish(command.arg(example_bundle("lambda"))).succeeds().json();
    assert_eq!((&told["greeting"], &told["answered"]), (&"Hello, Ada!".into(), &1.into()));
}

#[test]
fn a_handler_that_exits_is_told_with_its_last_output() {
    let ended = ask(&json!({"do": "exit"}));
    ended.fails(GUEST_FAILED, "ended with exit code 3");
    assert!(ended.errors.contains("going"), "{ended:?}");
}

#[test]
fn a_handler_that_takes_too_long_is_ended() {
    let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    finish(command(&json!({"do": "sleep"})).args(["--timeout", "2s"]))
        .fails(TIMEOUT, "the answer was awaited");
    assert!(
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap() - before < std::time::Duration::from_secs(60)
    );
}

#[test]
fn an_event_that_is_no_json_is_refused_when_json_was_promised() {
    finish(ember(["run", "--event-json", "{"]).arg(probe())).fails(USAGE, "is not valid JSON");
}

#[test]
fn what_a_handler_says_when_it_cannot_initialise_ends_the_bake() {
    for (source, words) in [
        ("raise ValueError('no configuration')", "no configuration"),
        (
            "from snapshot_restore_py import register_before_snapshot\n\
             register_before_snapshot(lambda: 1 / 0)\ndef handler(event, context): pass\n",
            "division by zero",
        ),
    ] {
        let place = Place::new();
        let bundle = place.join("bundle");
        let ended = bake(&bundle, lambda_arguments(place.path(), source, ""));
        ended.fails(GUEST_FAILED, "reported that it cannot initialise");
        assert!(ended.errors.contains(words), "{ended:?}");
        assert_eq!(place.names(), ["ember.toml", "function"], "nothing is left of the bundle");
    }
}

#[test]
fn a_clone_whose_restore_hook_fails_is_given_no_event() {
    let source = "from snapshot_restore_py import register_after_restore\n\
                  register_after_restore(lambda: [][1])\n\
                  def handler(event, context):\n    return 'answered'\n";
    let bundle = lambda("bad-hook", source, "");
    let ended = finish(ember(["run", "--event-json", "1"]).arg(&bundle));
    ended.fails(NOT_UNIQUE, "cannot go on after the restore");
    assert!(ended.errors.contains("list index out of range"), "{ended:?}");
}

#[test]
fn a_clone_whose_restore_hook_hangs_is_given_no_event() {
    let source = "import time\n\
                  from snapshot_restore_py import register_after_restore\n\
                  register_after_restore(lambda: time.sleep(1000))\n\
                  def handler(event, context):\n    return 'answered'\n";
    let bundle = lambda("hanging-hook", source, "");
    let ended = finish(ember(["run", "--event-json", "1"]).arg(&bundle));
    ended.fails(NOT_UNIQUE, "did not ask for invocation/next in time");
}

mod full {
    use super::*;

    #[test]
    fn the_longest_events_and_answers_pass() {
        pass_long_events_and_answers((32 << 20) - 100);
    }
}
