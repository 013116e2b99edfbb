//! What is counted, in the text format of Prometheus.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::vm::Shape;

use super::pool::Figures;
use super::registry::Function;

/// How an event ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The function answered.
    Answered,
    /// The function answered that it failed.
    FunctionFailed,
    /// There is no answer for a reason that is neither the function's nor the caller's.
    PlatformFailed,
    /// The caller asked for what cannot be.
    BadRequest,
    /// It was turned away because too many were there.
    Overloaded,
    /// Its caller had gone, or did not read.
    Abandoned,
}

/// Every outcome and its name.
const OUTCOMES: [(Outcome, &str); 6] = [
    (Outcome::Answered, "answered"),
    (Outcome::FunctionFailed, "function_failed"),
    (Outcome::PlatformFailed, "platform_failed"),
    (Outcome::BadRequest, "bad_request"),
    (Outcome::Overloaded, "overloaded"),
    (Outcome::Abandoned, "abandoned"),
];

/// Upper bounds of a histogram's buckets, seconds.
const BOUNDS: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];

/// Times and how many took how long.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS.len()],
    count: AtomicU64,
    sum_ns: AtomicU64,
}

impl Histogram {
    /// Adds one.
    pub fn add(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        for (bucket, bound) in self.buckets.iter().zip(BOUNDS) {
            if seconds <= bound {
                bucket.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn write(&self, to: &mut String, name: &str, function: &str) {
        let mut line = |suffix: &str, more: &str, value: String| {
            // A String takes everything.
            writeln!(to, "{name}_{suffix}{{function=\"{function}\"{more}}} {value}").ok();
        };
        for (bucket, bound) in self.buckets.iter().zip(BOUNDS) {
            line("bucket", &format!(",le=\"{bound}\""), bucket.load(Ordering::Relaxed).to_string());
        }
        let count = self.count.load(Ordering::Relaxed).to_string();
        line("bucket", ",le=\"+Inf\"", count.clone());
        let sum = Duration::from_nanos(self.sum_ns.load(Ordering::Relaxed)).as_secs_f64();
        line("sum", "", sum.to_string());
        line("count", "", count);
    }
}

/// What has become of a function's events.
#[derive(Debug, Default)]
pub struct Counters {
    outcomes: [AtomicU64; OUTCOMES.len()],
    /// From the request to the end of the answer.
    pub total: Histogram,
    /// From sending a shell its job to the answer's first piece.
    pub activation: Histogram,
}

impl Counters {
    /// Counts an event's end.
    pub fn count(&self, outcome: Outcome) {
        for (counter, (of, _)) in self.outcomes.iter().zip(OUTCOMES) {
            if of == outcome {
                counter.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Everything, as `GET /metrics` answers it. Names of functions need no escapes: they have letters, digits, `-`, `_` and `.`.
pub fn text(functions: &[Arc<Function>], pool: &Figures) -> String {
    let mut text = Text::default();
    text.begin("ember_events_total", "counter", "Events by how they ended.");
    for function in functions {
        for (counter, (_, outcome)) in function.counters.outcomes.iter().zip(OUTCOMES) {
            let value = counter.load(Ordering::Relaxed);
            let name = &function.name;
            text.line(&format!("ember_events_total{{function=\"{name}\",outcome=\"{outcome}\"}} {value}"));
        }
    }
    text.begin("ember_events", "gauge", "Events that are served or wait.");
    for function in functions {
        let (name, load) = (&function.name, function.gate.load());
        for (state, value) in [("running", load.running), ("waiting", load.waiting)] {
            text.line(&format!("ember_events{{function=\"{name}\",state=\"{state}\"}} {value}"));
        }
    }
    text.pool(pool);
    text.begin("ember_event_seconds", "histogram", "From the request to the end of the answer.");
    for function in functions {
        function.counters.total.write(&mut text.0, "ember_event_seconds", &function.name);
    }
    text.begin("ember_activation_seconds", "histogram", "From a shell's job to the answer's first piece.");
    for function in functions {
        function.counters.activation.write(&mut text.0, "ember_activation_seconds", &function.name);
    }
    text.0
}

#[derive(Default)]
struct Text(String);

impl Text {
    fn line(&mut self, line: &str) {
        self.0.push_str(line);
        self.0.push('\n');
    }

    fn begin(&mut self, name: &str, kind: &str, help: &str) {
        self.line(&format!("# HELP {name} {help}"));
        self.line(&format!("# TYPE {name} {kind}"));
    }

    fn pool(&mut self, pool: &Figures) {
        self.begin("ember_shells", "gauge", "Shells by the shape of their machine.");
        for count in &pool.shells {
            let Shape { memory_bytes, vcpus } = count.shape;
            for (state, value) in [("ready", count.ready), ("making", count.making)] {
                let shape = format!("memory_bytes=\"{memory_bytes}\",vcpus=\"{vcpus}\"");
                self.line(&format!("ember_shells{{{shape},state=\"{state}\"}} {value}"));
            }
        }
        self.begin("ember_shells_made_total", "counter", "Shells that got ready.");
        self.line(&format!("ember_shells_made_total {}", pool.made));
        self.begin("ember_shells_lost_total", "counter", "Shells that ended before they were used.");
        self.line(&format!("ember_shells_lost_total {}", pool.died));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_in_every_bucket_that_is_not_below_it() {
        let histogram = Histogram::default();
        histogram.add(Duration::from_millis(3));
        let mut text = String::new();
        histogram.write(&mut text, "x", "f");
        assert!(text.contains("x_bucket{function=\"f\",le=\"0.0025\"} 0\n"), "{text}");
        assert!(text.contains("x_bucket{function=\"f\",le=\"0.005\"} 1\n"), "{text}");
        assert!(
            text.contains("x_bucket{function=\"f\",le=\"+Inf\"} 1\nx_sum{function=\"f\"} 0.003\n"),
            "{text}"
        );
    }
}
