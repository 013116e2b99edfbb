//! The story of a machine: boot or restore, run, freeze, capture.
//!
//! One constructor builds it either way ([`Shell`], then [`Shell::fill`]); they differ in where memory and state come from. This
//! room uses every other but `cli`.

mod bake;
mod capture;
mod drive;
mod host;
pub mod identity;
mod invoke;
mod lifecycle;
mod machine;
mod opened;
#[cfg(test)]
mod points;
mod prefetch;
mod record;
mod request;
mod saved;
mod shell;
mod start;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod timeline;

pub use bake::{MemoryUse, WarmError, WarmUp, to_warm_point, to_warm_point_again};
pub use capture::CaptureError;
pub use drive::{Drive, DriveError};
pub use host::{Finding, Verdict, cpu_vendor, examine_host};
pub use identity::IdentityError;
pub use invoke::{
    ANSWERED, AnswerSink, FIRST_ANSWER, FIRST_INSTRUCTION, InvokeError, boot_to_ready, invoke, next_turn,
    wake,
};
pub use lifecycle::{Action, Event, State};
pub use machine::{BuildError, Frozen, Machine, Origin, Plan, RunError, Shape, Wake};
pub use opened::{Host, Opened, drives, private_file};
pub use record::{RecordingError, record};
pub use request::{Request, RequestError};
pub use saved::{SavedError, SavedMachine};
pub use shell::{HostCpu, Shell};
pub use start::{
    BOOT_MAX, ColdStart, Generation, Image, LoadError, MEMORY_CUT_SHORT, RestoreOptions, StartError, boot,
    boot_again, restore,
};
pub use timeline::Timeline;
