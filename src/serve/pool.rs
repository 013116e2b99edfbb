//! Shells that wait, by the shape of their machine: taken by whoever has an event, made again beside that.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;

use crate::config::Rate;
use crate::failure::{Failure, Kind};
use crate::vm::Shape;

use super::frame::Frame;
use super::gate::LOOK;
use super::zygote::{End, News, Zygote};

/// Shells that are made at the same time, for each processor: more would only take it from each other.
const MAKING_PER_CPU: usize = 2;
/// Most shells that are made at the same time. Asking waits for room in the zygote's socket, and what it says of so many has room in ours.
const MAKING_MAX: usize = 64;
/// How long the zygote's word about an end is waited for.
const NEWS_MAX: Duration = Duration::from_millis(500);
/// How long no other shell of a shape is asked for that could not be made.
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
    /// Whether its process lives and has nothing to say, as one has that waits for its next event.
    pub fn is_silent(&self) -> bool {
        let mut polled =
            [PollFd::new(&self.process, PollFlags::IN), PollFd::new(&self.socket, PollFlags::IN)];
        poll(&mut polled, Some(&timespec(Duration::ZERO))).is_ok_and(|ready| ready == 0)
    }

    /// What each drive of its clone may move.
    pub fn block_rate(&self) -> Option<Rate> {
        self.pool.block_rate
    }

    /// How its process ended; `None` while the zygote has not told.
    pub fn end(&self) -> Option<End> {
        let limit = Instant::now() + NEWS_MAX;
        let mut state = self.pool.lock();
        loop {
            if let Some((_, end)) = state.ended.iter().rev().find(|(id, _)| *id == self.id) {
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
    /// How many are to wait; `None` where no function has this shape.
    wanted: Option<usize>,
    /// Those who wait for one, by when they came.
    waiting: BTreeSet<u64>,
    /// The last one that was asked for.
    asked: u64,
    /// Why the last one could not be made, and when that was. Of other shapes that says nothing: this one's may need more memory.
    refused: Option<(Failure, Instant)>,
}

impl Line {
    /// How many there are to be.
    fn enough(&self) -> usize {
        self.wanted.unwrap_or_default() + self.waiting.len()
    }

    /// How many there are, or will be.
    fn coming(&self) -> usize {
        self.ready.len() + self.making.len()
    }

    /// Whether nobody came before the `own`th, who may not wait yet.
    fn is_turn_of(&self, own: u64) -> bool {
        self.waiting.first().is_none_or(|first| own <= *first)
    }

    fn refuse(&mut self, failure: Failure) {
        self.refused = Some((failure, Instant::now()));
    }

    /// Why none is asked for at the moment.
    fn refusal(&self) -> Option<&Failure> {
        self.refused.as_ref().filter(|(_, at)| at.elapsed() < PAUSE).map(|(failure, _)| failure)
    }

    /// Why none waits although some are wanted, where the last one that was asked for could not be made.
    fn why_empty(&self) -> Option<&Failure> {
        let is_empty = self.wanted.is_some_and(|wanted| wanted > 0) && self.ready.is_empty();
        self.refused.as_ref().filter(|_| is_empty).map(|(failure, _)| failure)
    }

    /// Whether nobody would miss it.
    fn is_over(&self) -> bool {
        self.wanted.is_none() && self.enough() + self.coming() == 0 && self.refusal().is_none()
    }
}

#[derive(Debug, Default)]
struct State {
    lines: BTreeMap<Shape, Line>,
    next_id: u64,
    /// How many have waited so far.
    came: u64,
    /// How the last shells ended, in the order in which they did.
    ended: VecDeque<(u64, End)>,
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
    block_rate: Option<Rate>,
}

/// Why there is no shell.
#[derive(Debug)]
pub enum NoShell {
    /// None was ready in time.
    Late,
    /// None can be made.
    Refused(Failure),
    /// Whoever waited for it has gone.
    Abandoned,
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
    /// Why shells of a shape that functions have cannot be made, where none of them waits either.
    pub refusal: Option<String>,
}

impl Pool {
    /// A pool of shells that `zygote` makes, whose clones' drives move no more than `block_rate`.
    pub fn new(zygote: Zygote, block_rate: Option<Rate>) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let making_max = (processors * MAKING_PER_CPU).min(MAKING_MAX);
        Pool { zygote, state: Mutex::default(), changed: Condvar::new(), making_max, block_rate }
    }

    /// Lets so many shells of these shapes wait from now on, and none of others.
    pub fn want(&self, wanted: &BTreeMap<Shape, usize>) {
        let mut state = self.lock();
        state.want(wanted);
        self.refill(&mut state);
    }

    /// A shell that is ready, or the next one that gets ready until `deadline`, unless the caller `is_gone` meanwhile.
    ///
    /// # Errors
    /// See [`NoShell`].
    pub fn take(
        self: &Arc<Self>,
        shape: Shape,
        deadline: Instant,
        is_gone: &dyn Fn() -> bool,
    ) -> Result<Shell, NoShell> {
        let mut state = self.lock();
        state.came += 1;
        let own = state.came;
        if let Some(shell) = self.ready(&mut state, shape, own) {
            // What replaces it is made once it has answered: not now, when it needs the processor.
            return Ok(shell);
        }
        state.lines.entry(shape).or_default().waiting.insert(own);
        let mut looked = Instant::now();
        let outcome = loop {
            self.refill(&mut state);
            if let Some(shell) = self.ready(&mut state, shape, own) {
                break Ok(shell);
            }
            if state.gone {
                break Err(NoShell::Gone);
            }
            if let Some(failure) = state.lines.get(&shape).and_then(Line::refusal) {
                break Err(NoShell::Refused(failure.clone()));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break Err(NoShell::Late);
            }
            state = wait(&self.changed, state, left.min(LOOK));
            if looked.elapsed() >= LOOK {
                if is_gone() {
                    break Err(NoShell::Abandoned);
                }
                looked = Instant::now();
            }
        };
        if let Some(line) = state.lines.get_mut(&shape) {
            line.waiting.remove(&own);
            if !line.ready.is_empty() && !line.waiting.is_empty() {
                // Whoever is the first now may have seen it before.
                self.changed.notify_all();
            }
        }
        outcome
    }

    /// A shell for whoever came as the `own`th, unless somebody came before, or none is ready.
    fn ready(self: &Arc<Self>, state: &mut State, shape: Shape, own: u64) -> Option<Shell> {
        let line = state.lines.get_mut(&shape).filter(|line| line.is_turn_of(own))?;
        // The one that got ready last: what it has touched is still in the caches. Of one that has ended the zygote may not have
        // told yet.
        while let Some((id, Idle { socket, process })) = line.ready.pop() {
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
        state.lines.retain(|_, line| !line.is_over());
        let making: usize = state.lines.values().map(|line| line.making.len()).sum();
        for _ in making..self.making_max {
            if state.gone {
                return;
            }
            let Some((id, shape)) = state.begin_next() else { return };
            state.gone = self.zygote.ask(id, shape).is_err();
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
        let refused = self.lock().lines.values().any(|line| line.refused.is_some());
        let pause = refused.then(|| timespec(PAUSE));
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
                if line.ready.len() < line.enough() {
                    line.ready.push((id, idle));
                }
                line.refused = None;
                state.jail = ready.jail;
                state.made += 1;
            }
            (Ok(Some(Frame::Failed(failure))), _) => line.refuse(failure),
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
                state.refuse(id, failure);
            }
            News::Unreachable { id } => {
                let text = "No descriptor is left for a shell; raise the limit of open files (`ulimit -n`)";
                state.refuse(id, Failure::text(Kind::HostCannot, text));
            }
            News::Ended { id, end } => state.ended(id, end),
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
        let shells = state.lines.iter().map(count).collect();
        let refusal = state.lines.values().find_map(Line::why_empty).map(Failure::to_string);
        Figures { shells, made: state.made, died: state.died, jail: state.jail.clone(), refusal }
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
    fn want(&mut self, wanted: &BTreeMap<Shape, usize>) {
        for shape in wanted.keys() {
            self.lines.entry(*shape).or_default();
        }
        for (shape, line) in &mut self.lines {
            line.wanted = wanted.get(shape).copied();
            let surplus = line.ready.len().saturating_sub(line.enough());
            // A shell that is told nothing any more ends.
            line.ready.drain(..surplus);
        }
    }

    /// Decides on the next shell to make. One that somebody waits for comes before all that are to wait, lest a function that wants
    /// thousands keep others' callers waiting; otherwise each shape has its turn, lest one that never gets ready take all of them.
    fn begin_next(&mut self) -> Option<(u64, Shape)> {
        let lacking = |line: &Line| line.refusal().is_none() && line.coming() < line.enough();
        let turn = |line: &Line| (line.coming() >= line.waiting.len(), line.asked);
        let lines = self.lines.iter_mut().filter(|(_, line)| lacking(line));
        let (shape, line) = lines.min_by_key(|(_, line)| turn(line))?;
        self.next_id += 1;
        line.asked = self.next_id;
        line.making.insert(self.next_id, None);
        Some((self.next_id, *shape))
    }

    /// A shell cannot be made; whether it was being made.
    fn refuse(&mut self, id: u64, failure: Failure) -> bool {
        let line = self.lines.values_mut().find_map(|line| line.making.remove(&id).map(|_| line));
        line.map(|line| line.refuse(failure)).is_some()
    }

    fn ended(&mut self, id: u64, end: End) {
        // One that said why is gone from the list already.
        let text = format!("A shell {end} while it was made");
        let making = self.refuse(id, Failure::text(Kind::HostCannot, text));
        let waiting = self.lines.values_mut().any(|line| {
            let before = line.ready.len();
            line.ready.retain(|(ready, _)| *ready != id);
            line.ready.len() < before
        });
        self.died += u64::from(making || waiting);
        self.ended.push_back((id, end));
        while self.ended.len() > ENDS {
            self.ended.pop_front();
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Shape = Shape { memory_bytes: 1, vcpus: 1 };
    const LARGE: Shape = Shape { memory_bytes: 2, vcpus: 1 };

    fn wanting(small: usize, large: usize) -> State {
        let mut state = State::default();
        state.want(&[(SMALL, small), (LARGE, large)].into());
        state
    }

    fn line(state: &mut State, shape: Shape) -> &mut Line {
        state.lines.get_mut(&shape).unwrap()
    }

    fn next(state: &mut State) -> Option<Shape> {
        state.begin_next().map(|(_, shape)| shape)
    }

    #[test]
    fn what_somebody_waits_for_is_made_before_what_is_to_wait() {
        let mut state = wanting(4096, 0);
        for _ in 0..3 {
            assert_eq!(next(&mut state), Some(SMALL));
        }
        line(&mut state, LARGE).waiting = (0..2).collect();
        let made: Vec<_> = (0..3).map(|_| next(&mut state)).collect();
        assert_eq!(made, [Some(LARGE), Some(LARGE), Some(SMALL)]);
    }

    #[test]
    fn the_end_of_an_old_shell_is_remembered_as_long_as_that_of_a_new_one() {
        let mut state = wanting(1, 0);
        let end = |code| End { code, out_of_memory: None };
        (0..2 * ENDS as u64).for_each(|number| state.ended(1000 + number, end(0)));
        state.ended(7, end(-9));
        assert_eq!((state.ended.len(), state.ended.back()), (ENDS, Some(&(7, end(-9)))));
    }

    #[test]
    fn whoever_came_first_has_the_next_shell() {
        let mut state = wanting(1, 0);
        let line = line(&mut state, SMALL);
        assert!(line.is_turn_of(3));
        line.waiting = [1, 2].into();
        assert!(line.is_turn_of(1) && !line.is_turn_of(2) && !line.is_turn_of(3));
        line.waiting.remove(&1);
        assert!(line.is_turn_of(2) && !line.is_turn_of(3));
    }

    #[test]
    fn every_shape_has_its_turn() {
        let mut state = wanting(9, 2);
        let made: Vec<_> = (0..4).map(|_| next(&mut state)).collect();
        assert_eq!(made, [Some(SMALL), Some(LARGE), Some(SMALL), Some(LARGE)]);
        // Nor does one take it whose shells are always about to be made, and never are.
        line(&mut state, SMALL).waiting = (0..9).collect();
        line(&mut state, LARGE).waiting = (9..18).collect();
        for _ in 0..4 {
            let (first, second) = (state.begin_next().unwrap(), state.begin_next().unwrap());
            assert_ne!(first.1, second.1);
            let failed = if first.1 == LARGE { first.0 } else { second.0 };
            line(&mut state, LARGE).making.remove(&failed);
        }
    }

    #[test]
    fn a_shape_that_cannot_be_made_holds_up_no_other() {
        let mut state = wanting(2, 2);
        let (id, shape) = state.begin_next().unwrap();
        assert!(state.refuse(id, Failure::text(Kind::HostCannot, "too large")));
        let other = if shape == SMALL { LARGE } else { SMALL };
        let made: Vec<_> = (0..3).map(|_| next(&mut state)).collect();
        assert_eq!(made, [Some(other), Some(other), None]);
        assert!(line(&mut state, other).refusal().is_none());
        assert!(line(&mut state, shape).refusal().is_some());
        // It is tried again.
        line(&mut state, shape).refused.as_mut().unwrap().1 -= PAUSE;
        assert_eq!(next(&mut state), Some(shape));
    }

    #[test]
    fn a_shape_that_no_function_has_any_more_is_forgotten_once_nothing_of_it_is_left() {
        let mut state = wanting(1, 0);
        let (id, _) = state.begin_next().unwrap();
        state.want(&BTreeMap::new());
        assert!(!line(&mut state, SMALL).is_over(), "one of it is being made");
        assert!(line(&mut state, LARGE).is_over());
        state.ended(id, End { code: 0, out_of_memory: None });
        assert!(!line(&mut state, SMALL).is_over(), "nobody asks again at once");
        line(&mut state, SMALL).refused = None;
        assert!(line(&mut state, SMALL).is_over());
        assert_eq!((state.died, next(&mut state)), (1, None));
        state.want(&[(SMALL, 0)].into());
        assert!(!line(&mut state, SMALL).is_over(), "a function has it that wants none");
    }
}
