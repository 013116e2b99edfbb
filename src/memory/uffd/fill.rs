//! Filling missing pages, whatever the kernel answers.
//!
//! The one place that calls UFFDIO_COPY and UFFDIO_ZEROPAGE. Both may do a part of the work, be told to come again, meet a
//! page that is there already, or find that the process has gone.

use std::io;
use std::time::{Duration, Instant};

use userfaultfd::{Error as CrateError, Uffd};

/// Bytes of a page.
pub(super) const PAGE: usize = 4096;
/// Longest time that the kernel may ask to come again: it does while it changes the address space. A clone whose pages cannot come is to
/// end within 100 ms.
const AGAIN_MAX: Duration = Duration::from_millis(50);
/// Pause before coming again.
const AGAIN_PAUSE: Duration = Duration::from_micros(50);

/// Why pages could not be filled.
#[derive(Debug)]
pub(super) enum FillError {
    /// The process whose memory it is has ended (ESRCH): nobody waits for the pages any more.
    Gone,
    /// Anything else.
    Refused(io::Error),
}

/// What one call came to.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// So many bytes are in place.
    Filled(usize),
    /// The first page was there already.
    Exists,
    /// Nothing was done; come again.
    Again,
    /// The process has ended.
    Gone,
    /// An errno.
    Refused(i32),
}

/// Copies `bytes`, whole pages, to the missing pages from address `to` on, and wakes whoever waits for them. Pages that are
/// there already keep their content.
pub(super) fn copy(uffd: &Uffd, to: usize, bytes: &[u8]) -> Result<(), FillError> {
    fill(uffd, to, bytes.len(), |done| {
        let from = bytes.get(done..).unwrap_or_default();
        // SAFETY: UFFDIO_COPY reads `from`, which is ours, and fills only pages that are missing from registered ranges;
        // registered are nothing but guest memory, to whose content nobody holds a reference.
        let result = unsafe { uffd.copy(from.as_ptr().cast(), (to + done) as *mut _, from.len(), true) };
        step_of(result, from.len())
    })
}

/// Maps the zero page to the missing pages of `len` bytes from address `to` on, and wakes whoever waits for them.
pub(super) fn zero(uffd: &Uffd, to: usize, len: usize) -> Result<(), FillError> {
    fill(uffd, to, len, |done| {
        // SAFETY: UFFDIO_ZEROPAGE fills only pages that are missing from registered ranges, as above.
        let result = unsafe { uffd.zeropage((to + done) as *mut _, len - done, true) };
        step_of(result, len - done)
    })
}

/// Wakes whoever waits for the page at address `at`, which is there.
pub(super) fn wake(uffd: &Uffd, at: usize) -> Result<(), FillError> {
    uffd.wake(at as *mut _, PAGE).map_err(|error| refused(step_of(Err(error), 0)))
}

fn fill(uffd: &Uffd, to: usize, len: usize, mut call: impl FnMut(usize) -> Step) -> Result<(), FillError> {
    let (mut done, mut since) = (0, None);
    while done < len {
        match call(done) {
            Step::Filled(bytes) => done += bytes,
            Step::Exists => {
                // Whoever waits for this page began to before it came: nobody else will wake him.
                wake(uffd, to + done)?;
                done += PAGE;
            }
            Step::Again => {
                if since.get_or_insert_with(Instant::now).elapsed() > AGAIN_MAX {
                    return Err(refused(Step::Again));
                }
                std::thread::sleep(AGAIN_PAUSE);
                continue;
            }
            step => return Err(refused(step)),
        }
        since = None;
    }
    Ok(())
}

fn refused(step: Step) -> FillError {
    match step {
        Step::Gone => FillError::Gone,
        Step::Refused(errno) => FillError::Refused(io::Error::from_raw_os_error(errno)),
        Step::Again => FillError::Refused(io::Error::from_raw_os_error(libc::EAGAIN)),
        Step::Exists | Step::Filled(_) => FillError::Refused(io::Error::from_raw_os_error(libc::EEXIST)),
    }
}

/// Reads the crate's answer to a call over `len` bytes.
///
/// UFFDIO_COPY returns EAGAIN in two cases: a part was copied, or nothing was and the caller must come again; then the count
/// holds the negative errno, which the crate hands out as if it were a number of bytes.
fn step_of(result: Result<usize, CrateError>, len: usize) -> Step {
    match result {
        Ok(bytes) | Err(CrateError::PartiallyCopied(bytes)) if (1..=len).contains(&bytes) => {
            Step::Filled(bytes)
        }
        Ok(_) => Step::Refused(libc::EIO),
        Err(CrateError::PartiallyCopied(count)) => {
            let errno = count.wrapping_neg();
            of_errno(i32::try_from(errno).ok().filter(|errno| *errno > 0).unwrap_or(libc::EAGAIN))
        }
        Err(
            CrateError::CopyFailed(errno)
            | CrateError::ZeropageFailed(errno)
            | CrateError::SystemError(errno),
        ) => of_errno(errno as i32),
        Err(_) => Step::Refused(libc::EIO),
    }
}

fn of_errno(errno: i32) -> Step {
    match errno {
        libc::EEXIST => Step::Exists,
        libc::EAGAIN => Step::Again,
        libc::ESRCH => Step::Gone,
        errno => Step::Refused(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_that_is_a_negative_errno_is_no_progress() {
        let again = || Err(CrateError::PartiallyCopied((-11_isize).cast_unsigned()));
        assert_eq!(step_of(again(), 1 << 30), Step::Again);
        assert_eq!(step_of(Err(CrateError::PartiallyCopied(0)), 8192), Step::Again);
        assert_eq!(step_of(Err(CrateError::PartiallyCopied(4096)), 8192), Step::Filled(4096));
        assert_eq!(step_of(Ok(8192), 8192), Step::Filled(8192));
        assert_eq!(step_of(Ok(0), 8192), Step::Refused(libc::EIO));
        let exists = (-17_isize).cast_unsigned();
        assert_eq!(step_of(Err(CrateError::PartiallyCopied(exists)), 8192), Step::Exists);
    }
}
