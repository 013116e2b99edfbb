//! Another monitor beside Ember: the same kernel, modules, root image, function and event in the same run.
//!
//! Only Firecracker so far. The user brings the program (`--peer firecracker=PATH`); `benches/peer.sh` runs it, a guest of our own
//! (`benches/peer/guest.c`) serves the function, and `benches/peer/driver.c` times it as `benches/starter` times Ember.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use super::groups::{Part, Place};
use super::report::Measured;
use super::samples::{Distribution, Series};
use crate::rig::DEFAULT_MEMORY_MIB;
use crate::workspace::read;

/// What is said where nothing was brought.
pub const LEFT_OUT: &str = "paging.firecracker_...: left out (no --peer)";

/// The parts that need a peer.
pub const ECHO: Part = part("peer-echo", "echo", echo);
/// See [`ECHO`].
pub const PYTHON: Part = part("peer-python", "python", python);

const fn part(name: &'static str, argument: &'static str, figures: fn(&Path) -> Result<Measured>) -> Part {
    let (place, memory_mib) = (Place::ExactRigWithPeer, DEFAULT_MEMORY_MIB);
    Part { name, script: "peer.sh", argument, place, memory_mib, runs: 1, limit: 2400, figures }
}

/// A program that the user has.
#[derive(Debug, Clone, PartialEq)]
pub struct Peer {
    /// Firecracker's executable, able to run without the libraries of this machine.
    pub program: PathBuf,
}

impl FromStr for Peer {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let Some(("firecracker", path)) = text.split_once('=') else {
            bail!("The only peer that can be driven is firecracker=PATH");
        };
        let program = Path::new(path).canonicalize().with_context(|| format!("Cannot find {path}"))?;
        ensure!(program.is_file(), "{path} is not a file");
        Ok(Self { program })
    }
}

impl Peer {
    /// Its name in the emulated host, below the directory of a job's inputs.
    pub fn in_job(&self) -> Result<String> {
        let name = self.program.file_name().context("The peer has no name")?;
        Ok(format!("/in/{}", name.to_string_lossy()))
    }
}

/// Whether a figure is of a peer, and so never missing where there was none.
pub fn is_of_peer(figure: &str) -> bool {
    figure.contains("firecracker")
}

/// A start that ends where the guest might run, and so has no answer.
const LOAD: &str = "load";

/// A start, as `benches/peer/driver.c` writes it; microseconds from just before the spawn.
#[derive(Debug, Deserialize)]
struct Start {
    label: String,
    first_byte_us: f64,
    phases_us: Vec<(String, f64)>,
    second_us: f64,
    answer: String,
}

/// The starts of one kind.
struct Starts(Vec<Start>);

impl Starts {
    fn read(dir: &Path, file: &str, label: &str) -> Result<Self> {
        let path = dir.join(file);
        let parse = || -> Result<Self> {
            let all = read(&path)?.lines().map(serde_json::from_str).collect::<Result<Vec<Start>, _>>()?;
            let ours: Vec<Start> = all.into_iter().filter(|start| start.label == label).collect();
            ensure!(!ours.is_empty(), "Nothing is labelled {label}");
            let silent = |start: &Start| start.answer.is_empty() && label != LOAD;
            ensure!(!ours.iter().any(silent), "A start has no answer");
            Ok(Self(ours))
        };
        parse().with_context(|| format!("No starts in {}", path.display()))
    }

    fn of(&self, value: impl Fn(&Start) -> f64) -> Distribution {
        Distribution::new(self.0.iter().map(value).collect())
    }

    /// The median of each phase.
    fn phases(&self) -> Vec<(String, f64)> {
        let names = self.0.first().map(|start| start.phases_us.iter().map(|(name, _)| name));
        let at =
            |index: usize| self.of(|start| start.phases_us.get(index).map_or(f64::NAN, |(_, took)| *took));
        names
            .into_iter()
            .flatten()
            .enumerate()
            .map(|(index, name)| (name.clone(), at(index).median))
            .collect()
    }
}

/// `/bin/cat`.
fn echo(dir: &Path) -> Result<Measured> {
    let all = ["Firecracker echo restored", "Firecracker echo cold"];
    beside(dir, "echo_", "waiting /bin/cat behind a vsock", all)
}

/// The handler of examples/lambda.
fn python(dir: &Path) -> Result<Measured> {
    let all = ["Firecracker Python restored", "Firecracker Python cold"];
    beside(dir, "", "Python handler behind a vsock, without a Runtime API", all)
}

fn beside(dir: &Path, function: &str, what: &str, tables: [&'static str; 2]) -> Result<Measured> {
    let mut figures = Measured::default();
    let version = read(&dir.join("version"))?;
    let peer = format!("{}, {what}", version.trim());
    let restored = Starts::read(dir, "firecracker-restore.jsonl", "restore")?;
    let loaded = Starts::read(dir, "firecracker-load.jsonl", LOAD)?;
    let cold = Starts::read(dir, "firecracker-cold.jsonl", "cold")?;
    let answer = restored.of(|start| start.first_byte_us);
    let mut of_peer = |name: &str, found: &Distribution, how: &str| {
        figures.time(&format!("paging.firecracker_{function}{name}_us"), found, &format!("{peer}, {how}"));
    };
    of_peer("restore_to_answer", &answer, "snapshot in memory, file-backed");
    of_peer(
        "spawn_and_load",
        &loaded.of(|start| start.first_byte_us),
        "spawn to the answer of PUT /snapshot/load, not resumed",
    );
    of_peer("second_answer", &restored.of(|start| start.second_us), "connection to first byte");
    of_peer("cold_to_answer", &cold.of(|start| start.first_byte_us), "--no-api, spawn to first byte");

    let ours = Series::read(dir, "ember-restore.jsonl", "restore")?.of(|sample| sample.first_byte_us);
    let ours_cold = Series::read(dir, "ember-cold.jsonl", "cold")?.of(|sample| sample.first_byte_us);
    let name = |what: &str| format!("paging.{function}{what}_beside_firecracker");
    figures.time(&(name("restore_to_answer") + "_us"), &ours, "`ember run`, same run as Firecracker");
    figures.time(
        &(name("cold_to_answer") + "_us"),
        &ours_cold,
        "`ember run --cold`, same run as Firecracker",
    );
    let method =
        format!("medians of one run, Ember {:.0} us over Firecracker {:.0} us", ours.median, answer.median);
    figures.add(
        &format!("paging.{function}restore_over_firecracker"),
        ours.median / answer.median,
        "",
        &method,
    );
    for (table, starts) in tables.into_iter().zip([&restored, &cold]) {
        figures.phases(table, starts.phases());
    }
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::super::samples::tests::line;
    use super::*;
    use crate::workspace::write;

    fn start(label: &str, phases: &[(&str, f64)]) -> String {
        let sum: f64 = phases.iter().map(|(_, took)| took).sum();
        let start = serde_json::json!({
            "label": label, "first_byte_us": sum, "end_us": sum, "phases_us": phases, "second_us": 5.0, "answer": "x",
        });
        format!("{start}\n")
    }

    #[test]
    fn a_run_beside_firecracker_becomes_its_figures_and_a_ratio() {
        let dir = tempfile::tempdir().unwrap();
        let restored = [("process start", 30.0), ("load", 10.0), ("answer", 60.0)];
        for (name, text) in [
            ("version", "Firecracker v9\n".to_owned()),
            ("firecracker-restore.jsonl", start("restore", &restored)),
            ("firecracker-load.jsonl", start(LOAD, &restored[..2]).replace("\"x\"", "\"\"")),
            ("firecracker-cold.jsonl", start("cold", &[("ready", 900.0), ("answer", 100.0)])),
            ("ember-restore.jsonl", line("restore", 25.0, &[], &[])),
            ("ember-cold.jsonl", line("cold", 500.0, &[], &[])),
        ] {
            write(&dir.path().join(name), text).unwrap();
        }
        let figures = echo(dir.path()).unwrap();
        for (name, value) in [
            ("paging.firecracker_echo_restore_to_answer_us", 100.0),
            ("paging.firecracker_echo_spawn_and_load_us", 40.0),
            ("paging.firecracker_echo_second_answer_us", 5.0),
            ("paging.firecracker_echo_cold_to_answer_us", 1000.0),
            ("paging.echo_restore_to_answer_beside_firecracker_us", 25.0),
            ("paging.echo_restore_over_firecracker", 0.25),
        ] {
            assert_eq!(figures.value(name), Some(value), "{name}");
        }
        assert!(figures.phase_table().contains("load"));
    }

    #[test]
    fn a_start_without_an_answer_is_no_sample() {
        let dir = tempfile::tempdir().unwrap();
        let silent = start("restore", &[("a", 1.0)]).replace("\"x\"", "\"\"");
        write(&dir.path().join("firecracker-restore.jsonl"), silent).unwrap();
        assert!(Starts::read(dir.path(), "firecracker-restore.jsonl", "restore").is_err());
    }

    #[test]
    fn only_a_program_that_exists_is_a_peer() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(format!("firecracker={}", file.path().display()).parse::<Peer>().is_ok());
        for bad in ["firecracker=/no/such/file", "qemu=/bin/sh", "firecracker", "firecracker=/"] {
            assert!(bad.parse::<Peer>().is_err(), "{bad}");
        }
    }
}
