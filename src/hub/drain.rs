//! In which order, and when, connections are told to go elsewhere: pure.
//!
//! In random order, so that no channel's viewers all go at once, and in slices at random times: clients
//! that know no jitter of their own still do not all come back at the same moment.

use std::time::Duration;

use super::ConnId;

/// Into how many slices a hub's connections are cut.
const SLICES: usize = 30;

/// All of `ids` in slices, each with the time after which it is told: in order of time, all before `over`.
/// `random` gives numbers of which every bit is.
pub fn slices(
    mut ids: Vec<ConnId>,
    over: Duration,
    mut random: impl FnMut() -> u64,
) -> Vec<(Duration, Vec<ConnId>)> {
    for left in (1..ids.len()).rev() {
        ids.swap(left, below(random(), left as u64 + 1) as usize);
    }
    let count = SLICES.min(ids.len());
    let size = ids.len().div_ceil(count.max(1)).max(1);
    let slice = over / SLICES as u32;
    ids.chunks(size)
        .enumerate()
        .map(|(at, ids)| {
            let jitter = slice.mul_f64(below(random(), 1_000) as f64 / 1_000.0);
            (over * at as u32 / SLICES as u32 + jitter, ids.to_vec())
        })
        .collect()
}

/// A number below `end`, which is not 0, made of a random one.
pub fn below(random: u64, end: u64) -> u64 {
    ((u128::from(random) * u128::from(end)) >> 64) as u64
}

/// A source of numbers to spread things with (xorshift): not for secrets.
pub fn spread() -> impl FnMut() -> u64 {
    // Without randomness of the system all is still spread, only in the same way each time.
    let mut state = getrandom::u64().unwrap_or(0) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OVER: Duration = Duration::from_secs(3);

    #[test]
    fn everybody_is_told_once_in_time_and_in_no_order() {
        for count in [0, 1, 2, 29, 30, 31, 1_000, 5_001] {
            let slices = slices((0..count).collect(), OVER, spread());
            assert!(slices.windows(2).all(|pair| pair[0].0 <= pair[1].0));
            assert!(slices.iter().all(|(at, ids)| *at < OVER && !ids.is_empty()));
            let told: Vec<ConnId> = slices.into_iter().flat_map(|(_, ids)| ids).collect();
            let mut sorted = told.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..count).collect::<Vec<_>>());
            assert!(count < 29 || told != sorted, "{count} in order");
        }
    }

    #[test]
    fn no_slice_is_much_larger_than_its_share_and_times_are_jittered() {
        let told = slices((0..3_000).collect(), OVER, spread());
        assert!(told.iter().all(|(_, ids)| ids.len() <= 100));
        let even = |(at, (time, _)): (usize, &(Duration, Vec<ConnId>))| *time == OVER * at as u32 / 30;
        assert!(told.iter().enumerate().any(|one| !even(one)));
        let again = slices((0..3_000).collect(), OVER, spread());
        assert_ne!(told, again, "another time, another order");
    }

    #[test]
    fn numbers_stay_below_their_end() {
        assert_eq!((below(0, 7), below(u64::MAX, 7), below(u64::MAX, 1)), (0, 6, 0));
    }
}
