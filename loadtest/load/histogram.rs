//! A histogram of durations in a fixed space: 32 steps for each doubling, so a quantile is at most 3 % off.
//!
//! Recording is one shift and one addition, because a run records a value for each pair of a join and a receiver.

use std::time::Duration;

/// Steps within one doubling.
const STEPS: u64 = 32;
const STEP_BITS: u32 = STEPS.trailing_zeros();
/// Enough doublings for half an hour in microseconds.
const BUCKETS: usize = STEPS as usize * 28;

/// Counts of durations, in microseconds.
#[derive(Clone)]
pub struct Histogram {
    counts: Box<[u64; BUCKETS]>,
    total: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: Box::new([0; BUCKETS]), total: 0, max: 0 }
    }
}

/// Which bucket counts `micros`. Values below [`STEPS`] have a bucket each.
fn bucket(micros: u64) -> usize {
    if micros < STEPS {
        return micros as usize;
    }
    let doublings = micros.ilog2() - STEP_BITS;
    let step = (micros >> doublings) - STEPS;
    let at = (u64::from(doublings) + 1) * STEPS + step;
    (at as usize).min(BUCKETS - 1)
}

/// The largest value that the bucket counts.
fn upper(bucket: usize) -> u64 {
    let (row, step) = (bucket as u64 / STEPS, bucket as u64 % STEPS);
    if row == 0 { step } else { ((STEPS + step + 1) << (row - 1)) - 1 }
}

impl Histogram {
    pub fn record(&mut self, value: Duration) {
        let micros = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
        self.counts[bucket(micros)] += 1;
        self.total += 1;
        self.max = self.max.max(micros);
    }

    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(other.counts.iter()) {
            *mine += theirs;
        }
        self.total += other.total;
        self.max = self.max.max(other.max);
    }

    pub fn count(&self) -> u64 {
        self.total
    }

    /// The value, in milliseconds, that a share `q` of all values does not exceed; `None` of nothing.
    pub fn quantile_ms(&self, q: f64) -> Option<f64> {
        if self.total == 0 {
            return None;
        }
        let rank = ((self.total as f64 * q).ceil() as u64).clamp(1, self.total);
        let mut seen = 0;
        for (at, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Some(upper(at).min(self.max) as f64 / 1000.0);
            }
        }
        self.max_ms()
    }

    pub fn max_ms(&self) -> Option<f64> {
        (self.total > 0).then(|| self.max as f64 / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(micros: impl IntoIterator<Item = u64>) -> Histogram {
        let mut histogram = Histogram::default();
        micros.into_iter().for_each(|value| histogram.record(Duration::from_micros(value)));
        histogram
    }

    #[test]
    fn buckets_follow_one_another_without_gap_or_overlap() {
        for at in 0..BUCKETS - 1 {
            assert_eq!(bucket(upper(at)), at, "upper end of {at}");
            assert_eq!(bucket(upper(at) + 1), at + 1, "first after {at}");
        }
    }

    #[test]
    fn quantiles_are_exact_to_a_step_and_never_over_the_maximum() {
        let histogram = of(1..=100_000);
        for (q, exact) in [(0.5, 50.0), (0.9, 90.0), (0.99, 99.0), (1.0, 100.0)] {
            let told = histogram.quantile_ms(q).unwrap();
            assert!(told >= exact && told <= exact * 1.04, "{q}: {told}");
        }
        assert_eq!(histogram.max_ms(), Some(100.0));
    }

    #[test]
    fn few_values_and_none() {
        assert_eq!(of([]).quantile_ms(0.5), None);
        assert_eq!(of([]).max_ms(), None);
        let one = of([7_000]);
        assert_eq!((one.quantile_ms(0.0), one.quantile_ms(1.0)), (Some(7.0), Some(7.0)));
        assert_eq!(of([u64::MAX]).count(), 1);
    }

    #[test]
    fn added_histograms_count_as_one() {
        let (mut low, high) = (of(1..=500), of(501..=1000));
        low.add(&high);
        assert_eq!(low.count(), 1000);
        let median = low.quantile_ms(0.5).unwrap();
        assert!((0.5..=0.52).contains(&median), "{median}");
        assert_eq!(low.max_ms(), Some(1.0));
    }
}
