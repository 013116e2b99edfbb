//! Processes and their confinement: how a machine's process is made, what may outlive what, and how it ends at once.
//!
//! It imports nothing of ours.

// UNSAFE: fork(2) and signal handlers are contracts about threads that the compiler cannot see.
#![allow(unsafe_code)]

mod last_words;
mod process;

pub use last_words::{LastWords, watch_mapped_files};
pub use process::{ForkError, Forked, MachineProcess, fork_machine};
