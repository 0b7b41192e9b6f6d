//! The grace: seats whose socket ended without an explicit leave, kept for a short while.
//!
//! A page that reloads, or a connection that drops and comes back, takes its old seat again and
//! nobody is told anything. Pure: time is an argument.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A seat that waits for its user to come back.
#[derive(Debug)]
struct Waiting {
    until: Instant,
    seat: u64,
    user: Arc<str>,
    meta: Arc<str>,
}

/// The waiting seats of one channel, the oldest first: the grace is the same for all.
#[derive(Debug, Default)]
pub struct Grace {
    waiting: VecDeque<Waiting>,
}

impl Grace {
    /// Keeps `seat` for `grace` from `now` on.
    pub fn keep(&mut self, seat: u64, user: Arc<str>, meta: Arc<str>, now: Instant, grace: Duration) {
        self.waiting.push_back(Waiting { until: now + grace, seat, user, meta });
    }

    /// A waiting seat of `user`, who is back: best the one that showed `meta`, since then nothing
    /// changes for anybody.
    pub fn take(&mut self, user: &str, meta: &str) -> Option<u64> {
        let same = self.waiting.iter().position(|w| &*w.user == user && &*w.meta == meta);
        let at = same.or_else(|| self.waiting.iter().position(|w| &*w.user == user))?;
        self.waiting.remove(at).map(|w| w.seat)
    }

    /// The seats whose time is over at `now`.
    pub fn expired(&mut self, now: Instant) -> Vec<u64> {
        let over = self.waiting.iter().take_while(|w| w.until <= now).count();
        self.waiting.drain(..over).map(|w| w.seat).collect()
    }

    /// When the next seat's time is over.
    pub fn next(&self) -> Option<Instant> {
        self.waiting.front().map(|w| w.until)
    }

    /// All waiting seats; none waits afterwards.
    pub fn end_all(&mut self) -> Vec<u64> {
        self.waiting.drain(..).map(|w| w.seat).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_back_in_time_has_the_old_seat_and_the_same_meta_first() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut grace = Grace::default();
        grace.keep(1, "ada".into(), "{}".into(), start, second);
        grace.keep(2, "ada".into(), r#"{"a":1}"#.into(), start, second);
        grace.keep(3, "bob".into(), "{}".into(), start + second, second);
        assert_eq!(grace.take("ada", r#"{"a":1}"#), Some(2));
        assert_eq!(grace.take("eve", "{}"), None);
        assert_eq!(grace.next(), Some(start + second));
        assert_eq!(grace.expired(start + second), [1]);
        assert_eq!(grace.take("ada", "{}"), None);
        assert_eq!(grace.end_all(), [3]);
        assert_eq!(grace.next(), None);
    }
}
