//! The scripts that run in Redis, each a file with a header that names its keys and arguments.

use std::sync::LazyLock;

use redis::Script;

pub static APPLY: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/apply.lua")));
pub static REWRITE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/rewrite.lua")));
pub static BEAT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/beat.lua")));
pub static CLEAR: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/clear.lua")));
pub static RENEW: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/renew.lua")));
/// Read rarely, and so sent whole each time: they need not have been loaded.
pub const READ: &str = include_str!("scripts/read.lua");
pub const SWEEP: &str = include_str!("scripts/sweep.lua");
pub const STATS: &str = include_str!("scripts/stats.lua");
pub const COUNT: &str = include_str!("scripts/count.lua");

/// Those that must be loaded before the writer can call them.
pub const LOADED: [fn() -> &'static Script; 5] = [|| &APPLY, || &REWRITE, || &BEAT, || &CLEAR, || &RENEW];
