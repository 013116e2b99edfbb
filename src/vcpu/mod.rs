//! vCPUs: the run loop, pause and kick, and the one place with the order in which KVM state is read and set.
//!
//! An exit goes to the bus; this room knows no device. From `boot` it takes the plain register description only.

mod abi;
mod cpuid;
mod entry;
mod features;
mod msrs;
mod state;
mod thread;
mod tsc;

pub use abi::{AbiError, blob, from_blob, list_blob, list_from_blob};
pub use cpuid::for_vcpu as cpuid_for_vcpu;
pub use entry::{enter, reset_msrs};
pub use features::vendor;
pub use msrs::{MsrSelection, SelectError};
pub use state::{VcpuError, restore, save};
pub use thread::{Buses, ThreadError, VcpuThread};
pub use tsc::{align_tsc, share_tsc_offset, tsc};
