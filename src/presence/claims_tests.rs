//! Properties of claims: however users move between nodes, and whatever is lost or dies on the way, nobody
//! is shown twice, viewers see what the roster shows, and all nodes end up showing the same.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::*;
use crate::presence::{Ids, Origin, Pending};

const NODES: usize = 3;

/// One node with a viewer, and what others said that it has not heard yet.
struct Node {
    ids: Ids,
    roster: Roster,
    pending: Pending,
    viewer: BTreeMap<String, Vec<String>>,
    inbox: VecDeque<(NodeId, Batch)>,
    closed: Vec<Seat>,
    buried: HashSet<NodeId>,
    is_alive: bool,
}

impl Node {
    fn new() -> Self {
        let ids = Ids::new(NodeId::random());
        Self {
            roster: Roster::new(ids.node()),
            ids,
            pending: Pending::default(),
            viewer: BTreeMap::new(),
            inbox: VecDeque::new(),
            closed: Vec::new(),
            buried: HashSet::new(),
            is_alive: true,
        }
    }

    fn gather(&mut self, changes: impl IntoIterator<Item = Change>) {
        changes.into_iter().for_each(|change| self.pending.add(change));
        self.closed.extend(self.roster.take_closed());
    }

    /// Who is shown: user to refs.
    fn shown(&self) -> BTreeMap<String, Vec<String>> {
        let sorted = |m: &Member| {
            let mut refs: Vec<String> = m.seats.iter().map(|(_, e)| e.r#ref.as_str().to_owned()).collect();
            refs.sort();
            refs
        };
        self.roster.snapshot(0).members.iter().map(|m| (m.user.to_string(), sorted(m))).collect()
    }

    fn flush(&mut self) {
        let diff = self.pending.take();
        for (new, _) in &diff.joins {
            let refs = self.viewer.entry(new.user.to_string()).or_default();
            assert!(!refs.contains(&new.r#ref.as_str().to_owned()), "a join of someone who is there");
            refs.push(new.r#ref.as_str().to_owned());
            refs.sort();
        }
        for old in &diff.leaves {
            let refs = self.viewer.get_mut(&*old.user).expect("a leave of someone who is not there");
            let at = refs.iter().position(|r| r == old.r#ref.as_str()).expect("a leave of a ref not there");
            refs.remove(at);
            if refs.is_empty() {
                self.viewer.remove(&*old.user);
            }
        }
        assert_eq!(self.viewer, self.shown());
        let snapshot = self.roster.snapshot(0);
        let seats: Vec<Seat> =
            snapshot.members.iter().flat_map(|m| m.seats.iter().map(|(s, _)| *s)).collect();
        let origins: HashSet<Seat> = seats.iter().copied().collect();
        assert_eq!(origins.len(), seats.len(), "an origin is shown twice");
        assert_eq!(snapshot.connections, seats.len());
    }
}

struct World {
    nodes: Vec<Node>,
    /// What stands in Redis.
    store: HashMap<NodeId, Part>,
}

impl World {
    fn new(nodes: usize) -> Self {
        Self { nodes: (0..nodes).map(|_| Node::new()).collect(), store: HashMap::new() }
    }

    /// State and announcement in one step. What is taken over is deleted by whoever takes it.
    fn tell(&mut self, at: usize, batch: &Batch) {
        let from = self.nodes[at].ids.node();
        for op in &batch.ops {
            if let Some(origin) = op.entry.as_ref().and_then(|entry| entry.origin.as_ref())
                && let Some(part) = self.store.get_mut(&origin.over.node)
            {
                part.seats.remove(&origin.over.number);
            }
            let part = self.store.entry(from).or_default();
            match &op.entry {
                Some(entry) => part.seats.insert(op.seat, Arc::clone(entry)),
                None => part.seats.remove(&op.seat),
            };
        }
        self.store.entry(from).or_default().version = batch.to;
        for (other, node) in self.nodes.iter_mut().enumerate() {
            if other != at {
                node.inbox.push_back((from, batch.clone()));
            }
        }
    }

    fn put(&mut self, at: usize, seat: u64, entry: Entry) {
        let node = &mut self.nodes[at];
        let (from, to, entry) = (node.roster.own().version, node.ids.number(), Arc::new(entry));
        let change = node.roster.put(seat, entry.clone(), to);
        node.gather([change]);
        let op = Op { seat, user: entry.user.clone(), entry: Some(entry) };
        self.tell(at, &Batch { from, to, ops: vec![op] });
    }

    fn free(&mut self, at: usize, seat: u64) {
        let node = &mut self.nodes[at];
        let (from, to) = (node.roster.own().version, node.ids.number());
        let Some(change) = node.roster.remove(seat, to) else { return };
        node.gather([change]);
        self.tell(at, &Batch { from, to, ops: vec![Op { seat, user: "?".into(), entry: None }] });
    }

    /// What every node does after it has heard something.
    fn yield_outdone(&mut self, at: usize) {
        for seat in self.nodes[at].roster.take_outdone() {
            self.free(at, seat);
        }
    }

    /// `user` comes to a node, and continues what is shown there if `resumes`.
    fn come(&mut self, at: usize, user: &str, resumes: bool, same_meta: bool) {
        let node = &self.nodes[at];
        let me = node.ids.node();
        let fresh = Entry::new(user.into(), node.ids.r#ref(), "{}".into(), node.ids.number());
        let Some(found) = node.roster.sittings(user).next().filter(|_| resumes) else {
            let seat = node.ids.number();
            return self.put(at, seat, fresh);
        };
        let (shown, seat) = (found.entry.clone(), found.seat);
        let r#ref = if same_meta { shown.r#ref } else { fresh.r#ref };
        if seat.node == me {
            let waiting = shown.waiting.map_or(Some(1), |_| None);
            return self.put(at, seat.number, Entry { r#ref, waiting, ..(*shown).clone() });
        }
        let origin = Origin { seat: found.origin, turn: shown.turn() + 1, over: seat };
        let number = node.ids.number();
        let origin = Some(Box::new(origin));
        self.put(at, number, Entry { r#ref, origin, since: shown.since, ..fresh });
    }

    fn leave(&mut self, at: usize, pick: usize) {
        let mut seats: Vec<u64> = self.nodes[at].roster.own().seats.keys().copied().collect();
        seats.sort_unstable();
        if !seats.is_empty() {
            self.free(at, seats[pick % seats.len()]);
        }
    }

    fn deliver(&mut self, at: usize, is_lost: bool, is_doubled: bool) {
        let node = &mut self.nodes[at];
        let Some((from, batch)) = node.inbox.pop_front() else { return };
        if is_lost || node.buried.contains(&from) {
            return;
        }
        for _ in 0..=usize::from(is_doubled) {
            match self.nodes[at].roster.hear(from, &batch) {
                Heard::Applied(changes) => self.nodes[at].gather(changes),
                Heard::Old => {}
                Heard::Gap => self.read(at),
            }
            self.yield_outdone(at);
        }
    }

    fn read(&mut self, at: usize) {
        let asked = self.nodes[at].roster.known();
        let buried = &self.nodes[at].buried;
        let mut parts = self.store.clone();
        parts.retain(|node, _| !buried.contains(node));
        let settled = self.nodes.iter().filter(|node| node.is_alive).map(|node| node.ids.node()).collect();
        let changes = self.nodes[at].roster.merge(Reading { parts, settled, asked });
        self.nodes[at].gather(changes);
        self.yield_outdone(at);
    }

    /// A heartbeat writes again what is missing in the store, and reads what is newer there.
    fn beat(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let part = self.store.entry(node.ids.node()).or_default();
        if part.seats != node.roster.own().seats {
            node.roster.renumber(node.ids.number());
            *part = node.roster.own().clone();
        }
        let (me, known) = (node.ids.node(), node.roster.known());
        let is_news = |node: &NodeId, part: &Part| part.version > known.get(node).copied().unwrap_or(0);
        if self.store.iter().any(|(node, part)| *node != me && is_news(node, part)) {
            self.read(at);
        }
    }

    fn bury(&mut self, at: usize, dead: usize) {
        let dead = self.nodes[dead].ids.node();
        if self.nodes[at].buried.insert(dead) {
            let changes = self.nodes[at].roster.forget(dead);
            self.nodes[at].gather(changes);
            self.yield_outdone(at);
        }
    }

    fn act(&mut self, (action, at, pick, flag): (u8, usize, usize, bool)) {
        if !self.nodes[at].is_alive {
            return (0..NODES).for_each(|other| {
                if flag && self.nodes[other].is_alive {
                    self.bury(other, at);
                }
            });
        }
        let user = format!("u{}", pick % 2);
        match action {
            0..=1 => self.come(at, &user, false, flag),
            2..=6 => self.come(at, &user, true, flag),
            7..=8 => self.leave(at, pick),
            9 => self.deliver(at, true, false),
            10 => self.beat(at),
            11 if pick == 0 && self.nodes.iter().filter(|node| node.is_alive).count() > 1 => {
                self.nodes[at].is_alive = false;
            }
            _ => (0..=pick).for_each(|_| self.deliver(at, false, flag)),
        }
        if flag {
            self.nodes[at].flush();
        }
    }

    /// Everything arrives, everyone reads, the dead are buried, and nothing is remembered of who left.
    fn settle(&mut self) {
        for _ in 0..4 {
            for at in 0..NODES {
                for dead in 0..NODES {
                    if !self.nodes[dead].is_alive && self.nodes[at].is_alive {
                        self.bury(at, dead);
                    }
                }
                while !self.nodes[at].inbox.is_empty() {
                    self.deliver(at, false, false);
                }
                if self.nodes[at].is_alive {
                    self.beat(at);
                }
            }
        }
        for node in self.nodes.iter_mut().filter(|node| node.is_alive) {
            for origin in std::mem::take(&mut node.closed) {
                let change = node.roster.reopen(origin);
                node.gather(change);
            }
            node.flush();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]
    #[test]
    fn who_moves_between_nodes_is_shown_once_and_the_same_everywhere(
        acts in proptest::collection::vec((0u8..18, 0..NODES, 0usize..4, any::<bool>()), 1..80),
    ) {
        let mut world = World::new(NODES);
        acts.into_iter().for_each(|act| world.act(act));
        world.settle();
        let alive: Vec<&Node> = world.nodes.iter().filter(|node| node.is_alive).collect();
        for node in &alive {
            prop_assert_eq!(node.shown(), alive[0].shown());
            prop_assert!(node.roster.claims.values().all(|claims| claims.outdone().next().is_none()));
            let own: usize = alive.iter().map(|node| node.roster.own().seats.len()).sum();
            prop_assert_eq!(node.roster.connections(), own, "everyone who is somewhere is shown");
        }
    }
}

fn two() -> World {
    World::new(2)
}

#[test]
fn who_left_elsewhere_does_not_show_again_on_an_older_seat() {
    let mut world = two();
    world.come(0, "u", false, true);
    world.deliver(1, false, false);
    world.come(1, "u", true, true);
    world.nodes[1].flush();
    world.leave(1, 0);
    world.nodes[1].flush();
    assert!(world.nodes[1].shown().is_empty());
    // Should the older seat's node never hear of it, its word counts again.
    let origin = world.nodes[1].closed[0];
    let change = world.nodes[1].roster.reopen(origin).unwrap();
    assert!(change.old.is_none() && change.new.is_some());
    assert!(world.nodes[1].roster.reopen(origin).is_none());
}

#[test]
fn of_two_who_take_a_seat_at_once_the_higher_node_is_shown() {
    let mut world = World::new(NODES);
    world.nodes.sort_by_key(|node| node.ids.node());
    world.come(0, "u", false, true);
    (1..NODES).for_each(|at| world.deliver(at, false, false));
    (1..NODES).for_each(|at| world.come(at, "u", true, true));
    world.deliver(1, false, false);
    assert!(world.nodes[1].roster.own().seats.is_empty(), "it has yielded");
    world.deliver(2, false, false);
    assert_eq!(world.nodes[2].roster.own().seats.len(), 1);
    for at in 0..NODES {
        while !world.nodes[at].inbox.is_empty() {
            world.deliver(at, false, false);
        }
        world.nodes[at].flush();
        assert_eq!(world.nodes[at].roster.connections(), 1);
        let sitting = world.nodes[at].roster.sittings("u").next().unwrap().seat.node;
        assert_eq!(sitting, world.nodes[2].ids.node());
    }
}
