//! Whether there is room: for one more channel on this node, and for one more member in a channel.

use std::cell::RefCell;

use super::Hub;
use crate::health::Trouble;
use crate::reject::Reject;

/// What a connection asks before it joins.
pub trait Room {
    /// Whether `channel` may be viewed and, with a `user`, that user be present in it.
    ///
    /// # Errors
    /// What to refuse it with.
    fn check(&self, channel: &str, user: Option<&str>) -> Result<(), Reject>;
}

impl Room for RefCell<Hub> {
    fn check(&self, channel: &str, user: Option<&str>) -> Result<(), Reject> {
        let hub = self.borrow();
        let rules = hub.rules;
        if !hub.channels.contains_key(channel) && !hub.registry.has_room_for(channel, rules.node_channels) {
            hub.metrics.health.set(Trouble::ChannelsFull, "");
            return Err(Reject::TooManyOnNode);
        }
        if let Some(user) = user
            && rules.channel_members > 0
            && let Some(published) = hub.rosters.get(channel)
            && published.snapshot.online() >= rules.channel_members
            && published.snapshot.member(user).is_none()
        {
            hub.metrics.health.set(Trouble::MembersFull, channel);
            return Err(Reject::ChannelFull(rules.channel_members));
        }
        Ok(())
    }
}
