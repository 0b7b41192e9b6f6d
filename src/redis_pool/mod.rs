//! Redis for whatever is rare or may wait: a pool of connections in which every call has an end.
//!
//! **When Redis is away** nothing here blocks for long and nothing is retried: a refused
//! connection fails at once, a silent one after the time limit, both with [`RedisError::Away`].
//! The pool needs no Redis to be built and connects again by itself on the first call after Redis
//! is back. What to do meanwhile is each caller's own decision.
//!
//! A call that timed out may still have been carried out, so commands and scripts sent from here
//! must bear being sent twice. Presence's hot path does not come through here: a checkout costs a
//! round trip, which is too much for each event.

mod connection;
mod rest;
mod servers;
mod sentinels;

use std::sync::Arc;
use std::time::Duration;

use deadpool::Runtime;
use deadpool::managed::{self, Metrics, Object, Pool, PoolError, RecycleError, RecycleResult, TimeoutType};
use deadpool_redis::Manager as SingleManager;
use redis::{AsyncConnectionConfig, ErrorKind, FromRedisValue, ServerErrorKind};

pub use connection::{Connection, Endpoint};
pub use rest::{REST, Rest};
pub use servers::{Servers, Watch};

use crate::config::{RedisAddress, RedisServers};
use connection::Link;

/// Connections kept at most. Each is multiplexed by Redis in microseconds; more would only queue there.
const MAX_SIZE: usize = 16;
/// The same for a cluster, where each stands for one to every node.
const MAX_CLUSTER_SIZE: usize = 6;
/// For a connection: waiting for a free one, making one, checking one.
const CONNECT_LIMIT: Duration = Duration::from_millis(500);
/// The same where several servers must be asked.
const FIND_LIMIT: Duration = Duration::from_millis(900);
/// For a whole call, checkout included.
const CALL_LIMIT: Duration = Duration::from_secs(1);

/// Why Redis gave no answer that could be used.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum RedisError {
    /// No connection, no answer in time, or a server that cannot serve now (loading, demoted).
    /// The command may or may not have been carried out.
    #[error("Redis is away")]
    Away,
    /// Redis answered, with an error or with something of another type than expected.
    /// The text never holds what was sent or stored.
    #[error("Redis refused: {0}")]
    Refused(String),
}

impl From<redis::RedisError> for RedisError {
    fn from(error: redis::RedisError) -> Self {
        match error.kind() {
            ErrorKind::Io => {
                // Callers only need to know that it is away; who repairs it needs the cause.
                tracing::debug!(%error, "no answer from Redis");
                Self::Away
            }
            ErrorKind::Server(kind) if is_passing(kind) => Self::Away,
            // The second is what the library says of a command of many slots when it has lost its connection
            // to a node: it says so for ever, since that makes it look for no other.
            ErrorKind::ClusterConnectionNotFound | ErrorKind::Client => Self::Away,
            ErrorKind::Server(_) | ErrorKind::Extension | ErrorKind::AuthenticationFailed => {
                // "unknown command" quotes the arguments, where tokens are.
                let detail = error.detail().unwrap_or_default();
                let detail = detail.split(", with args").next().unwrap_or_default();
                Self::Refused(format!("{} {detail}", error.code().unwrap_or("error")).trim_end().to_owned())
            }
            // Details of parse and type errors quote the answer; the category says enough.
            _ => Self::Refused(error.category().to_owned()),
        }
    }
}

/// Whether the server says that it cannot serve for now, rather than that the command is wrong.
fn is_passing(kind: ServerErrorKind) -> bool {
    use ServerErrorKind as K;
    matches!(
        kind,
        K::BusyLoading | K::MasterDown | K::ClusterDown | K::ReadOnly | K::TryAgain | K::Moved | K::Ask
    )
}

/// How full the pool is, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolStatus {
    /// Connections that exist.
    pub size: usize,
    /// Of those, how many are free.
    pub available: usize,
    /// Callers waiting for one.
    pub waiting: usize,
    /// Connections that may exist.
    pub max: usize,
}

/// A pool of Redis connections with time limits. Clones share the connections.
#[derive(Clone)]
pub struct RedisPool {
    pool: Pool<Manager>,
    servers: Arc<Servers>,
    connect_limit: Duration,
}

impl RedisPool {
    /// A pool for the Redis at `address`. Does not connect: Redis may be absent.
    ///
    /// # Errors
    /// [`RedisError::Refused`] when `address` is not a Redis address.
    pub fn new(address: &RedisAddress) -> Result<Self, RedisError> {
        let servers = Arc::new(Servers::new(address.clone()));
        let (single, max_size, connect_limit) = match address.servers() {
            RedisServers::Single(at) => {
                let refused = |_| RedisError::Refused("the address is not one of a Redis server".to_owned());
                let config = AsyncConnectionConfig::new()
                    .set_connection_timeout(Some(CONNECT_LIMIT))
                    .set_response_timeout(Some(CALL_LIMIT));
                let client = address.client(at.clone()).map_err(refused)?;
                let at = client.get_connection_info().clone();
                let single = SingleManager::new_with_config(at, config).map_err(refused)?;
                (Some(single), MAX_SIZE, CONNECT_LIMIT)
            }
            RedisServers::Sentinel(_) => (None, MAX_SIZE, FIND_LIMIT),
            RedisServers::Cluster(_) => (None, MAX_CLUSTER_SIZE, FIND_LIMIT),
        };
        let pool = Pool::builder(Manager { single, servers: Arc::clone(&servers) })
            .max_size(max_size)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(connect_limit))
            .create_timeout(Some(connect_limit))
            .recycle_timeout(Some(connect_limit))
            .build()
            .map_err(|_| RedisError::Refused("the pool has no runtime".to_owned()))?;
        Ok(Self { pool, servers, connect_limit })
    }

    /// The servers behind the pool, for whoever keeps a connection of its own.
    pub fn servers(&self) -> &Arc<Servers> {
        &self.servers
    }

    /// A connection, checked to be alive, within half a second, or twice that where several servers are asked.
    async fn conn(&self) -> Result<Object<Manager>, RedisError> {
        match tokio::time::timeout(self.connect_limit, self.pool.get()).await {
            Ok(Ok(conn)) => Ok(conn),
            Ok(Err(PoolError::Backend(error))) => Err(error.into()),
            Ok(Err(PoolError::Timeout(TimeoutType::Wait))) => {
                tracing::debug!("all Redis connections of the pool stayed in use");
                Err(RedisError::Away)
            }
            Ok(Err(_)) | Err(_) => Err(RedisError::Away),
        }
    }

    /// Sends one command and waits for its answer, 1 s at most.
    ///
    /// # Errors
    /// See [`RedisError`].
    pub async fn query<T: FromRedisValue>(&self, cmd: &redis::Cmd) -> Result<T, RedisError> {
        bounded(async {
            let mut conn = self.conn().await?;
            let answer = cmd.query_async(&mut *conn).await;
            settle(conn, answer)
        })
        .await
    }

    /// Sends a pipeline (a transaction if it is atomic) and waits for all answers, 1 s at most.
    ///
    /// # Errors
    /// See [`RedisError`].
    pub async fn pipeline<T: FromRedisValue>(&self, pipeline: &redis::Pipeline) -> Result<T, RedisError> {
        bounded(async {
            let mut conn = self.conn().await?;
            let answer = pipeline.query_async(&mut *conn).await;
            settle(conn, answer)
        })
        .await
    }

    /// Runs a script by its hash, loading it first where the server does not know it; 1 s at most.
    ///
    /// # Errors
    /// See [`RedisError`].
    pub async fn script<T: FromRedisValue>(
        &self,
        invocation: &redis::ScriptInvocation<'_>,
    ) -> Result<T, RedisError> {
        bounded(async {
            let mut conn = self.conn().await?;
            let answer = invocation.invoke_async(&mut *conn).await;
            settle(conn, answer)
        })
        .await
    }

    /// How much memory the servers use, and how much they may, in bytes; 0 for no limit.
    ///
    /// # Errors
    /// See [`RedisError`].
    pub async fn memory(&self) -> Result<(u64, u64), RedisError> {
        bounded(async {
            let mut conn = self.conn().await?;
            let answer = conn.memory().await;
            settle(conn, answer)
        })
        .await
    }

    /// How full the pool is.
    pub fn status(&self) -> PoolStatus {
        let status = self.pool.status();
        PoolStatus {
            size: status.size,
            available: status.available,
            waiting: status.waiting,
            max: status.max_size,
        }
    }
}

/// Makes and checks the pool's connections. One server's are deadpool-redis' own; its managers for
/// sentinels and clusters take no certificates and no limits, and would let a demoted primary pass.
struct Manager {
    /// Of the only server, where there is only one.
    single: Option<SingleManager>,
    servers: Arc<Servers>,
}

impl managed::Manager for Manager {
    type Type = Connection;
    type Error = redis::RedisError;

    async fn create(&self) -> Result<Connection, redis::RedisError> {
        match &self.single {
            Some(single) => Ok(Connection { link: Link::Server(single.create().await?), primary: None }),
            None => self.servers.connect(Some(CALL_LIMIT)).await,
        }
    }

    async fn recycle(&self, conn: &mut Connection, metrics: &Metrics) -> RecycleResult<redis::RedisError> {
        if !self.servers.is_current(conn) {
            return Err(RecycleError::message("the sentinels name another primary"));
        }
        match (&self.single, &mut conn.link) {
            (Some(single), Link::Server(server)) => single.recycle(server, metrics).await,
            (None, Link::Server(server)) => Ok(servers::must_be_primary(server).await?),
            // It checks itself: a node that is away must not cost the slots of the others.
            (_, Link::Cluster(_)) => Ok(()),
        }
    }
}

/// Boxed: a call to Redis is a state of many kilobytes, which would otherwise be part of every future
/// that might make one, such as that of each socket being opened.
async fn bounded<T>(call: impl Future<Output = Result<T, RedisError>>) -> Result<T, RedisError> {
    tokio::time::timeout(CALL_LIMIT, Box::pin(call)).await.unwrap_or(Err(RedisError::Away))
}

/// Gives `conn` back to the pool, or drops it after an error that says it leads to the wrong or no server:
/// the pool's own check would let a demoted master pass.
fn settle<T>(conn: Object<Manager>, answer: Result<T, redis::RedisError>) -> Result<T, RedisError> {
    answer.map_err(|error| {
        let error = RedisError::from(error);
        if error == RedisError::Away {
            drop(Object::take(conn));
        }
        error
    })
}

#[cfg(test)]
pub(crate) mod test_redis;

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::test_redis::{TestRedis, nowhere};
    use super::*;

    fn get(key: &str) -> redis::Cmd {
        redis::Cmd::get(key)
    }

    #[tokio::test]
    async fn commands_pipelines_and_scripts_answer() {
        let redis = TestRedis::start();
        let pool = redis.pool();
        let () = pool.query(redis::cmd("SET").arg("k").arg(7)).await.unwrap();
        let (a, b): (i64, i64) = pool.pipeline(redis::pipe().incr("k", 1).get("k")).await.unwrap();
        assert_eq!((a, b), (8, 8));
        let script = redis::Script::new("return redis.call('GET', KEYS[1])");
        for _ in 0..2 {
            assert_eq!(pool.script::<i64>(&script.key("k")).await, Ok(8));
        }
        let (used, may) = pool.memory().await.unwrap();
        assert!(used > 500_000 && may == 0, "{used} of {may}");
        let () = pool.query(redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg("100mb")).await.unwrap();
        assert_eq!(pool.memory().await.unwrap().1, 100 << 20);
        let status = pool.status();
        assert_eq!((status.size, status.available, status.max), (1, 1, MAX_SIZE));
    }

    #[tokio::test]
    async fn without_redis_calls_fail_at_once_and_recover_by_themselves() {
        assert_eq!(nowhere().query::<String>(&get("k")).await, Err(RedisError::Away));

        let mut redis = TestRedis::start();
        let pool = redis.pool();
        assert_eq!(pool.query::<Option<String>>(&get("k")).await, Ok(None));
        redis.kill();
        let began = Instant::now();
        assert_eq!(pool.query::<String>(&get("k")).await, Err(RedisError::Away));
        assert!(began.elapsed() < CONNECT_LIMIT);
        redis.restart();
        assert_eq!(pool.query::<Option<String>>(&get("k")).await, Ok(None));
    }

    #[tokio::test]
    async fn a_frozen_redis_costs_no_more_than_the_limit() {
        let redis = TestRedis::start();
        let pool = redis.pool();
        let held = pool.conn().await.unwrap();
        redis.freeze();
        let began = Instant::now();
        assert_eq!(pool.query::<String>(&get("k")).await, Err(RedisError::Away));
        assert!(began.elapsed() < CALL_LIMIT + Duration::from_millis(300));
        redis.thaw();
        drop(held);
        assert_eq!(pool.query::<Option<String>>(&get("k")).await, Ok(None));
    }

    #[tokio::test]
    async fn refusals_quote_neither_arguments_nor_values() {
        let redis = TestRedis::start();
        let pool = redis.pool();
        let unknown = redis::cmd("NOSUCH").arg("session:hunter2").to_owned();
        let error = pool.query::<String>(&unknown).await.unwrap_err();
        assert!(matches!(&error, RedisError::Refused(text) if !text.contains("hunter2")), "{error}");

        let () = pool.query(redis::cmd("SET").arg("k").arg("hunter2")).await.unwrap();
        let error = pool.query::<i64>(&get("k")).await.unwrap_err();
        assert!(matches!(&error, RedisError::Refused(text) if !text.contains("hunter2")), "{error}");
        let error = pool.query::<i64>(&redis::Cmd::llen("k")).await.unwrap_err();
        assert!(error.to_string().contains("WRONGTYPE"), "{error}");
    }

    #[tokio::test]
    async fn a_demoted_master_is_away_and_its_connection_dropped() {
        let redis = TestRedis::start();
        let pool = redis.pool();
        let () = pool.query(redis::cmd("REPLICAOF").arg("127.0.0.1").arg(1)).await.unwrap();
        let set = redis::cmd("SET").arg("k").arg(1).to_owned();
        assert_eq!(pool.query::<()>(&set).await, Err(RedisError::Away));
        assert_eq!(pool.status().size, 0);
    }

    #[tokio::test]
    async fn tls_to_a_server_without_it_is_an_error() {
        let redis = TestRedis::start();
        let url = redis.url().replace("redis://", "rediss://");
        let pool = RedisPool::new(&url.parse().unwrap()).unwrap();
        assert!(pool.query::<String>(&get("k")).await.is_err());
    }
}
