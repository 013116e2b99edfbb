//! The system calls that each kind of thread may make once its machine is built. Everything else kills the process.

use libc::c_long;

use super::list::{List, PROCESS, THREAD};

/// What an argument must be like; only its lower 32 bits are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Check {
    /// It is this.
    Is { index: u8, value: u32 },
    /// None of these bits is set.
    Without { index: u8, bits: u32 },
    /// All of these bits are set.
    With { index: u8, bits: u32 },
}

/// A system call that may be made when all checks hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Allowed {
    pub call: c_long,
    pub checks: Vec<Check>,
}

/// What any thread does: memory for itself, locks, time, its end.
const EVERYBODY: &[c_long] = &[
    libc::SYS_futex,
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_clock_gettime,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_sched_yield,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigprocmask,
    libc::SYS_sigaltstack,
    libc::SYS_getpid,
    libc::SYS_gettid,
    // The C library asks it for the size of its pools when a second thread allocates.
    libc::SYS_sched_getaffinity,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Files that are open: drives, and the pipe that ends it all.
const MAIN: &[c_long] = &[
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_ctl,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_readv,
    libc::SYS_lseek,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_getrandom,
    // Looks whether a bundle's files are still as long as they were. Not newfstatat and statx, as std does: those look at a path too,
    // whatever flag comes with it, and landlock lets everybody look.
    libc::SYS_fstat,
    libc::SYS_dup2,
    libc::SYS_dup3,
];

/// A shell is filled: its files are measured and mapped, devices get their eventfds, SIGBUS its handler.
const SHELL: &[c_long] = &[
    libc::SYS_recvmsg,
    libc::SYS_fadvise64,
    libc::SYS_preadv2,
    libc::SYS_fstatfs,
    libc::SYS_eventfd2,
    libc::SYS_epoll_create1,
    libc::SYS_rt_sigaction,
    // To be confined further.
    libc::SYS_seccomp,
];

const VCPU: &[c_long] = &[libc::SYS_getrandom];

const PAGER: &[c_long] = &[
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_readv,
    libc::SYS_lseek,
];

/// `_IO`, `_IOR`, `_IOW` and `_IOWR` of include/uapi/asm-generic/ioctl.h.
const fn ioctl(direction: u32, kind: u32, number: u32, size: u32) -> u32 {
    direction << 30 | size << 16 | kind << 8 | number
}

const KVM: u32 = 0xae;
/// `KVM_RUN`.
const KVM_RUN: u32 = ioctl(0, KVM, 0x80, 0);

/// What a save reads (Documentation/virt/kvm/api.rst), by its number: sizes differ between kernels for some.
const KVM_SAVE: [u32; 11] = [
    ioctl(2, KVM, 0x81, 144),  // KVM_GET_REGS
    ioctl(2, KVM, 0x83, 312),  // KVM_GET_SREGS
    ioctl(3, KVM, 0x88, 8),    // KVM_GET_MSRS
    ioctl(2, KVM, 0x8e, 1024), // KVM_GET_LAPIC
    ioctl(3, KVM, 0x91, 8),    // KVM_GET_CPUID2
    ioctl(2, KVM, 0x98, 4),    // KVM_GET_MP_STATE
    ioctl(2, KVM, 0x9f, 64),   // KVM_GET_VCPU_EVENTS
    ioctl(2, KVM, 0xa1, 128),  // KVM_GET_DEBUGREGS
    ioctl(2, KVM, 0xa4, 4096), // KVM_GET_XSAVE
    ioctl(2, KVM, 0xcf, 4096), // KVM_GET_XSAVE2
    ioctl(2, KVM, 0xa6, 392),  // KVM_GET_XCRS
];
/// What fills a VM, in the order of `vm::Shell::fill`.
const KVM_FILL: [u32; 27] = [
    ioctl(0, KVM, 0x03, 0),    // KVM_CHECK_EXTENSION
    ioctl(3, KVM, 0x02, 4),    // KVM_GET_MSR_INDEX_LIST
    ioctl(3, KVM, 0x05, 8),    // KVM_GET_SUPPORTED_CPUID
    ioctl(1, KVM, 0x76, 32),   // KVM_IRQFD
    ioctl(1, KVM, 0x79, 64),   // KVM_IOEVENTFD
    ioctl(0, KVM, 0xa2, 0),    // KVM_SET_TSC_KHZ
    ioctl(1, KVM, 0x90, 8),    // KVM_SET_CPUID2
    ioctl(1, KVM, 0xa5, 4096), // KVM_SET_XSAVE
    ioctl(1, KVM, 0xa7, 392),  // KVM_SET_XCRS
    ioctl(1, KVM, 0x82, 144),  // KVM_SET_REGS
    ioctl(1, KVM, 0x84, 312),  // KVM_SET_SREGS
    ioctl(1, KVM, 0x89, 8),    // KVM_SET_MSRS
    ioctl(3, KVM, 0x88, 8),    // KVM_GET_MSRS
    ioctl(1, KVM, 0x8f, 1024), // KVM_SET_LAPIC
    ioctl(1, KVM, 0x99, 4),    // KVM_SET_MP_STATE
    ioctl(1, KVM, 0xa0, 64),   // KVM_SET_VCPU_EVENTS
    ioctl(1, KVM, 0xa2, 128),  // KVM_SET_DEBUGREGS
    ioctl(0, KVM, 0xad, 0),    // KVM_KVMCLOCK_CTRL
    ioctl(1, KVM, 0xe1, 24),   // KVM_SET_DEVICE_ATTR
    ioctl(1, KVM, 0xe2, 24),   // KVM_GET_DEVICE_ATTR
    ioctl(1, KVM, 0xe3, 24),   // KVM_HAS_DEVICE_ATTR
    ioctl(2, KVM, 0x63, 520),  // KVM_SET_IRQCHIP
    ioctl(1, KVM, 0x61, 8),    // KVM_IRQ_LINE
    ioctl(1, KVM, 0x7b, 48),   // KVM_SET_CLOCK
    ioctl(2, KVM, 0x7c, 48),   // KVM_GET_CLOCK
    ioctl(3, KVM, 0xd5, 64),   // KVM_PRE_FAULT_MEMORY
    KVM_GET_TSC_KHZ,
];
/// `KVM_GET_TSC_KHZ`.
const KVM_GET_TSC_KHZ: u32 = ioctl(0, KVM, 0xa3, 0);

const UFFD: u32 = 0xaa;
/// Userfaultfd's (include/uapi/linux/userfaultfd.h) for one that is registered already: nothing is registered anew.
const UFFD_SERVE: [u32; 6] = [
    ioctl(2, UFFD, 0x02, 16), // UFFDIO_WAKE
    ioctl(3, UFFD, 0x03, 40), // UFFDIO_COPY
    ioctl(3, UFFD, 0x04, 32), // UFFDIO_ZEROPAGE
    ioctl(3, UFFD, 0x05, 40), // UFFDIO_MOVE
    ioctl(3, UFFD, 0x06, 24), // UFFDIO_WRITEPROTECT
    ioctl(3, UFFD, 0x07, 32), // UFFDIO_CONTINUE
];

const PROT_EXEC: u32 = libc::PROT_EXEC.cast_unsigned();
const MAP_ANONYMOUS: u32 = libc::MAP_ANONYMOUS.cast_unsigned();

impl List {
    fn calls(self) -> Vec<c_long> {
        match self {
            List::Main => MAIN.to_vec(),
            List::Shell => [MAIN, SHELL].concat(),
            List::Vcpu | List::SavedVcpu => VCPU.to_vec(),
            List::Pager => PAGER.to_vec(),
            List::Console | List::Prefetch => Vec::new(),
        }
    }

    fn ioctls(self) -> Vec<u32> {
        match self {
            // Its devices are served through eventfds alone.
            List::Main | List::Console | List::Prefetch => Vec::new(),
            List::Shell => KVM_FILL.to_vec(),
            List::Vcpu => vec![KVM_RUN],
            List::SavedVcpu => [KVM_RUN, KVM_GET_TSC_KHZ].into_iter().chain(KVM_SAVE).collect(),
            List::Pager => UFFD_SERVE.to_vec(),
        }
    }

    /// Everything on the list.
    pub(super) fn allowed(self) -> Vec<Allowed> {
        let plain = EVERYBODY.iter().copied().chain(self.calls());
        let plain = plain.map(|call| Allowed { call, checks: Vec::new() });
        let ioctls = self.ioctls().into_iter().map(|request| Allowed {
            call: libc::SYS_ioctl,
            checks: vec![Check::Is { index: 1, value: request }],
        });
        let further = to_confine_further().into_iter().filter(|_| self == List::Shell);
        let rest = memory(self).into_iter().chain(further).chain(descriptors());
        plain.chain(ioctls).chain(rest).chain(signals(self)).collect()
    }
}

/// Looks at a descriptor, as builds with debug assertions do before they close one, and doubles it. Nothing that changes it: an open
/// file of a bundle is shared by all its clones, and so are its flags.
fn descriptors() -> [Allowed; 3] {
    [libc::F_GETFD, libc::F_GETFL, libc::F_DUPFD_CLOEXEC].map(|command| Allowed {
        call: libc::SYS_fcntl,
        checks: vec![Check::Is { index: 1, value: command.cast_unsigned() }],
    })
}

/// What a shell does before it heeds a guest: a filter needs the first, and files may become no longer than its bundle's drives.
fn to_confine_further() -> [Allowed; 2] {
    let is = |index, value| Check::Is { index, value };
    [
        Allowed { call: libc::SYS_prctl, checks: vec![is(0, libc::PR_SET_NO_NEW_PRIVS.cast_unsigned())] },
        Allowed { call: libc::SYS_prlimit64, checks: vec![is(0, 0), is(1, libc::RLIMIT_FSIZE)] },
    ]
}

/// Memory never becomes code, and is anonymous but for a shell, which maps the files it is sent.
fn memory(list: List) -> [Allowed; 2] {
    let no_code = Check::Without { index: 2, bits: PROT_EXEC };
    let anonymous = Check::With { index: 3, bits: MAP_ANONYMOUS };
    [
        Allowed {
            call: libc::SYS_mmap,
            checks: if list == List::Shell { vec![no_code] } else { vec![no_code, anonymous] },
        },
        Allowed { call: libc::SYS_mprotect, checks: vec![no_code] },
    ]
}

/// Signals to threads of this process: the main thread's interrupt vCPUs, and any thread's may end the process after a panic.
/// What one C library does by `tgkill`, the other does by `tkill`, which does not name the process: a namespace of its own
/// keeps it from others.
fn signals(list: List) -> [Allowed; 2] {
    let is = |index, value| Check::Is { index, value };
    let (in_process, by_thread) = match list {
        List::Main | List::Shell => (vec![is(0, PROCESS)], Vec::new()),
        List::Vcpu | List::SavedVcpu | List::Pager | List::Console | List::Prefetch => {
            (vec![is(0, PROCESS), is(1, THREAD)], vec![is(0, THREAD)])
        }
    };
    [
        Allowed { call: libc::SYS_tgkill, checks: in_process },
        Allowed { call: libc::SYS_tkill, checks: by_thread },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a broken-into thread would try first.
    const FORBIDDEN: [c_long; 24] = [
        libc::SYS_open,
        libc::SYS_openat,
        libc::SYS_openat2,
        libc::SYS_stat,
        libc::SYS_newfstatat,
        libc::SYS_statx,
        libc::SYS_readlink,
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_socket,
        libc::SYS_connect,
        libc::SYS_ptrace,
        libc::SYS_mount,
        libc::SYS_clone,
        libc::SYS_clone3,
        libc::SYS_fork,
        libc::SYS_vfork,
        libc::SYS_bpf,
        libc::SYS_io_uring_setup,
        libc::SYS_process_vm_writev,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_kill,
        libc::SYS_userfaultfd,
    ];

    #[test]
    fn no_list_opens_starts_or_reaches_anything() {
        for list in List::ALL {
            for allowed in list.allowed() {
                assert!(!FORBIDDEN.contains(&allowed.call), "{list:?} {allowed:?}");
            }
        }
    }

    #[test]
    fn an_ioctl_is_always_a_certain_one() {
        for list in List::ALL {
            let ioctls = list.allowed().into_iter().filter(|allowed| allowed.call == libc::SYS_ioctl);
            assert!(
                ioctls.into_iter().all(|allowed| matches!(allowed.checks[..], [Check::Is { index: 1, .. }]))
            );
        }
    }

    #[test]
    fn numbers_of_ioctls_are_those_of_the_kernel() {
        assert_eq!(KVM_RUN, 0xae80);
        assert_eq!(ioctl(2, KVM, 0x81, 144), 0x8090_ae81);
        assert_eq!(UFFD_SERVE[1], 0xc028_aa03);
    }
}
