//! Making a thread of another process call the kernel, as whoever has broken into it would.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use nix::libc::{self, c_long, user_regs_struct};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// A system call and its arguments; those that are not named are 0.
#[derive(Debug, Clone)]
#[allow(dead_code, reason = "the name is for who reads of a failure")]
pub struct Call {
    pub name: &'static str,
    pub number: c_long,
    pub arguments: Vec<u64>,
    pub by: By,
}

/// How the kernel is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// As 64-bit programs do.
    Syscall,
    /// As 32-bit programs do, by `int 0x80`, which 64-bit ones may use too.
    Interrupt,
}

/// What became of it.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The call was made and returned this.
    Returned(i64),
    /// The signal that killed the process.
    Killed(i32),
    /// This kernel takes no such calls.
    Unknown,
}

/// The `syscall` instruction.
const SYSCALL: [u8; 2] = [0x0f, 0x05];
/// `int 0x80`, which is as long.
const INTERRUPT: [u8; 2] = [0xcd, 0x80];

/// Calls that whoever has taken over a thread would try.
pub fn forbidden() -> Vec<Call> {
    let call = |name, number, arguments: &[u64]| Call {
        name,
        number,
        arguments: arguments.to_vec(),
        by: By::Syscall,
    };
    let here = u64::from(libc::AT_FDCWD.cast_unsigned());
    let of_descriptor = u64::from(libc::AT_EMPTY_PATH.cast_unsigned());
    let bits = |bits: libc::c_int| u64::try_from(bits).unwrap();
    let [child, exec, private, anonymous] =
        [libc::SIGCHLD, libc::PROT_EXEC, libc::MAP_PRIVATE, libc::MAP_ANONYMOUS].map(bits);
    let [set_flags, set_owner] = [libc::F_SETFL, libc::F_SETOWN].map(bits);
    let inet = [u64::try_from(libc::AF_INET).unwrap(), u64::try_from(libc::SOCK_STREAM).unwrap()];
    vec![
        call("open", libc::SYS_open, &[]),
        call("openat", libc::SYS_openat, &[here]),
        call("openat2", libc::SYS_openat2, &[here]),
        call("open_by_handle_at", libc::SYS_open_by_handle_at, &[here]),
        call("creat", libc::SYS_creat, &[]),
        call("stat", libc::SYS_stat, &[]),
        call("newfstatat", libc::SYS_newfstatat, &[here, 0, 0, of_descriptor]),
        call("statx", libc::SYS_statx, &[here, 0, of_descriptor]),
        call("readlink", libc::SYS_readlink, &[]),
        call("memfd_create", libc::SYS_memfd_create, &[]),
        call("execve", libc::SYS_execve, &[]),
        call("execveat", libc::SYS_execveat, &[here]),
        call("socket", libc::SYS_socket, &inet),
        call("socketpair", libc::SYS_socketpair, &inet),
        call("sendmsg", libc::SYS_sendmsg, &[]),
        call("ptrace", libc::SYS_ptrace, &[]),
        call("process_vm_readv", libc::SYS_process_vm_readv, &[1]),
        call("process_vm_writev", libc::SYS_process_vm_writev, &[1]),
        call("pidfd_open", libc::SYS_pidfd_open, &[1]),
        call("kill", libc::SYS_kill, &[1]),
        call("a signal to another process", libc::SYS_tgkill, &[4711, 4711]),
        call("mount", libc::SYS_mount, &[]),
        call("fsopen", libc::SYS_fsopen, &[]),
        call("chroot", libc::SYS_chroot, &[]),
        call("clone of a process", libc::SYS_clone, &[child]),
        call("clone3", libc::SYS_clone3, &[]),
        call("fork", libc::SYS_fork, &[]),
        call("vfork", libc::SYS_vfork, &[]),
        call("unshare", libc::SYS_unshare, &[u64::try_from(libc::CLONE_NEWUSER).unwrap()]),
        call("setns", libc::SYS_setns, &[]),
        call("setuid", libc::SYS_setuid, &[]),
        call("prctl", libc::SYS_prctl, &[]),
        call("seccomp", libc::SYS_seccomp, &[]),
        call("bpf", libc::SYS_bpf, &[]),
        call("perf_event_open", libc::SYS_perf_event_open, &[]),
        call("keyctl", libc::SYS_keyctl, &[]),
        call("userfaultfd", libc::SYS_userfaultfd, &[]),
        call("io_uring_setup", libc::SYS_io_uring_setup, &[1]),
        call("memory that is code", libc::SYS_mmap, &[0, 4096, exec, private | anonymous]),
        call("memory that becomes code", libc::SYS_mprotect, &[0, 4096, exec]),
        call("mapping of a file", libc::SYS_mmap, &[0, 4096, 1, private]),
        call("KVM_CREATE_VM", libc::SYS_ioctl, &[0, 0xae01]),
        call("KVM_SET_USER_MEMORY_REGION", libc::SYS_ioctl, &[0, 0x4020_ae46]),
        call("flags of what others have open too", libc::SYS_fcntl, &[0, set_flags, 0]),
        call("a signal when something is ready", libc::SYS_fcntl, &[0, set_owner, 4711]),
        call("TIOCSTI", libc::SYS_ioctl, &[0, 0x5412]),
        call("a call of an x32 program", libc::SYS_getpid | 0x4000_0000, &[]),
        // 20 is its number there.
        Call { by: By::Interrupt, ..call("getpid of a 32-bit program", 20, &[]) },
    ]
}

/// Has a thread that waits in a system call, as all of ours do, make another one, then go on as if nothing had been.
#[track_caller]
pub fn inject(thread: i32, call: &Call) -> Outcome {
    let thread = Pid::from_raw(thread);
    ptrace::seize(thread, ptrace::Options::empty()).unwrap();
    let before = stopped_in_call(thread);
    let calling = calling(&before, call);
    ptrace::setregs(thread, calling).unwrap();
    if call.by == By::Interrupt {
        set_code(thread, calling.rip, INTERRUPT);
    }
    loop {
        ptrace::step(thread, None).unwrap();
        match wait(thread) {
            WaitStatus::Signaled(_, signal, _) => return Outcome::Killed(signal as i32),
            // A thread that goes with its process tells an end of its own.
            WaitStatus::Exited(_, code) => return Outcome::Killed(code),
            // A kernel without 32-bit programs refuses the instruction itself.
            WaitStatus::Stopped(_, Signal::SIGSEGV) if call.by == By::Interrupt => {
                go_on(thread, &before);
                return Outcome::Unknown;
            }
            _ => {}
        }
        let after = ptrace::getregs(thread).unwrap();
        // It may have stopped once more for having been interrupted.
        if after.rip != calling.rip {
            go_on(thread, &before);
            return Outcome::Returned(after.rax.cast_signed());
        }
    }
}

/// Lets it be as it was.
fn go_on(thread: Pid, before: &user_regs_struct) {
    set_code(thread, before.rip - SYSCALL.len() as u64, SYSCALL);
    ptrace::setregs(thread, *before).unwrap();
    ptrace::detach(thread, None).unwrap();
}

/// Writes an instruction over another, in this process's copy of the code only.
fn set_code(thread: Pid, at: u64, code: [u8; 2]) {
    let memory = File::options().write(true).open(format!("/proc/{thread}/mem")).unwrap();
    memory.write_all_at(&code, at).unwrap();
}

/// Stops it where it waits: what it was doing is not a call while it serves something.
fn stopped_in_call(thread: Pid) -> user_regs_struct {
    loop {
        ptrace::interrupt(thread).unwrap();
        wait(thread);
        let registers = ptrace::getregs(thread).unwrap();
        // A fault of the processor leaves something in that register too.
        if registers.orig_rax != u64::MAX && code_before(thread, registers.rip) == SYSCALL {
            return registers;
        }
        ptrace::cont(thread, None).unwrap();
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn code_before(thread: Pid, rip: u64) -> [u8; 2] {
    let word = ptrace::read(thread, (rip - SYSCALL.len() as u64) as ptrace::AddressType).unwrap();
    let [first, second, ..] = word.to_le_bytes();
    [first, second]
}

fn wait(thread: Pid) -> WaitStatus {
    waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap()
}

fn calling(before: &user_regs_struct, call: &Call) -> user_regs_struct {
    let argument = |index: usize| call.arguments.get(index).copied().unwrap_or(0);
    user_regs_struct {
        // Where it waits the instruction that brought it there is the one before.
        rip: before.rip - SYSCALL.len() as u64,
        rax: call.number.cast_unsigned(),
        // Or the kernel would begin the interrupted call anew.
        orig_rax: u64::MAX,
        rdi: argument(0),
        rsi: argument(1),
        rdx: argument(2),
        r10: argument(3),
        r8: argument(4),
        r9: argument(5),
        ..*before
    }
}
