//! The roster: one node's knowledge of one channel, its own part and replicas of the others'.
//!
//! Each node is the only authority for its own connections. A part carries the version its node
//! gave it; what a node says arrives as [`Batch`]es that name the version before and after, so a
//! batch that is old or doubled changes nothing and a missing one shows as a gap, upon which the
//! caller reads the part anew ([`Reading`]). Versions of one node only grow, over all its channels,
//! so a part that ended and began again cannot be mistaken for its past.

use std::collections::btree_map::Entry as Slot;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::{Change, Entry, Member, NodeId, Seat, Snapshot};

/// The new state of one seat of a node: an entry, or none when it is free again. A seat is one
/// user's for as long as it is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    pub seat: u64,
    pub user: Arc<str>,
    pub entry: Option<Arc<Entry>>,
}

/// What a node says it did: it takes its part from version `from` to version `to`.
/// `from` 0 means "from an empty part".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    pub from: u64,
    pub to: u64,
    pub ops: Vec<Op>,
}

/// What hearing a batch led to.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub enum Heard {
    /// It was news.
    Applied(Vec<Change>),
    /// It was known already.
    Old,
    /// Something before it is missing: the node's part must be read anew.
    Gap,
}

/// One node's part of a channel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// 0 only before anything is known.
    pub version: u64,
    pub seats: HashMap<u64, Arc<Entry>>,
}

/// A channel as read from the store shared by all nodes.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// The parts found, by node.
    pub parts: HashMap<NodeId, Part>,
    /// The nodes that were alive, with everything of theirs written, before and after the reading:
    /// a part of theirs that was not found does not exist. Of any other node, absence says nothing.
    pub settled: HashSet<NodeId>,
    /// The versions known when the reading was asked for: a part that moved since is left alone.
    pub asked: HashMap<NodeId, u64>,
}

/// Who is in one channel, as far as one node knows.
#[derive(Debug)]
pub struct Roster {
    me: NodeId,
    own: Part,
    others: HashMap<NodeId, Part>,
    members: BTreeMap<Arc<str>, Arc<Member>>,
    connections: usize,
}

impl Roster {
    /// An empty roster of node `me`.
    pub fn new(me: NodeId) -> Self {
        Self { me, own: Part::default(), others: HashMap::new(), members: BTreeMap::new(), connections: 0 }
    }

    /// This node's own part.
    pub fn own(&self) -> &Part {
        &self.own
    }

    /// How many connections are present, on all nodes.
    pub fn connections(&self) -> usize {
        self.connections
    }

    /// Whether nobody is present.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The versions of the other nodes' parts.
    pub fn known(&self) -> HashMap<NodeId, u64> {
        self.others.iter().map(|(node, part)| (*node, part.version)).collect()
    }

    /// The other nodes that have somebody here.
    pub fn peers(&self) -> impl Iterator<Item = NodeId> {
        self.others.iter().filter(|(_, part)| !part.seats.is_empty()).map(|(node, _)| *node)
    }

    /// Gives the own part a new version, as it is: to be told whole, whatever anybody holds of it.
    pub fn renumber(&mut self, version: u64) {
        self.own.version = version;
    }

    /// Puts `entry` on this node's `seat` (a join, or an update where it was taken), which takes the
    /// own part to `version`.
    #[must_use]
    pub fn put(&mut self, seat: u64, entry: Arc<Entry>, version: u64) -> Change {
        self.own.version = version;
        self.set(self.me, seat, Some(entry))
    }

    /// Frees this node's `seat`. `None` if nobody sat there: then the version stays.
    #[must_use]
    pub fn remove(&mut self, seat: u64, version: u64) -> Option<Change> {
        if !self.own.seats.contains_key(&seat) {
            return None;
        }
        self.own.version = version;
        Some(self.set(self.me, seat, None))
    }

    /// Takes in what `node` said of itself.
    pub fn hear(&mut self, node: NodeId, batch: &Batch) -> Heard {
        if node == self.me {
            return Heard::Old;
        }
        let known = self.others.get(&node).map_or(0, |part| part.version);
        if batch.to <= known {
            return Heard::Old;
        }
        if batch.from > known {
            return Heard::Gap;
        }
        // A batch that overlaps what is known ends, for every seat it names, in a state at least as
        // new as ours; seats it does not name did not change after `known`.
        let mut changes = if batch.from == 0 && known != 0 { self.clear(node) } else { Vec::new() };
        for op in &batch.ops {
            changes.push(self.set(node, op.seat, op.entry.clone()));
        }
        self.others.entry(node).or_default().version = batch.to;
        Heard::Applied(changes)
    }

    /// Takes in a reading of the shared store. What is known better stays.
    #[must_use]
    pub fn merge(&mut self, mut reading: Reading) -> Vec<Change> {
        let mut changes = Vec::new();
        let known = self.known();
        for (node, part) in reading.parts.drain() {
            if node != self.me && part.version > known.get(&node).copied().unwrap_or(0) {
                changes.extend(self.replace(node, part));
                reading.asked.remove(&node);
            } else {
                reading.settled.remove(&node);
            }
        }
        for (node, version) in known {
            if reading.settled.contains(&node) && reading.asked.get(&node) == Some(&version) {
                changes.extend(self.forget(node));
            }
        }
        changes
    }

    /// Says goodbye to everyone on `node`, which is dead.
    #[must_use]
    pub fn forget(&mut self, node: NodeId) -> Vec<Change> {
        let changes = self.clear(node);
        self.others.remove(&node);
        changes
    }

    /// The roster as it is now, numbered `version`.
    pub fn snapshot(&self, version: u64) -> Snapshot {
        let members = self.members.values().cloned().collect();
        Snapshot { node: Some(self.me), version, members, connections: self.connections }
    }

    fn replace(&mut self, node: NodeId, part: Part) -> Vec<Change> {
        let gone: Vec<u64> = match self.others.get(&node) {
            Some(old) => old.seats.keys().filter(|seat| !part.seats.contains_key(seat)).copied().collect(),
            None => Vec::new(),
        };
        let mut changes: Vec<Change> = gone.into_iter().map(|seat| self.set(node, seat, None)).collect();
        for (seat, entry) in part.seats {
            changes.push(self.set(node, seat, Some(entry)));
        }
        self.others.entry(node).or_default().version = part.version;
        changes
    }

    fn clear(&mut self, node: NodeId) -> Vec<Change> {
        let seats: Vec<u64> =
            self.others.get(&node).map_or_else(Vec::new, |part| part.seats.keys().copied().collect());
        seats.into_iter().map(|seat| self.set(node, seat, None)).collect()
    }

    /// The one place where a seat changes: keeps the part and the members in step.
    fn set(&mut self, node: NodeId, number: u64, new: Option<Arc<Entry>>) -> Change {
        let seat = Seat { node, number };
        let part = if node == self.me { &mut self.own } else { self.others.entry(node).or_default() };
        let old = match &new {
            Some(entry) => part.seats.insert(number, Arc::clone(entry)),
            None => part.seats.remove(&number),
        };
        if let Some(old) = &old {
            self.leave_member(seat, &old.user);
        }
        if let Some(new) = &new {
            self.join_member(seat, new);
        }
        Change { seat, old, new }
    }

    fn join_member(&mut self, seat: Seat, entry: &Arc<Entry>) {
        self.connections += 1;
        let member = self
            .members
            .entry(Arc::clone(&entry.user))
            .or_insert_with(|| Arc::new(Member { user: Arc::clone(&entry.user), seats: Vec::new() }));
        let seats = &mut Arc::make_mut(member).seats;
        let at = seats.partition_point(|(other, e)| (e.since, *other) < (entry.since, seat));
        // Most users have one connection: no room is kept for others.
        seats.reserve_exact(1);
        seats.insert(at, (seat, Arc::clone(entry)));
    }

    fn leave_member(&mut self, seat: Seat, user: &Arc<str>) {
        let Slot::Occupied(mut held) = self.members.entry(Arc::clone(user)) else { return };
        let seats = &mut Arc::make_mut(held.get_mut()).seats;
        let before = seats.len();
        seats.retain(|(other, _)| *other != seat);
        self.connections -= before - seats.len();
        if seats.is_empty() {
            held.remove();
        }
    }
}

#[cfg(test)]
#[path = "roster_tests.rs"]
mod tests;
