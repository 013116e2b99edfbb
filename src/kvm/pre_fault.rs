//! Mapping guest memory before the guest touches it (Documentation/virt/kvm/api.rst, 4.143 KVM_PRE_FAULT_MEMORY, Linux 6.11).

use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

use super::run::KvmVcpu;
use crate::memory::GuestTables;

/// `struct kvm_pre_fault_memory`. The kernel moves `gpa` and `size` on as far as it gets.
#[repr(C)]
struct PreFault {
    gpa: u64,
    size: u64,
    flags: u64,
    padding: [u64; 5],
}

/// `_IOWR(KVMIO, 0xd5, struct kvm_pre_fault_memory)`.
const KVM_PRE_FAULT_MEMORY: libc::c_ulong = 0xc040_aed5;
/// Most times that the call is made for one range: it ends early for signals, and when other work is to be done.
const TRIES: usize = 64;

impl GuestTables for KvmVcpu {
    /// What is writable in this process's tables becomes writable in the guest's. KVM keeps one set of tables for all vCPUs.
    fn map(&self, range: Range<u64>) -> io::Result<()> {
        let size = range.end.saturating_sub(range.start);
        let mut asked = PreFault { gpa: range.start, size, flags: 0, padding: [0; 5] };
        for _ in 0..TRIES {
            // SAFETY: the kernel reads and writes the structure it is given, and nothing else of ours.
            let done = unsafe { libc::ioctl(self.fd.as_raw_fd(), KVM_PRE_FAULT_MEMORY, &raw mut asked) };
            let error = io::Error::last_os_error();
            match (done, error.raw_os_error()) {
                (0, _) if asked.size == 0 => return Ok(()),
                (0, _) | (_, Some(libc::EINTR | libc::EAGAIN)) => {}
                _ => return Err(error),
            }
        }
        Err(io::ErrorKind::Interrupted.into())
    }
}
