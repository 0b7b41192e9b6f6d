//! The roster: one node's knowledge of one channel, its own part and replicas of the others'.
//!
//! Each node is the only authority for its own connections. A part carries the version its node
//! gave it; what a node says arrives as [`Batch`]es that name the version before and after, so a
//! batch that is old or doubled changes nothing and a missing one shows as a gap, upon which the
//! caller reads the part anew ([`Reading`]). Versions of one node only grow, over all its channels,
//! so a part that ended and began again cannot be mistaken for its past.
//!
//! What is shown is a pure function of the parts, but for one memory: a user who leaves must not show
//! again on an older seat of whose end nothing was heard yet ([`Roster::take_closed`]).

use std::collections::btree_map::Entry as Slot;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::claims::Claims;
use super::{Change, Entry, Member, NodeId, Ref, Seat, Snapshot, digest};

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

/// What a node states of its own part: its version, and its digest where it is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stated {
    pub version: u64,
    pub digest: Option<u64>,
}

/// In what a replica differs from what its node states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// It is older.
    Missed,
    /// It has the same version and shows something else.
    Diverged,
    /// The node states nothing, and somebody of it is shown.
    Gone,
}

/// Who is in one channel, as far as one node knows.
#[derive(Debug)]
pub struct Roster {
    me: NodeId,
    own: Part,
    own_digest: u64,
    others: HashMap<NodeId, Part>,
    members: BTreeMap<Arc<str>, Arc<Member>>,
    connections: usize,
    /// The origins that somebody claims from another seat than their own. Few.
    claims: HashMap<Seat, Claims>,
    /// Own seats that were outdone by a claim of another node.
    outdone: Vec<u64>,
    /// Origins whose holder has left while lower claims were still known.
    closed: Vec<Seat>,
}

/// A seat of a user, as it is shown.
#[derive(Clone, Copy, Debug)]
pub struct Sitting<'a> {
    /// By what viewers know it.
    pub origin: Seat,
    /// Where the user really sits.
    pub seat: Seat,
    pub entry: &'a Arc<Entry>,
}

/// Why a seat is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// Its node says so.
    Word,
    /// Its node is gone, which says nothing about its users.
    Gone,
}

impl Roster {
    /// An empty roster of node `me`.
    pub fn new(me: NodeId) -> Self {
        Self {
            me,
            own: Part::default(),
            own_digest: 0,
            others: HashMap::new(),
            members: BTreeMap::new(),
            connections: 0,
            claims: HashMap::new(),
            outdone: Vec::new(),
            closed: Vec::new(),
        }
    }

    /// This node's own part.
    pub fn own(&self) -> &Part {
        &self.own
    }

    /// The digest of the own part.
    pub fn own_digest(&self) -> u64 {
        self.own_digest
    }

    /// Which of the other nodes' parts differ here from what their nodes `stated` of them.
    pub fn differences(&self, stated: &HashMap<NodeId, Stated>) -> Vec<(NodeId, Difference)> {
        let differs = |(node, stated): (&NodeId, &Stated)| {
            let known = self.others.get(node);
            let version = known.map_or(0, |part| part.version);
            let digest = known.map_or(0, Part::digest);
            let is_newer = *node != self.me && version < stated.version;
            let is_other = version == stated.version && stated.digest.is_some_and(|stated| stated != digest);
            match (is_newer, is_other) {
                (true, _) => Some((*node, Difference::Missed)),
                (false, true) => Some((*node, Difference::Diverged)),
                (false, false) => None,
            }
        };
        let gone = self.peers().filter(|node| !stated.contains_key(node));
        stated.iter().filter_map(differs).chain(gone.map(|node| (node, Difference::Gone))).collect()
    }

    /// Believes no more what is known of `node`: the next reading of it counts, even of the same version.
    pub fn distrust(&mut self, node: NodeId) {
        if let Some(part) = self.others.get_mut(&node) {
            part.version = part.version.saturating_sub(1);
        }
    }

    /// How many connections are present, on all nodes.
    pub fn connections(&self) -> usize {
        self.connections
    }

    /// How many users are present, on all nodes.
    pub fn online(&self) -> usize {
        self.members.len()
    }

    /// What is known to be on the seats of `node`.
    pub fn shown_of(&self, node: NodeId) -> BTreeSet<(u64, Ref)> {
        let seats = self.others.get(&node).map(|part| &part.seats);
        seats.into_iter().flatten().map(|(seat, entry)| (*seat, entry.r#ref)).collect()
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

    /// The seats of `user` that are shown, the oldest first.
    pub fn sittings(&self, user: &str) -> impl Iterator<Item = Sitting<'_>> {
        let seats = self.members.get(user).map_or(&[][..], |member| &member.seats);
        seats.iter().map(|(origin, entry)| {
            let shown = self.claims.get(origin).and_then(Claims::shown);
            Sitting { origin: *origin, seat: shown.map_or(*origin, |(seat, _)| seat), entry }
        })
    }

    /// What `user` came with, if it is there.
    pub fn first_meta(&self, user: &str) -> Option<&Arc<str>> {
        self.members.get(user).map(|member| &member.first_meta)
    }

    /// The own seats that were outdone by a claim of another node since the last call: to be freed.
    #[must_use]
    pub fn take_outdone(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.outdone)
    }

    /// The origins that were closed since the last call: their holder has left, and lower claims of which
    /// the end was not heard yet are not shown. For that memory not to outlive a lost message, the caller
    /// ends it some time later with [`Roster::reopen`].
    #[must_use]
    pub fn take_closed(&mut self) -> Vec<Seat> {
        std::mem::take(&mut self.closed)
    }

    /// Whoever claims `origin` is shown after all, though another who did has left.
    #[must_use]
    pub fn reopen(&mut self, origin: Seat) -> Option<Change> {
        let claims = self.claims.get_mut(&origin)?;
        let before = claims.shown().map(|(_, entry)| Arc::clone(entry));
        claims.reopen();
        Some(self.show_claims(origin, before))
    }

    /// Puts `entry` on this node's `seat` (a join, or an update where it was taken), which takes the
    /// own part to `version`. The origin of what is on a seat stays the same.
    #[must_use]
    pub fn put(&mut self, seat: u64, entry: Arc<Entry>, version: u64) -> Change {
        self.own.version = version;
        self.set(self.me, seat, Some(entry), Cause::Word)
    }

    /// Frees this node's `seat`. `None` if nobody sat there: then the version stays.
    #[must_use]
    pub fn remove(&mut self, seat: u64, version: u64) -> Option<Change> {
        if !self.own.seats.contains_key(&seat) {
            return None;
        }
        self.own.version = version;
        Some(self.set(self.me, seat, None, Cause::Word))
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
        if batch.from == 0 {
            let seats = batch.ops.iter().filter_map(|op| Some((op.seat, Arc::clone(op.entry.as_ref()?))));
            return Heard::Applied(self.replace(node, Part { version: batch.to, seats: seats.collect() }));
        }
        let mut changes = Vec::new();
        for op in &batch.ops {
            self.take(node, op.seat, op.entry.clone(), &mut changes);
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
        let changes = self.clear(node, Cause::Gone);
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
        let mut changes: Vec<Change> =
            gone.into_iter().map(|seat| self.set(node, seat, None, Cause::Word)).collect();
        for (seat, entry) in part.seats {
            self.take(node, seat, Some(entry), &mut changes);
        }
        self.others.entry(node).or_default().version = part.version;
        changes
    }

    fn clear(&mut self, node: NodeId, cause: Cause) -> Vec<Change> {
        let seats: Vec<u64> =
            self.others.get(&node).map_or_else(Vec::new, |part| part.seats.keys().copied().collect());
        seats.into_iter().map(|seat| self.set(node, seat, None, cause)).collect()
    }

    /// Takes in the state of one seat of another node. Should it claim another origin than before, which
    /// nodes do not do, it is two changes.
    fn take(&mut self, node: NodeId, number: u64, new: Option<Arc<Entry>>, changes: &mut Vec<Change>) {
        let seat = Seat { node, number };
        let held = self.others.get(&node).and_then(|part| part.seats.get(&number));
        if let (Some(held), Some(new)) = (held, &new)
            && held.origin_at(seat) != new.origin_at(seat)
        {
            changes.push(self.set(node, number, None, Cause::Word));
        }
        changes.push(self.set(node, number, new, Cause::Word));
    }

    /// The one place where a seat changes: keeps the part, the claims and the members in step.
    fn set(&mut self, node: NodeId, number: u64, new: Option<Arc<Entry>>, cause: Cause) -> Change {
        let seat = Seat { node, number };
        let part = if node == self.me { &mut self.own } else { self.others.entry(node).or_default() };
        let old = match &new {
            Some(entry) => part.seats.insert(number, Arc::clone(entry)),
            None => part.seats.remove(&number),
        };
        if node == self.me {
            self.own_digest ^= digest::change(number, old.as_ref(), new.as_ref());
        }
        let origin = new.as_ref().or(old.as_ref()).map_or(seat, |entry| entry.origin_at(seat));
        if origin != seat || self.claims.contains_key(&origin) {
            return self.set_claim(origin, seat, old, new, cause);
        }
        self.show(seat, old.as_ref(), new.as_ref());
        Change { seat, old, new }
    }

    /// The same where an origin is claimed from another seat than its own.
    fn set_claim(
        &mut self,
        origin: Seat,
        seat: Seat,
        old: Option<Arc<Entry>>,
        new: Option<Arc<Entry>>,
        cause: Cause,
    ) -> Change {
        if !self.claims.contains_key(&origin) {
            let first = self.entry(origin).filter(|entry| entry.origin.is_none()).map(Arc::clone);
            self.claims.insert(origin, Claims::new(origin, first));
        }
        let claims = self.claims.entry(origin).or_default();
        let before = claims.shown().map(|(seat, entry)| (seat, Arc::clone(entry)));
        claims.set(seat, new.as_ref());
        let has_left = new.is_none() && cause == Cause::Word && before.as_ref().is_some_and(|b| b.0 == seat);
        if let Some(old) = old.filter(|_| has_left)
            && claims.close(old.turn())
        {
            self.closed.push(origin);
        }
        self.outdone.extend(claims.outdone().filter(|seat| seat.node == self.me).map(|seat| seat.number));
        self.show_claims(origin, before.map(|(_, entry)| entry))
    }

    /// Shows what the claims of `origin` come to, in place of `old`.
    fn show_claims(&mut self, origin: Seat, old: Option<Arc<Entry>>) -> Change {
        let claims = self.claims.get(&origin);
        let new = claims.and_then(Claims::shown).map(|(_, entry)| Arc::clone(entry));
        if claims.is_some_and(|claims| claims.is_plain(origin)) {
            self.claims.remove(&origin);
        }
        self.show(origin, old.as_ref(), new.as_ref());
        Change { seat: origin, old, new }
    }

    /// What is on a seat, of whatever node.
    fn entry(&self, seat: Seat) -> Option<&Arc<Entry>> {
        let part = if seat.node == self.me { Some(&self.own) } else { self.others.get(&seat.node) };
        part.and_then(|part| part.seats.get(&seat.number))
    }

    /// Shows `new` in place of `old` under the name of `seat`.
    fn show(&mut self, seat: Seat, old: Option<&Arc<Entry>>, new: Option<&Arc<Entry>>) {
        if let (Some(old), Some(new)) = (old, new)
            && (&old.user, old.since) == (&new.user, new.since)
        {
            return self.update_member(seat, new);
        }
        if let Some(old) = old {
            self.leave_member(seat, &old.user);
        }
        if let Some(new) = new {
            self.join_member(seat, new);
        }
    }

    /// The member stays, and the place among its seats too.
    fn update_member(&mut self, seat: Seat, entry: &Arc<Entry>) {
        let Some(member) = self.members.get_mut(&entry.user) else { return };
        let place = Arc::make_mut(member).seats.iter_mut().find(|(other, _)| *other == seat);
        if let Some((_, shown)) = place {
            *shown = Arc::clone(entry);
        }
    }

    fn join_member(&mut self, seat: Seat, entry: &Arc<Entry>) {
        self.connections += 1;
        let came = || Member {
            user: Arc::clone(&entry.user),
            first_meta: Arc::clone(entry.first_meta()),
            seats: Vec::new(),
        };
        let member = self.members.entry(Arc::clone(&entry.user)).or_insert_with(|| Arc::new(came()));
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

#[cfg(test)]
#[path = "claims_tests.rs"]
mod claims_tests;
