//! The rules of presence as plain data: who is in a channel, what changed, how replicas merge.
//!
//! Nothing here knows a clock, a socket, an actor or Redis: time, identity and what other nodes
//! said come in as arguments, and what viewers must be told comes out as a return value. A whole
//! cluster can therefore be run in a test, from a seed, in milliseconds.
//!
//! - [`Roster`]: everything one node knows about one channel; every method returns its [`Change`]s.
//! - [`Pending`]: changes gathered until the next [`Diff`].
//! - [`Snapshot`]: the whole roster at one version, cheap to make and to share.

mod claims;
mod diff;
mod digest;
mod ids;
mod resume;
mod roster;
mod snapshot;

use std::sync::Arc;

pub use diff::{Change, Diff, Edge, Pending};
pub use ids::{Ids, NodeId, Ref};
pub use resume::{ResumeKey, anonymous};
pub use roster::{Batch, Difference, Heard, Op, Part, Reading, Roster, Sitting, Stated};
pub use snapshot::{Member, Snapshot};

/// What one connection shows in one channel. A new meta is a new entry with a new `ref`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The identity under which the connection is present.
    pub user: Arc<str>,
    /// Unique in the cluster, never used again.
    pub r#ref: Ref,
    /// A JSON object, as text, without the fields that dialects add.
    pub meta: Arc<str>,
    /// What the user came with, if that is something else: Pusher's clients are shown it until the user is gone,
    /// whichever connection it was. Each seat carries it, so that all nodes show the same.
    pub first: Option<Arc<str>>,
    /// When the connection became present, in milliseconds since 1970. Kept through updates.
    pub since: u64,
    /// When the socket ended, likewise: the seat waits for its user. None while somebody sits on it.
    pub waiting: Option<u64>,
    /// By what the user is recognised who comes back.
    pub resume: Option<ResumeKey>,
    /// What the seat continues, if its user had one before on another node. Boxed, since few have.
    pub origin: Option<Box<Origin>>,
}

impl Entry {
    /// An entry of somebody who has just come.
    pub fn new(user: Arc<str>, r#ref: Ref, meta: Arc<str>, since: u64) -> Self {
        Self { user, r#ref, meta, first: None, since, waiting: None, resume: None, origin: None }
    }

    /// What the user came with, as far as this entry knows.
    pub fn first_meta(&self) -> &Arc<str> {
        self.first.as_ref().unwrap_or(&self.meta)
    }

    /// The origin that this entry claims when it is on `seat`: the seat itself, where it continues none.
    pub fn origin_at(&self, seat: Seat) -> Seat {
        self.origin.as_ref().map_or(seat, |origin| origin.seat)
    }

    /// How often its origin had changed nodes when it came here.
    pub fn turn(&self) -> u32 {
        self.origin.as_ref().map_or(0, |origin| origin.turn)
    }
}

/// What a seat continues that its user took on another node than before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The first of the user's seats, by which viewers know all that followed.
    pub seat: Seat,
    /// Grows each time: of several claims the highest counts.
    pub turn: u32,
    /// The seat that was shown before this one. It is outdone.
    pub over: Seat,
}

/// One connection's seat in one channel: kept through updates and through a reconnect within the
/// grace. Unique within its node, so the pair is unique in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Seat {
    /// The node whose connection it is, the only authority for it.
    pub node: NodeId,
    /// The node's own number for it.
    pub number: u64,
}
