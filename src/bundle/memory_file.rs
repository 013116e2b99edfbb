//! Writing guest memory: zero pages become holes, and the index is built on the way.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use snapshot_format::index::{Builder, Granule};
use snapshot_format::manifest::names;
use snapshot_format::zero::content_runs;

use super::draft::{Draft, DraftError};
use super::machine_state;
use super::writeback::Writeback;

/// What was written of a guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryReport {
    /// Guest memory, bytes.
    pub len: u64,
    /// Bytes of pages that are not zero: what the file takes on the disk.
    pub content: u64,
    /// Bytes of the index.
    pub index: u64,
}

/// Takes guest memory in file order, as `memory::visit_content` hands it out; what is left out is zero.
#[derive(Debug)]
pub struct MemoryWriter<'a> {
    draft: &'a mut Draft,
    file: File,
    writeback: Writeback,
    builder: Builder,
    len: u64,
    content: u64,
}

impl<'a> MemoryWriter<'a> {
    pub(super) fn new(draft: &'a mut Draft, memory_bytes: u64, tsc_khz: u32) -> Result<Self, DraftError> {
        let builder =
            Builder::new(&machine_state(memory_bytes, 0, tsc_khz), Granule::for_memory(memory_bytes))?;
        let file = draft.create_memory()?;
        file.set_len(memory_bytes).map_err(failed)?;
        let writeback = Writeback::of(&file).map_err(failed)?;
        Ok(MemoryWriter { draft, file, writeback, builder, len: memory_bytes, content: 0 })
    }

    /// Writes `bytes` at `offset` of the file, which is a multiple of 4 KiB.
    ///
    /// # Errors
    /// The disk is full or fails, or the bytes are out of order or behind the end of memory.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DraftError> {
        for (start, run) in content_runs(bytes) {
            let at = offset.saturating_add(start as u64);
            // First, because it refuses what would make the file longer.
            self.builder.add(at, run)?;
            self.file.write_all_at(run, at).map_err(failed)?;
            self.writeback.grown(run.len() as u64);
            self.content += run.len() as u64;
        }
        Ok(())
    }

    /// Adds the memory and its index to the draft.
    ///
    /// # Errors
    /// The disk is full or fails.
    pub fn finish(self) -> Result<MemoryReport, DraftError> {
        self.writeback.finish().map_err(failed)?;
        let index = self.builder.finish()?;
        self.draft.add_memory(self.file);
        self.draft.add_bytes(names::INDEX, &index)?;
        Ok(MemoryReport { len: self.len, content: self.content, index: index.len() as u64 })
    }
}

fn failed(source: io::Error) -> DraftError {
    DraftError::write(names::MEMORY, source)
}
