//! The cases of the test binaries, each of which is run in a process of its own.

use std::process::Command;

use anyhow::Result;

use super::groups::{self, Group};
use super::tally::{Skip, counts_of, skipped_test};
use crate::build::TestBinary;
use crate::process;

/// Cases whose names begin so run only with `--full`.
const FULL: &str = "full::";

/// One test of one binary.
#[derive(Debug, Clone)]
pub struct Case {
    pub binary: TestBinary,
    pub name: String,
    pub group: &'static Group,
}

impl Case {
    /// Its name for people.
    pub fn title(&self) -> String {
        format!("{}::{}", self.binary.name, self.name)
    }
}

/// What became of a case.
#[derive(Debug)]
pub struct Outcome {
    pub title: String,
    /// Its output where it failed.
    pub failure: Option<String>,
}

impl Outcome {
    /// Judges a finished process: libtest must have ended well and have run exactly this one test.
    pub fn of_process(title: String, success: bool, how: &str, output: &str) -> Self {
        let counts = counts_of(output);
        let passed = success && counts.passed == 1 && counts.failed == 0;
        Self { title, failure: (!passed).then(|| format!("{output}\n({how})")) }
    }
}

/// All cases, those that wait for `--full`, and those that are ignored.
#[derive(Debug, Default)]
pub struct Listing {
    pub cases: Vec<Case>,
    pub waiting: usize,
    pub skips: Vec<Skip>,
}

/// Asks every binary for its tests.
pub fn list(binaries: &[TestBinary], full: bool) -> Result<Listing> {
    let mut listing = Listing::default();
    for binary in binaries {
        let group = groups::of_binary(&binary.name)?;
        let ignored = names(binary, &["--ignored"])?;
        listing.skips.extend(ignored.iter().map(|name| skip_of(binary, name)).collect::<Result<Vec<_>>>()?);
        for name in names(binary, &[])? {
            if ignored.contains(&name) {
                continue;
            }
            if name.starts_with(FULL) && !full {
                listing.waiting += 1;
                continue;
            }
            listing.cases.push(Case { binary: binary.clone(), name, group });
        }
    }
    Ok(listing)
}

fn names(binary: &TestBinary, options: &[&str]) -> Result<Vec<String>> {
    let text = process::read(Command::new(&binary.path).args(["--list", "--format", "terse"]).args(options))?;
    let all = text.lines().filter_map(|line| line.strip_suffix(": test"));
    Ok(all
        .filter(|name| binary.prefixes.iter().any(|prefix| name.starts_with(prefix)))
        .map(str::to_owned)
        .collect())
}

/// The reason of an ignored test is in the line by which libtest passes over it.
fn skip_of(binary: &TestBinary, name: &str) -> Result<Skip> {
    let output = process::read(Command::new(&binary.path).args(["--exact", name]))?;
    let reason = output.lines().find_map(skipped_test).map_or_else(String::new, |skip| skip.reason);
    Ok(Skip { name: format!("{}::{name}", binary.name), reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE_PASSED: &str = "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 4 filtered out";

    #[test]
    fn a_case_passes_when_its_one_test_did() {
        assert!(Outcome::of_process("t".into(), true, "exit code 0", ONE_PASSED).failure.is_none());
    }

    #[test]
    fn a_process_that_ran_no_test_is_a_failure() {
        let output = ONE_PASSED.replace("1 passed", "0 passed");
        assert!(Outcome::of_process("t".into(), true, "exit code 0", &output).failure.is_some());
    }

    #[test]
    fn a_killed_process_is_a_failure_whatever_it_printed() {
        assert!(Outcome::of_process("t".into(), false, "exit code 137", ONE_PASSED).failure.is_some());
    }
}
