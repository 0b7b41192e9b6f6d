//! A connection for commands, whatever kind of Redis is behind it.
//!
//! A pipeline for a cluster may name keys of any slots: it is sent as one pipeline for each slot, all at the
//! same time. Within a slot the order is kept, and answers come in the order of the commands. A transaction
//! must stay within one slot.

use std::collections::{BTreeSet, HashMap};

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use indexmap::IndexMap;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{MultipleNodeRoutingInfo, Route, RoutingInfo, SingleNodeRoutingInfo, SlotAddr};
use redis::{Arg, Cmd, Pipeline, RedisFuture, RedisResult, Value};

/// The host and port of one server.
pub type Endpoint = (String, u16);

/// A connection to a server, or to all of a cluster.
#[derive(Clone)]
pub struct Connection {
    pub(super) link: Link,
    /// The server that the sentinels named, where there are sentinels.
    pub(super) primary: Option<Endpoint>,
}

#[derive(Clone)]
pub(super) enum Link {
    Server(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Connection {
    /// The replication histories (`master_replid`) of the primaries that this connection leads to. A server
    /// has another after a restart, and after it took over from its primary: then it may lack the last writes.
    /// Of a server that does not tell it is `?`.
    ///
    /// # Errors
    /// What the library says.
    pub async fn histories(&mut self) -> RedisResult<BTreeSet<String>> {
        let infos = self.info("replication").await?;
        Ok(infos.iter().map(|info| field(info, "master_replid").unwrap_or("?").to_owned()).collect())
    }

    /// How much memory the primaries use that this connection leads to, and how much they may: bytes, the sum
    /// over all; 0 for no limit, or where a server does not tell.
    ///
    /// # Errors
    /// What the library says.
    pub async fn memory(&mut self) -> RedisResult<(u64, u64)> {
        let infos = self.info("memory").await?;
        let sum = |name| infos.iter().filter_map(|info| field(info, name)?.parse::<u64>().ok()).sum();
        Ok((sum("used_memory"), sum("maxmemory")))
    }

    /// A section of what each primary says of itself; empty for one that may not be asked.
    async fn info(&mut self, section: &str) -> RedisResult<Vec<String>> {
        let info = redis::cmd("INFO").arg(section).to_owned();
        let answer = match &mut self.link {
            Link::Server(server) => info.query_async::<String>(server).await.map(|info| vec![info]),
            Link::Cluster(cluster) => {
                let all = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
                cluster.route_command(info, all).await.and_then(|infos| {
                    Ok(redis::from_redis_value::<HashMap<String, String>>(infos)?.into_values().collect())
                })
            }
        };
        match answer {
            Err(error) if error.code() == Some("NOPERM") => Ok(vec![String::new()]),
            answer => answer,
        }
    }
}

/// The value of `name` in what INFO told.
fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.trim_end().strip_prefix(name)?.strip_prefix(':'))
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match &mut self.link {
            Link::Server(server) => server.req_packed_command(cmd),
            Link::Cluster(cluster) => cluster.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match &mut self.link {
            Link::Server(server) => server.req_packed_commands(pipeline, offset, count),
            Link::Cluster(cluster) => {
                if pipeline.is_transaction() {
                    cluster.req_packed_commands(pipeline, offset, count)
                } else {
                    slot_by_slot(cluster, pipeline).boxed()
                }
            }
        }
    }

    fn get_db(&self) -> i64 {
        match &self.link {
            Link::Server(server) => server.get_db(),
            Link::Cluster(cluster) => cluster.get_db(),
        }
    }
}

/// The commands of one slot, and where in the whole they stand.
#[derive(Default)]
struct OfSlot {
    pipeline: Pipeline,
    at: Vec<usize>,
}

/// Sends all commands and waits for all answers, also where one slot fails: the others are served.
async fn slot_by_slot(cluster: &ClusterConnection, pipeline: &Pipeline) -> RedisResult<Vec<Value>> {
    let mut slots: IndexMap<Route, OfSlot> = IndexMap::new();
    let mut others = Vec::new();
    for (at, cmd) in pipeline.cmd_iter().enumerate() {
        match route(cmd) {
            Some(route) => {
                let of_slot = slots.entry(route).or_default();
                of_slot.pipeline.add_command(cmd.clone());
                of_slot.at.push(at);
            }
            None => others.push((at, cmd)),
        }
    }
    let in_slots = slots.into_iter().map(|(route, OfSlot { pipeline, at })| {
        let mut cluster = cluster.clone();
        async move {
            let route = SingleNodeRoutingInfo::SpecificNode(route);
            let answers = cluster.route_pipeline(pipeline, 0, at.len(), route).await?;
            Ok(at.into_iter().zip(answers).collect())
        }
        .boxed()
    });
    let one_by_one = others.into_iter().map(|(at, cmd)| {
        let mut cluster = cluster.clone();
        async move { Ok(vec![(at, cluster.req_packed_command(cmd).await?)]) }.boxed()
    });
    let mut answers = vec![Value::Nil; pipeline.len()];
    let found: Vec<RedisResult<Vec<(usize, Value)>>> = join_all(in_slots.chain(one_by_one)).await;
    for found in found {
        for (at, answer) in found? {
            answers[at] = answer;
        }
    }
    Ok(answers)
}

/// Where a command with one key goes: always to the primary, since replicas lag. None for a command without
/// a key, or with keys that may lie in several slots; the library sends the parts of those by itself.
fn route(cmd: &Cmd) -> Option<Route> {
    let mut words = cmd.args_iter().filter_map(|word| match word {
        Arg::Simple(word) => Some(word),
        _ => None,
    });
    let key = match words.next()? {
        b"EVAL" | b"EVALSHA" => {
            let keys = words.nth(1)?;
            words.next().filter(|_| keys != b"0")
        }
        b"MGET" | b"DEL" | b"EXISTS" | b"UNLINK" => words.next().filter(|_| words.next().is_none()),
        b"SCRIPT" | b"INFO" | b"CLUSTER" | b"PING" => None,
        _ => words.next(),
    }?;
    Some(Route::with_key(key, SlotAddr::Master))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_of_a_channel_go_one_way_and_those_of_many_slots_no_single_way() {
        let users = Route::with_key("presence:channel:{a}:users", SlotAddr::Master);
        let get = redis::cmd("SMEMBERS").arg("presence:channel:{a}:nodes").to_owned();
        let eval =
            redis::cmd("EVALSHA").arg("hash").arg(1).arg("presence:channel:{a}:user:x").arg("y").to_owned();
        assert_eq!((route(&get), route(&eval)), (Some(users), Some(users)));
        assert_ne!(route(redis::cmd("GET").arg("b")), Some(users));
        assert_eq!(route(redis::cmd("MGET").arg("a").arg("b")), None);
        assert_eq!(route(redis::cmd("EVAL").arg("return 1").arg(0).arg("a")), None);
        assert_eq!(route(redis::cmd("SCRIPT").arg("LOAD").arg("return 1")), None);
    }
}
