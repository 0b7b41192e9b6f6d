//! The cluster of a single node without Redis: nobody to tell, and what Redis would know of users and channels to
//! keep: when users were seen, who is active, statistics, places.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use moka::sync::Cache;

use super::places::{Grid, Location};
use super::statistics::{self, Kept, Statistics, Tally};
use super::{Act, UserStatus, activity, wall_clock};
use crate::dialects::has_users;
use crate::presence::Batch;

/// Users whose last-seen time is kept; over it, those looked at least go first.
const MAX_USERS: u64 = 100_000;
/// Channels whose statistics are kept, and for how long after the last change.
const MAX_CHANNELS: u64 = 10_000;
const STATISTICS_FOR: Duration = Duration::from_secs(8 * 86_400);

/// By connection, until when somebody is active by it.
type Times = HashMap<u64, u64>;

/// What a single node keeps in place of Redis. Clones share it.
#[derive(Clone)]
pub struct LocalCluster {
    last_seen: Cache<Arc<str>, u64>,
    first_seen: Cache<Arc<str>, u64>,
    /// By user, the connections by which they are active, and until when.
    active: Arc<Mutex<HashMap<Arc<str>, Times>>>,
    statistics: Cache<Arc<str>, Arc<Mutex<Kept>>>,
    /// By channel.
    places: Arc<Mutex<HashMap<Arc<str>, Grid>>>,
}

impl LocalCluster {
    /// Keeps last-seen times for `last_seen_ttl`.
    pub fn new(last_seen_ttl: Duration) -> Self {
        let seen = || Cache::builder().max_capacity(MAX_USERS).time_to_live(last_seen_ttl).build();
        let statistics = Cache::builder().max_capacity(MAX_CHANNELS).time_to_idle(STATISTICS_FOR).build();
        let (active, places) = (Arc::default(), Arc::default());
        Self { last_seen: seen(), first_seen: seen(), active, statistics, places }
    }

    pub(super) fn note(&self, channel: &Arc<str>, batch: &Batch) {
        for op in &batch.ops {
            let location = op.entry.as_ref().and_then(|entry| Location::in_meta(&entry.meta));
            let mut places = lock(&self.places);
            if location.is_some() || places.contains_key(channel) {
                let grid = places.entry(Arc::clone(channel)).or_default();
                grid.put(op.seat, &op.user, location);
                if grid.is_empty() {
                    places.remove(channel);
                }
            }
            drop(places);
            if !has_users(channel) {
                continue;
            }
            match &op.entry {
                Some(entry) if entry.waiting.is_none() => {
                    self.first_seen.get_with_by_ref(&op.user, || entry.since);
                }
                Some(_) => {}
                None => {
                    self.last_seen.insert(Arc::clone(&op.user), wall_clock());
                    // Kept for as long.
                    if let Some(first) = self.first_seen.get(&op.user) {
                        self.first_seen.insert(Arc::clone(&op.user), first);
                    }
                }
            }
        }
    }

    pub(super) fn last_seen(&self, user: &str) -> Option<u64> {
        self.last_seen.get(user)
    }

    pub(super) fn status(&self, user: &str) -> UserStatus {
        let now = wall_clock();
        let active = lock(&self.active);
        let times = active.get(user).into_iter().flat_map(|times| times.values().copied());
        let active = activity::is_active(times, now);
        let (last_seen, first_seen) = (self.last_seen.get(user), self.first_seen.get(user));
        UserStatus { online: false, active, last_seen, first_seen }
    }

    pub(super) fn note_active(&self, acts: Vec<Act>) {
        let mut active = lock(&self.active);
        for Act { user, connection, until } in acts {
            match until {
                Some(until) => {
                    active.entry(user).or_default().insert(connection, until);
                }
                None => {
                    if let Some(times) = active.get_mut(&user) {
                        times.remove(&connection);
                        if times.is_empty() {
                            active.remove(&user);
                        }
                    }
                }
            }
        }
    }

    pub(super) fn count(&self, day: u64, channel: &Arc<str>, tally: &Tally) {
        let kept = self.statistics.get_with_by_ref(channel, Arc::default);
        lock(&kept).add(day, tally);
    }

    pub(super) fn statistics(&self, channel: &str) -> Statistics {
        self.statistics.get(channel).map(|kept| lock(&kept).read(statistics::today())).unwrap_or_default()
    }

    /// The seats within `radius` metres of `centre`, the nearest first.
    pub(super) fn nearby(&self, channel: &str, centre: Location, radius: f64) -> Vec<(u64, Arc<str>)> {
        let places = lock(&self.places);
        let found = places.get(channel).map(|grid| grid.within(centre, radius)).unwrap_or_default();
        found.into_iter().map(|(_, seat, user)| (seat, user)).collect()
    }
}

/// A panic elsewhere leaves what is whole: every change to it is one call.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
