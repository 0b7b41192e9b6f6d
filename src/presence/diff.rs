//! Changes, and how the changes of a window become one diff.

use std::sync::Arc;

use indexmap::IndexMap;

use super::{Entry, Member, Seat, Snapshot};

/// What viewers see of one seat, before and after: a join (`None` → `Some`), a leave (`Some` → `None`) or
/// an update. A seat that continues another has that one's name here: see [`super::Origin`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub seat: Seat,
    pub old: Option<Arc<Entry>>,
    pub new: Option<Arc<Entry>>,
}

impl Change {
    /// Whether viewers need not be told: what they see of the seat is the same.
    pub fn is_silent(&self) -> bool {
        self.old.as_ref().map(|entry| entry.r#ref) == self.new.as_ref().map(|entry| entry.r#ref)
    }
}

/// The net changes of a window, ready to be told: apply all joins, then all leaves.
///
/// An update stands in it as a join of the new entry (naming the old ref) and a leave of the old.
/// No entry that came and went within the window is in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diff {
    /// Each new entry, with the one it replaces if it is an update.
    pub joins: Vec<(Arc<Entry>, Option<Arc<Entry>>)>,
    /// Each entry that is no more, replaced ones included.
    pub leaves: Vec<Arc<Entry>>,
}

impl Diff {
    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.joins.is_empty() && self.leaves.is_empty()
    }
}

/// A user who came to a channel with the first of its connections, or left it with the last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edge<'a> {
    Came(&'a Arc<Member>),
    Left(&'a Arc<str>),
}

impl Diff {
    /// Whoever came or left, as far as users and not connections go. `after` is the roster that the diff leads to.
    #[must_use]
    pub fn edges<'a>(&'a self, after: &'a Snapshot) -> Vec<Edge<'a>> {
        // By how many connections of each user there are more than before.
        let mut more: IndexMap<&Arc<str>, isize> = IndexMap::new();
        for (entry, _) in &self.joins {
            *more.entry(&entry.user).or_default() += 1;
        }
        for entry in &self.leaves {
            *more.entry(&entry.user).or_default() -= 1;
        }
        let edge = |(user, more): (&'a Arc<str>, isize)| {
            let member = after.member(user);
            let now = member.map_or(0, |member| member.seats.len() as isize);
            match (now - more, member) {
                (..=0, Some(member)) => Some(Edge::Came(member)),
                (1.., None) => Some(Edge::Left(user)),
                _ => None,
            }
        };
        more.into_iter().filter_map(edge).collect()
    }
}

/// Changes gathered since the last diff, each seat's folded into one.
#[derive(Debug, Default)]
pub struct Pending {
    seats: IndexMap<Seat, Folded>,
    bytes: usize,
}

/// A seat before the window, and now.
#[derive(Debug)]
struct Folded {
    old: Option<Arc<Entry>>,
    new: Option<Arc<Entry>>,
}

impl Pending {
    /// Folds `change` in: the seat's state before the window stays, its state after is the newest.
    pub fn add(&mut self, change: Change) {
        if change.is_silent() && !self.seats.contains_key(&change.seat) {
            return;
        }
        let told = [&change.old, &change.new].into_iter().flatten();
        self.bytes += told.map(|entry| entry.user.len() + entry.meta.len()).sum::<usize>();
        match self.seats.entry(change.seat) {
            indexmap::map::Entry::Vacant(free) => {
                free.insert(Folded { old: change.old, new: change.new });
            }
            indexmap::map::Entry::Occupied(mut held) => held.get_mut().new = change.new,
        }
    }

    /// How many seats have changed.
    pub fn len(&self) -> usize {
        self.seats.len()
    }

    /// About how many bytes of users and metas there are to tell; never too few.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether nothing has changed.
    pub fn is_empty(&self) -> bool {
        self.seats.is_empty()
    }

    /// The net diff; nothing is pending afterwards.
    #[must_use]
    pub fn take(&mut self) -> Diff {
        let mut diff = Diff::default();
        self.bytes = 0;
        for folded in std::mem::take(&mut self.seats).into_values() {
            match (folded.old, folded.new) {
                (Some(old), Some(new)) if old.r#ref == new.r#ref => {}
                // A seat that changed hands within the window: one user left, another came.
                (Some(old), Some(new)) if old.user != new.user => {
                    diff.joins.push((new, None));
                    diff.leaves.push(old);
                }
                (Some(old), Some(new)) => {
                    diff.joins.push((new, Some(Arc::clone(&old))));
                    diff.leaves.push(old);
                }
                (None, Some(new)) => diff.joins.push((new, None)),
                (Some(old), None) => diff.leaves.push(old),
                (None, None) => {}
            }
        }
        diff
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presence::{Ids, NodeId};

    fn entry(ids: &Ids, user: &str) -> Option<Arc<Entry>> {
        Some(Arc::new(Entry::new(user.into(), ids.r#ref(), "{}".into(), 0)))
    }

    #[test]
    fn only_the_first_and_the_last_connection_of_a_user_are_edges() {
        let ids = Ids::new(NodeId::random());
        let (one, two, other) =
            (entry(&ids, "u").unwrap(), entry(&ids, "u").unwrap(), entry(&ids, "v").unwrap());
        let after = |entries: &[&Arc<Entry>]| {
            let seats: Vec<_> =
                entries.iter().map(|e| (Seat { node: ids.node(), number: 1 }, Arc::clone(e))).collect();
            let member = Member { user: "u".into(), first_meta: "{}".into(), seats };
            let members = if entries.is_empty() { vec![] } else { vec![Arc::new(member)] };
            Snapshot { members, ..Snapshot::default() }
        };
        let came = Diff { joins: vec![(one.clone(), None)], leaves: vec![] };
        assert!(matches!(came.edges(&after(&[&one]))[..], [Edge::Came(member)] if &*member.user == "u"));
        assert!(came.edges(&after(&[&one, &two])).is_empty(), "a second tab");
        let left = Diff { joins: vec![], leaves: vec![one.clone()] };
        assert!(left.edges(&after(&[&two])).is_empty(), "one of two tabs");
        assert_eq!(left.edges(&after(&[])), [Edge::Left(&one.user)]);
        let update = Diff { joins: vec![(two.clone(), Some(one.clone()))], leaves: vec![one.clone()] };
        assert!(update.edges(&after(&[&two])).is_empty(), "another meta");
        let moved = Diff { joins: vec![(two.clone(), None)], leaves: vec![one.clone(), other.clone()] };
        assert_eq!(moved.edges(&after(&[&two])), [Edge::Left(&other.user)], "left and back within a window");
    }

    #[test]
    fn a_window_tells_only_what_remains() {
        let ids = Ids::new(NodeId::random());
        let seat = |number| Seat { node: ids.node(), number };
        let (a, b, c) = (entry(&ids, "u"), entry(&ids, "u"), entry(&ids, "u"));
        let mut pending = Pending::default();
        // Came and went: nothing.
        pending.add(Change { seat: seat(1), old: None, new: a.clone() });
        pending.add(Change { seat: seat(1), old: a.clone(), new: None });
        // A chain of updates A → B → C: C replaces A.
        pending.add(Change { seat: seat(2), old: a.clone(), new: b.clone() });
        pending.add(Change { seat: seat(2), old: b, new: c.clone() });
        let diff = pending.take();
        assert_eq!(diff, Diff { joins: vec![(c.unwrap(), a.clone())], leaves: vec![a.unwrap()] });
        assert!(pending.is_empty() && pending.take().is_empty());
    }
}
