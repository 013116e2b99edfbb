//! One event in, one answer out: from a bundle to the end of the answer.

use std::io;
use std::time::{Duration, Instant};

use crate::function::{Conversation, Event, Notice, RestoreMessage, SessionError, UNIQUE_MAX};

use super::capture::unix_ns;
use super::drive::{Drive, DriveError};
use super::timeline::Timeline;

/// Longest wait for the acknowledgement of a restore message. The agent gives up before, and says why: on a host with many more
/// guests than processors it takes seconds until its own time begins.
const ACKNOWLEDGE_MAX: Duration = UNIQUE_MAX.saturating_add(Duration::from_secs(5));

/// Where an answer goes, piece by piece as it comes.
pub trait AnswerSink {
    /// Takes one piece: `Notice::Output`, `Notice::Log`, `Notice::Head` or `Notice::Answer`; tells whether it belongs to the answer
    /// proper, not to a log beside it.
    ///
    /// # Errors
    /// It could not be delivered; the invocation ends.
    fn take(&mut self, piece: Notice) -> io::Result<bool>;
}

/// Why an event got no answer.
#[derive(Debug, thiserror::Error)]
pub enum InvokeError {
    /// The conversation with the guest broke off.
    #[error(transparent)]
    Drive(#[from] DriveError),
    /// The event or the guest's words are not allowed.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The guest ended, or its agent hung up, before the acknowledgement.
    #[error("The clone did not become unique and serves nothing")]
    NotUnique(#[source] DriveError),
    /// The answer could not be delivered.
    #[error("Cannot write the answer")]
    Sink(#[source] io::Error),
}

/// Queues the restore message where a restored guest finds it at its first instruction, lets the guest run, and waits
/// until it has become unique. What its hooks write meanwhile goes to `sink`.
///
/// # Errors
/// No valid acknowledgement in time: the clone must not be given an event.
pub fn wake(
    drive: &mut Drive<'_>,
    message: &RestoreMessage,
    sink: &mut dyn AnswerSink,
    timeline: &mut Timeline,
) -> Result<(), InvokeError> {
    // An agent that knows only this time will be late by whatever comes between this and its own setting it: it is read last.
    let clock = drive.machine().clock();
    drive.conversation().restore(message, unix_ns(), clock)?;
    if matches!(drive.conversation(), Conversation::Port(_)) {
        // A small guest has nothing to make unique. It must not run on from its warm point before its event is there.
        return Ok(());
    }
    drive.exchange()?;
    timeline.mark(FIRST_INSTRUCTION);
    drive.run()?;
    await_acknowledgement(drive, sink)?;
    timeline.mark("acknowledgement");
    Ok(())
}

fn await_acknowledgement(drive: &mut Drive<'_>, sink: &mut dyn AnswerSink) -> Result<(), InvokeError> {
    let deadline = Instant::now() + ACKNOWLEDGE_MAX;
    let not_unique = |error| match error {
        // Whatever ended the guest, it has not become unique.
        DriveError::PoweredOff { .. }
        | DriveError::Reset { .. }
        | DriveError::Broken { .. }
        | DriveError::Closed { .. } => InvokeError::NotUnique(error),
        DriveError::Machine(_) | DriveError::Session(_) | DriveError::Confine(_) => InvokeError::Drive(error),
    };
    loop {
        match drive.next(Some(deadline)).map_err(not_unique)? {
            // It may have come in time and be found too late, which is as good as late.
            Notice::Acknowledged if Instant::now() < deadline => return Ok(()),
            Notice::Acknowledged => return Err(drive.conversation().is_late().into()),
            piece @ (Notice::Log { .. } | Notice::Output { .. }) => {
                sink.take(piece).map_err(InvokeError::Sink)?;
            }
            _ => {}
        }
    }
}

/// The mark just before the first KVM_RUN that runs guest code.
pub const FIRST_INSTRUCTION: &str = "guest may run";
/// The mark at the first piece of an answer.
pub const FIRST_ANSWER: &str = "first answer byte";
/// The mark at the end of an answer.
pub const ANSWERED: &str = "answer complete";

/// Lets a cold guest run until its function is ready.
///
/// # Errors
/// It did not get there by `deadline`.
pub fn boot_to_ready(
    drive: &mut Drive<'_>,
    deadline: Option<Instant>,
    sink: &mut dyn AnswerSink,
) -> Result<(), InvokeError> {
    drive.run()?;
    loop {
        match drive.next(deadline)? {
            Notice::Warm => return Ok(()),
            piece @ Notice::Output { .. } => {
                sink.take(piece).map_err(InvokeError::Sink)?;
            }
            _ => {}
        }
    }
}

/// Takes a guest that has answered to where it can be given its next event: a small guest stands still after its answer and
/// must come to its warm point again; the agent is ready at once.
///
/// # Errors
/// The guest failed or `deadline` passed.
pub fn next_turn(drive: &mut Drive<'_>, deadline: Option<Instant>) -> Result<(), InvokeError> {
    if matches!(drive.conversation(), Conversation::Agent(_)) {
        return Ok(());
    }
    drive.release()?;
    while !matches!(drive.next(deadline)?, Notice::Warm) {}
    Ok(())
}

/// Sends `event` and passes its answer on; gives the function's exit code.
///
/// # Errors
/// The guest failed or `deadline` passed.
pub fn invoke(
    drive: &mut Drive<'_>,
    event: &Event,
    deadline: Option<Instant>,
    sink: &mut dyn AnswerSink,
    timeline: &mut Timeline,
) -> Result<i32, InvokeError> {
    drive.conversation().event(event)?;
    if drive.machine().is_ready() {
        timeline.mark(FIRST_INSTRUCTION);
    }
    drive.release()?;
    let mut first = true;
    loop {
        match drive.next(deadline)? {
            Notice::Done { exit_code } => {
                timeline.mark(ANSWERED);
                return Ok(exit_code);
            }
            piece @ (Notice::Output { .. }
            | Notice::Log { .. }
            | Notice::Answer { .. }
            | Notice::Head { .. }) => {
                let is_answer = sink.take(piece).map_err(InvokeError::Sink)?;
                if is_answer && std::mem::take(&mut first) {
                    timeline.mark(FIRST_ANSWER);
                    drive.machine().answer_begins();
                }
            }
            _ => {}
        }
    }
}
