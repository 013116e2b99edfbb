//! From what `benches/paging.sh` and `benches/paging-native.sh` have left to the figures of a clone's memory.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use super::report::Measured;
use super::samples::{Distribution, Series};
use crate::workspace::read;

/// The echo function.
pub fn echo(dir: &Path) -> Result<Measured> {
    let mut figures = Measured::default();
    linux(dir, "echo", "echo_", &mut figures)?;
    let timed = Series::read(dir, "echo.jsonl", "timed")?;
    let first = timed.of_timing(|s, timing| s.start_us + timing.restore_to_first_instruction_us)?;
    let method = "`ember run --timing=json`, echo, prefetching in it";
    figures.time("paging.restore_to_first_instruction_us", &first, method);
    Ok(figures)
}

/// The Python function.
pub fn lambda(dir: &Path) -> Result<Measured> {
    let mut figures = Measured::default();
    let restored = linux(dir, "lambda", "", &mut figures)?;
    let cold = answers(dir, "lambda-cold.jsonl", "cold")?;
    let method =
        format!("Python lambda function, medians, {:.0} us over {:.0} us", restored.median, cold.median);
    figures.add("paging.cold_boot_ratio", restored.median / cold.median, "", &method);
    Ok(figures)
}

/// The Python function with an event that is nothing like the recorded one.
pub fn lambda_drift(dir: &Path) -> Result<Measured> {
    let mut figures = Measured::default();
    let method = "Python lambda function recorded with a name of 6 bytes, run with one of 64 KiB";
    drift(dir, "lambda-drift", "paging.drift_ratio", method, &mut figures)?;
    Ok(figures)
}

/// What a working set of another event costs.
fn drift(dir: &Path, series: &str, name: &str, what: &str, figures: &mut Measured) -> Result<()> {
    let file = format!("{series}.jsonl");
    let (none, all) = (answers(dir, &file, "none")?, answers(dir, &file, "all")?);
    let method = format!("{what}, prefetched over not, {:.0} us over {:.0} us", all.median, none.median);
    figures.add(name, all.median / none.median, "", &method);
    Ok(())
}

/// What is measured of both; the distribution of the first answers.
fn linux(dir: &Path, name: &str, prefix: &str, figures: &mut Measured) -> Result<Distribution> {
    let file = format!("{name}.jsonl");
    let restored = answers(dir, &file, "restore")?;
    let none = answers(dir, &file, "none")?;
    let verified = answers(dir, &format!("{name}-verified.jsonl"), "verified")?;
    let key = |what: &str| format!("paging.{prefix}{what}");
    figures.time(&key("restore_to_answer_us"), &restored, &format!("`ember run`, {name}"));
    figures.time(
        &key("restore_to_answer_without_us"),
        &none,
        &format!("`ember run --prefetch none`, {name}"),
    );
    let method = format!(
        "{name}, `--paging uffd --verify touched` over `ember run`, {:.0} us over {:.0} us",
        verified.median, restored.median
    );
    figures.add(&key("uffd_verified_ratio"), verified.median / restored.median, "", &method);

    let (timed, plain) = (Series::read(dir, &file, "timed")?, Series::read(dir, &file, "timed-none")?);
    let (with, without) =
        (timed.of_timing(|_, timing| timing.faults())?, plain.of_timing(|_, timing| timing.faults())?);
    let counted = "KVM's page faults from the first instruction to the first answer";
    figures.add(&key("faults_with_prefetch"), with.median, "", &format!("median, {counted}, {name}, {with}"));
    figures.add(
        &key("faults_without_prefetch"),
        without.median,
        "",
        &format!("median, {counted}, {name}, {without}"),
    );
    figures.add(&key("faults_ratio"), with.median / without.median, "", &format!("the two medians, {name}"));
    let set = working_set_bytes(dir, name)?;
    let brought = timed.of_timing(|_, timing| timing.brought_in())?;
    let method = format!("{name}, copied or mapped ahead over the {set:.0} bytes of the working set");
    figures.add(&key("prefetched_over_working_set"), brought.median / set, "", &method);
    let mapped = timed.of_timing(|_, timing| timing.mapped())?;
    let method =
        format!("{name}, mapped ahead over the working set, huge pages of the page cache as a whole");
    figures.add(&key("mapped_over_working_set"), mapped.median / set, "", &method);
    figures.phases(
        if prefix.is_empty() { "Python restored, prefetched" } else { "echo restored, prefetched" },
        timed.phases(),
    );
    Ok(restored)
}

/// Small guests in the emulated host.
pub fn small(dir: &Path) -> Result<Measured> {
    let mut figures = Measured::default();
    let method =
        "small guest recorded writing 300 pages, run reading 1 500 others: nothing of the set is of use";
    drift(dir, "drift", "paging.drift_worst_ratio", method, &mut figures)?;
    let first = |label: &str| {
        Series::read(dir, "flat.jsonl", label)?
            .of_timing(|s, timing| s.start_us + timing.restore_to_first_instruction_us)
    };
    let (small, large) = (first("small")?, first("large")?);
    let method = format!(
        "to the first instruction, 4 GiB over 256 MiB, {:.0} us over {:.0} us",
        large.median, small.median
    );
    figures.add("paging.flat_in_guest_size", large.median / small.median, "", &method);
    Ok(figures)
}

/// Small guests of 256 MiB on this machine and its file system.
pub fn native(dir: &Path) -> Result<Measured> {
    let mut figures = Measured::default();
    let file_system = read(&dir.join("filesystem"))?;
    for (name, file, what) in [
        ("native_prefetch_ratio", "run", "2 000 pages in a run, half written"),
        (
            "native_prefetch_scattered_ratio",
            "scattered",
            "2 000 pages in runs of 1 to 8 at fixed random places",
        ),
        ("cold_cache_ratio", "cold", "the same, nothing in the page cache"),
    ] {
        let file = format!("{file}.jsonl");
        let (none, all) = (answers(dir, &file, "none")?, answers(dir, &file, "all")?);
        let method = format!(
            "{what}, prefetched over not, {}, {:.0} us over {:.0} us, {} samples each",
            file_system.trim(),
            all.median,
            none.median,
            all.count
        );
        figures.add(&format!("paging.{name}"), all.median / none.median, "", &method);
    }
    if dir.join("backing.jsonl").exists() {
        backing(dir, &mut figures)?;
    }
    for (name, series, what) in [
        ("bake_ratio", "bake-runs", "live runs of 64 KiB"),
        ("bake_pages_ratio", "bake-pages", "every eighth page live"),
    ] {
        let (bake, dd) = (bakes(dir, series)?, lines(dir, &format!("{series}.dd"))?);
        let (bake, dd) = (Distribution::new(bake), Distribution::new(dd));
        let method = format!(
            "{what}, an eighth of 256 MiB, freeze to rename over dd bs=1M conv=fsync of as much, {}, {:.0} us over {:.0} us, {} samples each",
            file_system.trim(),
            bake.median,
            dd.median,
            bake.count
        );
        figures.add(&format!("paging.{name}"), bake.median / dd.median, "", &method);
    }
    Ok(figures)
}

/// A bundle on a tmpfs in huge pages beside one in small pages: what that brings, and what memory it costs.
fn backing(dir: &Path, figures: &mut Measured) -> Result<()> {
    let (small, huge) = (answers(dir, "backing.jsonl", "small")?, answers(dir, "backing.jsonl", "huge")?);
    let method = format!(
        "2 000 pages in runs of 1 to 8, prefetched, bundle on a tmpfs in huge pages over one in small pages, {:.0} us over {:.0} us, {} samples each",
        huge.median, small.median, huge.count
    );
    figures.add("paging.native_huge_ratio", huge.median / small.median, "", &method);
    let blocks = lines(dir, "backing.blocks")?;
    let [.., small, huge] = blocks.as_slice() else { bail!("backing.blocks does not tell of both") };
    let method = "memory file of 256 MiB on a tmpfs, huge pages less small pages, after the runs";
    figures.add("paging.native_huge_cost_kib", (huge - small) / 2.0, "KiB", method);
    Ok(())
}

fn answers(dir: &Path, file: &str, label: &str) -> Result<Distribution> {
    Ok(Series::read(dir, file, label)?.of(|sample| sample.first_byte_us))
}

#[derive(Deserialize)]
struct Inspection {
    working_set: WorkingSet,
}

#[derive(Deserialize)]
struct WorkingSet {
    bytes: u64,
}

fn working_set_bytes(dir: &Path, name: &str) -> Result<f64> {
    let text = read(&dir.join(format!("{name}.inspect")))?;
    let inspection: Inspection =
        serde_json::from_str(&text).with_context(|| format!("{name} has no working set"))?;
    Ok(inspection.working_set.bytes as f64)
}

fn lines(dir: &Path, file: &str) -> Result<Vec<f64>> {
    let text = read(&dir.join(file))?;
    text.lines()
        .map(|line| line.trim().parse().with_context(|| format!("{line:?} in {file} is no number")))
        .collect()
}

/// The phases of a bake from the freeze on.
const WRITING: [&str; 2] = ["Writing state and memory", "Syncing the bundle"];

/// Microseconds of each bake, from the lines "0.003 s  Writing state and memory" of all of them.
fn bakes(dir: &Path, series: &str) -> Result<Vec<f64>> {
    let mut bakes: Vec<f64> = Vec::new();
    for line in read(&dir.join(format!("{series}.phases")))?.lines() {
        let Some((seconds, phase)) = line.trim().split_once(" s  ") else { continue };
        let Some(place) = WRITING.iter().position(|known| *known == phase) else { continue };
        let us = 1e6 * seconds.trim().parse::<f64>().with_context(|| format!("{line:?} has no time"))?;
        match bakes.last_mut().filter(|_| place > 0) {
            Some(bake) => *bake += us,
            None => bakes.push(us),
        }
    }
    ensure!(!bakes.is_empty(), "No bake of {series} told of its phases");
    Ok(bakes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::write;

    fn sample(label: &str, first_byte: f64, faults: u64) -> String {
        let timing = serde_json::json!({
            "restore_to_first_instruction_us": 5.0, "first_answer_us": first_byte, "phases_us": [["x", 1.0]],
            "events_us": [], "block_requests": 0,
            "paging": {"kvm_faults_before_answer": [faults], "prefetched_bytes": 4096, "mapped_pages": 3,
                "mapped_huge_pages": 1},
        });
        let line = serde_json::json!({
            "label": label, "first_byte_us": first_byte, "end_us": first_byte, "start_us": 2.0,
            "timing": timing, "answer": "x",
        });
        format!("{line}\n")
    }

    fn near(figures: &Measured, expected: &[(&str, f64)]) {
        for (name, value) in expected {
            let found = figures.value(name).unwrap_or(f64::NAN);
            assert!((found - value).abs() < 1e-9, "{name} is {found}");
        }
    }

    #[test]
    fn a_function_with_and_without_its_working_set_becomes_ratios() {
        let dir = tempfile::tempdir().unwrap();
        let series =
            [("restore", 50.0, 0), ("timed", 60.0, 4), ("none", 100.0, 0), ("timed-none", 110.0, 200)];
        let text: String = series.iter().map(|(label, us, faults)| sample(label, *us, *faults)).collect();
        write(&dir.path().join("lambda.jsonl"), text).unwrap();
        write(&dir.path().join("lambda-verified.jsonl"), sample("verified", 75.0, 0)).unwrap();
        write(&dir.path().join("lambda-cold.jsonl"), sample("cold", 10_000.0, 0)).unwrap();
        write(&dir.path().join("lambda.inspect"), r#"{"working_set": {"bytes": 16384, "ranges": 1}}"#)
            .unwrap();
        near(
            &lambda(dir.path()).unwrap(),
            &[
                ("paging.restore_to_answer_us", 50.0),
                ("paging.restore_to_answer_without_us", 100.0),
                ("paging.cold_boot_ratio", 0.005),
                ("paging.uffd_verified_ratio", 1.5),
                ("paging.faults_with_prefetch", 4.0),
                ("paging.faults_ratio", 0.02),
                ("paging.prefetched_over_working_set", 0.75),
                ("paging.mapped_over_working_set", 128.5),
            ],
        );
    }

    #[test]
    fn drift_is_what_the_wrong_working_set_costs() {
        let dir = tempfile::tempdir().unwrap();
        let text = sample("none", 100.0, 0) + &sample("all", 90.0, 0);
        write(&dir.path().join("lambda-drift.jsonl"), text).unwrap();
        near(&lambda_drift(dir.path()).unwrap(), &[("paging.drift_ratio", 0.9)]);
    }

    #[test]
    fn small_guests_become_ratios() {
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join("drift.jsonl"), sample("none", 100.0, 0) + &sample("all", 104.0, 0)).unwrap();
        write(&dir.path().join("flat.jsonl"), sample("small", 100.0, 0) + &sample("large", 104.0, 0))
            .unwrap();
        let figures = small(dir.path()).unwrap();
        near(&figures, &[("paging.drift_worst_ratio", 1.04), ("paging.flat_in_guest_size", 1.0)]);
    }

    #[test]
    fn a_bake_counts_from_the_freeze_on() {
        let dir = tempfile::tempdir().unwrap();
        let phases = "    0.100 s  Freeing memory\n    0.010 s  Writing state and memory\n    0.020 s  Syncing the bundle\n";
        for series in ["bake-runs", "bake-pages"] {
            write(&dir.path().join(format!("{series}.phases")), phases.repeat(2)).unwrap();
            write(&dir.path().join(format!("{series}.dd")), "15000\n15000\n").unwrap();
        }
        for series in ["run", "scattered", "cold"] {
            let text = sample("none", 100.0, 0) + &sample("all", 80.0, 0);
            write(&dir.path().join(format!("{series}.jsonl")), text).unwrap();
        }
        write(&dir.path().join("filesystem"), "ext4\n").unwrap();
        near(
            &native(dir.path()).unwrap(),
            &[
                ("paging.bake_ratio", 2.0),
                ("paging.cold_cache_ratio", 0.8),
                ("paging.native_prefetch_ratio", 0.8),
            ],
        );
        assert_eq!(bakes(dir.path(), "bake-runs").unwrap().len(), 2);
    }
}
