//! The life of a machine as a pure function: what may happen when, and what to do about it.

/// Where a machine is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Built or restored; no guest instruction has run.
    Ready,
    /// The vCPUs run.
    Running,
    /// The vCPUs are paused with nothing half done.
    Frozen,
    /// The guest is over; the machine can only be dropped.
    Ended,
}

/// What happens to a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Somebody wants the guest to run.
    Run,
    /// Somebody wants to read its state.
    Freeze,
    /// The guest powered off, reset, or cannot go on.
    GuestEnded,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Let the vCPUs run, after serving what the devices may have missed.
    StartVcpus,
    /// Stop the vCPUs.
    PauseVcpus,
    /// Nothing: it is so already.
    Nothing,
}

impl State {
    /// The next state and what to do to get there; `None` where the event is not allowed.
    pub fn next(self, event: Event) -> Option<(State, Action)> {
        match (self, event) {
            (State::Ready | State::Frozen, Event::Run) => Some((State::Running, Action::StartVcpus)),
            (State::Running, Event::Run) => Some((State::Running, Action::Nothing)),
            (State::Running, Event::Freeze) => Some((State::Frozen, Action::PauseVcpus)),
            // A machine that has not run has nothing half done: it can be captured as it is.
            (State::Ready | State::Frozen, Event::Freeze) => Some((State::Frozen, Action::Nothing)),
            (_, Event::GuestEnded) => Some((State::Ended, Action::Nothing)),
            (State::Ended, Event::Run | Event::Freeze) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_runs_freezes_and_runs_again() {
        assert_eq!(State::Ready.next(Event::Run), Some((State::Running, Action::StartVcpus)));
        assert_eq!(State::Running.next(Event::Freeze), Some((State::Frozen, Action::PauseVcpus)));
        assert_eq!(State::Frozen.next(Event::Run), Some((State::Running, Action::StartVcpus)));
    }

    #[test]
    fn asking_twice_does_nothing_twice() {
        assert_eq!(State::Running.next(Event::Run), Some((State::Running, Action::Nothing)));
        assert_eq!(State::Frozen.next(Event::Freeze), Some((State::Frozen, Action::Nothing)));
    }

    #[test]
    fn a_guest_that_ended_never_runs_again() {
        for state in [State::Ready, State::Running, State::Frozen, State::Ended] {
            assert_eq!(state.next(Event::GuestEnded), Some((State::Ended, Action::Nothing)));
        }
        assert_eq!(State::Ended.next(Event::Run), None);
        assert_eq!(State::Ended.next(Event::Freeze), None);
    }
}
