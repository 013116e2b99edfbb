//! Processes and their confinement: how a machine's process is made, what may outlive what, how it ends at once, and the walls
//! around it.
//!
//! A [`Keeper`] makes machines' processes and the empty room they move into. A machine's process opens everything it
//! needs, [enters](Entry::enter) its jail, and from then on lives on descriptors; before its guest runs each of its threads
//! [confines](confine) itself to its list of system calls. docs/threat-model.md tells what each wall is for.
//!
//! It imports nothing of ours.

// UNSAFE: fork(2) and signal handlers are contracts about threads that the compiler cannot see; landlock has no safe interface;
// descriptors that others left to this process have no owner in it.
#![allow(unsafe_code)]

mod cgroup;
#[cfg(test)]
mod compile;
mod descriptors;
mod entry;
mod keeper;
mod landlock;
mod last_words;
mod list;
#[cfg(test)]
mod lists;
mod memory_pool;
mod own_user;
mod process;
mod room;
mod seccomp;
mod walls;

pub use cgroup::{BoundError, Bounds, Group, Groups, bound, memory_left, remove_ended};
pub use entry::{Entry, JailError, Order, Uids, bound_files};
pub use keeper::{Keeper, Kept};
pub use last_words::{LastWords, watch_mapped_files};
pub use list::List;
pub use process::{ForkError, Forked, MachineProcess, fork_machine, has_one_thread, wait_for_one_thread};
pub use seccomp::{SeccompError, confine};
pub use walls::{Lack, Level, Wall, Walls};
