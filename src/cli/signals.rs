//! What a signal must not leave behind: the directory of an unfinished bundle, a process that was begun.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::failure::{Failure, Kind};

/// What is to be cleaned up.
enum Unfinished {
    Directory(PathBuf),
    /// A process, by a descriptor: its number may be another's by now.
    Process(OwnedFd),
}

static UNFINISHED: Mutex<Option<Unfinished>> = Mutex::new(None);

fn unfinished() -> MutexGuard<'static, Option<Unfinished>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes `directory` when the process is told to end, then ends as the signal would have.
///
/// # Errors
/// The signals cannot be taken, or the host has no room for a thread.
pub fn clean_up_on_signal(directory: PathBuf) -> Result<(), Failure> {
    *unfinished() = Some(Unfinished::Directory(directory));
    watch()
}

/// Cleans up when the process is told to end, then ends as the signal would have.
///
/// # Errors
/// The signals cannot be taken, or the host has no room for a thread.
pub fn watch() -> Result<(), Failure> {
    let failed = |e: io::Error| Failure::new(Kind::HostCannot, &e);
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(failed)?;
    let watch = move || {
        if let Some(signal) = signals.forever().next() {
            clean_up();
            signal_hook::low_level::emulate_default_handler(signal).ok();
        }
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(watch).map(drop).map_err(failed)
}

/// Begins a process that is told to end together with this one, where it is [watched](watch). A signal that comes meanwhile waits
/// until the process is known.
///
/// # Errors
/// It cannot be begun.
pub fn spawn(command: &mut Command) -> io::Result<Child> {
    let mut unfinished = unfinished();
    let mut child = command.spawn()?;
    match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
        Ok(handle) => *unfinished = Some(Unfinished::Process(handle)),
        Err(error) => {
            // Nobody could tell it to end.
            child.kill()?;
            child.wait()?;
            return Err(error.into());
        }
    }
    Ok(child)
}

/// What was unfinished is finished: the directory has its final name, the process has ended.
pub fn nothing_to_clean_up() {
    unfinished().take();
}

/// Removes what is unfinished, and ends who is.
pub fn clean_up() {
    match unfinished().take() {
        // A leftover is found and removed by the next bake to the same place.
        Some(Unfinished::Directory(directory)) => drop(std::fs::remove_dir_all(directory)),
        // One that has ended already need not be told.
        Some(Unfinished::Process(process)) => drop(pidfd_send_signal(process, Signal::TERM)),
        None => {}
    }
}
