//! Landlock (Documentation/userspace-api/landlock.rst): no path can be opened, no TCP port bound or connected, and nothing
//! outside signalled or reached through an abstract socket.
//!
//! A ruleset without rules denies everything it handles, so two system calls do and no descriptor of the file system is
//! needed. What is open stays usable.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `struct landlock_ruleset_attr` (include/uapi/linux/landlock.h).
#[repr(C)]
#[derive(Debug, Default)]
struct Ruleset {
    access_fs: u64,
    access_net: u64,
    scoped: u64,
}

/// `LANDLOCK_CREATE_RULESET_VERSION`.
const ASK_VERSION: u32 = 1;

impl Ruleset {
    /// Everything that this version of the interface can deny.
    fn of_version(version: i64) -> Ruleset {
        let file_system = match version {
            ..1 => 0,
            1 => 13,
            2 => 14,
            3 | 4 => 15,
            5.. => 16,
        };
        Ruleset {
            access_fs: (1 << file_system) - 1,
            access_net: if version >= 4 { 0b11 } else { 0 },
            scoped: if version >= 6 { 0b11 } else { 0 },
        }
    }

    /// Older kernels know a shorter structure and refuse longer ones that are not zero behind it.
    fn size(version: i64) -> usize {
        match version {
            ..4 => 8,
            4 | 5 => 16,
            6.. => 24,
        }
    }
}

/// Denies everything to the calling thread, which must have no-new-privileges, and to the threads it starts.
///
/// # Errors
/// The kernel has no landlock.
pub(super) fn deny_everything() -> io::Result<()> {
    let version = ask(std::ptr::null(), 0, ASK_VERSION)?;
    let ruleset = Ruleset::of_version(version);
    let raw = ask(&raw const ruleset, Ruleset::size(version), 0)?;
    let raw = i32::try_from(raw).map_err(io::Error::other)?;
    // SAFETY: the kernel has just given this descriptor to us alone.
    let ruleset = unsafe { OwnedFd::from_raw_fd(raw) };
    // SAFETY: takes a descriptor and flags, touches no memory of ours.
    let outcome = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn ask(ruleset: *const Ruleset, size: usize, flags: u32) -> io::Result<i64> {
    // SAFETY: the pointer is null, or to a structure of at least `size` bytes that outlives the call.
    let outcome = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, ruleset, size, flags) };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(outcome) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_is_asked_for_what_it_knows() {
        assert_eq!(Ruleset::of_version(1).access_fs, 0x1fff);
        assert_eq!(Ruleset::of_version(5).access_fs, 0xffff);
        assert_eq!((Ruleset::of_version(3).access_net, Ruleset::of_version(4).access_net), (0, 3));
        assert_eq!((Ruleset::of_version(5).scoped, Ruleset::of_version(6).scoped), (0, 3));
        assert_eq!(Ruleset::size(7), size_of::<Ruleset>());
    }
}
