//! A token bucket: so many calls at once, so many a second. Pure: time is an argument.

use std::time::{Duration, Instant};

/// A bucket that refills continuously.
#[derive(Debug)]
pub struct Bucket {
    per_second: f32,
    burst: f32,
    tokens: f32,
    filled: Instant,
}

impl Bucket {
    /// A full bucket of `burst` tokens that gains `per_second`.
    pub fn new(per_second: u32, burst: u32, now: Instant) -> Self {
        let (per_second, burst) = (per_second.max(1) as f32, burst.max(1) as f32);
        Self { per_second, burst, tokens: burst, filled: now }
    }

    /// Takes a token.
    ///
    /// # Errors
    /// How long to wait until there is one, never zero.
    pub fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let passed = now.saturating_duration_since(self.filled).as_secs_f32();
        self.tokens = (self.tokens + passed * self.per_second).min(self.burst);
        self.filled = now;
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        let missing = (1.0 - self.tokens) / self.per_second;
        Err(Duration::from_secs_f32(missing).max(Duration::from_millis(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(10, 20, start);
        for _ in 0..20 {
            assert_eq!(bucket.take(start), Ok(()));
        }
        let wait = bucket.take(start).unwrap_err();
        assert!(wait > Duration::from_millis(90) && wait <= Duration::from_millis(101), "{wait:?}");
        assert_eq!(bucket.take(start + wait + Duration::from_millis(1)), Ok(()));
        let later = start + Duration::from_secs(60);
        assert_eq!((0..30).filter(|_| bucket.take(later).is_ok()).count(), 20);
    }
}
