//! What was said last in channels that remember it: Pusher's cache channels, in the tiered cache.
//!
//! **When Redis is away** a node remembers what was said through it, and what it has read before.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cache::{Caches, Lives, TieredCache};
use crate::dialects::{Body, Broadcast, Message};

/// How long it is remembered (Pusher's rule).
const LIFE: Duration = Duration::from_secs(30 * 60);

/// An event of a backend, as it is kept.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    event: String,
    data: String,
}

/// The last event of each channel that keeps it. Clones share them.
#[derive(Clone)]
pub struct LastSaid {
    cache: TieredCache<Kept>,
}

impl LastSaid {
    /// What is kept in `caches`.
    pub fn new(caches: &Caches) -> Self {
        let lives = Lives { l1: LIFE, l2: LIFE, absent: Duration::from_secs(1), capacity: 10_000 };
        Self { cache: caches.cache("pusher", lives) }
    }

    /// What was said last in `channel`, if anything was.
    pub async fn get(&self, channel: &str) -> Option<Arc<Broadcast>> {
        let kept = self.cache.get(channel).await.ok().flatten()?;
        let message =
            Message { event: kept.event.as_str().into(), body: Body::Text(kept.data.as_str().into()) };
        Some(Arc::new(Broadcast::Said { message, by_backend: true, user: None, except: None }))
    }

    /// Keeps what a backend says in `channel`.
    pub async fn keep(&self, channel: &str, event: &str, data: &str) {
        let kept = Kept { event: event.to_owned(), data: data.to_owned() };
        if let Err(error) = self.cache.set(channel, kept).await {
            tracing::debug!(%error, "what was said last is kept on this node only");
        }
    }
}
