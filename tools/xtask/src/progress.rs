//! Lines that say what is being done and how long it took.

use std::io::Write;
use std::time::Instant;

use anyhow::Result;

/// Runs a step that may take longer than a moment, with a line before and its seconds after.
pub fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    say(&format!("==> {what}"));
    let start = Instant::now();
    let result = work();
    let seconds = start.elapsed().as_secs_f64();
    match &result {
        Ok(_) if seconds >= 1.0 => say(&format!("    done in {seconds:.1} s")),
        Ok(_) => {}
        Err(_) => say(&format!("    failed after {seconds:.1} s")),
    }
    result
}

/// One line on standard error: standard output belongs to results.
pub fn say(line: &str) {
    // Nobody reads a closed terminal, and the work goes on without it.
    drop(writeln!(std::io::stderr().lock(), "{line}"));
}
