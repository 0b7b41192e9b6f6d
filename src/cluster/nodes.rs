//! The nodes: who of them lives, as far as this one can tell.
//!
//! Pure: no I/O, time is an argument. Each node keeps a lease alive in Redis; the lease task looks at
//! all of them and asks [`Nodes::judge`] what follows. One whose lease is gone is dead: every survivor
//! says goodbye for it to its own viewers, and one of them cleans up in Redis.
//!
//! Nobody is judged by a Redis that was away, has been emptied or is a new one: after each, judgement
//! rests for the life of a lease, so that every node that lives has had time to say so.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::presence::NodeId;

/// What follows from a look at the leases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// This node's own lease is gone: everything own must be written again.
    Doubt,
    /// Nodes that were thought dead live: what they said meanwhile was not believed, so read it.
    Back(Vec<NodeId>),
    /// A node is dead.
    Gone(NodeId),
    /// A node has left, or somebody has cleaned up after it.
    Left(NodeId),
    /// A dead node has left things in Redis.
    CleanUp(NodeId),
}

/// What one node knows of the others.
#[derive(Debug)]
pub struct Nodes {
    me: NodeId,
    node_ttl: Duration,
    /// The writer's contact in which was looked last.
    contact: u64,
    judge_from: Instant,
    /// The nodes that were seen alive, or of which somebody here knows something. Another survivor may
    /// clean up after one, or it may leave, and be off the list before this node has looked.
    seen: BTreeSet<NodeId>,
    /// The nodes that are dead: nothing late of theirs is believed.
    buried: BTreeSet<NodeId>,
}

impl Nodes {
    /// Node `me` knows nobody at `now`. Leases live for `node_ttl`.
    pub fn new(me: NodeId, node_ttl: Duration, now: Instant) -> Self {
        let (seen, buried) = (BTreeSet::new(), BTreeSet::new());
        Self { me, node_ttl, contact: 0, judge_from: now + node_ttl, seen, buried }
    }

    /// Whose leases to look at when `listed` are the nodes that have held one: this node's own, and all
    /// in one question, or the answer says nothing.
    pub fn to_ask(&self, listed: &BTreeSet<NodeId>) -> Vec<NodeId> {
        listed.union(&self.seen).copied().filter(|node| *node != self.me).chain([self.me]).collect()
    }

    /// Something of `node` is known here: its end must be noticed.
    pub fn note(&mut self, node: NodeId) {
        if node != self.me && !self.buried.contains(&node) {
            self.seen.insert(node);
        }
    }

    /// Of the nodes that were `asked` about ([`Nodes::to_ask`]), `alive` hold a lease; so it was found in
    /// the writer's `contact`, which is none while it has none: then Redis may be another one since. `listed` are those that may have left
    /// things in Redis, as was read after the leases: who leaves takes itself off the list with the lease.
    pub fn judge(
        &mut self,
        listed: &BTreeSet<NodeId>,
        asked: &[NodeId],
        mut alive: BTreeSet<NodeId>,
        contact: Option<u64>,
        now: Instant,
    ) -> Vec<Verdict> {
        // A Redis without this node's lease judges nobody.
        if !alive.remove(&self.me) {
            self.rest(now);
            return vec![Verdict::Doubt];
        }
        match contact {
            Some(contact) if contact == self.contact => {}
            _ => self.rest(now),
        }
        self.contact = contact.unwrap_or(self.contact);
        let mut verdicts = Vec::new();
        let back: Vec<NodeId> = alive.iter().filter(|node| self.buried.remove(node)).copied().collect();
        if !back.is_empty() {
            verdicts.push(Verdict::Back(back));
        }
        if now >= self.judge_from {
            for node in asked.iter().copied().filter(|node| *node != self.me && !alive.contains(node)) {
                self.seen.remove(&node);
                let is_listed = listed.contains(&node);
                if self.buried.insert(node) {
                    verdicts.push(if is_listed { Verdict::Gone(node) } else { Verdict::Left(node) });
                }
                if is_listed {
                    verdicts.push(Verdict::CleanUp(node));
                }
            }
        }
        self.seen.extend(alive);
        verdicts
    }

    /// The leases could not be looked at: nobody is judged for the life of a lease.
    pub fn rest(&mut self, now: Instant) {
        self.judge_from = now + self.node_ttl;
    }

    /// Whether nobody is judged at `now`.
    pub fn is_resting(&self, now: Instant) -> bool {
        now < self.judge_from
    }

    /// `node` has said itself that it leaves. False if it was known to be gone, or is this node.
    pub fn left(&mut self, node: NodeId) -> bool {
        self.seen.remove(&node);
        node != self.me && self.buried.insert(node)
    }

    /// Whether `node` is known to be dead.
    pub fn is_buried(&self, node: NodeId) -> bool {
        self.buried.contains(&node)
    }

    /// How many nodes were seen alive at the last look, this one included.
    pub fn count(&self) -> usize {
        self.seen.len() + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_judged_by_a_redis_that_was_away_or_does_not_know_us() {
        let (me, other) = (NodeId::random(), NodeId::random());
        let (start, ttl) = (Instant::now(), Duration::from_secs(10));
        let mut nodes = Nodes::new(me, ttl, start);
        let (both, own) = (BTreeSet::from([me, other]), BTreeSet::from([me]));
        let later = start + ttl * 2;
        assert_eq!(nodes.judge(&both, &nodes.to_ask(&both), both.clone(), Some(1), start), []);
        assert_eq!(
            nodes.judge(&both, &nodes.to_ask(&both), BTreeSet::new(), Some(1), later),
            [Verdict::Doubt]
        );
        assert_eq!(
            nodes.judge(&both, &nodes.to_ask(&both), own.clone(), Some(1), later),
            [],
            "it rests after doubt"
        );
        assert_eq!(
            nodes.judge(&both, &nodes.to_ask(&both), own.clone(), Some(2), later + ttl),
            [],
            "and after a new contact"
        );
        assert_eq!(
            nodes.judge(&both, &nodes.to_ask(&both), own.clone(), None, later + ttl * 2),
            [],
            "and without a contact"
        );
        assert!(nodes.is_resting(later + ttl * 2));
        nodes.rest(later + ttl * 2);
        assert_eq!(
            nodes.judge(&both, &nodes.to_ask(&both), own.clone(), Some(2), later + ttl * 2),
            [],
            "and after an outage"
        );
        let dead = [Verdict::Gone(other), Verdict::CleanUp(other)];
        assert_eq!(nodes.judge(&both, &nodes.to_ask(&both), own.clone(), Some(2), later + ttl * 3), dead);
        assert_eq!(
            nodes.judge(&own, &nodes.to_ask(&own), own.clone(), Some(2), later + ttl * 3),
            [],
            "cleaned up by somebody"
        );
        assert_eq!(
            nodes.judge(&both, &nodes.to_ask(&both), both.clone(), Some(2), later + ttl * 3),
            [Verdict::Back(vec![other])]
        );
        assert!(!nodes.is_buried(other));
    }

    #[test]
    fn one_that_was_seen_and_is_off_the_list_has_left() {
        let (me, other) = (NodeId::random(), NodeId::random());
        let start = Instant::now();
        let mut nodes = Nodes::new(me, Duration::ZERO, start);
        let (both, own) = (BTreeSet::from([me, other]), BTreeSet::from([me]));
        assert_eq!(nodes.judge(&both, &nodes.to_ask(&both), both.clone(), Some(0), start), []);
        assert_eq!(
            nodes.judge(&own, &nodes.to_ask(&own), own.clone(), Some(0), start),
            [Verdict::Left(other)]
        );
        assert!(!nodes.left(other), "known");
    }
}
