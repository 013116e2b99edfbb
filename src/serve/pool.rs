//! Shells that wait, by the shape of their machine: taken by whoever has an event, made again beside that.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;

use crate::failure::{Failure, Kind};
use crate::vm::Shape;

use super::frame::Frame;
use super::zygote::{End, News, Zygote};

/// Shells that are made at the same time, for each processor: more would only take it from each other.
const MAKING_PER_CPU: usize = 2;
/// How long the zygote's word about an end is waited for.
const NEWS_MAX: Duration = Duration::from_millis(500);
/// How long nothing is asked of a zygote that has just refused.
const PAUSE: Duration = Duration::from_millis(200);

/// A shell's process, seen from the daemon. It is killed when this is dropped.
#[derive(Debug)]
pub struct Shell {
    id: u64,
    /// Its connection.
    pub socket: UnixStream,
    process: OwnedFd,
    pool: Arc<Pool>,
}

impl Drop for Shell {
    fn drop(&mut self) {
        // It may have ended by itself.
        rustix::process::pidfd_send_signal(&self.process, Signal::KILL).ok();
        self.pool.given_back();
    }
}

impl Shell {
    /// Whether its process has not ended.
    pub fn is_alive(&self) -> bool {
        is_alive(&self.process)
    }

    /// How its process ended; `None` while the zygote has not told.
    pub fn end(&self) -> Option<End> {
        let limit = Instant::now() + NEWS_MAX;
        let mut state = self.pool.lock();
        loop {
            if let Some(end) = state.ended.get(&self.id) {
                return Some(*end);
            }
            let left = limit.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
            state = wait(&self.pool.changed, state, left);
        }
    }
}

/// A shell that has not been given to anybody.
#[derive(Debug)]
struct Idle {
    socket: UnixStream,
    process: OwnedFd,
}

/// The shells of one shape.
#[derive(Debug, Default)]
struct Line {
    ready: Vec<(u64, Idle)>,
    /// Made, and not yet ready; `None` before the zygote has told.
    making: BTreeMap<u64, Option<Arc<Idle>>>,
    /// How many are to wait.
    wanted: usize,
    /// How many somebody waits for.
    awaited: usize,
}

#[derive(Debug, Default)]
struct State {
    lines: HashMap<Shape, Line>,
    next_id: u64,
    /// How the last shells ended.
    ended: BTreeMap<u64, End>,
    /// Why the last shell could not be made, and when that was.
    refused: Option<(Failure, Instant)>,
    /// How much of a jail the last shell had.
    jail: String,
    gone: bool,
    made: u64,
    died: u64,
}

/// How many ends are remembered.
const ENDS: usize = 1024;

/// The pool.
#[derive(Debug)]
pub struct Pool {
    zygote: Zygote,
    state: Mutex<State>,
    changed: Condvar,
    making_max: usize,
}

/// Why there is no shell.
#[derive(Debug)]
pub enum NoShell {
    /// None was ready in time.
    Late,
    /// None can be made.
    Refused(Failure),
    /// The zygote is gone.
    Gone,
}

/// How many shells there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Count {
    /// Memory and vCPUs.
    pub shape: Shape,
    /// Waiting.
    pub ready: usize,
    /// Being made.
    pub making: usize,
}

/// What the pool has come to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Figures {
    /// By shape.
    pub shells: Vec<Count>,
    /// Shells that were made.
    pub made: u64,
    /// Shells that ended while they waited or before they were ready.
    pub died: u64,
    /// How much of a jail the last one had.
    pub jail: String,
}

impl Pool {
    /// A pool of shells that `zygote` makes.
    pub fn new(zygote: Zygote) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Pool { zygote, state: Mutex::default(), changed: Condvar::new(), making_max: cpus * MAKING_PER_CPU }
    }

    /// Lets `wanted` shells of a shape wait from now on.
    pub fn want(&self, shape: Shape, wanted: usize) {
        let mut state = self.lock();
        let line = state.lines.entry(shape).or_default();
        line.wanted = wanted;
        let surplus = line.ready.len().saturating_sub(wanted);
        // A shell that is told nothing any more ends.
        line.ready.drain(..surplus);
        self.refill(&mut state);
    }

    /// A shell that is ready, or the next one that gets ready until `deadline`.
    ///
    /// # Errors
    /// See [`NoShell`].
    pub fn take(self: &Arc<Self>, shape: Shape, deadline: Instant) -> Result<Shell, NoShell> {
        let mut state = self.lock();
        if let Some(shell) = self.ready(&mut state, shape) {
            // What replaces it is made once it has answered: not now, when it needs the processor.
            return Ok(shell);
        }
        state.lines.entry(shape).or_default().awaited += 1;
        let outcome = loop {
            self.refill(&mut state);
            if let Some(shell) = self.ready(&mut state, shape) {
                break Ok(shell);
            }
            if state.gone {
                break Err(NoShell::Gone);
            }
            let refused = state.refused.as_ref().filter(|(_, at)| at.elapsed() < PAUSE);
            if let Some((failure, _)) = refused {
                break Err(NoShell::Refused(failure.clone()));
            }
            match deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
                Some(left) => state = wait(&self.changed, state, left),
                None => break Err(NoShell::Late),
            }
        };
        if let Some(line) = state.lines.get_mut(&shape) {
            line.awaited = line.awaited.saturating_sub(1);
        }
        outcome
    }

    fn ready(self: &Arc<Self>, state: &mut State, shape: Shape) -> Option<Shell> {
        // The one that got ready last: what it has touched is still in the caches. Of one that has ended the zygote may not have
        // told yet.
        let ready = &mut state.lines.get_mut(&shape)?.ready;
        while let Some((id, Idle { socket, process })) = ready.pop() {
            if is_alive(&process) {
                return Some(Shell { id, socket, process, pool: Arc::clone(self) });
            }
            state.died += 1;
        }
        None
    }

    /// A shell has ended its work: its successor may be made.
    fn given_back(&self) {
        self.refill(&mut self.lock());
    }

    /// Asks the zygote for what is missing.
    fn refill(&self, state: &mut State) {
        let paused = state.refused.as_ref().is_some_and(|(_, at)| at.elapsed() < PAUSE);
        let making: usize = state.lines.values().map(|line| line.making.len()).sum();
        let mut free = self.making_max.saturating_sub(making);
        if paused || state.gone {
            return;
        }
        let State { lines, next_id, gone, .. } = state;
        for (shape, line) in lines {
            let missing = (line.wanted + line.awaited).saturating_sub(line.ready.len() + line.making.len());
            for _ in 0..missing.min(free) {
                *next_id += 1;
                if self.zygote.ask(*next_id, *shape).is_err() {
                    *gone = true;
                    return;
                }
                line.making.insert(*next_id, None);
                free -= 1;
            }
        }
    }

    /// Heeds the zygote and the shells that get ready, until the zygote is gone. Lives on a thread of its own.
    pub fn tend(&self) {
        while self.tend_once().unwrap_or_default() {}
        self.lock().gone = true;
        self.changed.notify_all();
    }

    fn tend_once(&self) -> io::Result<bool> {
        let making: Vec<(Shape, u64, Arc<Idle>)> = self.being_made();
        let channel = self.zygote.channel();
        let mut polled = vec![PollFd::new(&channel, PollFlags::IN)];
        polled.extend(making.iter().map(|(.., idle)| PollFd::new(&idle.socket, PollFlags::IN)));
        let pause = self.lock().refused.is_some().then(|| timespec(PAUSE));
        rustix::io::retry_on_intr(|| poll(&mut polled, pause.as_ref()))?;
        let ready: Vec<bool> = polled.iter().map(|polled| !polled.revents().is_empty()).collect();
        drop(polled);
        let mut ready = ready.into_iter();
        let news = ready.next().unwrap_or_default();
        for ((shape, id, idle), _) in making.into_iter().zip(ready).filter(|(_, ready)| *ready) {
            self.got_ready(shape, id, idle);
        }
        if news {
            let Some(news) = self.zygote.hear()? else { return Ok(false) };
            self.heed(news);
        } else {
            self.refill(&mut self.lock());
        }
        Ok(true)
    }

    fn being_made(&self) -> Vec<(Shape, u64, Arc<Idle>)> {
        let state = self.lock();
        let of_line = |(shape, line): (&Shape, &Line)| {
            let shape = *shape;
            let known = line.making.iter().filter_map(|(id, idle)| Some((*id, idle.clone()?)));
            known.map(|(id, idle)| (shape, id, idle)).collect::<Vec<_>>()
        };
        state.lines.iter().flat_map(of_line).collect()
    }

    /// A shell that was made has said something.
    fn got_ready(&self, shape: Shape, id: u64, idle: Arc<Idle>) {
        // It writes its one short frame at once.
        let said = Frame::read(&mut &idle.socket);
        let mut state = self.lock();
        let Some(line) = state.lines.get_mut(&shape) else { return };
        line.making.remove(&id);
        match (said, Arc::try_unwrap(idle)) {
            (Ok(Some(Frame::Ready(ready))), Ok(idle)) => {
                if line.ready.len() < line.wanted + line.awaited {
                    line.ready.push((id, idle));
                }
                state.jail = ready.jail;
                state.made += 1;
                state.refused = None;
            }
            (Ok(Some(Frame::Failed(failure))), _) => state.refused = Some((failure, Instant::now())),
            // How it ended the zygote will tell.
            _ => drop(line.making.insert(id, None)),
        }
        self.refill(&mut state);
        drop(state);
        self.changed.notify_all();
    }

    fn heed(&self, news: News) {
        let mut state = self.lock();
        match news {
            News::Made { id, socket, process } => {
                let idle = Arc::new(Idle { socket, process });
                if let Some(place) = state.lines.values_mut().find_map(|line| line.making.get_mut(&id)) {
                    *place = Some(idle);
                }
            }
            News::Refused { id, failure } => {
                state.forget(id);
                state.refused = Some((failure, Instant::now()));
            }
            News::Unreachable { id } => {
                state.forget(id);
                let text = "No descriptor is left for a shell; raise the limit of open files (`ulimit -n`)";
                let failure = Failure::text(Kind::HostCannot, text);
                state.refused = Some((failure, Instant::now()));
            }
            News::Ended { id, end } => {
                let making = state.lines.values().any(|line| line.making.contains_key(&id));
                if state.forget(id) {
                    state.died += 1;
                }
                // One that said why is gone from the list already.
                if making {
                    let text = format!("A shell {end} while it was made");
                    state.refused = Some((Failure::text(Kind::HostCannot, text), Instant::now()));
                }
                state.ended.insert(id, end);
                while state.ended.len() > ENDS {
                    state.ended.pop_first();
                }
            }
        }
        self.refill(&mut state);
        drop(state);
        self.changed.notify_all();
    }

    /// What there is.
    pub fn figures(&self) -> Figures {
        let state = self.lock();
        let count = |(shape, line): (&Shape, &Line)| Count {
            shape: *shape,
            ready: line.ready.len(),
            making: line.making.len(),
        };
        let mut shells: Vec<Count> = state.lines.iter().map(count).collect();
        shells.sort_unstable_by_key(|count| count.shape);
        Figures { shells, made: state.made, died: state.died, jail: state.jail.clone() }
    }

    /// Whether shells can still be made.
    pub fn is_alive(&self) -> bool {
        !self.lock().gone
    }

    /// Ends every shell.
    pub fn end(&self) {
        self.lock().gone = true;
        self.changed.notify_all();
        self.zygote.end();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether a shell was waiting or being made that is no more.
    fn forget(&mut self, id: u64) -> bool {
        self.lines.values_mut().any(|line| {
            let before = line.ready.len();
            line.ready.retain(|(ready, _)| *ready != id);
            line.making.remove(&id).is_some() || line.ready.len() < before
        })
    }
}

/// Whether the process behind a pidfd has not ended.
fn is_alive(process: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(process, PollFlags::IN)];
    poll(&mut polled, Some(&timespec(Duration::ZERO))).is_ok_and(|ended| ended == 0)
}

/// A time for poll(2).
pub(super) fn timespec(time: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(time.subsec_nanos()),
    }
}

/// Waits for a change, for so long.
fn wait<'a, T>(changed: &Condvar, state: MutexGuard<'a, T>, left: Duration) -> MutexGuard<'a, T> {
    changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
}
