//! The grace: seats whose socket ended without an explicit leave, kept for a short while.
//!
//! A page that reloads, or a connection that drops and comes back, to this node or to another, takes its
//! old seat again and nobody is told anything. Pure: time is an argument.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// The waiting seats of one channel. The grace is the same for all, so they end in the order in which they
/// began to wait.
#[derive(Debug, Default)]
pub struct Grace {
    until: HashMap<u64, Instant>,
    /// Those that were taken again meanwhile are still in it, and passed over.
    order: VecDeque<(Instant, u64)>,
}

impl Grace {
    /// Keeps `seat` for `grace` from `now` on.
    pub fn keep(&mut self, seat: u64, now: Instant, grace: Duration) {
        let until = now + grace;
        self.until.insert(seat, until);
        self.order.push_back((until, seat));
    }

    /// `seat` waits no more. Whether it did.
    pub fn take(&mut self, seat: u64) -> bool {
        let was_waiting = self.until.remove(&seat).is_some();
        if self.until.is_empty() {
            *self = Self::default();
        }
        was_waiting
    }

    /// The seats whose time is over at `now`.
    pub fn expired(&mut self, now: Instant) -> Vec<u64> {
        let mut over = Vec::new();
        while let Some((until, seat)) = self.order.front().copied().filter(|(until, _)| *until <= now) {
            self.order.pop_front();
            if self.until.get(&seat) == Some(&until) {
                self.until.remove(&seat);
                over.push(seat);
            }
        }
        over
    }

    /// When there is something to look at next.
    pub fn next(&self) -> Option<Instant> {
        self.order.front().map(|(until, _)| *until)
    }

    /// No seat waits any more.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_back_in_time_has_the_seat_and_who_does_not_loses_it() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut grace = Grace::default();
        grace.keep(1, start, second);
        grace.keep(2, start, second);
        grace.keep(3, start + second, second);
        assert!(grace.take(2) && !grace.take(2));
        assert_eq!(grace.next(), Some(start + second));
        assert_eq!(grace.expired(start + second), [1]);
        // Taken and lost again: the later time counts.
        assert!(grace.take(3));
        assert_eq!(grace.next(), None);
        grace.keep(4, start + second, second);
        grace.keep(3, start + 2 * second, second);
        assert!(grace.take(4));
        grace.keep(4, start + 3 * second, second);
        assert_eq!(grace.expired(start + 3 * second), [3]);
        assert_eq!(grace.next(), Some(start + 4 * second));
        grace.clear();
        assert_eq!(grace.next(), None);
    }
}
