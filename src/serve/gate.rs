//! How many events of a function are served at once, how many wait, and for how long.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Lets a number of events in, and a number wait.
#[derive(Debug)]
pub struct Gate {
    running_max: usize,
    waiting_max: usize,
    state: Mutex<Load>,
    changed: Condvar,
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
}

/// An event that is inside until this is dropped.
#[derive(Debug)]
pub struct Permit(Arc<Gate>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.lock().running -= 1;
        self.0.changed.notify_one();
    }
}

impl Gate {
    /// A gate with nobody inside.
    pub fn new(running_max: usize, waiting_max: usize) -> Self {
        Gate { running_max, waiting_max, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Enters, at once or before `deadline`.
    ///
    /// # Errors
    /// See [`Closed`].
    pub fn enter(self: &Arc<Self>, deadline: Instant) -> Result<Permit, Closed> {
        let mut load = self.lock();
        if load.running >= self.running_max {
            if load.waiting >= self.waiting_max {
                return Err(Closed::Full);
            }
            load.waiting += 1;
            while load.running >= self.running_max {
                let left = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero());
                let Some(left) = left else {
                    load.waiting -= 1;
                    return Err(Closed::Late);
                };
                load = self.changed.wait_timeout(load, left).unwrap_or_else(PoisonError::into_inner).0;
            }
            load.waiting -= 1;
        }
        load.running += 1;
        Ok(Permit(Arc::clone(self)))
    }

    /// How many are inside and before it.
    pub fn load(&self) -> Load {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, Load> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn so_many_are_let_in_so_many_wait_and_the_rest_is_turned_away() {
        let gate = Arc::new(Gate::new(1, 1));
        let soon = || Instant::now() + Duration::from_millis(20);
        let inside = gate.enter(soon()).unwrap();
        assert_eq!(gate.enter(soon()).unwrap_err(), Closed::Late);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| gate.enter(Instant::now() + Duration::from_secs(60)));
            while gate.load().waiting == 0 {
                std::thread::yield_now();
            }
            assert_eq!(gate.enter(soon()).unwrap_err(), Closed::Full);
            drop(inside);
            assert!(waiting.join().unwrap().is_ok());
        });
        assert_eq!(gate.load(), Load::default());
    }
}
