//! L1: the published roster of every channel that lives on this node, in one moka cache.
//!
//! A channel publishes here before it tells anybody; REST and joiners read here without asking the
//! channel. One cache for all channels (an empty moka cache costs 32 KB), with no capacity and no
//! expiry: an evicted roster would be a lost one. The channel itself takes its entry out when it ends.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use moka::sync::Cache;

use crate::dialects::{self, WireFormat};
use crate::presence::Snapshot;

/// A roster as the channel last told it, with its wire forms, each made once when first asked for.
#[derive(Debug, Default)]
pub struct Published {
    pub snapshot: Snapshot,
    states: [OnceLock<Bytes>; WireFormat::KINDS],
}

impl Published {
    /// `snapshot`, not yet encoded.
    pub fn new(snapshot: Snapshot) -> Self {
        Self { snapshot, states: Default::default() }
    }

    /// The roster as the payload of the dialect's state message.
    pub fn state(&self, format: WireFormat) -> Bytes {
        let format = format.of_roster();
        let made =
            self.states[format.index()].get_or_init(|| dialects::state_payload(format, &self.snapshot));
        made.clone()
    }
}

/// The rosters of this node's channels. Clones share them.
#[derive(Clone)]
pub struct Rosters {
    cache: Cache<Arc<str>, Arc<Published>>,
}

impl Default for Rosters {
    fn default() -> Self {
        Self { cache: Cache::builder().build() }
    }
}

impl Rosters {
    /// The roster of `channel`, if it lives on this node.
    pub fn get(&self, channel: &str) -> Option<Arc<Published>> {
        self.cache.get(channel)
    }

    /// All channels that live on this node, in no order.
    pub fn all(&self) -> impl Iterator<Item = (Arc<str>, Arc<Published>)> {
        self.cache.iter().map(|(name, roster)| (Arc::clone(&*name), roster))
    }

    pub(crate) fn publish(&self, channel: &Arc<str>, roster: Arc<Published>) {
        self.cache.insert(Arc::clone(channel), roster);
    }

    pub(super) fn withdraw(&self, channel: &Arc<str>) {
        self.cache.invalidate(channel);
    }
}
