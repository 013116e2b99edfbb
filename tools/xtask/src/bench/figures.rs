//! From samples to the figures that the README quotes.

use std::path::Path;

use anyhow::{Context, Result};

use super::report::Measured;
use super::samples::{Distribution, Series};

/// The echo function, in the emulated host.
pub fn echo(dir: &Path) -> Result<Measured> {
    let mut figures = Measured::default();
    let plain = Series::read(dir, "echo.jsonl", "restore")?;
    let timed = Series::read(dir, "echo.jsonl", "timed")?;
    let floor = Series::read(dir, "floor.jsonl", "floor")?;
    figures.time("main.echo_restore_to_answer_us", &plain.of(|s| s.first_byte_us), "`ember run`");
    figures.time("main.run_spawn_to_exit_us", &plain.of(|s| s.end_us), "`ember run`, echo");
    let first = timed.of_timing(|s, timing| s.start_us + timing.restore_to_first_instruction_us)?;
    figures.time("main.restore_to_first_instruction_us", &first, "`ember run --timing=json`, echo");
    figures.time("main.floor_us", &floor.of(|s| s.first_byte_us), "benches/floor, small guest of 64 MiB");
    figures.timing_gap("main.timing_gap_percent", &timed)?;
    let jailed = Series::read(dir, "echo.jsonl", "jailed")?;
    figures.time("main.echo_jailed_to_answer_us", &jailed.of(|s| s.first_byte_us), "`ember run`, jailed");
    let requests = timed.of_timing(|_, timing| timing.block_requests as f64)?;
    figures.add("main.echo_block_requests", requests.max, "", &spread("most, restore to answer", &requests));
    figures.phases("echo restored", timed.phases());
    Ok(figures)
}

/// The echo function, in the emulated host: the first answer of a guest that is booted.
pub fn echo_cold(dir: &Path) -> Result<Measured> {
    let mut figures = Measured::default();
    let cold = Series::read(dir, "echo-cold.jsonl", "cold")?;
    figures.time("main.echo_cold_to_answer_us", &cold.of(|s| s.first_byte_us), "`ember run --cold`");
    figures.phases("echo cold", cold.phases());
    Ok(figures)
}

/// The Python function, in the emulated host: the first answer of a clone.
pub fn python(dir: &Path) -> Result<Measured> {
    let mut figures = Measured::default();
    let plain = Series::read(dir, "python.jsonl", "restore")?;
    let timed = Series::read(dir, "python.jsonl", "timed")?;
    figures.time(
        "main.restore_to_answer_us",
        &plain.of(|s| s.first_byte_us),
        "`ember run`, Python lambda function",
    );
    figures.timing_gap("main.python_timing_gap_percent", &timed)?;
    figures.phases("Python restored", timed.phases());
    Ok(figures)
}

/// The Python function, in the emulated host: the first answer of a guest that is booted.
pub fn python_cold(dir: &Path) -> Result<Measured> {
    let mut figures = Measured::default();
    let cold = Series::read(dir, "python-cold.jsonl", "cold")?;
    let answer = cold.of(|s| s.first_byte_us);
    figures.time("main.cold_to_answer_us", &answer, "`ember run --cold`, Python lambda function");
    figures.phases("Python cold", cold.phases());
    Ok(figures)
}

/// The time that the Python function spends on its own import.
pub fn python_import(dir: &Path) -> Result<Measured> {
    let mut figures = Measured::default();
    let import = Series::read(dir, "python-import.jsonl", "import")?;
    let import = Distribution::new(import.answers().map(import_us).collect::<Result<Vec<_>>>()?);
    figures.time("main.python_import_us", &import, "told by a fresh interpreter in a cold guest");
    Ok(figures)
}

/// The Python function: a hundred events of one clone, and of a guest that was booted.
pub fn python_long(dir: &Path) -> Result<Measured> {
    let mut figures = Measured::default();
    let restored = Series::read(dir, "python-long.jsonl", "restored")?;
    let cold = Series::read(dir, "python-long.jsonl", "cold")?;
    let (later, later_cold) = (later_events(&restored)?, later_events(&cold)?);
    let method =
        format!("second to hundredth answer, {:.0} us over {:.0} us", later.median, later_cold.median);
    figures.add("main.restored_over_cold", later.median / later_cold.median, "", &method);
    Ok(figures)
}

fn import_us(answer: &str) -> Result<f64> {
    answer.trim().parse().with_context(|| format!("The import's time is told as {answer:?}"))
}

/// The mean time of the second and every later event of a clone.
fn later_events(series: &Series) -> Result<Distribution> {
    series.of_timing(|_, timing| {
        let later = timing.events_us.get(1..).unwrap_or_default();
        later.iter().sum::<f64>() / later.len() as f64
    })
}

/// A small guest, on this machine.
pub fn native(dir: &Path) -> Result<Measured> {
    let ember = Series::read(dir, "small.jsonl", "ember")?.of(|s| s.first_byte_us);
    let floor = Series::read(dir, "small.jsonl", "floor")?.of(|s| s.first_byte_us);
    let mut figures = Measured::default();
    for (name, found, what) in [
        ("small_restore", &ember, "`ember run`, small guest of 64 MiB"),
        ("floor", &floor, "benches/floor, the same ioctls"),
    ] {
        figures.add(&format!("native.{name}_p50_us"), found.median, "us", &spread(what, found));
        figures.add(&format!("native.{name}_p99_us"), found.p99, "us", &spread(what, found));
    }
    let ratio = ember.median / floor.median;
    figures.add("native.small_restore_over_floor", ratio, "", "the two medians of one interleaved run");
    let timed = Series::read(dir, "small.jsonl", "timed")?;
    figures.timing_gap("native.timing_gap_percent", &timed)?;
    figures.phases("small guest restored", timed.phases());
    Ok(figures)
}

/// A small guest with its jail and without, on this machine.
pub fn jail(dir: &Path) -> Result<Measured> {
    let of = |label| -> Result<Distribution> {
        Ok(Series::read(dir, "jail.jsonl", label)?.of(|sample| sample.first_byte_us))
    };
    let (jailed, open) = (of("jailed")?, of("open")?);
    let mut figures = Measured::default();
    for (name, found, what) in [
        ("jailed", &jailed, "`ember run`, small guest of 64 MiB"),
        ("open", &open, "the same with --no-jail"),
    ] {
        figures.add(&format!("jail.{name}_p50_us"), found.median, "us", &spread(what, found));
        figures.add(&format!("jail.{name}_p99_us"), found.p99, "us", &spread(what, found));
    }
    let method = "difference of the two medians of one interleaved run";
    figures.add("jail.extra_p50_us", jailed.median - open.median, "us", method);
    figures.phases("small guest restored, jailed", Series::read(dir, "jail.jsonl", "timed")?.phases());
    Ok(figures)
}

fn spread(what: &str, found: &Distribution) -> String {
    format!("{what}, {found}")
}

impl Measured {
    /// Adds a median in microseconds.
    pub(super) fn time(&mut self, name: &str, found: &Distribution, what: &str) {
        self.add(name, found.median, "us", &format!("median, {what}, {found}"));
    }

    /// Adds how far what `--timing` tells, with what its process took to begin, is from what was seen outside.
    fn timing_gap(&mut self, name: &str, timed: &Series) -> Result<()> {
        let gap = timed.of_timing(|s, timing| {
            100.0 * ((s.start_us + timing.first_answer_us) / s.first_byte_us - 1.0).abs()
        })?;
        self.add(name, gap.median, "%", &spread("median, sum of the phases against outside", &gap));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::tests::line;
    use super::*;
    use crate::workspace::write;

    #[test]
    fn a_run_of_samples_becomes_the_figures_with_their_targets() {
        let dir = tempfile::tempdir().unwrap();
        let phases = [("process start", 1.0), ("guest may run", 4.0), ("first answer byte", 90.0)];
        let sample = |label: &str, us: f64, events: &[f64]| line(label, us, &phases, events);
        let files = [
            ("echo.jsonl", ["restore", "timed", "jailed"].map(|label| sample(label, 100.0, &[])).concat()),
            ("echo-cold.jsonl", sample("cold", 1000.0, &[])),
            ("floor.jsonl", sample("floor", 3.0, &[])),
            ("python.jsonl", sample("restore", 200.0, &[]) + &sample("timed", 200.0, &[])),
            ("python-cold.jsonl", sample("cold", 4000.0, &[])),
            ("python-import.jsonl", sample("import", 9000.0, &[])),
            (
                "python-long.jsonl",
                sample("restored", 200.0, &[50.0, 11.0, 11.0]) + &sample("cold", 4000.0, &[50.0, 10.0, 10.0]),
            ),
        ];
        for (name, text) in files {
            write(&dir.path().join(name), text).unwrap();
        }
        let measured = [echo, echo_cold, python, python_cold, python_long, python_import]
            .map(|figures| figures(dir.path()).unwrap());
        let found = |name: &str| measured.iter().find_map(|figures| figures.value(name)).unwrap();
        let expected = [
            ("main.echo_restore_to_answer_us", 100.0),
            ("main.echo_cold_to_answer_us", 1000.0),
            ("main.run_spawn_to_exit_us", 110.0),
            ("main.restore_to_first_instruction_us", 7.0),
            ("main.echo_jailed_to_answer_us", 100.0),
            ("main.restore_to_answer_us", 200.0),
            ("main.cold_to_answer_us", 4000.0),
            ("main.python_import_us", 70.0),
            ("main.restored_over_cold", 1.1),
        ];
        for (name, value) in expected {
            assert!((found(name) - value).abs() < 1e-9, "{name}");
        }
        assert!((found("main.timing_gap_percent") - 3.0).abs() < 1e-9);
        assert!((found("main.python_timing_gap_percent") - 51.5).abs() < 1e-9);
    }

    #[test]
    fn what_a_jail_costs_is_the_difference_of_medians() {
        let dir = tempfile::tempdir().unwrap();
        let phases = [("jail", 160.0)];
        let samples: String = [("jailed", 2700.0), ("open", 1900.0), ("timed", 2800.0)]
            .map(|(label, us)| line(label, us, &phases, &[]))
            .concat();
        write(&dir.path().join("jail.jsonl"), samples).unwrap();
        let figures = jail(dir.path()).unwrap();
        assert_eq!(figures.value("jail.extra_p50_us"), Some(800.0));
        assert_eq!(figures.value("jail.open_p99_us"), Some(1900.0));
    }
}
