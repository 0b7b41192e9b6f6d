//! The subscriber: one connection that hears what other nodes announce and hands it to the channels.
//!
//! Pub/Sub delivers at most once, and nothing while the connection is away. So after every
//! (re)subscription the channels concerned are told to read: what was missed is in the store. The
//! connection is pinged each second, since a half-open one would be silent for ever.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use redis::aio::{PubSubSink, PubSubStream};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::bus::Bus;
use super::{Revoked, RevokedFn, Told, keys, link, wire};
use crate::redis_pool::Watch;
use crate::session::REVOKED_TOPIC;

/// Topics in one SUBSCRIBE.
const CHUNK: usize = 1_000;
/// How long Redis may take to answer here.
const PATIENCE: Duration = Duration::from_secs(2);

/// Subscribes, listens and begins again for ever.
pub async fn run(bus: Arc<Bus>, revoked: RevokedFn) {
    let mut pause = link::Pause::default();
    loop {
        match bus.pool.servers().subscribe().await {
            Ok((pubsub, watch)) => {
                let (sink, stream) = pubsub.split();
                let mut subscriber = Subscriber {
                    own_prefix: wire::own_prefix(bus.node),
                    bus: Arc::clone(&bus),
                    revoked: Arc::clone(&revoked),
                    sink,
                    watch,
                    subscribed: HashSet::new(),
                };
                let ended = subscriber.listen(stream, &mut pause).await;
                bus.set_subscriber_up(false);
                tracing::debug!(reason = ended, "the subscription ended");
            }
            Err(error) => tracing::debug!(%error, "no connection for the subscription"),
        }
        sleep(pause.next()).await;
    }
}

struct Subscriber {
    bus: Arc<Bus>,
    revoked: RevokedFn,
    own_prefix: String,
    sink: PubSubSink,
    watch: Watch,
    subscribed: HashSet<String>,
}

impl Subscriber {
    /// Listens until something fails; says what.
    async fn listen(&mut self, mut stream: PubSubStream, pause: &mut link::Pause) -> &'static str {
        let fixed = [keys::NODES_TOPIC, REVOKED_TOPIC];
        if !matches!(timeout(PATIENCE, self.sink.subscribe(&fixed)).await, Ok(Ok(()))) {
            return "could not subscribe";
        }
        {
            let mut listeners = self.bus.listeners();
            listeners.touched = listeners.by_topic.keys().cloned().collect();
        }
        if !self.follow_interest().await {
            return "could not subscribe";
        }
        pause.reset();
        self.bus.set_subscriber_up(true);
        (self.revoked)(Revoked::Unknown);
        let mut watchdog = interval(Duration::from_secs(1));
        watchdog.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = stream.next() => match message {
                    Some(message) => self.hear(&message),
                    None => return "Redis closed the connection",
                },
                () = self.bus.interest.notified() => {
                    if !self.follow_interest().await {
                        return "could not subscribe";
                    }
                }
                _ = watchdog.tick() => {
                    if !matches!(timeout(PATIENCE, self.sink.ping::<redis::Value>()).await, Ok(Ok(_))) {
                        return "no answer to a ping";
                    }
                    if let Err(reason) = self.watch.look().await {
                        return reason;
                    }
                }
            }
        }
    }

    /// Subscribes to and unsubscribes from the topics that were touched, and has the new ones read.
    async fn follow_interest(&mut self) -> bool {
        let (opened, closed): (Vec<String>, Vec<String>) = {
            let mut listeners = self.bus.listeners();
            let touched = std::mem::take(&mut listeners.touched);
            touched.into_iter().partition(|topic| listeners.by_topic.contains_key(topic))
        };
        for chunk in closed.chunks(CHUNK) {
            let chunk: Vec<&String> = chunk.iter().filter(|topic| self.subscribed.remove(*topic)).collect();
            if !chunk.is_empty()
                && !matches!(timeout(PATIENCE, self.sink.unsubscribe(&chunk)).await, Ok(Ok(())))
            {
                return false;
            }
        }
        for chunk in opened.chunks(CHUNK) {
            let new: Vec<&String> = chunk.iter().filter(|topic| !self.subscribed.contains(*topic)).collect();
            if !new.is_empty() && !matches!(timeout(PATIENCE, self.sink.subscribe(&new)).await, Ok(Ok(()))) {
                return false;
            }
            self.subscribed.extend(chunk.iter().cloned());
            // Subscribed first, read after: what happens in between is heard.
            let listeners = self.bus.listeners();
            for listener in chunk.iter().filter_map(|topic| listeners.by_topic.get(topic)) {
                listener.to.do_send(Told::ReadAgain);
            }
        }
        true
    }

    fn hear(&self, message: &redis::Msg) {
        let Ok(text) = std::str::from_utf8(message.get_payload_bytes()) else { return };
        match message.get_channel_name() {
            REVOKED_TOPIC => (self.revoked)(Revoked::Token(text.into())),
            keys::NODES_TOPIC => {
                if let Ok(node) = text.parse()
                    && node != self.bus.node
                {
                    // It has said goodbye itself, so the lease task has nothing to add.
                    self.bus.bury(node);
                    self.bus.tell_all(|| Told::NodeDown(node));
                }
            }
            topic => self.hear_announcement(topic, text),
        }
    }

    fn hear_announcement(&self, topic: &str, text: &str) {
        if text.starts_with(&self.own_prefix) {
            return;
        }
        self.bus.metrics.redis_events.inc();
        match wire::parse_announcement(text) {
            Ok((node, _)) if self.bus.is_buried(node) => {}
            Ok((node, batch)) => {
                if let Some(listener) = self.bus.listeners().by_topic.get(topic) {
                    listener.to.do_send(Told::Batch { node, batch: Arc::new(batch) });
                }
            }
            Err(error) => tracing::warn!(topic, %error, "ignored a message"),
        }
    }
}
