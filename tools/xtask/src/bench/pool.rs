//! Figures of the pool of shells, on this machine's own KVM and with Linux guests in the emulated host.

use std::collections::BTreeMap;
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
    bounded(dir, &mut figures)?;
    leaks(dir, &mut figures)?;
    density(dir, "", &mut figures)?;
    Ok(figures)
}

/// The Python function, beside `ember run` in one boot of the emulated host.
pub fn linux_answer(dir: &Path) -> Result<Measured> {
    let mut figures = Measured::default();
    let calls = calls(dir, "single.jsonl", "single")?;
    let answer = of(&calls, us);
    let what =
        "Python lambda function, request at the client's socket to the end of the answer, 2 shells wait";
    figures.time("pool.rig_restore_to_answer_us", &answer, what);
    let first = of(&calls, |call| call.first_answer_us);
    figures.time("pool.rig_first_answer_us", &first, "job sent to the answer's first piece");
    let exit = of(&calls, |call| call.first_exit_us);
    figures.time("pool.rig_activate_us", &exit, "job sent to the first guest exit");
    let run = |label| Ok::<_, anyhow::Error>(Series::read(dir, "run.jsonl", label)?.of(|s| s.first_byte_us));
    figures.time("pool.rig_run_us", &run("pooled")?, "`ember run --pool`, spawn to first byte");
    let alone = "`ember run --no-jail`, spawn to first byte, in turn with it";
    figures.time("pool.rig_run_alone_us", &run("alone")?, alone);
    Ok(figures)
}

/// Idle clones of the Python function.
pub fn linux_density(dir: &Path) -> Result<Measured> {
    let mut figures = Measured::default();
    density(dir, "linux_", &mut figures)?;
    Ok(figures)
}

/// What a control group of its own costs a shell; only root has measured that.
fn bounded(dir: &Path, figures: &mut Measured) -> Result<()> {
    if !dir.join("activate-bounded.jsonl").exists() {
        return Ok(());
    }
    for (name, what) in [("free", "without a control group"), ("bounded", "with one")] {
        let first = of(&calls(dir, &format!("activate-{name}.jsonl"), "single")?, |call| call.first_exit_us);
        let what = format!("job sent to the first guest exit, {what}, in turns of one run, 8 shells wait");
        figures.time(&format!("pool.activate_{name}_us"), &first, &what);
        let rate = of(&calls(dir, &format!("loop-{name}.jsonl"), "per_s")?, us);
        let method = format!("closed loop of 4 callers, 1 s, in turns of one run, median, {rate}");
        figures.add(&format!("pool.restores_{name}_per_s"), rate.median, "/s", &method);
    }
    Ok(())
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

/// How much more there is of anything after so many cycles.
fn leaks(dir: &Path, figures: &mut Measured) -> Result<()> {
    let (before, after) = (counts(dir, "leaks-before")?, counts(dir, "leaks-after")?);
    let cycles = first_number(dir, "leaks-cycles")?;
    let above = |name: &str| {
        let of = |counts: &BTreeMap<String, f64>| counts.get(name).copied();
        of(&after)
            .zip(of(&before))
            .map(|(after, before)| after - before)
            .with_context(|| format!("No count of {name}"))
    };
    let kinds = ["descriptors", "processes", "mounts", "sockets", "groups"];
    let leaks: Vec<f64> = kinds.iter().map(|name| Ok(above(name)?.max(0.0))).collect::<Result<_>>()?;
    let leaks: f64 = leaks.iter().sum();
    let method = format!("{} above the start, after {cycles:.0} events", kinds.join(", "));
    figures.add("pool.leaks_after_cycles", leaks, "", &method);
    let method = format!("private memory of daemon and zygote above the start, after {cycles:.0} events");
    figures.add("pool.memory_after_cycles_kib", above("memory_kib")?, "KiB", &method);
    Ok(())
}

/// What an idle clone takes, and of what that consists.
fn density(dir: &Path, prefix: &str, figures: &mut Measured) -> Result<()> {
    let (before, after) = (counts(dir, "density-before")?, counts(dir, "density-after")?);
    let clones = first_number(dir, "density-clones")?;
    let each = |name: &str| {
        let of = |counts: &BTreeMap<String, f64>| counts.get(name).copied().unwrap_or(f64::NAN);
        (of(&after) - of(&before)) / clones
    };
    let machines = machines(dir)?;
    let median = |column: usize| Distribution::new(machines.iter().map(|row| row[column]).collect()).median;
    let (own, all) = (median(2), -each("MemAvailable:"));
    let key = |what: &str| format!("density.{prefix}{what}");
    let method = format!(
        "MemAvailable before, less with {clones:.0} idle jailed clones of 256 MiB, over their number"
    );
    figures.add(&key("idle_clone_kib"), all, "KiB", &method);
    figures.add(
        &key("guest_own_kib"),
        own,
        "KiB",
        "of that, private dirty pages of the guest's memory, median",
    );
    figures.add(&key("besides_guest_kib"), all - own, "KiB", "the first less the second");
    figures.add(&key("pss_kib"), median(0), "KiB", "proportional share of a clone's process, median");
    figures.add(&key("process_tables_kib"), median(1), "KiB", "page tables of a clone's process, median");
    let method = "more of it in the whole kernel, over the number of clones";
    for (name, line) in
        [("slab_kib", "Slab:"), ("tables_kib", "PageTables:"), ("secondary_tables_kib", "SecPageTables:")]
    {
        figures.add(&key(name), each(line), "KiB", method);
    }
    Ok(())
}

/// Lines of a name and a number.
fn counts(dir: &Path, file: &str) -> Result<BTreeMap<String, f64>> {
    let text = read(&dir.join(file))?;
    let count = |line: &str| {
        let mut words = line.split_whitespace();
        Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
    };
    text.lines()
        .map(count)
        .collect::<Option<_>>()
        .with_context(|| format!("{file} has a line without a number"))
}

fn first_number(dir: &Path, file: &str) -> Result<f64> {
    read(&dir.join(file))?.trim().parse().with_context(|| format!("{file} has no number"))
}

/// Of each clone, KiB: share, page tables, guest memory of its own.
fn machines(dir: &Path) -> Result<Vec<[f64; 3]>> {
    let text = read(&dir.join("density-machines"))?;
    let row = |line: &str| {
        let numbers: Vec<f64> =
            line.split_whitespace().map(|word| word.parse().ok()).collect::<Option<_>>()?;
        numbers.try_into().ok()
    };
    text.lines().map(row).collect::<Option<_>>().context("density-machines has a line without three numbers")
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
        for (name, us) in [("free", 6), ("bounded", 7)] {
            let text = format!("{{\"label\":\"single\",\"us\":9,\"first_exit_us\":{us}}}\n");
            put(&format!("activate-{name}.jsonl"), &text);
            put(&format!("loop-{name}.jsonl"), "{\"label\":\"per_s\",\"us\":50}\n");
        }
        let held = |memory, descriptors, groups| {
            format!(
                "memory_kib {memory}\ndescriptors {descriptors}\nprocesses 2\nmounts 3\nsockets 4\ngroups {groups}\n"
            )
        };
        put("leaks-before", &held(800, 10, 16));
        put("leaks-after", &held(808, 11, 15));
        put("leaks-cycles", "10000\n");
        let memory = |available, slab| {
            format!(
                "MemAvailable: {available} kB\nSlab: {slab} kB\nPageTables: 5 kB\nSecPageTables: 0 kB\nHugePages_Total: 0\n"
            )
        };
        put("density-before", &memory(600_000, 100));
        put("density-after", &memory(100_000, 600));
        put("density-clones", "500\n");
        put("density-machines", "900 40 300\n920 44 310\n910 42 320\n");
        let figures = pool(dir.path()).unwrap();
        let expected = [
            ("pool.activate_p50_us", 7.0),
            ("pool.activate_100_p50_us", 7.0),
            ("pool.run_ratio", 0.25),
            ("burst.64.spread", 1.0),
            ("burst.256.wall_ms", 8.0),
            ("burst.restores_per_s", 123.0),
            ("pool.leaks_after_cycles", 1.0),
            ("pool.memory_after_cycles_kib", 8.0),
            ("pool.activate_bounded_us", 7.0),
            ("pool.restores_free_per_s", 50.0),
            ("density.idle_clone_kib", 1000.0),
            ("density.guest_own_kib", 310.0),
            ("density.besides_guest_kib", 690.0),
            ("density.pss_kib", 910.0),
            ("density.slab_kib", 1.0),
        ];
        for (name, value) in expected {
            assert!((figures.value(name).unwrap() - value).abs() < 1e-9, "{name}");
        }
    }
}
