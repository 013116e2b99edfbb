//! userfaultfd: whether this host lets a process serve its own guest's page faults.

use std::io;

use userfaultfd::{FeatureFlags, IoctlFlags, UffdBuilder};

/// Why page faults cannot be served from user space.
#[derive(Debug, thiserror::Error)]
pub enum LazyError {
    /// The kernel gave no descriptor.
    #[error(
        "userfaultfd is not available to this user; allow it with `chmod 666 /dev/userfaultfd` or `sysctl vm.unprivileged_userfaultfd=1`"
    )]
    Unavailable(#[source] io::Error),
}

/// Tries to open a userfaultfd that also reports the faults of KVM, which come from kernel mode.
///
/// # Errors
/// The host does not allow it to this user, or its kernel has none.
pub fn lazy_paging() -> Result<(), LazyError> {
    UffdBuilder::new()
        .close_on_exec(true)
        .non_blocking(true)
        // KVM touches guest memory in kernel mode: a descriptor for user mode only would leave its faults unserved.
        .user_mode_only(false)
        .require_features(FeatureFlags::empty())
        .require_ioctls(IoctlFlags::empty())
        .create()
        .map(drop)
        .map_err(|error| LazyError::Unavailable(io::Error::other(error)))
}
