//! Samples as they lie in target/bench/PART, whoever wrote them: only what can be drawn is read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

use super::super::peer;
use super::super::samples::Distribution;
use crate::workspace::read;

/// The starts of one program in one run.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// "peer-echo, firecracker-restore".
    pub name: String,
    /// Microseconds to the first byte, in the order in which they were taken.
    pub first_byte_us: Vec<f64>,
    /// The median of each phase, in order.
    pub phases: Vec<(String, f64)>,
}

impl Run {
    /// Of the samples.
    pub fn distribution(&self) -> Distribution {
        Distribution::new(self.first_byte_us.clone())
    }

    /// The colour of whoever was measured.
    pub fn class(&self) -> &'static str {
        if peer::is_of_peer(&self.name) { "peer" } else { "ember" }
    }
}

#[derive(Debug, Deserialize)]
struct Line {
    label: String,
    first_byte_us: f64,
    timing: Option<Timing>,
    /// Where the program has no timing of its own.
    #[serde(default)]
    phases_us: Vec<(String, f64)>,
}

#[derive(Debug, Deserialize)]
struct Timing {
    #[serde(default)]
    phases_us: Vec<(String, f64)>,
}

impl Line {
    fn phases(&self) -> &[(String, f64)] {
        self.timing.as_ref().map_or(&self.phases_us, |timing| &timing.phases_us)
    }
}

/// All runs in the directories of `dir`, by their names.
pub fn runs(dir: &Path) -> Result<Vec<Run>> {
    let mut runs = Vec::new();
    for part in entries(dir)?.into_iter().filter(|path| path.is_dir()) {
        let samples = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "jsonl");
        for file in entries(&part)?.into_iter().filter(samples) {
            runs.extend(parse(&format!("{}, {}", stem(&part), stem(&file)), &read(&file)?));
        }
    }
    Ok(runs)
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let read = || dir.read_dir()?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>();
    let mut found = read().with_context(|| format!("Cannot list {}", dir.display()))?;
    found.sort();
    Ok(found)
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// A run per label. Lines that are no starts are of benches that draw nothing here.
fn parse(name: &str, text: &str) -> Vec<Run> {
    let mut labels: BTreeMap<String, Vec<Line>> = BTreeMap::new();
    for line in text.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok()) {
        labels.entry(line.label.clone()).or_default().push(line);
    }
    let several = labels.len() > 1;
    let named = |label: &str| if several { format!("{name}, {label}") } else { name.to_owned() };
    labels
        .iter()
        .map(|(label, lines)| Run {
            name: named(label),
            first_byte_us: lines.iter().map(|line| line.first_byte_us).collect(),
            phases: medians(lines),
        })
        .collect()
}

/// Of each phase the first occurrence in each sample, in the order of the first sample.
fn medians(lines: &[Line]) -> Vec<(String, f64)> {
    let took = |line: &Line, name: &str| {
        line.phases().iter().find(|(other, _)| other == name).map(|(_, took)| *took)
    };
    let mut phases: Vec<(String, f64)> = Vec::new();
    for (name, _) in lines.first().map_or(&[][..], Line::phases) {
        if phases.iter().all(|(other, _)| other != name) {
            let values = lines.iter().filter_map(|line| took(line, name)).collect();
            phases.push((name.clone(), Distribution::new(values).median));
        }
    }
    phases
}

#[cfg(test)]
mod tests {
    use super::super::super::samples::tests::line;
    use super::*;

    #[test]
    fn each_label_is_a_run_and_other_lines_are_left_alone() {
        let text = line("a", 3.0, &[("x", 1.0), ("y", 2.0), ("x", 9.0)], &[])
            + &line("b", 5.0, &[], &[])
            + &line("a", 1.0, &[("x", 3.0), ("y", 2.0)], &[])
            + "{\"label\":\"a\",\"pages\":7}\nno json\n";
        let runs = parse("part, file", &text);
        let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
        assert_eq!(names, ["part, file, a", "part, file, b"]);
        assert_eq!(runs[0].first_byte_us, [3.0, 1.0]);
        assert_eq!(runs[0].phases, [("x".to_owned(), 2.0), ("y".to_owned(), 2.0)]);
    }

    #[test]
    fn phases_of_a_program_without_timing_are_found_too() {
        let text = r#"{"label":"restore","first_byte_us":3.0,"phases_us":[["load",2.0]],"answer":"x"}"#;
        let runs = parse("peer-echo, firecracker-restore", text);
        assert_eq!((runs[0].phases.len(), runs[0].class()), (1, "peer"));
    }
}
