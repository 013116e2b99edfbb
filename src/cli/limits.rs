//! What a clone may cost: `--answer-max`, `--log-max`, `--console-max`, `--block-rate`, and what its control group bounds. Nothing
//! is counted that is not limited.

use clap::Args;

use crate::config::{Rate, Size};
use crate::devices::BlockRate;
use crate::failure::limits::Limits;
use crate::jail::{self, Bounds};
use crate::vm::Machine;

use super::Failure;

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
    #[command(flatten)]
    pub group: GroupArgs,
}

/// What the control group of a clone bounds.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct GroupArgs {
    /// Most memory of a clone, Ember's own included; it ends when it needs more
    #[arg(long, value_name = "SIZE")]
    pub memory_max: Option<Size>,
    /// Memory beyond which a clone is slowed down
    #[arg(long, value_name = "SIZE")]
    pub memory_high: Option<Size>,
    /// Most processor time of a clone, in percent of one processor
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub cpu_max: Option<u32>,
    /// Share of the processors where there are too few; everybody has 100
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub cpu_weight: Option<u32>,
}

impl GroupArgs {
    /// As the jail takes them.
    pub fn bounds(&self) -> Bounds {
        Bounds {
            memory_max: self.memory_max.map(|size| size.0),
            memory_high: self.memory_high.map(|size| size.0),
            cpu_percent: self.cpu_max,
            cpu_weight: self.cpu_weight,
        }
    }
}

impl LimitArgs {
    /// Moves this process into a control group of its own, where anything is asked of one; tells whether it did.
    ///
    /// # Errors
    /// This host, or this user, has no control groups.
    pub fn bound(&self) -> Result<bool, Failure> {
        let bounds = self.group.bounds();
        if bounds.is_none() {
            return Ok(false);
        }
        jail::bound(&bounds)?;
        Ok(true)
    }

    /// Those of what a function says.
    pub fn words(&self) -> Limits {
        Limits::new((self.answer_max, "--answer-max"), (self.log_max, "--log-max"))
    }

    /// Sets what the machine itself enforces.
    pub fn apply(&self, machine: &mut Machine) {
        if let Some(Rate { bytes_per_second, burst }) = self.block_rate {
            machine.limit_drives(BlockRate { bytes_per_second, burst });
        }
    }
}
