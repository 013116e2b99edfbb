//! Ember: a KVM microVM monitor whose normal way to start a machine is to restore it.
//!
//! One line per room; ARCHITECTURE.md says which room may use which.

pub mod boot;
pub mod bundle;
pub mod bus;
pub mod cli;
pub mod config;
pub mod devices;
pub mod failure;
pub mod faults;
pub mod function;
pub mod jail;
pub mod kvm;
pub mod memory;
pub mod rootfs;
pub mod serve;
pub mod vcpu;
pub mod vm;
