//! However a run ends, nothing is left: no process, no file. The command ends with its answer, not with its machine.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

mod common;

use std::process::Child;

use common::processes::{has_living_thread, machine_of, signal, wait_until_gone};
use common::{Ended, Place, end_of, run_command, start};
use rustix::process::Signal;

/// A clone that never answers, and the folder for temporary files that it uses.
fn endless(place: &Place) -> Child {
    let faulty = place.bake("faulty");
    let temporary = place.join("tmp");
    std::fs::create_dir(&temporary).unwrap();
    start(run_command(&faulty, "spin").args(["--timeout", "10m"]).env("TMPDIR", temporary))
}

#[track_caller]
fn nothing_is_left(place: &Place, group: u32) {
    wait_until_gone(group);
    assert_eq!(place.names(), ["faulty.ember", "tmp"]);
    assert_eq!(common::names(&place.join("tmp")), [""; 0]);
}

fn ended_by(how: Signal) -> Ended {
    let place = Place::new();
    let run = endless(&place);
    let group = run.id();
    machine_of(&run);
    signal(i32::try_from(group).unwrap(), how);
    let ended = end_of(run);
    nothing_is_left(&place, group);
    ended
}

#[test]
fn ctrl_c_ends_the_machine() {
    assert_eq!(ended_by(Signal::INT).signal(), Some(Signal::INT.as_raw()));
}

#[test]
fn sigterm_ends_the_machine() {
    assert_eq!(ended_by(Signal::TERM).signal(), Some(Signal::TERM.as_raw()));
}

#[test]
fn a_hangup_ends_the_machine() {
    assert_eq!(ended_by(Signal::HUP).signal(), Some(Signal::HUP.as_raw()));
}

#[test]
fn killing_the_command_ends_the_machine() {
    assert_eq!(ended_by(Signal::KILL).signal(), Some(Signal::KILL.as_raw()));
}

#[test]
fn ctrl_c_at_a_terminal_reaches_both_processes() {
    let place = Place::new();
    let run = endless(&place);
    let group = run.id();
    machine_of(&run);
    rustix::process::kill_process_group(rustix::process::Pid::from_child(&run), Signal::INT).unwrap();
    assert_eq!(end_of(run).signal(), Some(Signal::INT.as_raw()));
    nothing_is_left(&place, group);
}

#[test]
fn the_death_of_the_machine_is_told() {
    let place = Place::new();
    let run = endless(&place);
    let group = run.id();
    signal(machine_of(&run), Signal::KILL);
    end_of(run).fails(126, "killed by signal 9");
    nothing_is_left(&place, group);
}

#[test]
fn a_run_that_answered_leaves_nothing() {
    let place = Place::new();
    let echo = place.bake("echo");
    for _ in 0..5 {
        let run = start(&mut run_command(&echo, "x"));
        let group = run.id();
        end_of(run).answers("x");
        wait_until_gone(group);
    }
    assert_eq!(place.names(), ["echo.ember"]);
}

#[test]
fn neither_the_command_nor_the_reader_of_its_answer_waits_for_the_end_of_the_machine() {
    let place = Place::new();
    // Closing a machine that has touched so much takes milliseconds.
    let toucher = place.bake_in("72MiB", "toucher", &[]);
    let event = format!("write 0 {} 1", (64 << 20) / 4096);
    for _ in 0..20 {
        let run = start(&mut run_command(&toucher, &event));
        let (group, machine) = (run.id(), machine_of(&run));
        // Ends when nobody can write to its output any more.
        let ended = end_of(run);
        let outlived = has_living_thread(machine);
        ended.answers("0x0");
        wait_until_gone(group);
        if outlived {
            return;
        }
    }
    panic!("the machine was always gone before the command");
}

#[test]
fn a_closed_standard_output_is_a_failure_and_no_panic() {
    let place = Place::new();
    let echo = place.bake("echo");
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let mut command = run_command(&echo, "x");
    let child = command.stdout(full).stderr(std::process::Stdio::piped()).spawn().unwrap();
    end_of(child).fails(126, "Cannot write the answer");
}
