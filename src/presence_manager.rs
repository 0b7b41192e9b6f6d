//! The library face of presence: join a channel and count it from within a program, without a socket.

use std::sync::Arc;
use std::time::Instant;

use actix::Addr;
use serde_json::value::RawValue;

use crate::channel::{Channel, Dropped, Registry, Track, Untrack};
use crate::cluster::Away;
use crate::config::Limits;
use crate::dialects::{check_user, meta_from};
use crate::reject::Reject;

/// Presence for programs. Clones share the node's channels.
#[derive(Clone)]
pub struct PresenceManager {
    registry: Registry,
    limits: Arc<Limits>,
}

/// A seat in a channel. Dropped, it is kept for the grace, as a lost connection's would be.
pub struct Seated {
    channel: Addr<Channel>,
    connection: u64,
    user: Arc<str>,
    limits: Arc<Limits>,
    left: bool,
}

impl PresenceManager {
    /// Presence in the channels of `registry`, within `limits`.
    pub fn new(registry: Registry, limits: Arc<Limits>) -> Self {
        Self { registry, limits }
    }

    /// `user_id` joins `channel` and shows `meta`, a JSON object. Viewers are told as if by a socket.
    ///
    /// # Errors
    /// What a client would be refused for: the names and the meta have the same limits.
    pub fn join_channel(
        &self,
        user_id: &str,
        channel: &str,
        meta: &serde_json::Value,
    ) -> Result<Seated, Reject> {
        check_user(user_id, &self.limits)?;
        let longest = self.limits.max_channel_bytes;
        if channel.is_empty() || channel.len() > longest {
            return Err(Reject::ChannelName(longest));
        }
        let meta = checked_meta(meta, &self.limits)?;
        let seated = Seated {
            channel: self.registry.attach(&channel.into(), None),
            connection: self.registry.shared().ids.number(),
            user: user_id.into(),
            limits: Arc::clone(&self.limits),
            left: false,
        };
        seated.track(meta);
        Ok(seated)
    }

    /// How many users are in `channel`, on all nodes. Unknown channels have none.
    ///
    /// # Errors
    /// [`Away`] if the channel does not live on this node and Redis cannot be asked.
    pub async fn get_channel_online_count(&self, channel: &str) -> Result<usize, Away> {
        let shared = self.registry.shared();
        if let Some(published) = shared.rosters.get(channel) {
            return Ok(published.snapshot.online());
        }
        let found = shared.cluster.occupancies(&[channel]).await?;
        Ok(found.first().map_or(0, |occupancy| occupancy.online))
    }
}

impl Seated {
    /// Shows another meta.
    ///
    /// # Errors
    /// As [`PresenceManager::join_channel`], of the meta.
    pub fn update(&self, meta: &serde_json::Value) -> Result<(), Reject> {
        self.track(checked_meta(meta, &self.limits)?);
        Ok(())
    }

    /// Leaves, without a grace.
    pub fn leave(mut self) {
        self.left = true;
        self.channel.do_send(Untrack { connection: self.connection });
    }

    fn track(&self, meta: Arc<str>) {
        let (connection, user) = (self.connection, Arc::clone(&self.user));
        self.channel.do_send(Track { connection, user, meta, resume: None, at: Instant::now() });
    }
}

impl Drop for Seated {
    fn drop(&mut self) {
        if !self.left {
            self.channel.do_send(Dropped { connection: self.connection });
        }
    }
}

fn checked_meta(meta: &serde_json::Value, limits: &Limits) -> Result<Arc<str>, Reject> {
    let raw = RawValue::from_string(meta.to_string()).map_err(|_| Reject::MetaNotObject)?;
    Ok(meta_from(Some(&raw), limits)?.unwrap_or_else(|| "{}".into()))
}
