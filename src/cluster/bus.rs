//! The bus: what the tasks that speak with Redis share, and the channels' way to them.
//!
//! Channels put their writes into one bounded queue, from which the writer makes pipelines. A queue
//! that is full drops the write and remembers so: everything of this node is then written again.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use actix::Recipient;
use tokio::sync::{Notify, mpsc};

use super::{RedisState, Told, keys};
use crate::metrics::Metrics;
use crate::presence::{Batch, Entry, NodeId, Op};
use crate::redis_pool::RedisPool;

/// Writes that may wait for Redis.
const MAX_WRITES: usize = 65_536;

/// Seats with who sits on them.
pub type Seats = Vec<(u64, Arc<Entry>)>;

/// Something to be written to Redis.
#[derive(Debug)]
pub enum Write {
    /// Changes of the own part, to be announced as well.
    Changes { channel: Arc<str>, batch: Batch },
    /// The whole of the own part.
    Again { channel: Arc<str>, version: u64, seats: Seats },
    /// Seats of the own part that were missing.
    Repair { channel: Arc<str>, version: u64, ops: Vec<Op> },
    /// A heartbeat; what it finds goes to `to`.
    Beat { channel: Arc<str>, version: u64, seats: Seats, to: Recipient<Told> },
    /// The channel has ended here.
    Close { channel: Arc<str> },
    /// The lease goes on.
    Renew,
    /// Everything of the contact with this number has been queued before this.
    Barrier { contact: u64 },
}

/// A channel that wants to hear what is announced.
#[derive(Debug)]
pub struct Listener {
    pub name: Arc<str>,
    pub to: Recipient<Told>,
}

/// The channels that listen, by topic, and which topics the subscriber has yet to deal with.
#[derive(Debug, Default)]
pub struct Listeners {
    pub by_topic: HashMap<String, Listener>,
    /// Topics opened or closed since the subscriber looked last.
    pub touched: HashSet<String>,
}

/// What the tasks share.
pub struct Bus {
    pub node: NodeId,
    pub presence_ttl: Duration,
    pub node_ttl: Duration,
    pub last_seen_ttl: Duration,
    pub pool: RedisPool,
    pub metrics: Arc<Metrics>,
    listeners: Mutex<Listeners>,
    /// Wakes the subscriber for [`Listeners::touched`].
    pub interest: Notify,
    writes: mpsc::Sender<Write>,
    /// Whether a write was dropped, so that all must be written again.
    dropped: AtomicBool,
    /// Wakes the writer to begin a new contact: Redis is there, but may have lost what is ours.
    pub lost: Notify,
    /// Counts the writer's contacts with Redis.
    contact: AtomicU64,
    /// The contact in which everything own had been written, 0 for none.
    settled: AtomicU64,
    writer_up: AtomicBool,
    subscriber_up: AtomicBool,
    /// Whether this node has left the cluster for good and writes no more.
    left: AtomicBool,
    /// Nodes that are dead: nothing late of theirs is believed.
    buried: RwLock<HashSet<NodeId>>,
}

impl Bus {
    /// A bus that is not connected yet, and the queue for its writer.
    pub fn new(
        node: NodeId,
        pool: RedisPool,
        metrics: Arc<Metrics>,
        ttls: super::Ttls,
    ) -> (Self, mpsc::Receiver<Write>) {
        let (writes, queue) = mpsc::channel(MAX_WRITES);
        let bus = Self {
            node,
            presence_ttl: ttls.presence,
            node_ttl: ttls.node,
            last_seen_ttl: ttls.last_seen,
            pool,
            metrics,
            listeners: Mutex::default(),
            interest: Notify::new(),
            writes,
            dropped: AtomicBool::new(false),
            lost: Notify::new(),
            contact: AtomicU64::new(0),
            settled: AtomicU64::new(0),
            writer_up: AtomicBool::new(false),
            subscriber_up: AtomicBool::new(false),
            left: AtomicBool::new(false),
            buried: RwLock::default(),
        };
        (bus, queue)
    }

    /// Queues a write, or remembers that one was dropped.
    pub fn write(&self, write: Write) {
        if self.has_left() {
            return;
        }
        // What comes again by itself leaves nothing unwritten when it is dropped.
        let comes_again = matches!(write, Write::Beat { .. } | Write::Renew);
        if self.writes.try_send(write).is_err() {
            self.metrics.redis_dropped.inc();
            if !comes_again {
                self.dropped.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Waits until the queue has room for many writes.
    pub async fn room(&self) {
        while self.waiting() > MAX_WRITES / 4 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Queues the end of a channel in which this node has written, unless the channel is open: then it
    /// writes itself. Under the lock, so that one which opens now writes after this.
    pub fn close_if_ended(&self, channel: &str) {
        let listeners = self.listeners();
        if !listeners.by_topic.contains_key(&keys::topic(channel)) {
            self.write(Write::Close { channel: channel.into() });
        }
    }

    /// Queues a write when there is room.
    pub async fn write_when_possible(&self, write: Write) {
        // The queue's other end lives as long as the process.
        let _ = self.writes.send(write).await;
    }

    /// Queues nothing from now on but what [`Bus::write_when_possible`] brings.
    pub fn stop_writing(&self) {
        self.left.store(true, Ordering::Release);
    }

    /// Whether [`Bus::stop_writing`] was called.
    pub fn has_left(&self) -> bool {
        self.left.load(Ordering::Acquire)
    }

    /// Whether a write was dropped since the last call.
    pub fn take_dropped(&self) -> bool {
        self.dropped.swap(false, Ordering::Relaxed)
    }

    /// How many writes wait.
    pub fn waiting(&self) -> usize {
        MAX_WRITES - self.writes.capacity()
    }

    /// `channel` listens from now on, under its topic.
    pub fn listen(&self, channel: &Arc<str>, to: Recipient<Told>) {
        let topic = keys::topic(channel);
        let mut listeners = self.listeners();
        listeners.touched.insert(topic.clone());
        listeners.by_topic.insert(topic, Listener { name: Arc::clone(channel), to });
        drop(listeners);
        self.interest.notify_one();
    }

    /// `channel` listens no more.
    pub fn unlisten(&self, channel: &Arc<str>) {
        let topic = keys::topic(channel);
        let mut listeners = self.listeners();
        listeners.by_topic.remove(&topic);
        listeners.touched.insert(topic);
        drop(listeners);
        self.interest.notify_one();
    }

    /// The channels that listen.
    pub fn listeners(&self) -> MutexGuard<'_, Listeners> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells every channel something.
    pub fn tell_all(&self, told: impl Fn() -> Told) {
        for listener in self.listeners().by_topic.values() {
            listener.to.do_send(told());
        }
    }

    /// The writer has reached Redis, perhaps a new or an emptied one: the number of this contact.
    pub fn begin_contact(&self) -> u64 {
        self.settled.store(0, Ordering::Release);
        self.contact.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// The number of the latest contact.
    pub fn contact(&self) -> u64 {
        self.contact.load(Ordering::Acquire)
    }

    /// The contact is lost, or what was written in it.
    pub fn unsettle(&self) {
        self.settled.store(0, Ordering::Release);
    }

    /// Redis is there, but has lost something of ours: a new contact must begin. One that is under way,
    /// and has not written everything yet, is good enough.
    pub fn doubt(&self) {
        if !self.has_left() && self.settled.swap(0, Ordering::AcqRel) != 0 {
            tracing::warn!("this node's lease is gone from Redis: writing everything again");
            self.lost.notify_one();
        }
    }

    /// Everything own was written in `contact`; of no meaning if another has begun since.
    pub fn settle(&self, contact: u64) {
        if self.contact.load(Ordering::Acquire) == contact {
            self.settled.store(contact, Ordering::Release);
        }
    }

    /// Whether everything own stands in Redis, as far as can be known.
    pub fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Acquire) != 0
    }

    /// Notes whether the writer has a connection.
    pub fn set_writer_up(&self, up: bool) {
        if self.writer_up.swap(up, Ordering::AcqRel) != up {
            self.note_state();
        }
    }

    /// Notes whether the subscriber has a connection.
    pub fn set_subscriber_up(&self, up: bool) {
        if self.subscriber_up.swap(up, Ordering::AcqRel) != up {
            self.note_state();
        }
    }

    fn note_state(&self) {
        let up = self.state() == RedisState::Up;
        if self.metrics.redis_up.set(i64::from(up)) != i64::from(up) {
            if up {
                tracing::info!("Redis is there: presence is shared with the other nodes");
            } else {
                tracing::warn!("Redis is away: this node goes on alone, its users see nobody leave");
            }
        }
    }

    /// Up while both connections stand.
    pub fn state(&self) -> RedisState {
        if self.writer_up.load(Ordering::Acquire) && self.subscriber_up.load(Ordering::Acquire) {
            RedisState::Up
        } else {
            RedisState::Down
        }
    }

    /// Whether `node` is known to be dead.
    pub fn is_buried(&self, node: NodeId) -> bool {
        self.buried.read().unwrap_or_else(PoisonError::into_inner).contains(&node)
    }

    /// Notes that `node` is dead; false if that was known.
    pub fn bury(&self, node: NodeId) -> bool {
        self.buried.write().unwrap_or_else(PoisonError::into_inner).insert(node)
    }

    /// Notes that `node` lives after all; false if that was known.
    pub fn unbury(&self, node: NodeId) -> bool {
        self.buried.write().unwrap_or_else(PoisonError::into_inner).remove(&node)
    }
}
