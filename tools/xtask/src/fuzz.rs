//! `cargo xtask fuzz`: one decoder for a while, with cargo-fuzz.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::process::{self, command};
use crate::workspace::Workspace;

/// What to fuzz.
#[derive(Debug, Args)]
pub struct FuzzArguments {
    /// A file of fuzz/fuzz_targets, without `.rs`.
    target: String,
    /// For how long.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

/// Runs it; a finding is an error.
pub fn run(workspace: &Workspace, arguments: &FuzzArguments) -> Result<ExitCode> {
    let known = targets(workspace)?;
    if !known.contains(&arguments.target) {
        bail!("There is no fuzz target {}, only: {}", arguments.target, known.join(", "));
    }
    let cargo = || {
        // rustup chooses the toolchain; the one xtask runs under must not win.
        let mut cargo = command("rustup");
        cargo
            .current_dir(workspace.root())
            .env_remove("RUSTUP_TOOLCHAIN")
            .args(["run", "nightly", "cargo", "fuzz"]);
        cargo
    };
    if !process::succeeds(cargo().arg("--version")) {
        bail!(
            "Fuzzing needs a nightly toolchain and cargo-fuzz: \
             rustup toolchain install nightly && cargo install cargo-fuzz"
        );
    }
    let limit = format!("-max_total_time={}", arguments.seconds);
    process::run(cargo().args(["run", &arguments.target, "--", &limit]))?;
    Ok(ExitCode::SUCCESS)
}

fn targets(workspace: &Workspace) -> Result<Vec<String>> {
    let dir = workspace.path("fuzz/fuzz_targets");
    let entries = std::fs::read_dir(&dir).with_context(|| format!("Cannot read {}", dir.display()))?;
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".rs").map(str::to_owned))
        .collect();
    names.sort();
    Ok(names)
}
