//! What the user asked for, as plain data: read from `ember.toml` and flags, validated once.
//!
//! [`Asked`] is what was typed, where everything may be missing; [`Bake`] is what it means, where nothing is.

mod asked;
mod bake;
mod event;
mod paging;
mod prefetch;
mod units;

pub use asked::{
    Asked, AskedDrive, AskedFunction, AskedHttp, AskedLambda, AskedMachine, AskedRoot, ConfigError, Timeouts,
};
pub use bake::{
    Bake, DriveFile, ImageDefaults, InvalidError, LINUX_MEMORY_MIN, MEMORY_MAX, RootSource, VCPUS_MAX,
};
pub use event::{EVENT_MAX, EventError, EventSource, EventText};
pub use paging::{Backend, Paging, Verify};
pub use prefetch::Prefetch;
pub use units::{Rate, Size, Span, UnitError};
