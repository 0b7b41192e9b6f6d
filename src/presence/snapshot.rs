//! A whole roster at one version, in the form in which it is read.

use std::sync::Arc;

use super::{Entry, NodeId, Seat};

/// A user with at least one connection in the channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub user: Arc<str>,
    /// The meta with which the user came. It stays until the user has left: some viewers are told nothing else.
    pub first_meta: Arc<str>,
    /// The user's connections, the oldest first. Never empty.
    pub seats: Vec<(Seat, Arc<Entry>)>,
}

impl Member {
    /// When the user came online here: the arrival of the oldest connection that is still there.
    pub fn since(&self) -> u64 {
        self.seats.iter().map(|(_, e)| e.since).min().unwrap_or_default()
    }
}

/// Everyone in a channel at one version. Sorted by user, so that it can be read in pages.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The node that numbered it; none where it was read from the shared store.
    pub node: Option<NodeId>,
    /// Grows with every diff; a diff numbered at or below it is already in it.
    pub version: u64,
    pub members: Vec<Arc<Member>>,
    /// The sum of the members' connections.
    pub connections: usize,
}

impl Snapshot {
    /// The version as callers are told it: unlike any other node's.
    pub fn version_name(&self) -> String {
        let node = self.node.map_or_else(|| "redis".to_owned(), |node| node.short());
        format!("{node}.{}", self.version)
    }

    /// How many users are in the channel.
    pub fn online(&self) -> usize {
        self.members.len()
    }

    /// The member called `user`, if present.
    pub fn member(&self, user: &str) -> Option<&Arc<Member>> {
        let at = self.members.binary_search_by(|m| m.user.as_ref().cmp(user)).ok()?;
        self.members.get(at)
    }

    /// The members after `user` in order, or all of them.
    pub fn after(&self, user: Option<&str>) -> &[Arc<Member>] {
        let from = user.map_or(0, |user| self.members.partition_point(|m| m.user.as_ref() <= user));
        &self.members[from..]
    }
}
