//! Connections: one actor for each WebSocket, for what comes in.
//!
//! Bytes pass the [`guard`], the engine cuts them into frames, the dialect reads them, [`state`]
//! decides, and [`socket`] carries it out. What goes out never touches the actor: it waits in the
//! hub's outbox for the socket.

mod assembly;
mod bucket;
mod guard;
mod params;
mod proof;
mod socket;
mod state;

pub use params::ConnectParams;
pub use proof::Verdict;
pub use socket::{Admission, Opening, Services, Sockets, asks_for_upgrade, open, turn_away};
pub use state::Client;

#[cfg(test)]
mod fuzz;
