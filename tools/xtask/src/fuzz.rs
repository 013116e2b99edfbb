//! `cargo xtask fuzz`: decoders for a while, with libFuzzer and AddressSanitizer.
//!
//! cargo-fuzz and a nightly toolchain would be two more things to install, of which one changes every night. All that they add are
//! the compiler's flags below, which the toolchain of the workspace takes when it is told that this is meant.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::process;
use crate::progress::step;
use crate::workspace::{Workspace, make_dir};

/// AddressSanitizer needs an explicit target, lest build scripts get it too.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What libFuzzer needs of the compiler: counters at every edge, tables of their places, and what comparisons compare.
const FLAGS: [&str; 8] = [
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Zsanitizer=address",
    "-Cdebug-assertions",
];

/// What to fuzz.
#[derive(Debug, Args)]
pub struct FuzzArguments {
    /// Files of fuzz/fuzz_targets, without `.rs`; all of them when none is named.
    targets: Vec<String>,
    /// For how long each.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

/// Runs them; a finding is an error.
pub fn run(workspace: &Workspace, arguments: &FuzzArguments) -> Result<ExitCode> {
    let known = targets(workspace)?;
    if let Some(unknown) = arguments.targets.iter().find(|name| !known.contains(name)) {
        bail!("There is no fuzz target {unknown}, only: {}", known.join(", "));
    }
    step("Building the fuzz targets", || process::run(&mut build(workspace)))?;
    let wanted = if arguments.targets.is_empty() { &known } else { &arguments.targets };
    wanted.iter().try_for_each(|target| fuzz(workspace, target, arguments.seconds))?;
    Ok(ExitCode::SUCCESS)
}

fn build(workspace: &Workspace) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(workspace.path("fuzz"))
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"))
        // Some of the flags are unstable. Nothing that is shipped is built with them.
        .env("RUSTC_BOOTSTRAP", "1")
        .args(["build", "--quiet", "--release", "--locked", "--target", TARGET, "--target-dir"])
        .arg(workspace.target("fuzz"));
    cargo
}

/// Starts from the corpus in the repository; what is found beside it stays under the target directory.
fn fuzz(workspace: &Workspace, target: &str, seconds: u64) -> Result<()> {
    let (grown, findings) =
        (workspace.target("fuzz/corpus").join(target), workspace.target("fuzz/findings").join(target));
    make_dir(&grown)?;
    make_dir(&findings)?;
    let mut program = Command::new(workspace.target("fuzz").join(TARGET).join("release").join(target));
    program
        .arg(format!("-max_total_time={seconds}"))
        // An input may not take longer than this, and all of it no more memory.
        .args(["-timeout=10", "-rss_limit_mb=1024", "-print_final_stats=1"])
        .arg(format!("-artifact_prefix={}/", findings.display()))
        .arg(grown)
        .args(Some(workspace.path("fuzz/corpus").join(target)).filter(|corpus| corpus.is_dir()));
    step(&format!("Fuzzing {target} for {seconds} s"), || process::quiet(&mut program))
        .with_context(|| format!("{target}: what was found lies under {}", findings.display()))
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
