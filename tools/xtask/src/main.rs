//! `cargo xtask`: everything around the product that is not the product.
//!
//! Sets a machine up, builds static binaries, runs commands in an emulated host, tests, measures and checks the rules of
//! ARCHITECTURE.md. It depends on none of the product's crates, so it builds before anything is set up.

mod bench;
mod build;
mod demo;
mod dist;
mod environment;
mod fuzz;
mod host;
mod image;
mod lint;
mod process;
mod progress;
mod rig;
mod setup;
mod test;
mod tree;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use workspace::Workspace;

/// Set-up, rig, tests, benches and lint of this repository.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install and download what the other commands need; a second run only looks.
    Setup,
    /// Bake and run every example, then measure cold against warm.
    Demo(demo::DemoArguments),
    /// Run every test; the last line counts them.
    Test(test::TestArguments),
    /// Run a command in the emulated host, with the static binaries in its PATH.
    Rig(rig::RigArguments),
    /// Measure and write target/bench/report.json.
    Bench(bench::BenchArguments),
    /// Check the rules of ARCHITECTURE.md on the parsed sources.
    Lint,
    /// Run one fuzz target for a while.
    Fuzz(fuzz::FuzzArguments),
    /// Make the release tarball.
    Dist,
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    match command {
        Command::Setup => setup::run(&workspace).map(|()| ExitCode::SUCCESS),
        Command::Demo(arguments) => demo::run(&workspace, &arguments),
        Command::Test(arguments) => test::run(&workspace, &arguments),
        Command::Rig(arguments) => rig::run(&workspace, &arguments),
        Command::Bench(arguments) => bench::run(&workspace, &arguments),
        Command::Lint => lint::run(&workspace),
        Command::Fuzz(arguments) => fuzz::run(&workspace, &arguments),
        Command::Dist => dist::run(&workspace).map(|()| ExitCode::SUCCESS),
    }
}
