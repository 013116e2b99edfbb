//! The only room that speaks `kvm_ioctls`: file descriptors, capabilities, memory slots, interrupt wiring.
//!
//! It knows guest memory, and neither devices nor bundles. Which state is read and set in which order is decided in
//! `vcpu` and `vm`; this room offers each step once, checked.

// UNSAFE: memory slots, the XSAVE area and the vCPU kick are contracts with the kernel that the compiler cannot see.
#![allow(unsafe_code)]

mod kick;
mod pre_fault;
mod probe;
mod run;
mod statistics;
mod system;
mod tsc;
mod vm;

pub use kick::{KickError, KickTarget, install_kick_handler, kick};
pub use probe::{HostKind, Probe, probe};
pub use run::{Exit, KvmVcpu};
pub use statistics::FaultCount;
pub use system::{REQUIRED, System, SystemError};
pub use vm::{IrqChip, KvmVm, VmError};
