//! Channels: one actor for each channel that has local interest, and what it shows.
//!
//! - [`state`] and [`core`]: the logic, pure: who is in, and what is told when; [`actor`]: its shell, which
//!   owns timers and messages.
//! - [`registry`]: finds or starts the actor of a channel, and lets it end without losing anybody.
//! - [`rosters`]: L1, where the published roster of every channel is read without asking its actor.
//! - [`window`], [`grace`]: when changes are told, and how long a lost connection's seat is kept.

mod actor;
mod core;
mod fan;
mod grace;
mod registry;
mod rosters;
mod state;
mod window;

pub use actor::{Alive, Channel, Detach, Drain, Dropped, Identify, Say, SeatsOf, Track, Untrack};
pub use fan::{Fan, HubLink, Live, Meter, Probe, Relay, Relayed, Update};
pub use registry::{Registry, Shared};
pub use rosters::{Published, Rosters};

/// What the simulation drives as the actor does.
#[cfg(test)]
pub(crate) mod sim {
    pub use super::core::{Audience, ChannelCore, Effect, Noticed};
    pub use super::state::Audit;
}
