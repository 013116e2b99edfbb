//! How much of events and answers the daemon holds at once. Each is bounded, but there may be thousands, and a daemon that the kernel
//! kills for its memory takes every VM with it.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::config::Size;
use crate::failure::{Failure, Kind};

/// Bytes that may be held.
#[derive(Debug)]
pub struct Budget {
    max: Size,
    left: AtomicU64,
}

/// Bytes that are held for one event; given back when this is dropped.
#[derive(Debug)]
pub struct Held<'a> {
    budget: &'a Budget,
    bytes: u64,
}

impl Budget {
    /// Of `max` bytes.
    pub fn new(max: Size) -> Self {
        Budget { max, left: AtomicU64::new(max.0) }
    }

    /// Nothing yet, for an event.
    pub fn hold(&self) -> Held<'_> {
        Held { budget: self, bytes: 0 }
    }
}

impl Held<'_> {
    /// Holds `more` bytes.
    ///
    /// # Errors
    /// So many are not left.
    pub fn grow(&mut self, more: u64) -> Result<(), Failure> {
        let Budget { max, left } = self.budget;
        let taken = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(more));
        if taken.is_err() {
            let text =
                format!("Events and answers take as much of the daemon's memory as --held-max allows, {max}");
            return Err(Failure::text(Kind::HostCannot, text));
        }
        self.bytes += more;
        Ok(())
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.budget.left.fetch_add(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_comes_back_and_no_more_is_given_than_there_is() {
        let budget = Budget::new(Size(100));
        let mut first = budget.hold();
        first.grow(60).unwrap();
        assert_eq!(budget.hold().grow(41).unwrap_err().kind(), Kind::HostCannot);
        budget.hold().grow(40).unwrap();
        assert!(first.grow(u64::MAX).is_err());
        first.grow(40).unwrap();
        assert!(budget.hold().grow(1).is_err());
        drop(first);
        budget.hold().grow(100).unwrap();
    }
}
