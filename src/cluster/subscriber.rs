//! The subscriber: one connection that hears what other nodes announce and hands it to the channels.
//!
//! Pub/Sub delivers at most once, and nothing while the connection is away. So after every
//! (re)subscription the channels concerned are told to read: what was missed is in the store. The
//! connection is pinged several times a second, since a half-open one would be silent for ever, and the answer
//! says up to when everything was heard; each second it is looked at, since one to a server that is no longer the
//! primary, or is cut off from its cluster, would be silent too.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{FutureExt as _, StreamExt as _};
use redis::aio::{PubSubSink, PubSubStream};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::bus::Bus;
use super::topics::{Interest, Topics};
use super::{Aside, Asides, keys, link, wire};
use crate::logging::Seldom;
use crate::redis_pool::Watch;

/// Topics in one SUBSCRIBE.
const CHUNK: usize = 1_000;
/// How often the connection is pinged: what was last heard is trusted for somewhat longer.
const PING_EVERY: Duration = Duration::from_millis(250);
/// How long Redis may take to answer here.
const PATIENCE: Duration = Duration::from_secs(2);

/// Subscribes, listens and begins again for ever.
pub async fn run(bus: Arc<Bus>, asides: Asides) {
    let mut pause = link::Pause::default();
    loop {
        match bus.pool.servers().subscribe().await {
            Ok((pubsub, watch)) => {
                let (sink, stream) = pubsub.split();
                let mut subscriber = Subscriber {
                    own_prefix: wire::own_prefix(bus.node),
                    bus: Arc::clone(&bus),
                    asides: asides.clone(),
                    sink,
                    watch,
                };
                let ended = subscriber.listen(stream, &mut pause).await;
                bus.set_subscriber_up(false);
                asides.hearing.lose();
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
    asides: Asides,
    own_prefix: String,
    sink: PubSubSink,
    watch: Watch,
}

impl Subscriber {
    /// Listens until something fails; says what.
    async fn listen(&mut self, mut stream: PubSubStream, pause: &mut link::Pause) -> &'static str {
        let fixed: Vec<&str> = [keys::NODES_TOPIC].iter().chain(self.asides.topics).copied().collect();
        if !matches!(timeout(PATIENCE, self.sink.subscribe(&fixed)).await, Ok(Ok(()))) {
            return "could not subscribe";
        }
        self.bus.with_topics(Topics::begin);
        if !self.follow_interest().await {
            return "could not subscribe";
        }
        pause.reset();
        self.bus.set_subscriber_up(true);
        (self.asides.told)(Aside::Missed);
        let [mut pings, mut watchdog] = [PING_EVERY, Duration::from_secs(1)].map(interval);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        watchdog.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let hearing = self.asides.hearing.clone();
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
                () = async { tokio::select! { _ = pings.tick() => {}, () = hearing.asked() => {} } } => {
                    if !self.catch_up(&mut stream).await {
                        return "no answer to a ping";
                    }
                }
                _ = watchdog.tick() => {
                    if let Err(reason) = self.watch.look().await {
                        return reason;
                    }
                }
            }
        }
    }

    /// Pings, and hears all that came before the answer: then everything said before the ping has been heard.
    async fn catch_up(&mut self, stream: &mut PubSubStream) -> bool {
        let asked = Instant::now();
        let mut sink = self.sink.clone();
        let answer = timeout(PATIENCE, sink.ping::<redis::Value>());
        tokio::pin!(answer);
        // On a long way the answer takes a while, in which nothing that comes may wait.
        loop {
            tokio::select! {
                message = stream.next() => match message {
                    Some(message) => self.hear(&message),
                    None => return false,
                },
                answered = &mut answer => match answered {
                    Ok(Ok(_)) => break,
                    _ => return false,
                }
            }
        }
        // Unconstrained: a channel that says "later" to be fair to other tasks would be taken for empty.
        while let Some(Some(message)) = tokio::task::unconstrained(stream.next()).now_or_never() {
            self.hear(&message);
        }
        self.asides.hearing.confirm(asked);
        true
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
            keys::NODES_TOPIC => {
                if let Ok(node) = text.parse() {
                    self.bus.hear_farewell(node);
                }
            }
            topic if self.asides.topics.contains(&topic) => (self.asides.told)(Aside::Said { topic, text }),
            topic => self.hear_announcement(topic, text),
        }
    }

    fn hear_announcement(&self, topic: &str, text: &str) {
        if text.starts_with(&self.own_prefix) {
            return;
        }
        self.bus.metrics.redis_events.inc();
        if wire::is_broadcast(text) {
            return match wire::parse_broadcast(text) {
                Ok(broadcast) => self.bus.hear_broadcast(topic, broadcast),
                Err(error) => ignore(topic, &error),
            };
        }
        match wire::parse_announcement(text) {
            Ok((node, batch)) => self.bus.hear(topic, node, batch),
            Err(error) => ignore(topic, &error),
        }
    }
}

fn ignore(topic: &str, error: &wire::Foreign) {
    static FOREIGN: Seldom = Seldom::new();
    if let Some(times) = FOREIGN.count() {
        tracing::warn!(topic, %error, times, "ignored a message");
    }
}
