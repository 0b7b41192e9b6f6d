//! The relay: what is said in channels, on its way to the other nodes.
//!
//! One task publishes, in order, what waits in a bounded queue, many messages in one pipeline. Nothing is kept:
//! what is said while Redis is away, or while the queue is full, reaches the viewers of its own node only, and is
//! counted (`rollcall_broadcasts_dropped`). Presence does not come this way and loses nothing.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::bus::Bus;
use super::wire;
use crate::dialects::Broadcast;
use crate::logging::Seldom;

/// Messages that may wait. With frames of 64 KiB at most this bounds the memory too.
const QUEUE: usize = 2_048;
/// Messages in one pipeline.
const BATCH: usize = 128;
/// In a cluster of Redis a command goes where its key is: so the topic is one.
const PUBLISH: &str = "return redis.call('PUBLISH', KEYS[1], ARGV[1])";

/// A topic, and what to say there.
struct Waiting {
    topic: String,
    text: String,
}

/// The way into the queue.
#[derive(Clone)]
pub struct Relays {
    queue: mpsc::Sender<Waiting>,
}

/// The other end of it, for [`run`].
pub struct Queue(mpsc::Receiver<Waiting>);

/// An empty queue.
pub fn queue() -> (Relays, Queue) {
    let (queue, waiting) = mpsc::channel(QUEUE);
    (Relays { queue }, Queue(waiting))
}

impl Relays {
    /// Queues what is said in `channel`.
    pub fn say(&self, bus: &Bus, channel: &str, broadcast: &Broadcast) {
        let waiting = Waiting { topic: bus.keys.topic(channel), text: wire::broadcast(bus.node, broadcast) };
        if self.queue.try_send(waiting).is_err() {
            note_dropped(bus, 1);
        }
    }
}

/// Publishes for ever.
pub async fn run(bus: Arc<Bus>, Queue(mut waiting): Queue) {
    let mut batch = Vec::with_capacity(BATCH);
    while waiting.recv_many(&mut batch, BATCH).await > 0 {
        let mut pipeline = redis::pipe();
        for Waiting { topic, text } in &batch {
            pipeline.cmd("EVAL").arg(PUBLISH).arg(1).arg(topic).arg(text).ignore();
        }
        if let Err(error) = bus.pool.pipeline::<()>(&pipeline).await {
            tracing::debug!(%error, "broadcasts could not be published");
            note_dropped(&bus, batch.len() as u64);
        }
        batch.clear();
    }
}

fn note_dropped(bus: &Bus, count: u64) {
    bus.metrics.broadcasts_dropped.inc_by(count);
    static DROPPED: Seldom = Seldom::new();
    if let Some(times) = DROPPED.count() {
        tracing::warn!(times, "broadcasts did not reach the other nodes");
    }
}
