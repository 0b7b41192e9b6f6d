//! Statistics of channels: how many users on a day and in a week, the most at once, joins and leaves.
//!
//! Every node counts the connections of its own and nothing else, so each is counted once. Once a second the counts of
//! all channels go to Redis together: `cache:stats:{c}:{day}` (a hash: joins, leaves, peak) and
//! `cache:uniques:{c}:{day}` (a HyperLogLog of users, wrong by 0.81 % on average). Days are those of UTC; a
//! week is today and the six days before. When a user was first seen goes with them.
//!
//! **When Redis is away** counts are kept and go there later, those of [`MAX_WAITING`] channels at most. A node that
//! is killed takes a second of counts with it. **Without Redis** this process counts for itself: exactly up to
//! [`EXACT`] users of a channel and day, by an estimate that is wrong by 1.6 % on average beyond.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use super::bus::Bus;
use super::{Away, scripts, wall_clock};

/// Channels whose counts may wait for Redis.
pub const MAX_WAITING: usize = 10_000;
/// Users who are counted exactly where there is no Redis.
pub const EXACT: usize = 1_024;
/// Users of one channel that may wait for Redis: over it more of them are not counted until it is back.
const MAX_USERS_WAITING: usize = 10_000;
const DAYS: u64 = 7;
/// A day longer than the week that is asked for.
const LIFE_SECONDS: u64 = (DAYS + 1) * 86_400;
const FLUSH_EVERY: Duration = Duration::from_secs(1);
/// Channels in one pipeline.
const CHUNK: usize = 200;
/// Registers of an estimate: 2 to the power of this.
const PRECISION: u32 = 12;

/// What has happened in a channel, as far as this node is concerned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Connections that came and that went. Coming back within the grace is neither.
    pub joins: u64,
    pub leaves: u64,
    /// The most members at once, on all nodes.
    pub peak: usize,
    /// Who was there.
    pub users: HashSet<Arc<str>>,
}

impl Tally {
    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn add(&mut self, more: Self) {
        self.joins += more.joins;
        self.leaves += more.leaves;
        self.peak = self.peak.max(more.peak);
        let room = MAX_USERS_WAITING.saturating_sub(self.users.len());
        self.users.extend(more.users.into_iter().take(room));
    }
}

/// The counts of one span of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    pub uniques: u64,
    pub peak: u64,
    pub joins: u64,
    pub leaves: u64,
}

/// What is known of a channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Statistics {
    pub day: Counts,
    pub week: Counts,
}

/// The number of the day, from 1970 on.
pub fn today() -> u64 {
    wall_clock() / 86_400_000
}

/// Counts that wait for Redis, by day and channel.
pub type Waiting = BTreeMap<u64, HashMap<Arc<str>, Tally>>;

/// Adds to what waits.
pub fn gather(waiting: &mut Waiting, day: u64, channel: &Arc<str>, tally: Tally) {
    let channels: usize = waiting.values().map(HashMap::len).sum();
    let of_day = waiting.entry(day).or_default();
    if let Some(known) = of_day.get_mut(channel) {
        known.add(tally);
    } else if channels < MAX_WAITING {
        of_day.insert(Arc::clone(channel), tally);
    }
}

/// Tells Redis once a second, for ever.
pub async fn run(bus: Arc<Bus>) {
    loop {
        tokio::time::sleep(FLUSH_EVERY).await;
        flush(&bus).await;
    }
}

/// Tells Redis what waits. What it does not take waits on.
pub async fn flush(bus: &Bus) {
    let waiting = std::mem::take(&mut *bus.tallies());
    let mut all: Vec<(u64, Arc<str>, Tally)> = Vec::new();
    for (day, channels) in waiting {
        all.extend(channels.into_iter().map(|(channel, tally)| (day, channel, tally)));
    }
    while !all.is_empty() {
        let some = all.split_off(all.len().saturating_sub(CHUNK));
        let mut pipeline = redis::pipe();
        for (day, channel, tally) in &some {
            pipeline.cmd("EVAL").arg(scripts::STATS).arg(2);
            pipeline.arg(bus.keys.stats(channel, *day)).arg(bus.keys.uniques(channel, *day));
            pipeline.arg(LIFE_SECONDS).arg(tally.joins).arg(tally.leaves).arg(tally.peak);
            for user in &tally.users {
                pipeline.arg(&**user);
            }
            pipeline.ignore();
            for user in &tally.users {
                super::note_first_seen(&mut pipeline, channel, user, bus.last_seen_ttl);
            }
        }
        if bus.pool.pipeline::<()>(&pipeline).await.is_err() {
            let mut waiting = bus.tallies();
            for (day, channel, tally) in some.into_iter().chain(all) {
                gather(&mut waiting, day, &channel, tally);
            }
            return;
        }
    }
}

/// What Redis knows of `channel`.
pub async fn read(bus: &Bus, channel: &str) -> Result<Statistics, Away> {
    let today = today();
    let days = (today + 1).saturating_sub(DAYS)..=today;
    let mut pipeline = redis::pipe();
    for day in days.clone() {
        pipeline.cmd("HMGET").arg(bus.keys.stats(channel, day)).arg("joins").arg("leaves").arg("peak");
    }
    pipeline.cmd("PFCOUNT").arg(bus.keys.uniques(channel, today));
    pipeline.cmd("PFCOUNT");
    for day in days {
        pipeline.arg(bus.keys.uniques(channel, day));
    }
    let mut found: Vec<redis::Value> = bus.pool.pipeline(&pipeline).await?;
    let mut count = || {
        let found = found.pop().and_then(|value| redis::from_redis_value::<u64>(value).ok());
        found.unwrap_or_default()
    };
    let (of_week, of_day) = (count(), count());
    let mut statistics = Statistics::default();
    for value in found {
        let (joins, leaves, peak) =
            redis::from_redis_value::<(Option<u64>, Option<u64>, Option<u64>)>(value).unwrap_or_default();
        let day = Counts {
            uniques: 0,
            peak: peak.unwrap_or(0),
            joins: joins.unwrap_or(0),
            leaves: leaves.unwrap_or(0),
        };
        statistics.add(day);
    }
    (statistics.day.uniques, statistics.week.uniques) = (of_day, of_week);
    Ok(statistics)
}

impl Statistics {
    /// Adds a day; the last one added is today.
    fn add(&mut self, day: Counts) {
        self.day = day;
        self.week.joins += day.joins;
        self.week.leaves += day.leaves;
        self.week.peak = self.week.peak.max(day.peak);
    }
}

/// What a process without Redis keeps of one channel.
#[derive(Debug, Default)]
pub struct Kept(BTreeMap<u64, (Counts, Uniques)>);

impl Kept {
    /// Adds what has happened on `day`.
    pub fn add(&mut self, day: u64, tally: &Tally) {
        let (counts, uniques) = self.0.entry(day).or_default();
        counts.joins += tally.joins;
        counts.leaves += tally.leaves;
        counts.peak = counts.peak.max(tally.peak as u64);
        tally.users.iter().for_each(|user| uniques.add(user));
        while self.0.len() > DAYS as usize {
            self.0.pop_first();
        }
    }

    /// What is known on `today`, with those who are there now.
    pub fn read(&self, today: u64) -> Statistics {
        let (mut statistics, mut all) = (Statistics::default(), Uniques::default());
        for (_, (counts, uniques)) in self.0.range((today + 1).saturating_sub(DAYS)..=today) {
            statistics.add(*counts);
            all.merge(uniques);
        }
        let none = (Counts::default(), Uniques::default());
        let (day, uniques) = self.0.get(&today).unwrap_or(&none);
        statistics.day = Counts { uniques: uniques.estimate(), ..*day };
        statistics.week.uniques = all.estimate();
        statistics
    }
}

/// How many different users there were: a set while it is small, then a HyperLogLog (Flajolet and others, 2007).
#[derive(Clone, Debug, Default)]
struct Uniques {
    exact: HashSet<u64>,
    registers: Option<Box<[u8]>>,
}

impl Uniques {
    fn add(&mut self, user: &str) {
        let mut hasher = DefaultHasher::new();
        user.hash(&mut hasher);
        self.add_hash(hasher.finish());
    }

    fn add_hash(&mut self, hash: u64) {
        match &mut self.registers {
            Some(registers) => note(registers, hash),
            None => {
                self.exact.insert(hash);
                if self.exact.len() > EXACT {
                    let mut registers = vec![0; 1 << PRECISION].into_boxed_slice();
                    self.exact.drain().for_each(|hash| note(&mut registers, hash));
                    self.registers = Some(registers);
                }
            }
        }
    }

    fn merge(&mut self, other: &Self) {
        other.exact.iter().for_each(|hash| self.add_hash(*hash));
        let Some(theirs) = &other.registers else { return };
        let mut ours = self.registers.take().unwrap_or_else(|| vec![0; 1 << PRECISION].into_boxed_slice());
        self.exact.drain().for_each(|hash| note(&mut ours, hash));
        for (ours, theirs) in ours.iter_mut().zip(theirs.iter()) {
            *ours = (*ours).max(*theirs);
        }
        self.registers = Some(ours);
    }

    fn estimate(&self) -> u64 {
        let Some(registers) = &self.registers else { return self.exact.len() as u64 };
        let size = registers.len() as f64;
        let sum: f64 = registers.iter().map(|register| 2_f64.powi(-i32::from(*register))).sum();
        let raw = 0.7213 / (1.0 + 1.079 / size) * size * size / sum;
        let empty = registers.iter().filter(|register| **register == 0).count();
        // While some are empty, counting those is nearer to the truth.
        let estimate = if raw < 2.5 * size && empty > 0 { size * (size / empty as f64).ln() } else { raw };
        estimate.round() as u64
    }
}

fn note(registers: &mut [u8], hash: u64) {
    let at = (hash >> (64 - PRECISION)) as usize;
    let rank = ((hash << PRECISION) | (1 << (PRECISION - 1))).leading_zeros() as u8 + 1;
    registers[at] = registers[at].max(rank);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(users: impl IntoIterator<Item = usize>, joins: u64, leaves: u64, peak: usize) -> Tally {
        let users = users.into_iter().map(|user| format!("user {user}").into()).collect();
        Tally { joins, leaves, peak, users }
    }

    #[test]
    fn a_week_is_seven_days_and_each_user_counts_once_in_it() {
        let mut kept = Kept::default();
        for day in 100..110 {
            kept.add(day, &tally([0, day as usize], 2, 1, day as usize));
        }
        let Statistics { day, week } = kept.read(109);
        assert_eq!(day, Counts { uniques: 2, peak: 109, joins: 2, leaves: 1 });
        assert_eq!(week, Counts { uniques: 8, peak: 109, joins: 14, leaves: 7 });
        assert_eq!(kept.read(110).day, Counts::default());
        assert_eq!(kept.0.len(), 7);
    }

    #[test]
    fn estimates_are_as_wrong_as_stated() {
        for users in [EXACT, 2_000, 20_000, 200_000] {
            let mut kept = Kept::default();
            kept.add(1, &tally(0..users, 0, 0, 0));
            kept.add(2, &tally(users / 2..users, 0, 0, 0));
            let found = kept.read(2).week.uniques as f64;
            let error = (found / users as f64 - 1.0).abs();
            assert!(error <= if users <= EXACT { 0.0 } else { 0.05 }, "{users}: {found}");
        }
    }

    #[test]
    fn what_waits_is_added_up_and_bounded() {
        let mut waiting = Waiting::default();
        gather(&mut waiting, 1, &"a".into(), tally([1, 2], 2, 0, 2));
        gather(&mut waiting, 1, &"a".into(), tally([2, 3], 1, 1, 1));
        assert_eq!(waiting[&1]["a"], tally([1, 2, 3], 3, 1, 2));
        for channel in 0..MAX_WAITING + 10 {
            gather(&mut waiting, 2, &format!("{channel}").into(), tally([], 1, 0, 0));
        }
        assert_eq!(waiting.values().map(HashMap::len).sum::<usize>(), MAX_WAITING);
        gather(&mut waiting, 1, &"a".into(), tally(10..20_000, 0, 0, 0));
        assert_eq!(waiting[&1]["a"].users.len(), MAX_USERS_WAITING);
    }
}
