//! One event through the pool: a shell, the job, the frames of its answer.

use std::io::{self, Read};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

use crate::config::Size;
use crate::failure::limits::{Limits, TooLong};
use crate::failure::{Failure, Kind};
use crate::function::Notice;
use crate::vm::{Request, Timeline, private_file};

use super::frame::{Done, Frame};
use super::gate::Closed;
use super::job::{self, Identity, Job};
use super::metrics::Outcome;
use super::pool::{NoShell, Pool, Shell, timespec};
use super::registry::Function;

/// Longest answer with everything that is logged beside it, bytes.
const ANSWER_MAX: usize = 256 << 20;
/// How much longer than its own limit a clone is waited for: it says itself that it is late.
const GRACE: Duration = Duration::from_secs(5);
/// Most bytes read at a time.
const STEP: usize = 64 << 10;

/// An event and what is asked with it.
#[derive(Debug, Default)]
pub struct Call {
    /// What is said about it.
    pub request: Request,
    /// What is asked of the clone.
    pub identity: Identity,
    /// Longest time until the answer is complete.
    pub limit: Option<Duration>,
    /// Its content.
    pub body: Vec<u8>,
}

/// Why an event has no answer, or only the beginning of one.
#[derive(Debug)]
pub enum Refusal {
    /// As many wait as may: this function's own limit.
    Full,
    /// Its turn, or a shell, did not come in time.
    Late,
    /// The platform failed.
    Failed(Failure),
    /// The caller has gone, or has not read the answer in time.
    Abandoned,
}

impl Refusal {
    fn outcome(&self) -> Outcome {
        match self {
            Refusal::Full | Refusal::Late => Outcome::Overloaded,
            // Much of what a caller may ask for only the clone can tell.
            Refusal::Failed(failure) if failure.kind() == Kind::Usage => Outcome::BadRequest,
            Refusal::Failed(_) => Outcome::PlatformFailed,
            Refusal::Abandoned => Outcome::Abandoned,
        }
    }
}

/// Whom the answer is for.
pub trait Caller {
    /// Takes a piece of the answer, until `deadline` at the longest: a clone lives no longer because its caller reads slowly.
    ///
    /// # Errors
    /// The caller has gone or has not read in time, or the answer is longer than he can be given.
    fn take(&mut self, piece: Notice, deadline: Instant) -> Result<(), Refusal>;

    /// Becomes ready with one of `flags` when the caller goes.
    fn goes(&self) -> (BorrowedFd<'_>, PollFlags);
}

/// Serves an event of `function`.
///
/// # Errors
/// See [`Refusal`].
pub fn invoke(
    pool: &Arc<Pool>,
    function: &Function,
    call: Call,
    caller: &mut dyn Caller,
) -> Result<Done, Refusal> {
    let begin = Instant::now();
    let outcome = serve(pool, function, call, caller);
    let ended = match &outcome {
        Ok(done) if done.exit_code == 0 => Outcome::Answered,
        Ok(_) => Outcome::FunctionFailed,
        Err(refusal) => refusal.outcome(),
    };
    function.counters.count(ended);
    if outcome.is_ok() {
        function.counters.total.add(begin.elapsed());
    }
    outcome
}

fn serve(
    pool: &Arc<Pool>,
    function: &Function,
    call: Call,
    caller: &mut dyn Caller,
) -> Result<Done, Refusal> {
    let queued_until = Instant::now() + Duration::from_millis(function.settings.queue_timeout_ms);
    let is_gone = || is_gone(caller);
    let _permit = function.gate.enter(queued_until, &is_gone).map_err(|closed| match closed {
        Closed::Full => Refusal::Full,
        Closed::Late => Refusal::Late,
        Closed::Abandoned => Refusal::Abandoned,
    })?;
    // Between two looks: a clone, too, would be used up for nobody.
    if is_gone() {
        return Err(Refusal::Abandoned);
    }
    let limit = call.limit.map_or(function.limit, |asked| asked.min(function.limit));
    // A clone that is asked to be somebody in particular is a fresh one, and nobody's after that: its environment may hold secrets.
    let anybody = call.identity == Identity::default();
    let kept = anybody.then(|| function.take_kept()).flatten();
    // One that has ended while it waited is as good as none, and so is one that has said that it is about to.
    let again = kept.filter(|(shell, left)| {
        shell.is_silent() && send(shell, function, &call, limit, left - 1, false).is_ok()
    });
    let (shell, left) = match again {
        Some((shell, left)) => (shell, left - 1),
        None => {
            let shell = pool.take(function.shape, queued_until, &is_gone).map_err(no_shell)?;
            let left = if anybody { function.settings.reuse.saturating_sub(1) } else { 0 };
            send(&shell, function, &call, limit, left, true)?;
            (shell, left)
        }
    };
    let done = Answer::new(&shell, function, limit).follow(caller)?;
    if left > 0 {
        function.keep(shell, left);
    }
    Ok(done)
}

/// Whether nobody is left to hear an answer.
fn is_gone(caller: &dyn Caller) -> bool {
    let (goes, flags) = caller.goes();
    let mut polled = [PollFd::from_borrowed_fd(goes, flags)];
    poll(&mut polled, Some(&timespec(Duration::ZERO))).is_ok_and(|gone| gone > 0)
}

fn no_shell(why: NoShell) -> Refusal {
    match why {
        NoShell::Late => Refusal::Late,
        NoShell::Abandoned => Refusal::Abandoned,
        NoShell::Refused(failure) => Refusal::Failed(failure),
        NoShell::Gone => {
            Refusal::Failed(Failure::text(Kind::Internal, "The zygote is gone: restart the daemon"))
        }
    }
}

fn send(
    shell: &Shell,
    function: &Function,
    call: &Call,
    limit: Duration,
    left: u32,
    fresh: bool,
) -> Result<(), Refusal> {
    let cannot = |e: io::Error| Refusal::Failed(Failure::new(Kind::HostCannot, &e));
    let (manifest, files) = function.bundle.to_send();
    let written = function.bundle.manifest().drives.iter().filter(|drive| !drive.read_only);
    let ids: Vec<String> = written.map(|drive| drive.id.clone()).collect();
    let deltas = ids.iter().filter(|_| fresh).map(|_| private_file());
    let deltas = deltas.collect::<io::Result<Vec<_>>>().map_err(cannot)?;
    let job = Job {
        files: files.iter().map(|(name, _)| (*name).to_owned()).filter(|_| fresh).collect(),
        deltas: if fresh { ids } else { Vec::new() },
        block_rate: shell.block_rate(),
        request: call.request.clone(),
        identity: call.identity.clone(),
        limit_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
        sent_ns: Timeline::start().start_ns(),
        more: left > 0,
    };
    // A kept clone whose guest has broken into it may read no more.
    shell.socket.set_write_timeout(Some(limit + GRACE)).map_err(cannot)?;
    let handles = files.into_iter().map(|(_, file)| file).filter(|_| fresh).chain(&deltas);
    let manifest = if fresh { manifest } else { &[] };
    match job::send(&shell.socket, &job, manifest, &call.body, &job::borrowed(handles)) {
        Ok(()) => Ok(()),
        // What it has not read, or has said without being asked, makes an end of it a reset.
        Err(e) if matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
            Err(lost(shell))
        }
        Err(e) => Err(cannot(e)),
    }
}

/// The failure of a shell that has said nothing.
fn lost(shell: &Shell) -> Refusal {
    let end = shell.end().map_or_else(|| "nobody knows how".to_owned(), |end| format!("it {end}"));
    Refusal::Failed(Failure::text(
        Kind::GuestFailed,
        format!("The clone's process ended without an answer: {end}"),
    ))
}

/// An answer on its way.
struct Answer<'a> {
    shell: &'a Shell,
    function: &'a Function,
    sent: Instant,
    deadline: Instant,
    bytes: Vec<u8>,
    total: usize,
    first: bool,
    limits: Limits,
}

impl<'a> Answer<'a> {
    fn new(shell: &'a Shell, function: &'a Function, limit: Duration) -> Self {
        let sent = Instant::now();
        let (bytes, total, first) = (Vec::new(), 0, true);
        let settings = &function.settings;
        let limits = Limits::new(
            (settings.answer_max_bytes.map(Size), "answer_max_bytes"),
            (settings.log_max_bytes.map(Size), "log_max_bytes"),
        );
        Answer { shell, function, sent, deadline: sent + limit + GRACE, bytes, total, first, limits }
    }

    /// Passes pieces on until the event is over.
    fn follow(mut self, caller: &mut dyn Caller) -> Result<Done, Refusal> {
        let interface = self.function.bundle.manifest().function.interface;
        loop {
            let mut at = 0;
            while let Some((frame, len)) =
                Frame::parse(self.bytes.get(at..).unwrap_or_default()).map_err(|e| misspoke(&e))?
            {
                at += len;
                match frame {
                    Frame::Piece(piece) => {
                        if std::mem::take(&mut self.first) {
                            self.function.counters.activation.add(self.sent.elapsed());
                        }
                        let is_answer = piece.is_answer(interface);
                        let piece = self.limits.pass(piece, is_answer).map_err(|e| too_long(&e))?;
                        caller.take(piece, self.deadline)?;
                    }
                    Frame::Done(done) => return Ok(done),
                    Frame::Failed(failure) => return Err(Refusal::Failed(failure)),
                    Frame::Ready(_) => {}
                }
            }
            // Once for all of them: a guest may say a byte at a time.
            self.bytes.drain(..at);
            self.await_more(caller)?;
        }
    }

    fn await_more(&mut self, caller: &mut dyn Caller) -> Result<(), Refusal> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Refusal::Failed(Failure::text(
                Kind::Timeout,
                "The clone did not end its answer in time",
            )));
        }
        let (goes, flags) = caller.goes();
        let mut polled =
            [PollFd::new(&self.shell.socket, PollFlags::IN), PollFd::from_borrowed_fd(goes, flags)];
        let host = |e: io::Error| Refusal::Failed(Failure::new(Kind::HostCannot, &e));
        rustix::io::retry_on_intr(|| poll(&mut polled, Some(&timespec(left)))).map_err(|e| host(e.into()))?;
        let [said, gone] = polled.map(|polled| !polled.revents().is_empty());
        if gone {
            return Err(Refusal::Abandoned);
        }
        if said { self.read() } else { Ok(()) }
    }

    fn read(&mut self) -> Result<(), Refusal> {
        let start = self.bytes.len();
        self.bytes.resize(start + STEP, 0);
        let got = (&self.shell.socket).read(self.bytes.get_mut(start..).unwrap_or_default());
        let got = match got {
            Ok(0) | Err(_) => return Err(lost(self.shell)),
            Ok(got) => got,
        };
        self.bytes.truncate(start + got);
        self.total += got;
        if self.total > ANSWER_MAX {
            return Err(Refusal::Failed(Failure::text(
                Kind::GuestFailed,
                "The answer is longer than 256 MiB",
            )));
        }
        Ok(())
    }
}

fn too_long(error: &TooLong) -> Refusal {
    Refusal::Failed(Failure::text(Kind::GuestFailed, format!("Cannot pass the answer on: {error}")))
}

fn misspoke(error: &(dyn std::error::Error + 'static)) -> Refusal {
    Refusal::Failed(Failure::new(Kind::GuestFailed, error))
}
