//! A shell's process: it makes its VM, confines itself, and waits; a job makes it a clone, which answers and ends.
//!
//! From its first job on it lives on what came with it: nothing can be opened, and a bundle that is damaged harms this process only.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use snapshot_format::manifest::Interface;

use crate::bundle::Bundle;
use crate::config::{Paging, Prefetch, Rate, Verify};
use crate::devices::BlockRate;
use crate::failure::console::Console;
use crate::failure::{Failure, Kind, ToFailure};
use crate::function::{Conversation, Event, Notice};
use crate::jail::{self, Entry, Group, Groups, LastWords, List, Order, Uids, Walls};
use crate::memory::{self, Door, Program};
use crate::vm::identity::{self, Asked};
use crate::vm::{self, AnswerSink, Drive, Host, HostCpu, Machine, Opened, RestoreOptions, Shape, Timeline};

use super::frame::{Done, Frame, Ready};
use super::job::{self, Job, Received};

/// Longest private file of a drive, bytes.
const FILE_BYTES_MAX: u64 = 1 << 40;

/// What a shell is made of.
#[derive(Debug)]
pub struct Making {
    /// The way into its jail.
    pub entry: Entry,
    /// Its connection to the daemon. A file, because that is written by write(2), which each list of system calls has.
    pub daemon: File,
    /// An open `/dev/kvm`.
    pub kvm: OwnedFd,
    /// An open `/dev/null`.
    pub null: OwnedFd,
    /// The control group that it is to enter, and where.
    pub group: Option<(Groups, Group)>,
    /// Memory and vCPUs.
    pub shape: Shape,
    /// What its vCPUs are shown ahead of need, where that is known.
    pub cpu: Option<HostCpu>,
    /// Whether a lacking wall is a failure.
    pub whole: bool,
    /// Where this program lies.
    pub program: Program,
}

/// Lives a shell's life to its end.
pub fn live(making: Making) {
    let Making { entry, daemon, kvm, null, group, shape, cpu, whole, program } = making;
    let order = Order { uids: Uids::default(), file_bytes_max: FILE_BYTES_MAX, null: null.as_fd(), whole };
    let mut to = &daemon;
    // What goes wrong is told to the daemon; nothing a guest brings about reaches its terminal or its log.
    rustix::stdio::dup2_stdout(&null).and_then(|()| rustix::stdio::dup2_stderr(&null)).ok();
    match make(entry, group, &order, kvm, shape, cpu.as_ref(), &program) {
        Ok((shell, walls)) => {
            let ready = Ready { jail: walls.level().name().to_owned() };
            if Frame::Ready(ready).write(&mut to).is_ok() {
                serve(shell, &daemon);
            }
        }
        // A daemon that is gone needs no reason.
        Err(failure) => drop(Frame::Failed(failure).write(&mut to)),
    }
}

fn make(
    entry: Entry,
    group: Option<(Groups, Group)>,
    order: &Order<'_>,
    kvm: OwnedFd,
    shape: Shape,
    cpu: Option<&HostCpu>,
    program: &Program,
) -> Result<(Waiting, Walls), Failure> {
    // First: what it takes from here on counts, and nothing of the groups may stay open in the jail.
    let memory_left = group.map(|(groups, group)| bounded(&groups, group)).transpose()?.flatten();
    let walls = entry.enter(order)?;
    let host = Host::of_device(kvm, Some(List::Vcpu))?;
    let memory = memory::anonymous(shape.memory_bytes).map_err(vm::StartError::from)?;
    let mut shell = vm::Shell::build(host, shape, memory, false, &mut Timeline::start())?;
    cpu.map_or(Ok(()), |cpu| shell.show(cpu))?;
    jail::confine(List::Shell)?;
    program.bring_in();
    Ok((Waiting { shell, memory_left }, walls))
}

/// Bounds the calling process; how much memory that leaves it, where it is bounded.
fn bounded(groups: &Groups, group: Group) -> Result<Option<u64>, Failure> {
    groups.enter(group)?;
    Ok(groups.memory_left(group))
}

/// A shell that is made.
struct Waiting {
    shell: vm::Shell,
    /// Bytes that the bounds of its control group left before the VM was made; `None` without such bounds.
    memory_left: Option<u64>,
}

/// Waits for the first job, and serves it and those that follow.
fn serve(shell: Waiting, daemon: &File) {
    // Nothing came: the daemon needs this shell no more, or is gone.
    let Ok(Some(received)) = job::receive(daemon) else { return };
    let mut timeline = Timeline::start();
    let mut to = daemon;
    let console = Console::new(false, None);
    if let Err(failure) = clone(shell, received, daemon, &console, &mut timeline) {
        Frame::Failed(failure.with_detail(console.tail())).write(&mut to).ok();
    }
}

fn clone(
    waiting: Waiting,
    received: Received,
    daemon: &File,
    console: &Console,
    timeline: &mut Timeline,
) -> Result<(), Failure> {
    let Waiting { shell, memory_left } = waiting;
    let Received { job, manifest, body, mut files } = received;
    let deltas = files.split_off(job.files.len().min(files.len()));
    let bundle = Bundle::from_files(manifest, job.files.iter().cloned().zip(files).collect())?;
    timeline.mark("read manifest");
    let message = identity::restore_message(Asked {
        host_name: job.identity.host_name.as_deref(),
        machine_id: job.identity.machine_id,
        env: &job.identity.env,
    })?;
    // A shell waits for any bundle; its clone needs no more than its own drives.
    let longest = bundle.longest_written();
    jail::bound_files(longest).map_err(|e| Failure::new(Kind::HostCannot, &e))?;
    let mut deltas: BTreeMap<&String, File> = job.deltas.iter().zip(deltas).collect();
    let missing = || Failure::text(Kind::Internal, "A drive's private file was not sent");
    let drives = vm::drives(&bundle, |id| deltas.remove(&id.to_owned()).ok_or_else(missing))?;
    let (generation, options) = (message.generation, options(daemon));
    let opened = Opened::in_shell(shell, drives, &bundle, options.prefetch, memory_left);
    let mut machine = vm::restore(&bundle, opened, generation, options, console.writer(), timeline)?;
    if let Some(Rate { bytes_per_second, burst }) = job.block_rate {
        machine.limit_drives(BlockRate { bytes_per_second, burst });
    }
    let function = &bundle.manifest().function;
    let mut conversation = Conversation::restored(function, bundle.manifest().agent_protocol)?;
    let mut drive = Drive::new(&mut machine, &mut conversation).confined_to(List::Main);
    let mut sink = FrameSink { to: daemon, interface: function.interface };
    let outcome = vm::wake(&mut drive, &message, &mut sink, timeline)
        .map_err(Failure::from)
        .and_then(|()| events(&mut drive, function.interface, job, body, daemon, timeline))
        // Where the kernel finds that the memory file was cut short, before we do, the guest merely breaks.
        .map_err(|failure| bundle.check_lengths().err().map_or(failure, Failure::from));
    Machine::leave(machine);
    outcome
}

/// The first event, and those that follow.
fn events(
    drive: &mut Drive<'_>,
    interface: Interface,
    mut job: Job,
    mut body: Vec<u8>,
    daemon: &File,
    timeline: &mut Timeline,
) -> Result<(), Failure> {
    let mut sink = FrameSink { to: daemon, interface };
    loop {
        let more = job.more;
        let limit = Duration::from_millis(job.limit_ms);
        let event: Event = job.request.clone().event(interface, body, limit)?;
        let deadline = Some(Instant::now() + limit);
        let exit_code = vm::invoke(drive, &event, deadline, &mut sink, timeline)?;
        let mut to = daemon;
        if Frame::Done(done(exit_code, job.sent_ns, drive, timeline)).write(&mut to).is_err() || !more {
            return Ok(());
        }
        vm::next_turn(drive, Some(Instant::now() + limit))?;
        // Between its events a clone does nothing: no limit of time would end it there. A small guest stands still of itself.
        let frozen = if interface == Interface::Port { None } else { Some(drive.machine().freeze()?) };
        let next = next(daemon)?;
        drop(frozen);
        let Some(next) = next else { return Ok(()) };
        *timeline = Timeline::start();
        (job, body) = (next.job, next.body);
    }
}

fn next(daemon: &File) -> Result<Option<Received>, Failure> {
    job::receive_more(daemon).map_err(|e| Failure::new(Kind::Internal, &e))
}

/// Everything counts from when the daemon sent the job.
fn done(exit_code: i32, sent_ns: u64, drive: &mut Drive<'_>, timeline: &Timeline) -> Done {
    let us = |time: Duration| time.as_secs_f64() * 1e6;
    let way = us(Duration::from_nanos(timeline.start_ns().saturating_sub(sent_ns)));
    let own = timeline.phases().into_iter().map(|(name, took)| (name.to_owned(), us(took)));
    let until = |mark| timeline.until(mark).map(|took| way + us(took));
    Done {
        exit_code,
        block_requests: drive.machine().block_requests(),
        phases: std::iter::once(("job".to_owned(), way)).chain(own).collect(),
        start_ns: sent_ns,
        restore_us: until(vm::FIRST_INSTRUCTION),
        first_answer_us: until(vm::FIRST_ANSWER),
        first_exit_us: drive.machine().first_exit().and_then(|at| timeline.at(at)).map(|took| way + us(took)),
        answered_us: until(vm::ANSWERED),
    }
}

fn options(daemon: &File) -> RestoreOptions {
    let fd = daemon.as_raw_fd();
    let words = move |failure: &Failure| LastWords {
        words: vec![(fd, Frame::Failed(failure.clone()).to_bytes())],
        code: failure.kind().code(),
    };
    RestoreOptions {
        paging: Paging::Mmap,
        verify: Verify::State,
        prefetch: Prefetch::All,
        door: Door::Host,
        count_faults: false,
        on_pager_failure: Box::new(move |error| words(&Failure::new(error.kind(), &error)).say()),
        memory_cut_short: Some(words(&Failure::text(Kind::BadBundle, vm::MEMORY_CUT_SHORT))),
    }
}

/// Sends pieces of the answer to the daemon as they come.
struct FrameSink<'a> {
    to: &'a File,
    interface: Interface,
}

impl AnswerSink for FrameSink<'_> {
    fn take(&mut self, piece: Notice) -> io::Result<bool> {
        let is_answer = piece.is_answer(self.interface);
        let bytes = Frame::Piece(piece).to_bytes();
        let mut to = self.to;
        to.write_all(&bytes)?;
        Ok(is_answer)
    }
}
