//! Channels.
mod rosters;
pub use rosters::{Published, Rosters};
