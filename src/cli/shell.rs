//! `ember completions` and `ember man`, made from the command line's own description.

use std::path::Path;

use clap::CommandFactory;

use super::args::Cli;
use super::failure::{Failure, Kind};

/// Prints a completion script.
///
/// # Errors
/// None today.
pub fn completions(shell: clap_complete::Shell) -> Result<u8, Failure> {
    clap_complete::generate(shell, &mut Cli::command(), "ember", &mut std::io::stdout());
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
