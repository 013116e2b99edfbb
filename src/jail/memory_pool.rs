//! The C library's memory, where nothing can be opened.

/// Has all threads allocate from one pool. The GNU C library gives threads pools of their own, and looks into files to size them
/// and before it gives memory of one back (`/sys/devices/system/cpu/online`, `/proc/sys/vm/overcommit_memory`). To be called
/// before a second thread allocates.
pub(super) fn share_one_pool() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number; the process has one thread.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}
