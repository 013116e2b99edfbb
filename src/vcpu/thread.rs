//! A vCPU's thread: runs the guest, serves exits from the bus, pauses on request.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Instant;

use snapshot_format::sections::VcpuState;

use crate::bus::{Bus, Request, RequestLine};
use crate::kvm::{Exit, KickError, KickTarget, KvmVcpu, VmError, kick};

use super::msrs::MsrSelection;
use super::state::{self, VcpuError};

/// Why a vCPU thread could not be started or told something.
#[derive(Debug, thiserror::Error)]
pub enum ThreadError {
    /// The host has no room for another thread.
    #[error("Cannot start the thread of vCPU {index}")]
    Start {
        /// Which vCPU.
        index: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The thread is gone.
    #[error("The thread of vCPU {index} has ended")]
    Ended {
        /// Which vCPU.
        index: u32,
    },
    /// The vCPU could not be interrupted.
    #[error("Cannot interrupt vCPU {index}")]
    Kick {
        /// Which vCPU.
        index: u32,
        /// Why.
        #[source]
        source: KickError,
    },
    /// The guest cannot go on.
    #[error("vCPU {index} stopped because {reason}")]
    Broken {
        /// Which vCPU.
        index: u32,
        /// Why, in words.
        reason: String,
    },
    /// The state could not be read.
    #[error(transparent)]
    Save(#[from] VcpuError),
}

#[derive(Debug)]
enum Command {
    Take(Box<(KvmVcpu, Buses)>),
    Run,
    Save(MsrSelection),
}

#[derive(Debug)]
enum Reply {
    /// The vCPU has left the guest, with nothing half done; the text says why it cannot go on, if it cannot.
    Paused(Option<String>),
    Saved(Box<Result<VcpuState, VcpuError>>),
}

/// The handle of a vCPU's thread. Every `run` is answered by exactly one `Paused`, whatever ends it.
#[derive(Debug)]
pub struct VcpuThread {
    index: u32,
    thread: JoinHandle<()>,
    pause: Arc<AtomicBool>,
    first_exit: Arc<OnceLock<Instant>>,
    commands: Sender<Command>,
    replies: Receiver<Reply>,
}

/// What a vCPU's exits reach.
#[derive(Debug, Clone)]
pub struct Buses {
    /// I/O ports.
    pub pio: Arc<Bus>,
    /// Memory-mapped registers.
    pub mmio: Arc<Bus>,
}

impl VcpuThread {
    /// Starts the thread, which waits for its vCPU ([`take`](Self::take)). The guest does not run before `confine` has confined the
    /// thread; where that fails the guest is broken. `requests` is how the thread tells the machine that the guest reset or broke.
    ///
    /// # Errors
    /// The host has no room for a thread.
    pub fn start(
        index: u32,
        requests: RequestLine,
        confine: impl FnOnce() -> Result<(), String> + Send + 'static,
    ) -> Result<Self, ThreadError> {
        let pause = Arc::new(AtomicBool::new(false));
        let (commands, inbox) = channel();
        let (outbox, replies) = channel();
        let paused = pause.clone();
        let first_exit = Arc::<OnceLock<Instant>>::default();
        let noted = first_exit.clone();
        let thread = std::thread::Builder::new()
            .name(format!("vcpu{index}"))
            .spawn(move || {
                let refused = confine().err();
                let Ok(Command::Take(taken)) = inbox.recv() else { return };
                let (vcpu, buses) = *taken;
                Runner { vcpu, index, buses, requests, pause: paused, first_exit: noted, refused }
                    .serve(&inbox, &outbox);
            })
            .map_err(|source| ThreadError::Start { index, source })?;
        Ok(VcpuThread { index, thread, pause, first_exit, commands, replies })
    }

    /// Hands the thread its vCPU, whose state is set. Once, and first.
    ///
    /// # Errors
    /// The thread is gone.
    pub fn take(&self, vcpu: KvmVcpu, buses: Buses) -> Result<(), ThreadError> {
        self.commands.send(Command::Take(Box::new((vcpu, buses)))).map_err(|_| self.ended())
    }

    /// When the guest was left for the first time; `None` before.
    pub fn first_exit(&self) -> Option<Instant> {
        self.first_exit.get().copied()
    }

    /// Lets the guest run.
    ///
    /// # Errors
    /// The thread is gone.
    pub fn run(&self) -> Result<(), ThreadError> {
        self.pause.store(false, Ordering::SeqCst);
        self.commands.send(Command::Run).map_err(|_| self.ended())
    }

    /// Asks the guest to stop; [`wait_paused`](Self::wait_paused) tells when it has.
    ///
    /// # Errors
    /// The thread could not be signalled.
    pub fn ask_pause(&self) -> Result<(), ThreadError> {
        self.pause.store(true, Ordering::SeqCst);
        kick(&self.thread).map_err(|source| ThreadError::Kick { index: self.index, source })
    }

    /// Waits until the guest has stopped after [`ask_pause`](Self::ask_pause) or on its own.
    ///
    /// # Errors
    /// The guest cannot go on, or the thread is gone.
    pub fn wait_paused(&self) -> Result<(), ThreadError> {
        match self.replies.recv() {
            Ok(Reply::Paused(None)) => Ok(()),
            Ok(Reply::Paused(Some(reason))) => Err(ThreadError::Broken { index: self.index, reason }),
            Ok(Reply::Saved(_)) | Err(_) => Err(self.ended()),
        }
    }

    /// Reads the state of a paused vCPU, on its own thread.
    ///
    /// # Errors
    /// KVM refused a step, or the thread is gone.
    pub fn save(&self, selection: &MsrSelection) -> Result<VcpuState, ThreadError> {
        self.commands.send(Command::Save(selection.clone())).map_err(|_| self.ended())?;
        match self.replies.recv() {
            Ok(Reply::Saved(state)) => Ok((*state)?),
            Ok(Reply::Paused(_)) | Err(_) => Err(self.ended()),
        }
    }

    fn ended(&self) -> ThreadError {
        ThreadError::Ended { index: self.index }
    }
}

/// Lives on the vCPU's thread.
#[derive(Debug)]
struct Runner {
    vcpu: KvmVcpu,
    index: u32,
    buses: Buses,
    requests: RequestLine,
    pause: Arc<AtomicBool>,
    /// When the guest was left for the first time.
    first_exit: Arc<OnceLock<Instant>>,
    /// Why the thread could not be confined, if so.
    refused: Option<String>,
}

/// How a stretch of running ended.
enum End {
    Paused,
    Reset,
    Broken(String),
}

impl Runner {
    fn serve(&mut self, inbox: &Receiver<Command>, outbox: &Sender<Reply>) {
        self.vcpu.kick_target().arm();
        while let Ok(command) = inbox.recv() {
            let reply = match command {
                // It has its one already.
                Command::Take(_) => continue,
                Command::Run => Reply::Paused(self.run_reporting()),
                Command::Save(selection) => {
                    Reply::Saved(Box::new(state::save(&self.vcpu, self.index, &selection)))
                }
            };
            if outbox.send(reply).is_err() {
                break;
            }
        }
        KickTarget::disarm();
    }

    /// Runs the guest; tells the machine when it ends on its own, and why it cannot go on.
    fn run_reporting(&mut self) -> Option<String> {
        let outcome = match self.refused.take() {
            None => self.run_until_paused(),
            Some(refused) => Ok(End::Broken(format!("its thread could not be confined: {refused}"))),
        };
        let (request, reason) = match outcome {
            Ok(End::Paused) => return None,
            Ok(End::Reset) => (Request::Reset, "the guest reset itself (triple fault)".to_owned()),
            Ok(End::Broken(reason)) => (Request::Broken, reason),
            Err(e) => (
                Request::Broken,
                format!("{e}: {}", std::error::Error::source(&e).map_or(String::new(), |s| s.to_string())),
            ),
        };
        match self.requests.raise(request) {
            Ok(()) => Some(reason),
            Err(e) => Some(format!("{reason} (and the machine could not be told: {e})")),
        }
    }

    fn run_until_paused(&mut self) -> Result<End, VmError> {
        let requests = self.requests.count();
        while !self.pause.load(Ordering::SeqCst) && self.requests.count() == requests {
            if let Some(end) = self.step()? {
                return Ok(end);
            }
        }
        self.finish_half_done()
    }

    /// After a port or MMIO exit the guest's instruction is complete only once KVM_RUN is entered again
    /// (Documentation/virt/kvm/api.rst, 4.10 and 5): with `immediate_exit` that is all it does. A string instruction
    /// may ask for its next element first.
    fn finish_half_done(&mut self) -> Result<End, VmError> {
        loop {
            self.vcpu.set_immediate_exit(true);
            match self.step_exit()? {
                Step::Interrupted => return Ok(End::Paused),
                Step::Served => {}
                Step::End(end) => return Ok(end),
            }
        }
    }

    fn step(&mut self) -> Result<Option<End>, VmError> {
        match self.step_exit()? {
            Step::End(end) => Ok(Some(end)),
            Step::Interrupted | Step::Served => Ok(None),
        }
    }

    fn step_exit(&mut self) -> Result<Step, VmError> {
        let exit = self.vcpu.run()?;
        self.first_exit.get_or_init(Instant::now);
        let interrupted = match exit {
            Exit::PortRead { port, size, data } => {
                data.chunks_mut(size).for_each(|element| {
                    self.buses.pio.read(u64::from(port), element);
                });
                false
            }
            Exit::PortWrite { port, size, data } => {
                data.chunks(size).for_each(|element| {
                    self.buses.pio.write(u64::from(port), element);
                });
                false
            }
            Exit::MmioRead { address, data } => {
                self.buses.mmio.read(address, data);
                false
            }
            Exit::MmioWrite { address, data } => {
                self.buses.mmio.write(address, data);
                false
            }
            Exit::Interrupted => true,
            Exit::Shutdown => return Ok(Step::End(End::Reset)),
            Exit::Broken(reason) => return Ok(Step::End(End::Broken(reason))),
        };
        if interrupted {
            self.vcpu.set_immediate_exit(false);
            return Ok(Step::Interrupted);
        }
        Ok(Step::Served)
    }
}

enum Step {
    Served,
    Interrupted,
    End(End),
}
