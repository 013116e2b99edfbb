//! What the tests beside this room's code share: small guests, and a conversation with them.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use snapshot_format::manifest::{FunctionContract, Interface};

use crate::boot::SmallGuest;
use crate::function::{Conversation, Event, Notice, RestoreMessage};

use super::{AnswerSink, Drive, Shape, Timeline, invoke};

/// The least machine.
pub(super) const SHAPE: Shape = Shape { memory_bytes: 2 << 20, vcpus: 1 };

/// A small guest, which is compiled unless the environment has it.
pub(super) fn guest(name: &str) -> SmallGuest {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let built = || {
        let folder = tempfile::tempdir().unwrap();
        small_guests::build(folder.path()).unwrap();
        folder
    };
    let file = std::env::var_os("EMBER_SMALL_GUESTS").map_or_else(
        || small_guests::elf(FOLDER.get_or_init(built).path(), name),
        |folder| small_guests::elf(Path::new(&folder), name),
    );
    SmallGuest::from_bytes(std::fs::read(file).unwrap()).unwrap()
}

/// What is agreed with a small guest.
pub(super) fn contract() -> FunctionContract {
    FunctionContract {
        interface: Interface::Port,
        command: Vec::new(),
        env: BTreeMap::new(),
        workdir: "/".to_owned(),
        user: None,
        resident: false,
        http: None,
        lambda: None,
        ready_timeout_ms: 10_000,
        event_timeout_ms: 10_000,
    }
}

/// A conversation with a clone that has been told that it is one.
pub(super) fn restored() -> Conversation {
    let message = RestoreMessage {
        generation: [1; 16],
        entropy: [2; 64],
        host_name: String::new(),
        machine_id: None,
        env: BTreeMap::new(),
    };
    let mut conversation = Conversation::restored(&contract(), 0).unwrap();
    conversation.restore(&message, 0, None).unwrap();
    conversation
}

/// A deadline that only what hangs meets.
pub(super) fn soon() -> Option<Instant> {
    Some(Instant::now() + Duration::from_secs(30))
}

/// Collects an answer.
#[derive(Default)]
pub(super) struct Answer(Vec<u8>);

impl AnswerSink for Answer {
    fn take(&mut self, piece: Notice) -> io::Result<bool> {
        if let Notice::Answer { bytes } = piece {
            self.0.extend(bytes);
        }
        Ok(true)
    }
}

/// Gives a guest an event that says nothing, and gives its answer.
pub(super) fn ask(drive: &mut Drive<'_>) -> String {
    let mut answer = Answer::default();
    let event = Event::Port { bytes: b"?".to_vec() };
    invoke(drive, &event, soon(), &mut answer, &mut Timeline::start()).unwrap();
    String::from_utf8(answer.0).unwrap()
}
