//! Guest memory: addresses, layout, mapping.
//!
//! This room knows neither KVM nor bundles nor devices: it gets open files and ranges.

pub mod layout;

pub use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryError};

/// All of a guest's RAM, cheap to clone (regions are shared).
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;
