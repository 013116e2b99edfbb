//! What a machine is built from, opened ahead: once its process is jailed, nothing can be opened any more.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;

use snapshot_format::manifest::Drive;

use crate::bundle::{Bundle, OpenError};
use crate::config::Prefetch;
use crate::devices::{DriveBacking, DriveSetup};
use crate::jail::{List, confine, has_one_thread, wait_for_one_thread};
use crate::kvm::{KvmVm, System, VmError};
use crate::memory::{self, GuestMemory, OnStart};

use super::machine::{BuildError, Shape};
use super::prefetch::Hints;
use super::shell::Shell;
use super::start::{RestoreOptions, StartError};

/// The host's KVM, and how threads that run a guest on it are confined.
#[derive(Debug)]
pub struct Host {
    pub(super) system: System,
    /// A VM that was made with it.
    vm: Option<KvmVm>,
    confinement: Option<List>,
}

impl Host {
    /// Opens `/dev/kvm`. Each vCPU's thread confines itself to `confinement` before it runs the guest.
    ///
    /// # Errors
    /// See [`SystemError`](crate::kvm::SystemError).
    pub fn open(confinement: Option<List>) -> Result<Self, StartError> {
        Ok(Host { system: System::open()?, vm: None, confinement })
    }

    /// The same with `/dev/kvm` that is open already.
    ///
    /// # Errors
    /// See [`SystemError`](crate::kvm::SystemError).
    pub fn of_device(kvm: OwnedFd, confinement: Option<List>) -> Result<Self, StartError> {
        Ok(Host { system: System::from_fd(kvm)?, vm: None, confinement })
    }

    fn with_vm(self) -> Result<Self, StartError> {
        let vm = self.system.create_vm().map_err(BuildError::from)?;
        if has_one_thread() {
            return Ok(Host { vm: Some(vm), ..self });
        }
        // Linux 6.13 starts a thread in this process with its first VM, and one that has two cannot enter a jail. It ends after its VM.
        drop(vm);
        if wait_for_one_thread() { Ok(self) } else { Err(StartError::VmThread) }
    }

    /// The VM that was made ahead, or one that is made now, apart from the rest.
    pub(super) fn vm(mut self) -> Result<(Self, KvmVm), VmError> {
        let vm = self.vm.take().map_or_else(|| self.system.create_vm(), Ok)?;
        Ok((self, vm))
    }

    /// What a vCPU's thread does first.
    pub(super) fn confine_vcpu(&self) -> impl FnOnce() -> Result<(), String> + Send + 'static {
        let list = self.confinement;
        move || list.map_or(Ok(()), |list| confine(list).map_err(|e| sentence(&e)))
    }

    /// What a thread beside the vCPUs does first: it is confined, to `list`, where they are and no bundle is written. A pager that
    /// fails while one is has files to remove.
    pub(super) fn confine_thread(&self, list: List) -> OnStart {
        let confined = self.confinement == Some(List::Vcpu);
        Box::new(move || if confined { confine(list).map_err(io::Error::other) } else { Ok(()) })
    }
}

fn sentence(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

/// What a machine is built on.
#[derive(Debug)]
pub(super) enum Ground {
    /// Nothing yet.
    Host(Host),
    /// A shell that waited.
    Shell(Box<Shell>),
}

impl Ground {
    /// The host, for what a shell does not do.
    pub(super) fn host(self) -> Result<Host, StartError> {
        match self {
            Ground::Host(host) => Ok(host),
            Ground::Shell(_) => Err(StartError::ShellBoot),
        }
    }

    /// What a thread beside the vCPUs does first. A shell may start none.
    pub(super) fn confine_thread(&self, list: List) -> OnStart {
        match self {
            Ground::Host(host) => host.confine_thread(list),
            Ground::Shell(_) => Box::new(|| Ok(())),
        }
    }

    pub(super) fn is_shell(&self) -> bool {
        matches!(self, Ground::Shell(_))
    }

    /// What the thread that copies late does first; none where no thread may be started.
    pub(super) fn late_thread(&self) -> Option<OnStart> {
        match self {
            Ground::Host(host) => Some(host.confine_thread(List::Prefetch)),
            Ground::Shell(_) => None,
        }
    }

    /// A view of a bundle's `memory` file, of which `zeros` are zero: a new one, or one in the place of what the shell has.
    pub(super) fn copy_on_write(
        &self,
        file: &File,
        zeros: &[Range<u64>],
        shape: Shape,
    ) -> Result<GuestMemory, StartError> {
        match self {
            Ground::Host(_) => Ok(memory::copy_on_write(file, shape.memory_bytes, zeros)?),
            Ground::Shell(shell) if shell.shape() == shape => {
                memory::copy_on_write_over(shell.memory(), file, zeros)?;
                Ok(shell.memory().clone())
            }
            Ground::Shell(_) => Err(StartError::ShellShape),
        }
    }
}

/// Everything a clone needs beside the files of its bundle, which are open.
#[derive(Debug)]
pub struct Opened {
    pub(super) ground: Ground,
    pub(super) drives: Vec<DriveSetup>,
    pub(super) hints: Hints,
}

impl Opened {
    /// Opens it. Writable drives get a private copy that nobody else can see.
    ///
    /// # Errors
    /// KVM is not usable, or there is no room for what a clone writes.
    pub fn new(bundle: &Bundle, confinement: Option<List>) -> Result<Self, StartError> {
        let drives = drives(bundle, |drive| {
            private_file().map_err(|source| StartError::Delta { id: drive.to_owned(), source })
        })?;
        Ok(Opened { ground: Ground::Host(Host::open(confinement)?), drives, hints: Hints::default() })
    }

    /// Makes the VM ahead of the rest: a process that is to be jailed has nothing else to do while its room is being made.
    ///
    /// # Errors
    /// KVM makes none.
    pub fn with_vm(self) -> Result<Self, StartError> {
        let ground = match self.ground {
            Ground::Host(host) => Ground::Host(host.with_vm()?),
            Ground::Shell(shell) => Ground::Shell(shell),
        };
        Ok(Opened { ground, ..self })
    }

    /// Adds what is known of what a clone of `bundle` will touch.
    #[must_use]
    pub fn with_hints(self, bundle: &Bundle, options: &RestoreOptions) -> Self {
        Opened { hints: Hints::of(bundle, options.prefetch).with_host(options), ..self }
    }

    /// A shell, and what somebody else has opened for it. It can open nothing itself: it looks for no huge pages, and knows of no
    /// memory limit but that of its own group, which left `memory_left` bytes.
    pub fn in_shell(
        shell: Shell,
        drives: Vec<DriveSetup>,
        bundle: &Bundle,
        prefetch: Prefetch,
        memory_left: Option<u64>,
    ) -> Self {
        let ground = Ground::Shell(Box::new(shell));
        Opened { ground, drives, hints: Hints::of(bundle, prefetch).within(memory_left) }
    }
}

/// Each drive of a bundle; what is written to one that can be goes to the file that `delta` gives for its id.
///
/// # Errors
/// A file of the bundle is missing, or what `delta` says.
pub fn drives<E: From<OpenError>>(
    bundle: &Bundle,
    mut delta: impl FnMut(&str) -> Result<File, E>,
) -> Result<Vec<DriveSetup>, E> {
    let drive = |drive: &Drive| {
        let base = bundle.drive(&drive.id)?;
        let backing = if drive.read_only {
            DriveBacking::ReadOnly(base)
        } else {
            DriveBacking::CopyOnWrite { base, delta: delta(&drive.id)? }
        };
        Ok(DriveSetup { id: drive.id.clone(), backing })
    };
    bundle.manifest().drives.iter().map(drive).collect()
}

/// A file without a name: it is gone with the machine, however that ends.
///
/// # Errors
/// The folder for temporary files cannot hold one.
pub fn private_file() -> io::Result<File> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    Ok(rustix::fs::open(std::env::temp_dir(), flags, Mode::RUSR | Mode::WUSR)?.into())
}
