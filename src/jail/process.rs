//! A thin parent and the machine as its child.
//!
//! The parent reports the result and exits as soon as the answer is complete; closing a VM that has run takes 4 to 16 ms
//! and happens in the child, which the kernel kills when the parent is gone. Fork without exec: the child needs nothing
//! that the parent has not mapped already, and an exec would cost more than the whole construction of the VM.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};

/// Longest wait for a thread that is about to end, and between two looks.
const ENDING_MAX: Duration = Duration::from_millis(100);
const ENDING_PAUSE: Duration = Duration::from_micros(50);

/// Why the machine's process could not be made or watched.
#[derive(Debug, thiserror::Error)]
pub enum ForkError {
    /// fork failed.
    #[error("Cannot start the machine's process")]
    Fork(#[source] io::Error),
    /// The child could not be tied to its parent's life.
    #[error("Cannot tie the machine's process to its parent")]
    Tie(#[source] io::Error),
    /// The parent ended before the child was tied to it.
    #[error("The parent process is gone")]
    Orphan,
    /// The calling process has other threads, whose locks a fork would freeze for ever.
    #[error(
        "The machine's process can only be forked from a process with one thread, this one has {threads}"
    )]
    Threads {
        /// How many it has.
        threads: u64,
    },
}

/// Which side of the fork one is on.
#[derive(Debug)]
pub enum Forked {
    /// The parent, with a handle of the machine's process.
    Parent(MachineProcess),
    /// The machine's process: SIGKILL reaches it when the parent ends, however that happens.
    Machine,
}

/// The machine's process, seen from its parent.
#[derive(Debug)]
pub struct MachineProcess {
    pub(super) pid: Pid,
}

impl MachineProcess {
    /// Its id as this process sees it.
    pub fn id(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// A handle by which whoever has it may end it, whatever becomes of its id.
    ///
    /// # Errors
    /// It has been waited for, or no descriptor is left.
    pub fn handle(&self) -> io::Result<OwnedFd> {
        Ok(rustix::process::pidfd_open(self.pid, rustix::process::PidfdFlags::empty())?)
    }

    /// Waits for its end: the exit code, or minus the signal that killed it.
    ///
    /// # Errors
    /// It is not our child any more.
    pub fn wait(&self) -> io::Result<i32> {
        loop {
            match rustix::process::waitpid(Some(self.pid), WaitOptions::empty()) {
                Ok(Some((_, status))) => return Ok(code(status)),
                Ok(None) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Ends it at once.
    ///
    /// # Errors
    /// The kernel refused the signal.
    pub fn kill(&self) -> io::Result<()> {
        match rustix::process::kill_process(self.pid, Signal::KILL) {
            // It has ended on its own.
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

fn code(status: WaitStatus) -> i32 {
    status.exit_status().unwrap_or_else(|| -status.terminating_signal().unwrap_or(0))
}

/// Forks the machine's process off a process with a single thread, without a jail.
///
/// # Errors
/// See [`ForkError`]; in the machine's process an error means that it must end at once.
pub fn fork_machine() -> Result<Forked, ForkError> {
    let parent = rustix::process::getpid();
    match fork()? {
        Some(pid) => Ok(Forked::Parent(MachineProcess { pid })),
        None => {
            die_with_parent()?;
            // The parent may have died before it was asked for.
            if rustix::process::getppid() == Some(parent) {
                Ok(Forked::Machine)
            } else {
                Err(ForkError::Orphan)
            }
        }
    }
}

/// Forks: the child's id in the parent, nothing in the child.
pub(super) fn fork() -> Result<Option<Pid>, ForkError> {
    one_thread()?;
    // SAFETY: the process has one thread, so no lock is held by a thread that the child will not have.
    match unsafe { libc::fork() } {
        -1 => Err(ForkError::Fork(io::Error::last_os_error())),
        pid => Ok(Pid::from_raw(pid)),
    }
}

/// Forks into a pid namespace of the child's own, or without one where the host allows none, and tells which.
///
/// By clone(2), because unshare(2) is for all children to come: only a process with rights over the namespace that it came from can
/// take that back before the next.
pub(super) fn fork_into_pid_namespace() -> Result<(Option<Pid>, io::Result<()>), ForkError> {
    one_thread()?;
    let flags = libc::CLONE_NEWPID | libc::SIGCHLD;
    // SAFETY: without CLONE_VM the child goes on with a copy of this stack, as after fork(2); the process has one thread, so no
    // lock is held by a thread that the child will not have.
    match unsafe { libc::syscall(libc::SYS_clone, libc::c_long::from(flags), 0, 0, 0, 0) } {
        -1 => {
            let refused = io::Error::last_os_error();
            Ok((fork()?, Err(refused)))
        }
        pid => Ok((i32::try_from(pid).ok().and_then(Pid::from_raw), Ok(()))),
    }
}

fn one_thread() -> Result<(), ForkError> {
    if has_one_thread() { Ok(()) } else { Err(ForkError::Threads { threads: threads() }) }
}

/// Whether this process can be forked and jailed: it has no second thread, as far as /proc tells.
pub fn has_one_thread() -> bool {
    threads() <= 1
}

/// Waits until it is so where a thread is about to end; whether it came to that.
pub fn wait_for_one_thread() -> bool {
    let until = Instant::now() + ENDING_MAX;
    while !has_one_thread() && Instant::now() < until {
        std::thread::sleep(ENDING_PAUSE);
    }
    has_one_thread()
}

/// How many threads this process has; 0 where /proc does not tell.
fn threads() -> u64 {
    // A directory has a link from its parent, one from itself, and one from each directory in it: here one a thread.
    rustix::fs::stat("/proc/self/task").map_or(0, |task| task.st_nlink.saturating_sub(2))
}

/// Asks for SIGKILL at the parent's death. A change of user makes the kernel forget it (prctl(2), `PR_SET_PDEATHSIG`).
pub(super) fn die_with_parent() -> Result<(), ForkError> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(|e| ForkError::Tie(e.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_two_threads_is_not_forked() {
        // The test runner has a thread besides this test's.
        std::thread::scope(|scope| {
            let (stop, stopped) = std::sync::mpsc::channel::<()>();
            scope.spawn(move || stopped.recv().is_err());
            assert!(threads() >= 2 && !wait_for_one_thread());
            assert!(matches!(fork_machine(), Err(ForkError::Threads { .. })));
            drop(stop);
        });
    }
}
