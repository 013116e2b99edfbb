//! Figures of the pool of shells, on this machine's own KVM.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::report::Measured;
use super::samples::{Distribution, Series};
use crate::workspace::read;

/// A line of `benches/caller`.
#[derive(Debug, Deserialize)]
struct Call {
    label: String,
    us: f64,
    #[serde(default)]
    first_exit_us: f64,
    #[serde(default)]
    first_answer_us: f64,
}

/// Calls at once.
const BURSTS: [u32; 4] = [1, 16, 64, 256];

/// Everything that `benches/pool.sh` has left.
pub fn pool(dir: &Path) -> Result<Measured> {
    let mut figures = Measured::default();
    for (shells, suffix) in [(8, ""), (100, "_100")] {
        let calls = calls(dir, &format!("activate-{shells}.jsonl"), "single")?;
        let what = format!("job sent to the first guest exit, small guest of 64 MiB, {shells} shells wait");
        let first = of(&calls, |call| call.first_exit_us);
        figures.time(&format!("pool.activate{suffix}_p50_us"), &first, &what);
        let note = format!("{what}, {first}");
        figures.add(&format!("pool.activate{suffix}_p99_us"), first.p99, "us", &note);
        let answer = of(&calls, |call| call.first_answer_us);
        figures.time(&format!("pool.answer{suffix}_p50_us"), &answer, "job sent to the answer's first piece");
    }
    let run = |label| Ok::<_, anyhow::Error>(Series::read(dir, "run.jsonl", label)?.of(|s| s.first_byte_us));
    let (pooled, alone) = (run("pooled")?, run("alone")?);
    figures.time("pool.run_p50_us", &pooled, "`ember run --pool`, jailed");
    figures.time("pool.run_alone_p50_us", &alone, "`ember run --no-jail`, in turn with it");
    figures.add("pool.run_ratio", pooled.median / alone.median, "", "the two medians of one interleaved run");
    for n in BURSTS {
        let file = format!("burst-{n}.jsonl");
        let (each, wall) = (of(&calls(dir, &file, "burst")?, us), of(&calls(dir, &file, "wall")?, us));
        let what = format!("{n} calls at once, 16 shells, at the client's socket");
        figures.time(&format!("burst.{n}.p50_us"), &each, &what);
        figures.add(&format!("burst.{n}.p99_us"), each.p99, "us", &format!("{what}, {each}"));
        figures.add(&format!("burst.{n}.wall_ms"), wall.median / 1000.0, "ms", &format!("median, {what}"));
        figures.add(&format!("burst.{n}.spread"), each.p99 / each.median, "", "p99 over p50");
    }
    let rate = calls(dir, "loop.jsonl", "per_s")?.first().map_or(f64::NAN, us);
    figures.add(
        "burst.restores_per_s",
        rate,
        "/s",
        "closed loop of 4 callers, 10 s, 16 shells, with refill and teardown",
    );
    let leaks = leaks(&read(&dir.join("leaks"))?).context("No counts in leaks")?;
    let method = "descriptors of the daemon, processes and mounts above the start, after 5 s of calls";
    figures.add("pool.leaks_after_cycles", leaks, "", method);
    let (clones, kib) = density(&read(&dir.join("density"))?).context("No figures in density")?;
    let method = format!(
        "MemAvailable before, less with {clones:.0} idle jailed clones of 256 MiB, over their number"
    );
    figures.add("density.idle_clone_kib", kib, "KiB", &method);
    Ok(figures)
}

fn us(call: &Call) -> f64 {
    call.us
}

fn of(calls: &[Call], value: impl Fn(&Call) -> f64) -> Distribution {
    Distribution::new(calls.iter().map(value).collect())
}

fn calls(dir: &Path, file: &str, label: &str) -> Result<Vec<Call>> {
    let path = dir.join(file);
    let calls = read(&path)?.lines().map(serde_json::from_str).collect::<Result<Vec<Call>, _>>();
    let calls = calls.with_context(|| format!("{} is not what a caller writes", path.display()))?;
    let ours: Vec<Call> = calls.into_iter().filter(|call| call.label == label).collect();
    anyhow::ensure!(!ours.is_empty(), "{} has no {label}", path.display());
    Ok(ours)
}

/// How much more there is of anything in the second line than in the first.
fn leaks(text: &str) -> Option<f64> {
    let numbers = |line: &str| line.split_whitespace().skip(1).map(|word| word.parse().ok()).collect();
    let lines: Vec<Vec<f64>> = text.lines().map(numbers).collect::<Option<_>>()?;
    let [before, after] = lines.as_slice() else { return None };
    Some(before.iter().zip(after).map(|(before, after)| (after - before).max(0.0)).sum())
}

/// The number of clones and KiB of each.
fn density(text: &str) -> Option<(f64, f64)> {
    let numbers: Vec<f64> = text.split_whitespace().map(|word| word.parse().ok()).collect::<Option<_>>()?;
    let [clones, before, after] = numbers.as_slice() else { return None };
    Some((*clones, (before - after) / clones))
}

#[cfg(test)]
mod tests {
    use super::super::samples::tests::line;
    use super::*;
    use crate::workspace::write;

    #[test]
    fn what_the_script_leaves_becomes_figures() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| write(&dir.path().join(name), text).unwrap();
        for shells in [8, 100] {
            put(
                &format!("activate-{shells}.jsonl"),
                "{\"label\":\"single\",\"us\":9,\"first_exit_us\":7,\"first_answer_us\":8}\n",
            );
        }
        put("run.jsonl", &(line("pooled", 100.0, &[], &[]) + &line("alone", 400.0, &[], &[])));
        for n in BURSTS {
            let text = "{\"label\":\"burst\",\"us\":5}\n{\"label\":\"wall\",\"us\":8000}\n";
            put(&format!("burst-{n}.jsonl"), text);
        }
        put("loop.jsonl", "{\"label\":\"per_s\",\"us\":123}\n");
        put("leaks", "before 10 20 30\nafter 11 19 30\n");
        put("density", "500 600000 100000\n");
        let figures = pool(dir.path()).unwrap();
        let expected = [
            ("pool.activate_p50_us", 7.0),
            ("pool.activate_100_p50_us", 7.0),
            ("pool.run_ratio", 0.25),
            ("burst.64.spread", 1.0),
            ("burst.256.wall_ms", 8.0),
            ("burst.restores_per_s", 123.0),
            ("pool.leaks_after_cycles", 1.0),
            ("density.idle_clone_kib", 1000.0),
        ];
        for (name, value) in expected {
            assert!((figures.value(name).unwrap() - value).abs() < 1e-9, "{name}");
        }
    }
}
