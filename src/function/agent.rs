//! The conversation with the agent of a Linux guest (docs/guest-protocol.md).

use std::collections::VecDeque;
use std::mem;

use guest_protocol::{
    CONTRACT_MAX, Cause, Decoder, EventHead, Failure, GENERATION_LEN, Hello, PAYLOAD_MAX, Restore,
    RestoreEntries, RestoreEntry, ToGuest, ToHost, is_host_name,
};
use snapshot_format::manifest::{FunctionContract, Interface};

use crate::faults::{Fault, injected};

use super::error::{LastOutput, SessionError};
use super::event::Event;
use super::response::{Piece, Response, ResponseError};
use super::tail::Tail;
use super::{ClockReading, Notice, Outbox, RestoreMessage};

/// The versions of the guest protocol. An agent is frozen in its bundle: none is ever dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V1,
    /// Takes the host's clock as a reading at a moment of the guest's TSC.
    V2,
}

impl Version {
    fn from_number(number: u16) -> Result<Self, SessionError> {
        match number {
            1 => Ok(Version::V1),
            2 => Ok(Version::V2),
            found => Err(SessionError::Version { found }),
        }
    }

    fn number(self) -> u16 {
        match self {
            Version::V1 => 1,
            Version::V2 => 2,
        }
    }
}

/// How far the conversation is.
#[derive(Debug)]
enum Stage {
    Greeting,
    Starting,
    Warm,
    Settling,
    Freezing,
    Frozen,
    Restoring { generation: [u8; GENERATION_LEN] },
    Answering(Answering),
    Failed,
}

/// What the frames of an answer are.
#[derive(Debug)]
enum Answering {
    Exec,
    Http(Box<Response>),
    Lambda,
}

/// With an agent.
#[derive(Debug)]
pub struct AgentConversation {
    contract: FunctionContract,
    version: Option<Version>,
    is_clone: bool,
    /// What the agent's greeting said.
    has_generation_driver: Option<bool>,
    stage: Stage,
    /// Events whose answer is complete here while the agent has not said so yet.
    finished: u32,
    decoder: Decoder,
    outbox: Outbox,
    notices: VecDeque<Notice>,
    tail: Tail,
}

impl AgentConversation {
    pub(super) fn cold(contract: &FunctionContract) -> Result<Self, SessionError> {
        // Refused before a guest is booted for it.
        encode(contract)?;
        Ok(Self::at(Stage::Greeting, contract, None))
    }

    pub(super) fn restored(contract: &FunctionContract, protocol: u16) -> Result<Self, SessionError> {
        Ok(Self::at(Stage::Frozen, contract, Some(Version::from_number(protocol)?)))
    }

    fn at(stage: Stage, contract: &FunctionContract, version: Option<Version>) -> Self {
        AgentConversation {
            contract: contract.clone(),
            version,
            is_clone: version.is_some(),
            has_generation_driver: None,
            stage,
            finished: 0,
            decoder: Decoder::new(),
            outbox: Outbox::default(),
            notices: VecDeque::new(),
            tail: Tail::default(),
        }
    }

    pub(super) fn protocol(&self) -> Option<u16> {
        self.version.map(Version::number)
    }

    pub(super) fn is_clone(&self) -> bool {
        self.is_clone
    }

    pub(super) fn has_generation_driver(&self) -> Option<bool> {
        self.has_generation_driver
    }

    pub(super) fn restore(
        &mut self,
        message: &RestoreMessage,
        unix_time_ns: u64,
        clock: Option<ClockReading>,
    ) -> Result<(), SessionError> {
        if !matches!(self.stage, Stage::Frozen) {
            return Err(SessionError::Order { what: "A restore message", when: "to a guest that runs" });
        }
        let clock = clock.filter(|_| self.version == Some(Version::V2));
        let entries = entries(message, clock)?;
        let RestoreMessage { generation, entropy, .. } = *message;
        let entries = RestoreEntries::from_bytes(&entries);
        self.say(ToGuest::Restore(Restore { generation, entropy, unix_time_ns, entries }));
        self.stage = Stage::Restoring { generation };
        Ok(())
    }

    pub(super) fn event(&mut self, event: &Event) -> Result<(), SessionError> {
        event.check(self.contract.interface)?;
        self.expect_warm("An event")?;
        let mut head = EventHead::default();
        match event {
            Event::Exec { stdin } => self.send(head, stdin, Answering::Exec),
            Event::Http(request) => {
                let bytes = request.to_bytes(&self.contract)?;
                self.send(head, &bytes, Answering::Http(Box::new(Response::to(&request.method))));
            }
            Event::Lambda(event) => {
                head.deadline_unix_ms = event.deadline_unix_ms;
                head.request_id = event.request_id;
                self.send(head, &event.payload, Answering::Lambda);
            }
            Event::Port { .. } => {}
        }
        Ok(())
    }

    fn send(&mut self, head: EventHead, bytes: &[u8], answering: Answering) {
        let (first, rest) = bytes.split_at(bytes.len().min(ToGuest::FIRST_MAX));
        let total = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.say(ToGuest::Event { head: EventHead { total, ..head }, first });
        for bytes in rest.chunks(PAYLOAD_MAX) {
            self.say(ToGuest::Data { bytes });
        }
        self.stage = Stage::Answering(answering);
    }

    pub(super) fn settle(&mut self) -> Result<(), SessionError> {
        self.expect_warm("The order to drop caches")?;
        self.say(ToGuest::Settle);
        self.stage = Stage::Settling;
        Ok(())
    }

    pub(super) fn prepare_freeze(&mut self) -> Result<(), SessionError> {
        self.expect_warm("The order to freeze")?;
        self.say(ToGuest::Freeze);
        self.stage = Stage::Freezing;
        Ok(())
    }

    fn expect_warm(&self, what: &'static str) -> Result<(), SessionError> {
        let when = match self.stage {
            Stage::Warm => return Ok(()),
            Stage::Greeting | Stage::Starting => "before the function is ready",
            Stage::Settling | Stage::Freezing => "while the guest gets ready for the freeze",
            Stage::Frozen | Stage::Restoring { .. } => "before the restore message is acknowledged",
            Stage::Answering(_) => "while another event is being answered",
            Stage::Failed => "after a failure",
        };
        Err(SessionError::Order { what, when })
    }

    fn say(&mut self, frame: ToGuest<'_>) {
        frame.append_to(&mut self.outbox.bytes);
    }

    pub(super) fn output(&self) -> &[u8] {
        self.outbox.pending()
    }

    pub(super) fn consume_output(&mut self, n: usize) {
        self.outbox.consume(n);
    }

    pub(super) fn receive(&mut self, bytes: &[u8]) -> Result<(), SessionError> {
        let mut decoder = mem::take(&mut self.decoder);
        decoder.push(bytes);
        let taken = self.take_frames(&mut decoder);
        self.decoder = decoder;
        taken.map_err(|error| self.fail(error))
    }

    fn take_frames(&mut self, decoder: &mut Decoder) -> Result<(), SessionError> {
        while let Some(raw) = decoder.next_frame()? {
            for frame in with_faults(ToHost::decode(raw)?).into_iter().flatten() {
                self.heed(frame)?;
            }
        }
        Ok(())
    }

    /// Whatever goes wrong before the acknowledgement has one meaning: this clone is not known to be unique. Nothing that it
    /// said counts then, not even an acknowledgement that nobody has seen yet.
    fn fail(&mut self, error: SessionError) -> SessionError {
        let before = mem::replace(&mut self.stage, Stage::Failed);
        let error = match (before, error) {
            (_, error @ SessionError::NotUnique { .. }) => error,
            (Stage::Frozen | Stage::Restoring { .. }, SessionError::Function { what, .. }) => {
                self.not_unique(format!("its function {what}"))
            }
            (Stage::Frozen | Stage::Restoring { .. }, error) => self.not_unique(error.to_string()),
            (_, error) => error,
        };
        if matches!(error, SessionError::NotUnique { .. }) {
            self.notices.clear();
        }
        error
    }

    fn not_unique(&self, reason: impl Into<String>) -> SessionError {
        SessionError::NotUnique { reason: reason.into(), last_output: self.tail.text() }
    }

    fn heed(&mut self, frame: ToHost<'_>) -> Result<(), SessionError> {
        match (&mut self.stage, frame) {
            (_, ToHost::Failed(failure)) => return Err(self.failure(&failure)),
            (Stage::Greeting, ToHost::Hello(hello)) => return self.greet(&hello),
            (Stage::Greeting | Stage::Frozen, ToHost::Output { .. } | ToHost::Log { .. }) => {
                return Err(self.unexpected(&frame));
            }
            // What a command prints is its answer, and there is no event yet.
            (Stage::Restoring { .. }, ToHost::Output { .. })
                if self.contract.interface == Interface::Exec =>
            {
                return Err(self.unexpected(&frame));
            }
            (_, ToHost::Log { bytes }) => {
                self.tail.push(bytes);
                self.notices.push_back(Notice::Log { bytes: bytes.to_vec() });
            }
            (_, ToHost::Output { stream, bytes }) => {
                self.tail.push(bytes);
                self.notices.push_back(Notice::Output { stream, bytes: bytes.to_vec() });
            }
            (_, ToHost::Answer { .. }) if self.finished > 0 => {}
            (_, ToHost::Done { .. }) if self.finished > 0 => self.finished -= 1,
            (Stage::Starting, ToHost::Ready) => self.reach(Stage::Warm, Notice::Warm),
            (Stage::Settling, ToHost::Settled) => self.reach(Stage::Warm, Notice::Settled),
            (Stage::Freezing, ToHost::Frozen { mem_total, mem_free }) => {
                self.reach(Stage::Frozen, Notice::ReadyToFreeze { mem_total, mem_free });
            }
            (Stage::Restoring { generation: asked }, ToHost::Acknowledge { generation }) => {
                if *asked != generation {
                    return Err(self.not_unique("it acknowledged another generation than its own"));
                }
                self.reach(Stage::Warm, Notice::Acknowledged);
            }
            (_, ToHost::Acknowledge { .. }) if self.is_clone => {
                return Err(self.not_unique("it acknowledged when nobody had asked it to"));
            }
            (Stage::Answering(_), ToHost::Answer { bytes }) => return self.answer(bytes),
            (Stage::Answering(_), ToHost::Done { exit_code }) => return self.done(exit_code),
            _ => return Err(self.unexpected(&frame)),
        }
        Ok(())
    }

    fn reach(&mut self, stage: Stage, notice: Notice) {
        self.stage = stage;
        self.notices.push_back(notice);
    }

    fn greet(&mut self, hello: &Hello<'_>) -> Result<(), SessionError> {
        self.version = Some(Version::from_number(hello.protocol)?);
        self.has_generation_driver = Some(hello.vmgenid);
        let json = encode(&self.contract)?;
        // One byte of each part tells whether it is the last.
        let mut parts = json.chunks(PAYLOAD_MAX - 1).peekable();
        while let Some(json) = parts.next() {
            let last = parts.peek().is_none();
            self.say(ToGuest::Contract { last, json });
        }
        self.stage = Stage::Starting;
        Ok(())
    }

    fn answer(&mut self, bytes: &[u8]) -> Result<(), SessionError> {
        let Stage::Answering(Answering::Http(response)) = &mut self.stage else {
            self.notices.push_back(Notice::Answer { bytes: bytes.to_vec() });
            return Ok(());
        };
        let notices = &mut self.notices;
        let read = response.push(bytes, &mut |piece| {
            notices.push_back(match piece {
                Piece::Head { status, headers } => Notice::Head { status, headers },
                Piece::Body(bytes) => Notice::Answer { bytes },
            });
        });
        let (complete, exit_code) = (response.is_complete(), exit_code_of(response.status()));
        read.map_err(|source| self.bad_response(source))?;
        if complete {
            // Not after the agent's word: the function may keep the connection open, and nobody need wait for its end.
            self.say(ToGuest::Finish);
            self.finished += 1;
            self.reach(Stage::Warm, Notice::Done { exit_code });
        }
        Ok(())
    }

    fn done(&mut self, exit_code: i32) -> Result<(), SessionError> {
        let exit_code = match &mut self.stage {
            Stage::Answering(Answering::Http(response)) => {
                let (end, status) = (response.end(), response.status());
                end.map_err(|source| self.bad_response(source))?;
                exit_code_of(status)
            }
            _ => exit_code,
        };
        self.reach(Stage::Warm, Notice::Done { exit_code });
        Ok(())
    }

    fn bad_response(&self, source: ResponseError) -> SessionError {
        SessionError::Response { last_output: self.tail.text(), source }
    }

    fn unexpected(&self, frame: &ToHost<'_>) -> SessionError {
        let waiting_for = self.waiting_for().unwrap_or("nothing");
        SessionError::Unexpected { frame: frame.name(), waiting_for }
    }

    fn failure(&self, failure: &Failure<'_>) -> SessionError {
        let text = readable(failure.text);
        let status = failure.status;
        let what = match failure.cause {
            Cause::Guest | Cause::Protocol => return SessionError::Guest { text },
            Cause::Restore => return self.not_unique(text),
            Cause::Start => format!("could not be started: {text}"),
            Cause::Exited => format!("ended with exit code {status} {}", self.when()),
            Cause::Killed => format!("was killed by signal {status} {}", self.when()),
            Cause::NotReady => format!("did not get ready: {text}"),
            Cause::Init => format!("reported that it cannot initialise: {text}"),
            Cause::AfterRestore => format!("reported that it cannot go on after the restore: {text}"),
            Cause::Event => format!("did not answer the event: {text}"),
        };
        SessionError::Function { what, last_output: self.tail.text() }
    }

    fn when(&self) -> &'static str {
        match self.stage {
            Stage::Greeting | Stage::Starting => "before it was ready",
            Stage::Answering(_) => "while it answered the event",
            _ => "between events",
        }
    }

    pub(super) fn next_notice(&mut self) -> Option<Notice> {
        self.notices.pop_front()
    }

    pub(super) fn waiting_for(&self) -> Option<&'static str> {
        match self.stage {
            Stage::Greeting => Some("the guest agent's greeting"),
            Stage::Starting => Some("the function to get ready"),
            Stage::Settling => Some("the guest to drop its caches"),
            Stage::Freezing => Some("the guest to get ready for the freeze"),
            Stage::Restoring { .. } => Some("the acknowledgement of the restore message"),
            Stage::Answering(_) => Some("the answer"),
            Stage::Warm | Stage::Frozen | Stage::Failed => None,
        }
    }

    pub(super) fn is_unacknowledged(&self) -> bool {
        matches!(self.stage, Stage::Restoring { .. })
    }

    pub(super) fn is_late(&mut self) -> SessionError {
        let error = self.not_unique("it acknowledged its restore message too late");
        self.fail(error)
    }

    pub(super) fn time_out(&self) -> SessionError {
        let last_output = self.tail.text();
        match self.stage {
            Stage::Restoring { .. } => self.not_unique("it did not acknowledge its restore message in time"),
            Stage::Starting => {
                SessionError::Function { what: "did not get ready in time".to_owned(), last_output }
            }
            _ => SessionError::TimedOut { waiting_for: self.waiting_for().unwrap_or("nothing"), last_output },
        }
    }
}

fn exit_code_of(status: u16) -> i32 {
    i32::from(status >= 400)
}

/// Text of the guest, as a terminal may show it.
fn readable(text: &[u8]) -> String {
    let mut tail = Tail::default();
    tail.push(text);
    let LastOutput(text) = tail.text();
    text
}

fn encode(contract: &FunctionContract) -> Result<Vec<u8>, SessionError> {
    let refuse = |reason: &str| SessionError::Contract { reason: reason.to_owned() };
    match contract.interface {
        Interface::Http if contract.http.is_none() => return Err(refuse("it names no port to connect to")),
        Interface::Lambda if contract.lambda.is_none() => return Err(refuse("it names no handler")),
        _ if contract.command.is_empty() => return Err(refuse("it names no command")),
        _ => {}
    }
    let json = serde_json::to_vec(contract).map_err(|e| refuse(&e.to_string()))?;
    if json.len() > CONTRACT_MAX {
        return Err(refuse(&format!(
            "it is {} bytes long, more than the limit of {CONTRACT_MAX}",
            json.len()
        )));
    }
    Ok(json)
}

/// What the host hears of an agent that has a fault.
fn with_faults(frame: ToHost<'_>) -> [Option<ToHost<'_>>; 2] {
    match frame {
        ToHost::Acknowledge { .. } if injected(Fault::AcknowledgeNever) => [None, None],
        ToHost::Acknowledge { .. } if injected(Fault::AcknowledgeTwice) => [Some(frame), Some(frame)],
        ToHost::Acknowledge { generation } if injected(Fault::AcknowledgeOld) => {
            [Some(ToHost::Acknowledge { generation: generation.map(|byte| !byte) }), None]
        }
        ToHost::Output { .. } if injected(Fault::AcknowledgeAgain) => {
            [Some(ToHost::Acknowledge { generation: [0; GENERATION_LEN] }), Some(frame)]
        }
        frame => [Some(frame), None],
    }
}

/// Clock, names and environment as entries of a restore frame.
fn entries(message: &RestoreMessage, clock: Option<ClockReading>) -> Result<Vec<u8>, SessionError> {
    let mut entries = Vec::new();
    if let Some(reading) = clock {
        RestoreEntry::Clock(reading).append_to(&mut entries);
    }
    if !message.host_name.is_empty() {
        if !is_host_name(&message.host_name) {
            return Err(SessionError::HostName { name: message.host_name.clone() });
        }
        RestoreEntry::HostName(&message.host_name).append_to(&mut entries);
    }
    if let Some(id) = message.machine_id {
        RestoreEntry::MachineId(id).append_to(&mut entries);
    }
    for (key, value) in &message.env {
        let refuse = |reason| Err(SessionError::Env { key: key.clone(), reason });
        if key.is_empty() || key.contains(['=', '\0']) {
            return refuse("its name is empty or contains = or a zero byte");
        }
        if value.contains('\0') {
            return refuse("its value contains a zero byte");
        }
        RestoreEntry::Env(format!("{key}={value}").as_bytes()).append_to(&mut entries);
        if entries.len() > ToGuest::ENTRIES_MAX {
            return refuse("all variables together are longer than 64 KiB");
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests;
