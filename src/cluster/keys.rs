//! The names of the cluster's keys and topics in Redis. ARCHITECTURE.md lists them.

use crate::json;
use crate::keys::encode;
use crate::presence::NodeId;

/// Every node that has held a lease and was not cleaned up after: a set of node ids.
pub const NODES: &str = "presence:nodes";
/// Topic: what concerns nodes as a whole.
pub const NODES_TOPIC: &str = "presence:nodes:events";

const CHANNEL: &str = "presence:channel:";
const EVENTS: &str = ":events";

/// The keys of channels. In a cluster the channel's name stands in braces, as a hash tag: so all that
/// belongs to a channel is in one slot, and a script may touch it at once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Keys {
    tagged: bool,
}

impl Keys {
    /// Keys for a Redis that is a cluster, or is none.
    pub fn new(cluster: bool) -> Self {
        Self { tagged: cluster }
    }

    /// Whether Redis is a cluster, where keys may lie on different servers.
    pub fn is_tagged(self) -> bool {
        self.tagged
    }

    fn of(self, channel: &str, end: &str) -> String {
        let name = encode(channel);
        if self.tagged { format!("{CHANNEL}{{{name}}}{end}") } else { format!("{CHANNEL}{name}{end}") }
    }

    /// The user ids that are in `channel`: a set.
    pub fn users(self, channel: &str) -> String {
        self.of(channel, ":users")
    }

    /// The version of each node's part of `channel`: a hash by node id.
    pub fn versions(self, channel: &str) -> String {
        self.of(channel, ":nodes")
    }

    /// What the hash of every user in `channel` begins with; the encoded user id follows.
    pub fn user_prefix(self, channel: &str) -> String {
        self.of(channel, ":user:")
    }

    /// The hash of `user` in `channel`: the user's connections, by [`field`].
    pub fn user(self, channel: &str, user: &str) -> String {
        format!("{}{}", self.user_prefix(channel), encode(user))
    }

    /// What lives longer than presence: so it stands apart.
    fn longer(self, begin: &str, channel: &str, day: u64) -> String {
        let (name, date) = (encode(channel), date(day));
        if self.tagged { format!("{begin}{{{name}}}:{date}") } else { format!("{begin}{name}:{date}") }
    }

    /// What was counted of `channel` on a day, numbered from 1970: a hash.
    pub fn stats(self, channel: &str, day: u64) -> String {
        self.longer("cache:stats:", channel, day)
    }

    /// Who was in `channel` on a day: a HyperLogLog of user ids.
    pub fn uniques(self, channel: &str, day: u64) -> String {
        self.longer("cache:uniques:", channel, day)
    }

    /// Where those in `channel` are who say so: a geographical index of [`place`]s.
    pub fn places(self, channel: &str) -> String {
        self.of(channel, ":places")
    }

    /// Where the changes of `channel` are announced.
    pub fn topic(self, channel: &str) -> String {
        self.of(channel, EVENTS)
    }
}

/// The day as a date; an empty one past the year 9999.
fn date(day: u64) -> String {
    let written = json::rfc3339(day.saturating_mul(86_400_000)).unwrap_or_default();
    written.split('T').next().unwrap_or_default().to_owned()
}

/// Who is at a place: the field of the seat in the user's hash, and the user.
pub fn place(field: &str, user: &str) -> String {
    format!("{field}|{user}")
}

/// The other way round.
pub fn parse_place(place: &str) -> Option<(&str, &str)> {
    place.split_once('|')
}

/// The connections of `user` in all channels: a hash, by [`field`], of channel names.
pub fn connections(user: &str) -> String {
    format!("presence:user:{}:connections", encode(user))
}

/// By which connections `user` is active, and until when: a hash, by [`field`].
pub fn active(user: &str) -> String {
    format!("cache:active:{}", encode(user))
}

/// When `user` first joined a channel, in milliseconds since 1970.
pub fn first_seen(user: &str) -> String {
    format!("cache:first_seen:{}", encode(user))
}

/// When `user` last left a channel, in milliseconds since 1970.
pub fn last_seen(user: &str) -> String {
    format!("presence:user:{}:last_seen", encode(user))
}

/// The lease of `node`: as long as it is there, the node is alive.
pub fn lease(node: NodeId) -> String {
    format!("presence:node:{node}")
}

/// The channels in which `node` has written something: a set, for whoever cleans up after it.
pub fn channels(node: NodeId) -> String {
    format!("presence:node:{node}:channels")
}

/// The field of one seat, in a user's hash.
pub fn field(node: NodeId, seat: u64) -> String {
    format!("{node}:{seat}")
}

/// The node and the seat that a field names.
pub fn parse_field(field: &str) -> Option<(NodeId, u64)> {
    let (node, seat) = field.split_once(':')?;
    Some((node.parse().ok()?, seat.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_pairs_share_a_key() {
        let keys = Keys::new(false);
        assert_eq!(keys.users("room:1"), "presence:channel:room%3A1:users");
        assert_eq!(keys.user("a", "b:c"), "presence:channel:a:user:b%3Ac");
        assert_ne!(keys.user("a:user:b", "c"), keys.user("a", "b:user:c"));
    }

    #[test]
    fn in_a_cluster_a_channel_is_one_slot() {
        let keys = Keys::new(true);
        assert_eq!(keys.users("room:{1}"), "presence:channel:{room%3A%7B1%7D}:users");
        assert_eq!(keys.user("a", "{b}"), "presence:channel:{a}:user:%7Bb%7D");
        assert_eq!(keys.topic("a"), "presence:channel:{a}:events");
    }

    #[test]
    fn a_field_is_read_as_it_was_written() {
        let node = NodeId::random();
        assert_eq!(parse_field(&field(node, 7)), Some((node, 7)));
        assert_eq!(parse_field("x:7"), None);
    }
}
