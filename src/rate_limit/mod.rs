//! Rate limits: so many calls from an address or by a user in 60 s, counted for the whole cluster; likewise
//! attempts to sign in, by address and by account.
//!
//! Windows are fixed and begin with the first call. One script in Redis counts, sets the end and
//! answers: one round trip, and no two nodes let the same call through.
//!
//! **When Redis is away** each node counts for itself, in windows that begin anew: limits still
//! hold on every node, and a cluster of n nodes may let n times as much through. They never just
//! open. After a failure Redis is left alone for a second, then one call tries it while the others
//! go on counting locally, so that an outage delays nobody else.
//! **Without Redis** the local count is the count. It remembers [`LOCAL_CAPACITY`] subjects; past
//! that the one seen longest ago starts a new window.

mod headers;
mod middleware;

use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use moka::policy::EvictionPolicy;
use moka::sync::Cache;

pub use headers::Allowances;
pub use middleware::RateLimitMiddleware;

use crate::keys;
use crate::logging::Seldom;
use crate::redis_pool::{RedisError, RedisPool, Rest};

/// Subjects that are counted locally at once.
pub const LOCAL_CAPACITY: u64 = 100_000;

const WINDOW: Duration = Duration::from_secs(60);

static SCRIPT: LazyLock<redis::Script> =
    LazyLock::new(|| redis::Script::new(include_str!("../scripts/rate_limit.lua")));

/// Whose calls are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject<'a> {
    /// An address; IPv6 counts by /64 (see [`keys::ratelimit_ip`]).
    Ip(IpAddr),
    /// A user.
    User(&'a str),
    /// Who tries to sign in, by address.
    SignInIp(IpAddr),
    /// Who tries to sign in, by the account's e-mail address.
    SignInAccount(&'a str),
}

impl Subject<'_> {
    fn key(self) -> String {
        match self {
            Self::Ip(addr) => keys::ratelimit_ip(addr),
            Self::User(id) => keys::ratelimit_user(id),
            Self::SignInIp(addr) => keys::sign_in_ip(addr),
            Self::SignInAccount(email) => keys::sign_in_account(email),
        }
    }
}

/// Whether a call may go ahead, and what to tell the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    pub allowed: bool,
    /// Calls per window; 0 is no limit.
    pub limit: u32,
    /// Calls left in this window.
    pub remaining: u32,
    /// Until the window ends: what `Retry-After` says when refused.
    pub reset: Duration,
}

impl Decision {
    /// Without a limit every call goes ahead.
    const UNLIMITED: Self = Self { allowed: true, limit: 0, remaining: u32::MAX, reset: Duration::ZERO };

    /// The seconds after which the window is over, at least 1.
    pub fn whole_seconds(&self) -> u64 {
        self.reset.as_millis().div_ceil(1_000).try_into().unwrap_or(u64::MAX).max(1)
    }

    fn of(count: u64, limit: u32, reset: Duration) -> Self {
        let remaining = u64::from(limit).saturating_sub(count).try_into().unwrap_or(u32::MAX);
        Self { allowed: count <= u64::from(limit), limit, remaining, reset }
    }
}

/// Counts calls and decides. Clones are cheap and count together.
#[derive(Clone)]
pub struct RateLimiter(Arc<Inner>);

struct Inner {
    redis: Option<RedisPool>,
    window: Duration,
    local: Cache<String, Arc<LocalWindow>>,
    rest: Rest,
    degraded: AtomicU64,
}

struct LocalWindow {
    began: Instant,
    count: AtomicU32,
}

impl RateLimiter {
    /// A limiter that counts in Redis through `pool` or, without one, in this process.
    pub fn new(pool: Option<RedisPool>) -> Self {
        Self::with_window(pool, WINDOW)
    }

    fn with_window(redis: Option<RedisPool>, window: Duration) -> Self {
        let local = Cache::builder()
            .max_capacity(LOCAL_CAPACITY)
            // The default policy may refuse a new subject when full, and would then never count it.
            .eviction_policy(EvictionPolicy::lru())
            .time_to_live(window)
            .build();
        Self(Arc::new(Inner { redis, window, local, rest: Rest::new(), degraded: AtomicU64::new(0) }))
    }

    /// Counts one call by `subject` and says whether it is within `limit`. 0 is no limit: nothing
    /// is counted.
    pub async fn check(&self, subject: Subject<'_>, limit: u32) -> Decision {
        if limit == 0 {
            return Decision::UNLIMITED;
        }
        let key = subject.key();
        let inner = &self.0;
        let Some(redis) = &inner.redis else { return inner.count_locally(key, limit) };
        if inner.rest.may_try() {
            match inner.count_in_redis(redis, &key, limit).await {
                Ok(decision) => {
                    inner.rest.succeeded();
                    return decision;
                }
                Err(error) => inner.failed(&error),
            }
        }
        inner.degraded.fetch_add(1, Ordering::Relaxed);
        inner.count_locally(key, limit)
    }

    /// Checks that were answered by this node alone because Redis was away.
    pub fn degraded(&self) -> u64 {
        self.0.degraded.load(Ordering::Relaxed)
    }
}

impl Inner {
    async fn count_in_redis(&self, redis: &RedisPool, key: &str, limit: u32) -> Result<Decision, RedisError> {
        let window = u64::try_from(self.window.as_millis()).unwrap_or(u64::MAX);
        let (count, left): (u64, u64) = redis.script(SCRIPT.key(key).arg(window)).await?;
        Ok(Decision::of(count, limit, Duration::from_millis(left)))
    }

    fn count_locally(&self, key: String, limit: u32) -> Decision {
        let new = || Arc::new(LocalWindow { began: Instant::now(), count: AtomicU32::new(0) });
        let window = self.local.get_with(key, new);
        let before = window.count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_add(1));
        let count = u64::from(before.unwrap_or(u32::MAX)) + 1;
        Decision::of(count, limit, self.window.saturating_sub(window.began.elapsed()))
    }

    fn failed(&self, error: &RedisError) {
        self.rest.failed();
        static UNSHARED: Seldom = Seldom::new();
        if let Some(times) = UNSHARED.count() {
            tracing::warn!(%error, times, "rate limits are counted by this node alone");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis_pool::REST;
    use crate::redis_pool::test_redis::{TestRedis, nowhere};
    use futures_util::future::join_all;

    const USER: Subject<'static> = Subject::User("u1");

    async fn pause(milliseconds: u64) {
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
    }

    #[tokio::test]
    async fn nodes_count_together_and_exactly() {
        let redis = TestRedis::start();
        let nodes: Vec<_> = (0..3).map(|_| RateLimiter::new(Some(redis.pool()))).collect();
        let decisions = join_all((0..60).map(|i| nodes[i % 3].check(USER, 20))).await;
        assert_eq!(decisions.iter().filter(|d| d.allowed).count(), 20);
        let mut left: Vec<_> = decisions.iter().filter(|d| d.allowed).map(|d| d.remaining).collect();
        left.sort_unstable();
        assert_eq!(left, (0..20).collect::<Vec<_>>());
        assert!(decisions.iter().all(|d| d.reset > Duration::from_secs(55) && d.reset <= WINDOW));
        assert_eq!(nodes.iter().map(RateLimiter::degraded).sum::<u64>(), 0);
        let ttl: i64 = redis.pool().query(&redis::Cmd::ttl("ratelimit:user:u1")).await.unwrap();
        assert!((55..=60).contains(&ttl));
    }

    #[tokio::test]
    async fn a_window_is_fixed_from_its_first_call() {
        let redis = TestRedis::start();
        for pool in [None, Some(redis.pool())] {
            let limiter = RateLimiter::with_window(pool, Duration::from_millis(600));
            assert!(limiter.check(USER, 1).await.allowed);
            pause(300).await;
            let refused = limiter.check(USER, 1).await;
            assert!(!refused.allowed && refused.reset <= Duration::from_millis(300));
            pause(350).await;
            assert!(limiter.check(USER, 1).await.allowed);
        }
    }

    #[tokio::test]
    async fn a_counter_without_an_end_gets_one() {
        let redis = TestRedis::start();
        let () = redis.pool().query(&redis::Cmd::set("ratelimit:user:u1", 5)).await.unwrap();
        let limiter = RateLimiter::with_window(Some(redis.pool()), Duration::from_millis(100));
        assert!(!limiter.check(USER, 5).await.allowed);
        pause(150).await;
        assert!(limiter.check(USER, 5).await.allowed);
    }

    #[tokio::test]
    async fn without_redis_one_node_still_limits_and_forgives() {
        let mut redis = TestRedis::start();
        let limiter = RateLimiter::new(Some(redis.pool()));
        assert!(limiter.check(USER, 3).await.allowed);
        redis.kill();
        let decisions = join_all((0..10).map(|_| limiter.check(USER, 3))).await;
        assert_eq!(decisions.iter().filter(|d| d.allowed).count(), 3);
        assert_eq!(limiter.degraded(), 10);

        redis.restart();
        pause(REST.as_millis() as u64 + 50).await;
        assert!(limiter.check(USER, 3).await.allowed);
        assert_eq!(limiter.degraded(), 10);
    }

    #[tokio::test]
    async fn a_frozen_redis_delays_one_call_and_not_the_rest() {
        let redis = TestRedis::start();
        let limiter = RateLimiter::new(Some(redis.pool()));
        redis.freeze();
        limiter.check(USER, 100).await;
        let began = Instant::now();
        for _ in 0..50 {
            assert!(limiter.check(USER, 100).await.allowed);
        }
        assert!(began.elapsed() < Duration::from_millis(200));
        pause(REST.as_millis() as u64).await;
        let began = Instant::now();
        let waits = join_all((0..50).map(|_| async {
            limiter.check(USER, 1000).await;
            began.elapsed() > Duration::from_millis(300)
        }));
        assert_eq!(waits.await.into_iter().filter(|waited| *waited).count(), 1);
    }

    #[tokio::test]
    async fn a_cluster_of_none_and_a_limit_of_none() {
        let limiter = RateLimiter::new(None);
        assert!(limiter.check(USER, 1).await.allowed);
        assert!(!limiter.check(USER, 1).await.allowed);
        assert_eq!(limiter.degraded(), 0);

        let limiter = RateLimiter::new(Some(nowhere()));
        assert_eq!(limiter.check(USER, 0).await, Decision::UNLIMITED);
        assert_eq!(limiter.degraded(), 0);
    }

    #[tokio::test]
    async fn addresses_of_one_network_count_together_and_apart_from_users() {
        let gate = RateLimitMiddleware::new(RateLimiter::new(None), 1);
        let addr = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(gate.check_ip(&addr("2001:db8::1")).await.allowed);
        assert!(!gate.check_ip(&addr("2001:db8::2")).await.allowed);
        assert!(gate.check_ip(&addr("2001:db8:0:1::1")).await.allowed);
        assert!(gate.check_ip(&addr("192.0.2.1")).await.allowed);
        assert!(gate.limiter.check(Subject::User("192.0.2.1"), 1).await.allowed);
    }
}
