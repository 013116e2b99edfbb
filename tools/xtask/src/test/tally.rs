//! Counting what the test runners counted.

use std::fmt;

/// One count of libtest's `test result:` line.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    pub passed: u64,
    pub failed: u64,
}

/// A test that was not run, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skip {
    pub name: String,
    pub reason: String,
}

/// The sum over all runners.
#[derive(Debug, Default)]
pub struct Tally {
    passed: u64,
    failures: Vec<String>,
    /// Failures that a runner counted without our knowing their names.
    unnamed_failures: u64,
    skips: Vec<Skip>,
    /// What ended hosts in which cases were still to run.
    causes: Vec<String>,
}

impl Tally {
    pub fn pass(&mut self) {
        self.passed += 1;
    }

    pub fn fail(&mut self, name: impl Into<String>) {
        self.failures.push(name.into());
    }

    /// Why cases have failed that were not run; counts nothing.
    pub fn blame(&mut self, cause: impl Into<String>) {
        self.causes.push(cause.into());
    }

    pub fn skip(&mut self, skip: Skip) {
        self.skips.push(skip);
    }

    /// Adds the output of libtest binaries, one after the other.
    pub fn add_output(&mut self, output: &str) -> Counts {
        let counts = counts_of(output);
        let names: Vec<&str> = output.lines().filter_map(failed_test).collect();
        self.passed += counts.passed;
        self.unnamed_failures += counts.failed.saturating_sub(names.len() as u64);
        self.failures.extend(names.into_iter().map(str::to_owned));
        self.skips.extend(output.lines().filter_map(skipped_test));
        counts
    }

    pub fn failed(&self) -> u64 {
        self.failures.len() as u64 + self.unnamed_failures
    }

    /// Whether the run may be called a success; in CI a skip is a failure.
    pub fn is_success(&self, ci: bool) -> bool {
        self.failed() == 0 && self.passed > 0 && (!ci || self.skips.is_empty())
    }
}

/// Every failure and every skip with its reason, then what many failures have in common, then the counts alone on the last line.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for name in &self.failures {
            writeln!(f, "failed: {name}")?;
        }
        for skip in &self.skips {
            writeln!(f, "skipped: {}: {}", skip.name, skip.reason)?;
        }
        for cause in &self.causes {
            writeln!(f, "because: {cause}")?;
        }
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed(), self.skips.len())
    }
}

/// The sum of libtest's closing lines.
pub fn counts_of(output: &str) -> Counts {
    let mut sum = Counts::default();
    for line in output.lines().filter_map(|line| line.strip_prefix("test result: ")) {
        sum.passed += number_before(line, " passed");
        sum.failed += number_before(line, " failed");
    }
    sum
}

fn number_before(line: &str, word: &str) -> u64 {
    let before = line.split(word).next().unwrap_or_default();
    before.rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn failed_test(line: &str) -> Option<&str> {
    line.strip_prefix("test ")?.strip_suffix(" ... FAILED")
}

/// `test NAME ... ignored, REASON`; the reason is what `#[ignore = "REASON"]` says.
pub fn skipped_test(line: &str) -> Option<Skip> {
    let (name, rest) = line.strip_prefix("test ")?.split_once(" ... ignored")?;
    let reason = rest.strip_prefix(", ").unwrap_or("no reason given");
    Some(Skip { name: name.to_owned(), reason: reason.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "running 3 tests\ntest a ... ok\ntest b ... FAILED\ntest c ... ignored, needs a network\n\n\
        test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\n\
        running 2 tests\ntest d ... ok\ntest e ... ok\n\
        test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 7 filtered out; finished in 0.00s\n";

    #[test]
    fn the_closing_lines_of_all_binaries_are_summed() {
        let mut tally = Tally::default();
        assert_eq!(tally.add_output(OUTPUT), Counts { passed: 3, failed: 1 });
        assert_eq!(
            tally.to_string(),
            "failed: b\nskipped: c: needs a network\n3 passed, 1 failed, 1 skipped"
        );
    }

    #[test]
    fn a_failure_whose_name_is_lost_still_counts() {
        let mut tally = Tally::default();
        tally
            .add_output("test x ... some outputFAILED\ntest result: FAILED. 0 passed; 1 failed; 0 ignored\n");
        assert_eq!(tally.to_string(), "0 passed, 1 failed, 0 skipped");
        assert!(!tally.is_success(false));
    }

    #[test]
    fn a_skip_fails_in_ci_only() {
        let mut tally = Tally::default();
        tally.pass();
        tally.skip(Skip { name: "c".into(), reason: "r".into() });
        assert!(tally.is_success(false) && !tally.is_success(true));
    }

    #[test]
    fn a_run_of_nothing_is_no_success() {
        assert!(!Tally::default().is_success(false));
    }
}
