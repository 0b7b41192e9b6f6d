//! What an operator can watch: counters, gauges and histograms, in Prometheus' text form.
//!
//! A metric is one atomic number; the hot path touches each once per change or per fan-out, never
//! once per receiver where a sum would do.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::health::{Health, Trouble};

/// A counter that only grows.
pub type Count = Counter<u64, AtomicU64>;

/// Every metric of the process. One is made at the start and shared.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// What is wrong just now: `problem` says the same in numbers.
    pub health: Health,
    problem: Family<[(&'static str, &'static str); 1], Gauge>,
    pub connections: Gauge,
    pub connections_opened: Count,
    pub event_streams: Gauge,
    pub channels: Gauge,
    pub members: Gauge,
    pub joins: Count,
    pub leaves: Count,
    pub updates: Count,
    pub diffs: Count,
    pub encodes: Family<[(&'static str, &'static str); 1], Count>,
    pub broadcasts: Count,
    pub broadcasts_dropped: Count,
    pub webhooks: Family<[(&'static str, &'static str); 1], Count>,
    pub frames_in: Count,
    pub frames_out: Count,
    pub bytes_in: Count,
    pub bytes_out: Count,
    pub frames_malformed: Count,
    pub frames_oversized: Count,
    pub slow_readers: Count,
    pub silent_sockets: Count,
    pub presence_calls_held: Count,
    pub messages_refused: Count,
    pub join_to_visible: Histogram,
    pub redis_up: Gauge,
    pub redis_writes: Count,
    pub redis_write_failures: Count,
    pub redis_batch_seconds: Histogram,
    pub redis_events: Count,
    pub redis_gaps: Count,
    pub redis_readings: Count,
    pub audit_ghosts: Count,
    pub audit_missing: Count,
    pub audit_skipped: Count,
    pub redis_dropped: Count,
    pub nodes: Gauge,
    pub nodes_lost: Count,
    pub rate_refusals_ip: Count,
    pub rate_refusals_user: Count,
    pub rate_refusals_sign_in: Count,
    pub quota_refusals: Count,
    pub origin_refusals: Count,
    pub session_refusals: Count,
    pub count_l1_hits: Count,
    pub count_l1_misses: Count,
    pub count_l2_reads: Count,
    cache_hits: Family<Tier, Count>,
    cache_misses: Family<Tier, Count>,
    cache_seconds: Family<Tier, Histogram, fn() -> Histogram>,
    cache_evictions: Family<Namespace, Count>,
    cache_loads: Family<Namespace, Count>,
    cache_load_failures: Family<Namespace, Count>,
    cache_load_seconds: Family<Namespace, Histogram, fn() -> Histogram>,
    cache_unshared: Family<Namespace, Count>,
    pub session_filter_refusals: Count,
    pub session_filter_misses: Count,
    pub session_filter_trusted: Gauge,
    pub rate_checks_degraded: Count,
    pub redis_writes_waiting: Gauge,
    pub redis_pool_size: Gauge,
    pub redis_pool_available: Gauge,
    pub redis_pool_waiting: Gauge,
    pub redis_pool_max: Gauge,
    pub redis_memory_used_bytes: Gauge,
    pub redis_memory_max_bytes: Gauge,
}

type Tier = [(&'static str, &'static str); 2];
type Namespace = [(&'static str, &'static str); 1];

/// What is counted of one tier of a cache.
#[derive(Clone, Debug)]
pub struct TierMetrics {
    pub hits: Count,
    pub misses: Count,
    pub evictions: Count,
    pub seconds: Histogram,
}

/// What is counted of one cache. By default it is shown nowhere.
#[derive(Clone, Debug)]
pub struct CacheMetrics {
    pub l1: TierMetrics,
    pub l2: TierMetrics,
    pub loads: Count,
    pub load_failures: Count,
    pub load_seconds: Histogram,
    pub unshared: Count,
}

impl Default for TierMetrics {
    fn default() -> Self {
        let (hits, misses, evictions) = (Count::default(), Count::default(), Count::default());
        Self { hits, misses, evictions, seconds: tier_seconds() }
    }
}

impl Default for CacheMetrics {
    fn default() -> Self {
        Self {
            l1: TierMetrics::default(),
            l2: TierMetrics::default(),
            loads: Count::default(),
            load_failures: Count::default(),
            load_seconds: tier_seconds(),
            unshared: Count::default(),
        }
    }
}

/// 125 ns to 0.5 s: from a look into memory to a slow database.
fn tier_seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.000_000_125, 4.0, 12))
}

macro_rules! register {
    ($registry:ident, $( $name:ident: $kind:expr, $help:literal; )*) => {
        Metrics {
            $( $name: {
                let metric = $kind;
                $registry.register(stringify!($name), $help, metric.clone());
                metric
            }, )*
            health: Health::default(),
            registry: $registry,
        }
    };
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All metrics at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("rollcall");
        // 0.25 ms to 4 s: from one hop in a process to the longest window and a slow Redis.
        let seconds = || Histogram::new(exponential_buckets(0.000_25, 2.0, 15));
        register! { registry,
            problem: Family::default(), "1 while the problem stands, each told by /readyz";
            connections: Gauge::default(), "Open WebSockets";
            connections_opened: Count::default(), "WebSockets opened";
            event_streams: Gauge::default(), "Open streams of server-sent events";
            channels: Gauge::default(), "Channels that live on this node";
            members: Gauge::default(), "Seats held by this node's own connections";
            joins: Count::default(), "Joins told to viewers";
            leaves: Count::default(), "Leaves told to viewers";
            updates: Count::default(), "Updates told to viewers";
            diffs: Count::default(), "Diffs sent, one for each channel and window";
            encodes: Family::default(), "Diffs and broadcasts encoded, by wire form";
            broadcasts: Count::default(), "Broadcasts told to the viewers of a channel on this node";
            broadcasts_dropped: Count::default(), "Broadcasts that did not reach the other nodes, or a thread of this one";
            webhooks: Family::default(), "Events told by webhook, by address, and attempts that failed";
            frames_in: Count::default(), "Messages from clients";
            frames_out: Count::default(), "Frames put into the clients' queues";
            bytes_in: Count::default(), "Bytes from clients";
            bytes_out: Count::default(), "Bytes put into the clients' queues";
            frames_malformed: Count::default(), "Messages that no dialect could read";
            frames_oversized: Count::default(), "Connections ended for announcing too large a message";
            slow_readers: Count::default(), "Connections ended because their queue was full";
            silent_sockets: Count::default(), "Connections ended because nothing came for ROLLCALL_SILENCE_SECONDS";
            presence_calls_held: Count::default(), "Presence calls over the rate, held and applied later";
            messages_refused: Count::default(), "Messages over the rate, answered with an error";
            join_to_visible: seconds(), "Seconds from a change on this node to the viewers' queues";
            redis_up: Gauge::default(), "1 while Redis answers, 0 while it does not";
            redis_writes: Count::default(), "Presence writes made in Redis";
            redis_write_failures: Count::default(), "Batches of presence writes that failed";
            redis_batch_seconds: seconds(), "Seconds for one pipeline of presence writes";
            redis_events: Count::default(), "Messages from other nodes";
            redis_gaps: Count::default(), "Messages that showed that one before them was lost";
            redis_readings: Count::default(), "Channels read from Redis";
            audit_ghosts: Count::default(), "Seats found shown or stored on which nobody sits, and removed";
            audit_missing: Count::default(), "Taken seats found not shown or not stored, and put right";
            audit_skipped: Count::default(), "Announcements missed without a sign, which a heartbeat told of";
            redis_dropped: Count::default(), "Presence writes dropped on a full queue (all is written again)";
            nodes: Gauge::default(), "Nodes that hold a lease, this one included";
            nodes_lost: Count::default(), "Nodes declared dead by this one";
            rate_refusals_ip: Count::default(), "Calls refused by the rate limit of an address";
            rate_refusals_user: Count::default(), "Calls refused by the rate limit of a user";
            rate_refusals_sign_in: Count::default(), "Attempts to sign in refused by the rate limits for those";
            quota_refusals: Count::default(), "Connections and joins refused because there were as many as there may be";
            origin_refusals: Count::default(), "Connections refused for their origin";
            session_refusals: Count::default(), "Calls refused for want of a valid session";
            count_l1_hits: Count::default(), "Counts answered from this process";
            count_l1_misses: Count::default(), "Counts of channels that do not live on this node";
            count_l2_reads: Count::default(), "Counts read from Redis";
            cache_hits: Family::default(), "Looks into a tier of a cache that found what is right (l1 this process, l2 Redis)";
            cache_misses: Family::default(), "Looks into a tier of a cache that did not";
            cache_seconds: Family::new_with_constructor(tier_seconds as fn() -> Histogram), "Seconds for one look into a tier of a cache (of those into l1, one in 64 is timed)";
            cache_evictions: Family::default(), "Copies that came into l1 while it was full, so that another was dropped";
            cache_loads: Family::default(), "Values loaded because no tier had them";
            cache_load_failures: Family::default(), "Loads that failed";
            cache_load_seconds: Family::new_with_constructor(tier_seconds as fn() -> Histogram), "Seconds for one load";
            cache_unshared: Family::default(), "Looks that did without Redis because it was away";
            session_filter_refusals: Count::default(), "Tokens that the filter knew to be no session, so that Redis was not asked";
            session_filter_misses: Count::default(), "Tokens that the filter let pass and Redis did not know";
            session_filter_trusted: Gauge::default(), "1 while the filter of sessions may refuse, 0 while Redis is asked of every token";
            rate_checks_degraded: Count::default(), "Rate limits counted by this node alone because Redis was away";
            redis_writes_waiting: Gauge::default(), "Presence writes that wait for Redis";
            redis_pool_size: Gauge::default(), "Pooled connections to Redis";
            redis_pool_available: Gauge::default(), "Pooled connections to Redis that nobody uses";
            redis_pool_waiting: Gauge::default(), "Callers who wait for a pooled connection to Redis";
            redis_pool_max: Gauge::default(), "Pooled connections to Redis that there may be";
            redis_memory_used_bytes: Gauge::default(), "Memory that Redis uses, all its primaries together";
            redis_memory_max_bytes: Gauge::default(), "Memory that Redis may use (maxmemory); 0 for no limit";
        }
    }

    /// What is counted of the cache called `namespace`: the same numbers at each call.
    pub fn cache(&self, namespace: &'static str) -> CacheMetrics {
        let name = [("namespace", namespace)];
        let tier = |tier| {
            let labels = [("namespace", namespace), ("tier", tier)];
            TierMetrics {
                hits: self.cache_hits.get_or_create(&labels).clone(),
                misses: self.cache_misses.get_or_create(&labels).clone(),
                // Redis evicts of all namespaces alike, and counts that itself.
                evictions: Count::default(),
                seconds: self.cache_seconds.get_or_create(&labels).clone(),
            }
        };
        let evictions = self.cache_evictions.get_or_create(&name).clone();
        CacheMetrics {
            l1: TierMetrics { evictions, ..tier("l1") },
            l2: tier("l2"),
            loads: self.cache_loads.get_or_create(&name).clone(),
            load_failures: self.cache_load_failures.get_or_create(&name).clone(),
            load_seconds: self.cache_load_seconds.get_or_create(&name).clone(),
            unshared: self.cache_unshared.get_or_create(&name).clone(),
        }
    }

    /// How many WebSockets and event streams are open.
    pub fn open(&self) -> i64 {
        self.connections.get() + self.event_streams.get()
    }

    /// Everything, as Prometheus reads it.
    pub fn render(&self) -> String {
        let standing = self.health.standing();
        for what in Trouble::ALL {
            let stands = standing.iter().any(|one| one.what == what);
            self.problem.get_or_create(&[("what", what.name())]).set(i64::from(stands));
        }
        let mut text = String::with_capacity(8 * 1024);
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_rendered() {
        let metrics = Metrics::new();
        metrics.joins.inc_by(3);
        metrics.join_to_visible.observe(0.003);
        metrics.health.set(Trouble::Draining, "");
        let text = metrics.render();
        assert!(text.contains("rollcall_joins_total 3"), "{text}");
        assert!(text.contains("rollcall_join_to_visible_count 1"), "{text}");
        assert!(text.contains("rollcall_problem{what=\"draining\"} 1"), "{text}");
        assert!(text.contains("rollcall_problem{what=\"redis_away\"} 0"), "{text}");
    }
}
