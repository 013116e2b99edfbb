//! Progress lines of the cases, from several threads, and their sum.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::cases::{Case, Outcome};
use super::tally::Tally;

/// Shared by all who run cases.
#[derive(Debug)]
pub struct Report {
    tally: Mutex<Tally>,
    say: fn(&str),
}

impl Report {
    /// An empty report whose lines go where `say` takes them.
    pub fn new(say: fn(&str)) -> Self {
        Self { tally: Mutex::default(), say }
    }

    /// A line for whoever watches.
    pub fn say(&self, line: &str) {
        (self.say)(line);
    }

    /// A case begins.
    pub fn starts(&self, place: &str, case: &Case) {
        self.say(&format!("    {place}: {} ...", case.title()));
    }

    /// A case has ended; a failure is shown with its output.
    pub fn ended(&self, place: &str, outcome: Outcome, took: Duration) {
        let seconds = took.as_secs_f64();
        let title = format!("{} ({place})", outcome.title);
        match outcome.failure {
            None => {
                self.say(&format!("    {place}: {} ok ({seconds:.1} s)", outcome.title));
                self.tally().pass();
            }
            Some(output) => {
                self.say(&format!(
                    "    {place}: {} FAILED ({seconds:.1} s)\n{}",
                    outcome.title,
                    indented(&output)
                ));
                self.tally().fail(title);
            }
        }
    }

    /// The sum, for adding to.
    pub fn tally(&self) -> MutexGuard<'_, Tally> {
        // Counting cannot be interrupted half way, so a panic elsewhere leaves it right.
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn indented(output: &str) -> String {
    output.trim_end().lines().map(|line| format!("        | {line}\n")).collect()
}
