//! Descriptors that whoever started this program left open to it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::FdFlags;

/// Standard input, output and error.
const STANDARD: RawFd = 2;

/// Closes every inherited descriptor but standard output and error; reading standard input gives its end.
///
/// What is inherited has come through an exec and so is not closed by one, while everything that was opened here so far is
/// (`FD_CLOEXEC`): that is how the two are told apart. To be called while /proc is there and before descriptors are made
/// that an exec would not close, such as eventfds.
///
/// # Errors
/// There is no /proc, or no `null`.
pub(super) fn close_inherited(null: BorrowedFd<'_>) -> io::Result<()> {
    rustix::stdio::dup2_stdin(null)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(c"/proc/self/fd", flags, Mode::empty())?;
    for entry in rustix::fs::Dir::read_from(folder.as_fd())? {
        let entry = entry?;
        let number = entry.file_name().to_str().ok().and_then(|name| name.parse::<RawFd>().ok());
        if let Some(number) = number.filter(|number| *number > STANDARD) {
            close_if_inherited(number);
        }
    }
    Ok(())
}

fn close_if_inherited(number: RawFd) {
    // SAFETY: read-only look at a number; where nothing is open behind it the kernel says so.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    let inherited = rustix::io::fcntl_getfd(borrowed).is_ok_and(|flags| !flags.contains(FdFlags::CLOEXEC));
    if inherited {
        // SAFETY: it came through an exec, so nothing in this program owns it.
        unsafe { rustix::io::close(borrowed.as_raw_fd()) };
    }
}
