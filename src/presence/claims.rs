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
    all: Vec<Claim>,
}

/// What stands on one seat.
#[derive(Debug)]
struct Claim {
    seat: Seat,
    entry: Arc<Entry>,
    /// Somebody with a higher turn has left since: this is what is left of an earlier place of that user, and
    /// its node has only not said so yet. Whatever is said of it anew shows that it is not.
    is_late: bool,
}

impl Claims {
    /// The claims of an origin on whose own seat `entry` is.
    pub fn new(origin: Seat, entry: Option<Arc<Entry>>) -> Self {
        Self { all: entry.map(|entry| Claim { seat: origin, entry, is_late: false }).into_iter().collect() }
    }

    /// The claim that viewers see.
    pub fn shown(&self) -> Option<(Seat, &Arc<Entry>)> {
        highest(self.all.iter().filter(|claim| !claim.is_late)).map(|claim| (claim.seat, &claim.entry))
    }

    /// The claims that are outdone.
    pub fn outdone(&self) -> impl Iterator<Item = Seat> {
        let highest = highest(self.all.iter()).map(|claim| claim.seat);
        self.all.iter().map(|claim| claim.seat).filter(move |seat| Some(*seat) != highest)
    }

    /// What is on `seat` now. Who is said anew to sit there, and does not
    /// only wait, has not left.
    pub fn set(&mut self, seat: Seat, entry: Option<&Arc<Entry>>) {
        let at = self.all.iter().position(|claim| claim.seat == seat);
        match (at, entry) {
            (Some(at), Some(entry)) => {
                let claim = &mut self.all[at];
                claim.is_late &= entry.waiting.is_some() || claim.entry == *entry;
                claim.entry = Arc::clone(entry);
            }
            (Some(at), None) => {
                self.all.swap_remove(at);
            }
            (None, Some(entry)) => self.all.push(Claim { seat, entry: Arc::clone(entry), is_late: false }),
            (None, None) => {}
        }
    }

    /// The holder of `turn` has left: lower claims are late, and are not shown again. Another of the same turn
    /// is somebody else, who took the same seat at the same moment. Whether there are any late ones.
    pub fn close(&mut self, turn: u32) -> bool {
        for claim in &mut self.all {
            claim.is_late |= claim.entry.turn() < turn;
        }
        self.all.iter().any(|claim| claim.is_late)
    }

    /// Whoever still claims is shown after all.
    pub fn reopen(&mut self) {
        for claim in &mut self.all {
            claim.is_late = false;
        }
    }

    /// Whether there is nothing more to it than what stands on the seat of `origin`, if anything does.
    pub fn is_plain(&self, origin: Seat) -> bool {
        match &self.all[..] {
            [] => true,
            [claim] => claim.seat == origin && !claim.is_late,
            _ => false,
        }
    }
}

fn highest<'a>(claims: impl Iterator<Item = &'a Claim>) -> Option<&'a Claim> {
    claims.max_by_key(|claim| (claim.entry.turn(), claim.seat))
}
