//! The contact: what a node owes Redis, and when everything of its own stands there.
//!
//! Pure: no I/O, no clock. Channels queue their [`Write`]s; the writer takes them in batches, carries
//! them out and hands in the [`Reply`]s. A contact begins whenever Redis may hold nothing of ours, or
//! too much: at every connection, when the lease is gone, and when the queue has run over. Then the
//! lease is set first, every open channel writes the whole of its own part, channels that have ended
//! meanwhile are cleared, and when a barrier behind all that has been carried out, the contact is
//! settled: what of this node does not stand in Redis does not exist.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use indexmap::IndexMap;

use super::Told;
use crate::presence::{Batch, Entry, Ids, NodeId, Op, Stated};

/// Writes that may wait for Redis.
pub const MAX_WRITES: usize = 65_536;
/// Writes carried out together.
const MAX_BATCH: usize = 1_000;
/// Channels that are asked at the same time to write their part again.
const AT_ONCE: usize = 1_000;

/// Bytes of a part that is announced whole when it is written again.
const MAX_TOLD_BYTES: usize = 32 * 1024;

/// Seats with who sits on them.
pub type Seats = Vec<(u64, Arc<Entry>)>;

/// Something to be written to Redis.
#[derive(Clone, Debug)]
pub enum Write {
    /// The lease, at the beginning of a contact.
    Lease { contact: u64 },
    /// The lease goes on, where it is still that of this contact.
    Renew { contact: u64, settled: bool },
    /// Changes of the own part, to be announced as well.
    Changes { channel: Arc<str>, batch: Batch, digest: u64 },
    /// The whole of the own part.
    Again { channel: Arc<str>, version: u64, digest: u64, seats: Seats },
    /// A heartbeat.
    Beat { channel: Arc<str>, version: u64, seats: Seats },
    /// The channel has ended here: what stands of this node goes, up to `version`.
    Close { channel: Arc<str>, version: u64 },
    /// What stands of a dead node in a channel goes, up to `version`.
    Clear { channel: Arc<str>, node: NodeId, version: u64 },
    /// In which channels has this node written?
    List { contact: u64 },
    /// Everything of this contact has been queued before.
    Barrier { contact: u64 },
}

impl Write {
    /// The channel that it concerns.
    pub fn channel(&self) -> Option<&Arc<str>> {
        match self {
            Self::Changes { channel, .. }
            | Self::Again { channel, .. }
            | Self::Beat { channel, .. }
            | Self::Close { channel, .. }
            | Self::Clear { channel, .. } => Some(channel),
            Self::Lease { .. } | Self::Renew { .. } | Self::List { .. } | Self::Barrier { .. } => None,
        }
    }

    /// Whether it comes again by itself, so that nothing stays unwritten when it is dropped.
    fn comes_again(&self) -> bool {
        matches!(self, Self::Beat { .. } | Self::Renew { .. } | Self::Clear { .. })
    }
}

/// What Redis answered to one [`Write`].
#[derive(Clone, Debug)]
pub enum Reply {
    Done,
    /// To a renewal: there is no lease of this contact.
    NoLease,
    /// To changes or a heartbeat: what they build on is not there any more.
    Lost,
    /// To a heartbeat.
    Beaten {
        stated: HashMap<NodeId, Stated>,
        missing: Vec<u64>,
        users: usize,
    },
    /// To [`Write::Again`]: how many seats of ours stood there that should not.
    Rewritten(u64),
    /// To [`Write::List`].
    Listed(Vec<Arc<str>>),
}

/// What an operator should know of a batch that was carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Something of ours was lost although the connection stood.
    pub lost: bool,
    /// Seats of ours that stood in Redis and should not.
    pub ghosts: u64,
}

/// Writing everything again.
#[derive(Debug, Default)]
struct Rewriting {
    /// The channels that have yet to be asked.
    left: BTreeSet<Arc<str>>,
    /// Those asked that have not written.
    asked: BTreeSet<Arc<str>>,
}

impl Rewriting {
    fn is_due(&self, channel: &Arc<str>) -> bool {
        self.left.contains(channel) || self.asked.contains(channel)
    }
}

/// One node's contact with Redis.
#[derive(Debug)]
pub struct Contact {
    ids: Ids,
    connected: bool,
    /// Counts the contacts.
    number: u64,
    settled: bool,
    /// Whether this node has left the cluster for good and writes no more.
    left: bool,
    open: BTreeSet<Arc<str>>,
    queue: VecDeque<Write>,
    /// Whether a write was dropped since the contact began.
    overflowed: bool,
    /// The contact in which the batch under way was taken.
    batch: u64,
    rewriting: Option<Rewriting>,
    told: Vec<(Arc<str>, Told)>,
}

impl Contact {
    /// The contact of the node whose versions `ids` counts, before there is any.
    pub fn new(ids: Ids) -> Self {
        Self {
            ids,
            connected: false,
            number: 0,
            settled: false,
            left: false,
            open: BTreeSet::new(),
            queue: VecDeque::new(),
            overflowed: false,
            batch: 0,
            rewriting: None,
            told: Vec::new(),
        }
    }

    /// How far writing everything again is, in words.
    pub fn progress(&self) -> String {
        let due = self.rewriting.as_ref().map_or(0, |rewriting| rewriting.left.len() + rewriting.asked.len());
        format!("{due} of {} channels and {} writes to go", self.open.len(), self.queue.len())
    }

    /// `channel` writes from now on.
    pub fn open(&mut self, channel: &Arc<str>) {
        self.open.insert(Arc::clone(channel));
    }

    /// `channel` has ended: what it had written goes.
    pub fn close(&mut self, channel: &Arc<str>) {
        self.open.remove(channel);
        if let Some(rewriting) = &mut self.rewriting {
            rewriting.left.remove(channel);
            rewriting.asked.remove(channel);
        }
        let version = self.ids.number();
        self.write(Write::Close { channel: Arc::clone(channel), version });
    }

    /// Queues a write. False if it was dropped because the queue is full: then everything is written
    /// again. While Redis is away nothing is queued, for the same reason.
    pub fn write(&mut self, write: Write) -> bool {
        if self.left || !self.connected {
            return true;
        }
        if let Some(rewriting) = &mut self.rewriting
            && let Some(channel) = write.channel()
        {
            if matches!(write, Write::Again { .. }) {
                rewriting.asked.remove(channel);
            } else if rewriting.is_due(channel) && !matches!(write, Write::Close { .. }) {
                // It builds on what may be lost, and will be written with everything else.
                return true;
            }
        }
        let queued = self.push(write);
        self.rewrite_on();
        queued
    }

    /// Queues the renewal of the lease, which says whether everything stands.
    pub fn renew(&mut self) -> bool {
        self.write(Write::Renew { contact: self.number, settled: self.settled })
    }

    /// The writer has reached Redis, perhaps a new or an emptied one.
    pub fn connected(&mut self) {
        self.connected = true;
        self.queue.clear();
        self.begin();
    }

    /// The writer has lost Redis, or a batch in it.
    pub fn failed(&mut self) {
        self.connected = false;
        self.settled = false;
        self.rewriting = None;
        self.queue.clear();
    }

    /// Redis is there, but has lost the lease, as was found by a look that began when contact `settled` was
    /// settled: one that began before says nothing, the lease may not have been written. A contact that has not
    /// written everything yet is good enough; otherwise another begins. Says whether it does.
    pub fn doubt(&mut self, settled: Option<u64>) -> bool {
        let doubted = settled == Some(self.number) && self.settled && !self.left;
        if doubted {
            self.begin();
        }
        doubted
    }

    /// What to carry out next, in this order: consecutive changes of a channel as one.
    #[must_use]
    pub fn next_batch(&mut self) -> Vec<Write> {
        self.batch = self.number;
        let some = self.queue.len().min(MAX_BATCH);
        let writes = merged(self.queue.drain(..some));
        self.rewrite_on();
        writes
    }

    /// `writes` were carried out; each was answered with one of `replies`.
    pub fn replied(&mut self, writes: Vec<Write>, replies: Vec<Reply>) -> Outcome {
        let (mut doubted, mut lost, mut ghosts) = (false, false, 0);
        for (write, reply) in writes.into_iter().zip(replies) {
            match (write, reply) {
                (Write::Renew { contact, .. }, Reply::NoLease) if contact == self.number => {
                    doubted |= self.doubt(Some(contact));
                }
                (_, Reply::Lost) => lost = true,
                (_, Reply::Rewritten(removed)) => ghosts += removed,
                (Write::Beat { channel, .. }, Reply::Beaten { stated, missing, users }) => {
                    self.told.push((channel, Told::Beaten { stated, missing, users }));
                }
                (Write::List { contact }, Reply::Listed(written)) if contact == self.number => {
                    for channel in written {
                        if !self.open.contains(&channel) {
                            let version = self.ids.number();
                            self.push(Write::Close { channel, version });
                        }
                    }
                    self.push(Write::Barrier { contact });
                }
                (Write::Barrier { contact }, _) if contact == self.number => self.settled = true,
                _ => {}
            }
        }
        // In a contact that has begun since, all of it is written again anyway.
        if self.overflowed || (lost && self.batch == self.number) {
            self.begin();
        }
        Outcome { lost: doubted || lost, ghosts }
    }

    /// Queues the end of every channel and nothing from then on: the node leaves for good. When the
    /// contact is settled, all is written.
    pub fn leave(&mut self) {
        for channel in std::mem::take(&mut self.open) {
            let version = self.ids.number();
            self.queue.push_back(Write::Close { channel, version });
        }
        self.rewriting = None;
        self.settled = false;
        self.number += 1;
        self.queue.push_back(Write::Barrier { contact: self.number });
        self.left = true;
    }

    /// Whether [`Contact::leave`] was called.
    pub fn has_left(&self) -> bool {
        self.left
    }

    /// The number of the contact that stands; none while Redis is away.
    pub fn standing(&self) -> Option<u64> {
        self.connected.then_some(self.number)
    }

    /// The number of the contact that stands and is settled.
    pub fn settled(&self) -> Option<u64> {
        self.standing().filter(|_| self.settled)
    }

    /// Whether everything own stands in Redis, as far as can be known.
    pub fn is_settled(&self) -> bool {
        self.settled
    }

    /// How many writes wait.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// What channels must be told since the last call.
    #[must_use]
    pub fn take_told(&mut self) -> Vec<(Arc<str>, Told)> {
        std::mem::take(&mut self.told)
    }

    fn begin(&mut self) {
        if self.left {
            return;
        }
        self.number += 1;
        self.settled = false;
        self.overflowed = false;
        // What is queued builds on what may be lost; only ends are not written again.
        self.queue.retain(|write| matches!(write, Write::Close { .. }));
        // The lease first: nobody believes the part of a node that they do not know and that has none.
        self.queue.push_front(Write::Lease { contact: self.number });
        self.rewriting = Some(Rewriting { left: self.open.clone(), asked: BTreeSet::new() });
        self.rewrite_on();
    }

    /// Asks some more channels to write their part again, as many as the queue has room for.
    fn rewrite_on(&mut self) {
        let Some(rewriting) = &mut self.rewriting else { return };
        while rewriting.asked.len() < AT_ONCE && self.queue.len() < MAX_WRITES / 4 {
            let Some(channel) = rewriting.left.pop_first() else { break };
            rewriting.asked.insert(Arc::clone(&channel));
            self.told.push((channel, Told::WriteAgain));
        }
        if rewriting.left.is_empty() && rewriting.asked.is_empty() {
            self.rewriting = None;
            self.push(Write::List { contact: self.number });
        }
    }

    fn push(&mut self, write: Write) -> bool {
        let room = self.queue.len() < MAX_WRITES;
        if room {
            self.queue.push_back(write);
        } else if !write.comes_again() {
            self.overflowed = true;
        }
        room
    }
}

/// How a part that is written again is announced: whole, if it is small; else by its version alone, and
/// whoever does not have that version reads the channel.
pub fn told_of_part(version: u64, seats: &Seats) -> Batch {
    let bytes: usize = seats.iter().map(|(_, entry)| entry.user.len() + entry.meta.len() + 100).sum();
    if bytes > MAX_TOLD_BYTES {
        return Batch { from: version, to: version, ops: Vec::new() };
    }
    let taken = |(seat, entry): &(u64, Arc<Entry>)| Op {
        seat: *seat,
        user: Arc::clone(&entry.user),
        entry: Some(Arc::clone(entry)),
    };
    Batch { from: 0, to: version, ops: seats.iter().map(taken).collect() }
}

/// The same writes with consecutive changes of one channel as one. The order within a channel stays.
fn merged(writes: impl Iterator<Item = Write>) -> Vec<Write> {
    let mut out = Vec::new();
    let mut changes: IndexMap<Arc<str>, Merged> = IndexMap::new();
    for write in writes {
        match write {
            Write::Changes { channel, batch, digest } => {
                changes.entry(channel).or_insert_with(|| Merged::new(batch.from)).add(batch, digest);
            }
            other => {
                if let Some(channel) = other.channel()
                    && let Some((channel, merged)) = changes.shift_remove_entry(channel)
                {
                    out.push(merged.finish(channel));
                }
                // Behind a barrier or a lease nothing may stand that was queued before it.
                if other.channel().is_none() {
                    out.extend(changes.drain(..).map(|(channel, merged)| merged.finish(channel)));
                }
                out.push(other);
            }
        }
    }
    out.extend(changes.into_iter().map(|(channel, merged)| merged.finish(channel)));
    out
}

/// Consecutive batches of one channel as one: the last word on each seat counts.
struct Merged {
    from: u64,
    to: u64,
    digest: u64,
    ops: IndexMap<u64, Op>,
}

impl Merged {
    fn new(from: u64) -> Self {
        Self { from, to: from, digest: 0, ops: IndexMap::new() }
    }

    fn add(&mut self, batch: Batch, digest: u64) {
        (self.to, self.digest) = (batch.to, digest);
        self.ops.extend(batch.ops.into_iter().map(|op| (op.seat, op)));
    }

    fn finish(self, channel: Arc<str>) -> Write {
        let batch = Batch { from: self.from, to: self.to, ops: self.ops.into_values().collect() };
        Write::Changes { channel, batch, digest: self.digest }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contact() -> Contact {
        Contact::new(Ids::new(NodeId::random()))
    }

    fn change(channel: &str, from: u64, to: u64) -> Write {
        Write::Changes { channel: channel.into(), batch: Batch { from, to, ops: Vec::new() }, digest: 0 }
    }

    fn again(channel: &str, version: u64) -> Write {
        Write::Again { channel: channel.into(), version, digest: 0, seats: Vec::new() }
    }

    /// Carries out everything as a Redis would that has lost nothing.
    fn carry_out(contact: &mut Contact) -> Vec<Write> {
        let mut done = Vec::new();
        loop {
            let writes = contact.next_batch();
            if writes.is_empty() {
                return done;
            }
            let answer = |write: &Write| match write {
                Write::List { .. } => Reply::Listed(vec!["ended".into()]),
                _ => Reply::Done,
            };
            let replies = writes.iter().map(answer).collect();
            done.extend(writes.iter().cloned());
            contact.replied(writes, replies);
        }
    }

    #[test]
    fn a_contact_is_settled_when_every_channel_has_written_and_what_ended_is_cleared() {
        let mut contact = contact();
        contact.open(&"a".into());
        contact.connected();
        assert!(contact.write(change("a", 1, 2)), "it is written with everything else");
        assert!(matches!(carry_out(&mut contact)[..], [Write::Lease { contact: 1 }]));
        assert!(matches!(&contact.take_told()[..], [(channel, Told::WriteAgain)] if &**channel == "a"));
        assert!(!contact.is_settled());
        contact.write(again("a", 3));
        contact.write(change("a", 3, 4));
        contact.write(change("a", 4, 5));
        let done = carry_out(&mut contact);
        assert!(
            matches!(
                &done[..],
                [
                    Write::Again { version: 3, .. },
                Write::List { .. },
                Write::Changes { batch: Batch { from: 3, to: 5, .. }, .. },
                Write::Close { channel, .. },
                    Write::Barrier { .. }
                ] if &**channel == "ended"
            ),
            "{done:?}"
        );
        assert!(contact.is_settled());
    }

    #[test]
    fn what_is_lost_or_runs_over_begins_another_contact_and_an_older_answer_does_not() {
        let mut contact = contact();
        contact.connected();
        carry_out(&mut contact);
        assert!(contact.is_settled());
        contact.write(change("a", 1, 2));
        let writes = contact.next_batch();
        assert!(!contact.doubt(None), "the look began before the lease was written");
        let settled = contact.settled();
        assert!(contact.doubt(settled), "the lease is gone");
        assert!(!contact.doubt(settled), "known");
        assert!(contact.replied(writes, vec![Reply::Lost]).lost);
        assert_eq!(contact.standing(), Some(2), "that was of the contact before");
        carry_out(&mut contact);
        contact.write(change("a", 2, 3));
        let writes = contact.next_batch();
        contact.replied(writes, vec![Reply::Lost]);
        assert_eq!((contact.standing(), contact.is_settled()), (Some(3), false));
        carry_out(&mut contact);
        let queued = (0..MAX_WRITES as u64 + 2).filter(|at| contact.write(change("a", *at, at + 1)));
        assert_eq!(queued.count(), MAX_WRITES);
        let writes = contact.next_batch();
        contact.replied(writes, vec![Reply::Done]);
        assert_eq!(contact.standing(), Some(4));
        assert!(contact.waiting() < 3, "all of it is written again");
    }

    #[test]
    fn while_redis_is_away_nothing_is_queued_and_who_leaves_queues_nothing_more() {
        let mut contact = contact();
        contact.write(change("a", 1, 2));
        assert_eq!(contact.waiting(), 0);
        contact.open(&"a".into());
        contact.connected();
        contact.leave();
        contact.write(change("a", 2, 3));
        let done = carry_out(&mut contact);
        let [Write::Lease { .. }, Write::Close { .. }, Write::Barrier { .. }] = &done[..] else {
            panic!("{done:?}")
        };
        assert!(contact.is_settled() && contact.has_left());
    }
}
