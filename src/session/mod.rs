//! Opaque sessions: proof of who connects, kept in Redis and, for moments, in this process.
//!
//! A session is a random token; what it stands for is the JSON at `session:{token}`. Validation looks in L1 (this
//! process, see [`Near`]), then asks the [`SessionFilter`] whether there can be such a session at all, then
//! Redis. Any node validates what any other made, whether that one still runs or not. A revocation is announced,
//! and L1 serves a copy without asking only while it knows of every revocation older than a second. Sessions slide:
//! a use extends them.
//!
//! A user's sessions are listed in `cache:session:user:{id}`, a sorted set of tokens by when they end; what is
//! listed and gone is dropped from it by whoever looks.
//!
//! **When Redis is away** a session that L1 holds stays valid until its entry ends, ten seconds after it was last
//! read at most; any other is [`SessionError::Unavailable`], which is not "invalid" and never "valid" (answer 503).
//! Sessions can be neither made nor revoked meanwhile, except by a part of the cluster that reaches a Redis which
//! this node does not: then those ten seconds are how long this node goes on believing.
//!
//! **Without Redis** (a single node) the cache is the store: it holds [`CAPACITY`] sessions, and when it is full
//! the one unused for longest ends early and its owner signs in again.

mod filter;

use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::cache::{Found, Hearing, Keeps, Loaded, Near};
use crate::keys;
use crate::logging::Seldom;
use crate::metrics::{CacheMetrics, Metrics};
use crate::redis_pool::{RedisError, RedisPool, Rest};

pub use filter::{FILTER_TOPIC, SessionFilter};

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
/// What our own tokens begin with: who else writes sessions is free in his, and the filter knows only ours.
const OURS: &str = "rcs_";
/// How long a token that the filter does not know waits for what was announced before it came.
const CATCH_UP: Duration = Duration::from_millis(250);
/// How often all of a user's sessions are looked for, since one can be made meanwhile.
const REVOKE_ROUNDS: u32 = 3;

static REVOKE: LazyLock<redis::Script> =
    LazyLock::new(|| redis::Script::new(include_str!("../scripts/session_revoke.lua")));
static LIST: LazyLock<redis::Script> =
    LazyLock::new(|| redis::Script::new(include_str!("../scripts/session_list.lua")));

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
    /// The sign-in with a password that it comes from, also through refresh tokens; none for others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login: Option<String>,
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
    /// The sign-in that it comes from.
    pub login: Option<String>,
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

/// Makes, validates, lists and revokes sessions. Clones are cheap and share everything.
#[derive(Clone)]
pub struct SessionManager(Arc<Inner>);

struct Inner {
    redis: Option<RedisPool>,
    ttl: Duration,
    near: Near<Option<Arc<Session>>, RedisError>,
    hearing: Hearing,
    /// For copies that are doubtful: they can do without Redis for a while.
    rest: Rest,
    /// None without Redis, and with a Redis Cluster.
    filter: Option<SessionFilter>,
    metrics: CacheMetrics,
}

impl SessionManager {
    /// Sessions that live `ttl` from their last use, shared through `pool` or, without one, known
    /// to this process only. Nobody listens to revocations by others: L1 asks Redis again each second.
    pub fn new(pool: Option<RedisPool>, ttl: Duration) -> Self {
        Self::of_node(pool, ttl, Hearing::default(), &Metrics::default())
    }

    /// The same for a node that hears: whoever confirms `hearing` subscribes to [`REVOKED_TOPIC`] and
    /// [`FILTER_TOPIC`], and calls [`SessionManager::forget`], [`SessionManager::forget_all`] and
    /// [`SessionFilter::heard`] accordingly.
    pub fn of_node(pool: Option<RedisPool>, ttl: Duration, hearing: Hearing, metrics: &Metrics) -> Self {
        let counters = metrics.cache("session");
        let what = match &pool {
            Some(_) => Keeps::Copies { hearing: hearing.clone(), longest: L1_LIFE },
            None => Keeps::Originals,
        };
        let near = Near::new(CAPACITY, what, counters.l1.clone());
        // A cluster hands announcements on from node to node: that a ping was answered says nothing of them.
        let filter = pool.clone().filter(|pool| !pool.servers().is_cluster());
        let filter = filter.map(|pool| SessionFilter::new(pool, metrics));
        let rest = Rest::new();
        Self(Arc::new(Inner { redis: pool, ttl, near, hearing, rest, filter, metrics: counters }))
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
            login: new.login,
            expires_at: now + ttl.as_secs(),
        };
        let inner = &self.0;
        let mark = inner.near.mark();
        if let Some(redis) = &inner.redis {
            // First, so that nobody can be refused with a token that he has.
            if let Some(filter) = &inner.filter {
                filter.add(&token).await?;
            }
            list(redis, &session.user_id, &token, ttl).await?;
            redis.query::<()>(&set_command(&token, &session, ttl)).await?;
        }
        inner.near.put(&token, Some(Arc::new(session.clone())), inner.near_life(ttl), mark).await;
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
        let held = match inner.near.get(token).await {
            Some(Found::Sure(session)) => return Ok(session.map(|session| inner.seen(&session))),
            Some(Found::Doubtful(session, left)) => Some((session, left)),
            None => None,
        };
        let Some(redis) = &inner.redis else { return Ok(None) };
        if held.is_none() && inner.is_ruled_out(token).await {
            return Ok(None);
        }
        let load = || async {
            let Some((session, left)) = &held else { return inner.load(redis, token).await };
            let loaded = match inner.rest.may_try() {
                true => inner.load(redis, token).await,
                false => Err(RedisError::Away),
            };
            match loaded {
                Err(RedisError::Away) => {
                    inner.metrics.unshared.inc();
                    Ok(Loaded { value: session.clone(), life: *left })
                }
                loaded => loaded,
            }
        };
        // Boxed: a copy in L1, as mostly, need not pay for the room that asking further takes.
        let session = Box::pin(inner.near.load(token, load)).await?;
        Ok(session.map(|session| Session::clone(&session)))
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
            return Ok(inner.near.take(token).await.is_some());
        };
        let key = keys::session(token);
        let deleted = redis.script::<bool>(REVOKE.key(key).arg(REVOKED_TOPIC).arg(token)).await;
        // After Redis, so that no load can bring back what it still held; and whatever Redis said.
        inner.near.forget(token).await;
        Ok(deleted?)
    }

    /// The sessions of `user` with their tokens, the oldest first.
    ///
    /// # Errors
    /// [`SessionError::Unavailable`].
    pub async fn sessions_of(&self, user: &str) -> Result<Vec<(String, Session)>, SessionError> {
        let inner = &self.0;
        let mut found = Vec::new();
        match &inner.redis {
            None => {
                for (token, session) in inner.near.all() {
                    if let Some(session) = session.filter(|session| session.user_id == user) {
                        found.push((token.to_string(), inner.seen(&session)));
                    }
                }
            }
            Some(redis) => {
                let index = keys::sessions_of(user);
                let tokens: Vec<String> =
                    redis.query(redis::cmd("ZRANGE").arg(&index).arg(0).arg(-1)).await?;
                // Few at a time: a pipeline is answered as a whole.
                for some in tokens.chunks(500) {
                    let mut pipeline = redis::pipe();
                    for token in some {
                        pipeline.get(keys::session(token)).pttl(keys::session(token));
                    }
                    let answers: Vec<(Option<String>, i64)> = redis.pipeline(&pipeline).await?;
                    let mut gone = redis::cmd("ZREM");
                    gone.arg(&index);
                    let mut any_gone = false;
                    for (token, (json, left)) in some.iter().zip(answers) {
                        match json.as_deref().and_then(parse).filter(|session| session.user_id == user) {
                            Some(mut session) => {
                                session.expires_at = unix_now() + u64::try_from(left).unwrap_or(0) / 1_000;
                                found.push((token.clone(), session));
                            }
                            None => {
                                gone.arg(token);
                                any_gone = true;
                            }
                        }
                    }
                    if any_gone {
                        redis.query::<()>(&gone).await?;
                    }
                }
            }
        }
        found.sort_by(|(a, one), (b, other)| (one.created_at, a).cmp(&(other.created_at, b)));
        Ok(found)
    }

    /// Ends those sessions of `user` everywhere that `which` names. Gives their tokens.
    ///
    /// # Errors
    /// [`SessionError::Unavailable`]: some may have ended.
    pub async fn revoke_of(
        &self,
        user: &str,
        which: impl Fn(&str, &Session) -> bool,
    ) -> Result<Vec<String>, SessionError> {
        let mut ended = Vec::new();
        for _ in 0..REVOKE_ROUNDS {
            let mut all = self.sessions_of(user).await?;
            all.retain(|(token, session)| which(token, session));
            if all.is_empty() {
                break;
            }
            for (token, _) in all {
                if self.revoke(&token).await? {
                    ended.push(token);
                }
            }
        }
        Ok(ended)
    }

    /// Drops `token` from L1: another node said that it is revoked. Without Redis there is no
    /// other node and this does nothing.
    pub async fn forget(&self, token: &str) {
        if self.0.redis.is_some() {
            self.0.near.forget(token).await;
        }
    }

    /// Drops all of L1: revocations may have been missed. Meant for when the subscription to
    /// [`REVOKED_TOPIC`] is back after a loss. Without Redis this does nothing.
    pub fn forget_all(&self) {
        if self.0.redis.is_some() {
            self.0.near.forget_all();
        }
    }

    /// The filter before Redis, where there is one.
    pub fn filter(&self) -> Option<&SessionFilter> {
        self.0.filter.as_ref()
    }

    /// Hits and misses since the start.
    pub fn counters(&self) -> &CacheMetrics {
        &self.0.metrics
    }
}

impl Inner {
    /// Whether `token` is known to stand for nothing, without asking Redis for it.
    async fn is_ruled_out(&self, token: &str) -> bool {
        let Some(filter) = &self.filter else { return false };
        if !is_ours(token) || filter.may_hold(token) {
            return false;
        }
        // It may be so new that its announcement is on its way.
        let ruled_out = self.hearing.catch_up(CATCH_UP).await && !filter.may_hold(token);
        if ruled_out {
            filter.note_refusal();
        }
        ruled_out
    }

    /// Reads the session from Redis and extends it there if a tenth of its life is over.
    async fn load(&self, redis: &RedisPool, token: &str) -> Result<Loaded<Option<Arc<Session>>>, RedisError> {
        let absent = Loaded { value: None, life: Duration::ZERO };
        let key = keys::session(token);
        let began = std::time::Instant::now();
        let (json, left): (Option<String>, i64) =
            match redis.pipeline(redis::pipe().get(&key).pttl(&key)).await {
                Ok(found) => found,
                Err(error) => {
                    self.rest.failed();
                    return Err(error);
                }
            };
        self.rest.succeeded();
        self.metrics.l2.seconds.observe(began.elapsed().as_secs_f64());
        let Some(mut session) = json.as_deref().and_then(parse) else {
            self.metrics.l2.misses.inc();
            if let Some(filter) = self.filter.as_ref().filter(|_| is_ours(token)) {
                filter.note_miss();
            }
            return Ok(absent);
        };
        self.metrics.l2.hits.inc();
        let ttl = session.ttl_seconds.map_or(self.ttl, Duration::from_secs);
        // Negative: no TTL at all (or gone between the two reads); then it gets one (or nothing happens).
        let mut left = Duration::from_millis(left.try_into().unwrap_or(0));
        if left < ttl * 9 / 10 {
            match redis.query::<bool>(redis::cmd("PEXPIRE").arg(&key).arg(millis(ttl))).await {
                Ok(true) => {
                    left = ttl;
                    if let Err(error) = list(redis, &session.user_id, token, ttl).await {
                        tracing::debug!(%error, "a session's end was not noted in the list of its user");
                    }
                }
                Ok(false) => return Ok(absent),
                // It is valid all the same; the next use extends it.
                Err(error) => tracing::debug!(%error, "a session was not extended"),
            }
        }
        session.expires_at = unix_now() + left.as_secs();
        Ok(Loaded { value: Some(Arc::new(session)), life: self.near_life(ttl).min(left) })
    }

    /// How long L1 holds a session of this `ttl`.
    fn near_life(&self, ttl: Duration) -> Duration {
        match self.redis {
            None => ttl,
            // A tenth of the TTL at most: a session in use comes to Redis in time to be extended.
            Some(_) => L1_LIFE.min(ttl / 10),
        }
    }

    /// The session as this use leaves it.
    fn seen(&self, session: &Session) -> Session {
        let mut session = session.clone();
        if self.redis.is_none() {
            let ttl = session.ttl_seconds.unwrap_or(self.ttl.as_secs());
            session.expires_at = unix_now() + ttl;
        }
        session
    }
}

/// Notes in the list of `user` when the session of `token` ends, and drops what has ended.
async fn list(redis: &RedisPool, user: &str, token: &str, ttl: Duration) -> Result<(), RedisError> {
    let (now, ttl) = (unix_now() * 1_000, millis(ttl));
    let mut call = LIST.key(keys::sessions_of(user));
    call.arg(token).arg(now).arg(ttl);
    redis.script(&call).await
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

/// Whether a node made this token, rather than another service that writes sessions too.
fn is_ours(token: &str) -> bool {
    token.starts_with(OURS)
}

/// A name for a session by which it can be told apart and not used.
pub fn handle(token: &str) -> String {
    Sha256::digest(token).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn random_token() -> Result<String, SessionError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|_| SessionError::NoRandomness)?;
    Ok(format!("{OURS}{}", URL_SAFE_NO_PAD.encode(bytes)))
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
        assert_eq!((fresh.counters().l2.hits.get(), fresh.counters().l1.misses.get()), (1, 50));
        fresh.validate_session(&token).await.unwrap();
        assert_eq!(fresh.counters().l1.hits.get(), 1);
    }

    #[tokio::test]
    async fn unheard_of_revocations_are_believed_for_a_second_at_most() {
        let redis = TestRedis::start();
        let sessions = SessionManager::new(Some(redis.pool()), HOUR);
        let (token, _) = sessions.create(named("u1")).await.unwrap();
        let () = redis.pool().query(&redis::Cmd::del(keys::session(&token))).await.unwrap();
        assert!(sessions.validate_session(&token).await.unwrap().is_some());
        pause(1_000).await;
        assert_eq!(sessions.validate_session(&token).await, Ok(None));
    }

    #[tokio::test]
    async fn a_users_sessions_are_listed_and_ended_together() {
        let redis = TestRedis::start();
        for pool in [None, Some(redis.pool())] {
            let sessions = SessionManager::new(pool.clone(), HOUR);
            let mut tokens = Vec::new();
            for login in ["a", "a", "b"] {
                let new = NewSession { login: Some(login.into()), ..named("u:1") };
                tokens.push(sessions.create(new).await.unwrap().0);
            }
            let (other, _) = sessions.create(named("u2")).await.unwrap();
            let listed = |all: Vec<(String, Session)>| -> std::collections::BTreeSet<String> {
                all.into_iter().map(|(token, _)| token).collect()
            };
            let all = sessions.sessions_of("u:1").await.unwrap();
            assert!(all.iter().all(|(_, session)| session.expires_at >= unix_now() + 3590));
            assert_eq!(listed(all), tokens.iter().cloned().collect());
            // What has gone otherwise is dropped from the list.
            assert_eq!(sessions.revoke(&tokens[0]).await, Ok(true));
            assert_eq!(sessions.sessions_of("u:1").await.unwrap().len(), 2);
            if let Some(pool) = &pool {
                let card: u64 =
                    pool.query(redis::cmd("ZCARD").arg("cache:session:user:u%3A1")).await.unwrap();
                assert_eq!(card, 2);
                let left: i64 = pool.query(&redis::Cmd::ttl("cache:session:user:u%3A1")).await.unwrap();
                assert!((3590..=3600).contains(&left));
            }
            let ended = sessions.revoke_of("u:1", |_, session| session.login.as_deref() == Some("b")).await;
            assert_eq!(ended, Ok(vec![tokens[2].clone()]));
            assert_eq!(sessions.revoke_of("u:1", |_, _| true).await.unwrap().len(), 1);
            for token in &tokens {
                assert_eq!(sessions.validate_session(token).await, Ok(None));
            }
            assert!(sessions.validate_session(&other).await.unwrap().is_some());
        }
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
        assert_eq!((one.len(), is_ours(&one), handle(&one).len()), (47, true, 16));
        assert!(one != two && is_token_shaped(&one) && keys::encode(&one) == one);
    }
}
