//! Rollcall: who is online in a channel, told to every browser at once and correctly.

pub mod config;
pub mod jwt;
pub mod keys;
pub mod lock;
pub mod rate_limit;
pub mod redis_pool;
pub mod session;
