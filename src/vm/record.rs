//! Recording a working set: the pages that clones of a fresh bundle touch from their first instruction to the end of an answer.

use std::io;
use std::time::{Duration, Instant};

use snapshot_format::working_set::{PageRange, WorkingSet};

use crate::bundle::Bundle;
use crate::function::{Conversation, Event, RestoreMessage, SessionError};
use crate::memory::{self, RecordError, Touch};

use super::drive::Drive;
use super::invoke::{AnswerSink, InvokeError, invoke, wake};
use super::machine::RunError;
use super::start::{StartError, Watched, restore_watched};
use super::timeline::Timeline;

/// Pages that fewer than one in this many events touched are left out.
const RARE: usize = 4;

/// Why no working set could be recorded.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// The clone could not be started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Its pages could not be recorded.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The kernel does not tell which pages are the clone's own.
    #[error("Cannot tell which pages were written")]
    Written(#[source] io::Error),
    /// It could not be frozen.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The event is not allowed.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// It gave no answer.
    #[error("Event {number} of the recording got no answer")]
    NoAnswer {
        /// Counted from 1.
        number: usize,
        /// Why.
        #[source]
        source: InvokeError,
    },
    /// It answered with a failure, whose pages are not those of an answer.
    #[error("The function failed on event {number} of the recording with exit code {exit_code}")]
    Failed {
        /// Counted from 1.
        number: usize,
        /// The function's.
        exit_code: i32,
    },
}

/// One event of a recording, and what its clone is told first.
#[derive(Debug)]
pub struct Sample {
    /// The event.
    pub event: Event,
    /// Unlike any other clone's.
    pub message: RestoreMessage,
}

/// Restores a clone for each of `samples`, one after the other, and gives the union of what they touched without what was
/// rare. Each may take `limit` to answer.
///
/// # Errors
/// See [`RecordingError`].
pub fn record(
    bundle: &Bundle,
    samples: &[Sample],
    limit: Duration,
    sink: &mut dyn AnswerSink,
) -> Result<WorkingSet, RecordingError> {
    let mut all = Vec::new();
    for (number, sample) in (1..).zip(samples) {
        all.push(record_one(bundle, number, sample, limit, sink)?);
    }
    Ok(union(bundle.manifest().machine.memory_bytes, &all))
}

/// One clone tells what is touched, another what is written: memory in which touches can be told is the clone's own from the
/// first read on.
fn record_one(
    bundle: &Bundle,
    number: usize,
    sample: &Sample,
    limit: Duration,
    sink: &mut dyn AnswerSink,
) -> Result<Vec<Touch>, RecordingError> {
    let mut one = |watched| watch(bundle, number, sample, limit, watched, sink);
    let (mut pages, written) = (one(Watched::Touches)?, one(Watched::Writes)?);
    for (page, _) in pages.iter_mut().zip(written).filter(|(_, written)| *written == Touch::Written) {
        *page = Touch::Written;
    }
    Ok(pages)
}

fn watch(
    bundle: &Bundle,
    number: usize,
    sample: &Sample,
    limit: Duration,
    watched: Watched,
    sink: &mut dyn AnswerSink,
) -> Result<Vec<Touch>, RecordingError> {
    let timeline = &mut Timeline::start();
    let manifest = bundle.manifest();
    let (mut machine, recorder) = restore_watched(bundle, sample.message.generation, watched, timeline)?;
    let mut conversation = Conversation::restored(&manifest.function, manifest.agent_protocol)?;
    let mut drive = Drive::new(&mut machine, &mut conversation);
    let answered = wake(&mut drive, &sample.message, sink, timeline)
        .and_then(|()| invoke(&mut drive, &sample.event, Some(Instant::now() + limit), sink, timeline));
    // Nothing of it may touch a page once nobody brings pages in.
    let frozen = machine.freeze()?;
    let pages = match recorder {
        Some(recorder) => recorder.finish()?,
        None => memory::own_pages(frozen.memory()).map_err(RecordingError::Written)?,
    };
    frozen.keep();
    machine.leave();
    match answered {
        Ok(0) => Ok(pages),
        Ok(exit_code) => Err(RecordingError::Failed { number, exit_code }),
        Err(source) => Err(RecordingError::NoAnswer { number, source }),
    }
}

/// The pages that not only few of the recordings have. A page counts as written when most of those that touched it wrote it: it is
/// copied ahead, which is lost where it is only read.
fn union(memory_len: u64, all: &[Vec<Touch>]) -> WorkingSet {
    let pages = all.iter().map(Vec::len).max().unwrap_or_default();
    let kept: Vec<Touch> = (0..pages)
        .map(|page| {
            let count = |touch| all.iter().filter(|one| one.get(page) == Some(&touch)).count();
            let (read, written) = (count(Touch::Read), count(Touch::Written));
            match read + written {
                0 => Touch::None,
                touched if touched * RARE < all.len() => Touch::None,
                touched if written * 2 >= touched => Touch::Written,
                _ => Touch::Read,
            }
        })
        .collect();
    WorkingSet { memory_len, read: ranges(&kept, Touch::Read), write: ranges(&kept, Touch::Written) }
}

fn ranges(pages: &[Touch], wanted: Touch) -> Vec<PageRange> {
    let mut ranges: Vec<PageRange> = Vec::new();
    for (page, _) in (0u32..).zip(pages).filter(|(_, touch)| **touch == wanted) {
        match ranges.last_mut().filter(|last| last.first + last.count == page) {
            Some(last) => last.count += 1,
            None => ranges.push(PageRange { first: page, count: 1 }),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_union_leaves_out_what_was_rare_and_tells_written_from_read() {
        use Touch::{None as N, Read as R, Written as W};
        let mut all = vec![vec![R, W, N, W, R, N]; 4];
        all.push(vec![R, R, R, W, W, W]);
        let set = union(6 * 4096, &all);
        let range = |first, count| PageRange { first, count };
        assert_eq!(set.read, [range(0, 1), range(4, 1)]);
        assert_eq!(set.write, [range(1, 1), range(3, 1)]);
        assert_eq!(set.memory_len, 6 * 4096);
    }

    #[test]
    fn neighbours_are_one_range() {
        let set = union(4 * 4096, &[vec![Touch::Read, Touch::Read, Touch::None, Touch::Read]]);
        assert_eq!(set.read, [PageRange { first: 0, count: 2 }, PageRange { first: 3, count: 1 }]);
    }
}
