//! Black-box cases in the emulated host: one boot for a group, one process with its own limit for a case.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Result;

use super::cases::{Case, Outcome};
use super::groups::{Group, OTHER_CPU};
use super::report::Report;
use crate::rig::{Cache, Job, RigHost};
use crate::workspace::Workspace;

const RUN_CASES: &str = include_str!("../../rig/run-cases");

/// A group's cases, waiting for an emulated host.
pub struct GroupRun<'a> {
    pub group: &'static Group,
    pub cases: Vec<Case>,
    pub host: &'a RigHost,
    pub cache: Cache,
    pub full: bool,
}

/// The file system that a group's bundles are kept in between runs, named by what they are made of.
///
/// A bundle holds the frequency of the TSC, which differs between the two clocks of the rig.
pub fn cache_of(workspace: &Workspace, group: &Group, key: &str) -> Result<Cache> {
    let mode = if group.icount { "icount" } else { "wall" };
    let dir = workspace.target("rig/bundles");
    let prefix = format!("{}-{mode}-", group.name);
    let image = dir.join(format!("{prefix}{key}.ext4"));
    for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&prefix) && entry.path() != image {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(Cache { image })
}

/// Runs the groups, as many at once as there are workers.
pub fn run_all(runs: Vec<GroupRun>, workers: usize, report: &Report) -> Result<()> {
    let queue = Mutex::new(VecDeque::from(runs));
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    thread::scope(|scope| {
        let work = || -> Result<()> {
            while let Some(run) = next() {
                run.run(report)?;
            }
            Ok(())
        };
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("A thread that runs tests has panicked")))
        })
    })
}

impl GroupRun<'_> {
    fn run(&self, report: &Report) -> Result<()> {
        let (other, usual): (Vec<Case>, Vec<Case>) =
            self.cases.iter().cloned().partition(|case| case.name.starts_with(OTHER_CPU));
        self.run_on(self.group.cpu, &usual, report);
        self.run_on(self.group.other_cpu.unwrap_or(self.group.cpu), &other, report);
        Ok(())
    }

    fn run_on(&self, cpu: &str, cases: &[Case], report: &Report) {
        if cases.is_empty() {
            return;
        }
        let place = format!("rig {}", self.group.name);
        let token = format!("@@{}-{}", std::process::id(), self.group.name);
        let mut transcript = Transcript::new(cases, &token, &place, report);
        report.say(&format!("    {place}: booting the emulated host for {} cases", cases.len()));
        let result = self.host.run(&self.job(&token, cpu, cases), &mut |_, bytes| {
            transcript.feed(bytes);
            Ok(())
        });
        let reason = match result {
            Ok(0) => None,
            Ok(code) => Some(format!("The script that runs the cases ended with {code}")),
            Err(error) => Some(format!("{error:#}")),
        };
        transcript.finish(reason);
    }

    fn job(&self, token: &str, cpu: &str, cases: &[Case]) -> Job {
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
            cache: Some(self.cache.clone()),
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
        let binary = TestBinary { name: "small".into(), path: "/t/small".into(), prefix: "" };
        let group = groups::of_binary("small").unwrap();
        names.iter().map(|name| Case { binary: binary.clone(), name: (*name).into(), group }).collect()
    }

    fn tally_of(names: &[&str], output: &str, reason: Option<&str>) -> String {
        let (cases, report) = (cases(names), Report::new(|_| ()));
        let mut transcript = Transcript::new(&cases, "@@t", "rig", &report);
        // In pieces as they might come.
        output.as_bytes().chunks(7).for_each(|chunk| transcript.feed(chunk));
        transcript.finish(reason.map(str::to_owned));
        let text = report.tally().to_string();
        text.lines().last().unwrap().to_owned()
    }

    const PASSED: &str = "test result: ok. 1 passed; 0 failed; 0 ignored\n";

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
