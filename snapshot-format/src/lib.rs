//! The files of an Ember bundle, without KVM, without mmap and without unsafe.

pub mod manifest;
pub mod sections;
pub mod state;
