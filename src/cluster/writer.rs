//! The writer: one connection through which all presence writes of the node go, in pipelines.
//!
//! What is queued while one pipeline is under way becomes the next: no timer, no delay when quiet,
//! large batches when busy. A write that fails, times out or is dropped is not tried again by itself:
//! a new contact begins, in which every channel writes the whole of its own part. All scripts are
//! safe to repeat, so a write that was executed though its answer was lost does no harm.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::Recipient;
use futures_util::future::join_all;
use indexmap::IndexMap;
use redis::{Pipeline, RedisResult, Script, ScriptInvocation, Value};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::bus::{Bus, Seats, Write};
use super::{Told, keys, lease, link, scripts, wire};
use crate::keys::encode;
use crate::presence::{Batch, NodeId, Op};
use crate::redis_pool::Connection;

/// Writes in one pipeline.
const MAX_BATCH: usize = 1_000;
/// Seats in one script call, so that none holds Redis up for long.
const CHUNK: usize = 500;
/// How long a pipeline may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Writes for ever, beginning a new contact whenever one is lost.
pub async fn run(bus: Arc<Bus>, mut queue: mpsc::Receiver<Write>) {
    let mut pause = link::Pause::default();
    loop {
        match bus.pool.servers().connect(None).await {
            Ok(connection) => {
                let reason = Writer { bus: &bus, connection }.serve(&mut queue, &mut pause).await;
                bus.unsettle();
                bus.set_writer_up(false);
                tracing::debug!(reason, "contact with Redis ended");
            }
            Err(error) => tracing::debug!(%error, "no connection for presence writes"),
        }
        // What waits now is written with everything else in the next contact.
        while queue.try_recv().is_ok() {}
        sleep(pause.next()).await;
    }
}

struct Writer<'a> {
    bus: &'a Arc<Bus>,
    connection: Connection,
}

/// Why a pipeline failed.
enum Failure {
    /// Redis does not have our scripts (any more).
    NoScript,
    /// The connection, or the server behind it, is of no use.
    Lost(&'static str),
}

impl Writer<'_> {
    async fn serve(&mut self, queue: &mut mpsc::Receiver<Write>, pause: &mut link::Pause) -> &'static str {
        if !self.load_scripts().await {
            return "could not load the scripts";
        }
        self.bus.take_dropped();
        if !self.begin_contact().await {
            return "could not set the lease";
        }
        pause.reset();
        self.bus.set_writer_up(true);
        let mut writes = Vec::with_capacity(MAX_BATCH);
        loop {
            tokio::select! {
                received = queue.recv_many(&mut writes, MAX_BATCH) => if received == 0 { return "stopping" },
                () = self.bus.lost.notified() => {
                    if !self.begin_contact().await {
                        return "could not set the lease";
                    }
                    continue;
                }
            }
            if let Err(reason) = self.flush(std::mem::take(&mut writes)).await {
                self.bus.metrics.redis_write_failures.inc();
                return reason;
            }
            if self.bus.take_dropped() && !self.begin_contact().await {
                return "could not set the lease";
            }
        }
    }

    /// Begins with a Redis that may hold nothing of ours, or too much.
    async fn begin_contact(&mut self) -> bool {
        if self.bus.has_left() {
            return true;
        }
        let contact = self.bus.begin_contact();
        // The lease first: nobody believes the part of a node that they do not know and that has none.
        let first = lease::first(self.bus);
        let first = first.query_async::<()>(&mut self.connection);
        if !matches!(timeout(PATIENCE, first).await, Ok(Ok(()))) {
            return false;
        }
        write_everything_again(Arc::clone(self.bus), contact);
        true
    }

    async fn load_scripts(&mut self) -> bool {
        for script in [&*scripts::APPLY, &*scripts::REWRITE, &*scripts::BEAT] {
            if !matches!(timeout(PATIENCE, script.load_async(&mut self.connection)).await, Ok(Ok(_))) {
                return false;
            }
        }
        true
    }

    async fn flush(&mut self, writes: Vec<Write>) -> Result<(), &'static str> {
        let started = Instant::now();
        self.bus.metrics.redis_writes.inc_by(writes.len() as u64);
        let batch = PipelineBatch::of(self.bus, writes);
        let replies = match self.execute(&batch.pipeline).await {
            Err(Failure::NoScript) => {
                if !self.load_scripts().await {
                    return Err("could not load the scripts");
                }
                self.execute(&batch.pipeline).await
            }
            other => other,
        };
        match replies {
            Ok(replies) => batch.deliver(self.bus, replies),
            Err(Failure::Lost(reason)) => return Err(reason),
            Err(Failure::NoScript) => return Err("Redis loses our scripts"),
        }
        self.bus.metrics.redis_batch_seconds.observe(started.elapsed().as_secs_f64());
        Ok(())
    }

    async fn execute(&mut self, pipeline: &Pipeline) -> Result<Vec<Value>, Failure> {
        if pipeline.is_empty() {
            return Ok(Vec::new());
        }
        let asked = pipeline.query_async::<Vec<RedisResult<Value>>>(&mut self.connection);
        let replies = match timeout(PATIENCE, asked).await {
            Ok(Ok(replies)) => replies,
            Ok(Err(_)) => return Err(Failure::Lost("the connection broke")),
            Err(_) => return Err(Failure::Lost("no answer in time")),
        };
        replies
            .into_iter()
            .map(|reply| match reply {
                Ok(value) => Ok(value),
                Err(error) if error.code() == Some("NOSCRIPT") => Err(Failure::NoScript),
                Err(error)
                    if matches!(
                        error.code(),
                        Some("READONLY" | "LOADING" | "MASTERDOWN" | "MISCONF" | "OOM")
                    ) =>
                {
                    Err(Failure::Lost("the server cannot be written to"))
                }
                Err(error) => {
                    tracing::error!(code = error.code(), "Redis refused a presence write");
                    Ok(Value::Nil)
                }
            })
            .collect()
    }
}

/// Has every channel queue the whole of its own part, some at a time so that the queue holds them, clears
/// what channels left behind that have ended, and puts a barrier behind. Another contact puts an end to it.
fn write_everything_again(bus: Arc<Bus>, contact: u64) {
    let channels: Vec<Recipient<Told>> = bus.listeners().by_topic.values().map(|l| l.to.clone()).collect();
    tokio::task::spawn_local(async move {
        for some in channels.chunks(MAX_BATCH) {
            // An answer, or the channel's end: either way it has nothing more to queue.
            join_all(some.iter().map(|channel| channel.send(Told::WriteAgain))).await;
            bus.room().await;
            if bus.contact() != contact {
                return;
            }
        }
        let mut listed = redis::cmd("SMEMBERS");
        listed.arg(keys::channels(bus.node));
        match bus.pool.query::<Vec<String>>(&listed).await {
            Ok(written) => written.iter().for_each(|channel| bus.close_if_ended(channel)),
            // Not settled, then; the lease task or the next failure begins another contact.
            Err(error) => {
                tracing::debug!(%error, "could not look for channels that have ended");
                sleep(PATIENCE).await;
                return bus.lost.notify_one();
            }
        }
        bus.write_when_possible(Write::Barrier { contact }).await;
    });
}

/// Takes everything of `node` out of `channel`. Answers what was there: user, field, user, field, …
pub fn clearing(bus: &Bus, node: NodeId, channel: &str) -> ScriptInvocation<'static> {
    let script: &'static Script = &scripts::REWRITE;
    let mut call = script.prepare_invoke();
    call.key(keys::users(channel)).key(keys::versions(channel));
    call.arg(bus.presence_ttl.as_secs()).arg(node.to_string()).arg("");
    call.arg(keys::topic(channel)).arg("").arg(keys::user_prefix(channel));
    call
}

/// A heartbeat whose answer is awaited.
struct Beat {
    first_reply: usize,
    seats: Vec<u64>,
    to: Recipient<Told>,
}

/// Many writes as one pipeline, and what its replies mean.
struct PipelineBatch {
    pipeline: Pipeline,
    /// Replies that will come: those of scripts and of renewals, the only ones not ignored.
    replies: usize,
    renewals: Vec<usize>,
    beats: Vec<Beat>,
    barriers: Vec<u64>,
}

impl PipelineBatch {
    fn of(bus: &Bus, writes: Vec<Write>) -> Self {
        let mut pipeline = Pipeline::with_capacity(writes.len() * 3);
        pipeline.ignore_errors();
        let mut batch =
            Self { pipeline, replies: 0, renewals: Vec::new(), beats: Vec::new(), barriers: Vec::new() };
        let mut merged: IndexMap<Arc<str>, Merged> = IndexMap::new();
        for write in writes {
            match write {
                Write::Changes { channel, batch: changes } => {
                    merged.entry(channel).or_insert_with(|| Merged::new(changes.from)).add(changes);
                }
                other => {
                    // The order within a channel is kept: its changes first.
                    if let Some(channel) = other.channel()
                        && let Some(changes) = merged.shift_remove(channel)
                    {
                        batch.changes(bus, channel, changes);
                    }
                    batch.other(bus, other);
                }
            }
        }
        for (channel, changes) in merged {
            batch.changes(bus, &channel, changes);
        }
        batch
    }

    fn changes(&mut self, bus: &Bus, channel: &str, changes: Merged) {
        let batch = Batch { from: changes.from, to: changes.to, ops: changes.ops.into_values().collect() };
        match wire::announcement(bus.node, &batch) {
            Ok(message) => {
                self.apply(bus, channel, batch.to, &batch.ops, &message);
                self.list(bus, channel);
            }
            Err(error) => tracing::error!(channel, %error, "a change could not be announced"),
        }
    }

    fn other(&mut self, bus: &Bus, write: Write) {
        match write {
            // Merged by the caller.
            Write::Changes { .. } => {}
            Write::Again { channel, version, seats } => self.rewrite(bus, &channel, version, &seats),
            Write::Repair { channel, version, ops } => {
                for chunk in ops.chunks(CHUNK) {
                    self.apply(bus, &channel, version, chunk, "");
                }
            }
            Write::Beat { channel, version, seats, to } => self.beat(bus, &channel, version, &seats, to),
            Write::Close { channel } => {
                self.script(&clearing(bus, bus.node, &channel));
                self.pipeline.cmd("SREM").arg(keys::channels(bus.node)).arg(&*channel).ignore();
            }
            Write::Renew => {
                self.renewals.push(self.replies);
                self.pipeline.add_command(lease::renewal(bus));
                self.replies += 1;
                lease::list(bus, &mut self.pipeline);
            }
            Write::Barrier { contact } => self.barriers.push(contact),
        }
    }

    fn apply(&mut self, bus: &Bus, channel: &str, version: u64, ops: &[Op], message: &str) {
        let prefix = keys::user_prefix(channel);
        let mut call = scripts::APPLY.prepare_invoke();
        call.key(keys::users(channel)).key(keys::versions(channel));
        call.arg(bus.presence_ttl.as_secs()).arg(bus.node.to_string()).arg(version);
        call.arg(keys::topic(channel)).arg(message);
        for op in ops {
            let value = op.entry.as_ref().map_or(Ok(String::new()), |entry| wire::value(bus.node, entry));
            let Ok(value) = value else { continue };
            call.key(format!("{prefix}{}", encode(&op.user)));
            call.arg(&*op.user).arg(keys::field(bus.node, op.seat)).arg(value);
            self.index(bus, channel, op);
        }
        self.script(&call);
    }

    fn rewrite(&mut self, bus: &Bus, channel: &str, version: u64, seats: &Seats) {
        if version == 0 {
            return;
        }
        // Nothing in it but the version: whoever does not have that version reads the channel.
        let touched = wire::announcement(bus.node, &Batch { from: version, to: version, ops: Vec::new() });
        let mut call = scripts::REWRITE.prepare_invoke();
        call.key(keys::users(channel)).key(keys::versions(channel));
        call.arg(bus.presence_ttl.as_secs()).arg(bus.node.to_string()).arg(version);
        call.arg(keys::topic(channel)).arg(touched.unwrap_or_default()).arg(keys::user_prefix(channel));
        for (seat, entry) in seats {
            let Ok(value) = wire::value(bus.node, entry) else { continue };
            call.arg(&*entry.user).arg(keys::field(bus.node, *seat)).arg(value);
            let op = Op { seat: *seat, user: Arc::clone(&entry.user), entry: Some(Arc::clone(entry)) };
            self.index(bus, channel, &op);
        }
        self.script(&call);
        self.list(bus, channel);
    }

    fn beat(&mut self, bus: &Bus, channel: &str, version: u64, seats: &Seats, to: Recipient<Told>) {
        let prefix = keys::user_prefix(channel);
        let first_reply = self.replies;
        // At least one call, also where nobody of ours is in: it says what the others have.
        let mut chunks = seats.chunks(CHUNK);
        let mut chunk = chunks.next().unwrap_or_default();
        loop {
            let mut call = scripts::BEAT.prepare_invoke();
            call.key(keys::users(channel)).key(keys::versions(channel));
            call.arg(bus.presence_ttl.as_secs()).arg(bus.node.to_string());
            call.arg(if version == 0 { String::new() } else { version.to_string() });
            for (seat, entry) in chunk {
                call.key(format!("{prefix}{}", encode(&entry.user)));
                call.arg(&*entry.user).arg(keys::field(bus.node, *seat));
                let op = Op { seat: *seat, user: Arc::clone(&entry.user), entry: Some(Arc::clone(entry)) };
                self.index(bus, channel, &op);
            }
            self.script(&call);
            match chunks.next() {
                Some(next) => chunk = next,
                None => break,
            }
        }
        if version != 0 {
            self.list(bus, channel);
        }
        let seats = seats.iter().map(|(seat, _)| *seat).collect();
        self.beats.push(Beat { first_reply, seats, to });
    }

    /// Keeps the index by user in step: where a user is, and when the user was last seen.
    fn index(&mut self, bus: &Bus, channel: &str, op: &Op) {
        let key = keys::connections(&op.user);
        let field = keys::field(bus.node, op.seat);
        if op.entry.is_some() {
            self.pipeline.cmd("HSET").arg(&key).arg(field).arg(channel).ignore();
            self.pipeline.cmd("EXPIRE").arg(&key).arg(bus.presence_ttl.as_secs()).ignore();
        } else {
            self.pipeline.cmd("HDEL").arg(&key).arg(field).ignore();
            super::note_last_seen(&mut self.pipeline, &op.user, bus.last_seen_ttl);
        }
    }

    /// Lists the channel among those in which this node has written.
    fn list(&mut self, bus: &Bus, channel: &str) {
        let key = keys::channels(bus.node);
        self.pipeline.cmd("SADD").arg(&key).arg(channel).ignore();
        self.pipeline.cmd("EXPIRE").arg(&key).arg(bus.presence_ttl.as_secs()).ignore();
    }

    fn script(&mut self, call: &ScriptInvocation<'_>) {
        self.pipeline.invoke_script(call);
        self.replies += 1;
    }

    /// Hands the replies to whom they concern.
    fn deliver(self, bus: &Bus, replies: Vec<Value>) {
        for beat in &self.beats {
            beat.deliver(&replies);
        }
        for contact in self.barriers {
            bus.settle(contact);
        }
        if self.renewals.iter().any(|at| matches!(replies.get(*at), Some(Value::Nil))) {
            bus.doubt();
        }
    }
}

impl Beat {
    fn deliver(&self, replies: &[Value]) {
        let chunks = self.seats.len().div_ceil(CHUNK).max(1);
        let (mut versions, mut missing) = (HashMap::new(), Vec::new());
        for at in 0..chunks {
            let Some(reply) = replies.get(self.first_reply + at) else { return };
            let Ok((gone, found)) = redis::from_redis_value_ref::<(Vec<usize>, Vec<(String, u64)>)>(reply)
            else {
                return;
            };
            missing.extend(gone.iter().filter_map(|n| self.seats.get(at * CHUNK + n.checked_sub(1)?)));
            versions =
                found.into_iter().filter_map(|(node, v)| Some((node.parse::<NodeId>().ok()?, v))).collect();
        }
        self.to.do_send(Told::Beaten { versions, missing });
    }
}

impl Write {
    fn channel(&self) -> Option<&Arc<str>> {
        match self {
            Write::Changes { channel, .. }
            | Write::Again { channel, .. }
            | Write::Repair { channel, .. }
            | Write::Beat { channel, .. }
            | Write::Close { channel } => Some(channel),
            Write::Renew | Write::Barrier { .. } => None,
        }
    }
}

/// Consecutive batches of one channel as one: the last word on each seat counts.
struct Merged {
    from: u64,
    to: u64,
    ops: IndexMap<u64, Op>,
}

impl Merged {
    fn new(from: u64) -> Self {
        Self { from, to: from, ops: IndexMap::new() }
    }

    fn add(&mut self, batch: Batch) {
        self.to = batch.to;
        self.ops.extend(batch.ops.into_iter().map(|op| (op.seat, op)));
    }
}
