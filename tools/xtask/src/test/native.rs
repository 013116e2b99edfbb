//! Black-box cases on this machine's own KVM.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::cases::{Case, Outcome};
use super::report::Report;
use crate::environment::{self, Environment};
use crate::process;
use crate::rig::Contents;
use crate::workspace::{Workspace, make_dir};

/// What the cases find things by.
#[derive(Debug)]
pub struct Native {
    environment: Environment,
}

impl Native {
    /// Bundles baked by these cases are kept under `target/bundles/KEY`.
    pub fn prepare(workspace: &Workspace, contents: &Contents, key: &str) -> Result<Self> {
        let bundles = workspace.target("bundles").join(key);
        make_dir(&bundles)?;
        Ok(Self { environment: environment::native(workspace, contents, &bundles) })
    }

    /// Runs the cases one after the other.
    pub fn run(&self, cases: &[Case], full: bool, report: &Report) -> Result<()> {
        for case in cases {
            let start = Instant::now();
            report.starts("native", case);
            let outcome = self.run_case(case, full)?;
            report.ended("native", outcome, start.elapsed());
        }
        Ok(())
    }

    fn run_case(&self, case: &Case, full: bool) -> Result<Outcome> {
        let program = case.binary.path.to_string_lossy();
        let mut command = process::guarded(&program, Duration::from_secs(case.group.case_limit));
        command.args(["--exact", &case.name, "--nocapture"]).envs(self.environment.iter().cloned());
        if full {
            command.env("EMBER_FULL", "1");
        }
        let output = command.output().with_context(|| format!("Cannot start {program}"))?;
        let text = [output.stdout, output.stderr].concat();
        let how = output.status.to_string();
        Ok(Outcome::of_process(case.title(), output.status.success(), &how, &String::from_utf8_lossy(&text)))
    }
}
