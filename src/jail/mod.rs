//! Processes and their confinement: how a machine's process is made, and what may outlive what.
//!
//! It imports nothing of ours.

// UNSAFE: fork(2) is a contract about threads that the compiler cannot see.
#![allow(unsafe_code)]

mod process;

pub use process::{ForkError, Forked, MachineProcess, fork_machine};
