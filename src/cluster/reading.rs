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
    /// Parts of nodes that are thought dead, with their versions. They do not count, whether one is back or not.
    buried: Vec<(NodeId, u64)>,
}

impl Unchecked {
    /// What `me` may believe of `found`, who knew the versions in `asked` when it asked.
    pub fn new(
        me: NodeId,
        asked: HashMap<NodeId, u64>,
        mut found: Found,
        is_buried: impl Fn(NodeId) -> bool,
    ) -> Self {
        let buried = found.parts.iter().filter(|(node, _)| is_buried(**node));
        let buried = buried.map(|(node, part)| (*node, part.version)).collect();
        found.parts.retain(|node, _| !is_buried(*node));
        // Of the dead, nothing is left to come either.
        let settled =
            asked.keys().copied().filter(|node| is_buried(*node) || found.settled.contains(node)).collect();
        let is_strange = |node: &NodeId| *node != me && !asked.contains_key(node);
        let strangers = found.parts.keys().copied().filter(is_strange).collect();
        Self { reading: Reading { parts: found.parts, settled, asked }, strangers, buried }
    }

    /// The nodes of which it must be known whether they live: those that are news, of which only the living
    /// count, and those that are thought dead, of which only the dead are cleaned up after.
    pub fn doubtful(&self) -> Vec<NodeId> {
        self.strangers.iter().copied().chain(self.buried.iter().map(|(node, _)| *node)).collect()
    }

    /// The reading, of whose doubtful nodes `alive` hold a lease; and what dead nodes have left behind, by their
    /// versions: it is to be cleared, since whoever cleans up after a node may not know of it any more.
    pub fn check(mut self, alive: &BTreeSet<NodeId>) -> (Reading, Vec<(NodeId, u64)>) {
        let strangers = self.strangers;
        let mut dead = self.buried;
        dead.retain(|(node, _)| !alive.contains(node));
        self.reading.parts.retain(|node, part| {
            let counts = !strangers.contains(node) || alive.contains(node);
            if !counts {
                dead.push((*node, part.version));
            }
            counts
        });
        (self.reading, dead)
    }
}
