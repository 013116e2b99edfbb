//! Bundles on disk: opened as hostile input, checked, looked into, and written whole or not at all
//! (docs/snapshot-format.md).
//!
//! A bundle is a directory of plainly named files. It is written under another name, synced, then renamed, and never
//! written again. Its files are for their owner alone: they hold whatever the function had in memory.

mod chunks;
mod content;
mod directory;
mod draft;
mod inspect;
mod memory_file;
mod open;
#[cfg(test)]
mod tests;
mod verify;
mod workplace;
mod writeback;

pub use chunks::MemoryChunks;
pub use draft::{Draft, DraftError, Finished, FinishedFile, Sharing};
pub use inspect::{FileSummary, Inspection, MemorySummary, SectionSummary, StateSummary, WorkingSetSummary};
pub use memory_file::{MemoryReport, MemoryWriter};
pub use open::{Bundle, HintError, OpenError};
pub use snapshot_format::manifest::names;
pub use verify::{VerifyError, VerifyReport};

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use sha2::{Digest, Sha256};
use snapshot_format::sections::{MachineState, RegionState};

use crate::memory::layout;

/// Bytes that are read, hashed or written at a time.
const STEP: usize = 1 << 20;

/// The machine that memory of `memory_bytes` bytes belongs to, as far as a memory index is bound to it.
fn machine_state(memory_bytes: u64, vcpus: u32, tsc_khz: u32) -> MachineState {
    let region = |r: &layout::Region| RegionState { start: r.start, len: r.len, file_offset: r.file_offset };
    MachineState { vcpus, regions: layout::regions(memory_bytes).iter().map(region).collect(), tsc_khz }
}

/// Calls `visit` with all of `file`'s first `len` bytes, in order, a step at a time.
fn read_in_steps<E: From<io::Error>>(
    file: &File,
    len: u64,
    mut visit: impl FnMut(u64, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut buffer = vec![0; STEP];
    let mut offset = 0;
    while offset < len {
        let step = usize::try_from(len - offset).unwrap_or(STEP).min(STEP);
        let part = &mut buffer[..step];
        file.read_exact_at(part, offset)?;
        visit(offset, part)?;
        offset += step as u64;
    }
    Ok(())
}

/// A digest as the manifest writes it.
fn hex(digest: Sha256) -> String {
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
