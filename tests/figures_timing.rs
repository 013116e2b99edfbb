//! What `--timing` tells is what passes outside. In the emulated host the clock counts instructions.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

mod common;

use std::io::Read;
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{Place, in_rig, run_command, start};
use serde_json::Value;

/// Runs, of which the median counts: the processor may go to somebody else between the two clocks.
const RUNS: usize = 7;
/// Before each: the end of the one before, which nobody waits for, takes the emulated host's one processor.
const PAUSE: Duration = Duration::from_millis(100);
/// Largest difference, of what passes outside.
const TOLERANCE: f64 = 0.05;

/// Microseconds from before the spawn to the first byte of the answer, and the phases until then.
fn sample(bundle: &std::path::Path) -> (f64, f64) {
    let mut command = run_command(bundle, "x");
    command.arg("--timing=json");
    sleep(PAUSE);
    let begin = Instant::now();
    let mut child = start(&mut command);
    child.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
    let outside = begin.elapsed().as_secs_f64() * 1e6;
    let mut told = String::new();
    child.stderr.take().unwrap().read_to_string(&mut told).unwrap();
    assert!(child.wait().unwrap().success(), "{told}");
    let told: Value = serde_json::from_str(told.trim()).unwrap_or_else(|e| panic!("{e}: {told}"));
    let phases = told["phases_us"].as_array().unwrap();
    let end = phases.iter().position(|phase| phase[0] == "first answer byte").unwrap();
    (outside, phases[..=end].iter().map(|phase| phase[1].as_f64().unwrap()).sum())
}

#[test]
fn the_phases_add_up_to_what_passes_outside() {
    let place = Place::new();
    let bundle = place.bake("echo");
    let mut apart: Vec<f64> = (0..RUNS)
        .map(|_| {
            let (outside, phases) = sample(&bundle);
            println!("{outside:.0} us outside, {phases:.0} us in phases");
            (outside - phases).abs() / outside
        })
        .collect();
    apart.sort_by(f64::total_cmp);
    // Another machine's clock runs on whoever has the processor.
    assert!(!in_rig() || apart[RUNS / 2] <= TOLERANCE, "{apart:?}");
}
