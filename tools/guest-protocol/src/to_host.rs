//! What the agent says.

use crate::GENERATION_LEN;
use crate::fields::{Fields, PayloadError};
use crate::frame::{Raw, Sink, put};

const HELLO: u8 = 0x01;
const READY: u8 = 0x02;
const SETTLED: u8 = 0x03;
const FROZEN: u8 = 0x04;
const ACKNOWLEDGE: u8 = 0x05;
const STDOUT: u8 = 0x06;
const STDERR: u8 = 0x07;
const ANSWER: u8 = 0x08;
const DONE: u8 = 0x09;
const FAILED: u8 = 0x0a;
const LOG: u8 = 0x0b;

/// Bits of a greeting's facts.
const FACT_VMGENID: u8 = 1;

/// First four bytes of a greeting.
const MAGIC: [u8; 4] = *b"EMBR";
/// Longest text of a failure, bytes.
pub const TEXT_MAX: usize = 4096;
/// Longest name of a version in a greeting, bytes.
pub const AGENT_TEXT_MAX: usize = 255;

/// A frame from the agent to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToHost<'a> {
    /// The agent is there.
    Hello(Hello<'a>),
    /// The function is at its warm point.
    Ready,
    /// The clean caches are dropped.
    Settled,
    /// Everything is ready for the freeze: the agent reads the control stream and does nothing else.
    Frozen {
        /// MemTotal, bytes.
        mem_total: u64,
        /// MemFree, bytes.
        mem_free: u64,
    },
    /// The restore frame was applied.
    Acknowledge {
        /// Its generation.
        generation: [u8; GENERATION_LEN],
    },
    /// What the function wrote.
    Output {
        /// Where it wrote it.
        stream: Stream,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// What a hook wrote.
    Log {
        /// The bytes.
        bytes: &'a [u8],
    },
    /// A part of the answer (`http`, `lambda`).
    Answer {
        /// The bytes.
        bytes: &'a [u8],
    },
    /// The event is over.
    Done {
        /// exec: the command's exit code, or 128 and the signal's number; others: 0, or 1 for a function that reported an error.
        exit_code: i32,
    },
    /// The function or the guest cannot go on.
    Failed(Failure<'a>),
}

/// Who the agent is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello<'a> {
    /// The protocol version it speaks.
    pub protocol: u16,
    /// Its own version, [`AGENT_TEXT_MAX`] bytes at most.
    pub agent_version: &'a str,
    /// Release of the guest kernel, [`AGENT_TEXT_MAX`] bytes at most.
    pub kernel_release: &'a str,
    /// Whether the guest kernel has bound its driver to the VM Generation ID, so that it reseeds when that changes.
    pub vmgenid: bool,
}

/// One of the function's two output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Why the guest cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure<'a> {
    /// What kind of failure it is.
    pub cause: Cause,
    /// `Exited`: the exit code; `Killed`: the signal; else 0.
    pub status: i32,
    /// A sentence, or the error that the function reported; [`TEXT_MAX`] bytes at most.
    pub text: &'a [u8],
}

/// Kinds of failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The guest could not be set up (modules, root, mounts).
    Guest,
    /// The host's frames make no sense to the agent.
    Protocol,
    /// The function could not be started.
    Start,
    /// The function ended by itself.
    Exited,
    /// The function was killed by a signal.
    Killed,
    /// The function did not get ready in time.
    NotReady,
    /// The function reported that it could not initialise.
    Init,
    /// The clone could not be made unique.
    Restore,
    /// The function reported that it could not go on after the restore.
    AfterRestore,
    /// The function did not take or answer an event.
    Event,
}

impl Cause {
    const ALL: [Cause; 10] = [
        Cause::Guest,
        Cause::Protocol,
        Cause::Start,
        Cause::Exited,
        Cause::Killed,
        Cause::NotReady,
        Cause::Init,
        Cause::Restore,
        Cause::AfterRestore,
        Cause::Event,
    ];

    const fn number(self) -> u16 {
        match self {
            Cause::Guest => 1,
            Cause::Protocol => 2,
            Cause::Start => 3,
            Cause::Exited => 4,
            Cause::Killed => 5,
            Cause::NotReady => 6,
            Cause::Init => 7,
            Cause::Restore => 8,
            Cause::AfterRestore => 9,
            Cause::Event => 10,
        }
    }

    fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|cause| cause.number() == number)
    }
}

impl Stream {
    /// The kind of the frame that carries this stream's bytes, for a sender that has the payload in place already.
    pub const fn kind(self) -> u8 {
        match self {
            Stream::Stdout => STDOUT,
            Stream::Stderr => STDERR,
        }
    }
}

impl<'a> ToHost<'a> {
    /// The kind of a frame with answer bytes, for a sender that has the payload in place already.
    pub const ANSWER_KIND: u8 = ANSWER;
    /// The kind of a frame with a hook's output, likewise.
    pub const LOG_KIND: u8 = LOG;

    /// Appends the frame. What it holds must fit into one, see [`PAYLOAD_MAX`](crate::PAYLOAD_MAX).
    pub fn append_to(&self, sink: &mut impl Sink) {
        match self {
            ToHost::Hello(hello) => hello.append_to(sink),
            ToHost::Ready => put(sink, READY, &[]),
            ToHost::Settled => put(sink, SETTLED, &[]),
            ToHost::Frozen { mem_total, mem_free } => {
                put(sink, FROZEN, &[&mem_total.to_le_bytes(), &mem_free.to_le_bytes()]);
            }
            ToHost::Acknowledge { generation } => put(sink, ACKNOWLEDGE, &[generation]),
            ToHost::Output { stream, bytes } => put(sink, stream.kind(), &[bytes]),
            ToHost::Log { bytes } => put(sink, LOG, &[bytes]),
            ToHost::Answer { bytes } => put(sink, ANSWER, &[bytes]),
            ToHost::Done { exit_code } => put(sink, DONE, &[&exit_code.to_le_bytes()]),
            ToHost::Failed(failure) => failure.append_to(sink),
        }
    }

    /// Reads a frame.
    ///
    /// # Errors
    /// See [`PayloadError`].
    pub fn decode(raw: Raw<'a>) -> Result<Self, PayloadError> {
        let payload = raw.payload;
        match raw.kind {
            HELLO => Hello::decode(payload).map(ToHost::Hello),
            READY => Fields::new("ready", payload).end().map(|()| ToHost::Ready),
            SETTLED => Fields::new("settled", payload).end().map(|()| ToHost::Settled),
            FROZEN => frozen(payload),
            ACKNOWLEDGE => acknowledge(payload),
            STDOUT => Ok(ToHost::Output { stream: Stream::Stdout, bytes: payload }),
            STDERR => Ok(ToHost::Output { stream: Stream::Stderr, bytes: payload }),
            LOG => Ok(ToHost::Log { bytes: payload }),
            ANSWER => Ok(ToHost::Answer { bytes: payload }),
            DONE => done(payload),
            FAILED => Failure::decode(payload).map(ToHost::Failed),
            kind => Err(PayloadError::Kind { kind }),
        }
    }

    /// What the frame is called in documents and messages.
    pub fn name(&self) -> &'static str {
        match self {
            ToHost::Hello(_) => "hello",
            ToHost::Ready => "ready",
            ToHost::Settled => "settled",
            ToHost::Frozen { .. } => "frozen",
            ToHost::Acknowledge { .. } => "acknowledge",
            ToHost::Output { .. } => "output",
            ToHost::Log { .. } => "log",
            ToHost::Answer { .. } => "answer",
            ToHost::Done { .. } => "done",
            ToHost::Failed(_) => "failed",
        }
    }
}

impl<'a> Hello<'a> {
    fn append_to(&self, sink: &mut impl Sink) {
        let (agent, agent_len) = short_text(self.agent_version);
        let (kernel, kernel_len) = short_text(self.kernel_release);
        let protocol = self.protocol.to_le_bytes();
        let facts = if self.vmgenid { FACT_VMGENID } else { 0 };
        put(sink, HELLO, &[&MAGIC, &protocol, &agent_len, agent, &kernel_len, kernel, &[facts]]);
    }

    fn decode(payload: &'a [u8]) -> Result<Self, PayloadError> {
        let mut fields = Fields::new("hello", payload);
        let magic = fields.array("magic")?;
        if magic != MAGIC {
            let value = u64::from(u32::from_le_bytes(magic));
            return Err(PayloadError::Value { frame: "hello", field: "magic", value });
        }
        let hello = Hello {
            protocol: fields.u16("protocol version")?,
            agent_version: fields.short_text("agent version")?,
            kernel_release: fields.short_text("kernel release")?,
            vmgenid: facts(fields.byte("facts")?)?,
        };
        // A later version may greet with more: its fields are read once its version is known.
        if hello.protocol == 1 {
            fields.end()?;
        }
        Ok(hello)
    }
}

fn facts(bits: u8) -> Result<bool, PayloadError> {
    match bits {
        0 => Ok(false),
        FACT_VMGENID => Ok(true),
        bits => Err(PayloadError::Value { frame: "hello", field: "fact", value: u64::from(bits) }),
    }
}

/// `text`, or as much of it as its length byte can tell.
fn short_text(text: &str) -> (&[u8], [u8; 1]) {
    let end = text.floor_char_boundary(AGENT_TEXT_MAX);
    let bytes = text.as_bytes().get(..end).unwrap_or_default();
    (bytes, [u8::try_from(bytes.len()).unwrap_or(0)])
}

impl<'a> Failure<'a> {
    fn append_to(&self, sink: &mut impl Sink) {
        let text = self.text.get(..TEXT_MAX).unwrap_or(self.text);
        put(sink, FAILED, &[&self.cause.number().to_le_bytes(), &self.status.to_le_bytes(), text]);
    }

    fn decode(payload: &'a [u8]) -> Result<Self, PayloadError> {
        let mut fields = Fields::new("failed", payload);
        let number = fields.u16("cause")?;
        let cause = Cause::from_number(number).ok_or(PayloadError::Value {
            frame: "failed",
            field: "cause",
            value: u64::from(number),
        })?;
        let status = fields.i32("status")?;
        let text = fields.rest();
        match text.len().checked_sub(TEXT_MAX) {
            Some(len @ 1..) => Err(PayloadError::Trailing { frame: "failed", len }),
            _ => Ok(Failure { cause, status, text }),
        }
    }
}

fn frozen(payload: &[u8]) -> Result<ToHost<'_>, PayloadError> {
    let mut fields = Fields::new("frozen", payload);
    let frozen = ToHost::Frozen { mem_total: fields.u64("MemTotal")?, mem_free: fields.u64("MemFree")? };
    fields.end().map(|()| frozen)
}

fn acknowledge(payload: &[u8]) -> Result<ToHost<'_>, PayloadError> {
    let mut fields = Fields::new("acknowledge", payload);
    let acknowledge = ToHost::Acknowledge { generation: fields.array("generation")? };
    fields.end().map(|()| acknowledge)
}

fn done(payload: &[u8]) -> Result<ToHost<'_>, PayloadError> {
    let mut fields = Fields::new("done", payload);
    let done = ToHost::Done { exit_code: fields.i32("exit code")? };
    fields.end().map(|()| done)
}
