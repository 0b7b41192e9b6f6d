//! How long changes gather before they are told: guarantee G1.
//!
//! The first change in a quiet channel goes out at once. After that, the next diff waits until a
//! window has passed since the last one. A diff costs the server about five microseconds for each
//! receiver (one write to a socket) and a little for each change in it, so a window in proportion to
//! receivers and changes holds that cost to a fixed share of a core however busy the channel is.

use std::time::Duration;

/// The shortest window: below it, the timer itself would cost more than it saves.
const SHORTEST: Duration = Duration::from_millis(1);
/// The longest: what G1 promises.
const LONGEST: Duration = Duration::from_secs(1);
/// For each receiver, in nanoseconds: eight times what a write to its socket costs.
const PER_RECEIVER: u64 = 40_000;
/// For each change and receiver, in nanoseconds: changes are bytes to copy and to send.
const PER_CHANGE: u64 = 150;
/// For each byte and receiver, in nanoseconds: a gigabyte a second, about what one core can send.
const PER_BYTE: u64 = 1;

/// The least time between two diffs to `receivers`, the later of which tells `changes` with `bytes` of
/// users and metas.
pub fn window(receivers: usize, changes: usize, bytes: usize) -> Duration {
    let told =
        PER_CHANGE.saturating_mul(changes as u64).saturating_add(PER_BYTE.saturating_mul(bytes as u64));
    let each = PER_RECEIVER.saturating_add(told);
    Duration::from_nanos(each.saturating_mul(receivers as u64)).clamp(SHORTEST, LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_starts_small_grows_with_members_and_changes_and_ends_at_a_second() {
        assert_eq!(window(0, 0, 0), SHORTEST);
        assert_eq!(window(2, 1, 0), SHORTEST);
        assert_eq!(window(1_000, 0, 0), Duration::from_millis(40));
        assert!(window(1_000, 500, 0) > Duration::from_millis(100));
        assert_eq!(window(1_000_000, 1_000_000, 0), LONGEST);
        assert_eq!(window(usize::MAX, usize::MAX, usize::MAX), LONGEST);
        assert!(window(200, 200, 1_600_000) > Duration::from_millis(300));
    }
}
