//! Which walls stand around a machine's process, and which are lacking.

use std::fmt;
use std::io;

/// One kind of confinement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wall {
    /// A user and a group that no other process has.
    OwnUser,
    /// A user namespace in which the process has no rights.
    UserNamespace,
    /// Sees and signals no other process.
    PidNamespace,
    /// An empty, read-only root directory in a mount namespace of its own.
    EmptyRoot,
    /// A network namespace without a network.
    NoNetwork,
    /// System V and POSIX message queues, semaphores and shared memory of its own.
    IpcNamespace,
    /// A host name of its own.
    UtsNamespace,
    /// No capability, and none to be had.
    NoCapabilities,
    /// No program can give it rights (`PR_SET_NO_NEW_PRIVS`).
    NoNewPrivileges,
    /// Landlock: no path, no TCP port, no abstract socket, no signal to others.
    Landlock,
    /// Limits of descriptors, processes and file sizes; no core dump.
    ResourceLimits,
    /// Descriptors that the caller left open are closed.
    OwnDescriptors,
    /// Bounds of memory, processor time and processes, where asked for.
    Cgroup,
    /// Lists of system calls, a thread's own each.
    Seccomp,
}

impl Wall {
    /// Every wall that belongs to a whole jail: landlock stands behind the empty root, a cgroup where one is asked for.
    const WHOLE: [Wall; 12] = [
        Wall::OwnUser,
        Wall::UserNamespace,
        Wall::PidNamespace,
        Wall::EmptyRoot,
        Wall::NoNetwork,
        Wall::IpcNamespace,
        Wall::UtsNamespace,
        Wall::NoCapabilities,
        Wall::NoNewPrivileges,
        Wall::ResourceLimits,
        Wall::OwnDescriptors,
        Wall::Seccomp,
    ];

    /// The name by which people and programs are told.
    pub fn name(self) -> &'static str {
        match self {
            Wall::OwnUser => "own-user",
            Wall::UserNamespace => "user-namespace",
            Wall::PidNamespace => "pid-namespace",
            Wall::EmptyRoot => "empty-root",
            Wall::NoNetwork => "no-network",
            Wall::IpcNamespace => "ipc-namespace",
            Wall::UtsNamespace => "uts-namespace",
            Wall::NoCapabilities => "no-capabilities",
            Wall::NoNewPrivileges => "no-new-privileges",
            Wall::Landlock => "landlock",
            Wall::ResourceLimits => "resource-limits",
            Wall::OwnDescriptors => "own-descriptors",
            Wall::Cgroup => "cgroup",
            Wall::Seccomp => "seccomp",
        }
    }
}

/// A wall that does not stand, and why.
#[derive(Debug)]
pub struct Lack {
    /// Which.
    pub wall: Wall,
    /// What the kernel said.
    pub why: io::Error,
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.wall, self.why.kind()) {
            // ENOSPC, which says nothing about any disk here (user_namespaces(7)).
            (Wall::UserNamespace, io::ErrorKind::StorageFull) => {
                write!(f, "{} (user.max_user_namespaces of this host allows no more)", self.wall.name())
            }
            _ => write!(f, "{} ({})", self.wall.name(), self.why),
        }
    }
}

/// How much of a whole jail there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Everything.
    Full,
    /// Everything but a user of its own, which takes root.
    User,
    /// Less.
    Partial,
    /// The user wanted none.
    None,
}

impl Level {
    /// The name by which people and programs are told.
    pub fn name(self) -> &'static str {
        match self {
            Level::Full => "full",
            Level::User => "user",
            Level::Partial => "partial",
            Level::None => "none",
        }
    }
}

/// The walls of one process.
#[derive(Debug, Default)]
pub struct Walls {
    standing: Vec<Wall>,
    lacking: Vec<Lack>,
}

impl Walls {
    /// The outcome of building one.
    pub(super) fn note(&mut self, wall: Wall, outcome: io::Result<()>) {
        match outcome {
            Ok(()) => self.standing.push(wall),
            Err(why) => self.lacking.push(Lack { wall, why }),
        }
    }

    pub(super) fn note_all(&mut self, walls: &[Wall], outcome: &io::Result<()>) {
        for wall in walls {
            let outcome = outcome.as_ref().map_err(|e| io::Error::from(e.kind()));
            self.note(*wall, outcome.copied());
        }
    }

    /// Every thread of the process has confined itself.
    pub fn add(&mut self, wall: Wall) {
        self.standing.push(wall);
    }

    /// Those that stand, in the order they were built.
    pub fn standing(&self) -> &[Wall] {
        &self.standing
    }

    /// Those that do not.
    pub fn lacking(&self) -> &[Lack] {
        &self.lacking
    }

    /// How much of a whole jail this is.
    pub fn level(&self) -> Level {
        let missing: Vec<Wall> =
            Wall::WHOLE.into_iter().filter(|wall| !self.standing.contains(wall)).collect();
        match missing.as_slice() {
            [] => Level::Full,
            [Wall::OwnUser] => Level::User,
            _ if self.standing.is_empty() => Level::None,
            _ => Level::Partial,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walls(standing: &[Wall]) -> Walls {
        Walls { standing: standing.to_vec(), lacking: Vec::new() }
    }

    #[test]
    fn the_level_says_how_much_is_missing() {
        assert_eq!(walls(&Wall::WHOLE).level(), Level::Full);
        assert_eq!(walls(&Wall::WHOLE[1..]).level(), Level::User);
        assert_eq!(walls(&Wall::WHOLE[..11]).level(), Level::Partial);
        assert_eq!(walls(&[]).level(), Level::None);
    }
}
