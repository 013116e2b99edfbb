//! The files of an Ember bundle, without KVM, without mmap and without unsafe (docs/snapshot-format.md).
//!
//! Everything read here is hostile: every decoder is bounded, refuses what it does not know by name and never panics.

pub mod crc;
#[doc(hidden)]
pub mod fuzz_entry;
pub mod index;
pub mod manifest;
pub mod sections;
pub mod state;
pub mod working_set;
pub mod zero;
