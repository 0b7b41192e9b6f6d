//! Channels that do not live on this node, as Redis shows them, each read at most once a second: an L1 whose L2
//! are the presence keys themselves.
//!
//! Callers that ask for the same channel at the same time share one reading. When Redis is away
//! there is no answer: zero would be a lie.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cache::{Found, Hearing, Keeps, Loaded, Near};
use crate::cluster::{Away, Cluster, Occupancy};
use crate::metrics::{CacheMetrics, Metrics};
use crate::presence::Snapshot;

/// How old an answer may be.
const FRESH: Duration = Duration::from_secs(1);
/// Channels whose counts are kept.
const MAX_COUNTS: u64 = 50_000;
/// Members that are kept, over all channels.
const MAX_MEMBERS: u64 = 100_000;

/// What other nodes hold. Without Redis that is nothing.
pub struct Remote {
    cluster: Cluster,
    metrics: Arc<Metrics>,
    counts: Near<Occupancy, Away>,
    rosters: Near<Arc<Snapshot>, Away>,
    rosters_read: CacheMetrics,
}

impl Remote {
    /// Nothing read yet.
    pub fn new(cluster: Cluster, metrics: Arc<Metrics>) -> Self {
        let (counts_read, rosters_read) = (metrics.cache("count"), metrics.cache("roster"));
        // Nobody announces what changes on other nodes in channels that this one does not follow.
        let deaf = || Keeps::Copies { hearing: Hearing::default(), longest: FRESH };
        let counts = Near::new(MAX_COUNTS, deaf(), counts_read.l1);
        let weigh = |roster: &Arc<Snapshot>| u32::try_from(roster.connections).unwrap_or(u32::MAX).max(1);
        let rosters = Near::weighed(MAX_MEMBERS, deaf(), rosters_read.l1.clone(), weigh);
        Self { cluster, metrics, counts, rosters, rosters_read }
    }

    /// How many are in `channel`.
    ///
    /// # Errors
    /// [`Away`].
    pub async fn count(&self, channel: &str) -> Result<Occupancy, Away> {
        if self.cluster.is_local() {
            return Ok(Occupancy::default());
        }
        if let Some(Found::Sure(kept)) = self.counts.get(channel).await {
            return Ok(kept);
        }
        let read = || async {
            self.metrics.count_l2_reads.inc();
            let found = self.cluster.occupancies(&[channel]).await?;
            found.first().copied().map(|value| Loaded { value, life: FRESH }).ok_or(Away)
        };
        Box::pin(self.counts.load(channel, read)).await
    }

    /// How many are in each of `channels`, in their order: those not kept are read at once.
    ///
    /// # Errors
    /// [`Away`].
    pub async fn counts(&self, channels: &[&str]) -> Result<Vec<Occupancy>, Away> {
        let mut found = vec![Occupancy::default(); channels.len()];
        if self.cluster.is_local() {
            return Ok(found);
        }
        let mut missing = Vec::new();
        for (index, channel) in channels.iter().enumerate() {
            match self.counts.get(channel).await {
                Some(Found::Sure(kept)) => found[index] = kept,
                _ => missing.push(index),
            }
        }
        if missing.is_empty() {
            return Ok(found);
        }
        let names: Vec<&str> = missing.iter().map(|&index| channels[index]).collect();
        self.metrics.count_l2_reads.inc_by(names.len() as u64);
        let read = self.cluster.occupancies(&names).await?;
        for (index, occupancy) in missing.into_iter().zip(read) {
            self.counts.put(channels[index], occupancy, FRESH, self.counts.mark()).await;
            found[index] = occupancy;
        }
        Ok(found)
    }

    /// Everyone in `channel`.
    ///
    /// # Errors
    /// [`Away`].
    pub async fn roster(&self, channel: &str) -> Result<Arc<Snapshot>, Away> {
        if self.cluster.is_local() {
            return Ok(Arc::default());
        }
        if let Some(Found::Sure(kept)) = self.rosters.get(channel).await {
            return Ok(kept);
        }
        let read = || async {
            let began = Instant::now();
            let roster = self.cluster.roster(channel).await?;
            let l2 = &self.rosters_read.l2;
            l2.seconds.observe(began.elapsed().as_secs_f64());
            if roster.members.is_empty() {
                l2.misses.inc()
            } else {
                l2.hits.inc()
            };
            Ok(Loaded { value: Arc::new(roster), life: FRESH })
        };
        Box::pin(self.rosters.load(channel, read)).await
    }
}
