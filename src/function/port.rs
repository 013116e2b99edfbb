//! The conversation with a small guest: bytes through its port (docs/port-interface.md). That the guest is at its warm point or
//! has answered comes from the port device, not from the byte stream.

use std::collections::VecDeque;

use snapshot_format::manifest::Interface;

use super::error::{LastOutput, SessionError};
use super::event::Event;
use super::{Notice, Outbox};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Working,
    Warm,
    Frozen,
    Answering,
}

/// With a small guest.
#[derive(Debug)]
pub struct PortConversation {
    stage: Stage,
    is_clone: bool,
    outbox: Outbox,
    notices: VecDeque<Notice>,
}

impl PortConversation {
    pub(super) fn cold() -> Self {
        Self::at(Stage::Working, false)
    }

    pub(super) fn restored() -> Self {
        Self::at(Stage::Frozen, true)
    }

    fn at(stage: Stage, is_clone: bool) -> Self {
        PortConversation { stage, is_clone, outbox: Outbox::default(), notices: VecDeque::new() }
    }

    /// The guest has said that it is at its warm point.
    ///
    /// # Errors
    /// It owes an answer: it stands still now and would never give one.
    pub fn warm(&mut self) -> Result<(), SessionError> {
        if self.stage == Stage::Answering {
            let text = "it came to its warm point again and has not ended its answer".to_owned();
            return Err(SessionError::Guest { text });
        }
        self.stage = Stage::Warm;
        self.notices.push_back(Notice::Warm);
        Ok(())
    }

    /// The guest has said that its answer is complete.
    pub fn done(&mut self, exit_code: i32) {
        // What it has not read of this event is not the beginning of the next.
        self.outbox = Outbox::default();
        self.stage = Stage::Working;
        self.notices.push_back(Notice::Done { exit_code });
    }

    pub(super) fn is_clone(&self) -> bool {
        self.is_clone
    }

    pub(super) fn restore(&mut self) -> Result<(), SessionError> {
        self.step(Stage::Frozen, Stage::Warm, "A restore message", Notice::Acknowledged)
    }

    pub(super) fn settle(&mut self) -> Result<(), SessionError> {
        self.step(Stage::Warm, Stage::Warm, "The order to drop caches", Notice::Settled)
    }

    pub(super) fn prepare_freeze(&mut self) -> Result<(), SessionError> {
        let ready = Notice::ReadyToFreeze { mem_total: 0, mem_free: 0 };
        self.step(Stage::Warm, Stage::Frozen, "The order to freeze", ready)
    }

    fn step(
        &mut self,
        from: Stage,
        to: Stage,
        what: &'static str,
        notice: Notice,
    ) -> Result<(), SessionError> {
        self.expect(from, what)?;
        self.stage = to;
        self.notices.push_back(notice);
        Ok(())
    }

    fn expect(&self, stage: Stage, what: &'static str) -> Result<(), SessionError> {
        let when = match self.stage {
            _ if self.stage == stage => return Ok(()),
            Stage::Working => "before the guest is at its warm point",
            Stage::Warm => "to a guest that runs",
            Stage::Frozen => "before the restore message",
            Stage::Answering => "while an event is being answered",
        };
        Err(SessionError::Order { what, when })
    }

    pub(super) fn event(&mut self, event: &Event) -> Result<(), SessionError> {
        event.check(Interface::Port)?;
        self.expect(Stage::Warm, "An event")?;
        if let Event::Port { bytes } = event {
            self.outbox = Outbox { bytes: bytes.clone(), sent: 0 };
        }
        self.stage = Stage::Answering;
        Ok(())
    }

    pub(super) fn output(&self) -> &[u8] {
        self.outbox.pending()
    }

    pub(super) fn consume_output(&mut self, n: usize) {
        self.outbox.consume(n);
    }

    pub(super) fn receive(&mut self, bytes: &[u8]) -> Result<(), SessionError> {
        if bytes.is_empty() {
            return Ok(());
        }
        if self.stage != Stage::Answering {
            let text = "it wrote an answer to its port and there is no event".to_owned();
            return Err(SessionError::Guest { text });
        }
        self.notices.push_back(Notice::Answer { bytes: bytes.to_vec() });
        Ok(())
    }

    pub(super) fn next_notice(&mut self) -> Option<Notice> {
        self.notices.pop_front()
    }

    pub(super) fn waiting_for(&self) -> Option<&'static str> {
        match self.stage {
            Stage::Working => Some("the guest's warm point"),
            Stage::Warm | Stage::Frozen => None,
            Stage::Answering => Some("the answer"),
        }
    }

    pub(super) fn time_out(&self) -> SessionError {
        let waiting_for = self.waiting_for().unwrap_or("nothing");
        SessionError::TimedOut { waiting_for, last_output: LastOutput::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(bytes: &[u8]) -> Event {
        Event::Port { bytes: bytes.to_vec() }
    }

    #[test]
    fn a_small_guest_is_warmed_frozen_and_asked() {
        let mut port = PortConversation::cold();
        assert!(port.event(&event(b"early")).is_err());
        port.warm().unwrap();
        port.event(&event(b"ping")).unwrap();
        assert_eq!(port.output(), b"ping");
        port.consume_output(2);
        port.receive(b"pong").unwrap();
        port.done(3);
        assert_eq!(port.output(), b"", "the rest of the event is not for the next one");
        assert!(port.event(&event(b"early")).is_err());
        port.warm().unwrap();
        port.prepare_freeze().unwrap();
        let notices: Vec<_> = std::iter::from_fn(|| port.next_notice()).collect();
        let answer = Notice::Answer { bytes: b"pong".to_vec() };
        let ready = Notice::ReadyToFreeze { mem_total: 0, mem_free: 0 };
        assert_eq!(notices, [Notice::Warm, answer, Notice::Done { exit_code: 3 }, Notice::Warm, ready]);
    }

    #[test]
    fn a_guest_that_is_warm_again_before_it_has_answered_has_misspoken() {
        let mut port = PortConversation::cold();
        port.warm().unwrap();
        port.event(&event(b"ping")).unwrap();
        assert!(matches!(port.warm(), Err(SessionError::Guest { .. })));
    }

    #[test]
    fn a_clone_is_told_before_it_is_asked() {
        let mut port = PortConversation::restored();
        assert!(port.event(&event(b"early")).is_err());
        port.restore().unwrap();
        assert!(port.restore().is_err());
        port.event(&event(b"ping")).unwrap();
        assert_eq!(port.next_notice(), Some(Notice::Acknowledged));
    }
}
