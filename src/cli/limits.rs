//! What a clone may cost: `--answer-max`, `--log-max`, `--console-max`, `--block-rate`. Nothing is counted that is not limited.

use clap::Args;

use crate::config::{Rate, Size};
use crate::devices::BlockRate;
use crate::vm::Machine;

pub use crate::failure::limits::{AnswerLimit, Cut};

/// What a clone may cost.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct LimitArgs {
    /// Longest answer; the clone ends at the first byte beyond it
    #[arg(long, value_name = "SIZE")]
    pub answer_max: Option<Size>,
    /// Most of the function's log and errors that is passed on; the rest is left out
    #[arg(long, value_name = "SIZE")]
    pub log_max: Option<Size>,
    /// Most of the guest's console that is shown; the rest is left out
    #[arg(long, value_name = "SIZE")]
    pub console_max: Option<Size>,
    /// Rate of each drive, and what it may move at once
    #[arg(long, value_name = "SIZE/s[:BURST]")]
    pub block_rate: Option<Rate>,
}

impl LimitArgs {
    /// Sets what the machine itself enforces.
    pub fn apply(&self, machine: &mut Machine) {
        if let Some(Rate { bytes_per_second, burst }) = self.block_rate {
            machine.limit_drives(BlockRate { bytes_per_second, burst });
        }
    }
}
