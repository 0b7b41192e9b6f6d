//! Reading what stands in Redis: for channels that catch up, and for REST about channels elsewhere.
//!
//! None of this is on the path of a join. Every call is bounded in time by the pool.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use redis::Value;

use super::bus::Bus;
use super::contact::Write;
use super::pipeline::is_settled_in;
use super::reading::{Found, Unchecked};
use super::{Away, Occupancy, UserPresence, UserStatus, activity, keys, scripts, wire};
use crate::presence::{NodeId, Part, Reading, Roster, Snapshot};
use crate::redis_pool::RedisError;

impl From<RedisError> for Away {
    fn from(_: RedisError) -> Self {
        Self
    }
}

/// Reads `channel`, and which of the nodes in `asked` had written everything before and after.
pub async fn read(bus: &Bus, channel: &str, asked: HashMap<NodeId, u64>) -> Result<Reading, RedisError> {
    let nodes: Vec<NodeId> = asked.keys().copied().collect();
    let mut leases = redis::cmd("MGET");
    // A name that is never there, so that the question is whole also when nobody is asked for.
    leases.arg("presence:node:none");
    nodes.iter().for_each(|node| {
        leases.arg(keys::lease(*node));
    });
    let (before, found, after) = between(bus, &leases, &read_command(bus, channel)).await?;
    let rows = Rows::parse(&found);
    sweep(bus, channel, &rows.without_seats).await?;
    let is_settled = |leases: &[Option<String>], at: usize| {
        leases.get(at + 1).is_some_and(|lease| is_settled_in(lease.as_deref(), &rows.history))
    };
    let settled = nodes.iter().enumerate();
    let settled = settled.filter(|(at, _)| is_settled(&before, *at) && is_settled(&after, *at));
    let settled = settled.map(|(_, node)| *node).collect();
    let found = Found { settled, parts: rows.parts };
    let unchecked = Unchecked::new(bus.node, asked, found, |node| bus.is_buried(node));
    let alive = alive(bus, &unchecked.doubtful()).await?;
    let (reading, dead) = unchecked.check(&alive);
    for (node, version) in dead {
        bus.write(Write::Clear { channel: channel.into(), node, version });
    }
    bus.note_nodes(reading.parts.keys());
    Ok(reading)
}

/// Those of `nodes` that hold a lease.
pub async fn alive(bus: &Bus, nodes: &[NodeId]) -> Result<BTreeSet<NodeId>, RedisError> {
    if nodes.is_empty() {
        return Ok(BTreeSet::new());
    }
    let mut leases = redis::cmd("MGET");
    nodes.iter().for_each(|node| {
        leases.arg(keys::lease(*node));
    });
    let leases: Vec<Option<String>> = bus.pool.query(&leases).await?;
    Ok(nodes.iter().zip(leases).filter(|(_, lease)| lease.is_some()).map(|(node, _)| *node).collect())
}

/// How many are in each of `channels`.
pub async fn occupancies(bus: &Bus, channels: &[&str]) -> Result<Vec<Occupancy>, Away> {
    let mut found = Vec::with_capacity(channels.len());
    for chunk in channels.chunks(100) {
        let mut pipeline = redis::pipe();
        for channel in chunk {
            let mut count = redis::cmd("EVAL");
            count.arg(scripts::COUNT).arg(1).arg(bus.keys.users(channel)).arg(bus.keys.user_prefix(channel));
            pipeline.add_command(count);
        }
        let counts: Vec<(usize, usize)> = bus.pool.pipeline(&pipeline).await?;
        found.extend(counts.into_iter().map(|(online, connections)| Occupancy { online, connections }));
    }
    Ok(found)
}

/// Everyone in `channel`.
pub async fn roster(bus: &Bus, channel: &str) -> Result<Snapshot, Away> {
    let found: Value = bus.pool.query(&read_command(bus, channel)).await?;
    let parts = Rows::parse(&found).parts;
    let version = parts.values().map(|part| part.version).max().unwrap_or(0);
    // A roster of nobody's own, into which every node's part is merged.
    let mut roster = Roster::new(NodeId(uuid::Uuid::nil()));
    let _ = roster.merge(Reading { parts, ..Reading::default() });
    Ok(Snapshot { node: None, ..roster.snapshot(version) })
}

/// The names of all channels in which some node has somebody, or had a moment ago.
pub async fn channels(bus: &Bus) -> Result<BTreeSet<String>, Away> {
    let mut members = redis::cmd("SMEMBERS");
    members.arg(keys::NODES);
    let nodes: Vec<String> = bus.pool.query(&members).await?;
    let nodes: Vec<NodeId> = nodes.iter().filter_map(|node| node.parse().ok()).collect();
    if nodes.is_empty() {
        return Ok(BTreeSet::new());
    }
    let mut members = redis::pipe();
    nodes.iter().for_each(|node| {
        members.smembers(keys::channels(*node));
    });
    let written: Vec<BTreeSet<String>> = bus.pool.pipeline(&members).await?;
    Ok(written.into_iter().flatten().collect())
}

/// Where `user` is. The index is a hint: each place it names is looked at.
pub async fn user(bus: &Bus, user: &str) -> Result<UserPresence, Away> {
    let mut pipeline = redis::pipe();
    pipeline.hgetall(keys::connections(user)).get(keys::last_seen(user));
    let (places, last_seen): (Vec<(String, String)>, Option<u64>) = bus.pool.pipeline(&pipeline).await?;
    let mut found: HashMap<String, usize> = HashMap::new();
    for chunk in places.chunks(500) {
        let mut pipeline = redis::pipe();
        for (field, channel) in chunk {
            pipeline.hexists(bus.keys.user(channel, user), field);
        }
        let there: Vec<bool> = bus.pool.pipeline(&pipeline).await?;
        for ((_, channel), _) in chunk.iter().zip(there).filter(|(_, there)| *there) {
            *found.entry(channel.clone()).or_default() += 1;
        }
    }
    let mut channels: Vec<(String, usize)> = found.into_iter().collect();
    channels.sort();
    Ok(UserPresence { channels, last_seen })
}

/// What is known of each of `users`: all in two round trips for each few hundred.
pub async fn statuses(bus: &Bus, users: &[&str]) -> Result<Vec<UserStatus>, Away> {
    type Known = (Vec<(String, String)>, Vec<(String, u64)>, Option<u64>, Option<u64>);
    let now = super::wall_clock();
    let mut statuses = Vec::with_capacity(users.len());
    for some in users.chunks(250) {
        let mut pipeline = redis::pipe();
        for user in some {
            pipeline.hgetall(keys::connections(user)).hgetall(keys::active(user));
            pipeline.get(keys::last_seen(user)).get(keys::first_seen(user));
        }
        let known: Vec<redis::Value> = bus.pool.pipeline(&pipeline).await?;
        let known: Vec<Known> = known
            .chunks_exact(4)
            .map(|four| {
                let read = redis::from_redis_value_ref::<Vec<(String, String)>>(&four[0]).unwrap_or_default();
                let active = redis::from_redis_value_ref::<Vec<(String, u64)>>(&four[1]).unwrap_or_default();
                let time = |value| redis::from_redis_value_ref::<Option<u64>>(value).ok().flatten();
                (read, active, time(&four[2]), time(&four[3]))
            })
            .collect();
        // The index is a hint: each place it names is looked at.
        let mut pipeline = redis::pipe();
        let places =
            || some.iter().zip(&known).flat_map(|(user, known)| known.0.iter().map(move |at| (user, at)));
        for (user, (field, channel)) in places() {
            pipeline.hexists(bus.keys.user(channel, user), field);
        }
        let there: Vec<bool> =
            if pipeline.is_empty() { Vec::new() } else { bus.pool.pipeline(&pipeline).await? };
        let mut there = there.into_iter();
        for (places, active, last_seen, first_seen) in &known {
            // All of them, so that the next user's begin where they should.
            let found = places.iter().filter(|_| there.next().unwrap_or(false)).count();
            let active = activity::is_active(active.iter().map(|(_, until)| *until), now);
            let (last_seen, first_seen) = (*last_seen, *first_seen);
            statuses.push(UserStatus { online: found > 0, active, last_seen, first_seen });
        }
    }
    Ok(statuses)
}

fn read_command(bus: &Bus, channel: &str) -> redis::Cmd {
    let mut read = redis::cmd("EVAL");
    read.arg(scripts::READ).arg(2).arg(bus.keys.users(channel)).arg(bus.keys.versions(channel));
    read.arg(bus.keys.user_prefix(channel)).arg(if bus.keys.is_tagged() { "" } else { "1" });
    read
}

/// What a question about leases was answered before and after a command, and the command. In a cluster the
/// keys are on several servers: there the three follow each other; elsewhere they are one transaction.
async fn between(
    bus: &Bus,
    leases: &redis::Cmd,
    command: &redis::Cmd,
) -> Result<(Vec<Option<String>>, Value, Vec<Option<String>>), RedisError> {
    if bus.keys.is_tagged() {
        let before = bus.pool.query(leases).await?;
        let found = bus.pool.query(command).await?;
        return Ok((before, found, bus.pool.query(leases).await?));
    }
    let mut pipeline = redis::pipe();
    pipeline.atomic();
    pipeline.add_command(leases.clone()).add_command(command.clone()).add_command(leases.clone());
    bus.pool.pipeline(&pipeline).await
}

/// In a cluster a user without a hash may be one whose hash moves to another server just now, so that a
/// reading which lacks it must not be believed: it fails, and is made again. If the hash is gone for good, so
/// is the user by then.
async fn sweep(bus: &Bus, channel: &str, users: &[String]) -> Result<(), RedisError> {
    if users.is_empty() {
        return Ok(());
    }
    drop_without_hash(bus, channel, users).await?;
    Err(RedisError::Away)
}

/// Takes every user out of `channel` whose hash is gone; fails while that cannot be told, because the slot is
/// moving.
pub async fn sweep_all(bus: &Bus, channel: &str) -> Result<(), RedisError> {
    let users: Vec<String> = bus.pool.query(&redis::Cmd::smembers(bus.keys.users(channel))).await?;
    for some in users.chunks(500) {
        drop_without_hash(bus, channel, some).await?;
    }
    Ok(())
}

async fn drop_without_hash(bus: &Bus, channel: &str, users: &[String]) -> Result<(), RedisError> {
    let mut pipeline = redis::pipe();
    for user in users {
        pipeline.cmd("EVAL").arg(scripts::SWEEP).arg(2);
        pipeline.arg(bus.keys.users(channel)).arg(bus.keys.user(channel, user)).arg(user);
    }
    bus.pool.pipeline::<Vec<u64>>(&pipeline).await?;
    Ok(())
}

/// What the script returned. Values that are not ours are passed over.
#[derive(Default)]
struct Rows {
    /// The replication history of the server that was read.
    history: String,
    parts: HashMap<NodeId, Part>,
    /// Users who are listed and have no hash.
    without_seats: Vec<String>,
}

impl Rows {
    fn parse(found: &Value) -> Self {
        let mut all = Self::default();
        let Ok(rows) = redis::from_redis_value_ref::<Vec<Vec<String>>>(found) else { return all };
        let mut rows = rows.into_iter();
        all.history = rows.next().and_then(|row| row.into_iter().next()).unwrap_or_default();
        for pair in rows.next().unwrap_or_default().chunks_exact(2) {
            if let (Ok(node), Ok(version)) = (pair[0].parse(), pair[1].parse()) {
                all.parts.entry(node).or_default().version = version;
            }
        }
        for row in rows {
            let Some((user, seats)) = row.split_first() else { continue };
            if seats.is_empty() {
                all.without_seats.push(user.clone());
                continue;
            }
            let user: Arc<str> = user.as_str().into();
            for pair in seats.chunks_exact(2) {
                match wire::parse_value(&user, &pair[0], &pair[1]) {
                    // A seat without a version is one of a node that is writing just now.
                    Ok((node, seat, entry)) => {
                        if let Some(part) = all.parts.get_mut(&node) {
                            part.seats.insert(seat, Arc::new(entry));
                        }
                    }
                    Err(error) => tracing::debug!(%error, "passed over a value"),
                }
            }
        }
        all
    }
}
