//! Pauses between attempts to reach Redis, of the two tasks that keep a connection of their own.

use std::time::Duration;

/// Growing pauses between attempts: 50 ms to a second.
#[derive(Debug, Default)]
pub struct Pause(u32);

impl Pause {
    /// How long to wait now.
    pub fn next(&mut self) -> Duration {
        let pause = Duration::from_millis(50 << self.0.min(5)).min(Duration::from_secs(1));
        self.0 += 1;
        pause
    }

    /// The last attempt has worked.
    pub fn reset(&mut self) {
        self.0 = 0;
    }
}
