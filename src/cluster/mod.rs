//! The cluster: what the nodes that share a Redis tell each other, and what they keep there.
//!
//! The only module that knows presence keys and Pub/Sub. What is decided here is decided in pure parts:
//! [`contact`] (what is owed to Redis), [`nodes`] (who lives), [`topics`] (what must be heard) and
//! [`reading`] (what to believe of what was read).
//! Around them, [`writer`] sends what [`pipeline`] encodes, [`lease`] looks at the leases, [`subscriber`]
//! hears and [`reader`] reads; the [`bus`] joins them with the channels. A node's own part of a channel is written and
//! announced in one step, and versioned: whoever subscribes first and reads then misses nothing, and
//! whoever missed something knows it and reads again.
//!
//! While Redis is away the node goes on with what it knows: nobody is shown a leave or a join, and
//! afterwards everything own is written again and everything else read again. Without a Redis the
//! same code runs with [`Cluster::Local`], whose other nodes never say anything.

mod activity;
mod bus;
pub(crate) mod contact;
mod explain;
pub(crate) mod keys;
mod lease;
mod link;
mod local;
mod nearby;
pub(crate) mod nodes;
mod pipeline;
mod places;
mod reader;
pub(crate) mod reading;
mod relay;
mod scripts;
mod statistics;
mod subscriber;
pub(crate) mod topics;
pub(crate) mod wire;
mod writer;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use actix::{ArbiterHandle, Message, Recipient};
use tokio::sync::Semaphore;

use crate::cache::Hearing;
use crate::dialects::{Broadcast, has_users};
use crate::metrics::Metrics;
use crate::presence::{Batch, Ids, NodeId, Reading, Snapshot, Stated};
use crate::redis_pool::RedisPool;

use bus::Bus;
pub use contact::Seats;
use contact::Write;
pub use explain::{Explained, Place};
pub use local::LocalCluster;
pub use nearby::Nearby;
pub use places::Location;
pub use statistics::{Statistics, Tally, today};

/// Channels that are read at the same time.
const MAX_READINGS: usize = 8;
/// How often a reading that failed is tried again before the channel shows what it knows.
const READ_TRIES: u32 = 3;

/// What the cluster tells a channel.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub enum Told {
    /// Another node announced changes to its part.
    Batch { node: NodeId, batch: Arc<Batch> },
    /// The reading that was asked for, or none if Redis could not be read.
    Read(Option<Reading>),
    /// Announcements may have been missed: read the channel.
    ReadAgain,
    /// Redis may have lost this node's part: write it again.
    WriteAgain,
    /// Redis is away: what this node knows is all there is to show for now.
    Away,
    /// Somebody on another node says something.
    Said(Arc<Broadcast>),
    /// A node is dead, or has left for good.
    NodeDown(NodeId),
    /// What a heartbeat found in Redis: what every node states of its part, own seats that were missing, and
    /// how many users there are.
    Beaten { stated: HashMap<NodeId, Stated>, missing: Vec<u64>, users: usize },
}

/// What else is heard on the cluster's subscription, for those who keep copies of what stands in Redis.
#[derive(Clone, Copy, Debug)]
pub enum Aside<'a> {
    /// A message on one of their topics.
    Said { topic: &'a str, text: &'a str },
    /// A subscription begins: messages may have been missed before it.
    Missed,
}

/// Those who keep copies: which topics they need, and who is told.
#[derive(Clone)]
pub struct Asides {
    pub topics: &'static [&'static str],
    pub told: Arc<dyn Fn(Aside<'_>) + Send + Sync>,
    /// Confirmed while the subscription stands.
    pub hearing: Hearing,
}

impl Asides {
    /// Nobody keeps copies.
    pub fn none() -> Self {
        Self { topics: &[], told: Arc::new(|_| {}), hearing: Hearing::default() }
    }
}

/// How long things live in Redis.
#[derive(Clone, Copy, Debug)]
pub struct Ttls {
    pub presence: Duration,
    pub node: Duration,
    pub last_seen: Duration,
}

/// How many are in a channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Occupancy {
    pub online: usize,
    pub connections: usize,
}

/// Where a user is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserPresence {
    /// Channels, with how many of the user's connections are in each. Sorted.
    pub channels: Vec<(String, usize)>,
    /// When the user last left a channel, in milliseconds since 1970.
    pub last_seen: Option<u64>,
}

/// What is known of a user, wherever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UserStatus {
    /// Whether the user is in a channel. Without a Redis this is not known here.
    pub online: bool,
    /// Whether one of the user's connections is active.
    pub active: bool,
    /// When the user last left a channel, in milliseconds since 1970.
    pub last_seen: Option<u64>,
    /// When the user first joined one, likewise.
    pub first_seen: Option<u64>,
}

/// A user is active by a connection of this node, until some time, or not by it any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Act {
    pub user: Arc<str>,
    pub connection: u64,
    /// In milliseconds since 1970.
    pub until: Option<u64>,
}

/// Whether Redis can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedisState {
    /// There is none.
    Off,
    Up,
    Down,
}

/// Redis is there, but cannot be reached just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Redis is away")]
pub struct Away;

/// The way to the other nodes. Clones share it.
#[derive(Clone)]
pub enum Cluster {
    /// There are none.
    Local(LocalCluster),
    /// Those that share a Redis.
    Redis(RedisCluster),
}

/// The nodes that share a Redis.
#[derive(Clone)]
pub struct RedisCluster {
    bus: Arc<Bus>,
    relays: relay::Relays,
    arbiter: ArbiterHandle,
    readings: Arc<Semaphore>,
}

impl RedisCluster {
    /// Starts the tasks that speak with Redis for the node of `ids`, on `arbiter`. Redis need not be there
    /// yet.
    pub fn start(
        ids: Ids,
        pool: RedisPool,
        ttls: Ttls,
        metrics: Arc<Metrics>,
        asides: Asides,
        arbiter: ArbiterHandle,
    ) -> Self {
        let bus = Arc::new(Bus::new(ids, pool, metrics, ttls));
        arbiter.spawn(writer::run(Arc::clone(&bus)));
        arbiter.spawn(subscriber::run(Arc::clone(&bus), asides));
        arbiter.spawn(lease::run(Arc::clone(&bus)));
        arbiter.spawn(statistics::run(Arc::clone(&bus)));
        let (relays, queue) = relay::queue();
        arbiter.spawn(relay::run(Arc::clone(&bus), queue));
        Self { bus, relays, arbiter, readings: Arc::new(Semaphore::new(MAX_READINGS)) }
    }

    fn read(&self, channel: &Arc<str>, asked: HashMap<NodeId, u64>, to: Recipient<Told>) {
        let (bus, readings, channel) =
            (Arc::clone(&self.bus), Arc::clone(&self.readings), Arc::clone(channel));
        self.arbiter.spawn(async move {
            // The semaphore is never closed.
            let _permit = readings.acquire().await;
            bus.metrics.redis_readings.inc();
            for attempt in 1..=READ_TRIES {
                match reader::read(&bus, &channel, asked.clone()).await {
                    Ok(reading) => return to.do_send(Told::Read(Some(reading))),
                    Err(error) => tracing::debug!(%channel, %error, attempt, "a channel could not be read"),
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            to.do_send(Told::Read(None));
        });
    }
}

impl Cluster {
    /// Whether there are no other nodes.
    pub fn is_local(&self) -> bool {
        matches!(self, Self::Local(_))
    }

    /// Whether everything of this node stands in Redis, as far as can be known. True without a Redis.
    pub fn is_settled(&self) -> bool {
        match self {
            Self::Local(_) => true,
            Self::Redis(redis) => redis.bus.is_settled(),
        }
    }

    /// Whether Redis can be reached.
    pub fn state(&self) -> RedisState {
        match self {
            Self::Local(_) => RedisState::Off,
            Self::Redis(redis) => redis.bus.state(),
        }
    }

    /// `channel` takes part from now on: `to` is told what others announce, and first to read.
    pub fn open(&self, channel: &Arc<str>, to: Recipient<Told>) {
        if let Self::Redis(redis) = self {
            if redis.bus.state() != RedisState::Up && redis.bus.has_tried() {
                to.do_send(Told::Away);
            }
            redis.bus.open(channel, to);
        }
    }

    /// `channel` takes part no more.
    pub fn close(&self, channel: &Arc<str>) {
        if let Self::Redis(redis) = self {
            redis.bus.close(channel);
        }
    }

    /// Writes and announces changes of the own part, which lead to `digest`.
    pub fn announce(&self, channel: &Arc<str>, batch: Batch, digest: u64) {
        match self {
            Self::Local(local) => local.note(channel, &batch),
            Self::Redis(redis) => {
                redis.bus.write(Write::Changes { channel: Arc::clone(channel), batch, digest })
            }
        }
    }

    /// Tells the viewers of `channel` on other nodes what somebody says, if Redis is there.
    pub fn say(&self, channel: &str, broadcast: &Broadcast) {
        if let Self::Redis(redis) = self {
            redis.relays.say(&redis.bus, channel, broadcast);
        }
    }

    /// Reads `channel`, of whose parts the versions in `asked` are known. The answer is a [`Told::Read`].
    pub fn read(&self, channel: &Arc<str>, asked: HashMap<NodeId, u64>, to: Recipient<Told>) {
        if let Self::Redis(redis) = self {
            redis.read(channel, asked, to);
        }
    }

    /// Writes the whole of the own part.
    pub fn write_again(&self, channel: &Arc<str>, version: u64, digest: u64, seats: Seats) {
        if let Self::Redis(redis) = self {
            redis.bus.write(Write::Again { channel: Arc::clone(channel), version, digest, seats });
        }
    }

    /// Refreshes the own part. The answer is a [`Told::Beaten`].
    pub fn beat(&self, channel: &Arc<str>, version: u64, seats: Seats) {
        if let Self::Redis(redis) = self {
            redis.bus.write(Write::Beat { channel: Arc::clone(channel), version, seats });
        }
    }

    /// Leaves the cluster for good: nobody will think this node dead.
    pub async fn leave(&self) {
        if let Self::Redis(redis) = self
            && redis.bus.state() == RedisState::Up
        {
            statistics::flush(&redis.bus).await;
            lease::leave(&redis.bus).await;
        }
    }

    /// How many are in each of `channels`, on all nodes.
    ///
    /// # Errors
    /// [`Away`].
    pub async fn occupancies(&self, channels: &[&str]) -> Result<Vec<Occupancy>, Away> {
        match self {
            Self::Local(_) => Ok(vec![Occupancy::default(); channels.len()]),
            Self::Redis(redis) => reader::occupancies(&redis.bus, channels).await,
        }
    }

    /// Everyone in `channel`, on all nodes.
    ///
    /// # Errors
    /// [`Away`].
    pub async fn roster(&self, channel: &str) -> Result<Snapshot, Away> {
        match self {
            Self::Local(_) => Ok(Snapshot::default()),
            Self::Redis(redis) => reader::roster(&redis.bus, channel).await,
        }
    }

    /// The names of all channels in which some node has somebody, or had a moment ago.
    ///
    /// # Errors
    /// [`Away`].
    pub async fn channels(&self) -> Result<BTreeSet<String>, Away> {
        match self {
            Self::Local(_) => Ok(BTreeSet::new()),
            Self::Redis(redis) => reader::channels(&redis.bus).await,
        }
    }

    /// Where `user` is, on all nodes. Without a Redis only when the user was last seen.
    ///
    /// # Errors
    /// [`Away`].
    pub async fn user(&self, user: &str) -> Result<UserPresence, Away> {
        match self {
            Self::Local(local) => Ok(UserPresence { channels: Vec::new(), last_seen: local.last_seen(user) }),
            Self::Redis(redis) => reader::user(&redis.bus, user).await,
        }
    }

    /// What is known of each of `users`, in their order.
    ///
    /// # Errors
    /// [`Away`].
    pub async fn statuses(&self, users: &[&str]) -> Result<Vec<UserStatus>, Away> {
        match self {
            Self::Local(local) => Ok(users.iter().map(|user| local.status(user)).collect()),
            Self::Redis(redis) => reader::statuses(&redis.bus, users).await,
        }
    }

    /// Counts what has happened in `channel` on `day`, numbered from 1970.
    pub fn count(&self, day: u64, channel: &Arc<str>, tally: Tally) {
        match self {
            Self::Local(local) => local.count(day, channel, &tally),
            Self::Redis(redis) => statistics::gather(&mut redis.bus.tallies(), day, channel, tally),
        }
    }

    /// What was counted of `channel` on all nodes, today and in the last seven days.
    ///
    /// # Errors
    /// [`Away`].
    pub async fn statistics(&self, channel: &str) -> Result<Statistics, Away> {
        match self {
            Self::Local(local) => Ok(local.statistics(channel)),
            Self::Redis(redis) => statistics::read(&redis.bus, channel).await,
        }
    }

    /// Who is in `channel` within `radius` metres of `centre`, the nearest first, each user once: with where and how
    /// far that is. At most `limit` users. `roster` is what this node knows of the channel, if it lives here.
    ///
    /// # Errors
    /// [`Away`].
    pub async fn nearby(
        &self,
        channel: &str,
        centre: Location,
        radius: f64,
        limit: usize,
        roster: Option<&Snapshot>,
    ) -> Result<Vec<Nearby>, Away> {
        match self {
            Self::Local(local) => {
                let places = local.nearby(channel, centre, radius);
                Ok(roster.map_or_else(Vec::new, |roster| {
                    nearby::of_roster(roster, &places, centre, radius, limit)
                }))
            }
            Self::Redis(redis) => nearby::search(&redis.bus, channel, centre, radius, limit).await,
        }
    }

    /// Tells who has become active, or is no more. What Redis does not take is told again while it is so.
    pub fn note_active(&self, acts: Vec<Act>) {
        match self {
            Self::Local(local) => local.note_active(acts),
            Self::Redis(redis) => {
                let bus = Arc::clone(&redis.bus);
                redis.arbiter.spawn(async move { activity::tell(&bus, &acts).await });
            }
        }
    }

    /// Presence writes that wait for Redis.
    pub fn waiting_writes(&self) -> usize {
        match self {
            Self::Local(_) => 0,
            Self::Redis(redis) => redis.bus.waiting(),
        }
    }
}

/// Adds to `pipeline` that `user` was last seen now, if `channel` has users. When it was first seen is kept for as
/// long.
fn note_last_seen(pipeline: &mut redis::Pipeline, channel: &str, user: &str, ttl: Duration) {
    if !has_users(channel) {
        return;
    }
    pipeline.cmd("SET").arg(keys::last_seen(user)).arg(wall_clock()).arg("EX").arg(ttl.as_secs()).ignore();
    pipeline.cmd("EXPIRE").arg(keys::first_seen(user)).arg(ttl.as_secs()).ignore();
}

/// Adds to `pipeline` that `user` is seen now, if it never was before and `channel` has users.
fn note_first_seen(pipeline: &mut redis::Pipeline, channel: &str, user: &str, ttl: Duration) {
    if !has_users(channel) {
        return;
    }
    let mut set = redis::cmd("SET");
    set.arg(keys::first_seen(user)).arg(wall_clock()).arg("EX").arg(ttl.as_secs()).arg("NX");
    pipeline.add_command(set).ignore();
}

/// Milliseconds since 1970. A clock set before that year counts as that year.
pub(crate) fn wall_clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |passed| passed.as_millis() as u64)
}

#[cfg(test)]
mod fuzz;
