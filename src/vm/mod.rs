//! The story of a machine: boot or restore, run, freeze, capture.
//!
//! One constructor builds it either way ([`Machine::build`]); they differ in where memory and state come from. This room
//! uses every other but `cli`.

mod capture;
mod drive;
mod lifecycle;
mod machine;
mod saved;
mod start;
mod timeline;

pub use capture::CaptureError;
pub use drive::{Drive, DriveError, Happening};
pub use lifecycle::{Action, Event, State};
pub use machine::{BuildError, Frozen, Machine, Origin, Plan, RunError, Shape, Wake};
pub use saved::{SavedError, SavedMachine};
pub use start::{ColdStart, Image, LoadError, StartError, boot, restore};
pub use timeline::Timeline;
