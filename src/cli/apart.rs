//! A command in a child process: how `ember run` exits as soon as everything is said.
//!
//! The end of a machine's process takes milliseconds, because the kernel closes a VM that has run with it, and nobody
//! should wait for that. So the child tells its exit code, and its parent exits with it. The fork comes before anything
//! else: a process that has done nothing is copied quickly, and every page that is touched later is touched once.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};

use rustix::pipe::{PipeFlags, pipe_with};

use crate::jail::{LastWords, MachineProcess};

use super::cell::{self, Cell, Side};
use super::failure::{Failure, Kind};
use super::report::Report;

/// What the child sends first: its exit code follows, everything has been said.
const ENDED: u8 = 0;
/// What the child sends first: a failure follows that its parent is to tell, as its length (32 bits, little-endian) and JSON.
const FAILED: u8 = 1;
/// Longest failure, bytes.
const FAILURE_MAX: u32 = 1 << 20;

/// Runs `command`, which prints everything that is to be printed, in a child, from where it may enter a jail; gives its exit
/// code. Whatever the child still does then is not waited for.
///
/// # Errors
/// There is no child, it ended without an exit code, or it could not tell its failure itself.
pub fn in_child(jailed: bool, command: impl FnOnce(Way, Cell<'_>) -> u8) -> Result<u8, Failure> {
    let null = cell::open_null()?;
    let (reader, writer) = pipe()?;
    match cell::fork(jailed)? {
        Side::Machine(entry) => {
            drop(reader);
            let code = command(Way::Parent(writer.as_raw_fd()), Cell::new(entry, &null));
            close_output(&null);
            // A parent that is gone needs no exit code.
            rustix::io::write(&writer, &[ENDED, code]).ok();
            std::process::exit(0)
        }
        Side::Parent(child) => {
            drop(writer);
            receive(reader).unwrap_or_else(|| Err(died(&child)))
        }
    }
}

/// What the child told; `None` when it told nothing, or only half of it.
fn receive(mut from: impl Read) -> Option<Result<u8, Failure>> {
    let mut first = [0; 2];
    from.read_exact(&mut first).ok()?;
    if let [ENDED, code] = first {
        return Some(Ok(code));
    }
    let [_, low] = first;
    let mut rest = [0; 3];
    from.read_exact(&mut rest).ok()?;
    let [second, third, high] = rest;
    let len = Some(u32::from_le_bytes([low, second, third, high])).filter(|len| *len <= FAILURE_MAX)?;
    let mut text = vec![0; usize::try_from(len).ok()?];
    from.read_exact(&mut text).ok()?;
    serde_json::from_slice(&text).ok().map(Err)
}

/// Whom a process tells why it must end at once, on whatever thread it finds out.
#[derive(Debug, Clone, Copy)]
pub enum Way {
    /// The thin parent, through its pipe.
    Parent(RawFd),
    /// The command that waits for this clone's report.
    Reporter(RawFd),
    /// The user.
    User {
        /// On standard output too.
        as_json: bool,
    },
}

impl Way {
    /// Everything to be written for `failure`.
    pub fn last_words(self, failure: &Failure) -> LastWords {
        let words = match self {
            Way::Parent(fd) => vec![(fd, framed(failure))],
            Way::Reporter(fd) => vec![(fd, Report::failed(failure.clone()).to_bytes())],
            Way::User { as_json } => {
                let json = as_json.then(|| (1, format!("{}\n", failure.to_json()).into_bytes()));
                json.into_iter().chain([(2, format!("ember: {failure}\n").into_bytes())]).collect()
            }
        };
        LastWords { words, code: failure.kind().code() }
    }
}

fn framed(failure: &Failure) -> Vec<u8> {
    // Text and numbers always have a form in JSON.
    let text = serde_json::to_vec(failure).unwrap_or_default();
    let len = u32::try_from(text.len()).unwrap_or(u32::MAX);
    [&[FAILED][..], &len.to_le_bytes(), &text].concat()
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
        // As a control group's memory limit ends a process.
        Ok(-9) => "it was killed by signal 9, as by a limit of its memory".to_owned(),
        Ok(code) if code < 0 => format!("it was killed by signal {}", -code),
        Ok(code) => format!("it exited with {code}"),
        Err(error) => error.to_string(),
    };
    Failure::text(Kind::Internal, format!("The machine's process ended without a report: {end}"))
}

/// Whoever reads our answer through a pipe waits for its last writer: that must not be this process in its slow end.
fn close_output(null: &File) {
    // Where this fails the streams stay open until this process ends, a few milliseconds later.
    rustix::stdio::dup2_stdout(null).ok();
    rustix::stdio::dup2_stderr(null).ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_reaches_the_parent_as_it_was() {
        let failure = Failure::text(Kind::BadBundle, "Lost").with_detail(Some("last".to_owned()));
        let words = Way::Parent(7).last_words(&failure);
        assert_eq!((words.words[0].0, words.code), (7, 121));
        let told = receive(&words.words[0].1[..]).unwrap().unwrap_err();
        assert_eq!(told.to_json(), failure.to_json());
    }

    #[test]
    fn what_is_cut_off_is_nothing() {
        let words = Way::Parent(7).last_words(&Failure::text(Kind::BadBundle, "Lost"));
        let bytes = &words.words[0].1;
        for len in 0..bytes.len() {
            assert!(receive(&bytes[..len]).is_none());
        }
        assert!(receive(&[FAILED, 255, 255, 255, 255][..]).is_none());
        assert_eq!(receive(&[ENDED, 3][..]).unwrap().unwrap(), 3);
    }
}
