//! One processor of this machine for each emulated host.
//!
//! QEMU 7.2 keeps what its emulated processor is interrupted by in one word, which the thread of that processor changes without a lock
//! where it emulates SVM (`helper_vmrun`, `do_vmexit`), while its other thread sets a bit for a timer that has expired. Now and then that
//! bit is lost: the timer's interrupt then pends for ever, and the emulated host, which sets its next timer in the handler of the last,
//! stands still. Each change is one instruction, so that on one processor of this machine none is lost.

use std::fs::File;

use anyhow::{Context, Result};

/// A processor of this machine, until it is dropped.
#[derive(Debug)]
pub struct Processor {
    number: usize,
    /// Others look whether it is locked; none where it is shared.
    _lock: Option<File>,
}

impl Processor {
    /// Takes one that no other emulated host has, of whatever checkout. Where there is none, it is shared.
    pub fn take() -> Result<Self> {
        let status = std::fs::read_to_string("/proc/self/status").context("Cannot read /proc/self/status")?;
        let allowed = allowed(&status).context("/proc/self/status names no processor")?;
        let free = allowed.iter().find_map(|number| Some((*number, lock(*number)?)));
        let shared = || allowed.get(std::process::id() as usize % allowed.len()).copied().unwrap_or(0);
        Ok(match free {
            Some((number, lock)) => Processor { number, _lock: Some(lock) },
            None => Processor { number: shared(), _lock: None },
        })
    }

    /// As taskset(1) takes it.
    pub fn number(&self) -> String {
        self.number.to_string()
    }
}

/// The processors of Cpus_allowed_list (proc(5)), at least one.
fn allowed(status: &str) -> Option<Vec<usize>> {
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let mut all = Vec::new();
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        all.extend(first.parse::<usize>().ok()?..=last.parse().ok()?);
    }
    (!all.is_empty()).then_some(all)
}

fn lock(number: usize) -> Option<File> {
    let path = std::env::temp_dir().join(format!("ember-rig-processor-{number}.lock"));
    // Another user's can be read.
    let file = File::options().create(true).append(true).open(&path).or_else(|_| File::open(&path)).ok()?;
    file.try_lock().ok().map(|()| file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_listed_one_by_one_and_in_ranges() {
        assert_eq!(allowed("Name:\tx\nCpus_allowed_list:\t0-2,5\n").unwrap(), [0, 1, 2, 5]);
        assert_eq!(allowed("Cpus_allowed_list:\t7\n").unwrap(), [7]);
        assert!(allowed("Cpus_allowed:\tff\n").is_none());
        assert!(allowed("Cpus_allowed_list:\t\n").is_none());
    }

    #[test]
    fn a_processor_that_was_taken_is_not_taken_again() {
        // A number that no machine has.
        let taken = lock(1_000_000).unwrap();
        assert!(lock(1_000_000).is_none());
        drop(taken);
        assert!(lock(1_000_000).is_some());
        std::fs::remove_file(std::env::temp_dir().join("ember-rig-processor-1000000.lock")).unwrap();
    }
}
