use crate::workspace::Workspace;
use anyhow::Result;
use std::process::ExitCode;
#[derive(Debug, clap::Args)]
pub struct DemoArguments {}
pub fn run(_: &Workspace, _: &DemoArguments) -> Result<ExitCode> {
    Ok(ExitCode::SUCCESS)
}
