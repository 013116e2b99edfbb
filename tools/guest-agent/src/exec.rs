//! The `exec` interface: a process per event.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use guest_protocol::{Cause, EventHead, RestoreEntries};
use rustix::event::PollFlags;
use rustix::io::Errno;

use crate::contract::Contract;
use crate::control::retry;
use crate::io::{Io, Patience};
use crate::process::{Input, Prepared, Process};
use crate::quiet::reads_stdin;
use crate::runner::{Guest, Runner};
use crate::stop::Stop;

/// Between two looks at a process that is on its way to its first read.
const LOOK: Duration = Duration::from_millis(1);

/// The `exec` interface.
#[derive(Debug)]
pub struct Exec {
    command: Prepared,
    resident: bool,
    /// The process of the next event.
    waiting: Option<Process>,
}

impl Exec {
    /// # Errors
    /// The command is not there.
    pub fn new(contract: &Contract) -> Result<Self, Stop> {
        let command = Prepared::new(contract, BTreeMap::new(), Input::Pipe)?;
        Ok(Exec { command, resident: contract.resident, waiting: None })
    }

    /// Starts the process of the next event if there is none.
    fn start_resident(&mut self) -> Result<(), Stop> {
        if self.resident && self.waiting.is_none() {
            self.waiting = Some(self.command.start()?);
        }
        Ok(())
    }

    /// Waits until that process reads its standard input.
    fn await_resident(&mut self, io: &mut Io, deadline: Instant) -> Result<(), Stop> {
        let Some(process) = self.waiting.as_mut() else { return Ok(()) };
        while !process.stdin().is_some_and(|stdin| reads_stdin(process.pid(), stdin)) {
            if Instant::now() >= deadline {
                process.drain(io)?;
                return Err(Stop::failed(
                    Cause::NotReady,
                    "The resident process did not read its standard input in time; set resident = false if it never does",
                ));
            }
            io.wait(&[], Some(process), Patience { relay: false, ..Patience::for_at_most(LOOK) })?;
            process.must_live(io)?;
        }
        Ok(())
    }
}

impl Runner for Exec {
    fn start(&mut self, io: &mut Io, deadline: Instant) -> Result<(), Stop> {
        self.start_resident()?;
        self.await_resident(io, deadline)
    }

    fn idle(&mut self, io: &mut Io) -> Result<(), Stop> {
        // Its output belongs to the event that it will answer.
        while !io.wait(&[], self.waiting.as_mut(), Patience { relay: false, ..Patience::HOST })?.host {
            if self.waiting.as_ref().is_some_and(|process| process.ended().is_some()) {
                self.waiting = None;
            }
        }
        Ok(())
    }

    fn event(&mut self, io: &mut Io, _head: &EventHead) -> Result<i32, Stop> {
        let mut process = match self.waiting.take() {
            Some(process) => process,
            None => self.command.start()?,
        };
        let mut stdin = process.take_stdin();
        loop {
            feed(&mut stdin, io)?;
            if let Some(ended) = process.ended() {
                process.drain(io)?;
                return Ok(ended.exit_code());
            }
            exchange(stdin.as_ref(), &mut process, io)?;
        }
    }

    fn after_event(&mut self, _io: &mut Io) -> Result<(), Stop> {
        self.start_resident()
    }

    fn before_freeze(&mut self, io: &mut Io, deadline: Instant) -> Result<(), Stop> {
        self.start(io, deadline)
    }

    fn take_env(&mut self, _guest: &dyn Guest, entries: RestoreEntries<'_>) -> Result<(), Stop> {
        if !entries.has_variables() {
            return Ok(());
        }
        self.command.add_env(entries);
        // An environment is given at the start of a process and never after.
        if let Some(process) = self.waiting.take() {
            process.kill();
        }
        Ok(())
    }

    fn resume(&mut self, _io: &mut Io) -> Result<(), Stop> {
        self.start_resident()
    }
}

/// Writes what there is of the event, as much as the pipe takes; closes the pipe behind the last byte.
fn feed(stdin: &mut Option<OwnedFd>, io: &mut Io) -> Result<(), Stop> {
    while let Some(pipe) = stdin {
        if !io.inbox.next_piece()? {
            if io.inbox.left() == 0 {
                *stdin = None;
            }
            return Ok(());
        }
        match retry(|| rustix::io::write(&*pipe, io.inbox.piece())) {
            Ok(n) => io.inbox.take(n),
            Err(Errno::AGAIN) => return Ok(()),
            // It reads no more. What it does not read of the event is skipped with the next frame.
            Err(_) => *stdin = None,
        }
    }
    Ok(())
}

/// Waits for whatever moves the event or the answer on.
fn exchange(stdin: Option<&OwnedFd>, process: &mut Process, io: &mut Io) -> Result<(), Stop> {
    let starved = stdin.is_some() && io.inbox.piece().is_empty();
    let full = stdin.filter(|_| !starved).map(|pipe| (pipe.as_fd(), PollFlags::OUT));
    let found = io.wait(full.as_slice(), Some(process), Patience { hear: starved, ..Patience::FUNCTION })?;
    if found.host { io.hear() } else { Ok(()) }
}
