//! Leases: how nodes know of each other that they live.
//!
//! Each node keeps a key of its own alive. One whose key is gone is dead: every survivor says goodbye
//! for it to its own viewers, and one of them, chosen by the distributed lock, cleans up in Redis.
//!
//! Nobody is judged by a Redis that was away or has been emptied: after either, judgement rests for
//! the life of a lease, so that every node that lives has had time to say so. A node that finds its
//! own lease gone writes everything of its own again.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval};

use super::bus::{Bus, Write};
use super::{Told, keys, reader, writer};
use crate::lock::DistributedLock;
use crate::presence::NodeId;
use crate::redis_pool::RedisError;

/// How often the other nodes' leases are looked at, unless leases are shorter still.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Everything own stands in Redis: what of this node is not there does not exist.
pub const SETTLED: &str = "settled";
/// This node is still writing.
const WRITING: &str = "writing";
/// How long one survivor may take to clean up before another may try, in seconds.
const CLEAN_UP_SECONDS: u64 = 30;
/// Channels that are cleaned in one pipeline.
const CLEAN_UP_CHUNK: usize = 100;

/// Keeps the lease and watches the others' for ever.
pub async fn run(bus: Arc<Bus>) {
    let mut ticks = interval(LOOK_EVERY.min(bus.node_ttl / 3));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut keeper = Keeper {
        judge_from: Instant::now() + bus.node_ttl,
        bus,
        held: None,
        seen: HashSet::new(),
        cleaning: Arc::default(),
    };
    loop {
        ticks.tick().await;
        let bus = Arc::clone(&keeper.bus);
        let given_back = bus.lease_given_back.lock().await;
        if *given_back {
            return;
        }
        if keeper.look().await.is_err() {
            keeper.held = None;
            keeper.rest_judgement();
        }
    }
}

/// What the lease says now.
fn state(bus: &Bus) -> &'static str {
    if bus.is_settled() { SETTLED } else { WRITING }
}

/// Sets the lease, and keeps what must live as long.
pub fn renewal(bus: &Bus) -> redis::Pipeline {
    let (node, presence_ttl) = (bus.node, bus.presence_ttl.as_secs() as i64);
    let mut pipeline = redis::pipe();
    pipeline.pset_ex(keys::lease(node), state(bus), bus.node_ttl.as_millis() as u64).ignore();
    pipeline.sadd(keys::NODES, node.to_string()).ignore();
    pipeline.expire(keys::NODES, presence_ttl).ignore();
    pipeline.expire(keys::channels(node), presence_ttl).ignore();
    pipeline
}

/// Gives the lease back at the end of a node's life and takes the node out of the list.
async fn give_back(bus: &Bus) -> Result<(), RedisError> {
    // Not while it is being renewed, and never again after.
    *bus.lease_given_back.lock().await = true;
    let mut pipeline = redis::pipe();
    pipeline.del(keys::lease(bus.node)).ignore();
    pipeline.del(keys::channels(bus.node)).ignore();
    pipeline.srem(keys::NODES, bus.node.to_string()).ignore();
    pipeline.publish(keys::NODES_TOPIC, bus.node.to_string()).ignore();
    bus.pool.pipeline::<()>(&pipeline).await
}

struct Keeper {
    bus: Arc<Bus>,
    /// What the lease was last set to, and when.
    held: Option<(&'static str, Instant)>,
    judge_from: Instant,
    /// The nodes that were seen alive. Another survivor may clean up after one, and take it off the
    /// list, before this node has looked.
    seen: HashSet<NodeId>,
    /// The nodes that this one is cleaning up after.
    cleaning: Arc<Mutex<HashSet<NodeId>>>,
}

impl Keeper {
    fn rest_judgement(&mut self) {
        self.judge_from = Instant::now() + self.bus.node_ttl;
    }

    async fn look(&mut self) -> Result<(), RedisError> {
        let mut pipeline = redis::pipe();
        pipeline.get(keys::lease(self.bus.node)).smembers(keys::NODES);
        let (own, listed): (Option<String>, Vec<String>) = self.bus.pool.pipeline(&pipeline).await?;
        if own.is_none() && self.held.is_some() {
            tracing::warn!("this node's lease is gone from Redis: writing everything again");
            self.rest_judgement();
            self.held = None;
            self.bus.lost.notify_one();
        }
        self.renew().await?;
        let listed: HashSet<NodeId> = listed.iter().filter_map(|node| node.parse().ok()).collect();
        let others: Vec<NodeId> =
            listed.union(&self.seen).filter(|node| **node != self.bus.node).copied().collect();
        let alive = reader::alive(&self.bus, &others).await?;
        self.bus.metrics.nodes.set(alive.len() as i64 + 1);
        self.welcome_back(&alive);
        if Instant::now() >= self.judge_from {
            for node in others.into_iter().filter(|node| !alive.contains(node)) {
                self.say_goodbye(node);
                if listed.contains(&node) {
                    self.clean_up_after(node);
                }
            }
        }
        self.seen.extend(alive);
        Ok(())
    }

    /// Sets the lease when a third of its life has passed, or when it says something else.
    async fn renew(&mut self) -> Result<(), RedisError> {
        let value = state(&self.bus);
        let fresh = |(held, at): &(&str, Instant)| *held == value && at.elapsed() < self.bus.node_ttl / 3;
        if self.held.as_ref().is_some_and(fresh) {
            return Ok(());
        }
        self.bus.pool.pipeline::<()>(&renewal(&self.bus)).await?;
        self.held = Some((value, Instant::now()));
        Ok(())
    }

    /// A node that was thought dead and lives: what it said meanwhile was not believed, so read it.
    fn welcome_back(&mut self, alive: &HashSet<NodeId>) {
        let back: Vec<&NodeId> = alive.iter().filter(|node| self.bus.unbury(**node)).collect();
        if !back.is_empty() {
            tracing::info!(nodes = ?back, "nodes are back");
            self.bus.tell_all(|| Told::ReadAgain);
        }
    }

    fn say_goodbye(&mut self, node: NodeId) {
        self.seen.remove(&node);
        if self.bus.bury(node) {
            tracing::warn!(%node, "a node is gone; saying goodbye for its members");
            self.bus.metrics.nodes_lost.inc();
            self.bus.tell_all(|| Told::NodeDown(node));
        }
    }

    /// In a task of its own, one for each node: however much there is to clean, this node's own lease
    /// must be renewed meanwhile. If it fails, the node is still listed and somebody tries again.
    fn clean_up_after(&self, node: NodeId) {
        if !set_of(&self.cleaning).insert(node) {
            return;
        }
        let (bus, cleaning) = (Arc::clone(&self.bus), Arc::clone(&self.cleaning));
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
    let cleaned = clean_up(bus, node, &mut lock).await;
    // Left to its time if Redis is away now.
    let _ = lock.release().await;
    cleaned
}

/// Takes everything of `node` out of Redis, some channels at a time. What a user's index still says is
/// checked by readers.
async fn clean_up(bus: &Bus, node: NodeId, lock: &mut DistributedLock) -> Result<bool, RedisError> {
    let mut members = redis::cmd("SMEMBERS");
    members.arg(keys::channels(node));
    let channels: Vec<String> = bus.pool.query(&members).await?;
    for some in channels.chunks(CLEAN_UP_CHUNK) {
        // Trying again while it is held makes it last; and a node that is back must be left alone.
        if !bus.is_buried(node) || !lock.try_acquire().await.unwrap_or(false) {
            return Ok(false);
        }
        let mut clear = redis::pipe();
        for channel in some {
            clear.invoke_script(&writer::clearing(bus, node, channel));
        }
        let removed: Vec<Vec<(String, String)>> = bus.pool.pipeline(&clear).await?;
        let mut index = redis::pipe();
        for (user, field) in removed.into_iter().flatten() {
            index.hdel(keys::connections(&user), field).ignore();
            super::note_last_seen(&mut index, &user, bus.last_seen_ttl);
        }
        if !index.is_empty() {
            bus.pool.pipeline::<()>(&index).await?;
        }
    }
    let mut pipeline = redis::pipe();
    pipeline.del(keys::channels(node)).ignore();
    pipeline.srem(keys::NODES, node.to_string()).ignore();
    bus.pool.pipeline::<()>(&pipeline).await?;
    Ok(true)
}

/// Writes out what is queued, takes this node out of every channel and gives the lease back.
pub async fn leave(bus: &Bus) {
    let open: Vec<Arc<str>> = bus.listeners().by_topic.values().map(|l| Arc::clone(&l.name)).collect();
    for channel in open {
        bus.write_when_possible(Write::Close { channel }).await;
    }
    bus.stop_writing();
    let contact = bus.begin_contact();
    bus.write_when_possible(Write::Barrier { contact }).await;
    while !bus.is_settled() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    if give_back(bus).await.is_err() {
        tracing::warn!("Redis is away: the others will notice by the lease that this node is gone");
    }
}
