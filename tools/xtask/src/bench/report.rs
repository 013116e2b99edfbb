//! The report: one figure a name, with how, where and on which kernel it was measured.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::workspace::{make_dir, read, rename, write};

/// What one part of a bench came to, before anybody says where it was measured.
#[derive(Debug, Default)]
pub struct Measured {
    figures: BTreeMap<String, MeasuredFigure>,
    phases: Vec<(&'static str, Vec<(String, f64)>)>,
}

#[derive(Debug)]
struct MeasuredFigure {
    value: f64,
    unit: String,
    method: String,
}

impl Measured {
    /// Adds a figure.
    pub fn add(&mut self, name: &str, value: f64, unit: &str, method: &str) {
        let figure = MeasuredFigure { value, unit: unit.to_owned(), method: method.to_owned() };
        self.figures.insert(name.to_owned(), figure);
    }

    /// Adds where the time of a start went: phases and their microseconds, in order.
    pub fn phases(&mut self, of: &'static str, phases: Vec<(String, f64)>) {
        self.phases.push((of, phases));
    }

    /// The phases as a table for a person.
    pub fn phase_table(&self) -> String {
        let line = |(name, took): &(String, f64)| format!("    {name:<40} {took:>12.0}\n");
        let table = |(of, phases): &(&str, Vec<(String, f64)>)| {
            format!("{of}, us\n{}", phases.iter().map(line).collect::<String>())
        };
        self.phases.iter().map(table).collect()
    }

    /// A figure's value.
    #[cfg(test)]
    pub fn value(&self, name: &str) -> Option<f64> {
        self.figures.get(name).map(|figure| figure.value)
    }
}

/// Where a script ran.
#[derive(Debug, Clone)]
pub struct Origin {
    pub host: String,
    pub kernel: String,
}

/// A figure that can be quoted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    pub value: f64,
    pub unit: String,
    pub method: String,
    pub host: String,
    pub kernel: String,
}

/// target/bench/report.json.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report {
    figures: BTreeMap<String, Figure>,
}

impl Report {
    /// The report of earlier runs, or an empty one.
    pub fn load(path: &Path) -> Result<Self> {
        if !path.exists() {
            return Ok(Self::default());
        }
        serde_json::from_str(&read(path)?).with_context(|| format!("{} is no report", path.display()))
    }

    /// Takes over what was measured at `origin`; figures of the same name are replaced. Returns the names.
    pub fn merge(&mut self, measured: Measured, origin: &Origin) -> Vec<String> {
        let names = measured.figures.keys().cloned().collect();
        for (name, figure) in measured.figures {
            let MeasuredFigure { value, unit, method } = figure;
            let Origin { host, kernel } = origin.clone();
            self.figures.insert(name, Figure { value, unit, method, host, kernel });
        }
        names
    }

    /// Writes it whole or not at all.
    pub fn save(&self, path: &Path) -> Result<()> {
        if let Some(dir) = path.parent() {
            make_dir(dir)?;
        }
        let fresh = path.with_extension("new");
        write(&fresh, serde_json::to_string_pretty(self)? + "\n")?;
        rename(&fresh, path)
    }

    /// The value of a figure.
    pub fn value(&self, name: &str) -> Option<f64> {
        self.figure(name).map(|figure| figure.value)
    }

    /// A figure.
    pub fn figure(&self, name: &str) -> Option<&Figure> {
        self.figures.get(name)
    }

    /// All figures with their names, in their order.
    pub fn figures(&self) -> impl Iterator<Item = (&str, &Figure)> {
        self.figures.iter().map(|(name, figure)| (name.as_str(), figure))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, figure) in &self.figures {
            writeln!(f, "{name:<44} {:>14.3} {:<6} {}", figure.value, figure.unit, figure.method)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin() -> Origin {
        Origin { host: "h".into(), kernel: "k".into() }
    }

    fn measured(name: &str, value: u32) -> Measured {
        let mut measured = Measured::default();
        measured.add(name, f64::from(value), "us", "median of 15");
        measured
    }

    #[test]
    fn a_second_group_adds_to_the_first_and_a_second_run_replaces() {
        let mut report = Report::default();
        for (name, value) in [("main.a", 1), ("native.b", 2), ("main.a", 3)] {
            report.merge(measured(name, value), &origin());
        }
        assert_eq!((report.value("main.a"), report.value("native.b")), (Some(3.0), Some(2.0)));
    }

    #[test]
    fn a_saved_report_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/report.json");
        let mut report = Report::default();
        report.merge(measured("main.a", 7), &origin());
        report.save(&path).unwrap();
        assert_eq!(Report::load(&path).unwrap().figures, report.figures);
    }

    #[test]
    fn a_figure_without_a_method_is_refused() {
        let text = r#"{"figures": {"a": {"value": 1, "unit": "us", "host": "h", "kernel": "k"}}}"#;
        assert!(serde_json::from_str::<Report>(text).is_err());
    }
}
