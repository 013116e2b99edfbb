//! The agent as PID 1.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use guest_protocol::{CONTROL_PORT, Cause, HOST_CID, Restore, RestoreEntry};
use rustix::mount::MountFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::system::RebootCommand;
use rustix::time::{ClockId, Timespec, clock_settime};

use crate::freeze;
use crate::identity::{MachineId, has_generation_driver};
use crate::io::Io;
use crate::root::{self, RootError};
use crate::runner::{Guest, MemoryCount};
use crate::session;
use crate::stop::Stop;
use crate::sys;

/// The root's drive: the first virtio block device.
const ROOT_DRIVE: &str = "/dev/vda";
/// The port of the Runtime API, as on AWS.
const RUNTIME_API_PORT: u16 = 9001;
/// What a restore changes for functions that already run: the environment, and the machine id under its own name.
const ENV_DIR: &str = "/run/ember";
/// Under [`ENV_DIR`].
const MACHINE_ID: &str = "/run/ember/machine-id";
/// Programs of the root that a clone runs before it acknowledges.
const HOOKS_DIR: &str = "/etc/ember/after-restore.d";
/// Kernel parameter that names a device to use in place of the vsock: for looking at an agent without Ember around it.
const CONTROL_PARAMETER: &str = "ember.control=";
/// How long the control stream's device may take to appear.
const APPEARS: Duration = Duration::from_secs(10);

/// Why a guest does not get as far as its contract.
#[derive(Debug, thiserror::Error)]
enum BootError {
    #[error(transparent)]
    Root(#[from] RootError),
    #[error("Cannot load the kernel module {module}")]
    Module { module: String, source: io::Error },
    #[error(
        "Cannot reach the host; does the kernel have vsock and vmw_vsock_virtio_transport, as modules or built in?"
    )]
    Control(#[source] io::Error),
    #[error("Cannot set up the loopback interface")]
    Loopback(#[source] io::Error),
    #[error("Cannot set the host name")]
    HostName(#[source] io::Error),
    #[error("Cannot give the guest a machine id of its own")]
    MachineId(#[source] io::Error),
    #[error("Cannot open {0}")]
    Open(&'static str, #[source] io::Error),
}

/// Sets the guest up, serves it, and powers off; returns only if even that fails.
pub fn run() -> Stop {
    let stop = serve();
    eprintln!("ember-agent: {stop}");
    match rustix::system::reboot(RebootCommand::PowerOff) {
        Ok(()) => stop,
        Err(error) => Stop::failed(Cause::Guest, format_args!("Cannot power off: {error}")),
    }
}

fn serve() -> Stop {
    let control = match prepare().and_then(|()| connect()) {
        Ok(control) => control,
        // Nobody but the console can be told.
        Err(error) => return Stop::chain(Cause::Guest, &error),
    };
    let mut io = match Io::new(control) {
        Ok(io) => io,
        Err(error) => return Stop::Control(error),
    };
    // From here on failures reach the host. The greeting travels while the root is mounted.
    let greeted = session::greet(&mut io, has_generation_driver());
    let stop = match greeted.and_then(|()| furnish().map_err(|e| Stop::chain(Cause::Guest, &e))) {
        Ok(mut machine) => session::run(&mut io, &mut machine),
        Err(stop) => stop,
    };
    session::say_farewell(&mut io, &stop);
    stop
}

/// What the control stream needs.
fn prepare() -> Result<(), BootError> {
    root::mount_at("proc", "/proc", MountFlags::empty(), c"")?;
    root::mount_at("sysfs", "/sys", MountFlags::empty(), c"")?;
    root::mount_at("devtmpfs", "/dev", MountFlags::empty(), c"mode=0755")?;
    load_modules()
}

/// Loads the modules of the initramfs in the order of their names, and frees the memory that holds their files.
fn load_modules() -> Result<(), BootError> {
    const MODULES: &str = "/modules";
    let mut modules: Vec<PathBuf> =
        fs::read_dir(MODULES).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    modules.retain(|module| module.extension().is_some_and(|extension| extension == "ko"));
    modules.sort();
    for module in modules {
        let load = || -> io::Result<()> {
            match rustix::system::finit_module(File::open(&module)?, c"", 0) {
                // Built in, or there already.
                Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(fs::remove_file(&module)?),
                Err(error) => Err(error.into()),
            }
        };
        load().map_err(|source| BootError::Module { module: module.display().to_string(), source })?;
    }
    Ok(())
}

fn connect() -> Result<OwnedFd, BootError> {
    let command_line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let device = command_line.split_whitespace().find_map(|word| word.strip_prefix(CONTROL_PARAMETER));
    let end = Instant::now() + APPEARS;
    loop {
        let opened = match device {
            Some(device) => File::options().read(true).write(true).open(device).map(OwnedFd::from),
            None => sys::vsock_connect(HOST_CID, CONTROL_PORT),
        };
        match opened {
            Ok(control) => return Ok(control),
            // The device is still being set up.
            Err(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(2)),
            Err(error) => return Err(BootError::Control(error)),
        }
    }
}

/// Everything that the function needs.
fn furnish() -> Result<Machine, BootError> {
    let loopback = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
    loopback.map_err(io::Error::from).and_then(sys::loopback_up).map_err(BootError::Loopback)?;
    rustix::system::sethostname(b"ember").map_err(|error| BootError::HostName(error.into()))?;
    root::enter(ROOT_DRIVE)?;
    root::mount_others(ROOT_DRIVE)?;
    const RANDOM: &str = "/dev/urandom";
    let random = File::open(RANDOM).map_err(|error| BootError::Open(RANDOM, error))?;
    let machine_id = root::make_private_dir(ENV_DIR).and_then(|()| MachineId::install(MACHINE_ID));
    Ok(Machine { random, machine_id: machine_id.map_err(BootError::MachineId)? })
}

/// The guest's own kernel.
struct Machine {
    /// Open from before the freeze on: a restore looks nothing up.
    random: File,
    machine_id: MachineId,
}

impl Guest for Machine {
    fn runtime_api_port(&self) -> u16 {
        RUNTIME_API_PORT
    }

    fn store_env(&self, environ: &[u8], owner: u32) -> Result<(), String> {
        let store = || -> io::Result<()> {
            let mut file = File::options()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o400)
                .open(format!("{ENV_DIR}/env"))?;
            std::os::unix::fs::fchown(&file, Some(owner), None)?;
            io::Write::write_all(&mut file, environ)
        };
        store().map_err(|error| format!("Cannot write {ENV_DIR}/env: {error}"))
    }

    fn hooks_dir(&self) -> &'static str {
        HOOKS_DIR
    }

    fn make_unique(&mut self, restore: &Restore<'_>) -> Result<(), String> {
        // First, for everything else takes time. A guest whose clocks were moved on was busy with that before it came here.
        let now = restore.entries.clock().and_then(|reading| reading.at(sys::tsc()));
        clock_settime(ClockId::Realtime, timespec(now.unwrap_or(restore.unix_time_ns)))
            .map_err(|e| format!("Cannot set the clock: {e}"))?;
        // Credited before the reseeding: a generator that was not ready yet is then, and takes the new key.
        sys::add_entropy(&self.random, &restore.entropy).map_err(|e| format!("Cannot add entropy: {e}"))?;
        sys::reseed(&self.random).map_err(|e| format!("Cannot reseed the random number generator: {e}"))?;
        for entry in restore.entries.iter() {
            match entry {
                RestoreEntry::HostName(name) => rustix::system::sethostname(name.as_bytes())
                    .map_err(|e| format!("Cannot set the host name: {e}"))?,
                RestoreEntry::MachineId(id) => {
                    self.machine_id.set(&id).map_err(|e| format!("Cannot set the machine id: {e}"))?;
                }
                RestoreEntry::Env(_) | RestoreEntry::Clock(_) => {}
            }
        }
        Ok(())
    }

    fn settle(&mut self) -> Result<(), String> {
        freeze::drop_caches().map_err(|error| format!("Cannot drop the caches: {error}"))
    }

    fn zero_free_memory(&mut self) -> Result<(), String> {
        freeze::zero_free_memory().map_err(|error| format!("Cannot make free memory zero: {error}"))
    }

    fn memory(&self) -> MemoryCount {
        freeze::memory()
    }

    fn goes_first(&mut self, first: bool) {
        sys::run_first(first).unwrap_or_default();
    }
}

fn timespec(ns: u64) -> Timespec {
    const SECOND: u64 = 1_000_000_000;
    Timespec {
        tv_sec: i64::try_from(ns / SECOND).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(ns % SECOND).unwrap_or_default(),
    }
}
