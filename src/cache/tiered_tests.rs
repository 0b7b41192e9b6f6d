use std::sync::atomic::{AtomicU32, Ordering};

use futures_util::StreamExt as _;
use futures_util::future::join_all;

use super::*;
use crate::redis_pool::test_redis::{TestRedis, nowhere};

const LIVES: Lives = Lives {
    l1: Duration::from_secs(30),
    l2: Duration::from_secs(60),
    absent: Duration::from_millis(500),
    capacity: 1_000,
};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Room {
    seats: u32,
}

#[derive(Debug, thiserror::Error)]
#[error("the database is away")]
struct NoDatabase;

/// A database of one row that counts how often it is asked.
#[derive(Default)]
struct Database {
    seats: AtomicU32,
    asked: AtomicU32,
}

impl Database {
    async fn read(&self) -> Result<Option<Room>, NoDatabase> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(20)).await;
        match self.seats.load(Ordering::Relaxed) {
            0 => Ok(None),
            999 => Err(NoDatabase),
            seats => Ok(Some(Room { seats })),
        }
    }

    fn set(&self, seats: u32) {
        self.seats.store(seats, Ordering::Relaxed);
    }

    fn asked(&self) -> u32 {
        self.asked.swap(0, Ordering::Relaxed)
    }
}

struct Node {
    caches: Caches,
    rooms: TieredCache<Room>,
    hearing: Hearing,
    metrics: Arc<Metrics>,
}

fn node(pool: Option<RedisPool>) -> Node {
    let (hearing, metrics) = (Hearing::default(), Arc::new(Metrics::new()));
    let caches = Caches::new(pool, hearing.clone(), Arc::clone(&metrics));
    let rooms = caches.cache("room", LIVES);
    Node { caches, rooms, hearing, metrics }
}

/// A node that hears what is announced in `redis`.
async fn listening(redis: &TestRedis) -> Node {
    let node = node(Some(redis.pool()));
    let mut messages = redis::Client::open(redis.url()).unwrap().get_async_pubsub().await.unwrap();
    messages.subscribe(TOPIC).await.unwrap();
    let (caches, hearing) = (node.caches.clone(), node.hearing.clone());
    tokio::spawn(async move {
        let mut messages = messages.into_on_message();
        loop {
            tokio::select! {
                message = messages.next() => match message {
                    Some(message) => caches.heard(&message.get_payload::<String>().unwrap()).await,
                    None => return hearing.lose(),
                },
                () = tokio::time::sleep(Duration::from_millis(50)) => hearing.confirm(Instant::now()),
            }
        }
    });
    node
}

fn seats(answer: Result<Option<Arc<Room>>, CacheError>) -> Option<u32> {
    answer.unwrap().map(|room| room.seats)
}

async fn until(mut done: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !done().await {
        assert!(began.elapsed() < Duration::from_secs(1), "not within a second");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn each_tier_is_asked_only_for_what_the_nearer_does_not_have() {
    let redis = TestRedis::start();
    let (a, b, database) = (node(Some(redis.pool())), node(Some(redis.pool())), Database::default());
    database.set(4);
    assert_eq!(seats(a.rooms.get("r:1").await), None);
    let at_once = join_all((0..50).map(|_| a.rooms.get_or_load("r:1", || database.read()))).await;
    assert!(at_once.into_iter().all(|answer| seats(answer) == Some(4)));
    assert_eq!(database.asked(), 1, "misses at the same time share one load");
    assert_eq!(seats(b.rooms.get_or_load("r:1", || database.read()).await), Some(4));
    assert_eq!(seats(b.rooms.get("r:1").await), Some(4));
    assert_eq!(database.asked(), 0, "the other node finds it in Redis");
    let stored: String = redis.pool().query(&redis::Cmd::get("cache:room:v1:r%3A1")).await.unwrap();
    assert_eq!(stored, r#"{"seats":4}"#);
    let left: i64 = redis.pool().query(&redis::Cmd::ttl("cache:room:v1:r%3A1")).await.unwrap();
    assert!((55..=60).contains(&left));
    let counted = b.metrics.cache("room");
    let numbers =
        [&counted.l1.hits, &counted.l1.misses, &counted.l2.hits, &counted.l2.misses, &counted.loads];
    assert_eq!(numbers.map(|number| number.get()), [1, 1, 1, 0, 0]);
    assert!(b.metrics.render().contains(r#"rollcall_cache_hits_total{namespace="room",tier="l2"} 1"#));
}

#[tokio::test]
async fn that_there_is_nothing_is_kept_for_a_while() {
    let redis = TestRedis::start();
    let database = Database::default();
    for node in [node(None), node(Some(redis.pool()))] {
        database.set(0);
        for _ in 0..5 {
            assert_eq!(seats(node.rooms.get_or_load("r", || database.read()).await), None);
        }
        assert_eq!(database.asked(), 1);
        database.set(2);
        tokio::time::sleep(LIVES.absent + Duration::from_millis(100)).await;
        assert_eq!(seats(node.rooms.get_or_load("r", || database.read()).await), Some(2));
        database.asked();
    }
}

#[tokio::test]
async fn what_is_set_deleted_or_dropped_on_one_node_is_so_on_all_within_a_second() {
    let redis = TestRedis::start();
    let (a, b) = (listening(&redis).await, listening(&redis).await);
    for node in [&a, &b] {
        until(async || node.hearing.up_to().is_some()).await;
    }
    a.rooms.set("r", Room { seats: 1 }).await.unwrap();
    assert_eq!(seats(b.rooms.get("r").await), Some(1));
    a.rooms.set("r", Room { seats: 2 }).await.unwrap();
    assert_eq!(seats(a.rooms.get("r").await), Some(2));
    until(async || seats(b.rooms.get("r").await) == Some(2)).await;
    b.rooms.delete("r").await.unwrap();
    assert_eq!(seats(b.rooms.get("r").await), None);
    until(async || seats(a.rooms.get("r").await).is_none()).await;

    for key in ["r", "s"] {
        a.rooms.set(key, Room { seats: 3 }).await.unwrap();
        assert_eq!(seats(b.rooms.get(key).await), Some(3));
    }
    a.rooms.raise_version().await.unwrap();
    assert_eq!(seats(a.rooms.get("r").await), None);
    until(async || seats(b.rooms.get("r").await).is_none() && seats(b.rooms.get("s").await).is_none()).await;
    b.rooms.set("r", Room { seats: 5 }).await.unwrap();
    let stored: String = redis.pool().query(&redis::Cmd::get("cache:room:v2:r")).await.unwrap();
    assert_eq!((stored.as_str(), seats(a.rooms.get("r").await)), (r#"{"seats":5}"#, Some(5)));
    // Still in l1 after more than a second, since nothing else was heard.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let before = a.metrics.cache("room").l1.hits.get();
    assert_eq!(seats(a.rooms.get("r").await), Some(5));
    assert_eq!(a.metrics.cache("room").l1.hits.get(), before + 1);
}

#[tokio::test]
async fn who_hears_nothing_believes_a_copy_for_a_second_at_most() {
    let redis = TestRedis::start();
    let (a, deaf) = (node(Some(redis.pool())), node(Some(redis.pool())));
    a.rooms.set("r", Room { seats: 1 }).await.unwrap();
    assert_eq!(seats(deaf.rooms.get("r").await), Some(1));
    a.rooms.delete("r").await.unwrap();
    until(async || seats(deaf.rooms.get("r").await).is_none()).await;
    a.rooms.raise_version().await.unwrap();
    a.rooms.set("r", Room { seats: 2 }).await.unwrap();
    until(async || seats(deaf.rooms.get("r").await) == Some(2)).await;
}

#[tokio::test]
async fn a_load_that_began_before_a_deletion_does_not_bring_back_what_was_deleted() {
    let redis = TestRedis::start();
    let (a, b, database) = (node(Some(redis.pool())), node(Some(redis.pool())), Database::default());
    database.set(1);
    let slow = a.rooms.get_or_load("r", || async {
        let read = database.read().await;
        if database.seats.swap(2, Ordering::Relaxed) == 1 {
            b.rooms.delete("r").await.unwrap();
        }
        read
    });
    assert_eq!(seats(slow.await), Some(1), "the caller asked before the change");
    assert_eq!(seats(b.rooms.get("r").await), None);
    assert_eq!(seats(a.rooms.get_or_load("r", || database.read()).await), Some(2));
    assert_eq!(seats(b.rooms.get("r").await), Some(2));
}

#[tokio::test]
async fn without_an_answer_from_redis_l1_and_the_loader_go_on_and_it_says_so() {
    let mut redis = TestRedis::start();
    let (node, database) = (node(Some(redis.pool())), Database::default());
    database.set(1);
    assert_eq!(seats(node.rooms.get_or_load("r", || database.read()).await), Some(1));
    redis.kill();
    tokio::time::sleep(Duration::from_millis(900)).await;
    database.asked();
    assert_eq!(seats(node.rooms.get("r").await), Some(1));
    assert_eq!(seats(node.rooms.get_or_load("r", || database.read()).await), Some(1));
    assert_eq!(database.asked(), 0);
    assert_eq!(seats(node.rooms.get_or_load("s", || database.read()).await), Some(1));
    assert_eq!(seats(node.rooms.get_or_load("s", || database.read()).await), Some(1));
    assert_eq!(database.asked(), 1);
    assert!(node.metrics.cache("room").unshared.get() > 0);
    assert!(matches!(node.rooms.delete("r").await, Err(CacheError::Unshared(_))));
    assert!(matches!(node.rooms.set("r", Room { seats: 3 }).await, Err(CacheError::Unshared(_))));
    assert!(matches!(node.rooms.raise_version().await, Err(CacheError::Unshared(_))));
    redis.restart();
    node.caches.forget_all();
    database.set(7);
    until(async || seats(node.rooms.get_or_load("s", || database.read()).await) == Some(7)).await;
}

#[tokio::test]
async fn a_loader_that_fails_is_an_error_unless_something_is_known() {
    let (alone, database) = (node(None), Database::default());
    database.set(999);
    let failed = alone.rooms.get_or_load("r", || database.read()).await;
    assert!(
        matches!(&failed, Err(error @ CacheError::Load(_)) if error.to_string().contains("database is away"))
    );
    alone.rooms.set("r", Room { seats: 1 }).await.unwrap();
    assert_eq!(seats(alone.rooms.get_or_load("r", || database.read()).await), Some(1));
    alone.rooms.delete("r").await.unwrap();
    assert_eq!(seats(alone.rooms.get("r").await), None);
    assert!(node(Some(nowhere())).rooms.get("r").await.is_err());
}

#[tokio::test]
async fn what_others_wrote_and_we_cannot_read_is_loaded() {
    let redis = TestRedis::start();
    let (node, database) = (node(Some(redis.pool())), Database::default());
    database.set(3);
    for junk in ["", "loading:other", r#"{"chairs":1}"#, "{"] {
        let () = redis.pool().query(&redis::Cmd::set("cache:room:v1:r", junk)).await.unwrap();
        assert_eq!(seats(node.rooms.get_or_load("r", || database.read()).await), Some(3), "{junk}");
        node.caches.forget_all();
    }
    for message in ["", "{}", r#"{"namespace":"other","by":"x","key":"r"}"#] {
        node.caches.heard(message).await;
    }
}
