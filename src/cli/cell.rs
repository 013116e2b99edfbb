//! The jail around a machine's process, as commands use it: on unless the user wants none.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::FileType;
use serde::{Deserialize, Serialize};

use crate::jail::{
    self, Entry, Forked, Keeper, Kept, Level, List, MachineProcess, Order, Uids, Wall, Walls, fork_machine,
};

use super::apart::{died, pipe};
use super::console::Console;
use super::failure::{Failure, Kind};
use crate::devices::ConsoleSink;

/// What is said where there is no jail.
pub const NO_JAIL: &str = "--no-jail: nothing but KVM stands between the guest and this user's files, network and \
     processes: no user and no namespaces of its own, no list of system calls, no limits";

/// What is said where a guest runs in a process that writes files.
pub const BAKE: &str = "note: while a bundle is baked only its vCPUs are confined, because the same process writes the bundle: \
     bake what you trust, or in a container; clones of it are jailed";

/// The same of a working set that is recorded.
pub const RECORD: &str = "note: while a working set is recorded only vCPUs are confined, because the same process writes the bundle: \
     record what you trust, or in a container; clones of it are jailed";

/// How much may be written to a standard stream that is a file, beyond what is in it; bytes.
const OUTPUT_MAX: u64 = 16 << 30;

/// Which side of a fork one is on.
#[derive(Debug)]
pub enum Side {
    /// Whoever forked, with a handle of the machine's process.
    Parent(MachineProcess),
    /// The machine's process, and its way into its jail.
    Machine(Option<Entry>),
}

/// Forks a machine's process. With `jailed` the calling process has no file system and no network afterwards.
///
/// # Errors
/// See [`ForkError`](crate::jail::ForkError).
pub fn fork(jailed: bool) -> Result<Side, Failure> {
    if !jailed {
        return Ok(match fork_machine()? {
            Forked::Parent(machine) => Side::Parent(machine),
            Forked::Machine => Side::Machine(None),
        });
    }
    Ok(match Keeper::new()?.fork()? {
        Kept::Keeper(machine) => Side::Parent(machine),
        Kept::Machine(entry) => Side::Machine(Some(entry)),
        Kept::Lost(error) => return Err(error.into()),
    })
}

/// An open `/dev/null`: what is jailed cannot open it.
///
/// # Errors
/// There is none.
pub fn open_null() -> Result<File, Failure> {
    let opened = File::options().read(true).write(true).open("/dev/null");
    opened.map_err(|e| Failure::text(Kind::HostCannot, format!("Cannot open /dev/null: {e}")))
}

/// Where the console of a machine goes.
pub fn console_sink(console: &Console) -> ConsoleSink {
    if console.is_shown() {
        ConsoleSink::Stream(console.writer())
    } else {
        ConsoleSink::Memory(console.writer())
    }
}

/// The jail that a machine's process is to enter, or none.
#[derive(Debug)]
pub struct Cell<'a> {
    jail: Option<(Entry, BorrowedFd<'a>)>,
    /// What vCPUs are confined to.
    vcpus: Option<List>,
    whole: bool,
    bounded: bool,
}

impl<'a> Cell<'a> {
    /// The jail behind `entry`; `null` is what its process reads from then on.
    pub fn new(entry: Option<Entry>, null: &'a File) -> Self {
        let vcpus = entry.as_ref().map(|_| List::Vcpu);
        Cell { jail: entry.map(|entry| (entry, null.as_fd())), vcpus, whole: false, bounded: false }
    }

    /// None: the process may write a bundle, or run no guest at all.
    pub fn none() -> Self {
        Cell { jail: None, vcpus: None, whole: false, bounded: false }
    }

    /// For a machine that becomes a bundle: its vCPUs are confined, if `confined`, and nothing else of its process.
    #[must_use]
    pub fn for_bake(self, confined: bool) -> Self {
        Cell { vcpus: confined.then_some(List::SavedVcpu), ..self }
    }

    /// Makes a lacking wall a failure.
    #[must_use]
    pub fn whole(self, whole: bool) -> Self {
        Cell { whole, ..self }
    }

    /// Notes that the process has a control group of its own.
    #[must_use]
    pub fn bounded(self, bounded: bool) -> Self {
        Cell { bounded, ..self }
    }

    /// Whether there is a jail to enter.
    pub fn is_jail(&self) -> bool {
        self.jail.is_some()
    }

    /// What vCPUs are confined to.
    pub fn vcpus(&self) -> Option<List> {
        self.vcpus
    }

    /// Enters the jail: nothing can be opened afterwards. Files up to `file_bytes` long may be written.
    ///
    /// # Errors
    /// See [`JailError`](crate::jail::JailError); the process must end.
    pub fn enter(self, file_bytes: u64) -> Result<Inside, Failure> {
        let bounded = self.bounded;
        let Some((entry, null)) = self.jail else { return Ok(Inside { jail: None, bounded }) };
        let streams = [rustix::stdio::stdout(), rustix::stdio::stderr()];
        let file_bytes_max = streams.into_iter().map(room_in).fold(file_bytes, u64::max);
        let order = Order { uids: Uids::default(), file_bytes_max, null, whole: self.whole };
        Ok(Inside { jail: Some(entry.enter(&order)?), bounded })
    }
}

/// How long a stream may become, bytes; 0 where it is no file.
fn room_in(stream: BorrowedFd<'_>) -> u64 {
    let file = rustix::fs::fstat(stream).ok().filter(|stat| FileType::from_raw_mode(stat.st_mode).is_file());
    file.map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0).saturating_add(OUTPUT_MAX))
}

/// A machine's process that is in its jail, or has none.
#[derive(Debug)]
pub struct Inside {
    jail: Option<Walls>,
    bounded: bool,
}

impl Inside {
    /// Confines the calling thread to what a machine's main thread does: to be done when the machine is built, before its guest
    /// runs.
    ///
    /// # Errors
    /// The kernel has no seccomp filters.
    pub fn confine(&self) -> Result<(), Failure> {
        self.jail.as_ref().map_or(Ok(()), |_| Ok(jail::confine(List::Main)?))
    }

    /// What the user is told.
    pub fn told(&self) -> ToldJail {
        let mut told = self.jail.as_ref().map_or_else(ToldJail::none, ToldJail::of);
        told.standing.extend(self.bounded.then(|| Wall::Cgroup.name().to_owned()));
        told
    }
}

/// Jails a process that does nothing, to tell how a clone's would be.
///
/// # Errors
/// This host has no room for one, or it could not give up its rights.
pub fn probe() -> Result<ToldJail, Failure> {
    let (reader, writer) = pipe()?;
    // The calling process stays as it is: another is its keeper.
    match fork_machine()? {
        Forked::Machine => {
            drop(reader);
            if let Some(told) = jail_nobody().transpose() {
                // Whoever reads misses what is not written.
                serde_json::to_writer(&writer, &told).ok();
            }
            std::process::exit(0)
        }
        Forked::Parent(keeper) => {
            drop(writer);
            serde_json::from_reader(reader).unwrap_or_else(|_| Err(died(&keeper)))
        }
    }
}

/// What stands around a process; nothing in its keeper, which waits for it.
fn jail_nobody() -> Result<Option<ToldJail>, Failure> {
    let null = open_null()?;
    match fork(true)? {
        Side::Machine(entry) => {
            let inside = Cell::new(entry, &null).enter(0)?;
            inside.confine()?;
            Ok(Some(inside.told()))
        }
        Side::Parent(machine) => {
            // A process that said nothing is missed by whoever reads.
            machine.wait().ok();
            Ok(None)
        }
    }
}

/// What is told of a jail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToldJail {
    /// `full`; `user` without a user of its own; `partial`; `none`.
    pub level: String,
    /// Which walls stand.
    pub standing: Vec<String>,
    /// Which do not, and why.
    pub lacking: Vec<String>,
}

impl ToldJail {
    fn none() -> Self {
        ToldJail { level: Level::None.name().to_owned(), standing: Vec::new(), lacking: Vec::new() }
    }

    /// Around a machine whose process writes a bundle.
    pub fn vcpus_only() -> Self {
        let lacking = "all but the vCPUs' list of system calls (the same process writes the bundle)";
        ToldJail {
            level: Level::Partial.name().to_owned(),
            standing: Vec::new(),
            lacking: vec![lacking.to_owned()],
        }
    }

    fn of(walls: &Walls) -> Self {
        ToldJail {
            level: walls.level().name().to_owned(),
            standing: walls.standing().iter().map(|wall| wall.name().to_owned()).collect(),
            lacking: walls.lacking().iter().map(ToString::to_string).collect(),
        }
    }

    /// Whether more is lacking than what takes root.
    pub fn is_partial(&self) -> bool {
        self.level == Level::Partial.name()
    }

    /// Whether nothing is lacking.
    pub fn is_full(&self) -> bool {
        self.level == Level::Full.name()
    }

    /// The level, and what is lacking.
    pub fn summary(&self) -> String {
        match self.lacking.as_slice() {
            [] => self.level.clone(),
            all => format!("{}; lacking: {}", self.level, all.join(", ")),
        }
    }

    /// One line for a person.
    pub fn line(&self) -> String {
        format!("jail: {}", self.summary())
    }
}
