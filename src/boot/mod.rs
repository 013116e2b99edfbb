//! Cold start: kernel image, boot parameters, ACPI tables, initramfs.
//!
//! Everything here ends up in guest memory or in an [`EntryPoint`]; no KVM, no bundle. The kernel file is hostile
//! input: it is checked and bounded, and a bad one is refused with a sentence.

mod acpi;
mod bzimage;
mod command_line;
mod elf;
mod entry;
pub mod initramfs;
mod kernel;
mod linux;
mod low;
mod lz4;
mod small;
mod unpack;

pub use acpi::AcpiError;
pub use bzimage::BzImageError;
pub use command_line::default_command_line;
pub use elf::ElfError;
pub use entry::{EntryPoint, RFLAGS_RESERVED_ONE, Segment, Segments, TableRegister};
pub use kernel::{Kernel, KernelError};
pub use linux::{BootError, BootMachine, VirtioDevice, load};
pub use small::{SmallGuest, SmallGuestError};
pub use unpack::UnpackError;
