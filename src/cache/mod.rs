//! The tiered cache: L1 in this process, L2 in Redis, a loader (mostly the database) behind both.
//!
//! [`Near`] is L1 alone, for what has a store of its own: sessions, verified tokens. [`TieredCache`] is all three
//! tiers, for what comes from a database. [`Caches`] joins the tiered ones of a process with what other nodes
//! announce, so that no L1 serves what was changed or deleted for longer than a second ([`Hearing`]).
//!
//! **When Redis is away** L1 serves what it holds until that entry's life ends, and the loader is asked for the
//! rest; what it brings is kept by this process alone. A `set` or `delete` then fails, says so, and leaves what
//! other nodes hold as it was. Afterwards L1 drops everything, for it may have missed something.

mod hearing;
mod near;
mod tiered;

pub use hearing::Hearing;
pub use near::{Found, Keeps, Loaded, Near};
pub use tiered::{CacheError, Caches, Lives, Reason, TOPIC, TieredCache};
