//! Opaque sessions: proof of who connects, kept in Redis and, for moments, in this process.
//!
//! A session is a random token; what it stands for is the JSON at `session:{token}`. Validation
//! looks in L1 (this process), then in Redis. An L1 entry lives ten seconds at most, so that a
//! revocation whose message was lost heals by itself. Sessions slide: a use extends them.
//!
//! **When Redis is away** a session that L1 holds stays valid until its entry ends; any other is
//! [`SessionError::Unavailable`], which is not "invalid" and never "valid" (answer 503). Sessions
//! can be neither made nor revoked meanwhile.
//!
//! **Without Redis** (a single node) the cache is the store: it holds [`CAPACITY`] sessions, and
//! when it is full the one unused for longest ends early and its owner signs in again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use moka::Expiry;
use moka::future::Cache;
use moka::policy::EvictionPolicy;
use serde::{Deserialize, Serialize};

use crate::keys;
use crate::logging::Seldom;
use crate::redis_pool::{RedisError, RedisPool};

/// Where a revoked token is announced to the other nodes. The message is the token itself, worth
/// nothing by then; it still belongs in no log.
pub const REVOKED_TOPIC: &str = "cache:session:revoked";

/// Sessions kept in this process.
pub const CAPACITY: u64 = 100_000;

/// The longest life of an L1 entry while Redis holds the truth.
const L1_LIFE: Duration = Duration::from_secs(10);
const TTL_RANGE: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(365 * 24 * 3600);
const MAX_TOKEN_BYTES: usize = 512;

static REVOKE: LazyLock<redis::Script> =
    LazyLock::new(|| redis::Script::new(include_str!("scripts/session_revoke.lua")));

/// Who a token stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    pub user_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<String>,
    #[serde(default)]
    pub anonymous: bool,
    /// Unix seconds.
    #[serde(default)]
    pub created_at: u64,
    /// How far each use extends it; the manager's TTL if none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
    /// Unix seconds, as of this validation. Not stored: it slides, and the key's TTL is the truth.
    #[serde(skip)]
    pub expires_at: u64,
}

/// What a new session shall say.
#[derive(Clone, Debug, Default)]
pub struct NewSession {
    pub user_id: String,
    pub email: Option<String>,
    pub role: Option<String>,
    pub tier: Option<String>,
    pub anonymous: bool,
    /// Its own life, from a second to a year; the manager's if none.
    pub ttl: Option<Duration>,
}

/// Why a session could be neither found nor ruled out, or not made.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum SessionError {
    /// Redis did not answer: whether the token is valid is not known.
    #[error("sessions are unavailable: {0}")]
    Unavailable(#[from] RedisError),
    /// The life asked for is under a second or over a year.
    #[error("a session lives from 1 second to 365 days")]
    BadTtl,
    /// A session must belong to someone.
    #[error("a session needs a user")]
    NoUser,
    /// The operating system gave no random bytes.
    #[error("no randomness for a token")]
    NoRandomness,
}

/// How often each tier had the session. Without Redis, L2 stays at zero.
#[derive(Debug, Default)]
pub struct TierCounters {
    pub l1_hits: AtomicU64,
    pub l1_misses: AtomicU64,
    pub l2_hits: AtomicU64,
    pub l2_misses: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Makes, validates and revokes sessions. Clones are cheap and share everything.
#[derive(Clone)]
pub struct SessionManager(Arc<Inner>);

struct Inner {
    redis: Option<RedisPool>,
    ttl: Duration,
    l1: Cache<String, Entry>,
    /// Counts everything forgotten. A load that began at an older count may have read what was
    /// revoked since, and so must not be believed.
    forgotten: AtomicU64,
    counters: TierCounters,
}

#[derive(Clone)]
struct Entry {
    session: Arc<Session>,
    life: Duration,
    /// Whether a read extends the entry: only where the cache is the store.
    slides: bool,
    /// [`Inner::forgotten`] when the load began.
    loaded_at: u64,
}

struct EntryLife;

impl Expiry<String, Entry> for EntryLife {
    fn expire_after_create(&self, _: &String, entry: &Entry, _: Instant) -> Option<Duration> {
        Some(entry.life)
    }

    fn expire_after_read(
        &self,
        _: &String,
        entry: &Entry,
        _: Instant,
        left: Option<Duration>,
        _: Instant,
    ) -> Option<Duration> {
        if entry.slides { Some(entry.life) } else { left }
    }

    fn expire_after_update(
        &self,
        _: &String,
        entry: &Entry,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(entry.life)
    }
}

/// Why a load left nothing in L1.
enum Miss {
    Absent,
    Failed(RedisError),
}

impl SessionManager {
    /// Sessions that live `ttl` from their last use, shared through `pool` or, without one, known
    /// to this process only.
    pub fn new(pool: Option<RedisPool>, ttl: Duration) -> Self {
        let l1 = Cache::builder()
            .max_capacity(CAPACITY)
            // The default policy may refuse a new entry when full: a sign-in that fails at once.
            .eviction_policy(EvictionPolicy::lru())
            .expire_after(EntryLife)
            .build();
        let (forgotten, counters) = (AtomicU64::new(0), TierCounters::default());
        Self(Arc::new(Inner { redis: pool, ttl, l1, forgotten, counters }))
    }

    /// Makes a session with the manager's own TTL. Gives its token, the only copy, and the session.
    ///
    /// # Errors
    /// See [`SessionError`].
    pub async fn create_session(
        &self,
        user_id: &str,
        email: Option<&str>,
        role: Option<&str>,
    ) -> Result<(String, Session), SessionError> {
        let (email, role) = (email.map(str::to_owned), role.map(str::to_owned));
        self.create(NewSession { user_id: user_id.to_owned(), email, role, ..NewSession::default() }).await
    }

    /// Makes the session that `new` describes. Gives its token, the only copy, and the session.
    ///
    /// # Errors
    /// See [`SessionError`].
    pub async fn create(&self, new: NewSession) -> Result<(String, Session), SessionError> {
        if new.user_id.is_empty() {
            return Err(SessionError::NoUser);
        }
        let ttl = new.ttl.unwrap_or(self.0.ttl);
        if !TTL_RANGE.contains(&ttl) {
            return Err(SessionError::BadTtl);
        }
        let token = random_token()?;
        let now = unix_now();
        let session = Session {
            user_id: new.user_id,
            email: new.email,
            role: new.role,
            tier: new.tier,
            anonymous: new.anonymous,
            created_at: now,
            ttl_seconds: new.ttl.map(|ttl| ttl.as_secs()),
            expires_at: now + ttl.as_secs(),
        };
        let inner = &self.0;
        let loaded_at = inner.forgotten.load(Ordering::Acquire);
        if let Some(redis) = &inner.redis {
            redis.query::<()>(&set_command(&token, &session, ttl)).await?;
        }
        let entry = inner.entry(session.clone(), ttl, loaded_at);
        inner.l1.insert(token.clone(), entry).await;
        Ok((token, session))
    }

    /// The session that `token` stands for, or `None` if it stands for none. Extends it.
    ///
    /// # Errors
    /// [`SessionError::Unavailable`] when neither is known. Never treat that as valid.
    pub async fn validate_session(&self, token: &str) -> Result<Option<Session>, SessionError> {
        if !is_token_shaped(token) {
            return Ok(None);
        }
        let inner = &self.0;
        if let Some(entry) = inner.l1.get(token).await {
            count(&inner.counters.l1_hits);
            return Ok(Some(inner.seen(&entry)));
        }
        count(&inner.counters.l1_misses);
        let Some(redis) = &inner.redis else { return Ok(None) };

        let loaded = inner.l1.try_get_with_by_ref(token, inner.load(redis, token)).await;
        let loaded = match loaded {
            Ok(entry) if entry.loaded_at != inner.forgotten.load(Ordering::Acquire) => {
                // Something was revoked while this load, perhaps begun by another caller, was
                // under way. It may have been this token: look again, and keep nothing.
                inner.l1.invalidate(token).await;
                inner.load(redis, token).await.map_err(Arc::new)
            }
            other => other,
        };
        match loaded {
            Ok(entry) => Ok(Some(Session::clone(&entry.session))),
            Err(miss) => match &*miss {
                Miss::Absent => Ok(None),
                Miss::Failed(error) => Err(error.clone().into()),
            },
        }
    }

    /// Ends a session everywhere. Says whether there was one.
    ///
    /// # Errors
    /// [`SessionError::Unavailable`]: other nodes may go on believing it until they ask Redis.
    pub async fn revoke(&self, token: &str) -> Result<bool, SessionError> {
        if !is_token_shaped(token) {
            return Ok(false);
        }
        let inner = &self.0;
        let Some(redis) = &inner.redis else {
            return Ok(inner.l1.remove(token).await.is_some());
        };
        let key = keys::session(token);
        let deleted = redis.script::<bool>(REVOKE.key(key).arg(REVOKED_TOPIC).arg(token)).await;
        // After Redis, so that no load can bring back what it still held; and whatever Redis said.
        self.forget(token).await;
        Ok(deleted?)
    }

    /// Drops `token` from L1: another node said that it is revoked. Without Redis there is no
    /// other node and this does nothing.
    pub async fn forget(&self, token: &str) {
        if self.0.redis.is_some() {
            self.0.forgotten.fetch_add(1, Ordering::AcqRel);
            self.0.l1.invalidate(token).await;
        }
    }

    /// Drops all of L1: revocations may have been missed. Meant for when the subscription to
    /// [`REVOKED_TOPIC`] is back after a loss. Without Redis this does nothing.
    pub fn forget_all(&self) {
        if self.0.redis.is_some() {
            self.0.forgotten.fetch_add(1, Ordering::AcqRel);
            self.0.l1.invalidate_all();
        }
    }

    /// Hits and misses since the start.
    pub fn counters(&self) -> &TierCounters {
        &self.0.counters
    }
}

impl Inner {
    /// Reads the session from Redis and extends it there if a tenth of its life is over.
    async fn load(&self, redis: &RedisPool, token: &str) -> Result<Entry, Miss> {
        let loaded_at = self.forgotten.load(Ordering::Acquire);
        let key = keys::session(token);
        let (json, left): (Option<String>, i64) =
            redis.pipeline(redis::pipe().get(&key).pttl(&key)).await.map_err(Miss::Failed)?;
        let Some(mut session) = json.as_deref().and_then(parse) else {
            count(&self.counters.l2_misses);
            return Err(Miss::Absent);
        };
        count(&self.counters.l2_hits);
        let ttl = session.ttl_seconds.map_or(self.ttl, Duration::from_secs);
        // Negative: no TTL at all (or gone between the two reads); then it gets one (or nothing happens).
        let mut left = Duration::from_millis(left.try_into().unwrap_or(0));
        if left < ttl * 9 / 10 {
            match redis.query::<bool>(redis::cmd("PEXPIRE").arg(&key).arg(millis(ttl))).await {
                Ok(true) => left = ttl,
                Ok(false) => return Err(Miss::Absent),
                // It is valid all the same; the next use extends it.
                Err(error) => tracing::debug!(%error, "a session was not extended"),
            }
        }
        session.expires_at = unix_now() + left.as_secs();
        let mut entry = self.entry(session, ttl, loaded_at);
        entry.life = entry.life.min(left);
        Ok(entry)
    }

    fn entry(&self, session: Session, ttl: Duration, loaded_at: u64) -> Entry {
        let slides = self.redis.is_none();
        // With Redis a tenth of the TTL at most: a session in use comes to Redis in time to be extended.
        let life = if slides { ttl } else { L1_LIFE.min(ttl / 10) };
        Entry { session: Arc::new(session), life, slides, loaded_at }
    }

    /// The session as this use leaves it.
    fn seen(&self, entry: &Entry) -> Session {
        let mut session = Session::clone(&entry.session);
        if entry.slides {
            session.expires_at = unix_now() + entry.life.as_secs();
        }
        session
    }
}

fn set_command(token: &str, session: &Session, ttl: Duration) -> redis::Cmd {
    let json = serde_json::json!(session).to_string();
    redis::Cmd::pset_ex(keys::session(token), json, millis(ttl))
}

/// What is stored may have been written by others: what cannot be read proves nothing.
fn parse(json: &str) -> Option<Session> {
    match serde_json::from_str::<Session>(json) {
        Ok(session) if !session.user_id.is_empty() && is_sane(session.ttl_seconds) => Some(session),
        _ => {
            static UNREADABLE: Seldom = Seldom::new();
            if let Some(times) = UNREADABLE.count() {
                tracing::warn!(times, "a session in Redis cannot be read and counts as absent");
            }
            None
        }
    }
}

fn is_sane(ttl_seconds: Option<u64>) -> bool {
    ttl_seconds.is_none_or(|s| TTL_RANGE.contains(&Duration::from_secs(s)))
}

/// Whether it could be a token of ours; if not, Redis need not be asked.
fn is_token_shaped(token: &str) -> bool {
    (1..=MAX_TOKEN_BYTES).contains(&token.len()) && !token.chars().any(char::is_control)
}

fn random_token() -> Result<String, SessionError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|_| SessionError::NoRandomness)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis().try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis_pool::test_redis::{TestRedis, nowhere};
    use futures_util::StreamExt;
    use futures_util::future::join_all;

    const HOUR: Duration = Duration::from_secs(3600);

    fn named(user: &str) -> NewSession {
        NewSession { user_id: user.to_owned(), ..NewSession::default() }
    }

    async fn pause(milliseconds: u64) {
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
    }

    #[tokio::test]
    async fn without_redis_the_cache_is_the_store() {
        let sessions = SessionManager::new(None, HOUR);
        let (token, made) = sessions.create_session("u1", Some("a@b.c"), Some("admin")).await.unwrap();
        let found = sessions.validate_session(&token).await.unwrap().unwrap();
        assert_eq!(found, Session { expires_at: found.expires_at, ..made });
        sessions.forget(&token).await;
        sessions.forget_all();
        assert!(sessions.validate_session(&token).await.unwrap().is_some());
        assert_eq!(sessions.revoke(&token).await, Ok(true));
        assert_eq!(sessions.revoke(&token).await, Ok(false));
        assert_eq!(sessions.validate_session(&token).await, Ok(None));
    }

    #[tokio::test]
    async fn a_session_slides_while_used_and_ends_when_not() {
        let redis = TestRedis::start();
        for pool in [None, Some(redis.pool())] {
            let sessions = SessionManager::new(pool, HOUR);
            let short = NewSession { ttl: Some(Duration::from_secs(1)), ..named("u1") };
            let (token, _) = sessions.create(short).await.unwrap();
            for _ in 0..8 {
                pause(200).await;
                assert!(sessions.validate_session(&token).await.unwrap().is_some());
            }
            pause(1100).await;
            assert_eq!(sessions.validate_session(&token).await, Ok(None));
        }
    }

    #[tokio::test]
    async fn nodes_share_sessions_and_revocations() {
        let redis = TestRedis::start();
        let (a, b) =
            (SessionManager::new(Some(redis.pool()), HOUR), SessionManager::new(Some(redis.pool()), HOUR));
        let client = redis::Client::open(redis.url()).unwrap();
        let mut messages = client.get_async_pubsub().await.unwrap();
        messages.subscribe(REVOKED_TOPIC).await.unwrap();

        let new = NewSession { tier: Some("pro".into()), anonymous: true, ..named("u1") };
        let (token, made) = a.create(new).await.unwrap();
        let found = b.validate_session(&token).await.unwrap().unwrap();
        assert_eq!(found, Session { expires_at: found.expires_at, ..made });

        assert_eq!(a.revoke(&token).await, Ok(true));
        assert_eq!(a.validate_session(&token).await, Ok(None));
        let message = messages.on_message().next().await.unwrap();
        assert_eq!(message.get_payload::<String>().unwrap(), token);
        b.forget(&token).await;
        assert_eq!(b.validate_session(&token).await, Ok(None));
    }

    #[tokio::test]
    async fn a_missed_revocation_heals_with_forget_all() {
        let redis = TestRedis::start();
        let sessions = SessionManager::new(Some(redis.pool()), HOUR);
        let (token, _) = sessions.create(named("u1")).await.unwrap();
        let () = redis.pool().query(&redis::Cmd::del(keys::session(&token))).await.unwrap();
        assert!(sessions.validate_session(&token).await.unwrap().is_some());
        sessions.forget_all();
        assert_eq!(sessions.validate_session(&token).await, Ok(None));
    }

    #[tokio::test]
    async fn concurrent_misses_load_once() {
        let redis = TestRedis::start();
        let (token, _) = SessionManager::new(Some(redis.pool()), HOUR).create(named("u1")).await.unwrap();
        let fresh = SessionManager::new(Some(redis.pool()), HOUR);
        let answers = join_all((0..50).map(|_| fresh.validate_session(&token))).await;
        assert!(answers.iter().all(|answer| matches!(answer, Ok(Some(_)))));
        assert_eq!(fresh.counters().l2_hits.load(Ordering::Relaxed), 1);
        assert_eq!(fresh.counters().l1_misses.load(Ordering::Relaxed), 50);
        fresh.validate_session(&token).await.unwrap();
        assert_eq!(fresh.counters().l1_hits.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn a_revocation_during_a_load_is_not_undone_by_it() {
        let redis = TestRedis::start();
        let (a, b) =
            (SessionManager::new(Some(redis.pool()), HOUR), SessionManager::new(Some(redis.pool()), HOUR));
        let (token, _) = a.create(named("u1")).await.unwrap();
        let stale = b.0.load(&redis.pool(), &token).await.ok().unwrap();
        let (open, gate) = tokio::sync::oneshot::channel::<()>();
        let slow_load = b.0.l1.try_get_with(token.clone(), async {
            gate.await.unwrap();
            Ok::<_, Miss>(stale)
        });
        let late = async {
            a.revoke(&token).await.unwrap();
            b.forget(&token).await;
            let validate = b.validate_session(&token);
            let release = async {
                tokio::task::yield_now().await;
                open.send(()).unwrap();
            };
            tokio::join!(validate, release).0
        };
        let (_, answer) = tokio::join!(slow_load, late);
        assert_eq!(answer, Ok(None));
        assert!(!b.0.l1.contains_key(&token));
    }

    #[tokio::test]
    async fn redis_away_is_neither_valid_nor_invalid() {
        let mut redis = TestRedis::start();
        let sessions = SessionManager::new(Some(redis.pool()), HOUR);
        let (known, _) = sessions.create(named("u1")).await.unwrap();
        redis.kill();
        let away = SessionError::Unavailable(RedisError::Away);
        assert!(sessions.validate_session(&known).await.unwrap().is_some());
        assert_eq!(sessions.validate_session("unknown").await, Err(away.clone()));
        assert_eq!(sessions.create_session("u2", None, None).await, Err(away.clone()));
        assert_eq!(sessions.revoke(&known).await, Err(away.clone()));
        assert_eq!(sessions.validate_session(&known).await, Err(away));
    }

    #[tokio::test]
    async fn what_cannot_be_a_token_is_not_asked_about() {
        let sessions = SessionManager::new(Some(nowhere()), HOUR);
        for odd in ["", "a\nb", "a\0", &"x".repeat(513)] {
            assert_eq!(sessions.validate_session(odd).await, Ok(None));
            assert_eq!(sessions.revoke(odd).await, Ok(false));
        }
    }

    #[tokio::test]
    async fn unreadable_sessions_count_as_absent_and_foreign_ones_get_a_ttl() {
        let redis = TestRedis::start();
        let pool = redis.pool();
        let sessions = SessionManager::new(Some(redis.pool()), HOUR);
        for json in ["", "7", "{}", r#"{"user_id":""}"#, r#"{"user_id":"u","ttl_seconds":0}"#] {
            let () = pool.query(&redis::Cmd::set("session:odd", json)).await.unwrap();
            assert_eq!(sessions.validate_session("odd").await, Ok(None), "{json}");
        }
        let () = pool.query(&redis::Cmd::set("session:foreign%3A1", r#"{"user_id":"u"}"#)).await.unwrap();
        let found = sessions.validate_session("foreign:1").await.unwrap().unwrap();
        assert_eq!((found.user_id.as_str(), found.anonymous), ("u", false));
        let left: i64 = pool.query(&redis::Cmd::ttl("session:foreign%3A1")).await.unwrap();
        assert!((3590..=3600).contains(&left));
    }

    #[tokio::test]
    async fn a_session_needs_a_user_and_a_sane_life() {
        let sessions = SessionManager::new(None, HOUR);
        assert_eq!(sessions.create_session("", None, None).await, Err(SessionError::NoUser));
        for ttl in [Duration::ZERO, HOUR * 24 * 366] {
            let new = NewSession { ttl: Some(ttl), ..named("u") };
            assert_eq!(sessions.create(new).await, Err(SessionError::BadTtl));
        }
    }

    #[test]
    fn tokens_are_long_and_differ() {
        let (one, two) = (random_token().unwrap(), random_token().unwrap());
        assert_eq!(one.len(), 43);
        assert!(one != two && is_token_shaped(&one) && keys::encode(&one) == one);
    }
}
