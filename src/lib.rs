//! Rollcall: who is online in a channel, told to every browser at once and correctly.

pub mod channel;
pub mod config;
pub mod dialects;
pub mod metrics;
pub mod presence;
pub mod reject;
