//! Medians and percentiles of samples.

use serde::Serialize;

/// Fewest samples of which a percentile is told; of fewer it would be a name for the largest.
pub const PERCENTILE_MIN: usize = 3;

/// A distribution of microseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Distribution {
    /// In the order they were taken.
    pub samples: Vec<f64>,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
    /// Median; `None` under [`PERCENTILE_MIN`] samples.
    pub p50: Option<f64>,
    /// 99th percentile by nearest rank; `None` under [`PERCENTILE_MIN`] samples.
    pub p99: Option<f64>,
}

impl Distribution {
    /// `None` of no samples.
    pub fn new(samples: Vec<f64>) -> Option<Self> {
        let mut sorted = samples.clone();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let enough = sorted.len() >= PERCENTILE_MIN;
        let p50 = enough.then(|| median(&sorted));
        let p99 = enough.then(|| rank(&sorted, 99));
        Some(Distribution { samples, min, max, p50, p99 })
    }

    /// The median, or the mean of the extremes where there are too few samples for one.
    pub fn middle(&self) -> f64 {
        self.p50.unwrap_or(f64::midpoint(self.min, self.max))
    }
}

fn median(sorted: &[f64]) -> f64 {
    let half = sorted.len() / 2;
    match sorted {
        [] => 0.0,
        _ if sorted.len().is_multiple_of(2) => f64::midpoint(sorted[half - 1], sorted[half]),
        _ => sorted[half],
    }
}

/// Nearest rank: the smallest sample that at least `percent` of all do not exceed.
fn rank(sorted: &[f64], percent: usize) -> f64 {
    let at = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(at).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_ranks_are_those_of_the_sorted_samples() {
        let odd = Distribution::new(vec![3.0, 1.0, 2.0]).unwrap();
        assert_eq!((odd.min, odd.max, odd.p50, odd.p99), (1.0, 3.0, Some(2.0), Some(3.0)));
        let even = Distribution::new(vec![4.0, 1.0, 2.0, 3.0]).unwrap();
        assert_eq!(even.p50, Some(2.5));
        let hundred = Distribution::new((1..=200).map(f64::from).collect()).unwrap();
        assert_eq!(hundred.p99, Some(198.0));
    }

    #[test]
    fn two_samples_have_no_percentiles() {
        let two = Distribution::new(vec![1.0, 2.0]).unwrap();
        assert_eq!((two.p50, two.p99), (None, None));
        assert!(Distribution::new(Vec::new()).is_none());
    }
}
