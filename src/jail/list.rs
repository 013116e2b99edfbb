//! The kinds of threads that there is a list of system calls for. What is on each stands in `lists`, and is compiled when Ember is
//! built.

/// Which thread a list is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum List {
    /// The main thread of a jailed machine: devices, control stream, answer.
    Main,
    /// The main thread of a shell that waits for a bundle: what [`Main`](Self::Main) may do, receiving descriptors, mapping files
    /// that came so, and what fills a VM. It confines itself to `Main` before it heeds a guest.
    Shell,
    /// A vCPU of a jailed machine.
    Vcpu,
    /// A vCPU whose state will be saved: the machine is to become a bundle.
    SavedVcpu,
    /// A thread that serves page faults by userfaultfd.
    Pager,
    /// The thread that shows the guest's console.
    Console,
    /// The thread that copies pages beside the guest.
    Prefetch,
}

impl List {
    /// Every list.
    #[cfg_attr(not(test), allow(dead_code, reason = "build.rs compiles them all"))]
    pub(super) const ALL: [List; 7] =
        [List::Main, List::Shell, List::Vcpu, List::SavedVcpu, List::Pager, List::Console, List::Prefetch];
}

/// Stands for the process's id, which nobody knows when the lists are compiled. No id is that high: `kernel.pid_max` is at most
/// 4 194 304.
pub(super) const PROCESS: u32 = u32::MAX;
/// Stands for the id of the thread that confines itself.
pub(super) const THREAD: u32 = u32::MAX - 1;
