//! Whether there is room: for one more channel on this node, and for one more member in a channel.

use std::cell::RefCell;

use super::Hub;
use crate::health::Trouble;
use crate::reject::Reject;
use crate::settings::Rules;

/// What a connection asks before it joins.
pub trait Room {
    /// Whether `channel` may be viewed and, with a `user`, that user be present in it; `proven` is whether the
    /// connection has proven who it is.
    ///
    /// # Errors
    /// What to refuse it with.
    fn check(&self, channel: &str, user: Option<&str>, proven: bool) -> Result<(), Reject>;
}

impl Room for RefCell<Hub> {
    fn check(&self, channel: &str, user: Option<&str>, proven: bool) -> Result<(), Reject> {
        let hub = self.borrow();
        let rules = hub.rules;
        if !hub.channels.contains_key(channel) && !hub.registry.has_room_for(channel, rules.node_channels) {
            hub.metrics.health.set(Trouble::ChannelsFull, "");
            return Err(Reject::TooManyOnNode);
        }
        let set = match hub.settings.as_ref().map(|settings| settings.known()) {
            None => Rules::default(),
            Some(Some(all)) => all.of(channel),
            Some(None) if proven => Rules::default(),
            Some(None) => return Err(Reject::SettingsUnknown),
        };
        if set.join_needs_session == Some(true) && !proven {
            return Err(Reject::SessionNeeded);
        }
        let most = set.max_members.unwrap_or(rules.channel_members);
        if let Some(user) = user
            && most > 0
            && let Some(published) = hub.rosters.get(channel)
            && published.snapshot.online() >= most
            && published.snapshot.member(user).is_none()
        {
            hub.metrics.health.set(Trouble::MembersFull, channel);
            return Err(Reject::ChannelFull(most));
        }
        Ok(())
    }
}
