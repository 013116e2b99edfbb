//! The C programs of the benches: what starts and times, the floor, what drives a peer, and what empties the page cache.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::process::{self, command};
use crate::workspace::{Workspace, make_dir};

/// Sources under `benches/`; each program is named after its file.
const SOURCES: [&str; 6] = [
    "caller/caller.c",
    "starter/starter.c",
    "floor/floor.c",
    "peer/driver.c",
    "peer/guest.c",
    "paging/cool.c",
];

/// Compiles them as static programs, and returns them.
pub fn build(workspace: &Workspace) -> Result<Vec<PathBuf>> {
    let dir = workspace.target("bench/tools");
    make_dir(&dir)?;
    SOURCES.iter().map(|source| compile(workspace, source, &dir)).collect()
}

fn compile(workspace: &Workspace, source: &str, dir: &std::path::Path) -> Result<PathBuf> {
    let source = workspace.path("benches").join(source);
    let program = dir.join(source.file_stem().context("A source has no name")?);
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    process::quiet(
        command(&compiler).args(["-O2", "-Wall", "-static", "-pthread", "-o"]).arg(&program).arg(&source),
    )?;
    Ok(program)
}
