//! What several workers take one after the other.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Result, bail};

/// A piece of work, begun once.
pub type Work<'a> = Box<dyn FnOnce() -> Result<()> + Send + 'a>;

/// Does all work in its order, as much of it at once as there are workers.
///
/// # Errors
/// The first of any worker, who then takes no more.
pub fn work_off(work: Vec<Work>, workers: usize) -> Result<()> {
    let queue = Mutex::new(VecDeque::from(work));
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    thread::scope(|scope| {
        let worker = || -> Result<()> {
            while let Some(work) = next() {
                work()?;
            }
            Ok(())
        };
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(worker)).collect();
        threads.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|_| bail!("A thread that runs tests has panicked"))
        })
    })
}
