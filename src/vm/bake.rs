//! The way of a cold guest to its warm point.

use std::time::{Duration, Instant};

use crate::function::{Event, Notice};

use super::drive::Drive;
use super::invoke::{AnswerSink, InvokeError, boot_to_ready, invoke, next_turn};
use super::timeline::Timeline;

/// How long a guest that reports itself frozen is left alone, so that its vCPUs are idle and its rings empty.
const SETTLE: Duration = Duration::from_millis(100);
/// Longest wait for a guest to free and zero what it does not use, for each GiB of memory that it has or begins to have.
const PREPARE_MAX: Duration = Duration::from_secs(300);

/// Why a guest did not reach its warm point.
#[derive(Debug, thiserror::Error)]
pub enum WarmError {
    /// Boot, readiness or the freeze's preparation.
    #[error(transparent)]
    Guest(#[from] InvokeError),
    /// The guest's kernel would not notice that it has become another.
    #[error(
        "The guest's kernel has no driver for the VM Generation ID (CONFIG_VMGENID, Linux 5.18 or newer), so only Ember's agent \
         would give clones random numbers of their own; use a kernel that has it, or bake with --allow-stale-rng"
    )]
    StaleRng,
    /// A warm-up event got no answer.
    #[error("Warm-up event {number} got no answer")]
    WarmUp {
        /// Counted from 1.
        number: usize,
        /// Why.
        #[source]
        source: InvokeError,
    },
    /// The function answered a warm-up event with a failure.
    #[error("The function failed on warm-up event {number} with exit code {exit_code}")]
    WarmUpFailed {
        /// Counted from 1.
        number: usize,
        /// The function's.
        exit_code: i32,
    },
}

/// What a guest is taken through.
#[derive(Debug)]
pub struct WarmUp<'a> {
    /// Events before the freeze, in order.
    pub events: &'a [Event],
    /// From power-on until the function is ready.
    pub ready_max: Duration,
    /// One event.
    pub event_max: Duration,
    /// Whether the guest's kernel may lack a driver for the VM Generation ID.
    pub allow_stale_rng: bool,
}

/// How much memory a guest used just before its freeze.
#[derive(Debug, Clone, Copy)]
pub struct MemoryUse {
    /// MemTotal, bytes.
    pub total: u64,
    /// MemFree, bytes.
    pub free: u64,
}

/// Boots, runs the warm-up events, drops caches, runs them once more, frees and zeroes memory, and leaves the guest blocked
/// at its warm point. `phase` is told what begins.
///
/// # Errors
/// See [`WarmError`].
pub fn to_warm_point(
    drive: &mut Drive<'_>,
    warm_up: &WarmUp<'_>,
    sink: &mut dyn AnswerSink,
    phase: &mut dyn FnMut(&'static str),
) -> Result<MemoryUse, WarmError> {
    phase("Booting the guest to the function's readiness");
    boot_to_ready(drive, Some(Instant::now() + warm_up.ready_max), sink)?;
    if drive.conversation().has_generation_driver() == Some(false) && !warm_up.allow_stale_rng {
        return Err(WarmError::StaleRng);
    }
    if !warm_up.events.is_empty() {
        phase("Warming up");
        run_events(drive, warm_up, sink)?;
        // What the events read once is dropped, what they read every time comes back: the snapshot holds the second only.
        settle(drive, warm_up.event_max)?;
        run_events(drive, warm_up, sink)?;
    }
    phase("Freeing memory");
    Ok(to_rest(drive, sink)?)
}

/// Takes a clone that has answered to its warm point again, where it can be frozen as it was the first time.
///
/// # Errors
/// The guest does not get there within `limit`, or cannot free its memory.
pub fn to_warm_point_again(
    drive: &mut Drive<'_>,
    limit: Duration,
    sink: &mut dyn AnswerSink,
) -> Result<MemoryUse, InvokeError> {
    next_turn(drive, Some(Instant::now() + limit))?;
    to_rest(drive, sink)
}

/// Has a warm guest free and zero memory, and leaves it blocked in its agent's read.
fn to_rest(drive: &mut Drive<'_>, sink: &mut dyn AnswerSink) -> Result<MemoryUse, InvokeError> {
    drive.machine().expect_to_be_filled();
    drive.conversation().prepare_freeze()?;
    let limit = prepare_max(drive.machine().memory_bytes());
    let deadline = Some(Instant::now() + limit);
    let used = loop {
        match drive.next(deadline)? {
            Notice::ReadyToFreeze { mem_total, mem_free } => {
                break MemoryUse { total: mem_total, free: mem_free };
            }
            piece @ Notice::Output { .. } => {
                sink.take(piece).map_err(InvokeError::Sink)?;
            }
            _ => {}
        }
    };
    drive.settle(SETTLE)?;
    Ok(used)
}

fn prepare_max(memory_bytes: u64) -> Duration {
    PREPARE_MAX * u32::try_from(memory_bytes.div_ceil(1 << 30)).unwrap_or(u32::MAX)
}

fn settle(drive: &mut Drive<'_>, limit: Duration) -> Result<(), InvokeError> {
    drive.conversation().settle()?;
    let deadline = Some(Instant::now() + limit);
    while !matches!(drive.next(deadline)?, Notice::Settled) {}
    Ok(())
}

fn run_events(
    drive: &mut Drive<'_>,
    warm_up: &WarmUp<'_>,
    sink: &mut dyn AnswerSink,
) -> Result<(), WarmError> {
    for (number, event) in (1..).zip(warm_up.events) {
        let deadline = Some(Instant::now() + warm_up.event_max);
        match invoke(drive, event, deadline, sink, &mut Timeline::start()) {
            Ok(0) => next_turn(drive, deadline)?,
            Ok(exit_code) => return Err(WarmError::WarmUpFailed { number, exit_code }),
            Err(source) => return Err(WarmError::WarmUp { number, source }),
        }
    }
    Ok(())
}
