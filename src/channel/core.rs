//! What a channel does when: the logic of the channel actor around [`ChannelState`], without the actor.
//!
//! Pure: time is an argument. Inputs go to the state; then [`ChannelCore::settle`] says what must be
//! done outside, in which order, and when to ask again. The roster that an effect carries is published
//! before its diff is told, so a viewer who starts in between finds the diff's changes in the roster
//! and skips the diff.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::state::{ChannelState, HeardAs, Output};
use super::window::window;
use crate::cluster::{Seats, Told};
use crate::presence::{Batch, Diff, Ids, NodeId, Snapshot};

/// Diffs a hub may have unhandled. Over it, changes gather longer: the queue to a hub is bounded.
const MAX_BEHIND: usize = 2;

/// So many heartbeats in a row that find too many users in the store are no coincidence.
const TOO_MANY: u32 = 2;

/// Something that must be done outside.
#[derive(Debug)]
pub enum Effect {
    /// Tell the other nodes and the shared store: changes, and the digest of the own part after them.
    Announce(Batch, u64),
    /// Read the channel from the shared store; the versions known now go with the question.
    Read(HashMap<NodeId, u64>),
    /// Find out whether this connection lives.
    Probe(u64),
    /// Write the whole of the own part.
    WriteAgain { version: u64, digest: u64, seats: Seats },
    /// Publish the roster, and tell the hubs that it can be shown.
    GoLive { roster: Snapshot, diff: Diff },
    /// Publish the roster, then tell the hubs the diff that leads to it.
    Tell { roster: Snapshot, diff: Diff, oldest: Option<Instant> },
}

/// Who is told, as far as it decides when.
#[derive(Clone, Copy, Debug, Default)]
pub struct Audience {
    /// How many viewers there are.
    pub viewers: usize,
    /// The most diffs that any hub has not handled yet.
    pub behind: usize,
}

/// One channel on one node.
#[derive(Debug)]
pub struct ChannelCore {
    pub state: ChannelState,
    ids: Ids,
    /// Whether a roster is published and hubs were told so.
    published: bool,
    /// When the last diff was told, and how long what it cost asks to wait after it.
    last_diff: Option<(Instant, Duration)>,
    /// How many heartbeats in a row have found more users in the store than are known.
    too_many: u32,
    /// What the cluster asked for, to be done with the state's own outputs.
    asked: Vec<Effect>,
}

impl ChannelCore {
    /// An empty channel, not yet live.
    pub fn new(ids: Ids, grace_period: Duration) -> Self {
        let state = ChannelState::new(ids.clone(), grace_period);
        Self { state, ids, published: false, last_diff: None, too_many: 0, asked: Vec::new() }
    }

    /// Takes in what the cluster says.
    pub fn told(&mut self, told: Told, now: Instant) -> Noticed {
        match told {
            Told::Batch { node, batch } => {
                if self.state.hear(node, batch) == HeardAs::Gap {
                    return Noticed::Gap;
                }
            }
            Told::Read(reading) => self.state.merge(reading, now),
            Told::ReadAgain => self.state.read_again(),
            Told::WriteAgain => {
                self.write_again();
            }
            Told::Away => self.state.go_live(),
            // The actor passes it on: it changes nothing.
            Told::Said(_) => {}
            Told::NodeDown(node) => self.state.node_down(node),
            Told::Beaten { stated, missing, users } => {
                self.state.compare(&stated, now);
                let missing = self.state.still_taken(&missing);
                // More users there than anybody here knows of, twice in a row: perhaps one is a ghost of ours.
                let too_many = users > self.state.online();
                self.too_many = if too_many { self.too_many + 1 } else { 0 };
                if missing > 0 || self.too_many == TOO_MANY {
                    self.write_again();
                }
                return Noticed::Missing(missing);
            }
        }
        Noticed::Nothing
    }

    fn write_again(&mut self) {
        let (version, seats) = self.state.own_to_write();
        self.asked.push(Effect::WriteAgain { version, digest: self.state.own_digest(), seats });
    }

    /// After every input, and when [`ChannelCore::next_diff`] or [`ChannelCore::next_time`] has come:
    /// what must be done now, in this order.
    #[must_use]
    pub fn settle(&mut self, audience: Audience, now: Instant) -> Vec<Effect> {
        self.state.end_grace(now);
        self.state.audit(now);
        self.state.read_rest(now);
        let mut effects = std::mem::take(&mut self.asked);
        effects.extend(self.state.take_outputs().into_iter().map(|output| match output {
            Output::Announce(batch, digest) => Effect::Announce(batch, digest),
            Output::Read(asked) => Effect::Read(asked),
            Output::Probe(connection) => Effect::Probe(connection),
        }));
        if !self.state.is_live() {
            return effects;
        }
        if !self.published {
            self.published = true;
            let (diff, _) = self.state.take_diff();
            effects.push(Effect::GoLive { roster: self.roster(), diff });
        } else if self.next_diff(audience, now).is_some_and(|at| at <= now) {
            let cost = self.cost(audience);
            let (diff, oldest) = self.state.take_diff();
            if !diff.is_empty() {
                self.last_diff = Some((now, cost));
                effects.push(Effect::Tell { roster: self.roster(), diff, oldest });
            }
        }
        effects
    }

    /// Whether a roster is published.
    pub fn is_published(&self) -> bool {
        self.published
    }

    /// When the pending diff may be told; none if nothing is pending.
    pub fn next_diff(&self, audience: Audience, now: Instant) -> Option<Instant> {
        if self.state.pending().is_empty() || !self.published {
            return None;
        }
        let window = self.cost(audience);
        if audience.behind >= MAX_BEHIND {
            return Some(now + window);
        }
        Some(self.last_diff.map_or(now, |(last, cost)| last + window.max(cost)))
    }

    /// When there is something to do that nobody asks for: a grace that is over, a look at what differed.
    pub fn next_time(&self) -> Option<Instant> {
        self.state.next_time()
    }

    /// What the pending diff would cost, as the least time between it and another.
    fn cost(&self, audience: Audience) -> Duration {
        let pending = self.state.pending();
        window(audience.viewers, pending.len(), pending.bytes())
    }

    fn roster(&self) -> Snapshot {
        self.state.snapshot(self.ids.number())
    }
}

/// What an operator may want to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Noticed {
    Nothing,
    /// An announcement was missed.
    Gap,
    /// So many own seats were missing in the store.
    Missing(usize),
}
