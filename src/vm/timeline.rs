//! Where the time of a start goes: a mark at the end of each phase.

use std::time::{Duration, Instant};

/// Marks on one clock (CLOCK_MONOTONIC). Taking one costs some 30 ns, so it is always done.
#[derive(Debug, Clone)]
pub struct Timeline {
    start: Instant,
    marks: Vec<(&'static str, Instant)>,
}

impl Timeline {
    /// A timeline that begins now.
    pub fn start() -> Self {
        Timeline { start: Instant::now(), marks: Vec::with_capacity(32) }
    }

    /// A timeline that began with this process: the time it has used so far (its creation, exec and start-up) is its first
    /// phase. To be called first thing in `main`, where that is also the time that has passed.
    pub fn of_process() -> Self {
        let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        let seconds = u64::try_from(used.tv_sec).unwrap_or_default();
        let used = Duration::new(seconds, u32::try_from(used.tv_nsec).unwrap_or_default());
        let now = Instant::now();
        let mut timeline =
            Timeline { start: now.checked_sub(used).unwrap_or(now), marks: Vec::with_capacity(32) };
        timeline.mark("process start");
        timeline
    }

    /// Ends the phase that has gone on since the last mark.
    pub fn mark(&mut self, phase: &'static str) {
        self.marks.push((phase, Instant::now()));
    }

    /// CLOCK_MONOTONIC at the start, in nanoseconds: what a process that noted the same clock before it spawned this one
    /// needs to add its own part.
    pub fn start_ns(&self) -> u64 {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let part = |n: i64| u64::try_from(n).unwrap_or_default();
        let now_ns = part(now.tv_sec).saturating_mul(1_000_000_000).saturating_add(part(now.tv_nsec));
        now_ns.saturating_sub(u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// Every phase and how long it took, in order.
    pub fn phases(&self) -> Vec<(&'static str, Duration)> {
        let begins = std::iter::once(self.start).chain(self.marks.iter().map(|(_, at)| *at));
        begins.zip(&self.marks).map(|(begin, (phase, end))| (*phase, *end - begin)).collect()
    }

    /// From the start to `at`; `None` before it.
    pub fn at(&self, at: Instant) -> Option<Duration> {
        at.checked_duration_since(self.start)
    }

    /// From the start to the end of `phase`; `None` before it is marked.
    pub fn until(&self, phase: &str) -> Option<Duration> {
        self.marks.iter().find(|(name, _)| *name == phase).map(|(_, at)| *at - self.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_add_up_to_the_time_until_the_last_one() {
        let mut timeline = Timeline::start();
        timeline.mark("one");
        std::thread::sleep(Duration::from_millis(2));
        timeline.mark("two");
        let sum: Duration = timeline.phases().iter().map(|(_, took)| *took).sum();
        assert_eq!(Some(sum), timeline.until("two"));
        assert!(timeline.phases()[1].1 >= Duration::from_millis(2));
        assert_eq!(timeline.until("three"), None);
    }

    #[test]
    fn the_start_does_not_move() {
        let timeline = Timeline::start();
        let first = timeline.start_ns();
        std::thread::sleep(Duration::from_millis(20));
        assert!(timeline.start_ns().abs_diff(first) < 10_000_000, "by less than the time that has passed");
    }
}
