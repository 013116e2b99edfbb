//! Whether processes wait: a function is only frozen where it will go on from, not on its way there.

use std::collections::VecDeque;
use std::fs;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Pid;

use crate::process::link_is;

/// Processes that are looked at below one.
const FAMILY_MAX: usize = 64;

/// System calls of x86-64 that read from the descriptor in an argument, and which argument that is: read, pread64, readv, recvfrom,
/// recvmsg, sendfile, splice.
const READS: [(u64, usize); 7] = [(0, 0), (17, 0), (19, 0), (45, 0), (47, 0), (40, 1), (275, 0)];
/// System calls of x86-64 that wait for any of several descriptors: poll, select, epoll_wait, pselect6, ppoll, epoll_pwait,
/// io_uring_enter, epoll_pwait2.
const WAITS: [u64; 8] = [7, 23, 232, 270, 271, 281, 426, 441];

/// Whether `leader` or a descendant waits for the other end of `stdin`.
pub fn reads_stdin(leader: Pid, stdin: BorrowedFd<'_>) -> bool {
    let Ok(stat) = rustix::fs::fstat(stdin) else { return false };
    let pipe = format!("pipe:[{}]", stat.st_ino);
    family(leader.as_raw_nonzero().get()).into_iter().any(|pid| process_reads(pid, &pipe))
}

/// A process and its descendants, parents first.
fn family(leader: i32) -> Vec<i32> {
    let mut found = Vec::new();
    let mut next = VecDeque::from([leader]);
    while let Some(pid) = next.pop_front().filter(|_| found.len() < FAMILY_MAX) {
        found.push(pid);
        for thread in threads(pid) {
            let children =
                fs::read_to_string(format!("/proc/{pid}/task/{thread}/children")).unwrap_or_default();
            next.extend(children.split_whitespace().filter_map(|child| child.parse::<i32>().ok()));
        }
    }
    found
}

fn threads(pid: i32) -> Vec<i32> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn process_reads(pid: i32, pipe: &str) -> bool {
    let is_pipe = |fd: u64| link_is(Path::new(&format!("/proc/{pid}/fd/{fd}")), pipe);
    threads(pid).into_iter().any(|thread| {
        match fs::read_to_string(format!("/proc/{pid}/task/{thread}/syscall")) {
            Ok(line) => waits_for(&line, is_pipe),
            // A kernel without CONFIG_HAVE_ARCH_TRACEHOOK: asleep with the pipe open is the best that can be known.
            Err(_) => is_asleep(pid) && is_pipe(0),
        }
    })
}

/// Whether a line of /proc/PID/syscall (proc(5)) tells of a wait for a descriptor that `is_pipe`.
fn waits_for(line: &str, is_pipe: impl Fn(u64) -> bool) -> bool {
    let mut fields = line.split_whitespace();
    let Some(number) = fields.next().and_then(|number| number.parse::<u64>().ok()) else { return false };
    if WAITS.contains(&number) {
        return is_pipe(0);
    }
    let Some((_, argument)) = READS.into_iter().find(|(read, _)| *read == number) else { return false };
    let fd = fields.nth(argument).and_then(|fd| u64::from_str_radix(fd.trim_start_matches("0x"), 16).ok());
    fd.is_some_and(is_pipe)
}

fn is_asleep(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('S'))
}

/// Waits until nothing but this process wants to run, for a few looks in a row, or `limit` is over.
pub fn wait_for_idle(limit: Duration) {
    const LOOKS: u32 = 5;
    let end = Instant::now() + limit;
    let mut quiet = 0;
    while quiet < LOOKS && Instant::now() < end {
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        quiet = if runnable(&load) == Some(1) { quiet + 1 } else { 0 };
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The number before the slash in the fourth field of /proc/loadavg (proc(5)).
fn runnable(load: &str) -> Option<u64> {
    load.split_whitespace().nth(3)?.split_once('/')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_for_standard_input_is_told_from_other_waits() {
        let is_pipe = |fd| fd == 0;
        for (line, waits) in [
            ("0 0x0 0x7f00 0x20000 0x1 0x2 0x3 0x7ffe 0x7faa", true),
            ("0 0x3 0x7f00 0x20000 0x1 0x2 0x3 0x7ffe 0x7faa", false),
            ("40 0x1 0x0 0x0 0x1000 0x2 0x3 0x7ffe 0x7faa", true),
            ("7 0x7f00 0x2 0xffff 0x1 0x2 0x3 0x7ffe 0x7faa", true),
            ("61 0x0 0x7f00 0x0 0x0 0x2 0x3 0x7ffe 0x7faa", false),
            ("-1 0x7ffe 0x7faa", false),
            ("running", false),
            ("", false),
        ] {
            assert_eq!(waits_for(line, is_pipe), waits, "{line}");
        }
        assert!(!waits_for("7 0x0", |_| false));
    }

    #[test]
    fn the_runnable_processes_are_read_from_the_load() {
        assert_eq!(runnable("0.20 0.18 0.12 1/80 11206\n"), Some(1));
        assert_eq!(runnable("0.20"), None);
    }

    #[test]
    fn a_process_that_reads_a_pipe_is_found_below_a_shell() {
        use std::process::{Command, Stdio};
        let mut shell = Command::new("sh").args(["-c", "cat; true"]).stdin(Stdio::piped()).spawn().unwrap();
        let pid = Pid::from_child(&shell);
        let stdin = shell.stdin.take().unwrap();
        let end = Instant::now() + Duration::from_secs(10);
        while !reads_stdin(pid, std::os::fd::AsFd::as_fd(&stdin)) {
            assert!(Instant::now() < end);
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(stdin);
        assert!(shell.wait().unwrap().success());
    }
}
