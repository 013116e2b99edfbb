//! Getting a userfaultfd: from a descriptor that a launcher passed in, from `/dev/userfaultfd`, or by the system call.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};

use userfaultfd::Uffd;

/// `USERFAULTFD_IOC_NEW`, `UFFDIO_API` and `UFFD_API` of `include/uapi/linux/userfaultfd.h`.
const USERFAULTFD_IOC_NEW: libc::c_ulong = 0xaa00;
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFD_API: u64 = 0xaa;

/// The device. Who may open it may serve faults of kernel mode too, which KVM's are.
const DEVICE: &str = "/dev/userfaultfd";

/// `struct uffdio_api`.
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// Why page faults cannot be served from user space.
#[derive(Debug, thiserror::Error)]
pub enum UffdError {
    /// Neither the device nor the system call gave a descriptor.
    #[error(
        "userfaultfd is not available to this user; allow it with `chmod 666 /dev/userfaultfd` or `sysctl vm.unprivileged_userfaultfd=1`"
    )]
    Unavailable(#[source] io::Error),
    /// What a launcher passed in is not the device.
    #[error(
        "Descriptor {fd} is not /dev/userfaultfd; pass the open device itself, because a userfaultfd serves only the process that made it"
    )]
    Descriptor {
        /// Its number.
        fd: RawFd,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel's userfaultfd is another.
    #[error("This kernel's userfaultfd cannot be used")]
    Api(#[source] io::Error),
}

/// Where a userfaultfd comes from.
#[derive(Debug, Default)]
pub enum Door {
    /// `/dev/userfaultfd`, else the system call.
    #[default]
    Host,
    /// An open descriptor of `/dev/userfaultfd`, for a process that may open nothing any more. It cannot be a userfaultfd: that
    /// belongs to the address space that made it, which is never this one.
    Device(RawFd),
    /// One that this process made beforehand.
    Made(Uffd),
}

impl Door {
    /// Makes the userfaultfd now, for a process that will have no right to it later.
    ///
    /// # Errors
    /// See [`UffdError`].
    pub fn made(self) -> Result<Door, UffdError> {
        make(self).map(Door::Made)
    }
}

/// A descriptor that is also told of the faults of KVM, which come from kernel mode. It is non-blocking, as poll(2) demands,
/// and closed on exec.
///
/// # Errors
/// See [`UffdError`].
pub(super) fn open(door: Door) -> Result<Uffd, UffdError> {
    open_with(door, 0)
}

/// The same with optional features (`UFFD_FEATURE_*`).
pub(super) fn open_with(door: Door, features: u64) -> Result<Uffd, UffdError> {
    let uffd = make(door)?;
    let mut api = Api { api: UFFD_API, features, ioctls: 0 };
    // SAFETY: UFFDIO_API reads and writes one `struct uffdio_api`, which `api` is.
    match unsafe { libc::ioctl(uffd.as_raw_fd(), UFFDIO_API, &raw mut api) } {
        -1 => Err(UffdError::Api(io::Error::last_os_error())),
        _ => Ok(uffd),
    }
}

fn make(door: Door) -> Result<Uffd, UffdError> {
    match door {
        Door::Device(fd) => from_device(fd).map_err(|source| UffdError::Descriptor { fd, source }),
        // The crate's builder does not try the system call where the device is there but closed to this user.
        Door::Host => from_host().or_else(|_| from_system_call()).map_err(UffdError::Unavailable),
        Door::Made(uffd) => Ok(uffd),
    }
}

/// Tells whether a userfaultfd can be had that serves KVM's faults.
///
/// # Errors
/// See [`UffdError`].
pub fn lazy_paging() -> Result<(), UffdError> {
    open(Door::Host).map(drop)
}

fn from_host() -> io::Result<Uffd> {
    from_device(File::options().read(true).write(true).open(DEVICE)?.as_raw_fd())
}

fn from_device(fd: RawFd) -> io::Result<Uffd> {
    // SAFETY: the ioctl takes flags and touches no memory of ours; whatever `fd` is, it refuses or makes a descriptor.
    adopt(unsafe { libc::ioctl(fd, USERFAULTFD_IOC_NEW, FLAGS) })
}

fn from_system_call() -> io::Result<Uffd> {
    // SAFETY: userfaultfd(2) takes flags and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, FLAGS) };
    adopt(i32::try_from(fd).unwrap_or(-1))
}

const FLAGS: libc::c_int = libc::O_CLOEXEC | libc::O_NONBLOCK;

/// Takes what a system call returned.
fn adopt(fd: RawFd) -> io::Result<Uffd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, and nobody else has it.
    Ok(unsafe { Uffd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_and_the_system_call_both_give_one() {
        // As root both must work, where the kernel has the device (6.1 and newer).
        if rustix::process::geteuid().is_root() {
            from_system_call().unwrap();
            if let Ok(device) = File::options().read(true).write(true).open(DEVICE) {
                from_host().unwrap();
                open(Door::Device(device.as_raw_fd())).unwrap();
            }
            open(Door::Host).unwrap();
        }
    }

    #[test]
    fn what_is_not_the_device_is_refused() {
        let file = tempfile::tempfile().unwrap();
        for fd in [file.as_raw_fd(), -1, 1_000_000] {
            let error = open(Door::Device(fd)).unwrap_err();
            assert!(matches!(error, UffdError::Descriptor { fd: of, .. } if of == fd), "{error}");
        }
    }

    #[test]
    fn a_userfaultfd_that_was_passed_in_is_refused() {
        if let Ok(other) = open(Door::Host) {
            assert!(matches!(open(Door::Device(other.as_raw_fd())), Err(UffdError::Descriptor { .. })));
        }
    }
}
