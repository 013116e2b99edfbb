//! The keeper: a process that makes machines' processes, and beside them the room they move into.
//!
//! The machine's process is forked first and prepares what it needs the outside for; meanwhile its keeper moves into an empty
//! room, of no use for anything but waiting, and the machine follows it there. What a keeper needs afterwards must be open.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags};

use super::entry::Entry;
use super::process::{ForkError, MachineProcess, die_with_parent, fork_into_pid_namespace};
use super::walls::{Wall, Walls};
use super::{descriptors, own_user, room};

/// Which side of a fork into a jail one is on.
#[derive(Debug)]
pub enum Kept {
    /// The keeper, with a handle of the machine's process.
    Keeper(MachineProcess),
    /// The machine's process, and its way into the jail.
    Machine(Entry),
    /// The machine's process, which has no way into one and must end at once.
    Lost(ForkError),
}

/// Makes jailed processes.
#[derive(Debug)]
pub struct Keeper {
    /// A pidfd of this process: how its machines follow it, and notice that it has ended. A machine takes it out.
    own: Option<OwnedFd>,
    /// Whether machines can be given users of their own.
    gives_users: bool,
    /// What became of a user namespace for all its machines, where one was needed for the rest.
    user_namespace: Option<io::Result<()>>,
    /// What became of closing what others left open, where that was done for all machines.
    closed: Option<io::Result<()>>,
    /// What became of the room, once it was made.
    room: Option<io::Result<()>>,
}

impl Keeper {
    /// Makes a keeper of the calling process, which must have one thread. One without the rights for it takes them in a user
    /// namespace, where the host lets it.
    ///
    /// # Errors
    /// The kernel is older than Linux 5.3 or has no descriptor left.
    pub fn new() -> Result<Self, ForkError> {
        let own = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())
            .map_err(|e| ForkError::Tie(e.into()))?;
        let gives_users = own_user::is_administrator();
        let user_namespace = (!gives_users).then(own_user::become_administrator_of_own_namespace);
        Ok(Keeper { own: Some(own), gives_users, user_namespace, closed: None, room: None })
    }

    /// Closes what others left open, once for all machines: those that are forked when their keeper is in its room find no /proc to
    /// do so themselves. Before anything is open that an exec would not close.
    pub fn close_inherited(&mut self, null: BorrowedFd<'_>) {
        self.closed = Some(descriptors::close_inherited(null));
    }

    /// Forks a machine's process, then makes the room if there is none yet: the first call returns in the keeper only when it
    /// has moved there.
    ///
    /// # Errors
    /// See [`ForkError`]; the machine's process has none, but may be [lost](Kept::Lost).
    pub fn fork(&mut self) -> Result<Kept, ForkError> {
        let (told, tell) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| ForkError::Fork(e.into()))?;
        let mut walls = Walls::default();
        if let Some(outcome) = &self.user_namespace {
            walls.note_all(&[Wall::UserNamespace], outcome);
        }
        let (forked, outcome) = fork_into_pid_namespace()?;
        walls.note(Wall::PidNamespace, outcome);
        match forked {
            None => {
                drop(tell);
                Ok(self.machine(told.into(), walls).map_or_else(Kept::Lost, Kept::Machine))
            }
            Some(pid) => {
                drop(told);
                let room = self.room.get_or_insert_with(room::make);
                // A machine that is gone is noticed by whoever waits for it.
                tell_room(tell.into(), pid, room).ok();
                Ok(Kept::Keeper(MachineProcess { pid }))
            }
        }
    }

    fn machine(&mut self, told: File, walls: Walls) -> Result<Entry, ForkError> {
        die_with_parent()?;
        // Nothing of the keeper may stay open in the jail.
        let keeper = self.own.take().ok_or(ForkError::Orphan)?;
        // It may have died before that was asked for.
        if has_ended(&keeper)? {
            return Err(ForkError::Orphan);
        }
        Ok(Entry { keeper, told, walls, gives_users: self.gives_users, closed: self.closed.take() })
    }
}

/// Whether the process behind a pidfd has ended.
pub(super) fn has_ended(process: &OwnedFd) -> Result<bool, ForkError> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut polled = [PollFd::new(process, PollFlags::IN)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    let ready = rustix::io::retry_on_intr(|| poll(&mut polled, Some(&at_once)));
    ready.map(|count| count > 0).map_err(|e| ForkError::Tie(e.into()))
}

/// What the keeper tells a machine: its process id as the keeper sees it, and the error number of a room that could not be
/// made, or 0.
const TOLD_LEN: usize = 8;

fn tell_room(mut to: File, pid: Pid, room: &io::Result<()>) -> io::Result<()> {
    let error = room.as_ref().err().map_or(0, |e| e.raw_os_error().unwrap_or(libc::EPERM));
    let mut message = [0; TOLD_LEN];
    let (first, second) = message.split_at_mut(TOLD_LEN / 2);
    first.copy_from_slice(&pid.as_raw_nonzero().get().to_le_bytes());
    second.copy_from_slice(&error.to_le_bytes());
    to.write_all(&message)
}

/// Waits until the room is made: the process's id as its keeper sees it, and what became of the room.
pub(super) fn hear_of_room(mut from: File) -> Result<(u32, io::Result<()>), ForkError> {
    let mut message = [0; TOLD_LEN];
    from.read_exact(&mut message).map_err(|_| ForkError::Orphan)?;
    let [a, b, c, d, e, f, g, h] = message;
    let room = match i32::from_le_bytes([e, f, g, h]) {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    };
    Ok((u32::from_le_bytes([a, b, c, d]), room))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_became_of_a_room_reaches_the_machine() {
        let pid = Pid::from_raw(4711).unwrap();
        for error in [None, Some(libc::EPERM), Some(libc::ENOSYS)] {
            let (from, to) = pipe_with(PipeFlags::CLOEXEC).unwrap();
            let room = error.map_or(Ok(()), |error| Err(io::Error::from_raw_os_error(error)));
            tell_room(to.into(), pid, &room).unwrap();
            let (id, heard) = hear_of_room(from.into()).unwrap();
            assert_eq!((id, heard.err().and_then(|e| e.raw_os_error())), (4711, error));
        }
    }

    #[test]
    fn a_machine_whose_keeper_says_nothing_is_an_orphan() {
        let (from, to) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        drop(to);
        assert!(matches!(hear_of_room(from.into()), Err(ForkError::Orphan)));
    }
}
