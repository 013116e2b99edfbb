//! The system calls that neither the standard library nor rustix wraps safely: the agent's only `unsafe`.

#![allow(unsafe_code, reason = "the one place for it")]
#![allow(
    clippy::cast_possible_truncation,
    reason = "small constants, in the types that the C library gives its fields"
)]

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;

use rustix::process::Pid;

/// Who a process runs as.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Credentials {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// The C library's answer, with errno when it is negative.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Connects a vsock stream.
pub fn vsock_connect(cid: u32, port: u32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = check(unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the descriptor was just made and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: a plain structure of integers, for which all zeroes is a value.
    let mut address: libc::sockaddr_vm = unsafe { mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = cid;
    address.svm_port = port;
    let len = mem::size_of_val(&address) as libc::socklen_t;
    // SAFETY: `address` is an initialised sockaddr_vm of `len` bytes.
    check(unsafe { libc::connect(socket.as_raw_fd(), ptr::from_ref(&address).cast(), len) })?;
    Ok(socket)
}

/// The TSC of the vCPU that this runs on. Ember gives all of a machine's the same.
pub fn tsc() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and nobody has forbidden it to the agent (PR_SET_TSC).
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// `struct rand_pool_info` (linux/random.h) with room for a restore message's entropy.
#[repr(C)]
struct Pool {
    entropy_bits: libc::c_int,
    bytes: libc::c_int,
    content: [u8; guest_protocol::ENTROPY_LEN],
}

/// Mixes `entropy` into the kernel's generator and credits all of it (random(4), RNDADDENTROPY).
pub fn add_entropy(random: impl AsFd, entropy: &[u8; guest_protocol::ENTROPY_LEN]) -> io::Result<()> {
    const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
    const BYTES: libc::c_int = guest_protocol::ENTROPY_LEN as libc::c_int;
    let pool = Pool { entropy_bits: BYTES * 8, bytes: BYTES, content: *entropy };
    // SAFETY: the kernel reads two integers and as many bytes as the second says, all within `pool`.
    check(unsafe { libc::ioctl(random.as_fd().as_raw_fd(), RNDADDENTROPY, ptr::from_ref(&pool)) }).map(drop)
}

/// Makes the generator take a new key from its pool at once (random(4), RNDRESEEDCRNG).
pub fn reseed(random: impl AsFd) -> io::Result<()> {
    const RNDRESEEDCRNG: libc::c_ulong = 0x5207;
    // SAFETY: the request has no argument.
    check(unsafe { libc::ioctl(random.as_fd().as_raw_fd(), RNDRESEEDCRNG) }).map(drop)
}

/// Brings `lo` up; the kernel gives it 127.0.0.1 (netdevice(7), SIOCSIFFLAGS).
pub fn loopback_up(socket: impl AsFd) -> io::Result<()> {
    // SAFETY: a plain structure of integers and arrays, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the kernel reads an ifreq, which `request` is.
    check(unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCSIFFLAGS, ptr::from_ref(&request)) })
        .map(drop)
}

/// Has the scheduler run this process before every other as soon as it can run (sched(7), SCHED_FIFO), or like any other. The
/// processes that it starts are like any other.
pub fn run_first(first: bool) -> io::Result<()> {
    const LOWEST: libc::c_int = 1;
    // SAFETY: a plain structure of integers, for which all zeroes is a value.
    let mut parameters: libc::sched_param = unsafe { mem::zeroed() };
    let policy = if first {
        parameters.sched_priority = LOWEST;
        libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK
    } else {
        libc::SCHED_OTHER
    };
    // SAFETY: `parameters` is an initialised sched_param.
    check(unsafe { libc::sched_setscheduler(0, policy, ptr::from_ref(&parameters)) }).map(drop)
}

/// Blocks SIGCHLD and returns a descriptor that is readable when a child has ended.
pub fn child_signals() -> io::Result<OwnedFd> {
    // SAFETY: sigset_t is an array of integers.
    let mut set: libc::sigset_t = unsafe { mem::zeroed() };
    // SAFETY: `set` is a sigset_t.
    check(unsafe { libc::sigemptyset(&mut set) })?;
    // SAFETY: as above.
    check(unsafe { libc::sigaddset(&mut set, libc::SIGCHLD) })?;
    // SAFETY: `set` is initialised, and no old set is asked for.
    check(unsafe { libc::sigprocmask(libc::SIG_BLOCK, &set, ptr::null_mut()) })?;
    // SAFETY: `set` is initialised.
    let fd = check(unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) })?;
    // SAFETY: the descriptor was just made and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes `command`'s process lead a session of its own and run as `credentials`.
pub fn prepare_child(command: &mut Command, credentials: Option<Credentials>) {
    let prepare = move || {
        rustix::process::setsid()?;
        credentials.as_ref().map_or(Ok(()), become_user)
    };
    // SAFETY: the closure runs between fork and exec of a process that has one thread, and makes system calls only.
    unsafe { command.pre_exec(prepare) };
}

/// Groups first: without uid 0 they could not be changed any more.
fn become_user(credentials: &Credentials) -> io::Result<()> {
    let Credentials { uid, gid, groups } = credentials;
    // SAFETY: `groups` is an array of as many group ids as it says.
    check(unsafe { libc::setgroups(groups.len(), groups.as_ptr()) })?;
    // SAFETY: no pointers.
    check(unsafe { libc::setresgid(*gid, *gid, *gid) })?;
    // SAFETY: no pointers.
    check(unsafe { libc::setresuid(*uid, *uid, *uid) }).map(drop)
}

/// Runs `work` in a child process, which then ends.
pub fn in_child(work: impl FnOnce()) -> io::Result<Pid> {
    // SAFETY: this process has one thread, so the child finds every lock and the heap in order.
    let pid = check(unsafe { libc::fork() })?;
    if let Some(pid) = Pid::from_raw(pid) {
        return Ok(pid);
    }
    work();
    // SAFETY: ends the child without running what the parent has registered for its own end.
    unsafe { libc::_exit(0) }
}

/// Takes `len` bytes of memory that the kernel has just zeroed, until this process ends.
pub fn take_zeroed(len: usize) -> io::Result<()> {
    let (protection, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
    // SAFETY: a new mapping, at an address of the kernel's choice.
    let address = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, -1, 0) };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the range is the mapping just made, which nobody else knows of.
    check(unsafe { libc::madvise(address, len, libc::MADV_POPULATE_WRITE) }).map(drop)
}
