//! A machine's way into its jail.

use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::process::{DumpableBehavior, Resource, Rlimit};

use super::keeper::{has_ended, hear_of_room};
use super::process::{ForkError, die_with_parent};
use super::walls::{Level, Wall, Walls};
use super::{descriptors, landlock, memory_pool, own_user, room};

/// Descriptors that a machine may have: eight vCPUs, drives, eventfds, and room for more.
const DESCRIPTORS_MAX: u64 = 256;
/// Processes and threads that the user of a machine may have.
const THREADS_MAX: u64 = 64;

/// Why a machine's process could not be jailed. It must end.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// The keeper is gone, or cannot be watched.
    #[error(transparent)]
    Keeper(#[from] ForkError),
    /// What takes no right was refused.
    #[error("Cannot give up the process's rights")]
    Rights(#[source] io::Error),
    /// A wall is lacking that must not.
    #[error(
        "The jail lacks {lacking}, and --require-jail asks for all of it; run as root, or see `ember doctor`"
    )]
    Lacking {
        /// Which walls, and why.
        lacking: String,
    },
}

/// The users that machines are given: each that of its process's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Uids {
    /// The first.
    pub first: u32,
    /// How many. Two machines that live at the same time never share one if these are as many as the kernel has process ids
    /// (`kernel.pid_max`, at most 4 194 304).
    pub count: u32,
}

impl Default for Uids {
    /// 2 120 220 672 to 2 124 414 975: above what systemd gives to containers (to 1 879 048 191), below what it calls foreign
    /// (from 2 147 352 576), and as many as there can be process ids.
    fn default() -> Self {
        Uids { first: 0x7e60_0000, count: 1 << 22 }
    }
}

impl Uids {
    fn of_process(self, pid: u32) -> u32 {
        self.first.saturating_add(pid % self.count.max(1))
    }
}

/// What a jail is to be like.
#[derive(Debug)]
pub struct Order<'a> {
    /// The users machines are given.
    pub uids: Uids,
    /// Longest file that the process may write to, bytes.
    pub file_bytes_max: u64,
    /// An open `/dev/null`.
    pub null: BorrowedFd<'a>,
    /// Whether a lacking wall is a failure.
    pub whole: bool,
}

/// A process that may enter a jail: the machine's, which has one thread and opens what it will need.
#[derive(Debug)]
pub struct Entry {
    pub(super) keeper: OwnedFd,
    pub(super) told: File,
    pub(super) walls: Walls,
    pub(super) gives_users: bool,
    pub(super) closed: Option<io::Result<()>>,
}

impl Entry {
    /// Enters the jail for good: afterwards no file can be opened, and nobody but the machine's own threads can be seen,
    /// signalled or reached. What is missing to a whole jail is the list of system calls that each thread gives itself
    /// ([`confine`](super::confine)).
    ///
    /// # Errors
    /// See [`JailError`]. The process is half confined then and must end.
    pub fn enter(self, order: &Order<'_>) -> Result<Walls, JailError> {
        let Entry { keeper, told, mut walls, gives_users, closed } = self;
        memory_pool::share_one_pool();
        let closed = closed.unwrap_or_else(|| descriptors::close_inherited(order.null));
        walls.note(Wall::OwnDescriptors, closed);
        let (pid, made) = hear_of_room(told)?;
        let moved = made.and_then(|()| room::follow(&keeper));
        walls.note_all(&[Wall::EmptyRoot, Wall::NoNetwork, Wall::IpcNamespace, Wall::UtsNamespace], &moved);
        let mut processes_max = None;
        if gives_users {
            let became = own_user::become_user(order.uids.of_process(pid));
            // The limit counts a user's processes: only one's own user has none but this.
            processes_max = became.is_ok().then_some(THREADS_MAX);
            walls.note(Wall::OwnUser, became);
            walls.note(Wall::UserNamespace, own_user::new_user_namespace());
        } else {
            walls.note(Wall::OwnUser, Err(io::ErrorKind::PermissionDenied.into()));
        }
        walls.note(Wall::ResourceLimits, limit(order.file_bytes_max, processes_max));
        own_user::drop_capabilities().map_err(JailError::Rights)?;
        walls.add(Wall::NoCapabilities);
        rustix::thread::set_no_new_privs(true).map_err(|e| JailError::Rights(e.into()))?;
        walls.add(Wall::NoNewPrivileges);
        walls.note(Wall::Landlock, landlock::deny_everything());
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
            .map_err(|e| JailError::Rights(e.into()))?;
        // The kernel has forgotten it at the change of user.
        die_with_parent()?;
        if has_ended(&keeper)? {
            return Err(ForkError::Orphan.into());
        }
        check(walls, order.whole)
    }
}

/// Whether enough of a jail stands, seccomp apart, without which no guest runs.
fn check(mut walls: Walls, whole: bool) -> Result<Walls, JailError> {
    walls.add(Wall::Seccomp);
    if whole && walls.level() != Level::Full {
        let lacking: Vec<String> = walls.lacking().iter().map(ToString::to_string).collect();
        return Err(JailError::Lacking { lacking: lacking.join(", ") });
    }
    Ok(walls)
}

fn limit(file_bytes: u64, processes: Option<u64>) -> io::Result<()> {
    let always = [
        (Resource::Nofile, DESCRIPTORS_MAX),
        (Resource::Fsize, file_bytes),
        (Resource::Core, 0),
        (Resource::Memlock, 0),
        (Resource::Msgqueue, 0),
    ];
    let all = always.into_iter().chain(processes.map(|count| (Resource::Nproc, count)));
    all.into_iter().try_for_each(|(resource, most)| lower(resource, most))
}

fn lower(resource: Resource, most: u64) -> io::Result<()> {
    // Nobody may raise what he has been given less of.
    let most = rustix::process::getrlimit(resource).maximum.map_or(most, |given| given.min(most));
    Ok(rustix::process::setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?)
}

/// Lets this process write no file beyond `bytes` from here on, whatever it was allowed before.
///
/// # Errors
/// The kernel refused.
pub fn bound_files(bytes: u64) -> io::Result<()> {
    lower(Resource::Fsize, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_get_users_of_the_range_and_in_the_default_range_never_the_same() {
        let uids = Uids::default();
        assert_eq!(uids.of_process(1), 0x7e60_0001);
        assert_eq!(uids.of_process((1 << 22) - 1), 0x7e9f_ffff);
        let few = Uids { first: 1000, count: 10 };
        assert_eq!((few.of_process(9), few.of_process(10)), (1009, 1000));
        assert_eq!(Uids { first: 7, count: 0 }.of_process(5), 7);
    }
}
