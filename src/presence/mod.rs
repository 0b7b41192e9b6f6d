//! The rules of presence as plain data: who is in a channel, what changed, how replicas merge.
//!
//! Nothing here knows a clock, a socket, an actor or Redis: time, identity and what other nodes
//! said come in as arguments, and what viewers must be told comes out as a return value. A whole
//! cluster can therefore be run in a test, from a seed, in milliseconds.
//!
//! - [`Roster`]: everything one node knows about one channel; every method returns its [`Change`]s.
//! - [`Pending`]: changes gathered until the next [`Diff`].
//! - [`Snapshot`]: the whole roster at one version, cheap to make and to share.

mod diff;
mod ids;
mod roster;
mod snapshot;

use std::sync::Arc;

pub use diff::{Change, Diff, Pending};
pub use ids::{Ids, NodeId, Ref};
pub use roster::{Batch, Heard, Op, Part, Reading, Roster};
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
    /// When the connection became present, in milliseconds since 1970. Kept through updates.
    pub since: u64,
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
