//! The two ways a machine starts, as plans for the one constructor.

use std::fs::File;
use std::io;
use std::time::Duration;

use crate::boot::{
    BootError, BootMachine, EntryPoint, Kernel, KernelError, SmallGuest, SmallGuestError, VirtioDevice,
};
use crate::bundle::{Bundle, OpenError, VerifyError};
use crate::config::{Backend, Paging, Prefetch, Verify};
use crate::devices::{ConsoleSink, DeviceSetup, DriveSetup, GENERATION_LEN, VirtioWindow};
use crate::jail::{self, LastWords, List};
use crate::kvm::SystemError;
use crate::memory::{
    self, ChunkError, Door, GuestMemory, MapError, OnFailure, OnStart, PagedError, Pager, RecordError,
    Recorder,
};

use super::machine::{BuildError, Machine, Origin, Plan, Shape};
use super::opened::{Ground, Host, Opened};
use super::prefetch::Ahead;
use super::saved::{SavedError, SavedMachine};
use super::timeline::Timeline;

/// Longest time from power-on to the agent's greeting when nobody says otherwise.
pub const BOOT_MAX: Duration = Duration::from_secs(120);
/// What a clone ends with that finds a page missing in its memory file, for which the kernel gives no reason.
pub const MEMORY_CUT_SHORT: &str = "The bundle's file memory was cut short while the clone ran, or its disk fails or is full: never write to a bundle";
/// The guest's context id on its vsock; every clone has the same, its device is its own.
const GUEST_CID: u64 = 3;

/// Why a machine could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A file of the bundle is missing, damaged or of a wrong length.
    #[error(transparent)]
    Bundle(#[from] OpenError),
    /// KVM is not usable.
    #[error(transparent)]
    System(#[from] SystemError),
    /// The saved state cannot be used.
    #[error("The bundle's state cannot be used")]
    Saved(#[from] SavedError),
    /// A file of the bundle is not what was baked.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// Guest memory could not be mapped.
    #[error(transparent)]
    Map(#[from] MapError),
    /// Guest memory cannot be served by a pager.
    #[error(transparent)]
    Paged(#[from] PagedError),
    /// A page that is to be brought in is not what was baked.
    #[error(transparent)]
    Chunk(#[from] ChunkError),
    /// The pager could not be asked.
    #[error("Cannot ask the pager for the working set")]
    Prefetch(#[source] io::Error),
    /// The pages that a clone touches cannot be noted.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// No second handle on the memory file.
    #[error("Cannot open the bundle's file memory once more")]
    MemoryFile(#[source] io::Error),
    /// A memory file that is cut short could not be met.
    #[error("Cannot set up what meets a memory file that is cut short")]
    Watch(#[source] io::Error),
    /// The machine could not be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The bundle's kernel cannot be booted.
    #[error("The bundle's kernel cannot be booted")]
    Load(#[from] LoadError),
    /// KVM's thread in this process outlives its VM.
    #[error(
        "A thread of KVM's in this process does not end, and a process with two threads cannot be jailed; try again"
    )]
    VmThread,
    /// A shell was made for another machine.
    #[error("The shell that waited is of another shape than the bundle's machine")]
    ShellShape,
    /// A shell's memory comes from a mapped file.
    #[error("A shell of a pool takes its memory by mmap, not by uffd")]
    ShellPaging,
    /// A shell can only be restored into.
    #[error("A shell of a pool cannot be booted")]
    ShellBoot,
    /// No room for what a clone writes to a drive.
    #[error("Cannot make the private copy of drive {id}")]
    Delta {
        /// The drive.
        id: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What no two machines share: content of the VM Generation ID, and of the restore message.
pub type Generation = [u8; GENERATION_LEN];

/// How a clone is restored.
pub struct RestoreOptions {
    /// What serves its pages.
    pub paging: Paging,
    /// What is checked of its bundle.
    pub verify: Verify,
    /// What is brought in before the guest asks.
    pub prefetch: Prefetch,
    /// Where a userfaultfd comes from.
    pub door: Door,
    /// Whether to count the page faults of each vCPU.
    pub count_faults: bool,
    /// What is to be done on the pager's thread when it fails. It must end the process.
    pub on_pager_failure: OnFailure,
    /// What the process says at its end when its memory file was cut short; not watched for where it is `None`.
    pub memory_cut_short: Option<LastWords>,
}

impl std::fmt::Debug for RestoreOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RestoreOptions")
            .field("paging", &self.paging)
            .field("verify", &self.verify)
            .field("door", &self.door)
            .finish_non_exhaustive()
    }
}

impl RestoreOptions {
    /// Makes the userfaultfd that a restore with these options needs, for a process that will be able to open nothing.
    ///
    /// # Errors
    /// There is none where one is needed.
    pub fn with_door_open(mut self) -> Result<Self, StartError> {
        if self.paging.backend(self.verify) == Backend::Uffd {
            self.door = self.door.made().map_err(PagedError::from)?;
        }
        Ok(self)
    }
}

/// Restores a clone from `bundle`. No guest instruction has run yet; the first will find `generation` in place and be
/// interrupted because of it.
///
/// # Errors
/// See [`StartError`].
pub fn restore(
    bundle: &Bundle,
    opened: Opened,
    generation: Generation,
    options: RestoreOptions,
    console: impl Into<ConsoleSink>,
    timeline: &mut Timeline,
) -> Result<Machine, StartError> {
    let shape = Shape::of(bundle);
    if options.verify == Verify::All {
        bundle.verify(&mut |_, _| {})?;
        timeline.mark("verify");
    }
    let saved = saved(bundle, shape)?;
    timeline.mark("read state");
    let count_faults = options.count_faults;
    let Opened { ground, drives, hints } = opened;
    let ahead = Ahead::new(hints, &options, ground.late_thread());
    let (memory, source) = clone_memory(bundle, shape, &ground, options)?;
    let generation = (!is_port(bundle)).then_some(generation);
    let devices = setup(generation, drives, console.into(), ground.confine_thread(List::Console));
    timeline.mark("map memory");
    let ahead = ahead.bring_in(bundle, &memory, &source)?;
    timeline.mark("prefetch");
    let origin = Origin::Saved(Box::new(saved));
    let pager = source.pager();
    let machine = match ground {
        Ground::Host(host) => {
            Machine::build(Plan { host, shape, memory, devices, origin, ahead, count_faults, timeline })
        }
        Ground::Shell(shell) => shell.fill(devices, origin, ahead, timeline),
    };
    Ok(machine?.served_by(pager))
}

/// How the memory of a clone that is watched comes into being.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Watched {
    /// Each page's first touch is noted.
    Touches,
    /// Pages of the clone's own are those that were written.
    Writes,
}

/// Restores a clone that is watched.
///
/// # Errors
/// See [`StartError`].
pub(super) fn restore_watched(
    bundle: &Bundle,
    generation: Generation,
    watched: Watched,
    timeline: &mut Timeline,
) -> Result<(Machine, GuestMemory, Option<Recorder>), StartError> {
    let shape = Shape::of(bundle);
    let origin = Origin::Saved(Box::new(saved(bundle, shape)?));
    let (memory, recorder) = match watched {
        // All of it is the file's: of what is not, nobody can tell whether it was only read.
        Watched::Writes => (memory::copy_on_write(bundle.memory()?, shape.memory_bytes, &[])?, None),
        Watched::Touches => {
            let file = bundle.memory()?.try_clone().map_err(StartError::MemoryFile)?;
            let (memory, recorder) = memory::recorded(file, shape.memory_bytes)?;
            (memory, Some(recorder))
        }
    };
    let generation = (!is_port(bundle)).then_some(generation);
    let Opened { ground, drives, hints: _ } = Opened::new(bundle, Some(List::Vcpu))?;
    let host = ground.host()?;
    let console = ConsoleSink::Memory(Box::new(io::sink()));
    let devices = setup(generation, drives, console, host.confine_thread(List::Console));
    let (watched, ahead) = (memory.clone(), Ahead::default());
    let plan = Plan { host, shape, memory, devices, origin, ahead, count_faults: false, timeline };
    Ok((Machine::build(plan)?, watched, recorder))
}

/// The bundle's state, its clocks where the clone's begin.
fn saved(bundle: &Bundle, shape: Shape) -> Result<SavedMachine, StartError> {
    let mut saved = SavedMachine::take(bundle.state()?, &shape)?;
    if bundle.manifest().machine.advance_clock {
        saved.advance_clocks()?;
    }
    Ok(saved)
}

/// What brings a clone's pages in.
pub(super) enum Source<'a> {
    /// The kernel, from the mapped file.
    File(&'a File),
    /// A thread of this process, from the file.
    Pager(Pager, File),
}

impl Source<'_> {
    fn pager(self) -> Option<Pager> {
        match self {
            Source::File(_) => None,
            Source::Pager(pager, _) => Some(pager),
        }
    }
}

/// The clone's memory, and what its pages come from.
fn clone_memory<'a>(
    bundle: &'a Bundle,
    shape: Shape,
    ground: &Ground,
    options: RestoreOptions,
) -> Result<(GuestMemory, Source<'a>), StartError> {
    match options.paging.backend(options.verify) {
        Backend::Mmap => {
            let (file, zeros) = bundle.memory_and_zeros()?;
            let memory = ground.copy_on_write(file, &zeros, shape)?;
            if let Some(words) = options.memory_cut_short {
                jail::watch_mapped_files(memory::addresses(&memory), words).map_err(StartError::Watch)?;
            }
            Ok((memory, Source::File(file)))
        }
        Backend::Uffd if ground.is_shell() => Err(StartError::ShellPaging),
        Backend::Uffd => {
            let chunks = bundle.chunks(options.verify.checks_chunks())?;
            let RestoreOptions { door, on_pager_failure, .. } = options;
            let file = chunks.file().map_err(StartError::MemoryFile)?;
            let confine = ground.confine_thread(List::Pager);
            let (memory, pager) =
                memory::paged(Box::new(chunks), shape.memory_bytes, door, confine, on_pager_failure)?;
            Ok((memory, Source::Pager(pager, file)))
        }
    }
}

fn is_port(bundle: &Bundle) -> bool {
    bundle.manifest().function.interface == snapshot_format::manifest::Interface::Port
}

/// The devices of a Linux guest, which has a generation, or of a small one.
fn setup(
    generation: Option<Generation>,
    drives: Vec<DriveSetup>,
    console: ConsoleSink,
    thread_start: OnStart,
) -> DeviceSetup {
    let linux = generation.is_some();
    let vsock_cid = linux.then_some(GUEST_CID);
    DeviceSetup { drives, vsock_cid, rng: linux, generation, port: !linux, console, thread_start }
}

/// Boots the bundle's kernel with the bundle's root again, as the bake did.
///
/// # Errors
/// See [`StartError`].
pub fn boot_again(
    bundle: &Bundle,
    opened: Opened,
    generation: Generation,
    console: impl Into<ConsoleSink>,
    timeline: &mut Timeline,
) -> Result<Machine, StartError> {
    let machine = &bundle.manifest().machine;
    let image = if is_port(bundle) {
        Image::Small(SmallGuest::from_bytes(bundle.kernel()?).map_err(LoadError::from)?)
    } else {
        let kernel = Kernel::from_bytes(bundle.kernel()?).map_err(LoadError::from)?;
        Image::Linux { kernel, initramfs: bundle.initramfs()? }
    };
    let Opened { ground, drives, hints: _ } = opened;
    let start = ColdStart {
        host: ground.host()?,
        shape: Shape { memory_bytes: machine.memory_bytes, vcpus: machine.vcpus },
        image: &image,
        command_line: machine.kernel_cmdline.clone(),
        generation,
        drives,
        console: console.into(),
    };
    timeline.mark("read kernel");
    boot(start, timeline)
}

/// What a cold start loads.
#[derive(Debug)]
pub enum Image {
    /// A Linux kernel, with the initramfs that holds the agent.
    Linux {
        /// bzImage or ELF.
        kernel: Kernel,
        /// cpio archive.
        initramfs: Vec<u8>,
    },
    /// A guest without Linux.
    Small(SmallGuest),
}

/// What a cold start needs.
pub struct ColdStart<'a> {
    /// KVM.
    pub host: Host,
    /// Memory and vCPUs.
    pub shape: Shape,
    /// What runs.
    pub image: &'a Image,
    /// Kernel command line.
    pub command_line: String,
    /// Unlike any other machine's; small guests are not told.
    pub generation: Generation,
    /// Drives, `root` first.
    pub drives: Vec<DriveSetup>,
    /// Where the guest's serial output goes.
    pub console: ConsoleSink,
}

impl std::fmt::Debug for ColdStart<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ColdStart")
            .field("shape", &self.shape)
            .field("command_line", &self.command_line)
            .field("drives", &self.drives)
            .finish_non_exhaustive()
    }
}

/// Builds a machine that boots. No guest instruction has run yet.
///
/// # Errors
/// See [`StartError`].
pub fn boot(start: ColdStart<'_>, timeline: &mut Timeline) -> Result<Machine, StartError> {
    let ColdStart { host, shape, image, command_line, generation, drives, console } = start;
    let memory = memory::anonymous(shape.memory_bytes)?;
    let generation = matches!(*image, Image::Linux { .. }).then_some(generation);
    let devices = setup(generation, drives, console, host.confine_thread(List::Console));
    let load =
        |memory: &GuestMemory, windows: &[VirtioWindow]| image.load(memory, &command_line, shape, windows);
    timeline.mark("map memory");
    let origin = Origin::Cold(&load);
    let ahead = Ahead::default();
    Ok(Machine::build(Plan { host, shape, memory, devices, origin, ahead, count_faults: false, timeline })?)
}

/// Why an image could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A Linux kernel.
    #[error(transparent)]
    Linux(#[from] BootError),
    /// A small guest.
    #[error(transparent)]
    Small(#[from] SmallGuestError),
    /// The kernel's file.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

impl Image {
    fn load(
        &self,
        memory: &GuestMemory,
        line: &str,
        shape: Shape,
        windows: &[VirtioWindow],
    ) -> Result<EntryPoint, LoadError> {
        match self {
            Image::Small(guest) => Ok(guest.load(memory, line)?),
            Image::Linux { kernel, initramfs } => {
                let machine = BootMachine {
                    vcpus: shape.vcpus,
                    memory_bytes: shape.memory_bytes,
                    virtio: windows
                        .iter()
                        .map(|w| VirtioDevice { base: w.base, len: w.len, gsi: w.gsi })
                        .collect(),
                    serial: true,
                    vmgenid: true,
                };
                Ok(crate::boot::load(memory, kernel, Some(initramfs), line, &machine)?)
            }
        }
    }
}
