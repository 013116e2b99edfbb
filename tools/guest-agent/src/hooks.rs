//! Programs of the root that a clone runs before it acknowledges its restore message.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use guest_protocol::{Cause, Restore};

use crate::identity::hex;
use crate::io::{Io, Patience};
use crate::process::{Ended, Prepared, Process, is_executable};
use crate::stop::Stop;

/// The hooks of a root, in the order of their names.
#[derive(Debug)]
pub struct Hooks(Vec<Prepared>);

impl Hooks {
    /// Looks for them in `directory`, which need not be there. Before the freeze: a clone without hooks looks nothing up.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn find(directory: &Path) -> Result<Self, Stop> {
        let programs = programs(directory).map_err(|error| {
            let text = format!("Cannot read the hooks in {}: {error}", directory.display());
            Stop::failed(Cause::Guest, text)
        })?;
        Ok(Hooks(programs.iter().map(|program| Prepared::hook(program)).collect()))
    }

    /// Gives them the environment of the restore message, and the generation.
    pub fn prepare(&mut self, restore: &Restore<'_>) {
        for hook in &mut self.0 {
            hook.set_env("EMBER_GENERATION", &hex(&restore.generation));
            hook.add_env(restore.entries);
        }
    }

    /// Runs them one after the other.
    ///
    /// # Errors
    /// One does not start, fails, or has not ended by `deadline`.
    pub fn run(&mut self, io: &mut Io, deadline: Instant) -> Result<(), Stop> {
        self.0.iter_mut().try_for_each(|hook| run(hook, io, deadline))
    }
}

fn programs(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let directory = std::path::absolute(directory)?;
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut programs = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    // Whatever cannot be executed is a note or switched off, as with run-parts(8).
    programs.retain(|program| is_executable(program));
    programs.sort();
    Ok(programs)
}

fn run(hook: &mut Prepared, io: &mut Io, deadline: Instant) -> Result<(), Stop> {
    let failed = |how: String| Stop::failed(Cause::Restore, how);
    let name = hook.name().to_owned();
    let mut process = hook.start().map_err(|error| Stop::chain(Cause::Restore, &error))?;
    let ended = await_end(&mut process, io, deadline)?;
    process.drain(io)?;
    match ended {
        Some(Ended::Exited(0)) => Ok(()),
        Some(Ended::Exited(code)) => Err(failed(format!("The hook {name} ended with exit code {code}"))),
        Some(Ended::Killed(signal)) => Err(failed(format!("The hook {name} was killed by signal {signal}"))),
        None => {
            process.kill();
            Err(failed(format!("The hook {name} did not end in time")))
        }
    }
}

fn await_end(process: &mut Process, io: &mut Io, deadline: Instant) -> Result<Option<Ended>, Stop> {
    while process.ended().is_none() && Instant::now() < deadline {
        io.wait(&[], Some(process), Patience { until: Some(deadline), ..Patience::FUNCTION })?;
    }
    Ok(process.ended())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn hooks_are_the_executables_of_a_directory_by_name() {
        let directory = tempfile::tempdir().unwrap();
        assert!(programs(&directory.path().join("none")).unwrap().is_empty());
        for (name, mode) in [("20-b", 0o755), ("10-a", 0o700), ("README", 0o644)] {
            let path = directory.path().join(name);
            fs::write(&path, "#!/bin/sh\n").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        fs::create_dir(directory.path().join("30-directory")).unwrap();
        let names: Vec<_> = programs(directory.path()).unwrap();
        assert_eq!(names, ["10-a", "20-b"].map(|name| directory.path().join(name)));
    }
}
