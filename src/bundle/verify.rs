//! Every checksum of every file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use serde::Serialize;
use sha2::{Digest, Sha256};
use snapshot_format::crc::crc64;
use snapshot_format::index::{MemoryIndex, Place, Run};
use snapshot_format::manifest::names;
use snapshot_format::sections::MachineState;
use snapshot_format::state::{DecodeError, decode_any};
use snapshot_format::zero::is_zero;

use super::content::{next_data, span};
use super::open::{Bundle, HintError, OpenError};
use super::{STEP, hex, machine_state, read_in_steps};

/// Why a bundle is not what was baked.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// A file is missing, damaged or of a wrong length.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A file has another content.
    #[error(
        "The bundle's file {name} does not match its sha256: it is damaged, bake or fetch the bundle again"
    )]
    Digest {
        /// The file.
        name: String,
    },
    /// Memory has another content.
    #[error(
        "The memory does not match its index at offset {offset:#x}: it is damaged, bake or fetch the bundle again"
    )]
    Chunk {
        /// Where the chunk begins in `memory`.
        offset: u64,
    },
    /// A section of the state cannot be decoded.
    #[error(transparent)]
    Section(#[from] DecodeError),
    /// The working set is damaged, or another bundle's.
    #[error(transparent)]
    WorkingSet(#[from] HintError),
    /// State and manifest describe different machines.
    #[error(
        "The bundle's state and its manifest describe different machines: its files do not belong together"
    )]
    Machine,
    /// Something that the manifest does not name.
    #[error("The bundle holds {name:?}, which its manifest does not name: move it elsewhere")]
    Unlisted {
        /// The file.
        name: String,
    },
    /// The system refused a read.
    #[error("Cannot read the bundle")]
    Read(#[from] io::Error),
}

impl VerifyError {
    /// Whether the bundle is to blame, rather than the host it is on.
    pub fn is_bad_bundle(&self) -> bool {
        match self {
            VerifyError::Open(error) => error.is_bad_bundle(),
            VerifyError::Read(source) => source.kind() == io::ErrorKind::UnexpectedEof,
            _ => true,
        }
    }
}

/// What was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// Files, the manifest included.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Chunks of memory with content.
    pub content_chunks: u64,
    /// Chunks of memory that are zero.
    pub zero_chunks: u64,
}

/// Tells how far a verification is: (bytes checked, bytes in all).
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

impl Bundle {
    /// Checks every checksum of every file, that the state decodes and describes the manifest's machine, and that the
    /// directory holds nothing else. Finds any single flipped bit.
    ///
    /// # Errors
    /// The first thing that is not right.
    pub fn verify(&self, progress: Progress<'_>) -> Result<VerifyReport, VerifyError> {
        self.check_listed()?;
        self.check_state()?;
        let index = self.index()?;
        self.working_set()?;
        let total = self.files().map(|(_, file)| file.len).sum();
        let mut done = 0;
        let mut advance = |bytes: u64| {
            done += bytes;
            progress(done, total);
        };
        for (name, entry) in &self.manifest().files {
            let file = self.plain(name)?;
            match &entry.sha256 {
                Some(expected) if *expected == sha256(&file.file, file.len, &mut advance)? => {}
                Some(_) => return Err(VerifyError::Digest { name: name.clone() }),
                // The manifest's check leaves this to `memory` alone.
                None => check_memory(&file.file, &index, &mut advance)?,
            }
        }
        Ok(VerifyReport {
            files: self.manifest().files.len() + 1,
            bytes: total,
            content_chunks: index.map().count(|place| place != Place::Zero),
            zero_chunks: index.map().count(|place| place == Place::Zero),
        })
    }

    fn check_listed(&self) -> Result<(), VerifyError> {
        let listed = |name: &str| name == names::MANIFEST || self.has(name);
        match self.listing.names()?.into_iter().find(|name| !name.to_str().is_some_and(listed)) {
            Some(name) => Err(VerifyError::Unlisted { name: name.to_string_lossy().into_owned() }),
            None => Ok(()),
        }
    }

    fn check_state(&self) -> Result<(), VerifyError> {
        let machine: MachineState = self.state()?.take(0)?;
        let manifest = self.manifest();
        let shape = &manifest.machine;
        if machine != machine_state(shape.memory_bytes, shape.vcpus, manifest.cpu.tsc_khz) {
            return Err(VerifyError::Machine);
        }
        let mut reader = self.state()?;
        for section in reader.sections().to_vec() {
            // An optional section of another release is none of ours to decode.
            if section.required || section.id.name().is_some() {
                decode_any(&mut reader, section.id, section.instance)?;
            }
        }
        Ok(reader.finish()?)
    }
}

fn sha256(file: &File, len: u64, advance: &mut impl FnMut(u64)) -> io::Result<String> {
    let mut digest = Sha256::new();
    read_in_steps::<io::Error>(file, len, |_, bytes| {
        digest.update(bytes);
        advance(bytes.len() as u64);
        Ok(())
    })?;
    Ok(hex(digest))
}

fn check_memory(file: &File, index: &MemoryIndex, advance: &mut impl FnMut(u64)) -> Result<(), VerifyError> {
    for run in index.map().runs() {
        match run.place {
            Place::Zero => {
                let zeros = span(&run, index.map());
                check_zero(file, zeros.start, zeros.end)?;
                advance(zeros.end - zeros.start);
            }
            Place::Here => check_content(file, index, &run, advance)?,
            Place::Parent { .. } => return Err(OpenError::Parent { chunks: u64::from(run.count) }.into()),
        }
    }
    Ok(())
}

fn check_content(
    file: &File,
    index: &MemoryIndex,
    run: &Run,
    advance: &mut impl FnMut(u64),
) -> Result<(), VerifyError> {
    let mut buffer = Vec::new();
    for number in run.first..run.first.saturating_add(run.count) {
        let (Some((offset, len)), Some(chunk)) = (index.map().extent(number), index.chunk(number)) else {
            break;
        };
        buffer.resize(usize::try_from(len).unwrap_or(STEP), 0);
        file.read_exact_at(&mut buffer, offset)?;
        if crc64(&buffer) != chunk.crc {
            return Err(VerifyError::Chunk { offset });
        }
        advance(len);
    }
    Ok(())
}

/// Holes read as zeros and are skipped; what the file system stores is read.
fn check_zero(file: &File, start: u64, end: u64) -> Result<(), VerifyError> {
    let mut buffer = vec![0; 64 << 10];
    let mut at = start;
    while let Some(data) = next_data(file, at, end)? {
        at = data.start;
        while at < data.end {
            let len = usize::try_from(data.end - at).unwrap_or(buffer.len()).min(buffer.len());
            file.read_exact_at(&mut buffer[..len], at)?;
            if !is_zero(&buffer[..len]) {
                return Err(VerifyError::Chunk { offset: at });
            }
            at += len as u64;
        }
    }
    Ok(())
}
