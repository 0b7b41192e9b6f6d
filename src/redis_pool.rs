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

use std::time::Duration;

use deadpool_redis::{Connection, Manager, Pool, PoolError, Runtime, TimeoutType};
use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{AsyncConnectionConfig, ErrorKind, FromRedisValue, IntoConnectionInfo, ServerErrorKind};

use crate::config::Secret;

/// Connections kept at most. Each is multiplexed by Redis in microseconds; more would only queue there.
const MAX_SIZE: usize = 16;
/// For a connection: waiting for a free one, making one, checking one.
const CONNECT_LIMIT: Duration = Duration::from_millis(500);
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
    matches!(kind, K::BusyLoading | K::MasterDown | K::ClusterDown | K::ReadOnly | K::TryAgain)
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
    pool: Pool,
}

impl RedisPool {
    /// A pool for the server at `url`. Does not connect: Redis may be absent.
    ///
    /// # Errors
    /// [`RedisError::Refused`] when `url` is not a Redis address.
    pub fn new(url: &Secret) -> Result<Self, RedisError> {
        // The parser's own message can quote the URL, and so the password.
        let refused = |_| RedisError::Refused("the address is not one of a Redis server".to_owned());
        let info = url.expose().into_connection_info().map_err(refused)?.set_tcp_settings(tcp_settings());
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_LIMIT))
            .set_response_timeout(Some(CALL_LIMIT));
        let manager = Manager::new_with_config(info, config).map_err(refused)?;
        let pool = Pool::builder(manager)
            .max_size(MAX_SIZE)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(CONNECT_LIMIT))
            .create_timeout(Some(CONNECT_LIMIT))
            .recycle_timeout(Some(CONNECT_LIMIT))
            .build()
            .map_err(|_| RedisError::Refused("the pool has no runtime".to_owned()))?;
        Ok(Self { pool })
    }

    /// A connection, checked to be alive, within half a second.
    ///
    /// What is sent on it is bounded by the connection's own limit of 1 s for each answer.
    ///
    /// # Errors
    /// [`RedisError::Away`] without one in time; [`RedisError::Refused`] when the login fails.
    pub async fn conn(&self) -> Result<Connection, RedisError> {
        match tokio::time::timeout(CONNECT_LIMIT, self.pool.get()).await {
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
            let answer = cmd.query_async(&mut conn).await;
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
            let answer = pipeline.query_async(&mut conn).await;
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
            let answer = invocation.invoke_async(&mut conn).await;
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

/// Nagle off, since calls are small and waited for; a peer that vanished without a word is noticed
/// by probes on idle connections and by unacknowledged data on busy ones.
fn tcp_settings() -> TcpSettings {
    let keepalive =
        TcpKeepalive::new().with_time(Duration::from_secs(15)).with_interval(Duration::from_secs(5));
    let settings = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive);
    #[cfg(target_os = "linux")]
    let settings = settings.set_user_timeout(Duration::from_secs(5));
    settings
}

/// Boxed: a call to Redis is a state of many kilobytes, which would otherwise be part of every future
/// that might make one, such as that of each socket being opened.
async fn bounded<T>(call: impl Future<Output = Result<T, RedisError>>) -> Result<T, RedisError> {
    tokio::time::timeout(CALL_LIMIT, Box::pin(call)).await.unwrap_or(Err(RedisError::Away))
}

/// Gives `conn` back to the pool, or drops it after an error that says it leads to the wrong or no server:
/// the pool's own check would let a demoted master pass.
fn settle<T>(conn: Connection, answer: Result<T, redis::RedisError>) -> Result<T, RedisError> {
    answer.map_err(|error| {
        let error = RedisError::from(error);
        if error == RedisError::Away {
            drop(Connection::take(conn));
        }
        error
    })
}

/// A real Redis for tests, alone on a free port and gone with the value.
#[cfg(test)]
pub(crate) mod test_redis {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

    use super::RedisPool;
    use crate::config::Secret;

    pub(crate) struct TestRedis {
        port: u16,
        server: Child,
    }

    impl TestRedis {
        /// Starts a server and returns once it answers.
        pub(crate) fn start() -> Self {
            // Another process may take the port between its choice and its use: then choose again.
            for _ in 0..5 {
                let port = free_port();
                if let Some(server) = launch(port) {
                    return Self { port, server };
                }
            }
            panic!("no redis-server could be started");
        }

        /// Ends the server at once, as a crash would.
        pub(crate) fn kill(&mut self) {
            self.server.kill().unwrap();
            self.server.wait().unwrap();
        }

        /// Starts the server again, empty, on the same port.
        pub(crate) fn restart(&mut self) {
            self.kill();
            self.server = launch(self.port).expect("redis-server did not come back");
        }

        /// Stops the server without closing anything: connections stay, answers do not come.
        pub(crate) fn freeze(&self) {
            self.signal("-STOP");
        }

        /// Lets a frozen server go on.
        pub(crate) fn thaw(&self) {
            self.signal("-CONT");
        }

        pub(crate) fn url(&self) -> Secret {
            Secret::new(format!("redis://127.0.0.1:{}", self.port))
        }

        pub(crate) fn pool(&self) -> RedisPool {
            RedisPool::new(&self.url()).unwrap()
        }

        fn signal(&self, signal: &str) {
            let status = Command::new("kill").args([signal, &self.server.id().to_string()]).status();
            assert!(status.unwrap().success());
        }
    }

    impl Drop for TestRedis {
        fn drop(&mut self) {
            let _ = self.server.kill();
            let _ = self.server.wait();
        }
    }

    /// An address at which nothing listens.
    pub(crate) fn nowhere() -> RedisPool {
        RedisPool::new(&Secret::new(format!("redis://127.0.0.1:{}", free_port()))).unwrap()
    }

    fn free_port() -> u16 {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    fn launch(port: u16) -> Option<Child> {
        let mut server = Command::new("redis-server")
            .args(["--save", "", "--appendonly", "no", "--bind", "127.0.0.1", "--port", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server is needed for these tests");
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline && server.try_wait().unwrap().is_none() {
            if answers(port) {
                return Some(server);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = server.kill();
        let _ = server.wait();
        None
    }

    fn answers(port: u16) -> bool {
        let ping = || {
            let mut stream = TcpStream::connect(("127.0.0.1", port))?;
            stream.set_read_timeout(Some(Duration::from_secs(1)))?;
            stream.write_all(b"PING\r\n")?;
            let mut answer = [0; 5];
            stream.read_exact(&mut answer)?;
            std::io::Result::Ok(&answer == b"+PONG")
        };
        ping().unwrap_or(false)
    }
}

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
        let url = redis.url().expose().replace("redis://", "rediss://");
        let pool = RedisPool::new(&Secret::new(url)).unwrap();
        assert!(pool.query::<String>(&get("k")).await.is_err());
    }

    #[test]
    fn a_wrong_address_is_refused_without_quoting_it() {
        let error = RedisPool::new(&Secret::new("nonsense://:hunter2@x")).map(|_| ()).unwrap_err();
        assert!(!error.to_string().contains("hunter2"));
    }
}
