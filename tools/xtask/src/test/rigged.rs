//! Black-box cases in the emulated host: one boot for a group, one process with its own limit for a case.

use std::fmt::Write as _;
use std::fs::{File, TryLockError};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use super::cases::{Case, Outcome};
use super::groups::{Group, OTHER_CPU};
use super::report::Report;
use crate::host;
use crate::rig::{Cache, Job, RigHost, TRIES};
use crate::workspace::make_dir;

const RUN_CASES: &str = include_str!("../../rig/run-cases");

/// A group's cases, waiting for an emulated host.
pub struct GroupRun<'a> {
    pub group: &'static Group,
    pub cases: Vec<Case>,
    pub host: &'a RigHost,
    pub caches: &'a Caches,
    pub full: bool,
}

/// The file systems that bundles are kept in, from group to group and from run to run.
///
/// A group takes one that no other has and gives it back, so what many groups use is baked as often as groups run at once, and not by
/// each of them. They are named by what bundles are made of, and by what else is in one: the features of the processor and the
/// frequency of its TSC, which differs between the two clocks of the rig.
#[derive(Debug)]
pub struct Caches {
    dir: PathBuf,
    /// End of the names: what bundles are made of.
    end: String,
}

impl Caches {
    /// So many of other content are left: the program with faults and the one without take turns.
    const OTHERS: usize = 4;

    /// The caches in `dir` for bundles that are made of what `key` stands for. All but the newest of others are removed.
    ///
    /// # Errors
    /// Where the directory cannot be read or written.
    pub fn open(dir: PathBuf, key: &str) -> Result<Self> {
        let end = format!("-{key}.ext4");
        make_dir(&dir)?;
        let mut others = Vec::new();
        for entry in std::fs::read_dir(&dir).with_context(|| format!("Cannot read {}", dir.display()))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(".ext4") && !name.ends_with(&end) {
                others.push((entry.metadata()?.modified()?, entry.path()));
            }
        }
        others.sort();
        for (_, path) in others.iter().rev().skip(Self::OTHERS) {
            std::fs::remove_file(path).with_context(|| format!("Cannot remove {}", path.display()))?;
        }
        Ok(Self { dir, end })
    }

    /// The first that nobody has, in this process or another.
    fn take(&self, group: &Group) -> Result<Taken> {
        let clock = if group.icount { "icount" } else { "wall" };
        // A comma would divide QEMU's options.
        let cpu = group.cpu.replace(',', "");
        let mut number = 0;
        loop {
            let name = format!("{clock}-{cpu}-{number}");
            let path = self.dir.join(format!("{name}.lock"));
            let failed = || format!("Cannot lock {}", path.display());
            let lock = File::create(&path).with_context(failed)?;
            match lock.try_lock() {
                Ok(()) => {
                    let image = self.dir.join(format!("{name}{}", self.end));
                    return Ok(Taken { cache: Cache { image }, _lock: lock });
                }
                Err(TryLockError::WouldBlock) => number += 1,
                Err(TryLockError::Error(error)) => return Err(error).with_context(failed),
            }
        }
    }
}

/// A cache while a group has it.
#[derive(Debug)]
struct Taken {
    cache: Cache,
    _lock: File,
}

impl GroupRun<'_> {
    /// Runs all cases of the group.
    ///
    /// # Errors
    /// Where no cache can be had. What goes wrong in the emulated host is in the report.
    pub fn run(&self, report: &Report) -> Result<()> {
        let taken = self.caches.take(self.group)?;
        let (other, usual): (Vec<Case>, Vec<Case>) =
            self.cases.iter().cloned().partition(|case| case.name.starts_with(OTHER_CPU));
        self.run_on(self.group.cpu, &usual, &taken.cache, report);
        self.run_on(self.group.other_cpu.unwrap_or(self.group.cpu), &other, &taken.cache, report);
        Ok(())
    }

    fn run_on(&self, cpu: &str, cases: &[Case], cache: &Cache, report: &Report) {
        let mut left = cases;
        let mut tries = TRIES;
        while !left.is_empty() {
            tries -= 1;
            left = left.get(self.try_on(cpu, left, cache, report, tries == 0)..).unwrap_or_default();
        }
    }

    /// Runs cases until the host ends or stands still, or breaks before any of them; tells how many of them have an outcome. In the
    /// `last` try all have.
    fn try_on(&self, cpu: &str, cases: &[Case], cache: &Cache, report: &Report, last: bool) -> usize {
        let place = format!("rig {}", self.group.name);
        let token = format!("@@{}-{}", std::process::id(), self.group.name);
        let mut transcript = Transcript::new(cases, &token, &place, report);
        report.say(&format!("    {place}: booting the emulated host for {} cases", cases.len()));
        let result = self.host.run_once(&self.job(&token, cpu, cases, cache), &mut |_, bytes| {
            transcript.feed(bytes);
            Ok(())
        });
        let reason = match result {
            Ok(Some(0)) => None,
            Ok(Some(code)) => Some(format!("The script that runs the cases ended with {code}")),
            // What it stood still in, and what it did not come to, is run in another one.
            Ok(None) if !last && transcript.ended < cases.len() => return transcript.ended,
            Ok(None) => Some("The emulated host stood still".to_owned()),
            // Nothing of Ember has run in it, whose fault it could be.
            Err(error) if !last && !transcript.begun() => {
                report.say(&format!("    {place}: {error:#}"));
                return 0;
            }
            Err(error) => Some(format!("{error:#}")),
        };
        transcript.finish(reason);
        cases.len()
    }

    fn job(&self, token: &str, cpu: &str, cases: &[Case], cache: &Cache) -> Job {
        let limit = self.group.case_limit * cases.len() as u64;
        let mut environment = vec![("RIG_TOKEN", token.to_owned())];
        if self.full {
            environment.push(("EMBER_FULL", "1".to_owned()));
        }
        Job {
            name: format!("test-{}", self.group.name),
            script: RUN_CASES.to_owned(),
            files: vec![("cases", case_list(cases))],
            environment,
            icount: self.group.icount,
            memory_mib: self.group.memory_mib,
            cpu: cpu.to_owned(),
            cache: Some(cache.clone()),
            limit: Duration::from_secs(limit),
            ..Job::default()
        }
    }
}

fn case_list(cases: &[Case]) -> String {
    let mut list = String::new();
    for (index, case) in cases.iter().enumerate() {
        // Writing to a string cannot fail.
        writeln!(list, "{index} {} {} {}", case.group.case_limit, case.binary.name, case.name).ok();
    }
    list
}

/// What the emulated host prints, cut into cases.
struct Transcript<'a> {
    cases: &'a [Case],
    token: &'a str,
    place: &'a str,
    report: &'a Report,
    /// The part of a line that has come so far.
    partial: Vec<u8>,
    /// The case that is running and its output.
    current: Option<(usize, String)>,
    /// Cases that have an outcome.
    ended: usize,
}

impl<'a> Transcript<'a> {
    fn new(cases: &'a [Case], token: &'a str, place: &'a str, report: &'a Report) -> Self {
        Self { cases, token, place, report, partial: Vec::new(), current: None, ended: 0 }
    }

    /// Whether a case has run, if only in part.
    fn begun(&self) -> bool {
        self.ended > 0 || self.current.is_some()
    }

    fn feed(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.partial.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                let line = String::from_utf8_lossy(&self.partial).into_owned();
                self.partial.clear();
                self.line(&line);
            }
        }
    }

    fn line(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [token, "begin", index] if *token == self.token => self.begin(index),
            [token, "end", index, code, centiseconds] if *token == self.token => {
                self.end(index, code, centiseconds)
            }
            _ => {
                if let Some((_, output)) = &mut self.current {
                    output.push_str(line);
                }
            }
        }
    }

    fn begin(&mut self, index: &str) {
        let Some(index) = index.parse().ok().filter(|index| *index < self.cases.len()) else { return };
        if let Some(case) = self.cases.get(index) {
            self.report.starts(self.place, case);
            self.current = Some((index, String::new()));
        }
    }

    fn end(&mut self, index: &str, code: &str, centiseconds: &str) {
        let Some((current, output)) = self.current.take() else { return };
        let Some(case) = self.cases.get(current).filter(|_| index.parse() == Ok(current)) else { return };
        let how = match code {
            "137" => format!("killed, the limit is {} s", case.group.case_limit),
            code => format!("exit code {code}"),
        };
        let took = Duration::from_millis(centiseconds.parse::<u64>().unwrap_or(0) * 10);
        self.ended += 1;
        self.report.ended(self.place, Outcome::of_process(case.title(), code == "0", &how, &output), took);
    }

    /// Cases without an outcome have failed: with the host's trouble, or because it never came to them.
    fn finish(mut self, reason: Option<String>) {
        let died_in = self.current.take();
        let reason =
            reason.or_else(|| (self.ended < self.cases.len()).then(|| "The case was not run".to_owned()));
        let Some(reason) = reason else { return };
        self.report.say(&format!("    {}: {reason}", self.place));
        let cause = format!("{}: {} ({})", self.place, first_line(&reason), host::what_is_left());
        self.report.tally().blame(cause);
        if self.ended == self.cases.len() {
            // Everything passed in a host that cannot be believed.
            self.report.tally().fail(format!("{}: {}", self.place, first_line(&reason)));
        }
        for (index, case) in self.cases.iter().enumerate().skip(self.ended) {
            let output = match &died_in {
                Some((at, output)) if *at == index => format!("{output}\n{}", first_line(&reason)),
                _ => format!("Not run: {}", first_line(&reason)),
            };
            let outcome = Outcome { title: case.title(), failure: Some(output) };
            self.report.ended(self.place, outcome, Duration::ZERO);
        }
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::TestBinary;
    use crate::test::groups;

    fn cases(names: &[&str]) -> Vec<Case> {
        let binary = TestBinary { name: "small".into(), path: "/t/small".into(), prefixes: &[""] };
        let group = groups::of_binary("small").unwrap();
        names.iter().map(|name| Case { binary: binary.clone(), name: (*name).into(), group }).collect()
    }

    /// In pieces as they might come.
    fn feed(transcript: &mut Transcript, output: &str) {
        output.as_bytes().chunks(7).for_each(|chunk| transcript.feed(chunk));
    }

    fn tally_of(names: &[&str], output: &str, reason: Option<&str>) -> String {
        let (cases, report) = (cases(names), Report::new(|_| ()));
        let mut transcript = Transcript::new(&cases, "@@t", "rig", &report);
        feed(&mut transcript, output);
        transcript.finish(reason.map(str::to_owned));
        let text = report.tally().to_string();
        text.lines().last().unwrap().to_owned()
    }

    const PASSED: &str = "test result: ok. 1 passed; 0 failed; 0 ignored\n";

    #[test]
    fn groups_at_once_have_caches_of_their_own_and_later_groups_those_of_earlier_ones() {
        let dir = std::env::temp_dir().join(format!("ember-caches-{}", std::process::id()));
        let caches = Caches::open(dir.clone(), "k").unwrap();
        let [small, exact, other_cpu] =
            ["small", "figures", "whole_cpu"].map(|name| groups::of_binary(name).unwrap());
        let take = |group| caches.take(group).unwrap();
        let (first, others) = (take(small), [take(small), take(exact), take(other_cpu)]);
        let images: Vec<_> = others.iter().chain([&first]).map(|taken| taken.cache.image.clone()).collect();
        assert!((1..images.len()).all(|number| !images[number..].contains(&images[number - 1])));
        assert!(images.iter().all(|image| !image.to_string_lossy().contains(',')));
        drop(first);
        assert_eq!(take(small).cache.image, images[3]);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn of_caches_with_other_content_only_a_few_are_left() {
        let dir = std::env::temp_dir().join(format!("ember-other-caches-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        for number in 0..7 {
            std::fs::write(dir.join(format!("wall-{number}-old.ext4")), "").unwrap();
        }
        std::fs::write(dir.join("wall-0-new.ext4"), "").unwrap();
        Caches::open(dir.clone(), "new").unwrap();
        let left: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left.len(), Caches::OTHERS + 1);
        assert!(left.contains(&"wall-0-new.ext4".into()));
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn every_case_gets_its_own_outcome() {
        let output = format!(
            "\n@@t begin 0\n{PASSED}\n@@t end 0 0 120\n\n@@t begin 1\nthread panicked\n\n@@t end 1 101 5\n"
        );
        assert_eq!(tally_of(&["a", "b"], &output, None), "1 passed, 1 failed, 0 skipped");
    }

    #[test]
    fn when_the_host_dies_the_running_case_and_the_rest_have_failed() {
        let output = format!("\n@@t begin 0\n{PASSED}\n@@t end 0 0 120\n\n@@t begin 1\nhalf");
        assert_eq!(tally_of(&["a", "b", "c"], &output, Some("Oops")), "1 passed, 2 failed, 0 skipped");
    }

    #[test]
    fn a_host_that_broke_before_any_case_is_told_from_one_that_broke_in_the_first() {
        let (cases, report) = (cases(&["a"]), Report::new(|_| ()));
        let begun = |output: &str| {
            let mut transcript = Transcript::new(&cases, "@@t", "rig", &report);
            feed(&mut transcript, output);
            transcript.begun()
        };
        assert!(!begun("") && !begun("@@x begin 0\n"));
        assert!(begun("@@t begin 0\n") && begun("@@t begin 0\n@@t end 0 0 1\n"));
    }

    #[test]
    fn an_oops_after_the_last_case_is_a_failure() {
        let output = format!("\n@@t begin 0\n{PASSED}\n@@t end 0 0 120\n");
        assert_eq!(tally_of(&["a"], &output, Some("Oops")), "1 passed, 1 failed, 0 skipped");
    }

    #[test]
    fn a_case_that_was_never_begun_has_failed() {
        assert_eq!(tally_of(&["a"], "", None), "0 passed, 1 failed, 0 skipped");
    }

    #[test]
    fn markers_with_another_token_are_output() {
        let output = format!("\n@@t begin 0\n@@x end 0 0 1\n{PASSED}@@t end 0 0 1\n");
        assert_eq!(tally_of(&["a"], &output, None), "1 passed, 0 failed, 0 skipped");
    }
}
