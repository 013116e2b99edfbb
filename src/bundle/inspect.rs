//! What is in a bundle, from manifest, header and index alone: no file's content is read, however long it is.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{FileExt, MetadataExt};

use serde::Serialize;
use snapshot_format::index::Place;
use snapshot_format::manifest::{Manifest, names};
use snapshot_format::state::Table;
use snapshot_format::working_set::{PageRange, WorkingSet};
use snapshot_format::zero::PAGE;

use super::open::{Bundle, OpenError};

/// What is in a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Inspection {
    /// The manifest as it is.
    pub manifest: Manifest,
    /// From the header of `state`.
    pub state: StateSummary,
    /// From `memory.index`.
    pub memory: MemorySummary,
    /// From `working-set`, when there is one that this release reads.
    pub working_set: Option<WorkingSetSummary>,
    /// Whether each clone's `lambda` client may run after-restore hooks of its own before it is given an event; nothing of other
    /// interfaces.
    pub client_hooks: Option<bool>,
    /// Every file but the manifest.
    pub files: BTreeMap<String, FileSummary>,
}

/// Only a client that waits in `restore/next` has its hooks before it. One that was baked again has gone on from there.
pub fn client_hooks(manifest: &Manifest) -> Option<bool> {
    manifest.function.lambda.as_ref().map(|lambda| lambda.snap_start && manifest.parent.is_none())
}

/// Header and section table of the state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StateSummary {
    /// `major.minor`.
    pub format: String,
    /// `x86_64`.
    pub arch: String,
    /// Program and version that wrote it.
    pub creator: String,
    /// In the file's order.
    pub sections: Vec<SectionSummary>,
}

/// One section of the state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SectionSummary {
    /// Its kind.
    pub name: String,
    /// Which one of its kind.
    pub instance: u32,
    /// Bytes.
    pub len: usize,
    /// Whether a reader must know it.
    pub required: bool,
}

/// Where the memory is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MemorySummary {
    /// Guest memory, bytes.
    pub bytes: u64,
    /// Bytes of a chunk.
    pub granule: u64,
    /// Chunks of which every byte is zero.
    pub zero_chunks: u64,
    /// Chunks with content in this bundle.
    pub content_chunks: u64,
    /// Chunks with content in a parent bundle.
    pub parent_chunks: u64,
    /// Guest TSC frequency at the freeze, kHz.
    pub tsc_khz: u32,
}

/// The recorded working set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WorkingSetSummary {
    /// Neighbouring pages, of both kinds.
    pub ranges: u64,
    /// Bytes of all pages.
    pub bytes: u64,
    /// 2 MiB of guest memory of which an answer only reads: where the memory file lies in huge pages, all clones share them.
    pub read_only_regions: u64,
    /// 2 MiB of guest memory of which an answer writes something.
    pub mixed_regions: u64,
    /// 4 KiB pages that are only read.
    pub read_pages: u64,
    /// 4 KiB pages that are written.
    pub written_pages: u64,
    /// How many of both an answer touches only once its first piece is there.
    pub late_pages: u64,
}

impl WorkingSetSummary {
    fn of(set: &WorkingSet) -> Self {
        let read = regions(set.read.iter().chain(&set.late_read));
        let written = regions(set.write.iter().chain(&set.late_write));
        let ranges = [&set.read, &set.write, &set.late_read, &set.late_write].map(Vec::len);
        let pages = set.read_pages() + set.written_pages();
        WorkingSetSummary {
            ranges: ranges.iter().sum::<usize>() as u64,
            bytes: pages * PAGE as u64,
            read_only_regions: read.difference(&written).count() as u64,
            mixed_regions: written.len() as u64,
            read_pages: set.read_pages(),
            written_pages: set.written_pages(),
            late_pages: set.late_pages(),
        }
    }
}

/// The regions of 2 MiB that ranges lie in.
fn regions<'a>(ranges: impl Iterator<Item = &'a PageRange>) -> BTreeSet<u64> {
    const HUGE: u64 = 2 << 20;
    let of = |range: &PageRange| range.bytes().start / HUGE..range.bytes().end.div_ceil(HUGE);
    ranges.flat_map(of).collect()
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileSummary {
    /// Bytes.
    pub len: u64,
    /// Bytes that it takes on the disk: less than `len` where it has holes.
    pub allocated: u64,
}

impl Bundle {
    /// What is in the bundle.
    ///
    /// # Errors
    /// A header or the index is damaged.
    pub fn inspect(&self) -> Result<Inspection, OpenError> {
        Ok(Inspection {
            manifest: self.manifest().clone(),
            state: self.state_summary()?,
            memory: self.memory_summary()?,
            working_set: self.working_set_summary()?,
            client_hooks: client_hooks(self.manifest()),
            files: self.file_summaries()?,
        })
    }

    fn state_summary(&self) -> Result<StateSummary, OpenError> {
        let state = self.plain(names::STATE)?;
        let len = usize::try_from(state.len).unwrap_or(usize::MAX).min(Table::MAX_LEN);
        let mut beginning = vec![0; len];
        let read = |source| OpenError::Read { name: names::STATE.to_owned(), source };
        state.file.read_exact_at(&mut beginning, 0).map_err(read)?;
        let table = Table::check(&beginning, state.len)?;
        let section = |entry: &snapshot_format::state::SectionEntry| SectionSummary {
            name: entry.id.to_string(),
            instance: entry.instance,
            len: entry.len,
            required: entry.required,
        };
        Ok(StateSummary {
            format: table.header.version.to_string(),
            arch: table.header.arch.to_string(),
            creator: table.header.creator,
            sections: table.entries.iter().map(section).collect(),
        })
    }

    fn memory_summary(&self) -> Result<MemorySummary, OpenError> {
        let map = self.memory_map()?;
        Ok(MemorySummary {
            bytes: map.memory_len(),
            granule: map.granule().bytes(),
            zero_chunks: map.count(|place| place == Place::Zero),
            content_chunks: map.count(|place| place == Place::Here),
            parent_chunks: map.count(|place| matches!(place, Place::Parent { .. })),
            tsc_khz: map.tsc_khz(),
        })
    }

    /// A working set is a hint: one that cannot be read is as good as none.
    fn working_set_summary(&self) -> Result<Option<WorkingSetSummary>, OpenError> {
        if !self.has(names::WORKING_SET) {
            return Ok(None);
        }
        let set = WorkingSet::decode(&self.read(names::WORKING_SET)?).ok();
        Ok(set.as_ref().map(WorkingSetSummary::of))
    }

    fn file_summaries(&self) -> Result<BTreeMap<String, FileSummary>, OpenError> {
        let summary = |(name, file): (&str, &super::directory::PlainFile)| {
            let read = |source| OpenError::Read { name: name.to_owned(), source };
            let metadata = file.file.metadata().map_err(read)?;
            Ok((name.to_owned(), FileSummary { len: file.len, allocated: metadata.blocks() * 512 }))
        };
        self.files().map(summary).collect()
    }
}
