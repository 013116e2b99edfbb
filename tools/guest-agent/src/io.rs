//! The one place where the agent waits: for the host, for the function's output and end, and for whatever else its interface
//! needs. One thread, one poll(2).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use guest_protocol::{Cause, ToGuest, ToHost};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::control::{Inbox, Outbox, retry};
use crate::process::{Process, Strays};
use crate::stop::Stop;
use crate::sys;

/// Descriptors that one wait can take besides the agent's own.
pub const WANTED_MAX: usize = 12;
/// How often [`Io::hear_at_once`] looks. A look takes about a microsecond.
const LOOKS: u32 = 200;
/// Control, signals, and the two outputs of the function.
const OWN: usize = 4;

/// A descriptor and what it is waited for.
pub type Wanted<'a> = (BorrowedFd<'a>, PollFlags);

/// What a wait has found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Found {
    /// The host has said something.
    pub host: bool,
    /// Bit n: the nth wanted descriptor is ready, or in error.
    pub wanted: u32,
}

/// How long a wait may take, and whether it listens to the host.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Until when; for ever without.
    pub until: Option<Instant>,
    /// Whether the process's output goes to the host meanwhile.
    pub relay: bool,
    /// Whether the host's next bytes end it. What a busy agent does not read, the host cannot send: that is the flow control.
    pub hear: bool,
}

impl Patience {
    /// Waits for the function, for ever: the host watches the clock.
    pub const FUNCTION: Patience = Patience { until: None, relay: true, hear: false };
    /// Waits for the function and the host.
    pub const HOST: Patience = Patience { until: None, relay: true, hear: true };

    /// Waits for the function for at most `duration`.
    pub fn for_at_most(duration: Duration) -> Self {
        Patience { until: Instant::now().checked_add(duration), relay: true, hear: false }
    }

    /// Whether it has come to its end.
    pub fn is_over(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() >= until)
    }
}

/// The control stream and the agent's signals.
#[derive(Debug)]
pub struct Io {
    control: OwnedFd,
    signals: OwnedFd,
    pub inbox: Inbox,
    outbox: Outbox,
    strays: Strays,
}

impl Io {
    /// Takes over the control stream and the signals of ended children.
    ///
    /// # Errors
    /// The signals cannot be had.
    pub fn new(control: OwnedFd) -> io::Result<Self> {
        let (inbox, outbox) = (Inbox::new(), Outbox::new());
        Ok(Io { control, signals: sys::child_signals()?, inbox, outbox, strays: Strays::default() })
    }

    /// Adds a frame to what the next wait, read or [`flush`](Self::flush) sends.
    ///
    /// # Errors
    /// The control stream is broken.
    pub fn say(&mut self, frame: &ToHost<'_>) -> Result<(), Stop> {
        self.outbox.say(&self.control, frame)
    }

    /// Adds answer bytes, as many frames as they need.
    ///
    /// # Errors
    /// The control stream is broken.
    pub fn answer(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        bytes.chunks(guest_protocol::PAYLOAD_MAX).try_for_each(|bytes| self.say(&ToHost::Answer { bytes }))
    }

    /// Adds what one read of `from` gives, as a frame of `kind`; 0 at the end, the error of the read inside.
    ///
    /// # Errors
    /// The control stream is broken.
    pub fn relay(&mut self, kind: u8, from: impl AsFd) -> Result<Result<usize, Errno>, Stop> {
        self.outbox.relay(&self.control, kind, from)
    }

    /// Sends what was said.
    ///
    /// # Errors
    /// The control stream is broken.
    pub fn flush(&mut self) -> Result<(), Stop> {
        self.outbox.flush(&self.control)
    }

    /// Reads from the host once, and waits for it.
    ///
    /// # Errors
    /// The control stream is broken.
    pub fn hear(&mut self) -> Result<(), Stop> {
        self.flush()?;
        self.inbox.fill(&self.control)
    }

    /// Looks for the host's next bytes a few times without going to sleep: what it answers at once comes in less time than
    /// it takes a machine to fall asleep and wake up.
    ///
    /// # Errors
    /// The control stream is broken.
    pub fn hear_at_once(&mut self) -> Result<(), Stop> {
        self.flush()?;
        for _ in 0..LOOKS {
            if self.inbox.fill_now(&self.control)? {
                return Ok(());
            }
            rustix::thread::sched_yield();
        }
        Ok(())
    }

    /// Reads what the host still says and forgets it.
    ///
    /// # Errors
    /// The control stream is broken.
    pub fn skip(&mut self) -> Result<(), Stop> {
        self.inbox = Inbox::new();
        self.inbox.fill(&self.control)
    }

    /// Makes `act` see the next whole frame, and waits for nothing but that.
    ///
    /// # Errors
    /// The control stream is broken, or `act` says so.
    pub fn next_frame<T>(&mut self, act: impl FnOnce(ToGuest<'_>) -> Result<T, Stop>) -> Result<T, Stop> {
        while self.inbox.frame()?.is_none() {
            self.hear()?;
        }
        let Some((frame, len)) = self.inbox.frame()? else {
            return Err(Stop::failed(Cause::Protocol, "A frame vanished"));
        };
        let result = act(frame);
        self.inbox.consume(len);
        result
    }

    /// Waits until something wanted is ready, `process` ends, or patience does. Meanwhile the output of `process` goes to the
    /// host and orphans are reaped.
    ///
    /// # Errors
    /// The control stream is broken, or poll(2) is.
    pub fn wait(
        &mut self,
        wanted: &[Wanted<'_>],
        mut process: Option<&mut Process>,
        patience: Patience,
    ) -> Result<Found, Stop> {
        self.flush()?;
        if process.as_deref_mut().is_some_and(|process| self.strays.find(process)) {
            return Ok(Found::default());
        }
        let ready = self.poll(wanted, process.as_deref(), patience)?;
        if ready.signals {
            self.collect(process.as_deref_mut());
        }
        if let Some(process) = process {
            for (index, output) in ready.outputs.into_iter().enumerate() {
                if output {
                    process.relay_output(index, self)?;
                }
            }
        }
        if ready.host_gone {
            return Err(Stop::Control(io::ErrorKind::BrokenPipe.into()));
        }
        Ok(ready.found)
    }

    fn poll(
        &self,
        wanted: &[Wanted<'_>],
        process: Option<&Process>,
        patience: Patience,
    ) -> Result<Ready, Stop> {
        let control = self.control.as_fd();
        let hear = if patience.hear { PollFlags::IN } else { PollFlags::empty() };
        let nothing = || PollFd::from_borrowed_fd(control, PollFlags::empty());
        let mut fds: [PollFd<'_>; OWN + WANTED_MAX] = std::array::from_fn(|_| nothing());
        let (own, others) = fds.split_at_mut(OWN);
        let outputs = process.filter(|_| patience.relay).map_or([None, None], Process::outputs);
        let own_wanted = [
            Some((control, hear)),
            Some((self.signals.as_fd(), PollFlags::IN)),
            readable(outputs[0]),
            readable(outputs[1]),
        ];
        for (slot, (fd, flags)) in own.iter_mut().zip(own_wanted).filter_map(|(slot, w)| Some((slot, w?))) {
            *slot = PollFd::from_borrowed_fd(fd, flags);
        }
        for (slot, (fd, flags)) in others.iter_mut().zip(wanted) {
            *slot = PollFd::from_borrowed_fd(*fd, *flags);
        }
        let used = fds.get_mut(..OWN + wanted.len().min(WANTED_MAX)).unwrap_or_default();
        let timeout = patience.until.map(timespec_until);
        retry(|| poll(used, timeout.as_ref()))
            .map_err(|error| Stop::failed(Cause::Guest, format_args!("Cannot wait for events: {error}")))?;
        Ok(Ready::of(used, patience.hear, outputs))
    }

    /// Empties the signal descriptor, then takes every ended child: signals of one kind are merged.
    fn collect(&mut self, process: Option<&mut Process>) {
        let mut signal = [0; 128];
        // Nothing there, or anything else: what counts is the children.
        let ended = rustix::io::read(&self.signals, &mut signal).is_ok();
        debug_assert!(ended);
        self.strays.reap(process);
    }
}

fn readable(output: Option<BorrowedFd<'_>>) -> Option<Wanted<'_>> {
    output.map(|fd| (fd, PollFlags::IN))
}

fn timespec_until(until: Instant) -> Timespec {
    let left = until.saturating_duration_since(Instant::now());
    Timespec { tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() }
}

struct Ready {
    found: Found,
    host_gone: bool,
    signals: bool,
    outputs: [bool; 2],
}

impl Ready {
    fn of(fds: &[PollFd<'_>], hear: bool, outputs: [Option<BorrowedFd<'_>>; 2]) -> Self {
        let flags = |index: usize| fds.get(index).map_or(PollFlags::empty(), PollFd::revents);
        let ready = |index| !flags(index).is_empty();
        let wanted =
            (OWN..fds.len()).filter(|index| ready(*index)).fold(0, |bits, index| bits | 1 << (index - OWN));
        let hung_up = flags(0).intersects(PollFlags::HUP | PollFlags::ERR);
        Ready {
            found: Found { host: hear && flags(0).contains(PollFlags::IN), wanted },
            // Its last words are read before it counts as gone.
            host_gone: hung_up && !(hear && flags(0).contains(PollFlags::IN)),
            signals: ready(1),
            outputs: [outputs[0].is_some() && ready(2), outputs[1].is_some() && ready(3)],
        }
    }
}
