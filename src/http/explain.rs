//! "Why is this user online?": each connection of a user, and in plain words why it counts.
//!
//! What this node's rosters show and what stands in Redis are put side by side. While Redis is away the
//! rosters alone answer, for that is when the question is asked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use super::AppState;
use crate::channel::SeatsOf;
use crate::cluster::{Explained, RedisState, wall_clock};
use crate::json;
use crate::presence::{Entry, NodeId, Seat};

/// How long a channel may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// One connection in one channel, as far as anything is known of it.
#[derive(Clone, Debug)]
struct Known {
    node: NodeId,
    meta: Arc<str>,
    since: u64,
    waiting: Option<u64>,
    beat_ago: Option<Duration>,
    /// Whether this node's roster of the channel shows it; none if the channel does not live here.
    in_roster: Option<bool>,
    in_redis: bool,
}

/// What is known of a node's lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lease {
    /// Nothing: there is no Redis, or it is away.
    Unknown,
    Gone,
    Left(Duration),
}

/// What makes the words.
#[derive(Clone, Copy, Debug)]
struct Circumstances {
    local: bool,
    node: NodeId,
    redis: RedisState,
    lease: Lease,
    /// How long a lease lives, and how often it is renewed.
    lease_life: Option<(Duration, Duration)>,
    /// When the grace ends, in milliseconds since 1970.
    grace_ends: Option<u64>,
    in_roster: Option<bool>,
    in_redis: bool,
}

/// Appends the list of the connections of `user`.
pub async fn write(out: &mut Vec<u8>, state: &AppState, user: &str) {
    // By ref: a roster names a seat that was taken over by where it was first.
    let mut known: BTreeMap<(Arc<str>, String), Known> = BTreeMap::new();
    let mut here = BTreeSet::new();
    for (channel, seats) in seats_here(state, user, &mut here).await {
        for (seat, entry) in seats {
            let one = Known {
                node: seat.node,
                meta: Arc::clone(&entry.meta),
                since: entry.since,
                waiting: entry.waiting,
                beat_ago: None,
                in_roster: Some(true),
                in_redis: false,
            };
            known.insert((Arc::clone(&channel), entry.r#ref.as_str().to_owned()), one);
        }
    }
    let nodes = known.values().map(|one| one.node).collect();
    let (read, redis) = match state.cluster.explain(user, nodes).await {
        Ok(read) => (read, state.cluster.state()),
        Err(_) => (Explained::default(), RedisState::Down),
    };
    for place in read.places {
        let in_roster = here.contains(&place.channel).then_some(false);
        let key = (place.channel, place.entry.r#ref.as_str().to_owned());
        let one = known.entry(key).or_insert_with(|| Known {
            node: place.node,
            meta: place.entry.meta,
            since: place.entry.since,
            waiting: place.entry.waiting,
            beat_ago: None,
            in_roster,
            in_redis: true,
        });
        (one.node, one.waiting) = (place.node, one.waiting.or(place.entry.waiting));
        (one.beat_ago, one.in_redis) = (Some(place.beat_ago), true);
    }
    let now = wall_clock();
    let grace = state.config.grace.as_millis() as u64;
    json::list(out, known, |out, ((channel, r#ref), one)| {
        let node = one.node;
        let lease = match (redis, read.leases.get(&node)) {
            (RedisState::Off, _) | (_, None) => Lease::Unknown,
            (_, Some(None)) => Lease::Gone,
            (_, Some(Some(left))) => Lease::Left(*left),
        };
        let grace_ends = one.waiting.map(|waiting| waiting + grace);
        let circumstances = Circumstances {
            local: node == state.node,
            node,
            redis,
            lease,
            lease_life: state.cluster.lease_life(),
            grace_ends,
            in_roster: one.in_roster,
            in_redis: one.in_redis,
        };
        out.extend_from_slice(b"{\"channel\":");
        json::string(out, &channel);
        out.extend_from_slice(b",\"node\":");
        json::string(out, &node.to_string());
        out.extend_from_slice(b",\"local\":");
        out.extend_from_slice(if circumstances.local { b"true" } else { b"false" });
        out.extend_from_slice(b",\"ref\":");
        json::string(out, &r#ref);
        let beat = one.beat_ago.map(|ago| now.saturating_sub(ago.as_millis() as u64));
        for (name, time) in
            [("since", Some(one.since)), ("last_heartbeat", beat), ("waiting_since", one.waiting)]
        {
            out.extend_from_slice(format!(",\"{name}\":").as_bytes());
            json::optional_string(out, time.and_then(json::rfc3339).as_deref());
        }
        let lease_left = match lease {
            Lease::Unknown => None,
            Lease::Gone => Some(0),
            Lease::Left(left) => Some(left.as_millis() as u64),
        };
        let grace_left = grace_ends.map(|ends| ends.saturating_sub(now));
        for (name, left) in [("grace_left_ms", grace_left), ("lease_left_ms", lease_left)] {
            let left = left.map_or_else(|| "null".to_owned(), |left| left.to_string());
            out.extend_from_slice(format!(",\"{name}\":{left}").as_bytes());
        }
        out.extend_from_slice(b",\"reason\":");
        json::string(out, &reason(&circumstances));
        out.extend_from_slice(b",\"meta\":");
        out.extend_from_slice(one.meta.as_bytes());
        out.push(b'}');
    });
}

/// The user's connections in the channels that live here, which are noted in `here`. Each channel in which the
/// user is shown is asked, for it knows more than it has published; one that is busy answers with that.
async fn seats_here(
    state: &AppState,
    user: &str,
    here: &mut BTreeSet<Arc<str>>,
) -> Vec<(Arc<str>, Vec<(Seat, Arc<Entry>)>)> {
    let name: Arc<str> = user.into();
    let mut asking = Vec::new();
    for (channel, roster) in state.rosters.all() {
        if let Some(member) = roster.snapshot.member(user) {
            let asked = state
                .registry
                .find(&channel)
                .map(|actor| actor.send(SeatsOf { user: Arc::clone(&name) }).timeout(PATIENCE));
            let (channel, published) = (Arc::clone(&channel), member.seats.clone());
            asking.push(async move {
                let answer = match asked {
                    Some(asked) => asked.await.ok(),
                    None => None,
                };
                (channel, answer.unwrap_or(published))
            });
        }
        here.insert(channel);
    }
    join_all(asking).await
}

/// Why the connection counts, in plain words.
fn reason(about: &Circumstances) -> String {
    let node = about.node;
    let mut words = match (about.grace_ends, about.lease) {
        (Some(ends), _) => {
            let ends = json::rfc3339(ends).unwrap_or_default();
            format!("its socket on node {node} ended; kept for the grace until {ends}")
        }
        _ if about.local => format!("connected to this node, {node}"),
        (None, Lease::Unknown) if about.redis == RedisState::Down => {
            format!(
                "connected to node {node} when that was last heard of; Redis is away, so nobody is declared gone"
            )
        }
        (None, Lease::Unknown) => format!("connected to node {node}"),
        (None, Lease::Gone) => {
            format!("node {node} holds no lease any more; its members are about to be taken out")
        }
        (None, Lease::Left(left)) => match about.lease_life {
            Some((life, every)) if life.saturating_sub(left) > every * 2 => format!(
                "node {node} has not renewed its lease for {} ms; it will be declared gone in {} ms unless it does",
                life.saturating_sub(left).as_millis(),
                left.as_millis()
            ),
            _ => format!("connected to node {node}"),
        },
    };
    if about.redis == RedisState::Up && !about.in_redis {
        words.push_str("; not written to Redis yet");
    }
    if about.in_roster == Some(false) {
        words.push_str("; not in the roster that this node shows");
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fine() -> Circumstances {
        Circumstances {
            local: false,
            node: NodeId(uuid::Uuid::nil()),
            redis: RedisState::Up,
            lease: Lease::Left(Duration::from_secs(9)),
            lease_life: Some((Duration::from_secs(10), Duration::from_secs(1))),
            grace_ends: None,
            in_roster: None,
            in_redis: true,
        }
    }

    #[test]
    fn each_case_has_its_words() {
        let node = NodeId(uuid::Uuid::nil());
        let says = |about: Circumstances, words: &str| assert_eq!(reason(&about), words);
        says(fine(), &format!("connected to node {node}"));
        says(Circumstances { local: true, ..fine() }, &format!("connected to this node, {node}"));
        let late = Circumstances { lease: Lease::Left(Duration::from_millis(7_900)), ..fine() };
        says(
            late,
            &format!(
                "node {node} has not renewed its lease for 2100 ms; it will be declared gone in 7900 ms unless it does"
            ),
        );
        let gone = Circumstances { lease: Lease::Gone, ..fine() };
        assert!(reason(&gone).contains("holds no lease any more"));
        let away =
            Circumstances { redis: RedisState::Down, lease: Lease::Unknown, in_redis: false, ..fine() };
        assert!(reason(&away).contains("Redis is away"));
        let grace = Circumstances { grace_ends: Some(1_700_000_000_000), lease: Lease::Gone, ..fine() };
        assert!(reason(&grace).ends_with("kept for the grace until 2023-11-14T22:13:20Z"));
        let odd = Circumstances { in_redis: false, in_roster: Some(true), ..fine() };
        assert!(reason(&odd).ends_with("; not written to Redis yet"));
        let unknown = Circumstances { in_roster: Some(false), ..fine() };
        assert!(reason(&unknown).ends_with("; not in the roster that this node shows"));
    }
}
