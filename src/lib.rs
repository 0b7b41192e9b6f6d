//! Rollcall: who is online in a channel, told to every browser at once and correctly.

pub mod admission;
pub mod channel;
pub mod cluster;
pub mod config;
pub mod connection;
pub mod dialects;
pub mod http;
pub mod hub;
pub mod jwt;
pub mod keys;
pub mod lifecycle;
pub mod lock;
pub mod logging;
pub mod metrics;
pub mod presence;
pub mod rate_limit;
pub mod redis_pool;
pub mod reject;
pub mod server;
pub mod session;
