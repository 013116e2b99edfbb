//! `ember completions` and `ember man`, made from the command line's own description.

use std::io::Write;
use std::path::Path;

use clap::CommandFactory;

use super::args::Cli;
use super::failure::{Failure, Kind};

/// Prints a completion script.
///
/// # Errors
/// Standard output is closed.
pub fn completions(shell: clap_complete::Shell) -> Result<u8, Failure> {
    // Into memory first: the generator panics where it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "ember", &mut script);
    let mut out = std::io::stdout().lock();
    out.write_all(&script).and_then(|()| out.flush()).map_err(|e| Failure::new(Kind::Internal, &e))?;
    Ok(0)
}

/// Writes a manual page per command.
///
/// # Errors
/// The folder cannot be written.
pub fn manual(directory: &Path) -> Result<u8, Failure> {
    std::fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), directory))
        .map_err(|e| {
            Failure::text(
                Kind::HostCannot,
                format!("Cannot write manual pages to {}: {e}", directory.display()),
            )
        })?;
    Ok(0)
}
