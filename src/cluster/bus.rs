//! The bus: what the tasks that speak with Redis share, and the channels' way to them.
//!
//! A lock around the pure parts ([`Contact`], [`Nodes`], [`Topics`]), and the way to tell a channel what
//! they say. Nothing is awaited under the lock, and nothing long is done.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use actix::Recipient;
use tokio::sync::Notify;

use super::contact::{Contact, Reply, Write};
use super::keys::Keys;
use super::nodes::{Nodes, Verdict};
use super::statistics::Waiting;
use super::topics::Topics;
use super::{RedisState, Told};
use crate::dialects::Broadcast;
use crate::health::Trouble;
use crate::metrics::Metrics;
use crate::presence::{Batch, Ids, NodeId};
use crate::redis_pool::RedisPool;

/// What the tasks share.
pub struct Bus {
    pub node: NodeId,
    pub keys: Keys,
    pub presence_ttl: Duration,
    pub node_ttl: Duration,
    pub last_seen_ttl: Duration,
    pub pool: RedisPool,
    pub metrics: Arc<Metrics>,
    /// Wakes the writer when something is queued.
    pub queued: Notify,
    /// Wakes the subscriber when a topic was opened or closed.
    pub interest: Notify,
    inner: Mutex<Inner>,
    /// The replication histories in which the writer writes, joined by commas.
    histories: Mutex<String>,
    writer_up: AtomicBool,
    subscriber_up: AtomicBool,
    /// Whether it is known if Redis is there.
    tried: AtomicBool,
    tallies: Mutex<Waiting>,
    /// Held while it is told who is active: what is told later must not be overtaken.
    pub telling: tokio::sync::Mutex<()>,
    placed: Mutex<HashMap<Arc<str>, HashSet<u64>>>,
}

struct Inner {
    contact: Contact,
    nodes: Nodes,
    topics: Topics,
    /// The open channels' actors.
    channels: HashMap<Arc<str>, Recipient<Told>>,
}

impl Inner {
    fn tell(&self, channel: &str, told: Told) {
        if let Some(to) = self.channels.get(channel) {
            to.do_send(told);
        }
    }

    fn tell_all(&self, told: impl Fn() -> Told) {
        for to in self.channels.values() {
            to.do_send(told());
        }
    }

    /// Passes on what the contact says.
    fn pass_on(&mut self) {
        for (channel, told) in self.contact.take_told() {
            self.tell(&channel, told);
        }
    }
}

impl Bus {
    /// A bus that is not connected yet.
    pub fn new(ids: Ids, pool: RedisPool, metrics: Arc<Metrics>, ttls: super::Ttls) -> Self {
        let node = ids.node();
        let inner = Inner {
            contact: Contact::new(ids),
            nodes: Nodes::new(node, ttls.node, Instant::now()),
            topics: Topics::default(),
            channels: HashMap::new(),
        };
        Self {
            node,
            keys: Keys::new(pool.servers().is_cluster()),
            presence_ttl: ttls.presence,
            node_ttl: ttls.node,
            last_seen_ttl: ttls.last_seen,
            pool,
            metrics,
            queued: Notify::new(),
            interest: Notify::new(),
            inner: Mutex::new(inner),
            histories: Mutex::default(),
            writer_up: AtomicBool::new(false),
            subscriber_up: AtomicBool::new(false),
            tried: AtomicBool::new(false),
            tallies: Mutex::default(),
            telling: tokio::sync::Mutex::default(),
            placed: Mutex::default(),
        }
    }

    /// A panic elsewhere leaves a state that is no worse than a lost connection's, from which it recovers.
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was counted and Redis has not been told yet.
    pub fn tallies(&self) -> MutexGuard<'_, Waiting> {
        self.tallies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// By channel, the own seats whose place stands in Redis.
    pub fn placed(&self) -> MutexGuard<'_, HashMap<Arc<str>, HashSet<u64>>> {
        self.placed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something to the contact, and passes on what it says.
    fn with_contact<T>(&self, change: impl FnOnce(&mut Contact) -> T) -> T {
        let mut inner = self.inner();
        let result = change(&mut inner.contact);
        inner.pass_on();
        drop(inner);
        self.queued.notify_one();
        result
    }

    /// `channel` takes part from now on.
    pub fn open(&self, channel: &Arc<str>, to: Recipient<Told>) {
        let mut inner = self.inner();
        inner.contact.open(channel);
        inner.topics.open(self.keys.topic(channel), channel);
        inner.channels.insert(Arc::clone(channel), to);
        drop(inner);
        self.interest.notify_one();
    }

    /// `channel` takes part no more.
    pub fn close(&self, channel: &Arc<str>) {
        let mut inner = self.inner();
        inner.contact.close(channel);
        inner.topics.close(self.keys.topic(channel));
        inner.channels.remove(channel);
        inner.pass_on();
        drop(inner);
        self.interest.notify_one();
        self.queued.notify_one();
    }

    /// Queues a write.
    pub fn write(&self, write: Write) {
        if !self.with_contact(|contact| contact.write(write)) {
            self.metrics.redis_dropped.inc();
        }
    }

    /// Queues the renewal of the lease.
    pub fn renew(&self) {
        if !self.with_contact(Contact::renew) {
            self.metrics.redis_dropped.inc();
        }
    }

    /// What the writer must carry out next.
    pub fn next_batch(&self) -> Vec<Write> {
        self.with_contact_quietly(Contact::next_batch)
    }

    /// As [`Bus::with_contact`], without waking the writer, who asks.
    fn with_contact_quietly<T>(&self, change: impl FnOnce(&mut Contact) -> T) -> T {
        let mut inner = self.inner();
        let result = change(&mut inner.contact);
        inner.pass_on();
        result
    }

    /// What the writer was answered.
    pub fn replied(&self, writes: Vec<Write>, replies: Vec<Reply>) {
        let outcome = self.with_contact(|contact| contact.replied(writes, replies));
        self.metrics.audit_ghosts.inc_by(outcome.ghosts);
        if outcome.lost {
            self.note_loss();
        }
        self.note_rewriting();
    }

    /// The writer has a connection, on which nothing has been written yet.
    pub fn connected(&self) {
        self.with_contact(Contact::connected);
    }

    /// The writer has lost its connection, or a batch on it.
    pub fn disconnected(&self) {
        self.with_contact(Contact::failed);
        self.set_writer_up(false);
    }

    /// Notes whether what is written arrives. A connection alone does not say so: it may lead to a cluster of
    /// which a part is away.
    pub fn set_writer_up(&self, up: bool) {
        if self.writer_up.swap(up, Ordering::AcqRel) != up {
            self.note_state();
            if !up {
                self.note_unreachable();
            }
        }
    }

    /// The replication histories in which the writer writes, joined by commas; none while they are not known.
    pub fn histories(&self) -> String {
        self.histories.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes the replication histories in which the writer writes.
    pub fn set_histories(&self, histories: &BTreeSet<String>) {
        let joined = histories.iter().map(String::as_str).collect::<Vec<_>>().join(",");
        *self.histories.lock().unwrap_or_else(PoisonError::into_inner) = joined;
    }

    /// Queues the last writes of this node.
    pub fn leave(&self) {
        self.with_contact(Contact::leave);
    }

    /// Whether [`Bus::leave`] was called.
    pub fn has_left(&self) -> bool {
        self.inner().contact.has_left()
    }

    /// Whether everything own stands in Redis, as far as can be known.
    pub fn is_settled(&self) -> bool {
        self.inner().contact.is_settled()
    }

    /// How many writes wait.
    pub fn waiting(&self) -> usize {
        self.inner().contact.waiting()
    }

    /// The subscription stands and hears nothing yet, or it has ended.
    pub fn set_subscriber_up(&self, up: bool) {
        if self.subscriber_up.swap(up, Ordering::AcqRel) != up {
            self.note_state();
            if !up {
                self.note_deaf();
            }
        }
    }

    /// Does something to the topics.
    pub fn with_topics<T>(&self, change: impl FnOnce(&mut Topics) -> T) -> T {
        change(&mut self.inner().topics)
    }

    /// `topics` are heard now: their channels must read.
    pub fn subscribed(&self, topics: &[String]) {
        let mut inner = self.inner();
        for channel in inner.topics.subscribed(topics) {
            inner.tell(&channel, Told::ReadAgain);
        }
    }

    /// `node` announced `batch` under `topic`.
    pub fn hear(&self, topic: &str, node: NodeId, batch: Batch) {
        let mut inner = self.inner();
        inner.nodes.note(node);
        if !inner.nodes.is_buried(node)
            && let Some(channel) = inner.topics.channel(topic)
        {
            inner.tell(channel, Told::Batch { node, batch: Arc::new(batch) });
        }
    }

    /// Somebody on another node says something under `topic`.
    pub fn hear_broadcast(&self, topic: &str, broadcast: Broadcast) {
        let inner = self.inner();
        if let Some(channel) = inner.topics.channel(topic) {
            inner.tell(channel, Told::Said(Arc::new(broadcast)));
        }
    }

    /// `node` has said that it leaves for good.
    pub fn hear_farewell(&self, node: NodeId) {
        let mut inner = self.inner();
        if inner.nodes.left(node) {
            inner.tell_all(|| Told::NodeDown(node));
        }
    }

    /// Whose leases to look at.
    pub fn leases_to_ask(&self, listed: &BTreeSet<NodeId>) -> Vec<NodeId> {
        self.inner().nodes.to_ask(listed)
    }

    /// Something of `nodes` was read: their end must be noticed.
    pub fn note_nodes<'a>(&self, nodes: impl Iterator<Item = &'a NodeId>) {
        let mut inner = self.inner();
        nodes.for_each(|node| inner.nodes.note(*node));
    }

    /// The writer's contact if everything of it is written.
    pub fn settled_contact(&self) -> Option<u64> {
        self.inner().contact.settled()
    }

    /// Of the nodes `asked` about, `alive` hold a lease; the look began when contact `settled` was settled.
    /// Channels are told what follows; returned are the nodes to clean up after.
    pub fn judge(
        &self,
        listed: &BTreeSet<NodeId>,
        asked: &[NodeId],
        alive: BTreeSet<NodeId>,
        settled: Option<u64>,
    ) -> Vec<NodeId> {
        let mut inner = self.inner();
        let contact = inner.contact.standing();
        let now = Instant::now();
        let verdicts = inner.nodes.judge(listed, asked, alive, contact, now);
        self.metrics.health.is(Trouble::JudgementResting, inner.nodes.is_resting(now), "");
        self.metrics.nodes.set(inner.nodes.count() as i64);
        let mut left_behind = Vec::new();
        for verdict in verdicts {
            match verdict {
                Verdict::Doubt => {
                    if inner.contact.doubt(settled) {
                        self.note_loss();
                    }
                    inner.pass_on();
                    self.queued.notify_one();
                }
                Verdict::Back(nodes) => {
                    tracing::info!(?nodes, "nodes are back");
                    inner.tell_all(|| Told::ReadAgain);
                }
                Verdict::Gone(node) => {
                    tracing::warn!(%node, "a node is gone; saying goodbye for its members");
                    self.metrics.health.set(Trouble::NodeGone, &format!("node {node}"));
                    self.metrics.nodes_lost.inc();
                    inner.tell_all(|| Told::NodeDown(node));
                }
                Verdict::Left(node) => inner.tell_all(|| Told::NodeDown(node)),
                Verdict::CleanUp(node) => left_behind.push(node),
            }
        }
        left_behind
    }

    /// The leases could not be looked at.
    pub fn rest_judgement(&self) {
        self.inner().nodes.rest(Instant::now());
        self.metrics.health.set(Trouble::JudgementResting, "the leases could not be looked at");
    }

    /// Whether `node` is known to be dead.
    pub fn is_buried(&self, node: NodeId) -> bool {
        self.inner().nodes.is_buried(node)
    }

    fn note_state(&self) {
        let up = self.state() == RedisState::Up;
        if up {
            self.note_tried(false);
        }
        if self.metrics.redis_up.set(i64::from(up)) != i64::from(up) && up {
            tracing::info!("Redis is there: presence is shared with the other nodes");
        }
        // At the start nothing is lost that never stood: only what fails to connect says so.
        let writer = self.writer_up.load(Ordering::Acquire);
        if writer {
            self.metrics.health.clear(Trouble::RedisAway);
        }
        // Of a Redis that is away, nothing else is worth saying.
        if !writer || self.subscriber_up.load(Ordering::Acquire) {
            self.metrics.health.clear(Trouble::SubscriptionLost);
        }
        self.note_rewriting();
    }

    /// Whether everything is being written again, and how far that is.
    fn note_rewriting(&self) {
        let inner = self.inner();
        let done = inner.contact.is_settled() || inner.contact.has_left();
        let progress = if done { String::new() } else { inner.contact.progress() };
        drop(inner);
        let rewriting = !done && self.writer_up.load(Ordering::Acquire);
        self.metrics.health.is(Trouble::Rewriting, rewriting, &progress);
    }

    /// Whether it is known if Redis is there: not in the first moments of a node's life. What a channel knows
    /// then is nothing, and nothing to show.
    pub fn has_tried(&self) -> bool {
        self.tried.load(Ordering::Acquire)
    }

    fn note_tried(&self, in_vain: bool) {
        if !self.tried.swap(true, Ordering::AcqRel) && in_vain {
            self.inner().tell_all(|| Told::Away);
        }
    }

    /// The writer has lost Redis, or tried in vain to reach it.
    pub fn note_unreachable(&self) {
        self.note_tried(true);
        if !self.has_left() {
            let why = self.pool.servers().problem().unwrap_or_default();
            self.metrics.health.set(Trouble::RedisAway, &why);
        }
    }

    /// The subscription has ended, or could not be had.
    pub fn note_deaf(&self) {
        self.note_tried(true);
        if self.writer_up.load(Ordering::Acquire) && !self.has_left() {
            let why = self.pool.servers().problem().unwrap_or_default();
            self.metrics.health.set(Trouble::SubscriptionLost, &why);
        }
    }

    /// Redis lost the lease, or what was written.
    fn note_loss(&self) {
        self.metrics.health.set(Trouble::LeaseLost, "");
    }

    /// Up while both connections stand.
    pub fn state(&self) -> RedisState {
        if self.writer_up.load(Ordering::Acquire) && self.subscriber_up.load(Ordering::Acquire) {
            RedisState::Up
        } else {
            RedisState::Down
        }
    }
}
