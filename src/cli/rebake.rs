//! `ember run --bake-to`: a clone becomes a bundle of its own once it has answered.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use snapshot_format::manifest::{CpuRequirements, Manifest, names};
use snapshot_format::state::{CURRENT, FormatVersion};

use crate::bundle::{Bundle, Draft, Finished, MemoryReport};
use crate::vm::{self, AnswerSink, Drive, Frozen, Timeline};

use super::args::RunArgs;
use super::failure::Failure;

/// What is said of a client with after-restore hooks.
const NO_CLIENT_HOOKS: &str = "note: the client's own after-restore hooks do not run in clones of this bundle, because its client has gone on from \
     its restore: what they make unique (Python's random, say) is the same in all of them, unless a program in \
     /etc/ember/after-restore.d makes it new";

/// Tells the user what clones of the bundle lack.
pub fn warn(parent: &Manifest) {
    if parent.function.lambda.as_ref().is_some_and(|lambda| lambda.snap_start) {
        eprintln!("{NO_CLIENT_HOOKS}");
    }
}

/// A bundle that is to be written.
#[derive(Debug)]
pub struct Rebake {
    draft: Draft,
    format: FormatVersion,
}

/// What the user is told of a bundle that was written.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Rebaked {
    /// Where it is.
    pub bundle: PathBuf,
    /// Bytes of memory in it that are not zero.
    pub content_bytes: u64,
    /// A replaced bundle that could not be removed.
    pub leftover: Option<PathBuf>,
}

impl Rebake {
    /// Makes the place to write in, before anything runs; nothing when nothing is to be baked.
    ///
    /// # Errors
    /// The target cannot be written, or is there and may not be replaced.
    pub fn begin(args: &RunArgs) -> Result<Option<Self>, Failure> {
        let Some(target) = &args.bake_to else { return Ok(None) };
        let draft = Draft::create(target, args.force)?;
        Ok(Some(Rebake { draft, format: args.format.unwrap_or(CURRENT) }))
    }

    /// Where it is written until it is whole.
    pub fn directory(&self) -> PathBuf {
        self.draft.directory()
    }

    /// Takes the clone to its warm point, freezes it for good, and writes the bundle. Within `limit` it must be ready for the
    /// next event.
    ///
    /// # Errors
    /// The guest does not get to its warm point, or the bundle cannot be written; nothing of it is left.
    pub fn bake(
        mut self,
        bundle: &Bundle,
        drive: &mut Drive<'_>,
        limit: Duration,
        sink: &mut dyn AnswerSink,
        timeline: &mut Timeline,
    ) -> Result<Rebaked, Failure> {
        vm::to_warm_point_again(drive, limit, sink)?;
        timeline.mark("to the warm point");
        let frozen = drive.machine().freeze()?;
        let (cpu, memory) = self.write(bundle, frozen)?;
        let finished = self.draft.finish(manifest(bundle.manifest(), bundle, self.format, cpu))?;
        timeline.mark("write the bundle");
        let Finished { path, files: _, leftover } = finished;
        Ok(Rebaked { bundle: path, content_bytes: memory.content, leftover })
    }

    fn write(
        &mut self,
        bundle: &Bundle,
        mut frozen: Frozen<'_>,
    ) -> Result<(CpuRequirements, MemoryReport), Failure> {
        let parent = bundle.manifest();
        self.draft.add_bytes(names::STATE, &frozen.capture(self.format)?)?;
        let (memory, len) = (frozen.memory(), parent.machine.memory_bytes);
        let memory = self.draft.write_memory(memory, &bundle.content()?, len, frozen.tsc_khz())?;
        for drive in parent.drives.iter().filter(|drive| !drive.read_only) {
            frozen.write_drive(&drive.id, &self.draft.new_file(&drive.file)?)?;
        }
        let read_only = parent.drives.iter().filter(|drive| drive.read_only).map(|drive| drive.file.as_str());
        let images = [names::KERNEL, names::INITRAMFS].into_iter().filter(|name| bundle.has(name));
        read_only.chain(images).try_for_each(|name| self.draft.share(bundle, name))?;
        // A parent that was cut short meanwhile has holes where content was.
        bundle.check_lengths()?;
        let cpu = CpuRequirements { tsc_khz: frozen.tsc_khz(), ..parent.cpu.clone() };
        // It has become a bundle, and nobody wants it to run on.
        frozen.keep();
        Ok((cpu, memory))
    }
}

/// What was true of the bundle that was run and is of its clone; the files follow.
fn manifest(parent: &Manifest, bundle: &Bundle, format: FormatVersion, cpu: CpuRequirements) -> Manifest {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Manifest {
        format: format.to_string(),
        creator: format!("ember {}", env!("CARGO_PKG_VERSION")),
        created_unix_ms: u64::try_from(since.as_millis()).unwrap_or(0),
        cpu,
        parent: Some(bundle.as_parent()),
        files: std::collections::BTreeMap::new(),
        ..parent.clone()
    }
}
