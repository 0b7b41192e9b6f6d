//! The subscriber: one connection that hears what other nodes announce and hands it to the channels.
//!
//! Pub/Sub delivers at most once, and nothing while the connection is away. So after every
//! (re)subscription the channels concerned are told to read: what was missed is in the store. The
//! connection is pinged each second, since a half-open one would be silent for ever, and so would be one to
//! a server that is no longer the primary, or is cut off from its cluster.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use redis::aio::{PubSubSink, PubSubStream};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::bus::Bus;
use super::topics::{Interest, Topics};
use super::{Revoked, RevokedFn, keys, link, wire};
use crate::logging::Seldom;
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
                };
                let ended = subscriber.listen(stream, &mut pause).await;
                bus.set_subscriber_up(false);
                bus.pool.servers().note_problem(ended);
                tracing::debug!(reason = ended, "the subscription ended");
            }
            Err(error) => {
                tracing::debug!(%error, "no connection for the subscription");
                bus.note_deaf();
            }
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
}

impl Subscriber {
    /// Listens until something fails; says what.
    async fn listen(&mut self, mut stream: PubSubStream, pause: &mut link::Pause) -> &'static str {
        let fixed = [keys::NODES_TOPIC, REVOKED_TOPIC];
        if !matches!(timeout(PATIENCE, self.sink.subscribe(&fixed)).await, Ok(Ok(()))) {
            return "could not subscribe";
        }
        self.bus.with_topics(Topics::begin);
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
        let Interest { subscribe, unsubscribe } = self.bus.with_topics(Topics::next);
        for chunk in unsubscribe.chunks(CHUNK) {
            if !matches!(timeout(PATIENCE, self.sink.unsubscribe(chunk)).await, Ok(Ok(()))) {
                return false;
            }
        }
        for chunk in subscribe.chunks(CHUNK) {
            let new: Vec<&String> = self
                .bus
                .with_topics(|topics| chunk.iter().filter(|topic| !topics.is_subscribed(topic)).collect());
            if !new.is_empty() && !matches!(timeout(PATIENCE, self.sink.subscribe(&new)).await, Ok(Ok(()))) {
                return false;
            }
            self.bus.subscribed(chunk);
        }
        true
    }

    fn hear(&self, message: &redis::Msg) {
        let Ok(text) = std::str::from_utf8(message.get_payload_bytes()) else { return };
        match message.get_channel_name() {
            REVOKED_TOPIC => (self.revoked)(Revoked::Token(text.into())),
            keys::NODES_TOPIC => {
                if let Ok(node) = text.parse() {
                    self.bus.hear_farewell(node);
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
            Ok((node, batch)) => self.bus.hear(topic, node, batch),
            Err(error) => {
                static FOREIGN: Seldom = Seldom::new();
                if let Some(times) = FOREIGN.count() {
                    tracing::warn!(topic, %error, times, "ignored a message");
                }
            }
        }
    }
}
