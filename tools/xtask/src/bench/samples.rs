//! What `benches/starter` writes: a line of JSON per start.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::workspace::read;

/// One start. Unless said otherwise in microseconds from just before the program was spawned.
#[derive(Debug, Clone, Deserialize)]
pub struct Sample {
    label: String,
    /// To the first byte of its standard output.
    pub first_byte_us: f64,
    /// The wall clock at that byte, microseconds since 1970.
    #[serde(default)]
    pub first_byte_unix_us: f64,
    /// To the end of the process.
    pub end_us: f64,
    /// To where the clock of `timing` begins.
    #[serde(default)]
    pub start_us: f64,
    /// What `ember run --timing=json` said.
    pub timing: Option<Timing>,
    /// The beginning of the answer.
    pub answer: String,
}

/// Microseconds from the process's own start.
#[derive(Debug, Clone, Deserialize)]
pub struct Timing {
    pub restore_to_first_instruction_us: f64,
    pub first_answer_us: f64,
    pub phases_us: Vec<(String, f64)>,
    /// Time of each event.
    pub events_us: Vec<f64>,
    /// Block requests until the last answer.
    pub block_requests: u64,
    /// How the memory came into being; runs that were kept before there was one have none.
    #[serde(default)]
    pub paging: Option<Paging>,
}

/// What is told of a clone's memory.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Paging {
    /// Of each vCPU, from the first instruction to the first answer.
    #[serde(default)]
    pub kvm_faults_before_answer: Vec<u64>,
    /// Copied before the guest asked.
    #[serde(default)]
    pub prefetched_bytes: u64,
    /// Pages mapped before the guest asked.
    #[serde(default)]
    pub mapped_pages: u64,
    /// Huge ones among them.
    #[serde(default)]
    pub mapped_huge_pages: u64,
}

impl Timing {
    /// Page faults of all vCPUs before the first answer.
    pub fn faults(&self) -> f64 {
        self.paging.iter().flat_map(|paging| &paging.kvm_faults_before_answer).sum::<u64>() as f64
    }

    /// Bytes that were mapped ahead, huge pages as long as they are.
    pub fn mapped(&self) -> f64 {
        const HUGE: u64 = 2 << 20;
        let bytes = |paging: &Paging| paging.mapped_pages * 4096 + paging.mapped_huge_pages * (HUGE - 4096);
        self.paging.as_ref().map_or(0, bytes) as f64
    }

    /// Bytes that were brought in ahead. What is copied is mapped too; of a huge page, which is in the page cache already, the one page
    /// that it is mapped by.
    pub fn brought_in(&self) -> f64 {
        let most = |paging: &Paging| paging.prefetched_bytes.max(paging.mapped_pages * 4096);
        self.paging.as_ref().map_or(0, most) as f64
    }
}

/// Samples of one program.
#[derive(Debug)]
pub struct Series(Vec<Sample>);

impl Series {
    /// Reads those with `label` of a file.
    pub fn read(dir: &Path, file: &str, label: &str) -> Result<Self> {
        let path = dir.join(file);
        Self::parse(&read(&path)?, label).with_context(|| format!("No samples in {}", path.display()))
    }

    fn parse(text: &str, label: &str) -> Result<Self> {
        let samples = text.lines().map(serde_json::from_str).collect::<Result<Vec<Sample>, _>>()?;
        let ours: Vec<Sample> = samples.into_iter().filter(|sample| sample.label == label).collect();
        ensure!(!ours.is_empty(), "Nothing is labelled {label}");
        Ok(Self(ours))
    }

    /// The distribution of one value of each sample.
    pub fn of(&self, value: impl Fn(&Sample) -> f64) -> Distribution {
        Distribution::new(self.0.iter().map(value).collect())
    }

    /// The distribution of one value of each sample's timing.
    pub fn of_timing(&self, value: impl Fn(&Sample, &Timing) -> f64) -> Result<Distribution> {
        let timed = self.0.iter().filter_map(|sample| Some(value(sample, sample.timing.as_ref()?)));
        let values: Vec<f64> = timed.collect();
        ensure!(values.len() == self.0.len(), "A sample has no timing");
        Ok(Distribution::new(values))
    }

    /// The answers.
    pub fn answers(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|sample| sample.answer.as_str())
    }

    /// The answers, each with a value of its sample.
    pub fn answers_with(&self, value: impl Fn(&Sample) -> f64) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(move |sample| (sample.answer.as_str(), value(sample)))
    }

    /// The median of each phase, in the order of the first sample. Of a phase that comes several times, the first.
    pub fn phases(&self) -> Vec<(String, f64)> {
        let timings = || self.0.iter().filter_map(|sample| sample.timing.as_ref());
        let mut all: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for timing in timings() {
            for (at, (name, took)) in timing.phases_us.iter().enumerate() {
                if timing.phases_us.iter().take(at).all(|(earlier, _)| earlier != name) {
                    all.entry(name).or_default().push(*took);
                }
            }
        }
        let order = timings().next().map(|timing| timing.phases_us.iter()).into_iter().flatten();
        order
            .filter_map(|(name, _)| {
                Some((name.clone(), Distribution::new(all.remove(name.as_str())?).median))
            })
            .collect()
    }
}

/// What is told of many values.
#[derive(Debug, Clone, PartialEq)]
pub struct Distribution {
    pub count: usize,
    pub min: f64,
    pub median: f64,
    /// By nearest rank.
    pub p99: f64,
    pub max: f64,
}

impl Distribution {
    /// Of values in any order.
    pub fn new(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        let count = values.len();
        let last = count.saturating_sub(1);
        Self {
            count,
            min: at(0),
            median: f64::midpoint(at(last / 2), at(count / 2)),
            p99: at((count * 99).div_ceil(100).saturating_sub(1)),
            max: at(last),
        }
    }
}

impl fmt::Display for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} samples, {:.0} to {:.0}", self.count, self.min, self.max)
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A line as the starter writes it.
    pub fn line(label: &str, first_byte: f64, phases: &[(&str, f64)], events: &[f64]) -> String {
        let sum: f64 = phases.iter().map(|(_, took)| took).sum();
        let timing = serde_json::json!({
            "start_monotonic_ns": 1,
            "restore_to_first_instruction_us": 5.0,
            "first_answer_us": sum,
            "phases_us": phases,
            "events_us": events,
            "block_requests": 0,
        });
        let line = serde_json::json!({
            "label": label, "first_byte_us": first_byte, "end_us": first_byte + 10.0, "start_us": 2.0,
            "timing": timing, "answer": "70.0\n",
        });
        format!("{line}\n")
    }

    #[test]
    fn samples_of_another_program_are_left_out() {
        let text: String = [("a", 3.0), ("b", 9.0), ("a", 1.0), ("a", 2.0)]
            .map(|(label, us)| line(label, us, &[("x", us)], &[]))
            .concat();
        let series = Series::parse(&text, "a").unwrap();
        let found = series.of(|sample| sample.first_byte_us);
        assert_eq!((found.count, found.min, found.median, found.max), (3, 1.0, 2.0, 3.0));
        assert!(Series::parse(&text, "c").is_err());
    }

    #[test]
    fn medians_and_percentiles_are_those_of_the_sorted_values() {
        let found = Distribution::new((1..=200).rev().map(f64::from).collect());
        assert_eq!((found.median, found.p99), (100.5, 198.0));
        assert_eq!(Distribution::new(vec![4.0]).median, 4.0);
    }

    #[test]
    fn a_phase_is_the_median_of_its_first_occurrence_in_each_sample() {
        let text: String = [1.0, 2.0, 9.0]
            .map(|us| line("a", us, &[("x", us), ("y", 2.0 * us), ("x", 100.0)], &[]))
            .concat();
        let phases = Series::parse(&text, "a").unwrap().phases();
        assert_eq!(phases, [("x".to_owned(), 2.0), ("y".to_owned(), 4.0)]);
    }

    #[test]
    fn a_sample_without_timing_is_no_zero() {
        let text = r#"{"label":"a","first_byte_us":1.0,"end_us":2.0,"timing":null,"answer":"x"}"#;
        let series = Series::parse(text, "a").unwrap();
        assert!(series.of_timing(|_, timing| timing.first_answer_us).is_err());
    }
}
