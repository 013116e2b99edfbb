use crate::workspace::Workspace;
use anyhow::Result;
use std::process::ExitCode;
#[derive(Debug, clap::Args)]
pub struct BenchArguments {}
pub fn run(_: &Workspace, _: &BenchArguments) -> Result<ExitCode> {
    Ok(ExitCode::SUCCESS)
}
