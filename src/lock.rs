//! A lock for the whole cluster: at most one holder at a time, for a limited time, kept in Redis.
//!
//! The key `lock:{name}` holds its owner's random token and expires by itself, so a holder that
//! died frees it after its TTL. Only the owner's token frees or renews it.
//!
//! **What it does not promise.** A holder that is slower than the TTL (a pause, a slow network)
//! is no longer alone and is not told. A Redis that fails over to a replica, or restarts empty, may
//! have forgotten the lock and give it to a second holder. So it saves work that need not be done
//! twice, such as cleaning up after a dead node; what it guards must bear being done twice.
//!
//! **When Redis is away** nobody gets a lock: every call fails with [`LockError`] within a second.

use std::sync::LazyLock;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio::time::Instant;

use crate::config::Secret;
use crate::keys;
use crate::redis_pool::{RedisError, RedisPool};

/// By so much more than its TTL a lock is waited for: Redis' clock moves in steps, and is not ours.
const CLOCKS_DIFFER: Duration = Duration::from_millis(10);
/// The pause between two tries lies around a fiftieth of the TTL, within these.
const PAUSE_RANGE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(200));

static ACQUIRE: LazyLock<redis::Script> =
    LazyLock::new(|| redis::Script::new(include_str!("scripts/lock_acquire.lua")));
static RELEASE: LazyLock<redis::Script> =
    LazyLock::new(|| redis::Script::new(include_str!("scripts/lock_release.lua")));

/// Why it is not known who holds the lock.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum LockError {
    /// Redis gave no answer; the lock may have been taken or freed all the same.
    #[error("locks are unavailable: {0}")]
    Unavailable(#[from] RedisError),
    /// The operating system gave no random bytes.
    #[error("no randomness for a token")]
    NoRandomness,
}

/// One contender for a lock. It does not free what it holds when dropped (that takes a call to
/// Redis): the TTL does.
pub struct DistributedLock {
    redis: RedisPool,
    key: String,
    ttl: Duration,
    /// Ours while we hold the lock, or may do: after an error it is kept, so that a retry finds
    /// out. Not printed: who knows it can free the lock.
    token: Option<Secret>,
}

impl DistributedLock {
    /// A contender for the lock called `name`, held for `ttl_seconds` (at least 1) at a time.
    pub fn new(redis: RedisPool, name: &str, ttl_seconds: u64) -> Self {
        // Redis takes no longer life than this; it is some thousand years.
        let ttl = Duration::from_secs(ttl_seconds.clamp(1, u64::from(u32::MAX) * 10));
        Self { redis, key: keys::lock(name), ttl, token: None }
    }

    /// Takes the lock if it is free, without waiting. Says whether it is ours. Called again while
    /// it is ours, it renews the lock for another TTL.
    ///
    /// # Errors
    /// See [`LockError`].
    pub async fn try_acquire(&mut self) -> Result<bool, LockError> {
        let token = match &self.token {
            Some(token) => token.clone(),
            None => self.token.insert(random_token()?).clone(),
        };
        let life = u64::try_from(self.ttl.as_millis()).unwrap_or(u64::MAX);
        let ours: bool = self.redis.script(ACQUIRE.key(&self.key).arg(token.expose()).arg(life)).await?;
        if !ours {
            self.token = None;
        }
        Ok(ours)
    }

    /// Takes the lock, waiting for it up to its TTL. Says whether it is ours.
    ///
    /// # Errors
    /// See [`LockError`]; an error ends the waiting.
    pub async fn acquire(&mut self) -> Result<bool, LockError> {
        let deadline = Instant::now() + self.ttl + CLOCKS_DIFFER;
        loop {
            if self.try_acquire().await? {
                return Ok(true);
            }
            let now = Instant::now();
            if now >= deadline {
                return Ok(false);
            }
            // The last try comes at the deadline, when the TTL of whoever held it before is over as well.
            tokio::time::sleep_until(deadline.min(now + self.pause()?)).await;
        }
    }

    /// Frees the lock if it is still ours. Says whether it was.
    ///
    /// # Errors
    /// See [`LockError`]; the lock then ends by its TTL, or by releasing again.
    pub async fn release(&mut self) -> Result<bool, LockError> {
        let Some(token) = &self.token else { return Ok(false) };
        let freed = self.redis.script(RELEASE.key(&self.key).arg(token.expose())).await?;
        self.token = None;
        Ok(freed)
    }

    /// Between half and one and a half times the usual, so that contenders do not march in step.
    fn pause(&self) -> Result<Duration, LockError> {
        let usual = (self.ttl / 50).clamp(PAUSE_RANGE.0, PAUSE_RANGE.1);
        let random = getrandom::u32().map_err(|_| LockError::NoRandomness)?;
        Ok(usual.mul_f64(0.5 + f64::from(random) / f64::from(u32::MAX)))
    }
}

fn random_token() -> Result<Secret, LockError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|_| LockError::NoRandomness)?;
    Ok(Secret::new(URL_SAFE_NO_PAD.encode(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis_pool::test_redis::{TestRedis, nowhere};

    fn contender(redis: &TestRedis) -> DistributedLock {
        DistributedLock::new(redis.pool(), "job:1", 1)
    }

    async fn expire(redis: &TestRedis) {
        let () = redis.pool().query(&redis::Cmd::del("lock:job%3A1")).await.unwrap();
    }

    #[tokio::test]
    async fn one_holds_it_until_it_is_released() {
        let redis = TestRedis::start();
        let (mut a, mut b) = (contender(&redis), contender(&redis));
        assert_eq!(a.try_acquire().await, Ok(true));
        assert_eq!(b.try_acquire().await, Ok(false));
        assert_eq!(b.release().await, Ok(false));
        assert_eq!(b.try_acquire().await, Ok(false));
        let ttl: i64 = redis.pool().query(&redis::Cmd::pttl("lock:job%3A1")).await.unwrap();
        assert!((1..=1000).contains(&ttl));
        assert_eq!(a.release().await, Ok(true));
        assert_eq!(a.release().await, Ok(false));
        assert_eq!(b.try_acquire().await, Ok(true));
    }

    #[tokio::test]
    async fn who_waits_gets_it_once_it_is_free() {
        let redis = TestRedis::start();
        let (mut a, mut b) = (contender(&redis), contender(&redis));
        assert_eq!(a.acquire().await, Ok(true));
        let (got, freed) = tokio::join!(b.acquire(), async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            a.release().await
        });
        assert_eq!((got, freed), (Ok(true), Ok(true)));
        // A holder that never comes back is outlived.
        assert_eq!(a.acquire().await, Ok(true));
    }

    #[tokio::test]
    async fn waiting_ends_with_the_ttl() {
        let redis = TestRedis::start();
        let mut long = DistributedLock::new(redis.pool(), "job:1", 60);
        assert_eq!(long.try_acquire().await, Ok(true));
        let began = Instant::now();
        assert_eq!(contender(&redis).acquire().await, Ok(false));
        assert!((900..1500).contains(&began.elapsed().as_millis()));
    }

    #[tokio::test]
    async fn a_lock_that_expired_and_was_taken_is_not_freed_by_its_last_holder() {
        let redis = TestRedis::start();
        let (mut a, mut b) = (contender(&redis), contender(&redis));
        assert_eq!(a.try_acquire().await, Ok(true));
        expire(&redis).await;
        assert_eq!(b.try_acquire().await, Ok(true));
        assert_eq!(a.release().await, Ok(false));
        assert_eq!(a.try_acquire().await, Ok(false));
        assert_eq!(b.release().await, Ok(true));
    }

    #[tokio::test]
    async fn a_holder_renews_by_acquiring_again() {
        let redis = TestRedis::start();
        let (mut a, mut b) = (contender(&redis), contender(&redis));
        assert_eq!(a.try_acquire().await, Ok(true));
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(500)).await;
            assert_eq!(a.try_acquire().await, Ok(true));
        }
        assert_eq!(b.try_acquire().await, Ok(false));
    }

    #[tokio::test]
    async fn without_redis_nobody_gets_it() {
        let mut lock = DistributedLock::new(nowhere(), "job", 30);
        let away = LockError::Unavailable(RedisError::Away);
        assert_eq!(lock.acquire().await, Err(away.clone()));
        assert_eq!(lock.release().await, Err(away));
    }
}
