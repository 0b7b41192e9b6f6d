//! Rollcall: who is online in a channel, told to every browser at once and correctly.
//!
//! The modules, in the order in which data flows through them. None uses one that stands above it.

/// HTTP and WebSockets around a node.
pub mod server;
/// One node's parts, started together.
pub mod node;
/// The routes of WebSockets, one for each dialect.
pub mod sockets;
/// REST, pages, metrics, problems.
pub mod http;
/// Who may come in.
pub mod admission;
/// What comes in by WebSocket.
pub mod connection;
/// What goes out, one a thread.
pub mod hub;
/// Presence for programs, without sockets.
pub mod presence_manager;
/// One actor for each channel.
pub mod channel;
/// What happens in channels, told to backends.
pub mod webhooks;
/// The other nodes, through Redis.
pub mod cluster;
/// Wire text to commands, events back.
pub mod dialects;
/// Proof of who connects.
pub mod session;
/// What backends set for channels.
pub mod settings;
/// E-mail addresses and passwords.
pub mod accounts;
/// Tokens that prove themselves.
pub mod jwt;
/// What Pusher's applications have signed.
pub mod signature;
/// How often somebody may call.
pub mod rate_limit;
/// How many connections somebody may have.
pub mod quota;
/// Whose address a request has.
pub mod address;
/// One at a time, cluster-wide.
pub mod lock;
/// Near copies, shared copies, and the database behind them.
pub mod cache;
/// What must outlive Redis.
pub mod database;
/// Pooled Redis connections, under limits.
pub mod redis_pool;
/// Names in Redis keys, encoded.
pub mod keys;
/// The rules of presence, pure.
pub mod presence;
/// JSON by hand, where it is written often.
pub mod json;
/// Everything a client is refused with.
pub mod reject;
/// What an operator can watch.
pub mod metrics;
/// What is wrong, and who notices.
pub mod health;
/// Starting, ready, draining.
pub mod lifecycle;
/// Log lines, for people or machines.
pub mod logging;
/// Settings, checked before the start.
pub mod config;

/// Damaged inputs for every decoder.
#[cfg(test)]
mod fuzz;
/// A whole cluster in virtual time, from a seed.
#[cfg(test)]
mod simulation;
