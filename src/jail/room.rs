//! The empty room that a machine's process moves into: mount, network, IPC and UTS namespaces of which the first holds an
//! empty, read-only root directory.
//!
//! The keeper makes it by moving there itself, beside the machine's process that prepares meanwhile: making a network
//! namespace and taking the old root away are the two expensive steps of a jail, and so they are nobody's latency.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags,
};
use rustix::thread::{ThreadNameSpaceType, UnshareFlags};

/// The namespaces of a room.
const ROOM: ThreadNameSpaceType = ThreadNameSpaceType::MOUNT
    .union(ThreadNameSpaceType::NETWORK)
    .union(ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION)
    .union(ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME);

/// Moves the calling process into a room of its own, for good. Everything it needs of the file system must be open.
///
/// # Errors
/// The host does not allow it. The process may be anywhere between its old place and the room then, but nothing outside it
/// has changed.
pub(super) fn make() -> io::Result<()> {
    let flags = UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    // SAFETY: no flag parts descriptors that another thread uses (`CLONE_FILES`), and the process has one thread.
    unsafe { rustix::thread::unshare_unsafe(flags) }?;
    // Or the host would lose the mounts that are taken away below.
    rustix::mount::mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
    let root = empty_root()?;
    rustix::mount::move_mount(&root, c"", rustix::fs::CWD, c"/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    rustix::process::fchdir(&root)?;
    // The old root lies on top of the new one then (pivot_root(2), notes), from where it is taken away.
    rustix::process::pivot_root(c".", c".")?;
    rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
    Ok(rustix::process::chdir(c"/")?)
}

/// A tmpfs with nothing in it, mounted nowhere yet.
fn empty_root() -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(context.as_fd(), c"mode", c"0555")?;
    rustix::mount::fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// Moves the calling process into the room of the process behind `keeper`, a pidfd.
///
/// # Errors
/// The keeper is gone, or this process may not follow it.
pub(super) fn follow(keeper: impl AsFd) -> io::Result<()> {
    Ok(rustix::thread::move_into_thread_name_spaces(keeper.as_fd(), ROOM)?)
}
