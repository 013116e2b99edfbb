//! A command in a child process: how `ember run` exits as soon as everything is said.
//!
//! The end of a machine's process takes milliseconds, because the kernel closes a VM that has run with it, and nobody
//! should wait for that. So the child tells its exit code, and its parent exits with it. The fork comes before anything
//! else: a process that has done nothing is copied quickly, and every page that is touched later is touched once.

use std::fs::File;
use std::io::{self, Read};

use rustix::pipe::{PipeFlags, pipe_with};

use crate::jail::{Forked, MachineProcess, fork_machine};

use super::failure::{Failure, Kind};

/// Runs `command`, which prints everything that is to be printed, in a child; gives its exit code. Whatever the child still
/// does then is not waited for.
///
/// # Errors
/// There is no child, or it ended without an exit code.
pub fn in_child(command: impl FnOnce() -> u8) -> Result<u8, Failure> {
    let (reader, writer) = pipe()?;
    match fork_machine()? {
        Forked::Machine => {
            drop(reader);
            let code = command();
            close_output();
            // A parent that is gone needs no exit code.
            rustix::io::write(&writer, &[code]).ok();
            std::process::exit(0)
        }
        Forked::Parent(child) => {
            drop(writer);
            let mut code = [0];
            match reader.take(1).read(&mut code) {
                Ok(1) => Ok(u8::from_le_bytes(code)),
                _ => Err(died(&child)),
            }
        }
    }
}

/// A pipe from a child to its parent: the end to read and the end to write.
///
/// # Errors
/// No descriptor is left.
pub fn pipe() -> Result<(File, File), Failure> {
    let (reader, writer) =
        pipe_with(PipeFlags::CLOEXEC).map_err(|e| Failure::new(Kind::HostCannot, &io::Error::from(e)))?;
    Ok((reader.into(), writer.into()))
}

/// The failure of a child that said nothing.
pub fn died(child: &MachineProcess) -> Failure {
    let end = match child.wait() {
        Ok(code) if code < 0 => format!("it was killed by signal {}", -code),
        Ok(code) => format!("it exited with {code}"),
        Err(error) => error.to_string(),
    };
    Failure::text(Kind::Internal, format!("The machine's process ended without a report: {end}"))
}

/// Whoever reads our answer through a pipe waits for its last writer: that must not be this process in its slow end.
fn close_output() {
    let Ok(null) = File::options().write(true).open("/dev/null") else { return };
    // Where this fails the streams stay open until this process ends, a few milliseconds later.
    rustix::stdio::dup2_stdout(&null).ok();
    rustix::stdio::dup2_stderr(&null).ok();
}
