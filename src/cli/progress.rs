//! Progress of commands that take longer than a second: a spinner on a terminal, a line a phase elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Phases of a command, and how long each took.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    quiet: bool,
    begun: Instant,
    current: Option<&'static str>,
    done: Vec<(&'static str, Duration)>,
}

impl Progress {
    /// Silent if `quiet`.
    pub fn new(quiet: bool) -> Self {
        let bar = (!quiet && std::io::stderr().is_terminal()).then(spinner);
        Progress { bar, quiet, begun: Instant::now(), current: None, done: Vec::new() }
    }

    /// Ends the phase that goes on and begins `phase`.
    pub fn phase(&mut self, phase: &'static str) {
        self.end_phase();
        self.current = Some(phase);
        self.begun = Instant::now();
        if let Some(bar) = &self.bar {
            bar.set_message(phase);
        }
    }

    fn end_phase(&mut self) {
        let Some(phase) = self.current.take() else { return };
        let took = self.begun.elapsed();
        self.done.push((phase, took));
        let line = format!("{:>9.3} s  {phase}", took.as_secs_f64());
        match &self.bar {
            Some(bar) => bar.println(line),
            None if !self.quiet => eprintln!("{line}"),
            None => {}
        }
    }

    /// Ends the last phase; gives all of them.
    pub fn finish(mut self) -> Vec<(&'static str, Duration)> {
        self.end_phase();
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        std::mem::take(&mut self.done)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn spinner() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}
