//! The function's processes: how they start, what they say, how they end.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use guest_protocol::{Cause, RestoreEntries, Stream, ToHost};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, wait};

use crate::contract::Contract;
use crate::io::Io;
use crate::stop::Stop;
use crate::sys;
use crate::users::{self, UserError};

/// Where commands are looked for unless the contract says so.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a function cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("The contract names no command")]
    NoCommand,
    #[error("The root has no directory {0} for the function to work in")]
    NoWorkdir(String),
    #[error("{program} is not in the root, or may not be executed; PATH is {path}")]
    NotFound { program: String, path: String },
    #[error(transparent)]
    User(#[from] UserError),
    #[error("Cannot start {program}")]
    Spawn { program: String, source: io::Error },
    #[error("Cannot make the pipes of {program}")]
    Pipes { program: String, source: io::Error },
}

impl From<StartError> for Stop {
    fn from(error: StartError) -> Self {
        Stop::chain(Cause::Start, &error)
    }
}

/// Whether a function reads events on its standard input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    Pipe,
    Nothing,
}

/// A command that is ready to be started any number of times.
#[derive(Debug)]
pub struct Prepared {
    command: Command,
    name: String,
    input: Input,
    uid: u32,
    /// Kinds of the frames that carry standard output and standard error.
    kinds: [u8; 2],
}

impl Prepared {
    /// Looks everything up once, `defaults` beneath the contract's environment.
    ///
    /// # Errors
    /// Something is not there.
    pub fn new(
        contract: &Contract,
        defaults: BTreeMap<String, String>,
        input: Input,
    ) -> Result<Self, StartError> {
        let (name, arguments) = contract.command.split_first().ok_or(StartError::NoCommand)?;
        let user = contract.user.as_deref().map(users::find).transpose()?;
        let home = user.as_ref().map_or("/root", |user| &user.home);
        let mut env =
            BTreeMap::from([("HOME".to_owned(), home.to_owned()), ("PATH".to_owned(), PATH.to_owned())]);
        env.extend(defaults);
        env.extend(contract.env.clone());
        let workdir = Path::new(&contract.workdir);
        if !workdir.is_dir() {
            return Err(StartError::NoWorkdir(contract.workdir.clone()));
        }
        let path = env.get("PATH").map_or("", String::as_str);
        let program = find_program(name, path, workdir)
            .ok_or_else(|| StartError::NotFound { program: name.clone(), path: path.to_owned() })?;
        let mut command = Command::new(program);
        std::os::unix::process::CommandExt::arg0(&mut command, name);
        command.args(arguments).env_clear().envs(env).current_dir(workdir);
        command.stdin(if input == Input::Pipe { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let uid = user.as_ref().map_or(0, |user| user.credentials.uid);
        sys::prepare_child(&mut command, user.map(|user| user.credentials));
        let kinds = [Stream::Stdout.kind(), Stream::Stderr.kind()];
        Ok(Prepared { command, name: name.clone(), input, uid, kinds })
    }

    /// A program of the guest's own, run as root, whose output goes to the log.
    pub fn hook(program: &Path) -> Self {
        let mut command = Command::new(program);
        command.env_clear().env("HOME", "/root").env("PATH", PATH).current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        sys::prepare_child(&mut command, None);
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Prepared { command, name, input: Input::Nothing, uid: 0, kinds: [ToHost::LOG_KIND; 2] }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Adds one variable to the environment of every process from now on.
    pub fn set_env(&mut self, key: &str, value: &str) {
        self.command.env(key, value);
    }

    /// Whom its processes run as.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Adds the environment of a restore message to that of every process from now on.
    pub fn add_env(&mut self, entries: RestoreEntries<'_>) {
        for variable in entries.variables() {
            let equals = variable.iter().position(|byte| *byte == b'=');
            if let Some((key, value)) = equals.and_then(|at| variable.split_at_checked(at)) {
                let value = value.get(1..).unwrap_or_default();
                self.command.env(OsString::from_vec(key.to_vec()), OsString::from_vec(value.to_vec()));
            }
        }
    }

    /// Starts a process.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(&mut self) -> Result<Process, StartError> {
        let spawned = self.command.spawn();
        let mut child = spawned.map_err(|source| StartError::Spawn { program: self.name.clone(), source })?;
        let broken = |source| StartError::Pipes { program: self.name.clone(), source };
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let process = Process {
            pid: pid.ok_or_else(|| broken(io::ErrorKind::InvalidData.into()))?,
            stdin: child.stdin.take().map(OwnedFd::from),
            outputs: [child.stdout.take().map(OwnedFd::from), child.stderr.take().map(OwnedFd::from)],
            kinds: self.kinds,
            ended: None,
        };
        process.make_nonblocking().map_err(|error| broken(error.into()))?;
        debug_assert_eq!(process.stdin.is_some(), self.input == Input::Pipe);
        Ok(process)
    }
}

/// Where a shell would find `name`, from `workdir`.
fn find_program(name: &str, path: &str, workdir: &Path) -> Option<PathBuf> {
    if name.contains('/') {
        return Some(workdir.join(name)).filter(|program| is_executable(program));
    }
    let directories = path.split(':').map(|directory| workdir.join(directory));
    directories.map(|directory| directory.join(name)).find(|program| is_executable(program))
}

/// Whether it is a file that somebody may execute.
pub fn is_executable(program: &Path) -> bool {
    fs::metadata(program)
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Exited(i32),
    Killed(i32),
}

impl Ended {
    fn of(status: WaitStatus) -> Option<Self> {
        let killed = || status.terminating_signal().map(Ended::Killed);
        status.exit_status().map(Ended::Exited).or_else(killed)
    }

    /// As a shell tells it.
    pub fn exit_code(self) -> i32 {
        match self {
            Ended::Exited(code) => code,
            Ended::Killed(signal) => 128 + signal,
        }
    }

    /// For a process that was not to end.
    pub fn to_stop(self) -> Stop {
        let (cause, status) = match self {
            Ended::Exited(code) => (Cause::Exited, code),
            Ended::Killed(signal) => (Cause::Killed, signal),
        };
        Stop::Failed { cause, status, text: String::new() }
    }
}

/// A process of the function, with this end of its pipes.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    stdin: Option<OwnedFd>,
    outputs: [Option<OwnedFd>; 2],
    kinds: [u8; 2],
    ended: Option<Ended>,
}

impl Process {
    /// Only this end: a pipe's ends have their own flags.
    fn make_nonblocking(&self) -> Result<(), Errno> {
        let ends = self.stdin.iter().chain(self.outputs.iter().flatten());
        ends.into_iter().try_for_each(|end| rustix::fs::fcntl_setfl(end, OFlags::NONBLOCK))
    }

    pub fn pid(&self) -> Pid {
        self.pid
    }

    pub fn ended(&self) -> Option<Ended> {
        self.ended
    }

    pub fn stdin(&self) -> Option<BorrowedFd<'_>> {
        self.stdin.as_ref().map(AsFd::as_fd)
    }

    /// The write end of its standard input: closing it tells the process that its input is over.
    pub fn take_stdin(&mut self) -> Option<OwnedFd> {
        self.stdin.take()
    }

    /// Standard output and standard error, while they are open.
    pub fn outputs(&self) -> [Option<BorrowedFd<'_>>; 2] {
        let [stdout, stderr] = &self.outputs;
        [stdout.as_ref().map(AsFd::as_fd), stderr.as_ref().map(AsFd::as_fd)]
    }

    /// Reads one of the outputs once; tells whether there may be more.
    ///
    /// # Errors
    /// The control stream is broken.
    pub fn relay_output(&mut self, index: usize, io: &mut Io) -> Result<bool, Stop> {
        let (Some(slot), Some(kind)) = (self.outputs.get_mut(index), self.kinds.get(index)) else {
            return Ok(false);
        };
        let Some(output) = slot.as_ref() else { return Ok(false) };
        match io.relay(*kind, output)? {
            Ok(1..) => Ok(true),
            Err(Errno::AGAIN) => Ok(false),
            Ok(_) | Err(_) => {
                *slot = None;
                Ok(false)
            }
        }
    }

    /// Sends everything the ended process has written. Descendants that still have its outputs are not waited for.
    ///
    /// # Errors
    /// The control stream is broken.
    pub fn drain(&mut self, io: &mut Io) -> Result<(), Stop> {
        for index in 0..self.outputs.len() {
            while self.relay_output(index, io)? {}
        }
        Ok(())
    }

    /// The failure of a function that must not end, once it has.
    ///
    /// # Errors
    /// It has ended, or the control stream is broken.
    pub fn must_live(&mut self, io: &mut Io) -> Result<(), Stop> {
        let Some(ended) = self.ended else { return Ok(()) };
        self.drain(io)?;
        Err(ended.to_stop())
    }

    /// Kills the process with everything in its session; it is reaped like an orphan.
    pub fn kill(self) {
        for kill in [rustix::process::kill_process_group, rustix::process::kill_process] {
            if kill(self.pid, Signal::KILL).is_ok() {
                return;
            }
        }
    }
}

/// Ends of children that nobody watched when they came, the last few.
#[derive(Debug, Default)]
pub struct Strays(VecDeque<(Pid, WaitStatus)>);

impl Strays {
    /// More than a function and its hooks; what orphans there are beyond is nobody's.
    const MAX: usize = 16;

    /// Takes every child that has ended, orphans included, and notes the end of `process`.
    pub fn reap(&mut self, mut process: Option<&mut Process>) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            match process.as_mut().filter(|process| process.pid == pid) {
                Some(process) => process.ended = Ended::of(status),
                None => self.0.push_back((pid, status)),
            }
        }
        self.0.drain(..self.0.len().saturating_sub(Self::MAX));
    }

    /// Notes the end of `process` if it came while another was watched; tells whether it did.
    pub fn find(&mut self, process: &mut Process) -> bool {
        let Some(at) = self.0.iter().position(|(pid, _)| *pid == process.pid) else { return false };
        process.ended = self.0.remove(at).and_then(|(_, status)| Ended::of(status));
        true
    }
}

/// `KEY=VALUE` of each entry with a zero byte behind it, as in /proc/PID/environ.
pub fn environ(entries: RestoreEntries<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for variable in entries.variables() {
        bytes.extend_from_slice(variable);
        bytes.push(0);
    }
    bytes
}

/// Whether `name` is what a descriptor link of /proc shows.
pub fn link_is(link: &Path, name: &str) -> bool {
    fs::read_link(link).is_ok_and(|target| target.as_os_str().as_bytes() == name.as_bytes())
}

#[cfg(test)]
mod tests {
    use guest_protocol::RestoreEntry;

    use super::*;

    #[test]
    fn a_program_is_found_as_a_shell_finds_it() {
        let root = Path::new("/");
        assert_eq!(find_program("sh", "/nowhere:/bin", root), Some("/bin/sh".into()));
        assert_eq!(find_program("bin/sh", "", root), Some("/bin/sh".into()));
        assert_eq!(find_program("sh", "bin", root), Some("/bin/sh".into()));
        assert_eq!(find_program("no-such-program", PATH, root), None);
        assert_eq!(find_program("/etc/passwd", PATH, root), None);
    }

    #[test]
    fn a_killed_process_has_the_exit_code_of_a_shell() {
        assert_eq!(Ended::Exited(3).exit_code(), 3);
        assert_eq!(Ended::Killed(9).exit_code(), 137);
    }

    #[test]
    fn a_late_environment_is_stored_as_in_proc() {
        let mut bytes = Vec::new();
        RestoreEntry::Env(b"A=1").append_to(&mut bytes);
        RestoreEntry::Env(b"B=").append_to(&mut bytes);
        assert_eq!(environ(RestoreEntries::from_bytes(&bytes)), b"A=1\0B=\0");
    }
}
