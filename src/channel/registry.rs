//! The registry: finds or starts the actor of a channel, and lets it end without losing anybody.
//!
//! An actor may end only when every interest that was ever registered for it has reached it. The
//! registry counts them under its lock, the actor counts what arrived, and [`Registry::retire`]
//! compares: so no interest can be on its way to an actor that is gone.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use actix::{Actor as _, Addr, ArbiterHandle};

use super::actor::{Attach, Channel, Drain, Say};
use super::{HubLink, Rosters};
use crate::cluster::Cluster;
use crate::dialects::Broadcast;
use crate::metrics::Metrics;
use crate::presence::Ids;
use crate::webhooks::Webhooks;

/// What all channels of a node share.
pub struct Shared {
    pub ids: Ids,
    pub grace: Duration,
    /// How often own presence is refreshed in the cluster.
    pub heartbeat: Duration,
    pub rosters: Rosters,
    pub cluster: Cluster,
    pub webhooks: Webhooks,
    pub metrics: Arc<Metrics>,
}

/// The channels of this node. Clones share them.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    arbiters: Vec<ArbiterHandle>,
    hasher: RandomState,
    lodgings: Mutex<HashMap<Arc<str>, Lodging>>,
}

struct Lodging {
    address: Addr<Channel>,
    attached: u64,
}

impl Registry {
    /// A registry whose channels run on `arbiters`, placed by hash. There must be at least one.
    pub fn new(shared: Arc<Shared>, arbiters: Vec<ArbiterHandle>) -> Self {
        debug_assert!(!arbiters.is_empty());
        let inner = Inner { shared, arbiters, hasher: RandomState::new(), lodgings: Mutex::default() };
        Self { inner: Arc::new(inner) }
    }

    /// Registers a hub's interest in `channel`, whose actor is started if need be. It answers with
    /// [`super::Live`] when its roster can be shown.
    pub fn attach(&self, channel: &Arc<str>, link: Option<HubLink>) -> Addr<Channel> {
        let mut lodgings = self.lodgings();
        let lodging = lodgings.entry(Arc::clone(channel)).or_insert_with(|| {
            let (name, registry) = (Arc::clone(channel), self.clone());
            let address =
                Channel::start_in_arbiter(self.arbiter(channel), move |_| Channel::new(name, registry));
            self.inner.shared.metrics.channels.inc();
            Lodging { address, attached: 0 }
        });
        lodging.attached += 1;
        // Sent under the lock, so that the actor cannot retire between the count and the message.
        lodging.address.do_send(Attach { link });
        lodging.address.clone()
    }

    /// The actor of `channel`, if it is open.
    pub fn find(&self, channel: &str) -> Option<Addr<Channel>> {
        self.lodgings().get(channel).map(|lodging| lodging.address.clone())
    }

    /// Says something to all who view `channel`, on all nodes. It need not be open here.
    pub fn say(&self, channel: &str, broadcast: Arc<Broadcast>) {
        match self.find(channel) {
            Some(address) => address.do_send(Say(broadcast)),
            None => self.inner.shared.cluster.say(channel, &broadcast),
        }
    }

    /// Whether `channel` is open, or may be where at most `most` are.
    pub fn has_room_for(&self, channel: &str, most: usize) -> bool {
        let lodgings = self.lodgings();
        lodgings.len() < most || lodgings.contains_key(channel)
    }

    /// Takes `channel` out of everywhere if its actor has received all `attached` interests; then it
    /// may end. All under the lock, so that a successor cannot have begun before.
    pub(super) fn retire(&self, channel: &Arc<str>, attached: u64) -> bool {
        let mut lodgings = self.lodgings();
        if lodgings.get(channel).is_none_or(|lodging| lodging.attached != attached) {
            return false;
        }
        lodgings.remove(channel);
        self.inner.shared.rosters.withdraw(channel);
        self.inner.shared.cluster.close(channel);
        self.inner.shared.metrics.channels.dec();
        true
    }

    /// Every channel's own members leave: the node is going away.
    pub fn drain(&self) {
        for lodging in self.lodgings().values() {
            lodging.address.do_send(Drain);
        }
    }

    /// What all channels share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.inner.shared
    }

    fn arbiter(&self, channel: &str) -> &ArbiterHandle {
        let at = self.inner.hasher.hash_one(channel) as usize % self.inner.arbiters.len();
        &self.inner.arbiters[at]
    }

    fn lodgings(&self) -> MutexGuard<'_, HashMap<Arc<str>, Lodging>> {
        // A panic elsewhere leaves the map whole: every change to it is one call.
        self.inner.lodgings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
