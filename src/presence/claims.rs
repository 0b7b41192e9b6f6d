//! Claims: which of several seats stands for one origin.
//!
//! A user who comes back on another node gets a seat there that claims the old one's origin. Until the
//! other node has heard of it there are two, and viewers must see one: that with the highest turn, of
//! equal turns that of the higher node. Only origins that anybody claimed from elsewhere are kept here.

use std::sync::Arc;

use super::{Entry, Seat};

/// The claims of one origin.
#[derive(Debug, Default)]
pub struct Claims {
    all: Vec<(Seat, Arc<Entry>)>,
    /// The holder of this turn has left: lower claims are late, and are not shown again. Another of the same
    /// turn is somebody else, who took the same seat at the same moment.
    closed: Option<u32>,
}

impl Claims {
    /// The claims of an origin on whose own seat `entry` is.
    pub fn new(origin: Seat, entry: Option<Arc<Entry>>) -> Self {
        Self { all: entry.map(|entry| (origin, entry)).into_iter().collect(), closed: None }
    }

    /// The claim that viewers see.
    pub fn shown(&self) -> Option<&(Seat, Arc<Entry>)> {
        self.highest().filter(|(_, entry)| self.closed.is_none_or(|turn| entry.turn() >= turn))
    }

    /// The claim that counts; the other ones are outdone.
    pub fn highest(&self) -> Option<&(Seat, Arc<Entry>)> {
        self.all.iter().max_by_key(|(seat, entry)| (entry.turn(), *seat))
    }

    /// The claims that are outdone.
    pub fn outdone(&self) -> impl Iterator<Item = Seat> {
        let highest = self.highest().map(|(seat, _)| *seat);
        self.all.iter().map(|(seat, _)| *seat).filter(move |seat| Some(*seat) != highest)
    }

    /// What is on `seat` now.
    pub fn set(&mut self, seat: Seat, entry: Option<&Arc<Entry>>) {
        let at = self.all.iter().position(|(other, _)| *other == seat);
        match (at, entry) {
            (Some(at), Some(entry)) => self.all[at].1 = Arc::clone(entry),
            (Some(at), None) => {
                self.all.swap_remove(at);
            }
            (None, Some(entry)) => self.all.push((seat, Arc::clone(entry))),
            (None, None) => {}
        }
    }

    /// The holder of `turn` has left. Whether there are lower claims, which could show again.
    pub fn close(&mut self, turn: u32) -> bool {
        self.closed = (!self.all.is_empty()).then_some(turn);
        self.closed.is_some()
    }

    /// Whoever still claims is shown after all.
    pub fn reopen(&mut self) {
        self.closed = None;
    }

    /// Whether there is nothing more to it than what stands on the seat of `origin`, if anything does.
    pub fn is_plain(&self, origin: Seat) -> bool {
        match &self.all[..] {
            [] => true,
            [(seat, _)] => *seat == origin && self.closed.is_none(),
            _ => false,
        }
    }
}
