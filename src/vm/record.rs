//! Recording a working set: the pages that clones of a fresh bundle touch from their first instruction to the end of an answer.

use std::io;
use std::time::{Duration, Instant};

use snapshot_format::manifest::Interface;
use snapshot_format::working_set::{PageRange, WorkingSet};

use crate::bundle::{Bundle, OpenError};
use crate::function::{Conversation, Event, Notice, SessionError};
use crate::memory::{self, RecordError, Recorder, Touch};

use super::drive::Drive;
use super::identity::{Asked, IdentityError, restore_message};
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
    /// It cannot be made unique.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Its memory's index cannot be read.
    #[error(transparent)]
    Open(#[from] OpenError),
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

/// Restores clones for each of `events`, one after the other, and gives the union of what they touched without what was
/// rare. Each may take `limit` to answer.
///
/// # Errors
/// See [`RecordingError`].
pub fn record(
    bundle: &Bundle,
    events: &[Event],
    limit: Duration,
    sink: &mut dyn AnswerSink,
) -> Result<WorkingSet, RecordingError> {
    let mut all: Vec<Recording> = Vec::new();
    for (number, event) in (1..).zip(events) {
        all.push(record_one(bundle, number, event, limit, sink)?);
    }
    Ok(WorkingSet { index_mark: bundle.index_mark()?, ..union(bundle.manifest().machine.memory_bytes, &all) })
}

/// What one answer touched.
#[derive(Debug, Default)]
struct Recording {
    /// Until its first piece was there.
    early: Vec<Touch>,
    /// Until its end.
    whole: Vec<Touch>,
}

impl Recording {
    /// One clone tells what is touched, another what is written: memory in which touches can be told is the clone's own from the
    /// first read on.
    fn with_written(mut self, written: &Recording) -> Self {
        note_written(&mut self.early, &written.early);
        note_written(&mut self.whole, &written.whole);
        self
    }

    /// What happened to a page, and whether that began before the first piece.
    fn page(&self, page: usize) -> (Touch, bool) {
        let of = |pages: &[Touch]| pages.get(page).copied().unwrap_or_default();
        (of(&self.whole), of(&self.early) != Touch::None)
    }
}

fn note_written(pages: &mut [Touch], written: &[Touch]) {
    for (page, _) in pages.iter_mut().zip(written).filter(|(_, written)| **written == Touch::Written) {
        *page = Touch::Written;
    }
}

fn record_one(
    bundle: &Bundle,
    number: usize,
    event: &Event,
    limit: Duration,
    sink: &mut dyn AnswerSink,
) -> Result<Recording, RecordingError> {
    let mut one = |watched| watch(bundle, number, event, limit, watched, sink);
    Ok(one(Watched::Touches)?.with_written(&one(Watched::Writes)?))
}

fn watch(
    bundle: &Bundle,
    number: usize,
    event: &Event,
    limit: Duration,
    watched: Watched,
    sink: &mut dyn AnswerSink,
) -> Result<Recording, RecordingError> {
    let timeline = &mut Timeline::start();
    let manifest = bundle.manifest();
    // Each clone is one of its own: what it answers with may leave this host.
    let message = restore_message(Asked::default())?;
    let (mut machine, memory, recorder) = restore_watched(bundle, message.generation, watched, timeline)?;
    let so_far = || match &recorder {
        Some(recorder) => Ok(recorder.so_far()),
        None => memory::own_pages(&memory),
    };
    let mut sink = FirstPiece { sink, interface: manifest.function.interface, so_far: &so_far, early: None };
    let mut conversation = Conversation::restored(&manifest.function, manifest.agent_protocol)?;
    let mut drive = Drive::new(&mut machine, &mut conversation);
    if let Some(recorder) = &recorder {
        drive.machine().fails_with(recorder.failure())?;
    }
    let answered = wake(&mut drive, &message, &mut sink, timeline)
        .and_then(|()| invoke(&mut drive, event, Some(Instant::now() + limit), &mut sink, timeline));
    let early = sink.early;
    if recorder.as_ref().is_some_and(Recorder::has_failed) {
        // What waits for a page gets one of zeros when the recorder is gone, and must not go on with it.
        machine.ask_to_stop()?;
        recorder.map_or(Ok(()), Recorder::finish)?;
        return Err(RunError::MemoryLost.into());
    }
    let no_answer = |source| RecordingError::NoAnswer { number, source };
    // Nothing of it may touch a page once nobody brings pages in.
    let frozen = match machine.freeze() {
        Ok(frozen) => frozen,
        // A guest that broke stands still already; why is what it gave instead of an answer.
        Err(error) => return Err(answered.err().map_or(error.into(), no_answer)),
    };
    let whole = so_far().map_err(RecordingError::Written)?;
    recorder.map_or(Ok(()), Recorder::finish)?;
    frozen.keep();
    machine.leave();
    match answered {
        // An answer without a piece has its end for a first.
        Ok(0) => Ok(Recording { early: early.unwrap_or_else(|| whole.clone()), whole }),
        Ok(exit_code) => Err(RecordingError::Failed { number, exit_code }),
        Err(source) => Err(no_answer(source)),
    }
}

/// A sink that notes what has been touched when the first piece of the answer proper comes.
struct FirstPiece<'a> {
    sink: &'a mut dyn AnswerSink,
    interface: Interface,
    so_far: &'a dyn Fn() -> io::Result<Vec<Touch>>,
    early: Option<Vec<Touch>>,
}

impl AnswerSink for FirstPiece<'_> {
    fn take(&mut self, piece: Notice) -> io::Result<bool> {
        let is_answer = matches!(piece, Notice::Head { .. }) || piece.is_answer(self.interface);
        self.sink.take(piece)?;
        if is_answer && self.early.is_none() {
            self.early = Some((self.so_far)()?);
        }
        Ok(is_answer)
    }
}

/// A page of the working set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Kept {
    touch: Touch,
    is_late: bool,
}

/// The pages that not only few of the recordings have. A page counts as written when most of those that touched it wrote it: it is
/// copied ahead, which is lost where it is only read. It counts as late when most of them touched it late.
fn union(memory_len: u64, all: &[Recording]) -> WorkingSet {
    let pages = all.iter().map(|one| one.whole.len()).max().unwrap_or_default();
    let kept: Vec<Kept> =
        (0..pages).map(|page| keep(all.iter().map(|one| one.page(page)), all.len())).collect();
    let list = |touch, is_late| ranges(&kept, Kept { touch, is_late });
    WorkingSet {
        memory_len,
        read: list(Touch::Read, false),
        write: list(Touch::Written, false),
        late_read: list(Touch::Read, true),
        late_write: list(Touch::Written, true),
        ..WorkingSet::default()
    }
}

fn keep(page: impl Iterator<Item = (Touch, bool)>, recordings: usize) -> Kept {
    let (mut read, mut written, mut early) = (0, 0, 0);
    for (touch, is_early) in page {
        read += usize::from(touch == Touch::Read);
        written += usize::from(touch == Touch::Written);
        early += usize::from(is_early);
    }
    let touched = read + written;
    let touch = match touched {
        0 => Touch::None,
        touched if touched * RARE < recordings => Touch::None,
        touched if written * 2 >= touched => Touch::Written,
        _ => Touch::Read,
    };
    Kept { touch, is_late: early * 2 < touched }
}

fn ranges(pages: &[Kept], wanted: Kept) -> Vec<PageRange> {
    let mut ranges: Vec<PageRange> = Vec::new();
    for (page, _) in (0u32..).zip(pages).filter(|(_, kept)| **kept == wanted) {
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

    fn range(first: u32, count: u32) -> PageRange {
        PageRange { first, count }
    }

    fn early(pages: &[Touch]) -> Recording {
        Recording { early: pages.to_vec(), whole: pages.to_vec() }
    }

    #[test]
    fn a_union_leaves_out_what_was_rare_and_tells_written_from_read() {
        use Touch::{None as N, Read as R, Written as W};
        let mut all: Vec<_> = (0..4).map(|_| early(&[R, W, N, W, R, N])).collect();
        all.push(early(&[R, R, R, W, W, W]));
        let set = union(6 * 4096, &all);
        assert_eq!(set.read, [range(0, 1), range(4, 1)]);
        assert_eq!(set.write, [range(1, 1), range(3, 1)]);
        assert_eq!(set.memory_len, 6 * 4096);
    }

    #[test]
    fn neighbours_are_one_range() {
        let set = union(4 * 4096, &[early(&[Touch::Read, Touch::Read, Touch::None, Touch::Read])]);
        assert_eq!(set.read, [range(0, 2), range(3, 1)]);
    }

    #[test]
    fn what_most_touch_after_the_first_piece_is_late() {
        use Touch::{None as N, Read as R, Written as W};
        let one = |early: &[Touch]| Recording { early: early.to_vec(), whole: vec![W, R, W, W] };
        let set = union(4 * 4096, &[one(&[N, N, R, N]), one(&[N, N, R, W]), one(&[N, R, R, N])]);
        assert_eq!((set.write, set.read), (vec![range(2, 1)], vec![]));
        assert_eq!(set.late_read, [range(1, 1)]);
        assert_eq!(set.late_write, [range(0, 1), range(3, 1)]);
    }

    #[test]
    fn what_one_clone_wrote_is_written_whenever_the_other_touched_it() {
        use Touch::{None as N, Read as R, Written as W};
        let touches = Recording { early: vec![R, N], whole: vec![R, R] };
        let both = touches.with_written(&Recording { early: vec![N, N], whole: vec![W, W] });
        assert_eq!((both.page(0), both.page(1)), ((W, true), (W, false)));
    }
}
