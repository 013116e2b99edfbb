//! The `exec` interface with commands that nobody wrote for Ember: python3, busybox's shell, cat.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

mod common;
#[path = "common/linux.rs"]
mod linux;

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;

use common::{Place, TIMEOUT, USAGE, ember, finish};
use linux::{bake, example, example_bundle, python_root, run, run_command, shell};

/// Longest event, bytes.
const EVENT_MAX: u64 = 32 << 20;

#[test]
fn python_answers_what_it_was_asked() {
    let words = example_bundle("exec");
    run(&words, "to be or not to be").answers("2 to\n2 be\n1 or\n1 not\n");
    let nothing = run(&words, "");
    assert_eq!((nothing.code(), nothing.text()), (1, ""), "{nothing:?}");
}

#[test]
fn standard_output_and_error_stay_apart_and_the_exit_code_is_the_commands() {
    let ended = run(&shell(), "echo to stdout; echo to stderr >&2; exit 7");
    let told = (ended.code(), ended.text(), ended.errors.as_str());
    assert_eq!(told, (7, "to stdout\n", "to stderr\n"));
    let ended = finish(run_command(&shell(), "echo to stdout; echo to stderr >&2; exit 200").arg("--json"));
    let told = ended.json();
    assert_eq!((ended.code(), &told["exit_code"]), (200, &200.into()));
    assert_eq!(
        (&told["answer"]["output"], &told["answer"]["log"]),
        (&"to stdout\n".into(), &"to stderr\n".into())
    );
}

#[test]
fn a_command_that_dies_of_a_signal_ends_with_128_and_the_signal() {
    for (signal, code) in [("KILL", 137), ("SEGV", 139), ("TERM", 143)] {
        let ended = run(&shell(), &format!("echo before; kill -{signal} $$; sleep 60"));
        assert_eq!((ended.code(), ended.text()), (code, "before\n"), "{ended:?}");
    }
}

#[test]
fn a_resident_process_was_there_before_the_freeze() {
    let cat = example_bundle("echo");
    run(&cat, "hello\n").answers("hello\n");
    // Nothing but what was baked is there: each clone's process has the same id and was started at the same time.
    let python = linux::python(
        "resident",
        "import os\nstate['born'] = (os.getpid(), open('/proc/self/stat').read().split()[21])",
        &[],
    );
    let event = "print(state['born'])";
    let first = run(&python, event);
    assert!(first.succeeds().text().starts_with('('), "{first:?}");
    assert_eq!(first.text(), run(&python, event).succeeds().text());
}

#[test]
fn the_agent_goes_before_a_function_that_keeps_its_cpu_busy() {
    // proc(5): field 41 is the scheduling policy, 1 is SCHED_FIFO.
    let ended = run(&shell(), "cut -d ' ' -f 41 /proc/1/stat; cut -d ' ' -f 41 /proc/$$/stat");
    ended.answers("1\n0\n");
}

#[test]
fn values_given_to_run_reach_the_command() {
    let place = Place::new();
    let cases = [
        (shell(), "echo $SECRET $HOME"),
        (
            linux::python("resident-env", "", &["--env", "SECRET=baked"]),
            "import os; print(os.environ['SECRET'], os.environ['HOME'])",
        ),
    ];
    for (bundle, event) in cases {
        let ended = finish(run_command(&bundle, event).args([
            "--env",
            "SECRET=given = at run",
            "--env",
            "HOME=/here",
        ]));
        ended.answers("given = at run /here\n");
    }
    drop(place);
}

#[test]
fn values_that_nobody_replaces_are_those_of_the_bake() {
    let python = linux::python("resident-env", "", &["--env", "SECRET=baked"]);
    run(&python, "import os; print(os.environ['SECRET'])").answers("baked\n");
}

#[test]
fn twenty_clones_in_a_row_start_from_the_same_state() {
    let ended = finish(run_command(&shell(), "echo x >>/tmp/file; cat /tmp/file").args(["--count", "20"]));
    assert_eq!(ended.succeeds().text(), "x\n".repeat(20));
    let ended = finish(run_command(&example_bundle("exec"), "again").args(["--count", "20"]));
    assert_eq!(ended.succeeds().text(), "1 again\n".repeat(20));
}

#[test]
fn the_same_clone_can_be_asked_again() {
    let ended = finish(run_command(&shell(), "echo x >>/tmp/file; cat /tmp/file").args(["--repeat", "3"]));
    ended.answers("x\nx\nx\nx\nx\nx\n");
    let ended = finish(run_command(&example_bundle("exec"), "again").args(["--repeat", "3"]));
    ended.answers("1 again\n1 again\n1 again\n");
}

#[test]
fn the_longest_event_comes_back_whole_and_a_longer_one_is_refused() {
    let (place, cat) = (Place::new(), example_bundle("echo"));
    let path = place.join("event");
    let mut bytes = vec![0; usize::try_from(EVENT_MAX).unwrap()];
    for (number, word) in (0u64..).zip(bytes.chunks_exact_mut(8)) {
        word.copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    }
    let file = File::create(&path).unwrap();
    file.write_all_at(&bytes, 0).unwrap();
    let ended = finish(ember(["run", "--event"]).arg(&path).arg(&cat));
    assert_eq!((ended.code(), ended.output.len()), (0, bytes.len()), "{}", ended.errors);
    assert!(ended.output == bytes, "the answer differs from the event");
    (&file).write_all(b"").unwrap();
    file.set_len(EVENT_MAX + 1).unwrap();
    finish(ember(["run", "--event"]).arg(&path).arg(&cat)).fails(USAGE, "longer than the 33554432 bytes");
}

#[test]
fn a_cold_start_answers_the_same() {
    let ended = finish(run_command(&example_bundle("exec"), "one two two").arg("--cold"));
    ended.answers("2 two\n1 one\n");
}

#[test]
fn an_event_that_takes_too_long_is_ended() {
    let ended = finish(run_command(&shell(), "echo began; sleep 100").args(["--timeout", "2s", "--json"]));
    assert_eq!(ended.code(), TIMEOUT, "{ended:?}");
    let message = ended.json()["error"]["message"].to_string();
    assert!(message.contains("the answer was awaited") && message.contains("began"), "{message}");
}

#[test]
fn a_command_runs_as_the_user_and_where_it_was_told() {
    let place = Place::new();
    let root = linux::busybox_root(&place.join("root"));
    let worker = place.join("worker");
    let arguments =
        ["--memory", "128MiB", "--user", "worker", "--workdir", "/work", "--root", root.to_str().unwrap()];
    bake(&worker, arguments.iter().chain(&["--", "/bin/sh"])).succeeds();
    let ended = run(&worker, "id -u; id -g; pwd; echo $HOME; echo x >/etc/file || echo refused");
    assert!(ended.errors.contains("/etc/file"), "{ended:?}");
    ended.answers("1234\n1234\n/work\n/work\nrefused\n");
}

#[test]
fn a_user_that_the_root_does_not_know_is_told_at_bake() {
    let place = Place::new();
    let arguments = [
        "--config",
        example("echo").to_str().unwrap(),
        "--root",
        python_root().to_str().unwrap(),
        "--user",
        "stranger",
    ]
    .map(str::to_owned);
    let ended = bake(&place.join("b"), &arguments);
    ended.fails(common::GUEST_FAILED, "stranger");
    assert!(place.names().is_empty());
}
