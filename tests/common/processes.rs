//! Which processes a command has left.

use std::fs;
use std::path::Path;
use std::process::Child;

use rustix::process::{Pid, Signal};

use super::wait_until;

/// Ids of the processes of a group that still do something: zombies only wait for their parent.
pub fn alive_in_group(group: u32) -> Vec<i32> {
    let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        (group_of(pid)? == group && has_living_thread(pid)).then_some(pid)
    });
    processes.collect()
}

/// `proc_pid_stat(5)`: behind the name in parentheses, state, parent, process group.
fn group_of(pid: i32) -> Option<u32> {
    fields(&format!("/proc/{pid}/stat"))?.get(2)?.parse().ok()
}

/// Whether a process still does something, be it only to give up what it had.
pub fn has_living_thread(pid: i32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    threads.flatten().any(|thread| {
        let fields = fields(&thread.path().join("stat").to_string_lossy());
        fields.is_some_and(|fields| !["Z", "X"].contains(&fields[0].as_str()))
    })
}

fn fields(path: &str) -> Option<Vec<String>> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.rsplit_once(')')?.1.split_whitespace().map(str::to_owned).collect())
}

/// Waits until a command started by `start` has ended with everything it began.
#[track_caller]
pub fn wait_until_gone(group: u32) {
    wait_until("every process of the command is gone", || alive_in_group(group).is_empty());
}

/// Waits until `ember run` has its machine's process, and gives its id.
#[track_caller]
pub fn machine_of(parent: &Child) -> i32 {
    let own = i32::try_from(parent.id()).unwrap();
    let mut machine = None;
    wait_until("the machine's process runs its guest", || {
        // Its vCPU has a thread only once the machine is built.
        let others = alive_in_group(parent.id()).into_iter().filter(|pid| *pid != own);
        machine = others.into_iter().find(|pid| threads(*pid) > 1);
        machine.is_some()
    });
    machine.unwrap()
}

/// Waits until somebody in a group runs a guest, however many processes are between, and gives its id.
#[track_caller]
pub fn runs_guest_in(group: u32) -> i32 {
    let mut machine = None;
    wait_until("a guest runs", || {
        machine = alive_in_group(group).into_iter().find(|pid| vcpu_of(*pid).is_some());
        machine.is_some()
    });
    machine.unwrap()
}

/// The thread of a process's first vCPU.
pub fn vcpu_of(pid: i32) -> Option<i32> {
    let name = |thread: &fs::DirEntry| fs::read_to_string(thread.path().join("comm")).unwrap_or_default();
    let mut threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    let vcpu = threads.find(|thread| name(thread).trim_end() == "vcpu0")?;
    vcpu.file_name().to_str()?.parse().ok()
}

fn threads(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

/// Sends a signal to one process.
pub fn signal(pid: i32, signal: Signal) {
    rustix::process::kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// Whether a link in /proc/PID/fd leads to a file that never had a name, as a clone's copy of a drive. The kernel calls it by its number.
pub fn is_nameless(target: &str) -> bool {
    Path::new(target).file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"#"))
}
