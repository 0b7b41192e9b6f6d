//! What a channel does with what it is told: the logic of the channel actor, without the actor.
//!
//! Plain data: inputs come in as method calls with the time as an argument, and what must be done
//! comes out as [`Output`]s. It joins the roster (who is in), the grace (whose seat waits), the
//! pending diff (what viewers must be told) and the catching up with other nodes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::grace::Grace;
use crate::presence::{
    Batch, Change, Diff, Entry, Heard, Ids, NodeId, Op, Pending, Reading, Roster, Snapshot,
};

/// How many batches may wait for a reading. Over it they are let go, and another reading follows.
const MAX_BUFFERED: usize = 1_024;

/// Something that must be done outside.
#[derive(Debug, PartialEq, Eq)]
pub enum Output {
    /// Tell the other nodes and the shared store.
    Announce(Batch),
    /// Read the channel from the shared store; the versions known now go with the question.
    Read(HashMap<NodeId, u64>),
}

/// Batches that wait until a reading under way has come.
#[derive(Debug, Default)]
struct CatchingUp {
    buffered: Vec<(NodeId, Arc<Batch>)>,
    overflowed: bool,
}

/// One channel on one node.
#[derive(Debug)]
pub struct ChannelState {
    ids: Ids,
    grace_period: Duration,
    roster: Roster,
    /// The seat of each connection that is present.
    seats: HashMap<u64, u64>,
    grace: Grace,
    pending: Pending,
    /// When the oldest pending change of this node's own happened.
    oldest: Option<Instant>,
    catching_up: Option<CatchingUp>,
    /// Whether the roster is known well enough to be shown.
    live: bool,
    outputs: Vec<Output>,
}

impl ChannelState {
    /// An empty channel, not yet live.
    pub fn new(ids: Ids, grace_period: Duration) -> Self {
        let roster = Roster::new(ids.node());
        Self {
            ids,
            grace_period,
            roster,
            seats: HashMap::new(),
            grace: Grace::default(),
            pending: Pending::default(),
            oldest: None,
            catching_up: None,
            live: false,
            outputs: Vec::new(),
        }
    }

    /// `connection` is present as `user` and shows `meta`: a join, or an update, or a return within
    /// the grace. The same again changes nothing. `wall` is milliseconds since 1970.
    pub fn track(&mut self, connection: u64, user: &Arc<str>, meta: &Arc<str>, wall: u64, now: Instant) {
        if let Some(seat) = self.seats.get(&connection).copied() {
            let held = self.roster.own().seats.get(&seat).map(|e| Arc::clone(&e.user));
            if held.as_ref() == Some(user) {
                return self.show(seat, user, meta, wall, now);
            }
            self.untrack(connection, now);
        }
        let seat = self.grace.take(user, meta).unwrap_or_else(|| self.ids.number());
        self.seats.insert(connection, seat);
        self.show(seat, user, meta, wall, now);
    }

    /// `connection` is present no more, by its own word: everybody is told without delay.
    pub fn untrack(&mut self, connection: u64, now: Instant) {
        if let Some(seat) = self.seats.remove(&connection) {
            self.free(seat, now);
        }
    }

    /// The socket of `connection` has ended without a word: its seat waits for the grace.
    pub fn dropped(&mut self, connection: u64, now: Instant) {
        let Some(seat) = self.seats.remove(&connection) else { return };
        match self.roster.own().seats.get(&seat) {
            Some(entry) if !self.grace_period.is_zero() => {
                let (user, meta) = (Arc::clone(&entry.user), Arc::clone(&entry.meta));
                self.grace.keep(seat, user, meta, now, self.grace_period);
            }
            _ => self.free(seat, now),
        }
    }

    /// Frees the seats whose grace is over.
    pub fn end_grace(&mut self, now: Instant) {
        for seat in self.grace.expired(now) {
            self.free(seat, now);
        }
    }

    /// When [`ChannelState::end_grace`] has something to do next.
    pub fn next_grace(&self) -> Option<Instant> {
        self.grace.next()
    }

    /// Frees all own seats, those in grace included: the node is going away.
    pub fn leave_all(&mut self, now: Instant) {
        self.grace.end_all();
        self.seats.clear();
        let seats: Vec<u64> = self.roster.own().seats.keys().copied().collect();
        for seat in seats {
            self.free(seat, now);
        }
    }

    /// Takes in what another node announced. What cannot be placed waits for a reading.
    pub fn hear(&mut self, node: NodeId, batch: Arc<Batch>) -> HeardAs {
        match self.roster.hear(node, &batch) {
            Heard::Applied(changes) => {
                self.gather(changes);
                HeardAs::News
            }
            Heard::Old => HeardAs::Old,
            Heard::Gap => {
                self.read();
                if let Some(catching_up) = &mut self.catching_up {
                    if catching_up.buffered.len() < MAX_BUFFERED {
                        catching_up.buffered.push((node, batch));
                    } else {
                        catching_up.overflowed = true;
                    }
                }
                HeardAs::Gap
            }
        }
    }

    /// Something may have been missed: asks for a reading, unless one is under way, which then will
    /// be followed by another.
    pub fn read(&mut self) {
        if self.catching_up.is_none() {
            self.catching_up = Some(CatchingUp::default());
            self.outputs.push(Output::Read(self.roster.known()));
        }
    }

    /// As [`ChannelState::read`], and a reading under way is not good enough.
    pub fn read_again(&mut self) {
        match &mut self.catching_up {
            Some(catching_up) => catching_up.overflowed = true,
            None => self.read(),
        }
    }

    /// Takes in a reading, or `None` when the store could not be read: then what is known here is
    /// shown, and the next contact with the store asks again.
    pub fn merge(&mut self, reading: Option<Reading>) {
        let Some(catching_up) = self.catching_up.take() else { return };
        self.live = true;
        let Some(reading) = reading else { return };
        let changes = self.roster.merge(reading);
        self.gather(changes);
        if catching_up.overflowed {
            self.read();
        }
        for (node, batch) in catching_up.buffered {
            self.hear(node, batch);
        }
    }

    /// Compares what the other nodes say their versions are with what is known here.
    pub fn compare(&mut self, versions: &HashMap<NodeId, u64>) {
        let known = self.roster.known();
        let newer = versions.iter().any(|(node, version)| {
            *node != self.ids.node() && known.get(node).copied().unwrap_or(0) < *version
        });
        let gone = self.roster.peers().any(|node| !versions.contains_key(&node));
        if newer || gone {
            self.read();
        }
    }

    /// Says goodbye to everyone on `node`, which is dead.
    pub fn node_down(&mut self, node: NodeId) {
        let changes = self.roster.forget(node);
        self.gather(changes);
    }

    /// The roster can be shown: there is nothing to read it from but what is known here.
    pub fn go_live(&mut self) {
        self.live = true;
    }

    /// Whether the roster can be shown.
    pub fn is_live(&self) -> bool {
        self.live
    }

    /// The changes that wait to be told.
    pub fn pending(&self) -> &Pending {
        &self.pending
    }

    /// The diff to tell now, and when the oldest own change in it happened.
    #[must_use]
    pub fn take_diff(&mut self) -> (Diff, Option<Instant>) {
        (self.pending.take(), self.oldest.take())
    }

    /// What must be done outside since the last call.
    #[must_use]
    pub fn take_outputs(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }

    /// The roster as it is now, numbered `version`.
    pub fn snapshot(&self, version: u64) -> Snapshot {
        self.roster.snapshot(version)
    }

    /// The version of this node's own part, and who is in it.
    pub fn own(&self) -> (u64, Vec<(u64, Arc<Entry>)>) {
        let own = self.roster.own();
        (own.version, own.seats.iter().map(|(seat, entry)| (*seat, Arc::clone(entry))).collect())
    }

    /// As [`ChannelState::own`], to be written to a store that may hold something else: under a new version,
    /// so that nobody who thinks this node dead clears it away, and nothing late undoes it. Also where
    /// nobody of this node is: an earlier life of the channel may stand there.
    pub fn own_to_write(&mut self) -> (u64, Vec<(u64, Arc<Entry>)>) {
        self.roster.renumber(self.ids.number());
        self.own()
    }

    /// How many own seats are taken, those in grace included.
    pub fn own_seats(&self) -> usize {
        self.roster.own().seats.len()
    }

    /// The entries on these own seats that are still taken.
    pub fn entries(&self, seats: &[u64]) -> Vec<Op> {
        let own = &self.roster.own().seats;
        seats
            .iter()
            .filter_map(|seat| {
                let entry = Arc::clone(own.get(seat)?);
                Some(Op { seat: *seat, user: Arc::clone(&entry.user), entry: Some(entry) })
            })
            .collect()
    }

    fn show(&mut self, seat: u64, user: &Arc<str>, meta: &Arc<str>, wall: u64, now: Instant) {
        let held = self.roster.own().seats.get(&seat);
        if held.is_some_and(|entry| entry.meta == *meta) {
            return;
        }
        let entry = Arc::new(Entry {
            user: held.map_or_else(|| Arc::clone(user), |e| Arc::clone(&e.user)),
            r#ref: self.ids.r#ref(),
            meta: Arc::clone(meta),
            since: held.map_or(wall, |e| e.since),
        });
        let (from, to) = (self.roster.own().version, self.ids.number());
        let change = self.roster.put(seat, Arc::clone(&entry), to);
        let op = Op { seat, user: Arc::clone(&entry.user), entry: Some(entry) };
        self.announce(from, to, op);
        self.own_change(change, now);
    }

    fn free(&mut self, seat: u64, now: Instant) {
        let (from, to) = (self.roster.own().version, self.ids.number());
        let Some(change) = self.roster.remove(seat, to) else { return };
        if let Some(old) = &change.old {
            self.announce(from, to, Op { seat, user: Arc::clone(&old.user), entry: None });
        }
        self.own_change(change, now);
    }

    fn announce(&mut self, from: u64, to: u64, op: Op) {
        self.outputs.push(Output::Announce(Batch { from, to, ops: vec![op] }));
    }

    fn own_change(&mut self, change: Change, now: Instant) {
        self.oldest.get_or_insert(now);
        self.pending.add(change);
    }

    fn gather(&mut self, changes: Vec<Change>) {
        for change in changes {
            self.pending.add(change);
        }
    }
}

/// What a batch from another node was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeardAs {
    News,
    Old,
    Gap,
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
