//! The machine, and what can be done with it. How one is built stands in `shell`.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::Instant;

use snapshot_format::state::FormatVersion;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::boot::EntryPoint;
use crate::bundle::Bundle;
use crate::bus::{Request, RequestLine};
use crate::devices::{
    BlockRate, ControlStream, DeviceError, DeviceSetup, DeviceTable, EventToken, VirtioWindow,
};
use crate::function::ClockReading;
use crate::kvm::{FaultCount, KickError, KvmVm, SystemError, VmError};
use crate::memory::{self, GuestMemory, Pager, Prefetched};
use crate::vcpu::{self, MsrSelection, ThreadError, VcpuThread};

use super::capture::{self, CaptureError, Moment, Parts};
use super::lifecycle::{Action, Event, State};
use super::opened::Host;
use super::prefetch::{Ahead, Done};
use super::saved::SavedMachine;
use super::shell::{Built, Shell};
use super::start::LoadError;
use super::timeline::Timeline;

/// What a machine is made of, apart from its devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shape {
    /// Guest RAM, bytes; a multiple of 4 KiB.
    pub memory_bytes: u64,
    /// vCPUs, 1 to 8.
    pub vcpus: u32,
}

impl Shape {
    /// Of a bundle's machine.
    pub fn of(bundle: &Bundle) -> Self {
        let machine = &bundle.manifest().machine;
        Shape { memory_bytes: machine.memory_bytes, vcpus: machine.vcpus }
    }
}

/// Loads a kernel into guest memory, given where the devices are.
pub type Loader<'a> = &'a dyn Fn(&GuestMemory, &[VirtioWindow]) -> Result<EntryPoint, LoadError>;

/// Where memory content and state come from. Nothing else tells a boot from a restore.
pub enum Origin<'a> {
    /// A kernel, which is loaded once the devices' places are known.
    Cold(Loader<'a>),
    /// A saved state; `Plan::memory` maps the memory that belongs to it.
    Saved(Box<SavedMachine>),
}

impl std::fmt::Debug for Origin<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Origin::Cold(_) => "Cold",
            Origin::Saved(_) => "Saved",
        })
    }
}

/// Everything [`Machine::build`] needs.
#[derive(Debug)]
pub struct Plan<'a> {
    /// KVM.
    pub host: Host,
    /// Memory and vCPUs.
    pub shape: Shape,
    /// Guest RAM, already mapped.
    pub memory: GuestMemory,
    /// The devices and what backs them.
    pub devices: DeviceSetup,
    /// Boot or restore.
    pub origin: Origin<'a>,
    /// What is mapped for the guest before it asks.
    pub ahead: Ahead,
    /// Whether to count the page faults of each vCPU.
    pub count_faults: bool,
    /// Where the phases of the construction are marked.
    pub timeline: &'a mut Timeline,
}

/// Why a machine could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// KVM does not tell what it can do.
    #[error(transparent)]
    System(#[from] SystemError),
    /// KVM refused a step.
    #[error("Cannot build the VM")]
    Vm(#[from] VmError),
    /// A device could not be built.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The kernel could not be loaded.
    #[error("Cannot load the kernel")]
    Load(#[from] LoadError),
    /// A vCPU refused its state.
    #[error(transparent)]
    Vcpu(#[from] vcpu::VcpuError),
    /// Which MSRs to save could not be chosen.
    #[error(transparent)]
    Msrs(#[from] vcpu::SelectError),
    /// A vCPU's thread could not be started.
    #[error(transparent)]
    Thread(#[from] ThreadError),
    /// The signal that interrupts vCPUs could not be set up.
    #[error(transparent)]
    Kick(#[from] KickError),
    /// Eventfds or epoll.
    #[error("Cannot set up the event loop")]
    Events(#[source] io::Error),
    /// The guest was baked with another TSC frequency and this host cannot scale it.
    #[error(
        "The guest's TSC runs at {guest} kHz, this host's at {host} kHz and it cannot scale it; bake the bundle on a host of this kind"
    )]
    TscFrequency {
        /// Of the bundle.
        guest: u32,
        /// Of this host.
        host: u32,
    },
}

/// Why a running machine failed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A vCPU failed.
    #[error(transparent)]
    Vcpu(#[from] ThreadError),
    /// Waiting failed.
    #[error("Cannot wait for the guest")]
    Wait(#[source] io::Error),
    /// Whoever brings in its pages cannot.
    #[error("A page of the guest's memory cannot be brought in")]
    MemoryLost,
    /// The guest has ended already.
    #[error("The guest has ended and cannot run again")]
    Ended,
}

/// What [`Machine::wait`] woke up for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// Devices were served: the control stream may have bytes or room.
    Devices,
    /// The guest asks something of the machine.
    Guest(Request),
    /// The deadline has passed.
    Timeout,
}

/// Most events taken from one wait.
const EVENTS: usize = 16;

/// A machine. Dropping it ends the guest; its memory lives as long as the process.
#[derive(Debug)]
pub struct Machine {
    shape: Shape,
    state: State,
    tsc_khz: u32,
    /// Of a clone: the host's wall clock at a moment of its TSC.
    clock: Option<ClockReading>,
    msrs: MsrSelection,
    /// What the vCPUs were found to be when they were last frozen.
    moment: Option<Moment>,
    vcpus: Vec<VcpuThread>,
    devices: DeviceTable,
    vm: KvmVm,
    memory: GuestMemory,
    pager: Option<Pager>,
    /// KVM's count of page faults, of each vCPU; empty unless asked for.
    faults: Vec<FaultCount>,
    /// What it was when the first answer began.
    faults_before: Vec<u64>,
    requests: RequestLine,
    epoll: Epoll,
    sources: Vec<EventToken>,
    prefetched: Done,
    /// What the drives had been asked when the guest last said something through a queue; none where it says nothing so.
    requests_when_heard: Option<u64>,
}

impl Machine {
    /// Builds a machine from nothing: a shell, then what fills it. A restore into a shell that waited begins with the second.
    ///
    /// # Errors
    /// See [`BuildError`]; nothing of a half-built machine is left.
    pub fn build(plan: Plan<'_>) -> Result<Self, BuildError> {
        let Plan { host, shape, memory, devices, origin, ahead, count_faults, timeline } = plan;
        Shell::build(host, shape, memory, count_faults, timeline)?.fill(devices, origin, ahead, timeline)
    }

    /// The machine that a shell has become.
    pub(super) fn new(parts: Built) -> Result<Self, BuildError> {
        let Built { shape, tsc_khz, clock, msrs, vcpus, devices, vm, memory, faults, requests, prefetched } =
            parts;
        let (epoll, sources) = event_loop(&devices, &requests).map_err(BuildError::Events)?;
        Ok(Machine {
            shape,
            state: State::Ready,
            tsc_khz,
            clock,
            msrs,
            moment: None,
            vcpus,
            devices,
            vm,
            memory,
            pager: None,
            faults,
            faults_before: Vec::new(),
            requests,
            epoll,
            sources,
            prefetched,
            requests_when_heard: None,
        })
    }

    /// Of a clone: what the host's wall clock showed at a moment of its TSC, before its first instruction.
    pub(super) fn clock(&self) -> Option<ClockReading> {
        self.clock
    }

    /// What was brought in before the guest asked.
    pub fn prefetched(&self) -> Prefetched {
        self.prefetched.so_far()
    }

    /// How many of the pages that were copied before the start the guest has not changed; `file` holds the memory as it was.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn wasted_pages(&self, file: &File) -> io::Result<u64> {
        self.prefetched.wasted(&self.memory, file)
    }

    /// An answer has begun: what is expected to be touched from now on is brought in beside the guest.
    pub(super) fn answer_begins(&mut self) {
        self.prefetched.begin_late();
        if self.faults_before.is_empty() {
            self.faults_before = self.faults();
        }
    }

    /// Page faults that KVM had handled when the first answer began, of each vCPU; empty as [`faults`](Self::faults).
    pub fn faults_before_answer(&self) -> &[u64] {
        &self.faults_before
    }

    /// Names the pager that serves this machine's memory, to be asked what it has done.
    pub(super) fn served_by(mut self, pager: Option<Pager>) -> Self {
        self.pager = pager;
        self
    }

    /// The pager that serves this machine's memory, if one does.
    pub fn pager(&self) -> Option<&Pager> {
        self.pager.as_ref()
    }

    /// Page faults that KVM handled so far, of each vCPU; empty unless they were to be counted and KVM can.
    pub fn faults(&self) -> Vec<u64> {
        self.faults.iter().filter_map(|count| count.read().ok()).collect()
    }

    /// Lets the guest run.
    ///
    /// # Errors
    /// The guest has ended, or a vCPU thread is gone.
    pub fn run(&mut self) -> Result<(), RunError> {
        let (next, action) = self.state.next(Event::Run).ok_or(RunError::Ended)?;
        if action == Action::StartVcpus {
            // A notification that came just before the freeze is lost with its eventfd: serve every queue once.
            self.devices.kick()?;
            self.moment = None;
            self.vcpus.iter().try_for_each(VcpuThread::run)?;
        }
        self.state = next;
        Ok(())
    }

    /// Guest RAM, bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.shape.memory_bytes
    }

    /// Prepares its memory for a guest that writes nearly all of it, as one does that makes free memory zero.
    pub(super) fn expect_to_be_filled(&self) {
        memory::expect_to_be_filled(&self.memory);
    }

    /// When a vCPU left the guest for the first time; `None` before.
    pub fn first_exit(&self) -> Option<Instant> {
        self.vcpus.iter().filter_map(VcpuThread::first_exit).min()
    }

    /// Whether no guest instruction has run yet.
    pub fn is_ready(&self) -> bool {
        self.state == State::Ready
    }

    /// Whether nothing runs until [`run`](Self::run): no guest instruction has run yet, or the machine was left frozen.
    pub fn stands_still(&self) -> bool {
        matches!(self.state, State::Ready | State::Frozen)
    }

    /// Serves devices until something happens that the caller must see, or `deadline` passes.
    ///
    /// # Errors
    /// A device failed, or waiting did.
    pub fn wait(&mut self, deadline: Option<Instant>) -> Result<Vec<Wake>, RunError> {
        let mut events = [EpollEvent::default(); EVENTS];
        let due = self.devices.due();
        let end = deadline.into_iter().chain(due).min();
        let count = match self.epoll.wait(milliseconds(end), &mut events) {
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Ok(Vec::new()),
            Err(e) => return Err(RunError::Wait(e)),
        };
        let mut wakes = Vec::new();
        if let Some(now) = due.map(|_| Instant::now()).filter(|now| due <= Some(*now)) {
            self.devices.serve_due(now)?;
            wakes.push(Wake::Devices);
        } else if count == 0 {
            wakes.push(Wake::Timeout);
        }
        for event in &events[..count] {
            self.serve(Token::from_u64(event.data()), &mut wakes)?;
        }
        Ok(wakes)
    }

    fn serve(&mut self, token: Token, wakes: &mut Vec<Wake>) -> Result<(), RunError> {
        match token {
            Token::Requests => wakes.extend(self.requests.take().into_iter().map(Wake::Guest)),
            Token::Lost => return Err(RunError::MemoryLost),
            Token::Source(index) => {
                if let Some(source) = self.sources.get(index as usize) {
                    self.devices.handle_event(*source)?;
                    if self.devices.is_of_control(*source) {
                        self.requests_when_heard = Some(self.devices.block_requests());
                    }
                }
                if !wakes.contains(&Wake::Devices) {
                    wakes.push(Wake::Devices);
                }
            }
        }
        Ok(())
    }

    /// Makes [`wait`](Self::wait) fail once `fd`, by which whoever brings in pages tells that it cannot, is readable. The descriptor
    /// must stay open as long as the machine.
    ///
    /// # Errors
    /// epoll refused it.
    pub fn fails_with(&self, fd: BorrowedFd<'_>) -> Result<(), RunError> {
        add(&self.epoll, fd.as_raw_fd(), Token::Lost).map_err(RunError::Wait)
    }

    /// The byte stream to the agent or the small guest.
    pub fn control(&mut self) -> Option<&mut dyn ControlStream> {
        self.devices.control()
    }

    fn over(&mut self) {
        if let Some((ended, _)) = self.state.next(Event::GuestEnded) {
            self.state = ended;
        }
    }

    /// Limits the rate of each drive from now on.
    pub fn limit_drives(&mut self, rate: BlockRate) {
        self.devices.limit_drives(rate);
    }

    /// What the guest had asked of its drives when it last said something; what it does after the end of an answer is not in it.
    pub fn block_requests(&self) -> u64 {
        self.requests_when_heard.unwrap_or_else(|| self.devices.block_requests())
    }

    /// The devices, for counters.
    pub fn devices(&self) -> &DeviceTable {
        &self.devices
    }

    /// Why the guest cannot go on, after [`Request::Broken`] or [`Request::Reset`]: waits for the vCPU that said so.
    pub fn guest_ended(&mut self) -> RunError {
        self.over();
        let mut failed = None;
        for vcpu in &self.vcpus {
            if let Err(e) = vcpu.ask_pause().and_then(|()| vcpu.wait_paused()) {
                failed.get_or_insert(e);
            }
        }
        failed.map_or(RunError::Ended, RunError::Vcpu)
    }

    /// Shows what the guest printed last, and leaves the rest to the end of the process: to close a VM that has run takes
    /// milliseconds, which nobody must wait for.
    pub fn leave(self) {
        self.devices.end_console();
        std::mem::forget(self);
    }

    /// Has the vCPUs run no further instruction, and does not wait until they stand still: one of them may wait for a page.
    ///
    /// # Errors
    /// A vCPU cannot be stopped.
    pub fn ask_to_stop(&self) -> Result<(), RunError> {
        Ok(self.vcpus.iter().try_for_each(VcpuThread::ask_pause)?)
    }

    /// Stops the guest until the guard is dropped.
    ///
    /// # Errors
    /// A vCPU cannot be stopped or is broken.
    pub fn freeze(&mut self) -> Result<Frozen<'_>, RunError> {
        let (next, action) = self.state.next(Event::Freeze).ok_or(RunError::Ended)?;
        let thaw = self.state == State::Running;
        if action == Action::PauseVcpus {
            self.ask_to_stop()?;
            self.vcpus.iter().try_for_each(VcpuThread::wait_paused)?;
        }
        self.state = next;
        Ok(Frozen { machine: self, thaw })
    }
}

/// A machine whose vCPUs stand still with nothing half done. Dropping it lets them run again, on every path.
#[derive(Debug)]
pub struct Frozen<'a> {
    machine: &'a mut Machine,
    thaw: bool,
}

impl Frozen<'_> {
    /// The bytes of the `state` file. The machine is read once: until the guest runs again every capture is of the same
    /// moment, with the same bytes.
    ///
    /// # Errors
    /// See [`CaptureError`].
    pub fn capture(&mut self, version: FormatVersion) -> Result<Vec<u8>, CaptureError> {
        let machine = &mut *self.machine;
        let parts = Parts {
            shape: &machine.shape,
            tsc_khz: machine.tsc_khz,
            vm: &machine.vm,
            vcpus: &machine.vcpus,
            devices: &machine.devices,
            msrs: &machine.msrs,
        };
        capture::capture(&parts, &mut machine.moment, version)
    }

    /// Guest RAM, which nobody changes while this guard lives.
    pub fn memory(&self) -> &GuestMemory {
        &self.machine.memory
    }

    /// Writes the content of a writable drive to an empty file.
    ///
    /// # Errors
    /// There is no such drive, or it cannot be read or written.
    pub fn write_drive(&self, id: &str, to: &File) -> Result<(), DeviceError> {
        self.machine.devices.write_drive(id, to)
    }

    /// Guest TSC frequency, kHz.
    pub fn tsc_khz(&self) -> u32 {
        self.machine.tsc_khz
    }

    /// Leaves the guest as it is, for good: after a bake nobody wants it to run on.
    pub fn keep(mut self) {
        self.thaw = false;
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        if self.thaw && self.machine.run().is_err() {
            // The vCPU threads are gone: the next wait or freeze reports it.
            self.machine.over();
        }
    }
}

/// Whose descriptor became ready.
enum Token {
    Requests,
    Source(u32),
    Lost,
}

impl Token {
    fn to_u64(&self) -> u64 {
        match self {
            Token::Requests => 0,
            Token::Source(index) => 1 << 32 | u64::from(*index),
            Token::Lost => 2 << 32,
        }
    }

    fn from_u64(value: u64) -> Self {
        let low = u32::try_from(value & u64::from(u32::MAX)).unwrap_or(u32::MAX);
        match value >> 32 {
            0 => Token::Requests,
            1 => Token::Source(low),
            _ => Token::Lost,
        }
    }
}

fn event_loop(devices: &DeviceTable, requests: &RequestLine) -> io::Result<(Epoll, Vec<EventToken>)> {
    let epoll = Epoll::new()?;
    add(&epoll, requests.event().as_raw_fd(), Token::Requests)?;
    let mut tokens = Vec::new();
    for (index, (fd, token)) in (0u32..).zip(devices.event_sources()) {
        add(&epoll, fd, Token::Source(index))?;
        tokens.push(token);
    }
    Ok((epoll, tokens))
}

fn add(epoll: &Epoll, fd: RawFd, token: Token) -> io::Result<()> {
    epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, token.to_u64()))
}

/// Time until `deadline`, rounded up so that a wait never ends just before it; -1 without one.
fn milliseconds(deadline: Option<Instant>) -> i32 {
    let Some(at) = deadline else { return -1 };
    let left = at.saturating_duration_since(Instant::now());
    i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX)
}
