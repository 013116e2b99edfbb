//! A token bucket: how much a drive may move, over time.

use std::time::{Duration, Instant};

/// A limit of a drive's rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockRate {
    /// Bytes a second; 0 counts as 1.
    pub bytes_per_second: u64,
    /// Bytes that may be moved at once after a rest.
    pub burst: u64,
}

/// What a request costs at least, bytes: it takes its time however little it moves.
const LEAST: u64 = 4096;

/// The bucket. A request is let through while there is anything in it, and may leave it in debt: so that no request is too long
/// for it.
#[derive(Debug)]
pub(super) struct Bucket {
    rate: BlockRate,
    /// Bytes that may be moved; below zero the debt.
    tokens: i128,
    filled: Instant,
}

impl Bucket {
    /// A full one.
    pub(super) fn new(rate: BlockRate, now: Instant) -> Self {
        Bucket { rate, tokens: rate.burst.max(1).into(), filled: now }
    }

    /// When the next request may be served; `None`: now.
    pub(super) fn wait(&mut self, now: Instant) -> Option<Instant> {
        let rate = i128::from(self.rate.bytes_per_second.max(1));
        let elapsed = now.saturating_duration_since(self.filled).as_nanos();
        let new = i128::try_from(elapsed).unwrap_or(i128::MAX).saturating_mul(rate) / NANOS;
        if new > 0 {
            self.tokens = self.tokens.saturating_add(new).min(self.rate.burst.max(1).into());
            self.filled = now;
        }
        if self.tokens > 0 {
            return None;
        }
        let missing = (1 - self.tokens).saturating_mul(NANOS) / rate + 1;
        Some(
            self.filled
                + Duration::from_nanos(u64::try_from(missing).unwrap_or(MISSING_MAX).min(MISSING_MAX)),
        )
    }

    /// Notes that a request of `bytes` was served.
    pub(super) fn take(&mut self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX).max(LEAST);
        self.tokens = self.tokens.saturating_sub(bytes.into());
    }
}

const NANOS: i128 = 1_000_000_000;
/// A year: a wait that is longer is looked at again then.
const MISSING_MAX: u64 = 31_536_000_000_000_000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn after(start: Instant, milliseconds: u64) -> Instant {
        start + Duration::from_millis(milliseconds)
    }

    #[test]
    fn a_burst_passes_at_once_and_what_follows_waits() {
        let start = Instant::now();
        let mut bucket = Bucket::new(BlockRate { bytes_per_second: MIB, burst: 4 * MIB }, start);
        for _ in 0..4 {
            assert_eq!(bucket.wait(start), None);
            bucket.take(1 << 20);
        }
        let until = bucket.wait(start).unwrap();
        assert!(until > start && until < after(start, 1));
        assert_eq!(bucket.wait(after(start, 1)), None);
    }

    #[test]
    fn a_request_longer_than_the_burst_passes_and_is_paid_for_afterwards() {
        let start = Instant::now();
        let mut bucket = Bucket::new(BlockRate { bytes_per_second: MIB, burst: 4096 }, start);
        assert_eq!(bucket.wait(start), None);
        bucket.take(10 << 20);
        assert!(bucket.wait(after(start, 9_900)).is_some());
        assert_eq!(bucket.wait(after(start, 10_100)), None);
    }

    #[test]
    fn requests_that_move_nothing_cost_something() {
        let start = Instant::now();
        let mut bucket = Bucket::new(BlockRate { bytes_per_second: 4096, burst: 4096 }, start);
        bucket.take(0);
        assert!(bucket.wait(start).is_some());
    }

    #[test]
    fn a_rest_does_not_save_up_more_than_the_burst() {
        let start = Instant::now();
        let mut bucket = Bucket::new(BlockRate { bytes_per_second: MIB, burst: 2 * MIB }, start);
        assert_eq!(bucket.wait(after(start, 3_600_000)), None);
        bucket.take(2 << 20);
        assert!(bucket.wait(after(start, 3_600_000)).is_some());
    }

    proptest! {
        #[test]
        fn a_wait_ends_when_it_says_and_the_rate_is_kept(
            rate in any::<u64>(), burst in any::<u64>(), requests in proptest::collection::vec(any::<u32>(), 1..50)
        ) {
            let mut now = Instant::now();
            let mut bucket = Bucket::new(BlockRate { bytes_per_second: rate, burst }, now);
            for bytes in requests {
                if let Some(until) = bucket.wait(now) {
                    prop_assert!(until > now);
                    if until.duration_since(now) < Duration::from_nanos(MISSING_MAX) {
                        now = until;
                        prop_assert_eq!(bucket.wait(now), None);
                    }
                }
                bucket.take(bytes as usize);
            }
        }
    }
}
