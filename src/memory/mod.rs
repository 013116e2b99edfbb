//! Guest memory: addresses, layout, mapping.
//!
//! This room knows neither KVM nor bundles nor devices: it gets open files and ranges.

// UNSAFE: mapping files and asking for residency are contracts with the kernel that the compiler cannot see.
#![allow(unsafe_code)]

pub mod layout;
mod lazy;
mod mapping;

pub use lazy::{LazyError, lazy_paging};
pub use mapping::{MapError, anonymous, copy_on_write, visit_content};
pub use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryError};

/// All of a guest's RAM, cheap to clone (regions are shared).
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;
