//! A lock for the whole cluster: at most one holder at a time, for a limited time, kept in Redis.
//!
//! The key `lock:{name}` holds its owner's random token and expires by itself, so a holder that died frees it after
//! its TTL. Only the owner's token frees or renews it. Who drops a lock that it holds frees it, in the background.
//!
//! **What it does not promise.** A holder that is slower than the TTL (a pause, a slow network) is no longer alone;
//! [`Held`] tells it, but it may be told late. A Redis that fails over to a replica, or restarts empty, may have
//! forgotten the lock and give it to a second holder while the first goes on: replication is asynchronous, and no
//! number of sentinels changes that. So the lock saves work that need not be done twice, such as cleaning up after a
//! dead node. What must not be done twice has to check the **fencing number**: every taking has a higher one than all
//! before, so whoever keeps what the lock guards refuses a number lower than the highest it has seen. It is at least
//! the time in milliseconds, so that it grows on when Redis has lost the last one; it could go back only if, besides,
//! the clock of the new server lay behind by more than the time since.
//!
//! **When Redis is away** nobody gets a lock: every call fails with [`LockError`] within a second.

use std::sync::LazyLock;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::config::Secret;
use crate::keys;
use crate::redis_pool::{RedisError, RedisPool};

/// By so much more than its TTL a lock is waited for: Redis' clock moves in steps, and is not ours.
const CLOCKS_DIFFER: Duration = Duration::from_millis(10);
/// The pause between two tries lies around a fiftieth of the TTL, within these.
const PAUSE_RANGE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(200));
/// How long a fencing number is kept after the lock was taken last.
const FENCE_LIFE: Duration = Duration::from_secs(86_400);

static ACQUIRE: LazyLock<redis::Script> =
    LazyLock::new(|| redis::Script::new(include_str!("scripts/lock_acquire.lua")));
static RENEW: LazyLock<redis::Script> =
    LazyLock::new(|| redis::Script::new(include_str!("scripts/lock_renew.lua")));
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

/// One contender for a lock. Dropped while it holds the lock, it frees it in the background, where tokio runs;
/// elsewhere the TTL does.
pub struct DistributedLock {
    redis: RedisPool,
    key: String,
    fence_key: String,
    ttl: Duration,
    /// Ours while we hold the lock, or may do: after an error it is kept, so that a retry finds
    /// out. Not printed: who knows it can free the lock.
    token: Option<Secret>,
    fence: Option<u64>,
}

impl DistributedLock {
    /// A contender for the lock called `name`, held for `ttl_seconds` (at least 1) at a time.
    pub fn new(redis: RedisPool, name: &str, ttl_seconds: u64) -> Self {
        // Redis takes no longer life than this; it is some thousand years.
        let ttl = Duration::from_secs(ttl_seconds.clamp(1, u64::from(u32::MAX) * 10));
        let fence_key = keys::fence(name, redis.servers().is_cluster());
        Self { redis, key: keys::lock(name), fence_key, ttl, token: None, fence: None }
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
        let mut call = ACQUIRE.key(&self.key);
        call.key(&self.fence_key).arg(token.expose()).arg(millis(self.ttl)).arg(millis(FENCE_LIFE));
        let fence: u64 = self.redis.script(&call).await?;
        self.fence = (fence > 0).then_some(fence);
        if self.fence.is_none() {
            self.token = None;
        }
        Ok(self.fence.is_some())
    }

    /// Takes the lock, waiting for it up to its TTL. Says whether it is ours.
    ///
    /// # Errors
    /// See [`LockError`]; an error ends the waiting.
    pub async fn acquire(&mut self) -> Result<bool, LockError> {
        // By then the TTL of whoever held it before is over as well.
        self.acquire_timeout(self.ttl + CLOCKS_DIFFER).await
    }

    /// Takes the lock, waiting for it up to `patience`. Says whether it is ours. Who waits is not served in order.
    ///
    /// # Errors
    /// See [`LockError`]; an error ends the waiting.
    pub async fn acquire_timeout(&mut self, patience: Duration) -> Result<bool, LockError> {
        let deadline = Instant::now() + patience;
        loop {
            if self.try_acquire().await? {
                return Ok(true);
            }
            let now = Instant::now();
            if now >= deadline {
                return Ok(false);
            }
            // The last try comes at the deadline.
            tokio::time::sleep_until(deadline.min(now + self.pause()?)).await;
        }
    }

    /// Makes the lock last for another TTL if it is still ours. Says whether it is; one that has ended is not taken.
    ///
    /// # Errors
    /// See [`LockError`]; it may have been renewed all the same.
    pub async fn renew(&mut self) -> Result<bool, LockError> {
        let Some(token) = &self.token else { return Ok(false) };
        let ours: bool =
            self.redis.script(RENEW.key(&self.key).arg(token.expose()).arg(millis(self.ttl))).await?;
        if !ours {
            (self.token, self.fence) = (None, None);
        }
        Ok(ours)
    }

    /// The number of this taking, higher than those of all before; none while the lock is not known to be ours.
    pub fn fence(&self) -> Option<u64> {
        self.fence
    }

    /// Frees the lock if it is still ours. Says whether it was.
    ///
    /// # Errors
    /// See [`LockError`]; the lock then ends by its TTL, or by releasing again.
    pub async fn release(&mut self) -> Result<bool, LockError> {
        let Some(token) = &self.token else { return Ok(false) };
        let freed = self.redis.script(RELEASE.key(&self.key).arg(token.expose())).await?;
        (self.token, self.fence) = (None, None);
        Ok(freed)
    }

    /// Keeps the lock, which must have been acquired, by renewing it three times in each TTL until the guard is
    /// dropped or released. None if it is not ours. Must be called where tokio runs.
    pub fn hold(self) -> Option<Held> {
        let fence = self.fence?;
        let (stop, mut stopped) = watch::channel(());
        let (lose, lost) = watch::channel(false);
        let mut lock = self;
        let renewing = tokio::spawn(async move {
            let mut sure_until = Instant::now() + lock.ttl;
            loop {
                tokio::select! {
                    _ = stopped.changed() => return lock,
                    () = tokio::time::sleep(lock.ttl / 3) => {}
                }
                let asked = Instant::now();
                match lock.renew().await {
                    Ok(true) => sure_until = asked + lock.ttl,
                    Ok(false) => break,
                    // Redis is away: it is ours for as long as the last answer says.
                    Err(_) if Instant::now() + lock.ttl / 3 < sure_until => {}
                    Err(_) => break,
                }
            }
            lose.send_replace(true);
            let _ = stopped.changed().await;
            lock
        });
        Some(Held { fence, lost, stop: Some(stop), renewing: Some(renewing) })
    }

    /// Between half and one and a half times the usual, so that contenders do not march in step.
    fn pause(&self) -> Result<Duration, LockError> {
        let usual = (self.ttl / 50).clamp(PAUSE_RANGE.0, PAUSE_RANGE.1);
        let random = getrandom::u32().map_err(|_| LockError::NoRandomness)?;
        Ok(usual.mul_f64(0.5 + f64::from(random) / f64::from(u32::MAX)))
    }
}

impl Drop for DistributedLock {
    fn drop(&mut self) {
        let Some(token) = self.token.take() else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (redis, key) = (self.redis.clone(), std::mem::take(&mut self.key));
        runtime.spawn(async move {
            // If it fails, the TTL does it.
            let _ = redis.script::<bool>(RELEASE.key(key).arg(token.expose())).await;
        });
    }
}

/// A lock that renews itself. Dropped, it is freed in the background.
pub struct Held {
    fence: u64,
    lost: watch::Receiver<bool>,
    /// None once it was released.
    stop: Option<watch::Sender<()>>,
    renewing: Option<JoinHandle<DistributedLock>>,
}

impl Held {
    /// The number of this taking, higher than those of all before.
    pub fn fence(&self) -> u64 {
        self.fence
    }

    /// Whether the lock is known to be gone, or could not be renewed in time.
    pub fn is_lost(&self) -> bool {
        *self.lost.borrow()
    }

    /// Returns once the lock is gone: whoever works under it should stop.
    pub async fn lost(&mut self) {
        // The sender lives as long as the task, which lives as long as this.
        let _ = self.lost.wait_for(|lost| *lost).await;
    }

    /// Frees the lock now. Says whether it was still ours.
    ///
    /// # Errors
    /// See [`LockError`].
    pub async fn release(mut self) -> Result<bool, LockError> {
        self.stop.take();
        match self.renewing.take() {
            Some(renewing) => match renewing.await {
                Ok(mut lock) => lock.release().await,
                // Only a runtime that ends takes the task away, and then the TTL frees it.
                Err(_) => Ok(false),
            },
            None => Ok(false),
        }
    }
}

fn random_token() -> Result<Secret, LockError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|_| LockError::NoRandomness)?;
    Ok(Secret::new(URL_SAFE_NO_PAD.encode(bytes)))
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis().try_into().unwrap_or(u64::MAX)
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

    #[tokio::test]
    async fn waiting_ends_when_patience_does() {
        let redis = TestRedis::start();
        let (mut a, mut b) = (DistributedLock::new(redis.pool(), "job:1", 60), contender(&redis));
        assert_eq!(a.try_acquire().await, Ok(true));
        let began = Instant::now();
        assert_eq!(b.acquire_timeout(Duration::from_millis(150)).await, Ok(false));
        assert!((150..800).contains(&began.elapsed().as_millis()));
        let (got, freed) = tokio::join!(b.acquire_timeout(Duration::from_secs(10)), a.release());
        assert_eq!((got, freed), (Ok(true), Ok(true)));
    }

    #[tokio::test]
    async fn every_taking_has_a_higher_number_even_when_redis_has_lost_the_last() {
        let redis = TestRedis::start();
        let (mut a, mut b) = (contender(&redis), contender(&redis));
        let mut last = 0;
        for round in 0..10 {
            let lock = if round % 2 == 0 { &mut a } else { &mut b };
            assert_eq!((lock.fence(), lock.try_acquire().await), (None, Ok(true)));
            let fence = lock.fence().unwrap();
            assert_eq!(
                (lock.try_acquire().await, lock.fence()),
                (Ok(true), Some(fence)),
                "renewed, not taken"
            );
            assert!(fence > last);
            last = fence;
            lock.release().await.unwrap();
            if round == 5 {
                tokio::time::sleep(Duration::from_millis(20)).await;
                let () = redis.pool().query(&redis::cmd("FLUSHALL")).await.unwrap();
            }
        }
        let left: i64 = redis.pool().query(&redis::Cmd::ttl("cache:fence:lock:job%3A1")).await.unwrap();
        assert!((86_000..=86_400).contains(&left));
    }

    #[tokio::test]
    async fn renewing_takes_nothing_that_has_ended() {
        let redis = TestRedis::start();
        let mut lock = contender(&redis);
        assert_eq!(lock.renew().await, Ok(false));
        assert_eq!(lock.try_acquire().await, Ok(true));
        assert_eq!(lock.renew().await, Ok(true));
        expire(&redis).await;
        assert_eq!((lock.renew().await, lock.fence()), (Ok(false), None));
        assert_eq!(contender(&redis).try_acquire().await, Ok(true));
    }

    #[tokio::test]
    async fn who_drops_a_lock_frees_it_and_never_anothers() {
        let redis = TestRedis::start();
        let (mut a, mut b) = (contender(&redis), DistributedLock::new(redis.pool(), "job:1", 60));
        assert_eq!(a.try_acquire().await, Ok(true));
        drop(a);
        assert_eq!(b.acquire_timeout(Duration::from_millis(500)).await, Ok(true));
        let mut late = contender(&redis);
        late.token = Some(Secret::new("another's"));
        drop(late);
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(b.renew().await, Ok(true));
    }

    #[tokio::test]
    async fn a_guard_renews_for_as_long_as_it_is_held_and_tells_when_it_cannot() {
        let mut redis = TestRedis::start();
        assert!(contender(&redis).hold().is_none());
        let (mut lock, mut other) = (contender(&redis), contender(&redis));
        assert_eq!(lock.try_acquire().await, Ok(true));
        let fence = lock.fence().unwrap();
        let held = lock.hold().unwrap();
        assert_eq!(
            (held.fence(), other.acquire_timeout(Duration::from_millis(2_200)).await),
            (fence, Ok(false))
        );
        assert!(!held.is_lost());
        assert_eq!(held.release().await, Ok(true));

        assert_eq!(other.try_acquire().await, Ok(true));
        let mut held = other.hold().unwrap();
        expire(&redis).await;
        tokio::time::timeout(Duration::from_secs(1), held.lost()).await.unwrap();
        assert_eq!(held.release().await, Ok(false));

        let mut lock = contender(&redis);
        assert_eq!(lock.try_acquire().await, Ok(true));
        drop(lock.hold());
        let mut lock = contender(&redis);
        assert_eq!(lock.acquire_timeout(Duration::from_millis(500)).await, Ok(true), "a dropped guard frees");
        let mut held = lock.hold().unwrap();
        redis.kill();
        let began = Instant::now();
        tokio::time::timeout(Duration::from_secs(2), held.lost()).await.unwrap();
        assert!(began.elapsed() < Duration::from_millis(1_100), "told before another can have it");
    }
}
