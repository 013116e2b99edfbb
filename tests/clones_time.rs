//! A clone is on time: its wall clock is the host's, its monotonic clock goes on from the freeze, timers fire once, vCPUs agree.
//!
//! The host's clock is moved in these cases, so they run in the emulated host alone. Its own jitter is larger than a clone's error
//! there: that the wall clock is right within 10 ms is a figure of `cargo xtask bench clones`, which counts instructions.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy takes helpers of tests for the product"
)]

mod common;
#[path = "common/linux.rs"]
mod linux;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use common::{end_of, in_rig, start};
use linux::{python, run_command};
use rustix::mount::{MountFlags, mount};
use rustix::time::{ClockId, Timespec, clock_settime};
use serde_json::Value;

/// The most by which a wall clock may differ here. A busy machine can stop the emulated host between any two instructions.
const WALL_CLOCK_BOUND: i128 = 1_000_000_000;
/// More seconds than pass between two readings of a process that does nothing else, and yields to all others; far less than a bundle
/// lies on the disk.
const STEP_BOUND: f64 = 3600.0;
const WEEK: i64 = 7 * 24 * 3600;

/// Before the freeze: looks for lockups, which the command line says not to, lets a process look at the clock all the time, also
/// when it is frozen, and sets a timer.
const SETUP: &str = "
import mmap, os, signal, subprocess, time

def watch(memory):
    for fd in range(3):
        os.dup2(os.open('/dev/null', os.O_RDWR), fd)
    os.nice(19)
    last, backwards, longest = time.monotonic_ns(), 0, 0
    while True:
        now = time.monotonic_ns()
        backwards, longest, last = max(backwards, last - now), max(longest, now - last), now
        # Each in one store: struct.pack_into writes zeros first, which a reader on the other vCPU can see.
        memory[0], memory[1] = backwards, longest

state['watched'] = memoryview(mmap.mmap(-1, 4096)).cast('q')
if os.fork() == 0:
    watch(state['watched'])
# Not frozen before it has looked twice.
while not state['watched'][1]:
    time.sleep(0.01)

def log():
    return subprocess.run(['busybox', 'dmesg'], capture_output=True, text=True, check=True).stdout.splitlines()

with open('/proc/sys/kernel/watchdog', 'w') as watchdog:
    watchdog.write('1')
state['fired'] = []
signal.signal(signal.SIGALRM, lambda *_: state['fired'].append(time.monotonic()))
state['log'] = log
state['lines'] = len(log())
state['wall'], state['set'] = time.time(), time.monotonic()
signal.setitimer(signal.ITIMER_REAL, 40)
";

/// In a clone: tells its wall clock a few times, for whoever reads it to compare, then waits for the timer, and longer.
const LOOK: &str = "
import json, os, sys, time
for _ in range(10):
    print('wall', time.time_ns(), flush=True)
    time.sleep(0.05)
first, fired_at_once = time.monotonic(), len(state['fired'])
passed = {'monotonic': first - state['set'], 'wall': time.time() - state['wall']}
cpus, last, backwards = sorted(os.sched_getaffinity(0)), time.monotonic_ns(), 0
for n in range(1000):
    os.sched_setaffinity(0, {cpus[n % len(cpus)]})
    now = time.monotonic_ns()
    last, backwards = now, max(backwards, last - now)
while not state['fired'] and time.monotonic() < state['set'] + 60:
    time.sleep(0.05)
time.sleep(3)
stepped_back, longest_step = state['watched'][:2]
print(json.dumps({
    'passed': passed, 'cpus': len(cpus), 'backwards': backwards, 'fired_at_once': fired_at_once,
    'stepped_back': stepped_back, 'longest_step': longest_step / 1e9,
    'fired': [at - state['set'] for at in state['fired']], 'log': state['log']()[state['lines']:],
    'clocksource': open('/sys/devices/system/clocksource/clocksource0/current_clocksource').read().strip()}))
";

/// The clock of the host, moved until this is dropped.
struct MovedClock(i64);

impl MovedClock {
    fn by(seconds: i64) -> Self {
        assert!(in_rig(), "the clock of a real machine is left alone");
        move_clock(seconds);
        MovedClock(seconds)
    }
}

impl Drop for MovedClock {
    fn drop(&mut self) {
        move_clock(-self.0);
    }
}

fn move_clock(seconds: i64) {
    let now = unix_ns();
    let nanoseconds = |ns: i128| i64::try_from(ns).unwrap();
    let moved = Timespec {
        tv_sec: nanoseconds(now / 1_000_000_000) + seconds,
        tv_nsec: nanoseconds(now % 1_000_000_000),
    };
    clock_settime(ClockId::Realtime, moved).unwrap();
}

fn unix_ns() -> i128 {
    i128::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap()
}

/// Two vCPUs with this clock source, and the timer set.
fn timed(clocksource: &str, more: &[&str]) -> PathBuf {
    let arguments = format!("clocksource={clocksource}");
    let name = format!("timed-{clocksource}{}", more.concat());
    // Little memory is soon made zero: the timer goes on meanwhile.
    python(
        &name,
        SETUP,
        &[&["--memory", "160MiB", "--vcpus", "2", "--kernel-args", &arguments], more].concat(),
    )
}

/// The offset of each vCPU's TSC, as KVM tells it of the one machine that runs.
fn tsc_offsets() -> Vec<String> {
    let folder = Path::new("/sys/kernel/debug/kvm");
    if !folder.exists() {
        mount("none", "/sys/kernel/debug", "debugfs", MountFlags::empty(), None).unwrap();
    }
    let entries =
        |folder: &Path| fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let machines: Vec<_> = entries(folder).into_iter().filter(|path| path.is_dir()).collect();
    assert_eq!(machines.len(), 1, "{machines:?}");
    let offsets = entries(&machines[0]).into_iter().map(|vcpu| vcpu.join("tsc-offset"));
    offsets.filter_map(|file| fs::read_to_string(file).ok()).collect()
}

/// Runs a clone; gives what it says of itself. What must hold of every clone is checked here.
#[track_caller]
fn look(bundle: &Path, clocksource: &str) -> Value {
    // One that was baked before this host booted lies on its disk alone, which takes up to 360 ms for a read; the clock is set before.
    for file in fs::read_dir(bundle).unwrap() {
        fs::read(file.unwrap().path()).unwrap();
    }
    let mut child = start(run_command(bundle, LOOK).args(["--timeout", "100s"]));
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    // Whatever the way to here took is in each, so the least is closest; below zero the clone is ahead.
    let error = lines.by_ref().take(10).map(|line| unix_ns() - wall(&line)).min_by_key(|late| late.abs());
    let error = error.expect("it says nothing");
    let offsets = tsc_offsets();
    let told = lines.next();
    let mut errors = String::new();
    child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    assert!(end_of(child).status.success(), "{errors}");
    let told: Value = serde_json::from_str(&told.unwrap()).unwrap();
    println!("{clocksource}: wall clock late by {} us, {told}", error / 1000);
    assert!(error.abs() < WALL_CLOCK_BOUND, "{error} ns");
    assert_eq!((offsets.len(), told["cpus"].as_u64()), (2, Some(2)));
    assert_eq!(offsets[0], offsets[1], "the TSCs differ");
    assert_eq!(told["backwards"], 0, "from one vCPU to the other: {told}");
    // The first reading of the clone against the last one before the freeze is among these.
    assert_eq!(told["stepped_back"], 0, "from one reading to the next: {told}");
    assert_eq!(told["clocksource"], clocksource);
    assert_eq!(told["fired"].as_array().unwrap().len(), 1, "{told}");
    // Two vCPUs share the one processor of the emulated host, and whichever waits for it within its timer interrupt may say so.
    let said = told["log"].as_array().unwrap().iter().map(|message| message.as_str().unwrap());
    let said: Vec<&str> = said.filter(|message| !message.contains("hrtimer: interrupt took")).collect();
    let [message] = said.as_slice() else { panic!("the guest complains: {told}") };
    assert!(message.ends_with("crng reseeded due to virtual machine fork"), "{told}");
    told
}

fn wall(line: &str) -> i128 {
    line.strip_prefix("wall ").unwrap_or_else(|| panic!("{line}")).parse().unwrap()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

/// Where the monotonic clock stood still from the freeze to the clone's first instruction.
#[track_caller]
fn stood_still(told: &Value) {
    let passed = number(&told["passed"]["monotonic"]);
    assert!(passed > 0.0 && passed < 120.0, "{told}");
    let step = number(&told["longest_step"]);
    assert!(step > 0.0 && step < STEP_BOUND, "from one reading to the next: {told}");
    assert_eq!(told["fired_at_once"], 0, "the timer had 40 seconds: {told}");
    let fired = number(&told["fired"][0]);
    assert!((40.0..45.0).contains(&fired), "{told}");
}

/// Where it has gone on by the host's wall clock.
#[track_caller]
fn went_on(told: &Value) {
    let (monotonic, wall) = (number(&told["passed"]["monotonic"]), number(&told["passed"]["wall"]));
    assert!(wall > WEEK as f64 && (monotonic - wall).abs() < 5.0, "{told}");
    assert!(number(&told["longest_step"]) >= WEEK as f64, "all of it between two readings: {told}");
    assert_eq!(told["fired_at_once"], 1, "the timer was due long ago: {told}");
}

#[test]
fn a_clone_is_on_time_a_week_later_by_kvm_clock() {
    let bundle = timed("kvm-clock", &[]);
    let _moved = MovedClock::by(WEEK);
    let told = look(&bundle, "kvm-clock");
    assert!(number(&told["passed"]["wall"]) > WEEK as f64, "{told}");
    stood_still(&told);
}

#[test]
fn a_clone_is_on_time_a_week_later_by_the_tsc() {
    let bundle = timed("tsc", &[]);
    let _moved = MovedClock::by(WEEK);
    let told = look(&bundle, "tsc");
    assert!(number(&told["passed"]["wall"]) > WEEK as f64, "{told}");
    stood_still(&told);
}

#[test]
fn clocks_advance_by_the_time_on_disk_where_the_bundle_asks() {
    for clocksource in ["kvm-clock", "tsc"] {
        let bundle = timed(clocksource, &["--advance-clock"]);
        let _moved = MovedClock::by(WEEK);
        went_on(&look(&bundle, clocksource));
    }
}

#[test]
fn clocks_that_advance_never_go_backwards() {
    let bundle = timed("kvm-clock", &["--advance-clock"]);
    let _moved = MovedClock::by(-WEEK);
    let told = look(&bundle, "kvm-clock");
    // The wall clock is the host's, also where that is wrong.
    assert!(number(&told["passed"]["wall"]) < 0.0, "{told}");
    stood_still(&told);
}
