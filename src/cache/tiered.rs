//! L1, L2 and a loader, under one name for each kind of value: a namespace.
//!
//! A value is the JSON at `cache:{namespace}:v{n}:{key}`. The namespace's number `n` stands at
//! `cache:{namespace}:version`, 1 if nothing does; raising it drops all its values at once, which then end by
//! their TTL. Every change is announced on [`TOPIC`] in the step that makes it.
//!
//! A miss leaves a note with the key (`loading:` and a random token) for as long as a load may take. What was
//! loaded is stored only where that note still stands: so a load that began before a deletion cannot bring back
//! what was deleted. That there is nothing is an answer too, kept for a while of its own.
//!
//! Redis may evict what is here as it likes, except the version: use a `volatile-…` policy, since the version has
//! no TTL and an old one would show what was dropped.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Found, Hearing, Keeps, Loaded, Near};
use crate::keys;
use crate::logging::Seldom;
use crate::metrics::{CacheMetrics, Metrics};
use crate::redis_pool::{RedisError, RedisPool, Rest};

/// Where changes are announced: `{"namespace","by"}` with `"key"` or `"version"`; `by` is who announces it.
pub const TOPIC: &str = "cache:changed";

/// How long a load may take before what it brings is not stored any more.
const LOAD_LIMIT: Duration = Duration::from_secs(10);
/// How far behind the number of a namespace may be: as for a copy in L1.
const SURE_FOR: Duration = Duration::from_millis(800);
/// How long it is believed at most.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// What a note begins with, as no JSON does.
const NOTE: &str = "loading:";

static CLAIM: LazyLock<redis::Script> =
    LazyLock::new(|| redis::Script::new(include_str!("../scripts/cache_claim.lua")));
static FILL: LazyLock<redis::Script> =
    LazyLock::new(|| redis::Script::new(include_str!("../scripts/cache_fill.lua")));
static SET: LazyLock<redis::Script> =
    LazyLock::new(|| redis::Script::new(include_str!("../scripts/cache_set.lua")));
static DELETE: LazyLock<redis::Script> =
    LazyLock::new(|| redis::Script::new(include_str!("../scripts/cache_delete.lua")));
static RAISE: LazyLock<redis::Script> =
    LazyLock::new(|| redis::Script::new(include_str!("../scripts/cache_raise.lua")));

/// What a loader says of its failure.
pub type Reason = Arc<dyn std::error::Error + Send + Sync>;

/// Why there is no answer, or a change was not made.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CacheError {
    /// Redis did not answer. A change was made in this process only, if at all.
    #[error("the cache is this process's own for now: {0}")]
    Unshared(#[from] RedisError),
    /// The loader failed, and nothing older is known.
    #[error("could not be loaded: {0}")]
    Load(Reason),
    /// The value cannot be written as JSON.
    #[error("the value cannot be written as JSON")]
    NotJson,
    /// The operating system gave no random bytes.
    #[error("no randomness for a token")]
    NoRandomness,
}

/// How long values are kept, by tier.
#[derive(Clone, Copy, Debug)]
pub struct Lives {
    /// In this process.
    pub l1: Duration,
    /// In Redis.
    pub l2: Duration,
    /// In both, that there is nothing.
    pub absent: Duration,
    /// How many values this process keeps.
    pub capacity: u64,
}

/// The tiered caches of a process. Clones share them.
#[derive(Clone)]
pub struct Caches(Arc<Shared>);

struct Shared {
    redis: Option<RedisPool>,
    hearing: Hearing,
    rest: Rest,
    /// Who announces: this process.
    by: String,
    metrics: Arc<Metrics>,
    spaces: Mutex<HashMap<&'static str, Arc<dyn Space>>>,
}

/// What an announcement does to a namespace, whatever its values are.
trait Space: Send + Sync {
    fn forget(&self, key: String) -> BoxFuture<'_, ()>;
    fn raise(&self, version: u64);
    fn forget_all(&self);
}

#[derive(Serialize, Deserialize)]
struct Announcement<'a> {
    #[serde(borrow)]
    namespace: std::borrow::Cow<'a, str>,
    by: std::borrow::Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<std::borrow::Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
}

impl Caches {
    /// Caches that share their values through `pool`, or keep them to themselves. `hearing` is confirmed by whoever
    /// subscribes to [`TOPIC`] and hands what comes to [`Caches::heard`].
    pub fn new(pool: Option<RedisPool>, hearing: Hearing, metrics: Arc<Metrics>) -> Self {
        let by = uuid::Uuid::new_v4().to_string();
        let (rest, spaces) = (Rest::new(), Mutex::default());
        Self(Arc::new(Shared { redis: pool, hearing, rest, by, metrics, spaces }))
    }

    /// The cache of `namespace`, which is made only once in a process.
    pub fn cache<V>(&self, namespace: &'static str, lives: Lives) -> TieredCache<V>
    where
        V: Serialize + DeserializeOwned + Send + Sync + 'static,
    {
        let metrics = self.0.metrics.cache(namespace);
        let longest = lives.l1;
        let what = match &self.0.redis {
            Some(_) => Keeps::Copies { hearing: self.0.hearing.clone(), longest },
            None => Keeps::Own { longest },
        };
        let near = Near::new(lives.capacity, what, metrics.l1.clone());
        let version = Mutex::new(Version { number: 0, read_at: Instant::now() });
        let space = Arc::new(Namespace { name: namespace, lives, near, version, metrics });
        let mut spaces = self.0.spaces.lock().unwrap_or_else(PoisonError::into_inner);
        spaces.insert(namespace, Arc::clone(&space) as Arc<dyn Space>);
        TieredCache { shared: Arc::clone(&self.0), space }
    }

    /// Takes in a message on [`TOPIC`].
    pub async fn heard(&self, message: &str) {
        let Ok(said) = serde_json::from_str::<Announcement<'_>>(message) else {
            static FOREIGN: Seldom = Seldom::new();
            if let Some(times) = FOREIGN.count() {
                tracing::warn!(topic = TOPIC, times, "ignored a message");
            }
            return;
        };
        let space = {
            let spaces = self.0.spaces.lock().unwrap_or_else(PoisonError::into_inner);
            spaces.get(&*said.namespace).map(Arc::clone)
        };
        let Some(space) = space else { return };
        if let Some(version) = said.version {
            space.raise(version);
        }
        // What this process did itself it has taken into account.
        if let Some(key) = said.key.filter(|_| said.by != self.0.by) {
            space.forget(key.into_owned()).await;
        }
    }

    /// Drops what every L1 holds: announcements may have been missed. Without Redis this does nothing.
    pub fn forget_all(&self) {
        if self.0.redis.is_some() {
            let spaces = self.0.spaces.lock().unwrap_or_else(PoisonError::into_inner);
            spaces.values().for_each(|space| space.forget_all());
        }
    }
}

/// The number of a namespace, as last known.
struct Version {
    /// 0: not known.
    number: u64,
    read_at: Instant,
}

struct Namespace<V: Send + Sync + 'static> {
    name: &'static str,
    lives: Lives,
    near: Near<Option<Arc<V>>, CacheError>,
    version: Mutex<Version>,
    metrics: CacheMetrics,
}

impl<V: Send + Sync + 'static> Space for Namespace<V> {
    fn forget(&self, key: String) -> BoxFuture<'_, ()> {
        async move { self.near.forget(&key).await }.boxed()
    }

    fn raise(&self, number: u64) {
        let mut version = self.version.lock().unwrap_or_else(PoisonError::into_inner);
        // Announcements may overtake each other; an older number is the past.
        if number > version.number {
            *version = Version { number, read_at: Instant::now() };
            self.near.forget_all();
        }
    }

    fn forget_all(&self) {
        self.version.lock().unwrap_or_else(PoisonError::into_inner).number = 0;
        self.near.forget_all();
    }
}

/// The cache of one namespace. Clones share it.
pub struct TieredCache<V: Send + Sync + 'static> {
    shared: Arc<Shared>,
    space: Arc<Namespace<V>>,
}

impl<V: Send + Sync + 'static> Clone for TieredCache<V> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), space: Arc::clone(&self.space) }
    }
}

impl<V: Send + Sync + 'static> fmt::Debug for TieredCache<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TieredCache").field("namespace", &self.space.name).finish_non_exhaustive()
    }
}

/// What L2 has of a key.
enum InStore<V> {
    /// A value, or that there is none.
    Value(Option<Arc<V>>),
    /// Nothing is known; what is loaded may be stored under this token, where there is one.
    Unknown(Option<String>),
}

impl<V: Serialize + DeserializeOwned + Send + Sync + 'static> TieredCache<V> {
    /// The value of `key`, if one is known in either tier.
    ///
    /// # Errors
    /// [`CacheError::Unshared`] if this process has none and Redis does not answer.
    pub async fn get(&self, key: &str) -> Result<Option<Arc<V>>, CacheError> {
        let held = match self.space.near.get(key).await {
            Some(Found::Sure(value)) => return Ok(value),
            Some(Found::Doubtful(value, left)) => Some((value, left)),
            None => None,
        };
        if self.shared.redis.is_none() {
            return Ok(None);
        }
        let look = || async {
            let found = self.read(key, None).await;
            match (found, &held) {
                (Ok(InStore::Value(value)), _) => Ok(self.kept(value)),
                (Ok(InStore::Unknown(_)), _) => Ok(Loaded { value: None, life: Duration::ZERO }),
                (Err(_), Some((value, left))) => Ok(Loaded { value: value.clone(), life: *left }),
                (Err(error), None) => Err(error.into()),
            }
        };
        // Boxed: what L1 has, as mostly, need not pay for the room that asking further takes.
        Box::pin(self.space.near.load(key, look)).await
    }

    /// The value of `key`, from the nearest tier that has it; of none, what `load` brings, which both tiers then
    /// keep. `Ok(None)` is an answer too: there is no such thing.
    ///
    /// # Errors
    /// [`CacheError::Load`] if it had to be loaded and the loader failed; a doubtful copy is served instead where
    /// there is one.
    pub async fn get_or_load<F, Loading, Error>(
        &self,
        key: &str,
        load: F,
    ) -> Result<Option<Arc<V>>, CacheError>
    where
        F: Fn() -> Loading,
        Loading: Future<Output = Result<Option<V>, Error>>,
        Error: std::error::Error + Send + Sync + 'static,
    {
        let held = match self.space.near.get(key).await {
            Some(Found::Sure(value)) => return Ok(value),
            Some(Found::Doubtful(value, left)) => Some((value, left)),
            None => None,
        };
        let look = || async {
            let token = random_token()?;
            let unknown = match self.read(key, Some(&token)).await {
                Ok(InStore::Value(value)) => return Ok(self.kept(value)),
                Ok(InStore::Unknown(token)) => token,
                Err(_) => match &held {
                    Some((value, left)) => return Ok(Loaded { value: value.clone(), life: *left }),
                    None => None,
                },
            };
            let metrics = &self.space.metrics;
            metrics.loads.inc();
            let began = Instant::now();
            let loaded = load().await;
            metrics.load_seconds.observe(began.elapsed().as_secs_f64());
            match loaded {
                Ok(value) => self.fill(key, value, unknown).await,
                Err(error) => {
                    metrics.load_failures.inc();
                    match &held {
                        Some((value, left)) => Ok(Loaded { value: value.clone(), life: *left }),
                        None => Err(CacheError::Load(Arc::new(error))),
                    }
                }
            }
        };
        // Boxed: what L1 has, as mostly, need not pay for the room that asking further takes.
        Box::pin(self.space.near.load(key, look)).await
    }

    /// Stores `value` under `key` in both tiers; other nodes drop what they hold of it.
    ///
    /// # Errors
    /// [`CacheError::Unshared`]: then no tier has it, and others go on with what they hold until its life ends.
    pub async fn set(&self, key: &str, value: V) -> Result<(), CacheError> {
        let (near, lives) = (&self.space.near, self.space.lives);
        let mark = near.mark();
        let Some(redis) = &self.shared.redis else {
            near.put(key, Some(Arc::new(value)), lives.l1, mark).await;
            return Ok(());
        };
        let json = serde_json::to_string(&value).map_err(|_| CacheError::NotJson)?;
        let name = self.name(key).await;
        let stored = match name {
            Ok(name) => {
                let announcement = self.announcement(Some(key));
                let mut call = SET.key(name);
                call.arg(json).arg(millis(lives.l2)).arg(TOPIC).arg(announcement);
                self.timed(redis.script::<()>(&call)).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = stored {
            near.forget(key).await;
            return Err(error.into());
        }
        near.put(key, Some(Arc::new(value)), lives.l1, mark).await;
        Ok(())
    }

    /// Drops `key` from both tiers and from every node's L1.
    ///
    /// # Errors
    /// [`CacheError::Unshared`]: it is dropped here, and others may serve it until its life ends.
    pub async fn delete(&self, key: &str) -> Result<(), CacheError> {
        let Some(redis) = &self.shared.redis else {
            self.space.near.forget(key).await;
            return Ok(());
        };
        let deleted = match self.name(key).await {
            Ok(name) => {
                let mut call = DELETE.key(name);
                call.arg(TOPIC).arg(self.announcement(Some(key)));
                self.timed(redis.script::<()>(&call)).await
            }
            Err(error) => Err(error),
        };
        // After Redis, so that no load can bring back what it still held; and whatever Redis said.
        self.space.near.forget(key).await;
        Ok(deleted?)
    }

    /// Drops everything of the namespace, on every node at once.
    ///
    /// # Errors
    /// [`CacheError::Unshared`]: it is dropped from this process's L1 only.
    pub async fn raise_version(&self) -> Result<(), CacheError> {
        let Some(redis) = &self.shared.redis else {
            self.space.near.forget_all();
            return Ok(());
        };
        let mut call = RAISE.key(version_key(self.space.name));
        call.arg(TOPIC).arg(self.announcement(None));
        let raised = self.timed(redis.script::<u64>(&call)).await;
        match &raised {
            Ok(number) => self.space.raise(*number),
            Err(_) => self.space.near.forget_all(),
        }
        Ok(raised.map(|_| ())?)
    }

    /// What L2 has of `key`; with a `token`, a note is left where it has nothing.
    async fn read(&self, key: &str, token: Option<&str>) -> Result<InStore<V>, RedisError> {
        let Some(redis) = &self.shared.redis else { return Ok(InStore::Unknown(None)) };
        if !self.shared.rest.may_try() {
            self.space.metrics.unshared.inc();
            return Err(RedisError::Away);
        }
        let read = async {
            let name = self.name(key).await?;
            match token {
                Some(token) => {
                    let mut call = CLAIM.key(name);
                    call.arg(format!("{NOTE}{token}")).arg(millis(LOAD_LIMIT));
                    self.timed(redis.script::<Option<String>>(&call)).await
                }
                None => self.timed(redis.query(&redis::Cmd::get(name))).await,
            }
        };
        let json = match read.await {
            Ok(json) => json,
            Err(error) => {
                self.shared.rest.failed();
                self.space.metrics.unshared.inc();
                static UNSHARED: Seldom = Seldom::new();
                if let Some(times) = UNSHARED.count() {
                    tracing::warn!(%error, times, "caches are kept by this node alone");
                }
                return Err(error);
            }
        };
        self.shared.rest.succeeded();
        let l2 = &self.space.metrics.l2;
        let Some(json) = json.filter(|json| !json.starts_with(NOTE)) else {
            l2.misses.inc();
            return Ok(InStore::Unknown(token.map(str::to_owned)));
        };
        match serde_json::from_str::<Option<V>>(&json) {
            Ok(value) => {
                l2.hits.inc();
                Ok(InStore::Value(value.map(Arc::new)))
            }
            // Written by another version of this program, or by somebody else: as good as nothing.
            Err(_) => {
                l2.misses.inc();
                Ok(InStore::Unknown(None))
            }
        }
    }

    /// Stores what was loaded, where the note with `token` still stands.
    async fn fill(
        &self,
        key: &str,
        value: Option<V>,
        token: Option<String>,
    ) -> Result<Loaded<Option<Arc<V>>>, CacheError> {
        let life = if value.is_some() { self.space.lives.l2 } else { self.space.lives.absent };
        let stored = match (&self.shared.redis, token) {
            (None, _) => true,
            // Nobody can have changed it without our hearing of it later: then everything here is dropped.
            (Some(_), None) => true,
            (Some(redis), Some(token)) => {
                let json = serde_json::to_string(&value).map_err(|_| CacheError::NotJson)?;
                let filled = async {
                    let mut call = FILL.key(self.name(key).await?);
                    call.arg(format!("{NOTE}{token}")).arg(json).arg(millis(life));
                    self.timed(redis.script::<bool>(&call)).await
                };
                // Redis went away meanwhile: the value is good, and this process's own.
                filled.await.unwrap_or(true)
            }
        };
        let mut loaded = self.kept(value.map(Arc::new));
        if !stored {
            loaded.life = Duration::ZERO;
        }
        Ok(loaded)
    }

    fn kept(&self, value: Option<Arc<V>>) -> Loaded<Option<Arc<V>>> {
        let lives = self.space.lives;
        let life = if value.is_some() { lives.l1 } else { lives.absent.min(lives.l1) };
        Loaded { value, life }
    }

    /// The name of `key` in Redis. Asks for the namespace's version where it is not known for sure.
    async fn name(&self, key: &str) -> Result<String, RedisError> {
        let Some(redis) = &self.shared.redis else { return Ok(self.numbered(1, key)) };
        let before = {
            let version = self.space.version.lock().unwrap_or_else(PoisonError::into_inner);
            let heard = self.shared.hearing.up_to().map_or(version.read_at, |at| at.max(version.read_at));
            // Looked at now and then all the same: who empties Redis announces nothing.
            let sure = heard.elapsed() < SURE_FOR && version.read_at.elapsed() < LOOK_AGAIN;
            if version.number > 0 && sure {
                return Ok(self.numbered(version.number, key));
            }
            version.number
        };
        let read_at = Instant::now();
        let read: Option<u64> = redis.query(&redis::Cmd::get(version_key(self.space.name))).await?;
        let number = read.unwrap_or(1).max(1);
        let mut version = self.space.version.lock().unwrap_or_else(PoisonError::into_inner);
        // What was announced meanwhile is newer.
        if version.number == before {
            if before != 0 && before != number {
                self.space.near.forget_all();
            }
            *version = Version { number, read_at };
        }
        Ok(self.numbered(version.number.max(1), key))
    }

    fn numbered(&self, number: u64, key: &str) -> String {
        format!("cache:{}:v{number}:{}", self.space.name, keys::encode(key))
    }

    /// What is announced of `key` or, without one, of the version: its number is put in by the script.
    fn announcement(&self, key: Option<&str>) -> String {
        let (namespace, by) = (self.space.name.into(), self.shared.by.as_str().into());
        let said = Announcement { namespace, by, key: key.map(Into::into), version: None };
        // Strings and a number: it cannot fail.
        serde_json::to_string(&said).unwrap_or_default()
    }

    async fn timed<T>(&self, call: impl Future<Output = Result<T, RedisError>>) -> Result<T, RedisError> {
        let began = Instant::now();
        let answer = call.await;
        self.space.metrics.l2.seconds.observe(began.elapsed().as_secs_f64());
        answer
    }
}

fn version_key(namespace: &str) -> String {
    format!("cache:{namespace}:version")
}

fn random_token() -> Result<String, CacheError> {
    getrandom::u64().map(|random| format!("{random:016x}")).map_err(|_| CacheError::NoRandomness)
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis().try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "tiered_tests.rs"]
mod tests;
