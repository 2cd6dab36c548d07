//! Latencies in HDR histograms, with two significant digits, from a microsecond to an hour; and medians of rounds.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// A histogram of microseconds. Its JSON form has the recorded values with their counts.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(from = "Sparse", into = "Sparse")]
pub struct Latencies(Histogram<u64>);

#[derive(Serialize, Deserialize)]
struct Sparse(Vec<(u64, u64)>);

/// Longest latency that is distinguished.
const US_MAX: u64 = 3_600_000_000;

/// Percentiles of a histogram, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// Number of samples.
    pub samples: u64,
    /// The median.
    pub p50_ms: f64,
    /// 90th percentile.
    pub p90_ms: f64,
    /// 99th percentile.
    pub p99_ms: f64,
    /// 99.9th percentile.
    pub p999_ms: f64,
    /// The maximum.
    pub max_ms: f64,
}

impl Default for Latencies {
    fn default() -> Self {
        Self(Histogram::new_with_bounds(1, US_MAX, 2).expect("good bounds"))
    }
}

impl Latencies {
    /// Records a latency in microseconds.
    pub fn record(&mut self, us: u64) {
        self.0.saturating_record(us);
    }

    /// Adds all samples of another histogram.
    ///
    /// # Panics
    /// Never: all have the same bounds.
    pub fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("the same bounds");
    }

    /// Number of samples.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.0.len()
    }

    /// Whether there are no samples.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The percentiles; `None` without samples.
    #[must_use]
    pub fn percentiles(&self) -> Option<Percentiles> {
        let at = |percent| self.0.value_at_percentile(percent) as f64 / 1e3;
        (!self.is_empty()).then(|| Percentiles {
            samples: self.len(),
            p50_ms: at(50.0),
            p90_ms: at(90.0),
            p99_ms: at(99.0),
            p999_ms: at(99.9),
            max_ms: self.0.max() as f64 / 1e3,
        })
    }
}

impl From<Sparse> for Latencies {
    fn from(Sparse(counts): Sparse) -> Self {
        let mut latencies = Self::default();
        for (us, count) in counts {
            latencies.0.saturating_record_n(us, count);
        }
        latencies
    }
}

impl From<Latencies> for Sparse {
    fn from(latencies: Latencies) -> Self {
        let recorded = latencies.0.iter_recorded();
        Self(recorded.map(|step| (step.value_iterated_to(), step.count_since_last_iteration())).collect())
    }
}

/// The median: for an even count, the mean of the two middle values; `None` without values.
#[must_use]
pub fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_survive_json_and_add_up() {
        let (mut all, mut parts) = (Latencies::default(), Latencies::default());
        for part in 0..3_u64 {
            let mut one = Latencies::default();
            for number in 0..1_000 {
                let us = (number * 7_919 + part) % 100_000 + 1;
                one.record(us);
                all.record(us);
            }
            let parsed: Latencies = serde_json::from_str(&serde_json::to_string(&one).unwrap()).unwrap();
            parts.add(&parsed);
        }
        assert_eq!(parts.len(), 3_000);
        let (parts, all) = (parts.percentiles().unwrap(), all.percentiles().unwrap());
        assert_eq!((parts.p50_ms, parts.p99_ms, parts.p999_ms), (all.p50_ms, all.p99_ms, all.p999_ms));
        // Exact would be 50 and 99 ms: two significant digits are within a hundredth.
        assert!((all.p50_ms - 50.0).abs() < 0.6 && (all.p99_ms - 99.0).abs() < 1.0, "{all:?}");
    }

    #[test]
    fn no_samples_have_no_percentiles_and_values_out_of_bounds_are_clamped() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.percentiles(), None);
        latencies.record(0);
        latencies.record(u64::MAX);
        assert_eq!(latencies.len(), 2);
        assert!(latencies.percentiles().unwrap().max_ms >= 3_590_000.0);
    }

    #[test]
    fn the_median_is_the_middle_value() {
        assert_eq!(median([]), None);
        assert_eq!(median([3.0]), Some(3.0));
        assert_eq!(median([9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 9.0]), Some(3.0));
    }
}
