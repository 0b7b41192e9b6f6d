//! A Bloom filter that says "there is no such session" without asking Redis.
//!
//! Each node holds all its bits. A new session's are announced before the session is written, so a node that has
//! heard everything up to now and does not know a token may refuse it; whether it has is one ping for all who wait
//! ([`crate::cache::Hearing::catch_up`]). Only tokens that nodes made are judged: other services may write sessions
//! under names of their own, and those Redis is always asked for.
//!
//! The bits stand in Redis too, for nodes that come later: `cache:session:filter` (a hash) names the number of the
//! string `cache:session:filter:{n}` that is complete, and of one that is being built. What ended stays in it, so
//! when it has filled up, or there is none, one node builds another from all sessions there are: it names it first,
//! waits until whoever did not know of it has written his session, and then reads them all.
//!
//! **When Redis is away**, or the subscription, nothing is refused here. Not used with a Redis Cluster, whose nodes
//! hand announcements on late.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use super::OURS;
use crate::lock::DistributedLock;
use crate::metrics::{Count, Metrics};
use crate::redis_pool::{RedisError, RedisPool};

/// Where the bits of new sessions are announced, comma-separated, and `built` when there is another filter.
pub const FILTER_TOPIC: &str = "cache:session:added";

/// A mebibyte: with 500,000 sessions one wrong token in 2,000 passes, with 1,000,000 one in 60.
const BITS: u64 = 1 << 23;
/// Bits of one token. The best for 800,000 sessions, and cheap.
const HASHES: usize = 7;
/// Built anew when so many bits are set: then one wrong token in 130 passes.
const FULL: u64 = BITS / 2;
/// The least time between two that this node builds because they are full: they may be full of live sessions.
const BUILD_EVERY: Duration = Duration::from_secs(3_600);
/// Longer than it takes from announcing a session to having written it: both calls to Redis have time limits.
const UNDER_WAY: Duration = Duration::from_secs(4);
/// What the filter being built, and its lock, live without progress, in seconds.
const BUILD_SECONDS: u64 = 120;
/// How long a reading that did not succeed is waited for.
const AGAIN: Duration = Duration::from_secs(5);
const POINTER: &str = "cache:session:filter";

static ADD: LazyLock<redis::Script> =
    LazyLock::new(|| redis::Script::new(include_str!("../scripts/filter_add.lua")));
static BEGIN: LazyLock<redis::Script> =
    LazyLock::new(|| redis::Script::new(include_str!("../scripts/filter_begin.lua")));
static FINISH: LazyLock<redis::Script> =
    LazyLock::new(|| redis::Script::new(include_str!("../scripts/filter_finish.lua")));

/// One node's copy of the filter. Clones share it.
#[derive(Clone)]
pub struct SessionFilter(Arc<Inner>);

struct Inner {
    redis: RedisPool,
    bits: RwLock<Vec<AtomicU64>>,
    /// What was heard while the bits are being read, and may not be among them.
    recent: Mutex<Option<Vec<u64>>>,
    reading: tokio::sync::Mutex<()>,
    /// Whether all that may be in the bits is, as long as everything is heard.
    complete: AtomicBool,
    /// Counts the subscriptions: what was read in an earlier one may lack something.
    subscription: AtomicU64,
    built_at: Mutex<Option<Instant>>,
    refusals: Count,
    misses: Count,
    trusted: prometheus_client::metrics::gauge::Gauge,
}

impl SessionFilter {
    /// A filter that knows nothing yet and refuses nobody.
    pub(super) fn new(redis: RedisPool, metrics: &Metrics) -> Self {
        Self(Arc::new(Inner {
            redis,
            bits: RwLock::new(Vec::new()),
            recent: Mutex::default(),
            reading: tokio::sync::Mutex::default(),
            complete: AtomicBool::new(false),
            subscription: AtomicU64::new(0),
            built_at: Mutex::default(),
            refusals: metrics.session_filter_refusals.clone(),
            misses: metrics.session_filter_misses.clone(),
            trusted: metrics.session_filter_trusted.clone(),
        }))
    }

    /// Whether there may be a session of `token`: false is certain, as far as everything announced was heard.
    pub(super) fn may_hold(&self, token: &str) -> bool {
        if !self.0.complete.load(Ordering::Acquire) {
            return true;
        }
        let bits = self.0.bits.read().unwrap_or_else(PoisonError::into_inner);
        places(token).iter().all(|place| is_set(&bits, *place))
    }

    pub(super) fn note_refusal(&self) {
        self.0.refusals.inc();
    }

    pub(super) fn note_miss(&self) {
        if self.0.complete.load(Ordering::Relaxed) {
            self.0.misses.inc();
        }
    }

    /// Announces `token`, of which a session is about to be written, to this node and the others.
    ///
    /// # Errors
    /// [`RedisError`]: then the session must not be written.
    pub(super) async fn add(&self, token: &str) -> Result<(), RedisError> {
        let places = places(token);
        self.set(&places);
        let mut call = ADD.key(POINTER);
        call.arg(FILTER_TOPIC).arg(places.map(|place| place.to_string()).join(",")).arg(&places);
        self.0.redis.script(&call).await
    }

    /// Takes in a message on [`FILTER_TOPIC`]. True if there is another filter, to be read by
    /// [`SessionFilter::load`].
    pub fn heard(&self, message: &str) -> bool {
        let places: Vec<u64> = message.split(',').filter_map(|place| place.parse().ok()).collect();
        self.set(&places);
        message == "built"
    }

    /// Announcements may have been missed: nobody is refused until the bits are read again, which
    /// [`SessionFilter::keep`] sees to.
    pub fn doubt(&self) {
        self.0.subscription.fetch_add(1, Ordering::AcqRel);
        self.0.complete.store(false, Ordering::Release);
        self.0.trusted.set(0);
    }

    /// Keeps the filter complete for as long as the subscription stands that has just begun.
    pub async fn keep(&self) {
        let subscription = self.0.subscription.load(Ordering::Acquire);
        while self.0.subscription.load(Ordering::Acquire) == subscription {
            if let Err(error) = self.load().await {
                tracing::debug!(%error, "the filter of sessions could not be read");
            }
            let pause = if self.0.complete.load(Ordering::Acquire) { BUILD_EVERY } else { AGAIN };
            tokio::time::sleep(pause).await;
        }
    }

    /// Reads the bits from Redis, or has them built where there are none or too many.
    ///
    /// # Errors
    /// [`RedisError`]: it goes on as it was.
    pub async fn load(&self) -> Result<(), RedisError> {
        let reading = self.0.reading.lock().await;
        let subscription = self.0.subscription.load(Ordering::Acquire);
        *self.recent() = Some(Vec::new());
        let number: Option<u64> = self.0.redis.query(redis::cmd("HGET").arg(POINTER).arg("current")).await?;
        let found = match number {
            None => None,
            Some(number) => self.0.redis.query::<Option<Vec<u8>>>(&redis::Cmd::get(key(number))).await?,
        };
        let found = found.filter(|found| found.len() as u64 == BITS / 8);
        let set = found.map(|found| self.take_over(&found, subscription));
        *self.recent() = None;
        drop(reading);
        match set {
            Some(set) if set <= FULL || !self.may_build() => Ok(()),
            _ => self.build().await,
        }
    }

    /// Takes what is in Redis, and what was heard while it was read; gives how many bits are set then.
    fn take_over(&self, found: &[u8], subscription: u64) -> u64 {
        let word = |eight: &[u8]| eight.iter().fold(0, |word: u64, byte| word << 8 | u64::from(*byte));
        let mut bits = self.0.bits.write().unwrap_or_else(PoisonError::into_inner);
        *bits = found.chunks_exact(8).map(|eight| AtomicU64::new(word(eight))).collect();
        // Under the lock, so that nothing is heard in between.
        self.recent().iter().flatten().for_each(|place| set_bit(&bits, *place));
        let set = bits.iter().map(|word| u64::from(word.load(Ordering::Relaxed).count_ones())).sum();
        drop(bits);
        if self.0.subscription.load(Ordering::Acquire) == subscription {
            self.0.complete.store(true, Ordering::Release);
            self.0.trusted.set(1);
        }
        set
    }

    fn recent(&self) -> MutexGuard<'_, Option<Vec<u64>>> {
        self.0.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn may_build(&self) -> bool {
        let built_at = self.0.built_at.lock().unwrap_or_else(PoisonError::into_inner);
        built_at.is_none_or(|at| at.elapsed() > BUILD_EVERY)
    }

    /// Builds a filter of all sessions in Redis, unless another node is at it.
    async fn build(&self) -> Result<(), RedisError> {
        let redis = &self.0.redis;
        let mut lock = DistributedLock::new(redis.clone(), "session-filter", BUILD_SECONDS);
        if !lock.try_acquire().await.unwrap_or(false) {
            // Whoever builds it announces it.
            return Ok(());
        }
        let number: u64 = redis.script(BEGIN.key(POINTER).arg(BITS).arg(BUILD_SECONDS)).await?;
        tokio::time::sleep(UNDER_WAY).await;
        let mut cursor = 0;
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(format!("session:{OURS}*")).arg("COUNT").arg(1_000);
            let (next, keys): (u64, Vec<String>) = redis.query(&scan).await?;
            if !keys.is_empty() {
                let mut pipeline = redis::pipe();
                for token in keys.iter().filter_map(|key| key.strip_prefix("session:")) {
                    for place in places(token) {
                        pipeline.setbit(key(number), place as usize, true).ignore();
                    }
                }
                pipeline.expire(key(number), BUILD_SECONDS as i64).ignore();
                redis.pipeline::<()>(&pipeline).await?;
            }
            cursor = next;
            if cursor == 0 {
                break;
            }
            if !lock.renew().await.unwrap_or(false) {
                return Ok(());
            }
        }
        *self.0.built_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        let built: bool = redis.script(FINISH.key(POINTER).arg(number).arg(FILTER_TOPIC)).await?;
        if built {
            tracing::info!(number, "built the filter of sessions");
        }
        // It would end by itself.
        let _ = lock.release().await;
        Ok(())
    }

    fn set(&self, places: &[u64]) {
        let bits = self.0.bits.read().unwrap_or_else(PoisonError::into_inner);
        let places = || places.iter().copied().filter(|place| *place < BITS);
        if let Some(recent) = &mut *self.recent() {
            recent.extend(places());
        }
        // Before the first reading there is nothing to set them in; what is read then has them.
        places().for_each(|place| set_bit(&bits, place));
    }
}

/// Sets a bit, counted from the left of each byte as Redis does. In no bits there is nothing to set.
fn set_bit(bits: &[AtomicU64], place: u64) {
    if let Some(word) = bits.get((place / 64) as usize) {
        word.fetch_or(1 << (63 - place % 64), Ordering::Relaxed);
    }
}

fn key(number: u64) -> String {
    format!("{POINTER}:{number}")
}

/// Whether a bit is set, counted from the left of each byte as Redis does.
fn is_set(bits: &[AtomicU64], place: u64) -> bool {
    let word = bits.get((place / 64) as usize).map_or(0, |word| word.load(Ordering::Relaxed));
    word >> (63 - place % 64) & 1 == 1
}

/// The bits of a token: two halves of its SHA-256, combined (Kirsch and Mitzenmacher, 2006).
fn places(token: &str) -> [u64; HASHES] {
    let digest = Sha256::digest(token);
    let half =
        |from: usize| digest[from..from + 8].iter().fold(0, |word: u64, byte| word << 8 | u64::from(*byte));
    let (one, other) = (half(0), half(8) | 1);
    std::array::from_fn(|nth| one.wrapping_add((nth as u64).wrapping_mul(other)) % BITS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Hearing;
    use crate::redis_pool::test_redis::TestRedis;
    use crate::session::{NewSession, SessionManager, random_token};
    use futures_util::{FutureExt as _, StreamExt as _};

    const HOUR: Duration = Duration::from_secs(3600);

    /// A node's sessions with a subscription of their own.
    async fn node(redis: &TestRedis) -> SessionManager {
        let hearing = Hearing::default();
        let sessions = SessionManager::of_node(Some(redis.pool()), HOUR, hearing.clone(), &Metrics::new());
        let pubsub = redis::Client::open(redis.url()).unwrap().get_async_pubsub().await.unwrap();
        let (mut sink, mut stream) = pubsub.split();
        sink.subscribe(FILTER_TOPIC).await.unwrap();
        let filter = sessions.filter().unwrap().clone();
        filter.doubt();
        tokio::spawn({
            let filter = filter.clone();
            async move { filter.keep().await }
        });
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    message = stream.next() => {
                        let Some(message) = message else { return };
                        if filter.heard(&message.get_payload::<String>().unwrap()) {
                            filter.load().await.unwrap();
                        }
                    }
                    () = async { tokio::select! { () = hearing.asked() => {}, () = tokio::time::sleep(Duration::from_millis(100)) => {} } } => {
                        let asked = Instant::now();
                        if sink.ping::<redis::Value>().await.is_err() {
                            return hearing.lose();
                        }
                        while let Some(Some(message)) = tokio::task::unconstrained(stream.next()).now_or_never() {
                            filter.heard(&message.get_payload::<String>().unwrap());
                        }
                        hearing.confirm(asked);
                    }
                }
            }
        });
        sessions
    }

    async fn until_complete(sessions: &SessionManager) {
        let began = Instant::now();
        while !sessions.filter().unwrap().0.complete.load(Ordering::Acquire) {
            assert!(began.elapsed() < Duration::from_secs(30));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test]
    async fn no_valid_session_is_refused_and_no_wrong_one_asked_about() {
        let redis = TestRedis::start();
        // Made before there is a filter.
        let early = SessionManager::new(Some(redis.pool()), HOUR);
        let mut old = Vec::new();
        for user in 0..20 {
            let (token, _) = early
                .create(NewSession { user_id: format!("u{user}"), ..NewSession::default() })
                .await
                .unwrap();
            old.push(token);
        }
        let (a, b) = (node(&redis).await, node(&redis).await);
        // While it is built, everybody is let in.
        let mut during = Vec::new();
        for user in 0..50 {
            let (token, _) =
                a.create(NewSession { user_id: format!("d{user}"), ..NewSession::default() }).await.unwrap();
            assert!(b.validate_session(&token).await.unwrap().is_some());
            during.push(token);
        }
        until_complete(&a).await;
        until_complete(&b).await;
        for token in old.iter().chain(&during) {
            b.forget(token).await;
            assert!(b.validate_session(token).await.unwrap().is_some());
        }
        // At once on another node, over and over: what was announced is waited for.
        for user in 0..300 {
            let (token, _) =
                a.create(NewSession { user_id: format!("n{user}"), ..NewSession::default() }).await.unwrap();
            assert!(b.validate_session(&token).await.unwrap().is_some(), "{user}");
        }
        let before = b.counters().l2.misses.get();
        for _ in 0..100 {
            assert_eq!(b.validate_session(&random_token().unwrap()).await, Ok(None));
        }
        assert_eq!(b.counters().l2.misses.get(), before, "Redis was asked for a session that cannot be");
        // What another service wrote has no mark and is asked for.
        let () = redis.pool().query(&redis::Cmd::set("session:foreign", r#"{"user_id":"u"}"#)).await.unwrap();
        assert!(b.validate_session("foreign").await.unwrap().is_some());
        // A node that starts later reads what there is.
        let c = node(&redis).await;
        until_complete(&c).await;
        for token in old.iter().chain(&during) {
            assert!(c.validate_session(token).await.unwrap().is_some());
        }
        let began = Instant::now();
        while c.filter().unwrap().0.refusals.get() == 0 {
            assert!(began.elapsed() < Duration::from_secs(5));
            assert_eq!(c.validate_session(&random_token().unwrap()).await, Ok(None));
        }
    }

    #[test]
    fn its_rate_of_false_positives_is_as_stated() {
        let redis = crate::redis_pool::test_redis::nowhere();
        let filter = SessionFilter::new(redis, &Metrics::new());
        filter.take_over(&vec![0; (BITS / 8) as usize], 0);
        for n in 0..500_000 {
            filter.set(&places(&format!("{OURS}{n}")));
        }
        assert!((0..500_000).step_by(997).all(|n| filter.may_hold(&format!("{OURS}{n}"))));
        let passed = (0..200_000).filter(|n| filter.may_hold(&format!("{OURS}x{n}"))).count();
        println!("{passed} of 200,000 wrong tokens pass with 500,000 sessions");
        // One in 1,850 by the formula: 108.
        assert!((60..160).contains(&passed), "{passed}");
    }
}
