//! The cluster of a single node without Redis: nobody to tell, and only the last-seen times to keep.

use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;

use super::wall_clock;
use crate::presence::Batch;

/// Users whose last-seen time is kept; over it, those looked at least go first.
const MAX_USERS: u64 = 100_000;

/// What a single node keeps in place of Redis. Clones share it.
#[derive(Clone)]
pub struct LocalCluster {
    last_seen: Cache<Arc<str>, u64>,
}

impl LocalCluster {
    /// Keeps last-seen times for `last_seen_ttl`.
    pub fn new(last_seen_ttl: Duration) -> Self {
        let last_seen = Cache::builder().max_capacity(MAX_USERS).time_to_live(last_seen_ttl).build();
        Self { last_seen }
    }

    pub(super) fn note(&self, batch: &Batch) {
        for op in batch.ops.iter().filter(|op| op.entry.is_none()) {
            self.last_seen.insert(Arc::clone(&op.user), wall_clock());
        }
    }

    pub(super) fn last_seen(&self, user: &str) -> Option<u64> {
        self.last_seen.get(user)
    }
}
