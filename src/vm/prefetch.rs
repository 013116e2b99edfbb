//! What is brought in of a clone's memory before its first instruction.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use snapshot_format::working_set::PageRange;

use crate::bundle::Bundle;
use crate::config::{Backend, Prefetch, Verify};
use crate::jail;
use crate::kvm::KvmVcpu;
use crate::memory::{self, ChunkError, ChunkSource, Expected, GuestMemory, Late, OnStart, Pager, Prefetched};

use super::start::{RestoreOptions, Source, StartError};

/// So little is copied without asking what a memory limit leaves: the guest is about to write it in any case.
const UNASKED_MAX: u64 = 4 << 20;

/// How long a pager leaves what is touched late alone: whoever reads the answer needs the processor first.
const LATE: Duration = Duration::from_millis(1);

/// What is known ahead of what an answer will touch. The default knows nothing.
#[derive(Debug, Default)]
pub(super) struct Hints {
    expected: Option<Expected>,
    /// /proc/self/pagemap, which tells of huge pages. Without it none are looked for, as in memory that a pager fills: there are
    /// none, and to look is to touch it.
    pagemap: Option<File>,
    /// Most bytes that may be copied under a memory limit.
    copied_max: Option<u64>,
}

impl Hints {
    /// What the recorded working set says, where there is a usable one.
    pub(super) fn of(bundle: &Bundle, prefetch: Prefetch) -> Self {
        let expected = (prefetch != Prefetch::None).then(|| expected(bundle)).flatten();
        Hints { expected, ..Hints::default() }
    }

    /// Adds what a memory limit leaves, as somebody has asked before.
    pub(super) fn within(mut self, memory_left: Option<u64>) -> Self {
        self.copied_max = memory_left.map(memory::fillable);
        self
    }

    /// Adds what the host tells of it, for a process that will be able to open nothing.
    pub(super) fn with_host(mut self, options: &RestoreOptions) -> Self {
        let backend = options.paging.backend(options.verify);
        // A pager copies what is only read, too.
        let is_copied = options.prefetch == Prefetch::All || backend == Backend::Uffd;
        if let Some(expected) = self.expected.as_ref().filter(|_| is_copied) {
            let copied = match backend {
                Backend::Mmap => {
                    memory::bytes_of(&expected.written) + memory::bytes_of(&expected.late_written)
                }
                Backend::Uffd => expected.all().map(|range| range.end - range.start).sum::<u64>(),
            };
            self.pagemap =
                if backend == Backend::Mmap { File::open("/proc/self/pagemap").ok() } else { None };
            let left = (copied > UNASKED_MAX).then(jail::memory_left).flatten();
            self.copied_max = left.map(memory::fillable);
        }
        self
    }
}

/// What an answer is expected to touch, and what has been done about it. The default expects nothing.
#[derive(Default)]
pub struct Ahead {
    hints: Hints,
    prefetch: Prefetch,
    is_checked: bool,
    /// Whether pages are to be mapped for the guest.
    is_mapped: bool,
    /// What the thread that copies beside the guest does first; without it there is none.
    late: Option<OnStart>,
    /// What it begins with.
    rest: Vec<Range<u64>>,
    /// The pager that brings it in, and what tells of its arrival.
    pager: Option<(Pager, Receiver<()>)>,
    done: Prefetched,
}

impl std::fmt::Debug for Ahead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ahead").field("hints", &self.hints).field("done", &self.done).finish_non_exhaustive()
    }
}

impl Ahead {
    /// What `hints` say is done as far as `options` want it.
    pub(super) fn new(hints: Hints, options: &RestoreOptions, late: Option<OnStart>) -> Self {
        let RestoreOptions { prefetch, verify, .. } = *options;
        Ahead { hints, prefetch, is_checked: verify == Verify::Touched, late, ..Ahead::default() }
    }

    /// Brings it into memory.
    pub(super) fn bring_in(
        mut self,
        bundle: &Bundle,
        memory: &GuestMemory,
        source: &Source<'_>,
    ) -> Result<Self, StartError> {
        let Some(expected) = self.hints.expected.take() else { return Ok(self) };
        match source {
            Source::File(file) => {
                let checked = if self.is_checked { check(&bundle.chunks(true)?, &expected)? } else { 0 };
                self.done = Prefetched { checked, ..memory::read_ahead(file, &expected) };
                if self.prefetch == Prefetch::All {
                    let copied = memory::copy_written(memory, &expected, self.hints.copied_max);
                    // Where a limit has left something out nobody else is to go beyond it.
                    self.rest = if copied.cut_short { Vec::new() } else { expected.beyond(&copied) };
                    self.hints.expected = Some(expected.as_copied(&copied));
                    self.done =
                        Prefetched { copied: copied.copied, cut_short: copied.cut_short, ..self.done };
                    // Pages that a disk is still to bring are not waited for.
                    self.is_mapped = !self.done.is_cold;
                }
            }
            Source::Pager(pager, file) => {
                self.done = memory::read_ahead(file, &expected);
                let (expected, cut_short) = expected.for_pager(self.hints.copied_max);
                self.done.cut_short = cut_short;
                let early = expected.read.iter().cloned();
                let done = pager.prefetch(early, Duration::ZERO).map_err(StartError::Prefetch)?;
                self.is_mapped = self.prefetch == Prefetch::All && !self.done.is_cold;
                self.pager = Some((pager.clone(), done));
                self.hints.expected = Some(expected);
            }
        }
        Ok(self)
    }

    /// Maps it for the guest, through one of its vCPUs: they share their tables. What comes late waits, with a thread or the pager.
    pub(super) fn map(self, vcpus: &[KvmVcpu], memory: &GuestMemory) -> Done {
        let Ahead { hints, is_mapped, late: thread, rest, done: before, pager, .. } = self;
        let Hints { expected, pagemap, copied_max } = hints;
        let mut done = Done { before, ..Done::default() };
        let Some(mut expected) = expected else { return done };
        if let Some((_, arrival)) = pager.as_ref().filter(|_| is_mapped) {
            // A pager that fails ends the process.
            arrival.recv().unwrap_or_default();
        }
        if let Some(vcpu) = vcpus.first().filter(|_| is_mapped) {
            done.before.mapped = memory::map_ahead(vcpu, memory, &expected, pagemap.as_ref());
        }
        if let Some((pager, _)) = pager {
            done.late = Some(Later::Pager(pager, expected.late_read));
            return done;
        }
        let late_written = std::mem::take(&mut expected.late_written);
        if let Some(on_start) = thread.filter(|_| is_mapped && !(rest.is_empty() && late_written.is_empty()))
        {
            // Without a thread the guest's own faults copy it.
            let left = copied_max.map(|most| most.saturating_sub(done.before.copied));
            done.late = Late::new(memory.clone(), rest, late_written, left, on_start).ok().map(Later::Thread);
        }
        done.copied = expected.written;
        done
    }
}

/// What was brought in, and what a thread goes on bringing in.
#[derive(Debug, Default)]
pub struct Done {
    before: Prefetched,
    /// What was copied before the start.
    copied: Vec<Range<u64>>,
    late: Option<Later>,
}

/// Who brings in what comes late.
#[derive(Debug)]
enum Later {
    Thread(Late),
    Pager(Pager, Vec<Range<u64>>),
}

impl Done {
    /// What it has come to so far.
    pub fn so_far(&self) -> Prefetched {
        let late = match &self.late {
            Some(Later::Thread(late)) => late.copied(),
            Some(Later::Pager(..)) | None => 0,
        };
        Prefetched { copied: self.before.copied + late, ..self.before }
    }

    /// How many of the pages that were copied before the start are still as `file` has them: nobody has written them.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn wasted(&self, memory: &GuestMemory, file: &File) -> io::Result<u64> {
        memory::unchanged_pages(memory, file, &self.copied)
    }

    /// Has what comes late brought in.
    pub fn begin_late(&mut self) {
        match &mut self.late {
            Some(Later::Thread(late)) => late.begin(),
            // A hint that cannot be given costs time and nothing else.
            Some(Later::Pager(pager, ranges)) => drop(pager.prefetch(std::mem::take(ranges), LATE)),
            None => {}
        }
    }
}

fn expected(bundle: &Bundle) -> Option<Expected> {
    let set = bundle.working_set().unwrap_or_else(|refused| {
        eprintln!("ember: {refused}; the clone is restored without it");
        None
    })?;
    let bytes = set.memory_len;
    let ranges = |ranges: &[PageRange]| memory::within(ranges.iter().map(PageRange::bytes), bytes);
    Some(Expected {
        read: ranges(&set.read),
        written: ranges(&set.write),
        late_read: ranges(&set.late_read),
        late_written: ranges(&set.late_write),
    })
}

/// Checks every chunk that an expected page lies in; how many bytes these are.
fn check(source: &dyn ChunkSource, expected: &Expected) -> Result<u64, ChunkError> {
    let (mut buffer, mut checked) = (Vec::new(), 0);
    for range in memory::chunks_around(source, expected.all().cloned()) {
        buffer.resize(usize::try_from(range.end - range.start).unwrap_or_default(), 0);
        source.read(range.start, &mut buffer)?;
        checked += range.end - range.start;
    }
    Ok(checked)
}
