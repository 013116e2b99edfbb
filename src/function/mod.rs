//! The host's side of the guest protocol: what may be said when, and what the guest's bytes mean. Sans IO: bytes go in by
//! [`Conversation::receive`], out by [`Conversation::output`], and what they mean comes as [`Notice`]s.

mod agent;
mod error;
mod event;
mod port;
mod response;
#[cfg(test)]
mod sessions;
mod tail;

use std::collections::BTreeMap;

use snapshot_format::manifest::{FunctionContract, Interface};

pub use agent::AgentConversation;
pub use error::{LastOutput, SessionError};
pub use event::{Event, HttpRequest, LambdaEvent};
pub use guest_protocol::{ClockReading, GENERATION_LEN, MACHINE_ID_LEN, Stream, UNIQUE_MAX, is_host_name};
pub use port::PortConversation;
pub use response::ResponseError;

/// What the guest has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// The function is at its warm point: ready for events.
    Warm,
    /// The guest's clean caches are dropped.
    Settled,
    /// The guest may be frozen: the agent blocks in a read.
    ReadyToFreeze {
        /// MemTotal, bytes; 0 for a small guest.
        mem_total: u64,
        /// MemFree just before, bytes; 0 for a small guest.
        mem_free: u64,
    },
    /// The clone applied its restore message.
    Acknowledged,
    /// `exec`: the answer, as it comes. `http`, `lambda`: the function's own log.
    Output {
        /// Where the function wrote it.
        stream: Stream,
        /// What it wrote.
        bytes: Vec<u8>,
    },
    /// A hook of the clone wrote something.
    Log {
        /// What it wrote.
        bytes: Vec<u8>,
    },
    /// `http`: the head of the response, before its body.
    Head {
        /// The status code.
        status: u16,
        /// The headers, in their order.
        headers: Vec<(String, String)>,
    },
    /// `http`: a part of the body; `lambda` and `port`: a part of the answer.
    Answer {
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// The event is over.
    Done {
        /// `exec`: the command's exit code, 128 and the signal for a killed one. `http`: 1 for a status of 400 or more, else 0.
        /// `lambda`: 1 when the function reported an error, else 0. `port`: what the guest said.
        exit_code: i32,
    },
}

impl Notice {
    /// Whether it is a piece of the answer of a function with `interface`. Only an `exec` function answers with what it prints; what
    /// the others print is their log.
    pub fn is_answer(&self, interface: Interface) -> bool {
        match self {
            Notice::Output { stream, .. } => interface == Interface::Exec && *stream == Stream::Stdout,
            Notice::Answer { .. } => true,
            _ => false,
        }
    }
}

/// What a clone is told first.
#[derive(Clone, PartialEq, Eq)]
pub struct RestoreMessage {
    /// Unique to this clone.
    pub generation: [u8; guest_protocol::GENERATION_LEN],
    /// From the host's generator, for this clone alone.
    pub entropy: [u8; guest_protocol::ENTROPY_LEN],
    /// One that the agent takes, see [`is_host_name`]; empty for that of the bundle.
    pub host_name: String,
    /// machine-id(5); `None` for that of the bundle.
    pub machine_id: Option<[u8; guest_protocol::MACHINE_ID_LEN]>,
    /// Environment of the function that is not in the bundle; 64 KiB at most.
    pub env: BTreeMap<String, String>,
}

impl std::fmt::Debug for RestoreMessage {
    /// Without the entropy and the values, which are secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RestoreMessage")
            .field("generation", &self.generation)
            .field("host_name", &self.host_name)
            .field("machine_id", &self.machine_id)
            .field("env", &self.env.keys())
            .finish_non_exhaustive()
    }
}

/// A conversation with a guest.
#[derive(Debug)]
pub enum Conversation {
    /// With the agent of a Linux guest.
    Agent(Box<AgentConversation>),
    /// With a small guest, through its port.
    Port(PortConversation),
}

impl Conversation {
    /// With a guest that boots: its greeting comes first.
    ///
    /// # Errors
    /// The contract is too long.
    pub fn cold(contract: &FunctionContract) -> Result<Self, SessionError> {
        Ok(match contract.interface {
            Interface::Port => Conversation::Port(PortConversation::cold()),
            _ => Conversation::Agent(Box::new(AgentConversation::cold(contract)?)),
        })
    }

    /// With a clone, whose agent blocks at the warm point and speaks version `protocol`.
    ///
    /// # Errors
    /// This release does not speak that version.
    pub fn restored(contract: &FunctionContract, protocol: u16) -> Result<Self, SessionError> {
        Ok(match contract.interface {
            Interface::Port => Conversation::Port(PortConversation::restored()),
            _ => Conversation::Agent(Box::new(AgentConversation::restored(contract, protocol)?)),
        })
    }

    /// The protocol version of the agent, once it is known: a bundle must record it.
    pub fn protocol(&self) -> Option<u16> {
        match self {
            Conversation::Agent(agent) => agent.protocol(),
            Conversation::Port(_) => None,
        }
    }

    /// Whether the guest's kernel reseeds by itself when the VM Generation ID changes; `None` before the agent's greeting,
    /// and for a small guest.
    pub fn has_generation_driver(&self) -> Option<bool> {
        match self {
            Conversation::Agent(agent) => agent.has_generation_driver(),
            Conversation::Port(_) => None,
        }
    }

    /// Tells a clone what makes it unique, and the host's wall clock: nanoseconds since the epoch, and what it showed at a moment of the
    /// guest's TSC, for agents that can reckon from there. [`Notice::Acknowledged`] follows.
    ///
    /// # Errors
    /// This is no clone, it was told already, or the names or the environment cannot be told.
    pub fn restore(
        &mut self,
        message: &RestoreMessage,
        unix_time_ns: u64,
        clock: Option<ClockReading>,
    ) -> Result<(), SessionError> {
        match self {
            Conversation::Agent(agent) => agent.restore(message, unix_time_ns, clock),
            Conversation::Port(port) => port.restore(),
        }
    }

    /// Gives the function an event. [`Notice::Done`] follows.
    ///
    /// # Errors
    /// The function is not ready for one (a clone: it has not acknowledged its restore message), or the event is not one for it.
    pub fn event(&mut self, event: &Event) -> Result<(), SessionError> {
        match self {
            Conversation::Agent(agent) => agent.event(event),
            Conversation::Port(port) => port.event(event),
        }
    }

    /// Gives the function an event on the way to its warm point. [`Notice::Done`] follows.
    ///
    /// # Errors
    /// As [`event`](Self::event), and this is a clone.
    pub fn warm_up(&mut self, event: &Event) -> Result<(), SessionError> {
        let clone = match self {
            Conversation::Agent(agent) => agent.is_clone(),
            Conversation::Port(port) => port.is_clone(),
        };
        if clone {
            return Err(SessionError::Order { what: "A warm-up event", when: "in a clone" });
        }
        self.event(event)
    }

    /// Has the guest drop its clean caches, so that the warm-up events after it bring back what events need and nothing
    /// else. [`Notice::Settled`] follows.
    ///
    /// # Errors
    /// The function is not ready.
    pub fn settle(&mut self) -> Result<(), SessionError> {
        match self {
            Conversation::Agent(agent) => agent.settle(),
            Conversation::Port(port) => port.settle(),
        }
    }

    /// Has the guest get ready to be frozen: free memory becomes zero. [`Notice::ReadyToFreeze`] follows, and after it the guest
    /// takes nothing but a restore message.
    ///
    /// # Errors
    /// The function is not ready.
    pub fn prepare_freeze(&mut self) -> Result<(), SessionError> {
        match self {
            Conversation::Agent(agent) => agent.prepare_freeze(),
            Conversation::Port(port) => port.prepare_freeze(),
        }
    }

    /// Bytes for the guest.
    pub fn output(&self) -> &[u8] {
        match self {
            Conversation::Agent(agent) => agent.output(),
            Conversation::Port(port) => port.output(),
        }
    }

    /// Notes that the first `n` bytes of [`output`](Self::output) are on their way.
    pub fn consume_output(&mut self, n: usize) {
        match self {
            Conversation::Agent(agent) => agent.consume_output(n),
            Conversation::Port(port) => port.consume_output(n),
        }
    }

    /// Takes bytes from the guest.
    ///
    /// # Errors
    /// They are not what the protocol allows now, or they tell of a failure. Notices from before are still there.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), SessionError> {
        match self {
            Conversation::Agent(agent) => agent.receive(bytes),
            Conversation::Port(port) => port.receive(bytes),
        }
    }

    /// What has happened and was not told yet.
    pub fn next_notice(&mut self) -> Option<Notice> {
        match self {
            Conversation::Agent(agent) => agent.next_notice(),
            Conversation::Port(port) => port.next_notice(),
        }
    }

    /// What the host waits for, if it waits.
    pub fn waiting_for(&self) -> Option<&'static str> {
        match self {
            Conversation::Agent(agent) => agent.waiting_for(),
            Conversation::Port(port) => port.waiting_for(),
        }
    }

    /// Whether a restore message was said and not acknowledged.
    pub fn is_unacknowledged(&self) -> bool {
        matches!(self, Conversation::Agent(agent) if agent.is_unacknowledged())
    }

    /// The error for an acknowledgement that came too late. Nothing is given to the clone after it.
    pub fn is_late(&mut self) -> SessionError {
        match self {
            Conversation::Agent(agent) => agent.is_late(),
            Conversation::Port(port) => port.time_out(),
        }
    }

    /// The error for a deadline that has passed.
    pub fn time_out(&self) -> SessionError {
        match self {
            Conversation::Agent(agent) => agent.time_out(),
            Conversation::Port(port) => port.time_out(),
        }
    }
}

/// Bytes that wait to be sent.
#[derive(Debug, Default)]
struct Outbox {
    bytes: Vec<u8>,
    sent: usize,
}

impl Outbox {
    fn pending(&self) -> &[u8] {
        self.bytes.get(self.sent..).unwrap_or_default()
    }

    fn consume(&mut self, n: usize) {
        self.sent = self.sent.saturating_add(n);
        if self.sent >= self.bytes.len() {
            *self = Outbox::default();
        }
    }
}
