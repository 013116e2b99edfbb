//! Tests beside the code, run by cargo on this machine; those that need what it has not run in the rig alone.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::tally::Tally;
use crate::build::{self, NEED_KVM, NEED_USERFAULTFD};
use crate::host::{self, Kvm};
use crate::progress::{say, step};
use crate::workspace::Workspace;

/// Unit tests, integration tests of the libraries, and examples in documentation. The files of `tests/` need a virtual
/// machine and are not among them.
const SETS: [(&str, &[&str]); 3] = [
    ("Unit tests of the libraries and tools", &["--workspace", "--exclude", "ember"]),
    ("Unit tests of ember", &["--package", "ember", "--lib", "--bins"]),
    ("Examples in the documentation of ember", &["--package", "ember", "--doc"]),
];

/// Runs them all.
pub fn run(workspace: &Workspace, tally: &mut Tally) -> Result<()> {
    let elsewhere = elsewhere(Kvm::of_this_machine(), host::lazy_paging());
    for prefix in &elsewhere {
        say(&format!(
            "Tests of {prefix} run in the emulated host alone: this machine has not what they need"
        ));
    }
    let skips: Vec<&str> = elsewhere.iter().flat_map(|prefix| ["--skip", prefix]).collect();
    for (what, arguments) in SETS {
        let mut cargo = build::cargo_test(workspace, arguments);
        if arguments.contains(&"--lib") {
            cargo.arg("--").args(&skips);
        }
        step(what, || run_set(&mut cargo, what, tally))?;
    }
    Ok(())
}

/// How the names of those tests begin that cannot run on such a machine.
fn elsewhere(kvm: Kvm, lazy_paging: bool) -> Vec<&'static str> {
    let needs = [(NEED_KVM, kvm.runs_small_guests()), (NEED_USERFAULTFD, lazy_paging)];
    needs.into_iter().filter(|(_, is_there)| !is_there).map(|(prefix, _)| prefix).collect()
}

fn run_set(command: &mut Command, what: &str, tally: &mut Tally) -> Result<()> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("Cannot start cargo")?;
    let pipe = child.stdout.take().context("cargo has no output")?;
    let mut output = String::new();
    for line in BufReader::new(pipe).split(b'\n') {
        output.push_str(&String::from_utf8_lossy(&line?));
        output.push('\n');
    }
    let status = child.wait().context("Cannot wait for cargo")?;
    let counts = tally.add_output(&output);
    if !status.success() {
        std::io::stdout().lock().write_all(output.as_bytes())?;
        if counts.failed == 0 {
            tally.fail(format!("{what}: cargo ended with {status}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_machine_cannot_run_is_left_to_the_emulated_host() {
        assert!(elsewhere(Kvm::Software, true).is_empty());
        assert_eq!(elsewhere(Kvm::Unusable, true), [NEED_KVM]);
        assert_eq!(elsewhere(Kvm::Unusable, false), [NEED_KVM, NEED_USERFAULTFD]);
    }
}
