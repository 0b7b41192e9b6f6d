//! Channels that do not live on this node, as Redis shows them, each read at most once a second.
//!
//! Callers that ask for the same channel at the same time share one reading. When Redis is away
//! there is no answer: zero would be a lie.

use std::sync::Arc;
use std::time::Duration;

use moka::future::Cache;

use crate::cluster::{Away, Cluster, Occupancy};
use crate::metrics::Metrics;
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
    counts: Cache<Arc<str>, Occupancy>,
    rosters: Cache<Arc<str>, Arc<Snapshot>>,
}

impl Remote {
    /// Nothing read yet.
    pub fn new(cluster: Cluster, metrics: Arc<Metrics>) -> Self {
        let counts = Cache::builder().max_capacity(MAX_COUNTS).time_to_live(FRESH).build();
        let rosters = Cache::builder()
            .max_capacity(MAX_MEMBERS)
            .weigher(|_, roster: &Arc<Snapshot>| u32::try_from(roster.connections).unwrap_or(u32::MAX).max(1))
            .time_to_live(FRESH)
            .build();
        Self { cluster, metrics, counts, rosters }
    }

    /// How many are in `channel`.
    ///
    /// # Errors
    /// [`Away`].
    pub async fn count(&self, channel: &str) -> Result<Occupancy, Away> {
        if self.cluster.is_local() {
            return Ok(Occupancy::default());
        }
        if let Some(kept) = self.counts.get(channel).await {
            return Ok(kept);
        }
        let read = async {
            self.metrics.count_l2_reads.inc();
            let found = self.cluster.occupancies(&[channel]).await?;
            found.first().copied().ok_or(Away)
        };
        self.counts.try_get_with(channel.into(), read).await.map_err(|_| Away)
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
            match self.counts.get(*channel).await {
                Some(kept) => found[index] = kept,
                None => missing.push(index),
            }
        }
        if missing.is_empty() {
            return Ok(found);
        }
        let names: Vec<&str> = missing.iter().map(|&index| channels[index]).collect();
        self.metrics.count_l2_reads.inc_by(names.len() as u64);
        let read = self.cluster.occupancies(&names).await?;
        for (index, occupancy) in missing.into_iter().zip(read) {
            self.counts.insert(channels[index].into(), occupancy).await;
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
        if let Some(kept) = self.rosters.get(channel).await {
            return Ok(kept);
        }
        let read = async { self.cluster.roster(channel).await.map(Arc::new) };
        self.rosters.try_get_with(channel.into(), read).await.map_err(|_| Away)
    }
}
