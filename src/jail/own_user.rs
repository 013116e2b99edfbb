//! Giving up every right for good: a user of one's own, a user namespace, no capabilities.

use std::io;

use rustix::fs::{Gid, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};

/// Whether the calling process may set up namespaces and change its user.
pub(super) fn is_administrator() -> bool {
    let needed = CapabilitySet::SYS_ADMIN | CapabilitySet::SETUID | CapabilitySet::SETGID;
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(needed))
}

/// Enters a user namespace in which this process has every capability and is the one user it was.
///
/// # Errors
/// The host does not allow it; sysctls `user.max_user_namespaces`, `kernel.unprivileged_userns_clone` and
/// `kernel.apparmor_restrict_unprivileged_userns` decide.
pub(super) fn become_administrator_of_own_namespace() -> io::Result<()> {
    let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    new_user_namespace()?;
    // The kernel wants this before a group may be mapped (user_namespaces(7)).
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("{group} {group} 1"))
}

/// Enters a user namespace that maps nobody: this process is no one there.
///
/// # Errors
/// The host does not allow it.
pub(super) fn new_user_namespace() -> io::Result<()> {
    // SAFETY: the flag does not part descriptors that another thread uses (`CLONE_FILES`).
    Ok(unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER) }?)
}

/// Becomes `id` as a user and as its only group, and keeps the capabilities for what is left to do.
///
/// # Errors
/// The process may not, or its user namespace has no such user.
pub(super) fn become_user(id: u32) -> io::Result<()> {
    let (user, group) = (Uid::from_raw(id), Gid::from_raw(id));
    rustix::thread::set_keep_capabilities(true)?;
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(group, group, group)?;
    rustix::thread::set_thread_res_uid(user, user, user)?;
    let sets = rustix::thread::capabilities(None)?;
    Ok(rustix::thread::set_capabilities(None, CapabilitySets { effective: sets.permitted, ..sets })?)
}

/// Drops every capability from every set.
///
/// # Errors
/// The kernel refused what takes no right.
pub(super) fn drop_capabilities() -> io::Result<()> {
    for capability in CapabilitySet::all().iter() {
        // Without the right to do so the bounding set stays; no-new-privileges makes it meaningless.
        if rustix::thread::remove_capability_from_bounding_set(capability).is_err() {
            break;
        }
    }
    rustix::thread::clear_ambient_capability_set()?;
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}
