//! Who is active: told by the nodes, connection by connection, as time passes.
//!
//! `cache:active:{u}` is a hash: `node:connection` → until when it counts as active unless more is told, in
//! milliseconds since 1970. A user is active while one of them lies ahead. It never lies far ahead, and is told again
//! while it holds: so what a node that was killed has told runs out, and what Redis lost comes back. Connections that
//! end take theirs out.

use super::bus::Bus;
use super::{Act, keys};

/// Users in one pipeline.
const CHUNK: usize = 1_000;
/// How much longer than the last of it the hash lives: clocks of nodes differ.
const SPARE_MILLIS: u64 = 60_000;

/// Writes what has changed. If Redis is away it is left: whoever goes on being active is told of again.
pub async fn tell(bus: &Bus, acts: &[Act]) {
    let _in_turn = bus.telling.lock().await;
    for some in acts.chunks(CHUNK) {
        let mut pipeline = redis::pipe();
        for Act { user, connection, until } in some {
            let (key, field) = (keys::active(user), keys::field(bus.node, *connection));
            match until {
                Some(until) => {
                    let life = until.saturating_sub(super::wall_clock()) + SPARE_MILLIS;
                    pipeline.cmd("HSET").arg(&key).arg(field).arg(*until).ignore();
                    pipeline.cmd("PEXPIRE").arg(&key).arg(life).ignore();
                }
                None => {
                    pipeline.cmd("HDEL").arg(&key).arg(field).ignore();
                }
            }
        }
        if let Err(error) = bus.pool.pipeline::<()>(&pipeline).await {
            tracing::debug!(%error, "who is active was not told");
            return;
        }
    }
}

/// Whether one of the times lies after `now`.
pub fn is_active(times: impl IntoIterator<Item = u64>, now: u64) -> bool {
    times.into_iter().any(|until| until > now)
}
