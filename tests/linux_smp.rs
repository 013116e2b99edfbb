//! Guests with more than one vCPU.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

mod common;
#[path = "common/linux.rs"]
mod linux;

use std::path::PathBuf;

use common::finish;
use linux::{python, run, run_command, shell};

/// A process on each CPU that goes through memory again and again, sums it up, and compares with the sum of before. `told` says
/// how often each has come around, how often the sum was wrong, and whether it is where it belongs.
const CHECKERS: &str = r#"
import hashlib, mmap, os

rounds = memoryview(mmap.mmap(-1, 4096)).cast("Q")
cpus = sorted(os.sched_getaffinity(0))

def check(slot):
    os.sched_setaffinity(0, {cpus[slot]})
    block = bytearray(hashlib.shake_128(bytes([slot])).digest(1 << 16))
    expected = hashlib.sha256(block).digest()
    count = errors = 0
    while True:
        count += 1
        errors += hashlib.sha256(block).digest() != expected
        errors += 3.0 ** 0.5 != 1.7320508075688772
        # Each in one store: struct.pack_into writes zeros first, which a reader on the other vCPU can see.
        rounds[2 * slot], rounds[2 * slot + 1] = count, errors

children = []
for slot in range(len(cpus)):
    child = os.fork()
    if child == 0:
        check(slot)
    children.append(child)

def cpu_of(pid):
    return int(open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[36])

def told():
    slots = range(len(cpus))
    return [(*rounds[2 * slot:2 * slot + 2], cpu_of(children[slot])) for slot in slots]

# Not frozen before each has come around.
while any(count == 0 for count, _, _ in told()):
    pass

state["told"] = told
"#;

/// Waits until every process has come around again, twice.
const LOOK: &str = r#"
import time
before = state["told"]()
while any(now[0] < was[0] + 2 for now, was in zip(state["told"](), before)):
    time.sleep(0.01)
print([(errors, cpu) for _, errors, cpu in state["told"]()])
"#;

fn checkers() -> PathBuf {
    // The processes work all the time, and share the one processor of the emulated host with what is to end.
    python("checkers", CHECKERS, &["--vcpus", "2", "--event-timeout", "150s"])
}

#[test]
fn a_process_on_each_of_two_cpus_survives_bake_and_restore() {
    for _ in 0..5 {
        let ended = run(&checkers(), LOOK);
        assert_eq!(
            ended.succeeds().text().trim_end(),
            "[(0, 0), (0, 1)]",
            "errors and CPU of each process: {ended:?}"
        );
    }
}

#[test]
fn clones_with_two_cpus_answer_several_events() {
    let ended = finish(run_command(&checkers(), "print('here')").args(["--count", "5"]));
    assert_eq!(ended.succeeds().text(), "here\n".repeat(5));
}

#[test]
fn both_cpus_are_online_in_a_clone_and_in_a_cold_start() {
    let event = "import os; print(open('/sys/devices/system/cpu/online').read().strip(), os.cpu_count())";
    run(&checkers(), event).answers("0-1 2\n");
    finish(run_command(&checkers(), event).arg("--cold")).answers("0-1 2\n");
}

#[test]
fn time_goes_on_alike_on_both_cpus_after_a_restore() {
    let event = r#"
import os, time
def on(cpu):
    os.sched_setaffinity(0, {cpu})
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)
times = [on(number % 2) for number in range(40)]
print(times == sorted(times))
"#;
    run(&checkers(), event).answers("True\n");
}

#[test]
fn one_vcpu_is_one_cpu() {
    run(&shell(), "nproc; cat /sys/devices/system/cpu/online").answers("1\n0\n");
}

mod full {
    use super::*;

    #[test]
    fn eight_vcpus_boot_and_survive_a_restore() {
        // All of them work all the time, and share the one processor of the emulated host.
        let bundle =
            python("eight", CHECKERS, &["--vcpus", "8", "--memory", "512MiB", "--event-timeout", "150s"]);
        let ended = run(&bundle, LOOK);
        let expected: Vec<String> = (0..8).map(|cpu| format!("(0, {cpu})")).collect();
        assert!(ended.succeeds().text().starts_with(&format!("[{}]\n", expected.join(", "))), "{ended:?}");
    }
}
