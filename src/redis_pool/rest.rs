//! A rest for whoever can do without Redis: after a failure it is left alone for a second, and then one call at
//! a time tries it while all others go on without. So an outage delays one caller a second, and nobody else.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long Redis is left alone after a failure.
pub const REST: Duration = Duration::from_secs(1);

/// Whether Redis is to be asked just now.
#[derive(Debug)]
pub struct Rest {
    /// What the time below counts from.
    began: Instant,
    /// Milliseconds since `began` until which Redis is left alone; 0: it is not.
    until: AtomicU64,
}

impl Rest {
    /// Nothing has failed yet.
    pub fn new() -> Self {
        Self { began: Instant::now(), until: AtomicU64::new(0) }
    }

    /// Whether this call may ask Redis. After a failure and its rest, exactly one may at a time: it closes the
    /// way behind itself, and [`Rest::succeeded`] opens it for all.
    pub fn may_try(&self) -> bool {
        let until = self.until.load(Ordering::Relaxed);
        if until == 0 {
            return true;
        }
        let now = self.millis();
        // Longer than the attempt itself can take, so that no second one begins meanwhile.
        let next = now + 2 * REST.as_millis() as u64;
        now >= until && self.until.compare_exchange(until, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Redis answered.
    pub fn succeeded(&self) {
        self.until.store(0, Ordering::Relaxed);
    }

    /// Redis did not answer.
    pub fn failed(&self) {
        self.until.store(self.millis() + REST.as_millis() as u64, Ordering::Relaxed);
    }

    fn millis(&self) -> u64 {
        self.began.elapsed().as_millis().try_into().unwrap_or(u64::MAX)
    }
}

impl Default for Rest {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_failure_and_its_rest_one_may_try_until_it_succeeds() {
        let rest = Rest::new();
        assert!(rest.may_try() && rest.may_try());
        rest.failed();
        assert!(!rest.may_try());
        std::thread::sleep(REST + Duration::from_millis(20));
        assert_eq!((0..10).filter(|_| rest.may_try()).count(), 1);
        rest.succeeded();
        assert!(rest.may_try() && rest.may_try());
    }
}
