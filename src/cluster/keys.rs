//! The names of the cluster's keys and topics in Redis. ARCHITECTURE.md lists them.

use crate::keys::encode;
use crate::presence::NodeId;

/// Every node that has held a lease and was not cleaned up after: a set of node ids.
pub const NODES: &str = "presence:nodes";
/// Topic: what concerns nodes as a whole.
pub const NODES_TOPIC: &str = "presence:nodes:events";

const CHANNEL: &str = "presence:channel:";
const EVENTS: &str = ":events";

/// The user ids that are in `channel`: a set.
pub fn users(channel: &str) -> String {
    format!("{CHANNEL}{}:users", encode(channel))
}

/// The version of each node's part of `channel`: a hash by node id.
pub fn versions(channel: &str) -> String {
    format!("{CHANNEL}{}:nodes", encode(channel))
}

/// What the hash of every user in `channel` begins with; the encoded user id follows.
pub fn user_prefix(channel: &str) -> String {
    format!("{CHANNEL}{}:user:", encode(channel))
}

/// Where the changes of `channel` are announced.
pub fn topic(channel: &str) -> String {
    format!("{CHANNEL}{}{EVENTS}", encode(channel))
}

/// The connections of `user` in all channels: a hash, by [`field`], of channel names.
pub fn connections(user: &str) -> String {
    format!("presence:user:{}:connections", encode(user))
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
        assert_eq!(users("room:1"), "presence:channel:room%3A1:users");
        assert_eq!(user_prefix("a") + &encode("b:c"), "presence:channel:a:user:b%3Ac");
        assert_ne!(user_prefix("a:user:b") + "c", user_prefix("a") + "b:user:c");
    }

    #[test]
    fn a_field_is_read_as_it_was_written() {
        let node = NodeId::random();
        assert_eq!(parse_field(&field(node, 7)), Some((node, 7)));
        assert_eq!(parse_field("x:7"), None);
    }
}
