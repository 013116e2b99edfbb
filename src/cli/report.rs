//! What the machine's process tells its parent when it is done: one JSON object through a pipe.

use std::fs::File;
use std::io::{self, Read, Write};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::serve::Done;
use crate::vm::{ANSWERED, FIRST_ANSWER, FIRST_INSTRUCTION, Timeline};

use super::cell::ToldJail;
use super::failure::{Failure, Kind};
use super::paging::ToldPaging;
use super::rebake::Rebaked;
use super::run::{Lived, Row};
use super::sink::Collected;
use super::statistics::Distribution;

/// Longest report, bytes: a clone that has been taken over must not fill the memory of who waits for it. What `--json` collects is
/// less.
const REPORT_MAX: u64 = 512 << 20;

/// The report.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    result: Result<Told, Failure>,
    /// Phases and their microseconds, in order.
    phases: Vec<(String, f64)>,
    /// CLOCK_MONOTONIC at the process's start, nanoseconds.
    start_ns: u64,
    /// Microseconds from the process's start to each of the marks that people ask for.
    restore_us: Option<f64>,
    first_answer_us: Option<f64>,
    answered_us: Option<f64>,
    answer: Option<Collected>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Told {
    exit_code: i32,
    events_us: Vec<f64>,
    block_requests: u64,
    paging: Option<ToldPaging>,
    jail: Option<ToldJail>,
    rebaked: Option<Rebaked>,
}

/// Microseconds.
pub fn us(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

impl Report {
    /// The report of a life.
    pub fn new(outcome: Result<Lived, Failure>, timeline: &Timeline, answer: Option<Collected>) -> Self {
        let result = outcome.map(|lived| Told {
            exit_code: lived.exit_code,
            events_us: lived.events.into_iter().map(us).collect(),
            block_requests: lived.block_requests,
            paging: lived.paging,
            jail: lived.jail,
            rebaked: lived.rebaked,
        });
        Report {
            result,
            phases: timeline.phases().into_iter().map(|(name, took)| (name.to_owned(), us(took))).collect(),
            start_ns: timeline.start_ns(),
            restore_us: timeline.until(FIRST_INSTRUCTION).map(us),
            first_answer_us: timeline.until(FIRST_ANSWER).map(us),
            answered_us: timeline.until(ANSWERED).map(us),
            answer,
        }
    }

    /// The report of an event that a daemon has served, its times counted from this process's start.
    pub fn pooled(done: &Done, timeline: &Timeline, answer: Option<Collected>) -> Self {
        let start_ns = timeline.start_ns();
        let own = timeline.phases().into_iter().map(|(name, took)| (name.to_owned(), us(took)));
        let mut phases: Vec<(String, f64)> = own.collect();
        let before = us(Duration::from_nanos(done.start_ns.saturating_sub(start_ns)));
        let told: f64 = phases.iter().map(|(_, took)| took).sum();
        phases.push(("daemon".to_owned(), (before - told).max(0.0)));
        phases.extend(done.phases.iter().cloned());
        let told = Told {
            exit_code: done.exit_code,
            events_us: Vec::new(),
            block_requests: done.block_requests,
            paging: None,
            // The daemon answers for the jails of its shells.
            jail: None,
            rebaked: None,
        };
        let since = |us: Option<f64>| us.map(|us| before + us);
        Report {
            result: Ok(told),
            phases,
            start_ns,
            restore_us: since(done.restore_us),
            first_answer_us: since(done.first_answer_us),
            answered_us: since(done.answered_us),
            answer,
        }
    }

    /// The report of a life that is to end at once.
    pub fn failed(failure: Failure) -> Self {
        Report::new(Err(failure), &Timeline::start(), None)
    }

    /// As it is sent.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Text and numbers always have a form in JSON.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Sends it and closes the pipe.
    ///
    /// # Errors
    /// The parent is gone.
    pub fn send(&self, mut to: File) -> io::Result<()> {
        to.write_all(&self.to_bytes())
    }

    /// Reads a report to the end of the pipe; `None` when the process ended without one.
    ///
    /// # Errors
    /// The bytes are no report.
    pub fn receive(from: File) -> Result<Option<Report>, Failure> {
        let mut bytes = Vec::new();
        from.take(REPORT_MAX).read_to_end(&mut bytes).map_err(|e| Failure::new(Kind::Internal, &e))?;
        if bytes.is_empty() {
            return Ok(None);
        }
        serde_json::from_slice(&bytes).map(Some).map_err(|e| Failure::new(Kind::Internal, &e))
    }

    /// The function's exit code, as a process can have it.
    ///
    /// # Errors
    /// The failure that ended the clone.
    pub fn outcome(&self) -> Result<u8, Failure> {
        match &self.result {
            // A process's exit code has eight bits.
            Ok(told) => Ok(told.exit_code.to_le_bytes()[0]),
            Err(failure) => Err(failure.clone()),
        }
    }

    /// Phases and their microseconds.
    pub fn phases(&self) -> &[(String, f64)] {
        &self.phases
    }

    /// Time of each event, microseconds.
    pub fn events_us(&self) -> &[f64] {
        self.result.as_ref().map_or(&[], |told| &told.events_us)
    }

    /// How the clone's memory came into being.
    pub fn paging(&self) -> Option<&ToldPaging> {
        self.result.as_ref().ok()?.paging.as_ref()
    }

    /// Which walls stood around the clone.
    pub fn jail(&self) -> Option<&ToldJail> {
        self.result.as_ref().ok()?.jail.as_ref()
    }

    /// Block requests until the last answer.
    pub fn block_requests(&self) -> u64 {
        self.result.as_ref().map_or(0, |told| told.block_requests)
    }

    /// The bundle that the clone became.
    pub fn rebaked(&self) -> Option<&Rebaked> {
        self.result.as_ref().ok()?.rebaked.as_ref()
    }

    /// For `--json`.
    pub fn to_json(&self, timing: bool) -> serde_json::Value {
        let mut object = serde_json::json!({
            "exit_code": self.result.as_ref().map_or(0, |told| told.exit_code),
            "answer": self.answer,
        });
        if let Some(paging) = self.paging() {
            object["paging"] = serde_json::json!(paging);
        }
        if let Some(jail) = self.jail() {
            object["jail"] = serde_json::json!(jail);
        }
        if let Some(rebaked) = self.rebaked() {
            object["baked"] = serde_json::json!(rebaked);
        }
        if timing {
            object["timing"] = self.timing_json();
        }
        object
    }

    /// For `--timing=json`. Everything counts from the start of the process, which `start_monotonic_ns` gives on a clock that
    /// whoever spawned it can read too.
    pub fn timing_json(&self) -> serde_json::Value {
        serde_json::json!({
            "start_monotonic_ns": self.start_ns,
            "phases_us": self.phases,
            "restore_to_first_instruction_us": self.restore_us,
            "first_answer_us": self.first_answer_us,
            "answered_us": self.answered_us,
            "events_us": self.events_us(),
            "block_requests": self.block_requests(),
            "paging": self.paging(),
        })
    }
}

/// The times of many clones.
#[derive(Debug, Default)]
pub struct ToldTimes {
    restore: Vec<f64>,
    first_answer: Vec<f64>,
    answered: Vec<f64>,
}

impl ToldTimes {
    /// Adds one clone's.
    pub fn add(&mut self, report: &Report) {
        self.restore.extend(report.restore_us);
        self.first_answer.extend(report.first_answer_us);
        self.answered.extend(report.answered_us);
    }

    /// As rows of a table.
    pub fn into_rows(self) -> Vec<Row> {
        [
            ("to the first instruction", self.restore),
            ("to the first answer byte", self.first_answer),
            ("to the end of the answer", self.answered),
        ]
        .into_iter()
        .filter_map(|(name, samples)| Some((name, Distribution::new(samples)?)))
        .collect()
    }
}
