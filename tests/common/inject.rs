//! Making a thread of another process call the kernel, as whoever has broken into it would.

use std::time::Duration;

use nix::libc::{c_long, user_regs_struct};
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// A system call and its arguments; those that are not named are 0.
#[derive(Debug, Clone)]
#[allow(dead_code, reason = "the name is for who reads of a failure")]
pub struct Call {
    pub name: &'static str,
    pub number: c_long,
    pub arguments: Vec<u64>,
}

/// What became of it.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The call was made and returned this.
    Returned(i64),
    /// The signal that killed the process.
    Killed(i32),
}

/// The `syscall` instruction.
const SYSCALL: [u8; 2] = [0x0f, 0x05];

/// Has a thread that waits in a system call, as all of ours do, make another one, then go on as if nothing had been.
#[track_caller]
pub fn inject(thread: i32, call: &Call) -> Outcome {
    let thread = Pid::from_raw(thread);
    ptrace::seize(thread, ptrace::Options::empty()).unwrap();
    let before = stopped_in_call(thread);
    let calling = calling(&before, call);
    ptrace::setregs(thread, calling).unwrap();
    loop {
        ptrace::step(thread, None).unwrap();
        match wait(thread) {
            WaitStatus::Signaled(_, signal, _) => return Outcome::Killed(signal as i32),
            // A thread that goes with its process tells an end of its own.
            WaitStatus::Exited(_, code) => return Outcome::Killed(code),
            _ => {}
        }
        let after = ptrace::getregs(thread).unwrap();
        // It may have stopped once more for having been interrupted.
        if after.rip != calling.rip {
            ptrace::setregs(thread, before).unwrap();
            ptrace::detach(thread, None).unwrap();
            return Outcome::Returned(after.rax.cast_signed());
        }
    }
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
