//! The lease task: keeps this node's lease alive, looks at the others', and cleans up after the dead.
//!
//! What follows from a look is decided in [`super::nodes`]. A node that is dead is cleaned up after by
//! one survivor, whom the distributed lock chooses.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use super::bus::Bus;
use super::statistics::{self, Tally};
use super::{keys, pipeline, reader};
use crate::lock::DistributedLock;
use crate::presence::NodeId;
use crate::redis_pool::RedisError;

/// How often the other nodes' leases are looked at, unless leases are shorter still.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long one survivor may take to clean up before another may try, in seconds.
const CLEAN_UP_SECONDS: u64 = 30;
/// Channels that are cleaned in one pipeline.
const CLEAN_UP_CHUNK: usize = 100;

/// The nodes that this one is cleaning up after.
type Cleaning = Arc<Mutex<HashSet<NodeId>>>;

/// Keeps the lease and watches the others' until the node leaves.
pub async fn run(bus: Arc<Bus>) {
    let mut ticks = interval(renewed_every(&bus));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let cleaning = Cleaning::default();
    loop {
        ticks.tick().await;
        if bus.has_left() {
            return;
        }
        // By the writer, on the connection on which everything own was written: so the lease cannot say
        // of a new or an emptied Redis what was true of the old.
        bus.renew();
        match look(&bus).await {
            Ok(left_behind) => {
                for node in left_behind {
                    clean_up_after(&bus, &cleaning, node);
                }
            }
            Err(_) => bus.rest_judgement(),
        }
    }
}

/// How often leases are renewed.
pub fn renewed_every(bus: &Bus) -> Duration {
    LOOK_EVERY.min(bus.node_ttl / 3)
}

/// Looks at all leases; returns the dead nodes that have left things in Redis.
async fn look(bus: &Bus) -> Result<Vec<NodeId>, RedisError> {
    let mut listed = list(bus).await?;
    let (asked, settled) = (bus.leases_to_ask(&listed), bus.settled_contact());
    let alive = reader::alive(bus, &asked).await?;
    // Who has left since was on the list when it was read, and is not dead.
    if asked.iter().any(|node| !alive.contains(node)) {
        listed = list(bus).await?;
    }
    keep_lists(bus, listed.difference(&alive)).await?;
    Ok(bus.judge(&listed, &asked, alive, settled))
}

/// The nodes that have a lease, or have died and not been cleaned up after.
async fn list(bus: &Bus) -> Result<BTreeSet<NodeId>, RedisError> {
    let mut members = redis::cmd("SMEMBERS");
    members.arg(keys::NODES);
    let listed: Vec<String> = bus.pool.query(&members).await?;
    Ok(listed.iter().filter_map(|node| node.parse().ok()).collect())
}

/// Keeps the lists of the channels of dead nodes for whoever cleans up, who may not judge yet: a user who is
/// on another node too keeps a dead node's fields alive, and they must be found.
async fn keep_lists(bus: &Bus, dead: impl Iterator<Item = &NodeId>) -> Result<(), RedisError> {
    let mut pipeline = redis::pipe();
    for node in dead {
        pipeline.expire(keys::channels(*node), bus.presence_ttl.as_secs() as i64).ignore();
    }
    if pipeline.is_empty() { Ok(()) } else { bus.pool.pipeline(&pipeline).await }
}

/// Gives the lease back at the end of a node's life and takes the node out of the list.
async fn give_back(bus: &Bus) -> Result<(), RedisError> {
    let mut pipeline = redis::pipe();
    pipeline.del(keys::lease(bus.node)).ignore();
    pipeline.del(keys::channels(bus.node)).ignore();
    pipeline.srem(keys::NODES, bus.node.to_string()).ignore();
    bus.pool.pipeline::<()>(&pipeline).await?;
    // In a cluster the commands of a pipeline may overtake each other: who hears this must find no lease.
    bus.pool.query(redis::cmd("PUBLISH").arg(keys::NODES_TOPIC).arg(bus.node.to_string())).await
}

/// In a task of its own, one for each node: however much there is to clean, this node's own lease
/// must be renewed meanwhile. If it fails, the node is still listed and somebody tries again.
fn clean_up_after(bus: &Arc<Bus>, cleaning: &Cleaning, node: NodeId) {
    if !set_of(cleaning).insert(node) {
        return;
    }
    let (bus, cleaning) = (Arc::clone(bus), Arc::clone(cleaning));
    tokio::task::spawn_local(async move {
        match clean_up_alone(&bus, node).await {
            Ok(true) => tracing::info!(%node, "cleaned up after a node that is gone"),
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%node, %error, "could not clean up after a node; will try again")
            }
        }
        set_of(&cleaning).remove(&node);
    });
}

/// A panic elsewhere leaves a set whole: every change to it is one call.
fn set_of(nodes: &Mutex<HashSet<NodeId>>) -> MutexGuard<'_, HashSet<NodeId>> {
    nodes.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Cleans up if no other survivor does. False if one does, or the node came back.
async fn clean_up_alone(bus: &Bus, node: NodeId) -> Result<bool, RedisError> {
    let name = format!("presence-clean-up-{node}");
    let mut lock = DistributedLock::new(bus.pool.clone(), &name, CLEAN_UP_SECONDS);
    if !lock.try_acquire().await.unwrap_or(false) {
        return Ok(false);
    }
    // Another survivor that has just started, and so judges nobody yet, learns it now.
    let told = redis::cmd("PUBLISH").arg(keys::NODES_TOPIC).arg(node.to_string()).to_owned();
    let cleaned = match bus.pool.query::<()>(&told).await {
        Ok(()) => clean_up(bus, node, &mut lock).await,
        Err(error) => Err(error),
    };
    // Left to its time if Redis is away now.
    let _ = lock.release().await;
    cleaned
}

/// Takes everything of `node` out of Redis, some channels at a time; false if it lives. First its versions
/// are read, then its lease is looked for: should it come back after that, it writes newer versions, and
/// those are left alone. What a user's index still says is checked by readers.
async fn clean_up(bus: &Bus, node: NodeId, lock: &mut DistributedLock) -> Result<bool, RedisError> {
    let mut members = redis::cmd("SMEMBERS");
    members.arg(keys::channels(node));
    let channels: Vec<String> = bus.pool.query(&members).await?;
    for some in channels.chunks(CLEAN_UP_CHUNK) {
        let mut versions = redis::pipe();
        for channel in some {
            versions.hget(bus.keys.versions(channel), node.to_string());
        }
        let versions: Vec<Option<u64>> = bus.pool.pipeline(&versions).await?;
        if !reader::alive(bus, &[node]).await?.is_empty() || !lock.renew().await.unwrap_or(false) {
            return Ok(false);
        }
        let mut clear = redis::pipe();
        for (channel, version) in some.iter().zip(versions) {
            clear.invoke_script(&pipeline::clearing(bus, node, channel, version.unwrap_or(0)));
        }
        let removed: Vec<Vec<(String, String)>> = match bus.pool.pipeline(&clear).await {
            Err(error) if bus.keys.is_tagged() => {
                // A slot may be moving; what is gone for good must not stand in the way of the next attempt.
                for channel in some {
                    reader::sweep_all(bus, channel).await?;
                }
                return Err(error);
            }
            removed => removed?,
        };
        let mut index = redis::pipe();
        for (channel, removed) in some.iter().zip(removed) {
            let left = Tally { leaves: removed.len() as u64, ..Tally::default() };
            if !left.is_empty() {
                statistics::gather(&mut bus.tallies(), statistics::today(), &channel.as_str().into(), left);
            }
            for (user, field) in removed {
                index.zrem(bus.keys.places(channel), keys::place(&field, &user)).ignore();
                index.hdel(keys::connections(&user), field).ignore();
                super::note_last_seen(&mut index, channel, &user, bus.last_seen_ttl);
            }
        }
        if !index.is_empty() {
            bus.pool.pipeline::<()>(&index).await?;
        }
    }
    if !reader::alive(bus, &[node]).await?.is_empty() {
        return Ok(false);
    }
    let mut pipeline = redis::pipe();
    pipeline.del(keys::channels(node)).ignore();
    pipeline.srem(keys::NODES, node.to_string()).ignore();
    bus.pool.pipeline::<()>(&pipeline).await?;
    Ok(true)
}

/// Writes out what is queued, takes this node out of every channel and gives the lease back.
pub async fn leave(bus: &Bus) {
    bus.leave();
    while !bus.is_settled() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    if give_back(bus).await.is_err() {
        tracing::warn!("Redis is away: the others will notice by the lease that this node is gone");
    }
}
