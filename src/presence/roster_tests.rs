//! Properties of the roster: whatever is lost, late or doubled, replicas end up as the truth.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::presence::{Ids, Pending};

fn entry(ids: &Ids, user: &str, since: u64) -> Arc<Entry> {
    Arc::new(Entry::new(user.into(), ids.r#ref(), "{}".into(), since))
}

/// One node with its roster and what it has announced.
struct Node {
    ids: Ids,
    roster: Roster,
    log: Vec<Batch>,
}

impl Node {
    fn new() -> Self {
        let ids = Ids::new(NodeId::random());
        Self { roster: Roster::new(ids.node()), ids, log: Vec::new() }
    }

    fn act(&mut self, seat: u64, user: Option<usize>) -> Option<Change> {
        let from = self.roster.own().version;
        let to = self.ids.number();
        let (change, op) = match user {
            Some(user) => {
                let held = self.roster.own().seats.get(&seat).map(|e| e.user.to_string());
                let entry = entry(&self.ids, &held.unwrap_or(format!("u{user}")), to);
                let op = Op { seat, user: entry.user.clone(), entry: Some(entry.clone()) };
                (self.roster.put(seat, entry, to), op)
            }
            None => {
                let change = self.roster.remove(seat, to)?;
                let user = change.old.as_ref().unwrap().user.clone();
                (change, Op { seat, user, entry: None })
            }
        };
        self.log.push(Batch { from, to, ops: vec![op] });
        Some(change)
    }

    fn reading(&self, of: &Roster) -> Reading {
        let part = self.roster.own().clone();
        let parts = if part.version == 0 { HashMap::new() } else { HashMap::from([(self.ids.node(), part)]) };
        Reading { parts, settled: HashSet::from([self.ids.node()]), asked: of.known() }
    }
}

/// Who is shown, by user: the refs of the connections.
fn shown(roster: &Roster) -> BTreeMap<String, Vec<String>> {
    let snapshot = roster.snapshot(0);
    let refs = |m: &Member| {
        let mut refs: Vec<String> = m.seats.iter().map(|(_, e)| e.r#ref.as_str().to_owned()).collect();
        refs.sort();
        refs
    };
    snapshot.members.iter().map(|m| (m.user.to_string(), refs(m))).collect()
}

/// A viewer as the clients are: all joins, then all leaves, by ref.
#[derive(Default)]
struct Viewer(BTreeMap<String, Vec<String>>);

impl Viewer {
    fn apply(&mut self, diff: &crate::presence::Diff) {
        for (new, _) in &diff.joins {
            let refs = self.0.entry(new.user.to_string()).or_default();
            assert!(!refs.contains(&new.r#ref.as_str().to_owned()), "a join of someone who is there");
            refs.push(new.r#ref.as_str().to_owned());
            refs.sort();
        }
        for old in &diff.leaves {
            let refs = self.0.get_mut(&*old.user).expect("a leave of someone who is not there");
            let at = refs.iter().position(|r| r == old.r#ref.as_str()).expect("a leave of a ref not there");
            refs.remove(at);
            if refs.is_empty() {
                self.0.remove(&*old.user);
            }
        }
    }
}

fn actions() -> impl Strategy<Value = Vec<(u64, Option<usize>)>> {
    proptest::collection::vec((0u64..5, proptest::option::weighted(0.6, 0usize..3)), 1..60)
}

proptest! {
    #[test]
    fn viewers_who_apply_diffs_see_the_roster(
        acts in actions(),
        windows in proptest::collection::vec(any::<bool>(), 60),
    ) {
        let mut node = Node::new();
        let (mut pending, mut viewer) = (Pending::default(), Viewer::default());
        for (at, (seat, user)) in acts.into_iter().enumerate() {
            if let Some(change) = node.act(seat, user) {
                pending.add(change);
            }
            if windows[at] {
                viewer.apply(&pending.take());
                prop_assert_eq!(&viewer.0, &shown(&node.roster));
            }
        }
        viewer.apply(&pending.take());
        prop_assert_eq!(&viewer.0, &shown(&node.roster));
        prop_assert_eq!(node.roster.connections(), viewer.0.values().map(Vec::len).sum::<usize>());
    }

    #[test]
    fn a_replica_ends_up_as_the_truth_whatever_the_bus_does(
        acts in actions(),
        fates in proptest::collection::vec(0u8..6, 60),
    ) {
        let (mut node, mut replica) = (Node::new(), Roster::new(NodeId::random()));
        let (mut pending, mut viewer) = (Pending::default(), Viewer::default());
        let mut late: Vec<Batch> = Vec::new();
        let me = node.ids.node();
        let told = |pending: &mut Pending, changes: Vec<Change>| changes.into_iter().for_each(|c| pending.add(c));
        for (at, (seat, user)) in acts.into_iter().enumerate() {
            if node.act(seat, user).is_none() { continue }
            let batch = node.log.last().unwrap().clone();
            let arrives: Vec<Batch> = match fates[at] {
                0 => vec![],                                   // lost
                1 => { late.push(batch); vec![] }              // late
                2 => vec![batch.clone(), batch],               // doubled
                3 => late.drain(..).rev().chain([batch]).collect(), // out of order
                _ => vec![batch],
            };
            for batch in arrives {
                match replica.hear(me, &batch) {
                    Heard::Applied(changes) => told(&mut pending, changes),
                    Heard::Old => {}
                    Heard::Gap => {
                        let changes = replica.merge(node.reading(&replica));
                        told(&mut pending, changes);
                        prop_assert_eq!(shown(&replica), shown(&node.roster));
                    }
                }
            }
            viewer.apply(&pending.take());
            prop_assert_eq!(&viewer.0, &shown(&replica));
        }
        let changes = replica.merge(node.reading(&replica));
        told(&mut pending, changes);
        prop_assert_eq!(shown(&replica), shown(&node.roster));
        // Reading twice is reading once.
        prop_assert!(replica.merge(node.reading(&replica)).is_empty());
        viewer.apply(&pending.take());
        // Dead is dead, and late words of the dead are gaps, not joins.
        told(&mut pending, replica.forget(me));
        viewer.apply(&pending.take());
        prop_assert!(viewer.0.is_empty() && replica.is_empty());
        for batch in node.log.iter().filter(|b| b.from != 0) {
            prop_assert_eq!(replica.hear(me, batch), Heard::Gap);
        }
    }
}

#[test]
fn many_connections_of_a_user_are_one_member_who_leaves_with_the_last() {
    let mut node = Node::new();
    let mut other = Node::new();
    node.act(1, Some(0));
    other.act(1, Some(0));
    let Heard::Applied(_) = node.roster.hear(other.ids.node(), &other.log[0]) else { panic!() };
    let snapshot = node.roster.snapshot(9);
    assert_eq!((snapshot.online(), snapshot.connections, snapshot.version), (1, 2, 9));
    node.act(1, None);
    assert_eq!(node.roster.snapshot(0).online(), 1);
    assert_eq!(node.roster.forget(other.ids.node()).len(), 1);
    assert!(node.roster.is_empty() && node.roster.connections() == 0);
}

#[test]
fn absence_in_a_reading_means_gone_only_of_a_settled_node_whose_part_stood_still() {
    let (mut node, mut other) = (Node::new(), Node::new());
    let peer = other.ids.node();
    other.act(1, Some(0));
    let Heard::Applied(_) = node.roster.hear(peer, &other.log[0]) else { panic!() };
    let nothing = |settled: bool, asked: HashMap<NodeId, u64>| Reading {
        parts: HashMap::new(),
        settled: if settled { HashSet::from([peer]) } else { HashSet::new() },
        asked,
    };
    let known = node.roster.known();
    // Redis was emptied, and the peer has not written again.
    assert!(node.roster.merge(nothing(false, known.clone())).is_empty());
    // The peer said something while the reading was under way.
    other.act(2, Some(1));
    let Heard::Applied(_) = node.roster.hear(peer, &other.log[1]) else { panic!() };
    assert!(node.roster.merge(nothing(true, known)).is_empty());
    assert_eq!(node.roster.merge(nothing(true, node.roster.known())).len(), 2);
}

#[test]
fn a_part_that_ended_and_began_again_is_not_taken_for_its_past() {
    let (mut node, mut other) = (Node::new(), Node::new());
    let peer = other.ids.node();
    other.act(1, Some(0));
    let Heard::Applied(_) = node.roster.hear(peer, &other.log[0]) else { panic!() };
    // The channel ended on the peer, unheard, and began again: its part starts from nothing.
    other.roster = Roster::new(peer);
    other.act(7, Some(1));
    let Heard::Applied(changes) = node.roster.hear(peer, &other.log[1]) else { panic!() };
    assert_eq!(changes.len(), 2);
    assert_eq!(shown(&node.roster), shown(&other.roster));
}

#[test]
fn own_words_that_come_back_are_nothing_new() {
    let mut node = Node::new();
    node.act(1, Some(0));
    let batch = node.log[0].clone();
    assert_eq!(node.roster.hear(node.ids.node(), &batch), Heard::Old);
}
