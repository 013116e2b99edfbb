use crate::workspace::Workspace;
use anyhow::Result;
pub fn run(_: &Workspace) -> Result<()> {
    Ok(())
}
