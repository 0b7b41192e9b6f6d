//! Why a user is online, as Redis shows it: each connection, when it was refreshed, and what is left of
//! its node's lease. For operators; nothing here is on the path of a join.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::bus::Bus;
use super::{Away, Cluster, keys, wire};
use crate::presence::{Entry, NodeId};

/// Places looked at in one pipeline.
const CHUNK: usize = 500;

/// What Redis knows of a user.
#[derive(Clone, Debug, Default)]
pub struct Explained {
    pub places: Vec<Place>,
    /// What is left of the leases of all nodes concerned; none where there is no lease.
    pub leases: HashMap<NodeId, Option<Duration>>,
}

/// One connection of the user, as it stands in Redis.
#[derive(Clone, Debug)]
pub struct Place {
    pub channel: Arc<str>,
    pub node: NodeId,
    pub entry: Entry,
    /// How long ago a heartbeat refreshed it.
    pub beat_ago: Duration,
}

impl Cluster {
    /// What Redis knows of `user`, and of the leases of `nodes`. Without a Redis nothing.
    ///
    /// # Errors
    /// [`Away`].
    pub async fn explain(&self, user: &str, nodes: BTreeSet<NodeId>) -> Result<Explained, Away> {
        match self {
            Self::Local(_) => Ok(Explained::default()),
            Self::Redis(redis) => explain(&redis.bus, user, nodes).await,
        }
    }

    /// How long a lease lives, and how long after its renewal it must have been renewed again; none
    /// without a Redis.
    pub fn lease_life(&self) -> Option<(Duration, Duration)> {
        match self {
            Self::Local(_) => None,
            Self::Redis(redis) => Some((redis.bus.node_ttl, super::lease::renewed_every(&redis.bus))),
        }
    }
}

async fn explain(bus: &Bus, user: &str, mut nodes: BTreeSet<NodeId>) -> Result<Explained, Away> {
    let mut index = redis::cmd("HGETALL");
    index.arg(keys::connections(user));
    let hints: Vec<(String, String)> = bus.pool.query(&index).await?;
    let name: Arc<str> = user.into();
    let mut places = Vec::new();
    for chunk in hints.chunks(CHUNK) {
        let mut pipeline = redis::pipe();
        for (field, channel) in chunk {
            let hash = bus.keys.user(channel, user);
            pipeline.hget(&hash, field).pttl(&hash);
        }
        let found: Vec<redis::Value> = bus.pool.pipeline(&pipeline).await?;
        for ((field, channel), pair) in chunk.iter().zip(found.chunks_exact(2)) {
            // The index is a hint: what it names may be gone.
            let Ok((Some(text), left)) = read_pair(pair) else { continue };
            match wire::parse_value(&name, field, &text) {
                Ok((node, _, entry)) => {
                    nodes.insert(node);
                    let left = Duration::from_millis(u64::try_from(left).unwrap_or(0));
                    let beat_ago = bus.presence_ttl.saturating_sub(left);
                    places.push(Place { channel: channel.as_str().into(), node, entry, beat_ago });
                }
                Err(error) => tracing::debug!(%error, "passed over a value"),
            }
        }
    }
    Ok(Explained { places, leases: leases(bus, nodes).await? })
}

fn read_pair(pair: &[redis::Value]) -> Result<(Option<String>, i64), redis::ParsingError> {
    Ok((redis::from_redis_value_ref(&pair[0])?, redis::from_redis_value_ref(&pair[1])?))
}

/// What is left of each lease.
async fn leases(bus: &Bus, nodes: BTreeSet<NodeId>) -> Result<HashMap<NodeId, Option<Duration>>, Away> {
    let mut pipeline = redis::pipe();
    nodes.iter().for_each(|node| {
        pipeline.pttl(keys::lease(*node));
    });
    if pipeline.is_empty() {
        return Ok(HashMap::new());
    }
    let left: Vec<i64> = bus.pool.pipeline(&pipeline).await?;
    // Negative: there is no such key.
    Ok(nodes
        .into_iter()
        .zip(left.into_iter().map(|left| u64::try_from(left).ok().map(Duration::from_millis)))
        .collect())
}
