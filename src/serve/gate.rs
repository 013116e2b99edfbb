//! How many events of a function are served at once, how many wait, and for how long.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often who waits looks whether it still has to: its caller may have gone.
pub const LOOK: Duration = Duration::from_millis(100);

/// Lets a number of events in, and a number wait; those in the order in which they came.
#[derive(Debug)]
pub struct Gate(Mutex<State>);

/// Nobody waits while there is room inside.
#[derive(Debug)]
struct State {
    running_max: usize,
    waiting_max: usize,
    running: usize,
    /// By when they came, and how each hears that it has been let in: it is not here any more.
    waiting: BTreeMap<u64, Arc<Condvar>>,
    came: u64,
}

impl State {
    /// Lets in whom there is room for. By whoever makes room, not by those who wait: a newcomer could be faster than one of them, who
    /// would then wait for ever behind those who came later.
    fn let_in(&mut self) {
        while self.running < self.running_max {
            let Some((_, waiting)) = self.waiting.pop_first() else { return };
            self.running += 1;
            waiting.notify_one();
        }
    }
}

/// How many there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Inside.
    pub running: usize,
    /// Before the gate.
    pub waiting: usize,
}

/// Why an event is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// As many wait already as may.
    Full,
    /// It waited until its deadline.
    Late,
    /// Its caller has gone.
    Abandoned,
}

/// An event that is inside until this is dropped.
#[derive(Debug)]
pub struct Permit(Arc<Gate>);

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.running -= 1;
        state.let_in();
    }
}

impl Gate {
    /// A gate with nobody inside.
    pub fn new(running_max: usize, waiting_max: usize) -> Self {
        let (waiting, came) = (BTreeMap::new(), 0);
        Gate(Mutex::new(State { running_max, waiting_max, running: 0, waiting, came }))
    }

    /// Changes how many may be inside and before it. Nobody who is either is turned out.
    pub fn set(&self, running_max: usize, waiting_max: usize) {
        let mut state = self.lock();
        (state.running_max, state.waiting_max) = (running_max, waiting_max);
        state.let_in();
    }

    /// Enters, at once or before `deadline`, unless the caller `is_gone` while it waits.
    ///
    /// # Errors
    /// See [`Closed`].
    pub fn enter(self: &Arc<Self>, deadline: Instant, is_gone: &dyn Fn() -> bool) -> Result<Permit, Closed> {
        let mut state = self.lock();
        if state.running < state.running_max {
            state.running += 1;
        } else if state.waiting.len() < state.waiting_max {
            self.wait(state, deadline, is_gone)?;
        } else {
            return Err(Closed::Full);
        }
        Ok(Permit(Arc::clone(self)))
    }

    /// Waits to be let in, behind those who came before.
    fn wait(
        &self,
        mut state: MutexGuard<'_, State>,
        deadline: Instant,
        is_gone: &dyn Fn() -> bool,
    ) -> Result<(), Closed> {
        state.came += 1;
        let (own, let_in) = (state.came, Arc::new(Condvar::new()));
        state.waiting.insert(own, Arc::clone(&let_in));
        while state.waiting.contains_key(&own) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                state.waiting.remove(&own);
                return Err(Closed::Late);
            }
            let (again, looked) =
                let_in.wait_timeout(state, left.min(LOOK)).unwrap_or_else(PoisonError::into_inner);
            state = again;
            if looked.timed_out() && is_gone() && state.waiting.remove(&own).is_some() {
                return Err(Closed::Abandoned);
            }
        }
        Ok(())
    }

    /// How many are inside and before it.
    pub fn load(&self) -> Load {
        let state = self.lock();
        Load { running: state.running, waiting: state.waiting.len() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(20)
    }

    fn stays() -> bool {
        false
    }

    fn in_a_while() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    fn wait_until_waiting(gate: &Gate, count: usize) {
        while gate.load().waiting != count {
            std::thread::yield_now();
        }
    }

    #[test]
    fn so_many_are_let_in_so_many_wait_and_the_rest_is_turned_away() {
        let gate = Arc::new(Gate::new(1, 1));
        let inside = gate.enter(soon(), &stays).unwrap();
        assert_eq!(gate.enter(soon(), &stays).unwrap_err(), Closed::Late);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| gate.enter(in_a_while(), &stays));
            wait_until_waiting(&gate, 1);
            assert_eq!(gate.enter(soon(), &stays).unwrap_err(), Closed::Full);
            drop(inside);
            assert!(waiting.join().unwrap().is_ok());
        });
        assert_eq!(gate.load(), Load::default());
    }

    #[test]
    fn whoever_came_first_is_let_in_first() {
        let gate = Arc::new(Gate::new(1, 9));
        let (inside, order) = (gate.enter(soon(), &stays).unwrap(), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for own in 0..5 {
                let (gate, order) = (&gate, &order);
                scope.spawn(move || {
                    let _inside = gate.enter(in_a_while(), &stays).unwrap();
                    order.lock().unwrap().push(own);
                });
                wait_until_waiting(gate, own + 1);
            }
            drop(inside);
        });
        assert_eq!(order.into_inner().unwrap(), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_newcomer_does_not_overtake_who_has_waited() {
        let gate = Arc::new(Gate::new(1, 9));
        let inside = gate.enter(soon(), &stays).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| gate.enter(in_a_while(), &stays).unwrap());
            wait_until_waiting(&gate, 1);
            drop(inside);
            // The other may not even have woken up.
            assert_eq!(gate.load(), Load { running: 1, waiting: 0 });
            assert_eq!(gate.enter(Instant::now(), &stays).unwrap_err(), Closed::Late);
            drop(waiting.join().unwrap());
        });
        assert!(gate.enter(Instant::now(), &stays).is_ok());
    }

    #[test]
    fn who_is_inside_counts_when_there_may_be_more_or_fewer() {
        let gate = Arc::new(Gate::new(2, 0));
        let inside = [gate.enter(soon(), &stays).unwrap(), gate.enter(soon(), &stays).unwrap()];
        gate.set(1, 1);
        let [first, second] = inside;
        drop(first);
        assert_eq!(gate.enter(soon(), &stays).unwrap_err(), Closed::Late);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| gate.enter(in_a_while(), &stays).unwrap());
            wait_until_waiting(&gate, 1);
            gate.set(2, 1);
            drop((waiting.join().unwrap(), second));
        });
        assert_eq!(gate.load(), Load::default());
    }

    #[test]
    fn who_has_gone_waits_no_longer() {
        let gate = Arc::new(Gate::new(1, 1));
        let inside = gate.enter(soon(), &stays).unwrap();
        assert_eq!(gate.enter(in_a_while(), &|| true).unwrap_err(), Closed::Abandoned);
        assert_eq!(gate.load(), Load { running: 1, waiting: 0 });
        drop(inside);
        assert!(gate.enter(soon(), &stays).is_ok());
    }
}
