//! What one client believes: the roster as built from the frames it was sent, and nothing else.
//!
//! The rules are those of the Phoenix JavaScript client. A state replaces what was there. A diff is
//! applied joins first, then leaves, by ref. Diffs that come before the first state wait for it.
//! Users and refs are small numbers, so a view is a few bitmaps.

use std::rc::Rc;

/// A user, as a number given by the room.
pub type User = u32;

/// One connection's place in a roster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    pub user: User,
    /// The number of its ref, unique within a room.
    pub place: u32,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Diff {
    pub joins: Vec<Seat>,
    pub leaves: Vec<Seat>,
}

/// A set of small numbers.
#[derive(Clone, Debug, Default)]
pub struct Bits(Vec<u64>);

impl Bits {
    /// Whether `n` was not there before.
    pub fn insert(&mut self, n: u32) -> bool {
        let (word, bit) = (n as usize / 64, 1 << (n % 64));
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        let new = self.0[word] & bit == 0;
        self.0[word] |= bit;
        new
    }

    /// Whether `n` was there.
    pub fn remove(&mut self, n: u32) -> bool {
        let was = self.contains(n);
        if was {
            self.0[n as usize / 64] &= !(1 << (n % 64));
        }
        was
    }

    pub fn contains(&self, n: u32) -> bool {
        self.0.get(n as usize / 64).is_some_and(|word| word & (1 << (n % 64)) != 0)
    }

    pub fn iter(&self) -> impl Iterator<Item = u32> {
        self.0.iter().enumerate().flat_map(|(at, word)| {
            let mut rest = *word;
            std::iter::from_fn(move || {
                let bit = (rest != 0).then(|| rest.trailing_zeros())?;
                rest &= rest - 1;
                Some(at as u32 * 64 + bit)
            })
        })
    }
}

/// What should not happen to any client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// A join of a ref that had joined before.
    pub doubled_joins: u64,
    /// A leave of a ref that was not there.
    pub unknown_leaves: u64,
}

#[derive(Default)]
pub struct View {
    loaded: bool,
    waiting: Vec<Rc<Diff>>,
    present: Bits,
    joined: Bits,
    left: Bits,
    size: usize,
    pub faults: Faults,
}

impl View {
    /// Refs present.
    pub fn size(&self) -> usize {
        self.size
    }

    pub fn present(&self) -> &Bits {
        &self.present
    }

    /// Whether this ref was ever seen to come.
    pub fn saw_join(&self, place: u32) -> bool {
        self.joined.contains(place)
    }

    /// Whether this ref was ever seen to go.
    pub fn saw_leave(&self, place: u32) -> bool {
        self.left.contains(place)
    }

    /// Takes a state: only refs that were not there join, and refs it does not name leave.
    /// `arrived` hears of each seat that is new to this view, here and after waiting diffs.
    pub fn state(&mut self, seats: &[Seat], arrived: &mut impl FnMut(Seat)) {
        let mut before = std::mem::take(&mut self.present);
        self.size = 0;
        for seat in seats {
            if !self.present.insert(seat.place) {
                self.faults.doubled_joins += 1;
                continue;
            }
            self.size += 1;
            if !before.remove(seat.place) {
                self.note_join(*seat, arrived);
            }
        }
        for gone in before.iter() {
            self.left.insert(gone);
        }
        self.loaded = true;
        for diff in std::mem::take(&mut self.waiting) {
            self.apply(&diff, arrived);
        }
    }

    /// Takes a diff, or keeps it until the first state has come.
    pub fn diff(&mut self, diff: &Rc<Diff>, arrived: &mut impl FnMut(Seat)) {
        if self.loaded {
            self.apply(diff, arrived);
        } else {
            self.waiting.push(diff.clone());
        }
    }

    fn apply(&mut self, diff: &Diff, arrived: &mut impl FnMut(Seat)) {
        for seat in &diff.joins {
            if self.present.insert(seat.place) {
                self.size += 1;
                self.note_join(*seat, arrived);
            } else {
                self.faults.doubled_joins += 1;
            }
        }
        for seat in &diff.leaves {
            if self.present.remove(seat.place) {
                self.size -= 1;
                self.left.insert(seat.place);
            } else {
                self.faults.unknown_leaves += 1;
            }
        }
    }

    /// A ref that comes back after it left is as wrong as one that comes twice: refs are never reused.
    fn note_join(&mut self, seat: Seat, arrived: &mut impl FnMut(Seat)) {
        if self.joined.insert(seat.place) {
            arrived(seat);
        } else {
            self.faults.doubled_joins += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seat(place: u32) -> Seat {
        Seat { user: place / 10, place }
    }

    fn seats(places: &[u32]) -> Vec<Seat> {
        places.iter().copied().map(seat).collect()
    }

    fn diff(joins: &[u32], leaves: &[u32]) -> Rc<Diff> {
        Rc::new(Diff { joins: seats(joins), leaves: seats(leaves) })
    }

    fn present(view: &View) -> Vec<u32> {
        view.present().iter().collect()
    }

    fn nobody(_: Seat) {}

    #[test]
    fn a_state_replaces_what_was_there() {
        let mut view = View::default();
        let mut arrived = Vec::new();
        view.state(&seats(&[10, 20, 300]), &mut |seat| arrived.push(seat.place));
        view.state(&seats(&[20, 40]), &mut |seat| arrived.push(seat.place));
        assert_eq!((present(&view), view.size()), (vec![20, 40], 2));
        assert_eq!(arrived, [10, 20, 300, 40]);
        assert!(view.saw_leave(10) && view.saw_leave(300) && !view.saw_leave(20));
        assert_eq!(view.faults, Faults::default());
    }

    #[test]
    fn a_diff_joins_and_leaves() {
        let mut view = View::default();
        view.state(&seats(&[10, 20]), &mut nobody);
        view.diff(&diff(&[30], &[10]), &mut nobody);
        assert_eq!((present(&view), view.size()), (vec![20, 30], 2));
        assert!(view.saw_join(30) && view.saw_leave(10));
        assert_eq!(view.faults, Faults::default());
    }

    #[test]
    fn an_update_changes_the_ref_and_keeps_the_user() {
        let mut view = View::default();
        view.state(&seats(&[10, 20]), &mut nobody);
        view.diff(&diff(&[11], &[10]), &mut nobody);
        assert_eq!(present(&view), [11, 20]);
        assert_eq!(view.faults, Faults::default());
    }

    #[test]
    fn what_joins_and_leaves_in_one_diff_is_gone() {
        let mut view = View::default();
        view.state(&[], &mut nobody);
        view.diff(&diff(&[10], &[10]), &mut nobody);
        assert_eq!(view.size(), 0);
        assert!(view.saw_join(10) && view.saw_leave(10));
    }

    #[test]
    fn diffs_before_the_state_wait_for_it() {
        let mut view = View::default();
        let mut arrived = Vec::new();
        view.diff(&diff(&[30], &[]), &mut |seat| arrived.push(seat.place));
        view.diff(&diff(&[40], &[10]), &mut |seat| arrived.push(seat.place));
        assert!(!view.loaded && view.size() == 0 && arrived.is_empty());
        view.state(&seats(&[10, 20]), &mut |seat| arrived.push(seat.place));
        assert_eq!(present(&view), [20, 30, 40]);
        assert_eq!(arrived, [10, 20, 30, 40]);
        assert_eq!(view.faults, Faults::default());
    }

    #[test]
    fn faults_are_counted_and_do_not_spoil_the_view() {
        let mut view = View::default();
        view.diff(&diff(&[10], &[]), &mut nobody);
        view.state(&seats(&[10]), &mut nobody);
        assert_eq!(view.faults.doubled_joins, 1, "the state had it already");
        view.diff(&diff(&[10], &[20]), &mut nobody);
        assert_eq!(view.faults, Faults { doubled_joins: 2, unknown_leaves: 1 });
        view.diff(&diff(&[], &[10]), &mut nobody);
        view.diff(&diff(&[10], &[]), &mut nobody);
        assert_eq!(view.faults.doubled_joins, 3, "a ref came back");
        assert_eq!((present(&view), view.size()), (vec![10], 1));
    }
}
