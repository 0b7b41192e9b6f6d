//! L1: what this process has read lately, so that it need not ask Redis again.
//!
//! A copy is **sure** while it cannot be older than a second without this process knowing: it was read within that
//! second, or everything announced since has been heard ([`Hearing`]). One that is not is **doubtful**: Redis is
//! asked again, and only where it does not answer, the copy is served until its life ends.
//!
//! Misses of one key at the same time share one load. What was forgotten while a load was under way is not
//! brought back by it.
//!
//! **Without Redis** everything in it is sure ([`Keeps`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use moka::future::Cache;
use moka::policy::EvictionPolicy;

use super::Hearing;
use crate::metrics::TierMetrics;

/// How far behind a sure copy may be. Less than a second: a call takes a moment too.
const SURE_FOR: Duration = Duration::from_millis(800);
/// One look in so many is timed: the clock would cost as much as the look.
const TIMED: u32 = 64;

/// What is kept, and what can be known of it.
#[derive(Clone, Debug)]
pub enum Keeps {
    /// The only ones: nobody else changes them, and a read gives them another life.
    Originals,
    /// What only this process makes, out of something else: nobody changes it, and none is kept longer than so.
    Own { longest: Duration },
    /// Copies of what others may change, none kept longer than so.
    Copies { hearing: Hearing, longest: Duration },
}

/// What L1 has.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<V> {
    Sure(V),
    /// To be served only if Redis does not answer, and for so much longer at most.
    Doubtful(V, Duration),
}

/// What a load brought.
#[derive(Debug)]
pub struct Loaded<V> {
    pub value: V,
    /// How long it is kept; zero: not at all.
    pub life: Duration,
}

/// One process's copies. Clones share them.
#[derive(Clone)]
pub struct Near<V: Clone + Send + Sync + 'static, E: Clone + Send + Sync + 'static>(Arc<Inner<V, E>>);

struct Inner<V: Clone + Send + Sync + 'static, E: Clone + Send + Sync + 'static> {
    cache: Cache<String, Held<V, E>>,
    what: Keeps,
    /// Counts everything forgotten. A load that began at an older count may have read what was changed since.
    forgotten: AtomicU64,
    looks: AtomicU32,
    capacity: u64,
    metrics: TierMetrics,
}

#[derive(Clone)]
struct Held<V, E> {
    /// A failure is for those who waited for it, and never kept.
    outcome: Result<V, E>,
    /// Taken away where it is forgotten: that is thrice as quick as taking the copy out, which its life does later.
    alive: Arc<AtomicBool>,
    life: Duration,
    read_at: Instant,
    /// [`Inner::forgotten`] when the load began.
    began_at: u64,
}

impl<V, E> Held<V, E> {
    fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Acquire)
    }
}

/// Originals live as long as each says, from its last use on.
struct Lives;

impl<V, E> moka::Expiry<String, Held<V, E>> for Lives {
    fn expire_after_create(&self, _: &String, held: &Held<V, E>, _: Instant) -> Option<Duration> {
        Some(held.life)
    }

    fn expire_after_read(
        &self,
        _: &String,
        held: &Held<V, E>,
        _: Instant,
        _: Option<Duration>,
        _: Instant,
    ) -> Option<Duration> {
        Some(held.life)
    }

    fn expire_after_update(
        &self,
        _: &String,
        held: &Held<V, E>,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(held.life)
    }
}

impl<V: Clone + Send + Sync + 'static, E: Clone + Send + Sync + 'static> Near<V, E> {
    /// Room for `capacity` copies.
    pub fn new(capacity: u64, what: Keeps, metrics: TierMetrics) -> Self {
        Self::weighed(capacity, what, metrics, |_| 1)
    }

    /// The same where a copy takes up so much of `capacity` as `weigh` says.
    pub fn weighed(capacity: u64, what: Keeps, metrics: TierMetrics, weigh: fn(&V) -> u32) -> Self {
        let cache = Cache::builder()
            .max_capacity(capacity)
            .weigher(move |_, held: &Held<V, E>| held.outcome.as_ref().map_or(1, weigh))
            // The default policy may refuse a new entry when full: where this is the store, it would be lost.
            .eviction_policy(EvictionPolicy::lru());
        let cache = match &what {
            Keeps::Originals => cache.expire_after(Lives),
            // One life for all costs a change half as much as one for each: what lives shorter is checked here.
            Keeps::Own { longest } | Keeps::Copies { longest, .. } => cache.time_to_live(*longest),
        };
        let (forgotten, looks) = (AtomicU64::new(0), AtomicU32::new(0));
        Self(Arc::new(Inner { cache: cache.build(), what, forgotten, looks, capacity, metrics }))
    }

    /// What is held of `key`, if anything.
    pub async fn get(&self, key: &str) -> Option<Found<V>> {
        let inner = &self.0;
        let timed = inner.looks.fetch_add(1, Ordering::Relaxed).is_multiple_of(TIMED);
        let began = timed.then(Instant::now);
        let found = self.look(key).await;
        if let Some(began) = began {
            inner.metrics.seconds.observe(began.elapsed().as_secs_f64());
        }
        match found {
            Some(Found::Sure(_)) => inner.metrics.hits.inc(),
            _ => inner.metrics.misses.inc(),
        };
        found
    }

    async fn look(&self, key: &str) -> Option<Found<V>> {
        let held = self.0.cache.get(key).await?;
        if !held.is_alive() {
            return None;
        }
        let sure = self.0.is_sure(&held);
        if self.0.is_over(&held) {
            return None;
        }
        let left = held.life.saturating_sub(held.read_at.elapsed());
        let value = held.outcome.ok()?;
        Some(if sure { Found::Sure(value) } else { Found::Doubtful(value, left) })
    }

    /// What `load` brings, for all who ask for `key` at the same time, and keeps it as long as the load says. It
    /// is called a second time if something was forgotten meanwhile; what that brings is kept for nobody.
    ///
    /// # Errors
    /// That of the load.
    pub async fn load<F, Loading>(&self, key: &str, load: F) -> Result<V, E>
    where
        F: Fn() -> Loading,
        Loading: Future<Output = Result<Loaded<V>, E>>,
    {
        let inner = &self.0;
        let useless = |held: &Held<V, E>| {
            held.outcome.is_err() || !held.is_alive() || !inner.is_sure(held) || inner.is_over(held)
        };
        let entry = inner.cache.entry_by_ref(key).or_insert_with_if(inner.hold(load()), useless).await;
        let held = entry.into_value();
        match held.outcome {
            Err(error) => Err(error),
            Ok(value) if held.began_at == inner.forgotten.load(Ordering::Acquire) => Ok(value),
            Ok(_) => {
                // Something was changed while this load, perhaps begun by another caller, was under way. It may
                // have been this key: look again, and keep nothing.
                inner.drop_copy(key).await;
                load().await.map(|loaded| loaded.value)
            }
        }
    }

    /// The count to hand to [`Near::put`], taken before the store is written.
    pub fn mark(&self) -> u64 {
        self.0.forgotten.load(Ordering::Acquire)
    }

    /// Holds `value`, which was written to the store after `mark` was taken.
    pub async fn put(&self, key: &str, value: V, life: Duration, mark: u64) {
        let inner = &self.0;
        let held = Held {
            outcome: Ok(value),
            alive: Arc::new(AtomicBool::new(true)),
            life,
            read_at: Instant::now(),
            began_at: mark,
        };
        inner.count_eviction();
        inner.cache.insert(key.to_owned(), held).await;
        if inner.forgotten.load(Ordering::Acquire) != mark {
            // Somebody else may have written after us, and the announcement have come first.
            inner.drop_copy(key).await;
        }
    }

    /// Drops `key`: what is in the store has changed, or will not be there any more.
    pub async fn forget(&self, key: &str) {
        self.0.forgotten.fetch_add(1, Ordering::AcqRel);
        self.0.drop_copy(key).await;
    }

    /// Drops everything: changes may have been missed.
    pub fn forget_all(&self) {
        self.0.forgotten.fetch_add(1, Ordering::AcqRel);
        self.0.cache.invalidate_all();
    }

    /// Takes `key` out of the store that this is.
    pub async fn take(&self, key: &str) -> Option<V> {
        self.0.cache.remove(key).await.filter(Held::is_alive).and_then(|held| held.outcome.ok())
    }

    /// Everything held, in no order. For what is rare: it goes through all.
    pub fn all(&self) -> impl Iterator<Item = (Arc<String>, V)> + '_ {
        let alive = self.0.cache.iter().filter(|(_, held)| held.is_alive());
        alive.filter_map(|(key, held)| Some((key, held.outcome.ok()?)))
    }
}

impl<V: Clone + Send + Sync + 'static, E: Clone + Send + Sync + 'static> Inner<V, E> {
    fn is_sure(&self, held: &Held<V, E>) -> bool {
        let Keeps::Copies { hearing, .. } = &self.what else { return true };
        let known_at = hearing.up_to().map_or(held.read_at, |heard| heard.max(held.read_at));
        known_at.elapsed() <= SURE_FOR
    }

    /// Whether its own life is over. That of originals is looked after by the cache.
    fn is_over(&self, held: &Held<V, E>) -> bool {
        !matches!(self.what, Keeps::Originals) && held.read_at.elapsed() >= held.life
    }

    async fn drop_copy(&self, key: &str) {
        if let Some(held) = self.cache.get(key).await {
            held.alive.store(false, Ordering::Release);
        }
    }

    /// One comes in, and another goes if it is full. Asking the cache to tell would make every change slower.
    fn count_eviction(&self) {
        if self.cache.weighted_size() >= self.capacity {
            self.metrics.evictions.inc();
        }
    }

    async fn hold(&self, loading: impl Future<Output = Result<Loaded<V>, E>>) -> Held<V, E> {
        let (began_at, read_at) = (self.forgotten.load(Ordering::Acquire), Instant::now());
        let (outcome, life) = match loading.await {
            Ok(Loaded { value, life }) => (Ok(value), life),
            Err(error) => (Err(error), Duration::ZERO),
        };
        self.count_eviction();
        let alive = Arc::new(AtomicBool::new(true));
        Held { outcome, alive, life, read_at, began_at }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::future::join_all;

    const LONG: Duration = Duration::from_secs(60);

    fn near(hearing: Option<Hearing>) -> Near<u32, String> {
        let what = hearing.map_or(Keeps::Originals, |hearing| Keeps::Copies { hearing, longest: LONG });
        Near::new(100, what, TierMetrics::default())
    }

    fn brings(value: u32) -> impl Fn() -> std::future::Ready<Result<Loaded<u32>, String>> {
        move || std::future::ready(Ok(Loaded { value, life: LONG }))
    }

    #[tokio::test]
    async fn a_copy_becomes_doubtful_unless_everything_since_was_heard() {
        let hearing = Hearing::default();
        let near = near(Some(hearing.clone()));
        assert_eq!(near.load("k", brings(1)).await, Ok(1));
        assert_eq!(near.get("k").await, Some(Found::Sure(1)));
        tokio::time::sleep(SURE_FOR + Duration::from_millis(50)).await;
        assert!(matches!(near.get("k").await, Some(Found::Doubtful(1, left)) if left < LONG));
        hearing.confirm(Instant::now());
        assert_eq!(near.get("k").await, Some(Found::Sure(1)));
        hearing.lose();
        assert!(matches!(near.get("k").await, Some(Found::Doubtful(1, _))));
        assert_eq!(near.load("k", brings(2)).await, Ok(2), "a doubtful copy is replaced");
        assert_eq!(near.get("k").await, Some(Found::Sure(2)));
    }

    #[tokio::test]
    async fn misses_at_the_same_time_load_once_and_failures_are_not_kept() {
        let near = near(Some(Hearing::default()));
        let loads = AtomicU32::new(0);
        let slow = || async {
            loads.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(20)).await;
            Err::<Loaded<u32>, _>("broken".to_owned())
        };
        let answers = join_all((0..50).map(|_| near.load("k", slow))).await;
        assert!(answers.iter().all(|answer| *answer == Err("broken".to_owned())));
        assert_eq!(loads.load(Ordering::Relaxed), 1);
        assert_eq!(near.get("k").await, None);
        assert_eq!(near.load("k", brings(1)).await, Ok(1));
    }

    #[tokio::test]
    async fn what_was_forgotten_during_a_load_or_a_write_is_not_brought_back() {
        let near = near(Some(Hearing::default()));
        let (changing, store) = (near.clone(), AtomicU32::new(1));
        let load = || async {
            let value = store.load(Ordering::Relaxed);
            if value == 1 {
                store.store(2, Ordering::Relaxed);
                changing.forget("k").await;
            }
            Ok(Loaded { value, life: LONG })
        };
        assert_eq!(near.load("k", load).await, Ok(2));
        assert_eq!(near.get("k").await, None);
        let mark = near.mark();
        near.forget("k").await;
        near.put("k", 3, LONG, mark).await;
        assert_eq!(near.get("k").await, None);
        near.put("k", 4, LONG, near.mark()).await;
        assert_eq!(near.get("k").await, Some(Found::Sure(4)));
    }

    #[tokio::test]
    async fn as_a_store_it_keeps_what_is_used() {
        let near = near(None);
        near.put("k", 1, Duration::from_millis(300), near.mark()).await;
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_millis(150)).await;
            assert_eq!(near.get("k").await, Some(Found::Sure(1)));
        }
        assert_eq!(near.all().map(|(_, value)| value).collect::<Vec<_>>(), [1]);
        assert_eq!((near.take("k").await, near.take("k").await), (Some(1), None));
    }

    #[tokio::test]
    async fn what_a_process_makes_itself_is_made_again_when_its_life_is_over_however_often_it_is_read() {
        let near: Near<u32, String> = Near::new(100, Keeps::Own { longest: LONG }, TierMetrics::default());
        let short = || async { Ok(Loaded { value: 1, life: Duration::from_millis(300) }) };
        assert_eq!(near.load("k", short).await, Ok(1));
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert_eq!(near.get("k").await, Some(Found::Sure(1)));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(near.get("k").await, None);
        assert_eq!(near.load("k", brings(2)).await, Ok(2));
    }
}
