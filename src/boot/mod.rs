//! Cold start: kernel image, boot parameters, ACPI tables, initramfs.
//!
//! Everything here ends up in guest memory or in an [`EntryPoint`]; no KVM, no bundle. The kernel file is hostile
//! input: it is checked and bounded, and a bad one is refused with a sentence.

mod entry;

pub use entry::{CpuMode, EntryPoint, RFLAGS_RESERVED_ONE, Segment, TableRegister};
