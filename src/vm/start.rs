//! The two ways a machine starts, as plans for the one constructor.

use std::io::{self, Write};
use std::time::Duration;

use crate::boot::{
    BootError, BootMachine, EntryPoint, Kernel, KernelError, SmallGuest, SmallGuestError, VirtioDevice,
};
use crate::bundle::{Bundle, OpenError};
use crate::devices::{DeviceSetup, DriveSetup, GENERATION_LEN, VirtioWindow};
use crate::kvm::SystemError;
use crate::memory::{self, GuestMemory, MapError};

use super::capture::unix_ns;
use super::machine::{BuildError, Machine, Origin, Plan, Shape};
use super::opened::{Host, Opened};
use super::saved::{SavedError, SavedMachine};
use super::timeline::Timeline;

/// Longest time from power-on to the agent's greeting when nobody says otherwise.
pub const BOOT_MAX: Duration = Duration::from_secs(120);
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
    /// Guest memory could not be mapped.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The machine could not be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The bundle's kernel cannot be booted.
    #[error("The bundle's kernel cannot be booted")]
    Load(#[from] LoadError),
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

/// Restores a clone from `bundle`. No guest instruction has run yet; the first will find `generation` in place and be
/// interrupted because of it.
///
/// # Errors
/// See [`StartError`].
pub fn restore(
    bundle: &Bundle,
    opened: Opened,
    generation: Generation,
    console: Box<dyn Write + Send>,
    timeline: &mut Timeline,
) -> Result<Machine, StartError> {
    let manifest = bundle.manifest();
    let shape = Shape { memory_bytes: manifest.machine.memory_bytes, vcpus: manifest.machine.vcpus };
    let mut saved = SavedMachine::take(bundle.state()?, &shape)?;
    if manifest.machine.advance_clock {
        saved.advance_clocks(unix_ns())?;
    }
    timeline.mark("read state");
    let memory = memory::copy_on_write(bundle.memory()?, shape.memory_bytes)?;
    let generation = (!is_port(bundle)).then_some(generation);
    let Opened { host, drives } = opened;
    let devices = setup(generation, drives, console);
    timeline.mark("map memory");
    let origin = Origin::Saved(Box::new(saved));
    Ok(Machine::build(Plan { host, shape, memory, devices, origin, timeline })?)
}

fn is_port(bundle: &Bundle) -> bool {
    bundle.manifest().function.interface == snapshot_format::manifest::Interface::Port
}

/// The devices of a Linux guest, which has a generation, or of a small one.
fn setup(
    generation: Option<Generation>,
    drives: Vec<DriveSetup>,
    console: Box<dyn Write + Send>,
) -> DeviceSetup {
    let linux = generation.is_some();
    let vsock_cid = linux.then_some(GUEST_CID);
    DeviceSetup { drives, vsock_cid, rng: linux, generation, port: !linux, console }
}

/// Boots the bundle's kernel with the bundle's root again, as the bake did.
///
/// # Errors
/// See [`StartError`].
pub fn boot_again(
    bundle: &Bundle,
    opened: Opened,
    generation: Generation,
    console: Box<dyn Write + Send>,
    timeline: &mut Timeline,
) -> Result<Machine, StartError> {
    let machine = &bundle.manifest().machine;
    let image = if is_port(bundle) {
        Image::Small(SmallGuest::from_bytes(bundle.kernel()?).map_err(LoadError::from)?)
    } else {
        let kernel = Kernel::from_bytes(bundle.kernel()?).map_err(LoadError::from)?;
        Image::Linux { kernel, initramfs: bundle.initramfs()? }
    };
    let Opened { host, drives } = opened;
    let start = ColdStart {
        host,
        shape: Shape { memory_bytes: machine.memory_bytes, vcpus: machine.vcpus },
        image: &image,
        command_line: machine.kernel_cmdline.clone(),
        generation,
        drives,
        console,
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
    pub console: Box<dyn Write + Send>,
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
    let devices = setup(generation, drives, console);
    let load =
        |memory: &GuestMemory, windows: &[VirtioWindow]| image.load(memory, &command_line, shape, windows);
    timeline.mark("map memory");
    Ok(Machine::build(Plan { host, shape, memory, devices, origin: Origin::Cold(&load), timeline })?)
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
