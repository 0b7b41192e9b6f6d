//! Webhooks of Pusher's applications: what happens in their channels, told to their backends.
//!
//! - [`events`]: what is told, and of which application a channel is; pure.
//! - [`transitions`]: who came and left, each told once for the whole cluster.
//! - [`sender`]: signed, in batches, tried again.
//!
//! A node that is killed takes with it what it had not sent yet. Each node tells what it found in order; what two
//! nodes have found may arrive in either.

mod events;
mod sender;
mod transitions;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use actix::Arbiter;
use tokio::sync::mpsc;

pub use events::HookEvent;
use events::owner;
use sender::Sender;
use transitions::{Seen, Told, Transitions, wants_users};

use crate::cluster::keys::Keys;
use crate::config::{Pusher, PusherApp};
use crate::dialects::{Body, Broadcast, Kind};
use crate::metrics::Metrics;
use crate::presence::{Diff, Edge, NodeId, Snapshot};
use crate::redis_pool::RedisPool;

/// Shows the roster of a channel, if it lives here.
pub type Roster = Box<dyn Fn(&str, &mut dyn FnMut(&Snapshot)) + Send>;

/// What is known on this node of the channels that live here.
pub struct Known {
    pub node: NodeId,
    pub roster: Roster,
    /// All of them.
    pub channels: Box<dyn Fn() -> Vec<Arc<str>> + Send>,
}

/// How long a node that goes away waits for what is still to be asked and sent.
const FLUSH: Duration = Duration::from_secs(3);

/// The webhooks of a node. Clones share them.
#[derive(Clone)]
pub struct Webhooks(Option<Arc<Inner>>);

struct Inner {
    apps: Vec<Arc<PusherApp>>,
    counts: bool,
    seen: mpsc::Sender<Seen>,
    /// Questions that wait.
    asked: Arc<AtomicUsize>,
    sender: Sender,
}

impl Webhooks {
    /// Nobody is told.
    pub fn none() -> Self {
        Self(None)
    }

    /// Starts telling, on a thread of its own, where `config` says to whom. Without Redis, what is true is asked of
    /// what is `known`.
    pub fn start(config: &Pusher, pool: Option<RedisPool>, known: Known, metrics: Arc<Metrics>) -> Self {
        if config.webhooks.is_empty() || config.apps.is_empty() {
            return Self::none();
        }
        let (apps, counts, addresses) =
            (config.apps.clone(), config.subscription_count, config.webhooks.clone());
        let (sender, events) = Sender::new(Arc::clone(&metrics));
        let (seen, queue) = transitions::queue();
        let told = match pool {
            Some(pool) => Told::Shared {
                keys: Keys::new(pool.servers().is_cluster()),
                pool,
                is_marked: false,
                rests_until: None,
            },
            None => Told::Own(Default::default()),
        };
        let transitions = Transitions { apps: apps.clone(), counts, known, told, sender: sender.clone() };
        let sending = sender.clone();
        let asked = Arc::new(AtomicUsize::new(0));
        let open = Arc::clone(&asked);
        Arbiter::new().spawn_fn(move || {
            actix::spawn(sender::run(sending, events, addresses));
            actix::spawn(transitions::run(transitions, queue, open));
        });
        Self(Some(Arc::new(Inner { apps, counts, seen, asked, sender })))
    }

    /// `diff` has led `channel` to `after` on this node.
    pub fn note(&self, channel: &Arc<str>, diff: &Diff, after: &Snapshot) {
        let Some(inner) = &self.0 else { return };
        match owner(&inner.apps, channel) {
            Some((_, name)) if !matches!(Kind::of(&name), Kind::User(_)) => {}
            _ => return,
        }
        let mut what = vec![(Arc::from(""), after.connections > 0)];
        if wants_users(&inner.apps, channel, inner.counts) {
            what.extend(diff.edges(after).into_iter().map(|edge| match edge {
                Edge::Came(member) => (Arc::clone(&member.user), true),
                Edge::Left(user) => (Arc::clone(user), false),
            }));
        }
        // Over the bound the sweep finds out, and without Redis the next change in the channel.
        let _ = inner.seen.try_send(Seen { channel: Arc::clone(channel), what });
    }

    /// A client of an application, called `by`, says something in `channel`.
    pub fn note_client_event(&self, channel: &str, said: &Broadcast, by: &str) {
        let Some(inner) = &self.0 else { return };
        let Broadcast::Said { message, user, .. } = said else { return };
        let (Some((app, name)), Body::Json(json)) = (owner(&inner.apps, channel), &message.body) else {
            return;
        };
        // What was sent as a string is told as it is.
        let data = serde_json::from_str::<String>(json).unwrap_or_else(|_| json.to_string());
        let is_presence = name.starts_with("presence-");
        let event = HookEvent::ClientEvent {
            channel: name.into_owned(),
            event: format!("client-{}", message.event),
            data,
            socket_id: by.to_owned(),
            user_id: user.clone().filter(|_| is_presence),
        };
        inner.sender.tell(app, event);
    }

    /// Somebody came to a channel that remembers what was said last, and nothing was.
    pub fn note_cache_miss(&self, channel: &str) {
        let Some(inner) = &self.0 else { return };
        let Some((app, name)) = owner(&inner.apps, channel) else { return };
        inner.sender.tell(app, HookEvent::CacheMiss { channel: name.into_owned() });
    }

    /// Waits until everything is asked and sent, three seconds at most.
    pub async fn flush(&self) {
        let Some(inner) = &self.0 else { return };
        let end = Instant::now() + FLUSH;
        let is_idle = || {
            let unread = inner.seen.max_capacity() - inner.seen.capacity();
            unread == 0 && inner.asked.load(Ordering::Relaxed) == 0 && inner.sender.is_idle()
        };
        // What was seen a moment ago is on its way.
        tokio::time::sleep(FLUSH / 12).await;
        while !is_idle() && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
