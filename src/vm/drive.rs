//! Moves bytes between a conversation and the guest's control stream, and tells what happens, one thing at a time.

use std::time::{Duration, Instant};

use crate::bus::Request;
use crate::faults::{Fault, injected};
use crate::function::{Conversation, Notice, SessionError, UNIQUE_MAX};
use crate::jail::{self, List, SeccompError};

use super::machine::{Machine, RunError, Wake};

/// How long a guest whose control stream has closed may take to say that it powers off or resets: its kernel puts its devices to
/// rest first.
const LAST_SIGN: Duration = Duration::from_secs(2);

/// Why a conversation with a guest broke off.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    /// The machine failed.
    #[error(transparent)]
    Machine(#[from] RunError),
    /// What the guest said was not allowed, or came too late.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The thread could not be confined.
    #[error(transparent)]
    Confine(#[from] SeccompError),
    /// The guest powered off.
    #[error("The guest powered off while {waiting_for} was awaited")]
    PoweredOff {
        /// What the host waited for.
        waiting_for: &'static str,
    },
    /// The guest reset itself.
    #[error("The guest reset while {waiting_for} was awaited; see its console with --console")]
    Reset {
        /// What the host waited for.
        waiting_for: &'static str,
    },
    /// The guest cannot go on.
    #[error("The guest broke while {waiting_for} was awaited")]
    Broken {
        /// What the host waited for.
        waiting_for: &'static str,
        /// Why.
        #[source]
        source: RunError,
    },
    /// The agent closed its control stream.
    #[error("The guest agent closed its control stream while {waiting_for} was awaited")]
    Closed {
        /// What the host waited for.
        waiting_for: &'static str,
    },
}

/// A machine and the conversation with its guest.
#[derive(Debug)]
pub struct Drive<'a> {
    machine: &'a mut Machine,
    conversation: &'a mut Conversation,
    buffer: Vec<u8>,
    /// What this thread confines itself to before it heeds what the guest says.
    list: Option<List>,
    /// Whether the control stream has been open at all.
    was_open: bool,
    /// When the control stream was found closed while something was awaited from it.
    closed_at: Option<Instant>,
}

impl<'a> Drive<'a> {
    /// Joins the two.
    pub fn new(machine: &'a mut Machine, conversation: &'a mut Conversation) -> Self {
        Drive { machine, conversation, buffer: Vec::new(), list: None, was_open: false, closed_at: None }
    }

    /// Has the calling thread confine itself to `list` when the guest runs and before anything that it says is heeded: a guest
    /// that begins to run needs another processor first, and in that time this one has nothing else to do.
    pub fn confined_to(mut self, list: List) -> Self {
        self.list = Some(list);
        self
    }

    /// The machine, between two notices.
    pub fn machine(&mut self) -> &mut Machine {
        self.machine
    }

    /// The conversation, between two notices.
    pub fn conversation(&mut self) -> &mut Conversation {
        self.conversation
    }

    /// Lets the guest run until it has said something.
    ///
    /// # Errors
    /// The guest failed, misspoke or ended, or `deadline` passed.
    pub fn next(&mut self, deadline: Option<Instant>) -> Result<Notice, DriveError> {
        if let Some(list) = self.list.take() {
            jail::confine(list)?;
        }
        loop {
            if let Some(notice) = self.conversation.next_notice() {
                return Ok(notice);
            }
            // Before anything else is taken: a guest that never falls silent would never be waited for.
            if deadline.is_some_and(|end| end <= Instant::now()) {
                return Err(self.conversation.time_out().into());
            }
            if self.exchange()? {
                continue;
            }
            let last_sign = self.last_sign();
            for wake in self.machine.wait(earlier(deadline, last_sign))? {
                match wake {
                    Wake::Devices => {}
                    Wake::Guest(request) => self.heed(request)?,
                    Wake::Timeout if last_sign.is_some_and(|end| end <= Instant::now()) => {
                        return Err(DriveError::Closed { waiting_for: self.waiting_for() });
                    }
                    Wake::Timeout => return Err(self.conversation.time_out().into()),
                }
            }
        }
    }

    /// When a guest that has hung up is waited for no longer.
    fn last_sign(&self) -> Option<Instant> {
        let closed_at = self.closed_at.filter(|_| self.conversation.waiting_for().is_some());
        closed_at.map(|closed_at| closed_at + LAST_SIGN)
    }

    /// Moves what can be moved; false when nothing could. Also done before the first instruction of a restored guest,
    /// so that it finds its restore message waiting.
    ///
    /// # Errors
    /// The guest misspoke.
    pub fn exchange(&mut self) -> Result<bool, DriveError> {
        let Some(control) = self.machine.control() else { return Ok(false) };
        let mut moved = false;
        loop {
            let output = self.conversation.output();
            let sent = if output.is_empty() { 0 } else { control.write(output) };
            if sent == 0 {
                break;
            }
            self.conversation.consume_output(sent);
            moved = true;
        }
        self.buffer.clear();
        moved |= control.read_into(&mut self.buffer) > 0;
        if injected(Fault::AcknowledgeLate)
            && self.conversation.is_unacknowledged()
            && !self.buffer.is_empty()
        {
            std::thread::sleep(UNIQUE_MAX * 2);
        }
        if control.is_open() {
            (self.was_open, self.closed_at) = (true, None);
        } else if self.was_open {
            self.closed_at.get_or_insert_with(Instant::now);
        }
        self.conversation.receive(&self.buffer)?;
        Ok(moved)
    }

    fn heed(&mut self, request: Request) -> Result<(), DriveError> {
        // What the guest said before it asked belongs before the answer to the request. It is all there, and once is enough: another
        // vCPU may go on to speak for ever.
        self.exchange()?;
        let waiting_for = self.waiting_for();
        match request {
            Request::PowerOff => Err(DriveError::PoweredOff { waiting_for }),
            Request::Reset => Err(DriveError::Reset { waiting_for }),
            Request::Broken => Err(DriveError::Broken { waiting_for, source: self.machine.guest_ended() }),
            Request::Warm => match self.conversation {
                Conversation::Port(port) => Ok(port.warm()?),
                Conversation::Agent(_) => Ok(()),
            },
            Request::Done => {
                let exit_code = self.machine.devices().port_exit_code().unwrap_or_default();
                if let Conversation::Port(port) = self.conversation {
                    port.done(exit_code);
                }
                Ok(())
            }
        }
    }

    /// Lets the guest run.
    ///
    /// # Errors
    /// The guest has ended.
    pub fn run(&mut self) -> Result<(), DriveError> {
        Ok(self.machine.run()?)
    }

    /// Lets the guest go on alone for `duration`, so that it comes to rest.
    ///
    /// # Errors
    /// The guest failed or ended.
    pub fn settle(&mut self, duration: Duration) -> Result<(), DriveError> {
        let end = Instant::now() + duration;
        while Instant::now() < end {
            if self.exchange()? {
                continue;
            }
            for wake in self.machine.wait(Some(end))? {
                if let Wake::Guest(request) = wake {
                    self.heed(request)?;
                }
            }
        }
        Ok(())
    }

    /// Hands the guest what is queued for it, then makes sure that it runs. A small guest stands still at its warm point until
    /// then, so that it finds its event whole: a freeze collects the vCPU that announced it, and the guard's end lets it go.
    ///
    /// # Errors
    /// The guest has ended, or a vCPU is gone.
    pub fn release(&mut self) -> Result<(), DriveError> {
        // Once: it moves all of what fits, and another vCPU of the guest may go on to speak for ever.
        self.exchange()?;
        if self.machine.stands_still() {
            return self.run();
        }
        if matches!(self.conversation, Conversation::Port(_)) {
            drop(self.machine.freeze()?);
        }
        Ok(())
    }

    fn waiting_for(&self) -> &'static str {
        self.conversation.waiting_for().unwrap_or("nothing")
    }
}

fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    one.into_iter().chain(other).min()
}
