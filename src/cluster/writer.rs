//! The writer: one connection through which all presence writes of the node go, in pipelines.
//!
//! What is queued while one pipeline is under way becomes the next: no timer, no delay when quiet,
//! large batches when busy. A write that fails, times out or is dropped is not tried again by itself:
//! a new contact begins (see [`super::contact`]), in which everything own is written again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::{RedisResult, Value};
use tokio::time::{sleep, timeout};

use super::bus::Bus;
use super::contact::Write;
use super::pipeline::Encoded;
use super::{keys, link, reader, scripts};
use crate::logging::Seldom;
use crate::redis_pool::Connection;

/// How long a pipeline may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long what all parts of a cluster are asked may take, before it goes on without those that are away.
const PATIENCE_FOR_PARTS: Duration = Duration::from_millis(700);

/// Writes for ever, beginning a new contact whenever one is lost.
pub async fn run(bus: Arc<Bus>) {
    let mut pause = link::Pause::default();
    loop {
        match bus.pool.servers().connect(None).await {
            Ok(connection) => {
                let reason =
                    Writer { bus: &bus, connection, histories: BTreeSet::new() }.serve(&mut pause).await;
                bus.disconnected();
                bus.pool.servers().note_problem(reason);
                tracing::debug!(reason, "contact with Redis ended");
            }
            Err(error) => {
                tracing::debug!(%error, "no connection for presence writes");
                bus.note_unreachable();
            }
        }
        sleep(pause.next()).await;
    }
}

struct Writer<'a> {
    bus: &'a Bus,
    connection: Connection,
    /// The replication histories in which everything of this contact is written.
    histories: BTreeSet<String>,
}

/// Why a pipeline failed.
enum Failure {
    /// Redis does not have our scripts (any more).
    NoScript,
    /// The connection, or the server behind it, is of no use.
    Lost(&'static str),
}

impl Writer<'_> {
    async fn serve(&mut self, pause: &mut link::Pause) -> &'static str {
        if let Err(reason) = self.prepare().await {
            return reason;
        }
        self.bus.connected();
        loop {
            let writes = self.bus.next_batch();
            if writes.is_empty() {
                self.bus.queued.notified().await;
                continue;
            }
            if let Err(reason) = self.carry_out(writes).await {
                self.bus.metrics.redis_write_failures.inc();
                return reason;
            }
            pause.reset();
            self.bus.set_writer_up(true);
        }
    }

    /// What comes before the first write. In a cluster of which a part is away this node's lease must live
    /// all the same, or the others, which may have less to write there, would say goodbye to this node.
    async fn prepare(&mut self) -> Result<(), &'static str> {
        let in_parts = self.bus.keys.is_tagged();
        if in_parts {
            let mut prolong = redis::cmd("PEXPIRE");
            prolong.arg(keys::lease(self.bus.node)).arg(self.bus.node_ttl.as_millis() as u64);
            let prolong = prolong.query_async::<()>(&mut self.connection);
            // If it is the part with the lease that is away, nobody can look at any lease.
            let _ = timeout(PATIENCE_FOR_PARTS, prolong).await;
        }
        let patience = if in_parts { PATIENCE_FOR_PARTS } else { PATIENCE };
        if !matches!(timeout(patience, self.load_scripts()).await, Ok(true)) && !in_parts {
            return Err("could not load the scripts");
        }
        self.histories = match timeout(patience, self.histories()).await.ok().flatten() {
            Some(histories) => histories,
            None if in_parts => BTreeSet::new(),
            None => return Err("could not ask for the replication history"),
        };
        self.bus.set_histories(&self.histories);
        Ok(())
    }

    async fn load_scripts(&mut self) -> bool {
        for script in scripts::LOADED {
            if !matches!(timeout(PATIENCE, script().load_async(&mut self.connection)).await, Ok(Ok(_))) {
                return false;
            }
        }
        true
    }

    async fn carry_out(&mut self, writes: Vec<Write>) -> Result<(), &'static str> {
        let started = Instant::now();
        self.bus.metrics.redis_writes.inc_by(writes.len() as u64);
        let encoded = Encoded::new(self.bus, &writes);
        let replies = match self.execute(&encoded).await {
            Err(Failure::NoScript) => {
                if !self.load_scripts().await {
                    return Err("could not load the scripts");
                }
                self.execute(&encoded).await
            }
            other => other,
        };
        // Once a second, and before it is said that something stands which may have been lost.
        if writes.iter().any(|write| matches!(write, Write::Renew { .. })) {
            self.look_around().await?;
        }
        match replies {
            Ok(replies) => self.bus.replied(writes, encoded.decode(&replies)),
            Err(Failure::Lost(reason)) => return Err(reason),
            Err(Failure::NoScript) => return Err("Redis loses our scripts"),
        }
        self.bus.metrics.redis_batch_seconds.observe(started.elapsed().as_secs_f64());
        Ok(())
    }

    /// Whether what was written is still with the servers that are written to.
    async fn look_around(&mut self) -> Result<(), &'static str> {
        if !self.bus.pool.servers().is_current(&self.connection) {
            return Err("the sentinels name another primary");
        }
        let Some(histories) = self.histories().await else {
            return Err("could not ask for the replication history");
        };
        if self.histories.is_empty() || !histories.is_superset(&self.histories) {
            // A replica took over, or a server came back with what it had on disk.
            return Err("Redis has another replication history");
        }
        self.bus.set_histories(&histories);
        self.histories = histories;
        Ok(())
    }

    async fn histories(&mut self) -> Option<BTreeSet<String>> {
        timeout(PATIENCE, self.connection.histories()).await.ok()?.ok()
    }

    async fn execute(&mut self, encoded: &Encoded) -> Result<Vec<Value>, Failure> {
        let pipeline = &encoded.pipeline;
        if pipeline.is_empty() {
            return Ok(Vec::new());
        }
        let asked = pipeline.query_async::<Vec<RedisResult<Value>>>(&mut self.connection);
        let replies = match timeout(PATIENCE, asked).await {
            Ok(Ok(replies)) => replies,
            Ok(Err(_)) => return Err(Failure::Lost("the connection broke")),
            Err(_) => return Err(Failure::Lost("no answer in time")),
        };
        let incomplete = |reply: &RedisResult<Value>| {
            reply.as_ref().err().is_some_and(|error| error.code() == Some("INCOMPLETE"))
        };
        if let Some(at) = replies.iter().position(incomplete) {
            // If a hash is gone for good, nothing stands in the way of the next contact.
            if let Some(channel) = encoded.rewritten(at) {
                let _ = reader::sweep_all(self.bus, channel).await;
            }
            return Err(Failure::Lost("a slot of the cluster is moving"));
        }
        replies
            .into_iter()
            .map(|reply| match reply {
                Ok(value) => Ok(value),
                Err(error) if error.code() == Some("NOSCRIPT") => Err(Failure::NoScript),
                Err(error)
                    if matches!(
                        error.code(),
                        Some("READONLY" | "LOADING" | "MASTERDOWN" | "MISCONF" | "OOM" | "NOREPLICAS")
                    ) =>
                {
                    Err(Failure::Lost("the server cannot be written to"))
                }
                // Of a channel whose slot is moving, the script met a key that is on the other server.
                Err(error) if error.detail().is_some_and(|detail| detail.contains("non local key")) => {
                    Err(Failure::Lost("a slot of the cluster is moving"))
                }
                Err(error) => {
                    static REFUSED: Seldom = Seldom::new();
                    if let Some(times) = REFUSED.count() {
                        tracing::error!(code = error.code(), times, "Redis refused a presence write");
                    }
                    Ok(Value::Nil)
                }
            })
            .collect()
    }
}
