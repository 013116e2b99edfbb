//! From what `benches/clones.sh` has left to the figures of clones that are unique, on time and whole.

use std::collections::HashSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::report::Measured;
use super::samples::{Distribution, Series};
use crate::workspace::read;

/// Clones that the script runs of one bundle.
const CLONES: usize = 1000;

/// What it takes to be unique, and how late a clone's clock is.
pub fn cost(dir: &Path) -> Result<Measured> {
    let answer = |file: &str, label: &str| -> Result<Distribution> {
        Ok(Series::read(dir, file, label)?.of(|sample| sample.first_byte_us))
    };
    let mut figures = Measured::default();
    figures.difference(
        "clones.unique_cost_us",
        "`ember run`, echo, without VM generation, host name and machine id",
        &answer("unique.jsonl", "message")?,
        &answer("unique.jsonl", "whole")?,
    );
    figures.difference(
        "clones.hook_cost_us",
        "the same without the hook, a shell script that does nothing",
        &answer("hooks.jsonl", "plain")?,
        &answer("hooks.jsonl", "hooked")?,
    );
    let late = wall_clock_error_ms(&Series::read(dir, "clock.jsonl", "clock")?)?;
    let method = format!(
        "largest difference to the host's clock when the answer is there, its way included; median {:.2}, {} samples",
        late.median, late.count
    );
    figures.add("clones.wall_clock_error_ms", late.max, "ms", &method);
    figures.phases("echo restored", Series::read(dir, "unique.jsonl", "timed")?.phases());
    Ok(figures)
}

impl Measured {
    fn difference(&mut self, name: &str, less: &str, without: &Distribution, with: &Distribution) {
        let method = format!(
            "difference of medians, {:.0} less {:.0} us: {less}, {with}",
            with.median, without.median
        );
        self.add(name, with.median - without.median, "us", &method);
    }
}

/// Each answer is the clone's clock, nanoseconds since 1970.
fn wall_clock_error_ms(series: &Series) -> Result<Distribution> {
    let errors = series.answers_with(|sample| sample.first_byte_unix_us).map(|(answer, host_us)| {
        let told: f64 = answer.trim().parse().with_context(|| format!("A clock is told as {answer:?}"))?;
        Ok((host_us - told / 1e3).abs() / 1e3)
    });
    Ok(Distribution::new(errors.collect::<Result<_>>()?))
}

/// Numbers that came twice, and events that were delivered to clones that did not acknowledge as they must.
pub fn lots(dir: &Path) -> Result<Measured> {
    let mut figures = Measured::default();
    let numbers = read(&dir.join("numbers"))?;
    let method = format!("getrandom, uuid4 and Python's random of each of {CLONES} clones of one bundle");
    figures.add("clones.duplicates_in_1000", duplicates(&numbers)? as f64, "", &method);
    let faults = read(&dir.join("faults"))?;
    let (delivered, injected) = delivered(&faults)?;
    let method = format!("what the functions of clones with {injected} faults say on the console");
    figures.add("clones.events_before_acknowledgement", delivered as f64, "", &method);
    Ok(figures)
}

fn duplicates(text: &str) -> Result<usize> {
    let clones: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    ensure!(clones.len() == CLONES, "{} clones gave numbers, not {CLONES}", clones.len());
    let numbers: Vec<&str> =
        clones.iter().flat_map(|line| line.trim_matches('"').split_whitespace()).collect();
    ensure!(numbers.len() == 3 * CLONES, "A clone did not give three numbers");
    Ok(numbers.len() - numbers.iter().collect::<HashSet<_>>().len())
}

/// Events that came to functions of clones with a fault, and how many faults there were. A clone without one is among them,
/// whose event must have come, or the others prove nothing.
fn delivered(text: &str) -> Result<(u32, usize)> {
    let mut all = 0;
    let mut faults = 0;
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [fault, code, expected, events] = words.as_slice() else {
            anyhow::bail!("{line:?} does not tell of a fault");
        };
        ensure!(code == expected, "With the fault {fault} the exit code is {code}, not {expected}");
        let events: u32 = events.parse().with_context(|| format!("{line:?} has no number of events"))?;
        if *fault == "none" {
            ensure!(events == 1, "Without a fault {events} events are seen, not 1");
        } else {
            (all, faults) = (all + events, faults + 1);
        }
    }
    ensure!(faults > 0, "No fault was injected");
    Ok((all, faults))
}

/// The parts that take guests through cycles, with one vCPU and with two.
const CYCLES_PARTS: [&str; 2] = ["clones-cycles-1", "clones-cycles-2"];

/// Cycles of restoring, working and baking again after which nothing was wrong, of this part and what there is of the other.
pub fn cycles(dir: &Path) -> Result<Measured> {
    let of_all_parts = dir.parent().unwrap_or(dir);
    let files = CYCLES_PARTS.map(|part| of_all_parts.join(part).join("cycles"));
    let texts: Vec<String> =
        files.iter().filter(|file| file.exists()).map(|file| read(file)).collect::<Result<_>>()?;
    let mut figures = Measured::default();
    let method =
        "restore, work under stress-ng --verify, bake again; 10 cycles each with 1 vCPU and with 2, 256 MiB";
    figures.add("clones.cycles_under_load_ok", ok_cycles(&texts.concat()) as f64, "", method);
    Ok(figures)
}

/// A failure at the end of a guest's cycles, when it is told what it has computed, is one of them all.
fn ok_cycles(text: &str) -> usize {
    let lines: Vec<(&str, &str, &str)> = text
        .lines()
        .filter_map(|line| {
            let (vcpus, rest) = line.trim().split_once(' ')?;
            let (cycle, how) = rest.split_once(' ')?;
            Some((vcpus, cycle, how))
        })
        .collect();
    let ended_well = |vcpus: &str| lines.contains(&(vcpus, "end", "ok"));
    let is_cycle = |cycle: &str| cycle.parse::<u32>().is_ok_and(|cycle| cycle > 0);
    lines.iter().filter(|(vcpus, cycle, how)| is_cycle(cycle) && *how == "ok" && ended_well(vcpus)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_comes_twice_is_counted() {
        let mut text: String = (1..CLONES).map(|n| format!("\"a{n} b{n} c{n}\"\n\n")).collect();
        assert!(duplicates(&text).is_err(), "one is missing");
        text.push_str("\"a0 b1 c0\"\n");
        assert_eq!(duplicates(&text).unwrap(), 1);
    }

    #[test]
    fn events_are_those_of_clones_with_a_fault() {
        assert_eq!(delivered("none 0 0 1\nlate 125 125 0\nold 125 125 2\n").unwrap(), (2, 2));
        for wrong in ["none 0 0 0\nlate 125 125 0", "late 0 125 0", "none 0 0 1", "late"] {
            assert!(delivered(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn cycles_count_when_they_and_their_guest_ended_well() {
        assert_eq!(
            ok_cycles("1 0 ok\n1 1 ok \n1 2 nobody works\n1 3 ok\n1 end ok \n2 1 ok\n2 end failed\n"),
            2
        );
    }
}
