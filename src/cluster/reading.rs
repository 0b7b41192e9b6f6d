//! A reading of the shared store: what may be believed of it.
//!
//! Pure. A part that is not found does not exist only if its node had written everything, before and
//! after the reading. And what a node left behind that died before anybody here knew it is nothing to
//! show; if it only lost its lease with everything else, it will write and announce again.

use std::collections::{BTreeSet, HashMap};

use crate::presence::{NodeId, Part, Reading};

/// What one transaction found.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The nodes whose lease said that everything of theirs is written, before and after.
    pub settled: BTreeSet<NodeId>,
    pub parts: HashMap<NodeId, Part>,
}

/// A reading of which it is not known yet whether the nodes that are news are alive.
#[derive(Debug)]
pub struct Unchecked {
    reading: Reading,
    strangers: Vec<NodeId>,
}

impl Unchecked {
    /// What `me` may believe of `found`, who knew the versions in `asked` when it asked.
    pub fn new(
        me: NodeId,
        asked: HashMap<NodeId, u64>,
        mut found: Found,
        is_buried: impl Fn(NodeId) -> bool,
    ) -> Self {
        found.parts.retain(|node, _| !is_buried(*node));
        // Of the dead, nothing is left to come either.
        let settled =
            asked.keys().copied().filter(|node| is_buried(*node) || found.settled.contains(node)).collect();
        let is_strange = |node: &NodeId| *node != me && !asked.contains_key(node);
        let strangers = found.parts.keys().copied().filter(is_strange).collect();
        Self { reading: Reading { parts: found.parts, settled, asked }, strangers }
    }

    /// The nodes that are news: of those only the living count.
    pub fn strangers(&self) -> &[NodeId] {
        &self.strangers
    }

    /// The reading, of whose strangers `alive` hold a lease.
    pub fn check(mut self, alive: &BTreeSet<NodeId>) -> Reading {
        let strangers = self.strangers;
        self.reading.parts.retain(|node, _| !strangers.contains(node) || alive.contains(node));
        self.reading
    }
}
