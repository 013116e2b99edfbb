//! The zygote: a small process with one thread that makes shells. It is forked from the daemon before that has threads or memory
//! worth copying, and has what its shells will need open, because it moves into the empty room with the first of them.
//!
//! It is asked and answers through a socket that keeps messages apart. When the daemon is gone it ends, and its shells with it.

use std::fmt;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    Shutdown, SocketFlags, SocketType, socketpair,
};
use serde::{Deserialize, Serialize};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::failure::{Failure, Kind};
use crate::jail::{self, Bounds, Forked, Group, Groups, Keeper, Kept, MachineProcess, fork_machine};
use crate::memory::Program;
use crate::vm::{HostCpu, Shape};

use super::job::descriptors;
use super::pool::timespec;
use super::shell::{self, Making};

/// Longest message, bytes.
const MESSAGE_MAX: usize = 4096;
/// Longest time in which it ends its shells, each of which takes some milliseconds, and removes their groups.
const END_MAX: Duration = Duration::from_secs(5);

/// The daemon's side of a zygote.
#[derive(Debug)]
pub struct Zygote {
    channel: OwnedFd,
    process: MachineProcess,
}

/// What the daemon asks for: a shell.
#[derive(Debug, Serialize, Deserialize)]
struct Ask {
    id: u64,
    memory_bytes: u64,
    vcpus: u32,
}

/// What the zygote says.
#[derive(Debug, Serialize, Deserialize)]
enum Say {
    Made { id: u64 },
    Refused { id: u64, failure: Failure },
    Ended { id: u64, end: End },
}

/// How a shell's process has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Exit code, or minus the signal that killed it.
    pub code: i32,
    /// Whether the kernel killed it because its control group left it no memory; `None` where that is not known.
    pub out_of_memory: Option<bool>,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code {
            _ if self.out_of_memory == Some(true) => write!(f, "needed more memory than --memory-max allows"),
            -9 if self.out_of_memory.is_none() => {
                write!(f, "was killed by signal 9, as by a limit of its memory")
            }
            code if code < 0 => write!(f, "was killed by signal {}", -code),
            code => write!(f, "exited with {code}"),
        }
    }
}

/// What became of a shell.
#[derive(Debug)]
pub enum News {
    /// Its process is there. It says itself when it is ready.
    Made {
        /// Which.
        id: u64,
        /// Its connection.
        socket: UnixStream,
        /// A pidfd of it.
        process: OwnedFd,
    },
    /// It could not be made.
    Refused {
        /// Which.
        id: u64,
        /// Why.
        failure: Failure,
    },
    /// Its process has ended.
    Ended {
        /// Which.
        id: u64,
        /// How.
        end: End,
    },
    /// It is there, and no descriptor was left to reach it by.
    Unreachable {
        /// Which.
        id: u64,
    },
}

impl Zygote {
    /// Forks the zygote off the calling process, which must have one thread. `whole` says whether a shell that lacks a wall of its
    /// jail is a failure; where `bounds` has any, each shell gets a control group with them.
    ///
    /// # Errors
    /// `/dev/kvm` cannot be opened, shells cannot be bounded, or there is no process.
    pub fn start(whole: bool, bounds: &Bounds) -> Result<Self, Failure> {
        // Of an earlier daemon that was killed nothing else removes them.
        let groups = if bounds.is_none() {
            jail::remove_ended();
            None
        } else {
            Some(Groups::open(bounds)?)
        };
        let device = |path: &str| {
            let file = File::options().read(true).write(true).open(path);
            file.map_err(|e| Failure::text(Kind::HostCannot, format!("Cannot open {path}: {e}")))
        };
        let (kvm, null) = (device("/dev/kvm")?.into(), device("/dev/null")?.into());
        let kind = (AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC);
        let (channel, other) = socketpair(kind.0, kind.1, kind.2, None).map_err(|e| host(&e.into()))?;
        match fork_machine()? {
            Forked::Parent(process) => Ok(Zygote { channel, process }),
            Forked::Machine => {
                drop(channel);
                match Nursery::open(other, kvm, null, whole, groups).and_then(Nursery::keep) {
                    Ok(None) => {}
                    Ok(Some(making)) => shell::live(making),
                    Err(failure) => eprintln!("ember: {failure}"),
                }
                std::process::exit(0)
            }
        }
    }

    /// Asks for a shell, which the caller calls `id`.
    ///
    /// # Errors
    /// The zygote is gone.
    pub fn ask(&self, id: u64, shape: Shape) -> io::Result<()> {
        let ask = Ask { id, memory_bytes: shape.memory_bytes, vcpus: shape.vcpus };
        send(&self.channel, &ask, &[])
    }

    /// Waits for news; `None` when the zygote is gone.
    ///
    /// # Errors
    /// What came is no message.
    pub fn hear(&self) -> io::Result<Option<News>> {
        let Some((say, mut fds)) = receive::<Say>(&self.channel)? else { return Ok(None) };
        Ok(Some(match say {
            Say::Made { id } => match (fds.pop(), fds.pop()) {
                (Some(process), Some(socket)) => News::Made { id, socket: socket.into(), process },
                _ => News::Unreachable { id },
            },
            Say::Refused { id, failure } => News::Refused { id, failure },
            Say::Ended { id, end } => News::Ended { id, end },
        }))
    }

    /// Readable when there is news.
    pub fn channel(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }

    /// Ends it and every shell, and has it remove what it made for them.
    pub fn end(&self) {
        rustix::net::shutdown(&self.channel, Shutdown::Write).unwrap_or_default();
        let ended = self.process.handle().is_ok_and(|process| {
            let mut polled = [PollFd::new(&process, PollFlags::IN)];
            rustix::io::retry_on_intr(|| poll(&mut polled, Some(&timespec(END_MAX))))
                .is_ok_and(|ended| ended > 0)
        });
        if !ended {
            self.process.kill().unwrap_or_default();
        }
        // It may have ended by itself.
        self.process.wait().unwrap_or_default();
    }
}

fn host(error: &io::Error) -> Failure {
    Failure::new(Kind::HostCannot, error)
}

fn send(to: &OwnedFd, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let text = serde_json::to_vec(message).map_err(io::Error::other)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::ArgumentListTooLong.into());
    }
    rustix::net::sendmsg(to, &[IoSlice::new(&text)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// `None` at the other side's end.
fn receive<T: for<'a> Deserialize<'a>>(from: &OwnedFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut text = [0; MESSAGE_MAX];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(from, &mut [IoSliceMut::new(&mut text)], &mut control, flags)
    })?;
    if got.bytes == 0 {
        return Ok(None);
    }
    let message = serde_json::from_slice(text.get(..got.bytes).unwrap_or_default());
    Ok(Some((message.map_err(io::Error::other)?, descriptors(&mut control).collect())))
}

/// The zygote's side. Everything in it is closed in a shell.
struct Nursery {
    channel: OwnedFd,
    kvm: OwnedFd,
    null: OwnedFd,
    whole: bool,
    /// Where the groups of shells are made, where they have one.
    groups: Option<Groups>,
    cpu: Option<HostCpu>,
    program: Program,
    keeper: Keeper,
    shells: Vec<Child>,
}

/// A shell's process.
struct Child {
    id: u64,
    process: MachineProcess,
    /// Readable when it has ended.
    handle: OwnedFd,
    group: Option<Group>,
}

impl Nursery {
    fn open(
        channel: OwnedFd,
        kvm: OwnedFd,
        null: OwnedFd,
        whole: bool,
        groups: Option<Groups>,
    ) -> Result<Self, Failure> {
        // What a terminal or a service manager sends goes to every process; when this one ends is the daemon's decision.
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::default()).map_err(|e| host(&e))?;
        }
        let mut keeper = Keeper::new()?;
        keeper.close_inherited(null.as_fd());
        // Without either shells are slower. What is wrong with KVM each shell says itself.
        let cpu = kvm.try_clone().ok().and_then(|kvm| HostCpu::of_device(kvm).ok());
        let program = Program::find().unwrap_or_default();
        Ok(Nursery { channel, kvm, null, whole, groups, cpu, program, keeper, shells: Vec::new() })
    }

    /// Makes shells until the daemon is gone. Returns in each shell too, with what it is made of.
    fn keep(mut self) -> Result<Option<Making>, Failure> {
        loop {
            if self.await_work()? {
                let Some((ask, _)) = receive::<Ask>(&self.channel).map_err(|e| host(&e))? else {
                    self.end_all();
                    return Ok(None);
                };
                if let Some(making) = self.answer(&ask)? {
                    return Ok(Some(making));
                }
            }
        }
    }

    /// Waits until there is something to do, and tells of shells that have ended; whether something was asked.
    fn await_work(&mut self) -> Result<bool, Failure> {
        let channel = PollFd::new(&self.channel, PollFlags::IN);
        let shells = self.shells.iter().map(|child| PollFd::new(&child.handle, PollFlags::IN));
        let mut polled: Vec<PollFd<'_>> = std::iter::once(channel).chain(shells).collect();
        match poll(&mut polled, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(host(&e.into())),
        }
        let mut ready = polled.iter().map(|polled| !polled.revents().is_empty());
        let asked = ready.next().unwrap_or_default();
        let ended: Vec<bool> = ready.collect();
        let mut ended = ended.into_iter();
        for child in self.shells.extract_if(.., |_| ended.next().unwrap_or_default()) {
            let end = child.end(self.groups.as_ref());
            // A daemon that is gone is noticed by the next wait.
            send(&self.channel, &Say::Ended { id: child.id, end }, &[]).ok();
        }
        Ok(asked)
    }

    /// Ends all shells; their groups go with them.
    fn end_all(&mut self) {
        self.shells.iter().for_each(|child| child.process.kill().unwrap_or_default());
        for child in self.shells.drain(..) {
            child.end(self.groups.as_ref());
        }
    }

    fn answer(&mut self, ask: &Ask) -> Result<Option<Making>, Failure> {
        let told = match self.make(ask) {
            Ok(Made::Shell(making)) => return Ok(Some(*making)),
            Ok(Made::Process(socket, handle)) => {
                send(&self.channel, &Say::Made { id: ask.id }, &[socket.as_fd(), handle.as_fd()])
            }
            Err(failure) => send(&self.channel, &Say::Refused { id: ask.id, failure }, &[]),
        };
        told.map(|()| None).map_err(|e| host(&e))
    }

    fn make(&mut self, ask: &Ask) -> Result<Made, Failure> {
        let (ours, daemon) = UnixStream::pair().map_err(|e| host(&e))?;
        let copy = |fd: &OwnedFd| fd.try_clone().map_err(|e| host(&e));
        let (kvm, null) = (copy(&self.kvm)?, copy(&self.null)?);
        let group = self.groups.as_ref().map(|_| Group::new()).transpose()?;
        match self.keeper.fork()? {
            Kept::Keeper(process) => {
                let handles = process.handle().and_then(|handle| Ok((handle.try_clone()?, handle)));
                let (told, handle) = handles.map_err(|e| {
                    // Nobody would ever wait for it.
                    process.kill().and_then(|()| process.wait()).ok();
                    self.groups.as_ref().zip(group).inspect(|(groups, group)| groups.remove(*group));
                    host(&e)
                })?;
                self.shells.push(Child { id: ask.id, process, handle, group });
                Ok(Made::Process(ours, told))
            }
            Kept::Machine(entry) => {
                let shape = Shape { memory_bytes: ask.memory_bytes, vcpus: ask.vcpus };
                let (whole, cpu, program) = (self.whole, self.cpu.clone(), self.program.clone());
                let daemon = OwnedFd::from(daemon).into();
                let group = self.groups.take().zip(group);
                let making = Making { entry, daemon, kvm, null, group, shape, cpu, whole, program };
                Ok(Made::Shell(Box::new(making)))
            }
            // It has the zygote's rights and its end of the channel: whatever it did next, it would do as a second one.
            Kept::Lost(_) => std::process::exit(1),
        }
    }
}

impl Child {
    /// How it has ended. Its group goes with it.
    fn end(&self, groups: Option<&Groups>) -> End {
        let code = self.process.wait().unwrap_or(-1);
        let Some((groups, group)) = groups.zip(self.group) else {
            return End { code, out_of_memory: Some(false) };
        };
        let out_of_memory = groups.is_out_of_memory(group);
        groups.remove(group);
        End { code, out_of_memory }
    }
}

/// What came of a fork, on either side.
enum Made {
    Process(UnixStream, OwnedFd),
    Shell(Box<Making>),
}
