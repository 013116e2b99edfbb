//! Tests beside the code, run by cargo on this machine.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::tally::Tally;
use crate::build;
use crate::progress::step;
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
    for (what, arguments) in SETS {
        step(what, || run_set(&mut build::cargo_test(workspace, arguments), what, tally))?;
    }
    Ok(())
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
