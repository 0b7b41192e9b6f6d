//! The servers behind an address, and connections to whichever of them it must be now.
//!
//! One server is just that. With sentinels every new connection asks them for the primary, and the server must
//! call itself one. A cluster's connection follows its slots by itself; a subscription goes to any node of
//! it that sees the cluster whole, since announcements reach all nodes. Whoever keeps a subscription has a
//! [`Watch`], which knows when it stands at the wrong server: such a one would be silent, not broken.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use redis::aio::{MultiplexedConnection, PubSub};
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::{AsyncConnectionConfig, ConnectionInfo, ErrorKind, RedisError, RedisResult, Role, Value};
use tokio::time::timeout;

use super::connection::{Connection, Endpoint, Link};
use super::sentinels::Sentinels;
use crate::config::{RedisAddress, RedisServers};

/// For one server: connecting and logging in.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// For one node of a cluster, where a silent one must not use up the time of the others.
const NODE_LIMIT: Duration = Duration::from_millis(400);
/// For a connection or subscription, however many servers are tried.
const WHOLE_LIMIT: Duration = Duration::from_secs(2);
/// How long a node of a cluster may take for an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);
/// How often a command of a cluster is sent again, after a redirection or while a slot is not served.
const RETRIES: u32 = 5;
/// The pauses before it is, in milliseconds.
const RETRY_PAUSE: (u64, u64) = (20, 300);

/// The servers behind an address.
pub struct Servers {
    address: RedisAddress,
    sentinels: Option<Sentinels>,
    /// Nodes of the cluster that were learned of.
    nodes: Mutex<Vec<ConnectionInfo>>,
    /// Why the last attempt to connect failed, or the last connection.
    problem: Mutex<Option<String>>,
}

impl Servers {
    pub(super) fn new(address: RedisAddress) -> Self {
        let sentinels = match address.servers() {
            RedisServers::Sentinel(group) => Some(Sentinels::new(group.clone())),
            RedisServers::Single(_) | RedisServers::Cluster(_) => None,
        };
        Self { address, sentinels, nodes: Mutex::default(), problem: Mutex::default() }
    }

    /// Whether keys are spread over slots.
    pub fn is_cluster(&self) -> bool {
        matches!(self.address.servers(), RedisServers::Cluster(_))
    }

    /// Why Redis cannot be reached or used, as far as the last attempt tells. Holds no secret.
    pub fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes what a connection that stood could not be used for; the next attempt to connect has the last word.
    pub fn note_problem(&self, problem: &str) {
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = Some(problem.to_owned());
    }

    /// A connection for commands. Each answer is waited for up to `answer_limit`, in a cluster a second.
    ///
    /// # Errors
    /// Why there is none, within two seconds.
    pub async fn connect(&self, answer_limit: Option<Duration>) -> RedisResult<Connection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_LIMIT))
            .set_response_timeout(answer_limit);
        self.noted(async {
            match self.address.servers() {
                RedisServers::Single(at) => {
                    let client = self.address.client(at.clone())?;
                    let server = client.get_multiplexed_async_connection_with_config(&config).await?;
                    Ok(Connection { link: Link::Server(server), primary: None })
                }
                RedisServers::Sentinel(_) => self.connect_to_primary(&config).await,
                RedisServers::Cluster(seeds) => {
                    let cluster = self.cluster_client(seeds)?.get_async_connection().await?;
                    Ok(Connection { link: Link::Cluster(cluster), primary: None })
                }
            }
        })
        .await
    }

    /// A connection for subscriptions, and what watches over it.
    ///
    /// # Errors
    /// Why there is none, within two seconds.
    pub async fn subscribe(self: &Arc<Self>) -> RedisResult<(PubSub, Watch)> {
        self.noted(async {
            let watch = |over| Watch { servers: Arc::clone(self), over };
            match self.address.servers() {
                RedisServers::Single(at) => {
                    Ok((self.address.client(at.clone())?.get_async_pubsub().await?, watch(Over::Server)))
                }
                RedisServers::Sentinel(_) => {
                    let config = AsyncConnectionConfig::new().set_response_timeout(Some(ANSWER_LIMIT));
                    // The role is asked on a connection of its own: this one is for subscriptions only.
                    let Connection { primary, .. } = self.connect_to_primary(&config).await?;
                    let (Some(sentinels), Some(primary)) = (&self.sentinels, primary) else {
                        return Err(nowhere());
                    };
                    let client = self.address.client(sentinels.server(&primary)?)?;
                    Ok((client.get_async_pubsub().await?, watch(Over::Primary(primary))))
                }
                RedisServers::Cluster(seeds) => {
                    let mut failure = nowhere();
                    for at in self.in_random_order(seeds) {
                        match timeout(NODE_LIMIT, self.subscribe_at(at)).await {
                            Ok(Ok((pubsub, node))) => return Ok((pubsub, watch(Over::Node(node)))),
                            Ok(Err(error)) => failure = error,
                            Err(_) => {}
                        }
                    }
                    Err(failure)
                }
            }
        })
        .await
    }

    /// Whether `connection` leads to the server that is known to be the right one.
    pub fn is_current(&self, connection: &Connection) -> bool {
        match &self.sentinels {
            None => true,
            Some(sentinels) => sentinels.known() == connection.primary,
        }
    }

    async fn connect_to_primary(&self, config: &AsyncConnectionConfig) -> RedisResult<Connection> {
        let Some(sentinels) = &self.sentinels else { return Err(nowhere()) };
        let primary = sentinels.ask(&self.address).await?;
        let client = self.address.client(sentinels.server(&primary)?)?;
        let mut server = client.get_multiplexed_async_connection_with_config(config).await?;
        must_be_primary(&mut server).await?;
        Ok(Connection { link: Link::Server(server), primary: Some(primary) })
    }

    fn cluster_client(&self, seeds: &[ConnectionInfo]) -> RedisResult<ClusterClient> {
        let mut builder = ClusterClientBuilder::new(self.nodes_and(seeds))
            .connection_timeout(NODE_LIMIT)
            .response_timeout(ANSWER_LIMIT)
            .retries(RETRIES)
            .min_retry_wait(RETRY_PAUSE.0)
            .max_retry_wait(RETRY_PAUSE.1)
            .tcp_settings(crate::config::tcp_settings());
        if let Some(certificates) = self.address.certificates() {
            builder = builder.certs(certificates);
        }
        builder.build()
    }

    /// Subscriptions at one node of a cluster, if it sees the cluster whole.
    async fn subscribe_at(&self, at: ConnectionInfo) -> RedisResult<(PubSub, MultiplexedConnection)> {
        let client = self.address.client(at)?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(NODE_LIMIT))
            .set_response_timeout(Some(ANSWER_LIMIT));
        let mut node = client.get_multiplexed_async_connection_with_config(&config).await?;
        self.must_see_the_cluster(&mut node).await?;
        Ok((client.get_async_pubsub().await?, node))
    }

    /// Fails where a node is cut off from the rest: it would go on answering, and announce nothing. Learns
    /// of the other nodes besides.
    async fn must_see_the_cluster(&self, node: &mut MultiplexedConnection) -> RedisResult<()> {
        let mut ask = redis::pipe();
        ask.cmd("CLUSTER").arg("INFO").cmd("CLUSTER").arg("SLOTS");
        let (info, slots): (String, Value) = ask.query_async(node).await?;
        if !info.lines().any(|line| line.trim_end() == "cluster_state:ok") {
            return Err(RedisError::from((ErrorKind::Io, "a node does not see the cluster whole")));
        }
        let RedisServers::Cluster(seeds) = self.address.servers() else { return Ok(()) };
        if let Some(like) = seeds.first() {
            let learned =
                endpoints(&slots).into_iter().map(|at| like.clone().set_addr(like_address(like, at)));
            *self.nodes.lock().unwrap_or_else(PoisonError::into_inner) = learned.collect();
        }
        Ok(())
    }

    fn nodes_and(&self, seeds: &[ConnectionInfo]) -> Vec<ConnectionInfo> {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for seed in seeds {
            if !nodes.iter().any(|node| node.addr().to_string() == seed.addr().to_string()) {
                nodes.push(seed.clone());
            }
        }
        nodes
    }

    /// So that the nodes of this server's cluster share those of Redis'.
    fn in_random_order(&self, seeds: &[ConnectionInfo]) -> Vec<ConnectionInfo> {
        let mut nodes = self.nodes_and(seeds);
        // Without randomness the first is as good as any.
        let at = getrandom::u32().map_or(0, |random| random as usize % nodes.len().max(1));
        nodes.rotate_left(at);
        nodes
    }

    /// Bounds an attempt in time, and notes why it failed or that it did not.
    async fn noted<T>(&self, attempt: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
        let late = |_| Err(RedisError::from((ErrorKind::Io, "no answer in time")));
        let result = timeout(WHOLE_LIMIT, Box::pin(attempt)).await.unwrap_or_else(late);
        let problem = result.as_ref().err().map(describe);
        let mut noted = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        if *noted != problem {
            if let Some(problem) = &problem {
                tracing::warn!(problem, "cannot connect to Redis");
            }
            *noted = problem;
        }
        result
    }
}

/// What watches over a subscription.
pub struct Watch {
    servers: Arc<Servers>,
    over: Over,
}

enum Over {
    /// The only server: a subscription to it is right as long as it answers.
    Server,
    /// The primary at the time.
    Primary(Endpoint),
    /// A node of a cluster, with a connection on which it can be asked.
    Node(MultiplexedConnection),
}

impl Watch {
    /// Looks whether the subscription still stands at a server that hears everything. Asks the sentinels
    /// anew, so that writers learn of another primary as well.
    ///
    /// # Errors
    /// Why it does not.
    pub async fn look(&mut self) -> Result<(), &'static str> {
        match &mut self.over {
            Over::Server => Ok(()),
            Over::Primary(at) => {
                let Some(sentinels) = &self.servers.sentinels else { return Ok(()) };
                // Without an answer nothing is known to have changed.
                match sentinels.ask(&self.servers.address).await {
                    Ok(primary) if primary != *at => Err("the sentinels name another primary"),
                    Ok(_) | Err(_) => Ok(()),
                }
            }
            Over::Node(node) => {
                let sees = self.servers.must_see_the_cluster(node).await;
                sees.map_err(|_| "the node of the subscription does not see the cluster whole")
            }
        }
    }
}

/// Fails where a server does not call itself a primary, as one that was demoted.
pub(super) async fn must_be_primary(server: &mut MultiplexedConnection) -> RedisResult<()> {
    match redis::cmd("ROLE").query_async(server).await? {
        Role::Primary { .. } => Ok(()),
        _ => Err(RedisError::from((ErrorKind::Io, "the server that the sentinels name is no primary"))),
    }
}

fn nowhere() -> RedisError {
    RedisError::from((ErrorKind::Io, "no server to connect to"))
}

/// The same way to connect as to `like`, to another server.
fn like_address(like: &ConnectionInfo, (host, port): Endpoint) -> redis::ConnectionAddr {
    match like.addr() {
        redis::ConnectionAddr::TcpTls { insecure, .. } => {
            redis::ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: None }
        }
        _ => redis::ConnectionAddr::Tcp(host, port),
    }
}

/// The nodes in an answer to CLUSTER SLOTS: `[[from, to, [host, port, …], …], …]`.
fn endpoints(slots: &Value) -> Vec<Endpoint> {
    let Value::Array(ranges) = slots else { return Vec::new() };
    let nodes = ranges.iter().filter_map(|range| match range {
        Value::Array(parts) => Some(parts.iter().skip(2)),
        _ => None,
    });
    let mut found: Vec<Endpoint> = nodes
        .flatten()
        .filter_map(|node| match node {
            Value::Array(parts) => {
                let host: String = redis::from_redis_value_ref(parts.first()?).ok()?;
                let port: u16 = redis::from_redis_value_ref(parts.get(1)?).ok()?;
                // A node that does not know its own address leaves it out.
                (!host.is_empty() && host != "?").then_some((host, port))
            }
            _ => None,
        })
        .collect();
    found.sort();
    found.dedup();
    found
}

/// Why a connection failed, for people. What a server or the system says to that holds nothing of the address.
fn describe(error: &RedisError) -> String {
    use std::error::Error as _;
    let io = error.source().and_then(|source| source.downcast_ref::<std::io::Error>());
    if let Some(io) = io {
        return io.to_string();
    }
    match error.detail() {
        Some(detail) => format!("{}: {detail}", error.code().unwrap_or(error.category())),
        None => error.to_string().trim_end_matches(" - Io").to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    #[test]
    fn nodes_are_learned_from_the_slots() {
        let node = |host: &str, port| Value::Array(vec![text(host), Value::Int(port), text("id")]);
        let range = |nodes: Vec<Value>| {
            let bounds = [Value::Int(0), Value::Int(1)];
            Value::Array(bounds.into_iter().chain(nodes).collect())
        };
        let slots = Value::Array(vec![
            range(vec![node("b", 2), node("", 3)]),
            range(vec![node("a", 1), node("b", 2)]),
        ]);
        assert_eq!(endpoints(&slots), [("a".to_owned(), 1), ("b".to_owned(), 2)]);
        assert!(endpoints(&Value::Nil).is_empty());
    }
}
