//! The pipeline: many writes as commands for Redis, and what its replies mean.
//!
//! Only scripts, renewals and lists are answered; the replies to all else are ignored. All of it is safe
//! to repeat, so a write that was executed though its answer was lost does no harm.

use std::collections::HashMap;
use std::sync::Arc;

use redis::{Cmd, Pipeline, Script, ScriptInvocation, Value};

use super::bus::Bus;
use super::contact::{Reply, Seats, Write};
use super::{keys, scripts, wire};
use crate::keys::encode;
use crate::presence::{Batch, NodeId, Op};

/// Seats in one script call, so that none holds Redis up for long.
const CHUNK: usize = 500;
/// Everything own stands in Redis: what of this node is not there does not exist.
pub const SETTLED: &str = "settled";
/// This node is still writing.
const WRITING: &str = "writing";

/// What the replies to one write will be.
enum Expected {
    /// Nothing that matters.
    Done,
    Renewed(usize),
    Beaten {
        first_reply: usize,
        seats: Vec<u64>,
    },
    Listed(usize),
}

/// Many writes as one pipeline.
pub struct Encoded {
    pub pipeline: Pipeline,
    replies: usize,
    expected: Vec<Expected>,
}

impl Encoded {
    /// `writes` as commands.
    pub fn new(bus: &Bus, writes: &[Write]) -> Self {
        let mut pipeline = Pipeline::with_capacity(writes.len() * 3);
        pipeline.ignore_errors();
        let mut encoded = Self { pipeline, replies: 0, expected: Vec::with_capacity(writes.len()) };
        for write in writes {
            let expected = encoded.write(bus, write);
            encoded.expected.push(expected);
        }
        encoded
    }

    /// What Redis answered, one reply for each write.
    pub fn decode(self, replies: &[Value]) -> Vec<Reply> {
        self.expected.into_iter().map(|expected| expected.decode(replies)).collect()
    }

    fn write(&mut self, bus: &Bus, write: &Write) -> Expected {
        match write {
            Write::Lease => {
                let ttl = bus.node_ttl.as_millis() as u64;
                self.pipeline.pset_ex(keys::lease(bus.node), WRITING, ttl).ignore();
                self.list_node(bus);
            }
            Write::Renew { settled } => {
                let at = self.command(&renewal(bus, *settled));
                self.list_node(bus);
                return Expected::Renewed(at);
            }
            Write::Changes { channel, batch } => self.changes(bus, channel, batch),
            Write::Again { channel, version, seats } => self.rewrite(bus, channel, *version, seats),
            Write::Repair { channel, version, ops } => {
                for chunk in ops.chunks(CHUNK) {
                    self.apply(bus, channel, *version, chunk, "");
                }
            }
            Write::Beat { channel, version, seats } => return self.beat(bus, channel, *version, seats),
            Write::Close { channel } => {
                self.script(&clearing(bus, bus.node, channel));
                self.pipeline.cmd("SREM").arg(keys::channels(bus.node)).arg(&**channel).ignore();
            }
            Write::List { .. } => {
                let mut members = redis::cmd("SMEMBERS");
                members.arg(keys::channels(bus.node));
                return Expected::Listed(self.command(&members));
            }
            Write::Barrier { .. } => {}
        }
        Expected::Done
    }

    fn changes(&mut self, bus: &Bus, channel: &str, batch: &Batch) {
        match wire::announcement(bus.node, batch) {
            Ok(message) => {
                self.apply(bus, channel, batch.to, &batch.ops, &message);
                self.list(bus, channel);
            }
            Err(error) => tracing::error!(channel, %error, "a change could not be announced"),
        }
    }

    /// Keeps this node listed, and the list of its channels, as long as presence keys live.
    fn list_node(&mut self, bus: &Bus) {
        let presence_ttl = bus.presence_ttl.as_secs() as i64;
        self.pipeline.sadd(keys::NODES, bus.node.to_string()).ignore();
        self.pipeline.expire(keys::NODES, presence_ttl).ignore();
        self.pipeline.expire(keys::channels(bus.node), presence_ttl).ignore();
    }

    /// A command whose reply matters: which of the replies it is.
    fn command(&mut self, command: &Cmd) -> usize {
        self.pipeline.add_command(command.clone());
        self.replies += 1;
        self.replies - 1
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
            let hash = format!("{prefix}{}", encode(&op.user));
            // The seat that this one was taken over from goes at once: its holder may be dead.
            if let Some(origin) = op.entry.as_ref().and_then(|entry| entry.origin.as_deref()) {
                let over = keys::field(origin.over.node, origin.over.number);
                call.key(hash.as_str()).arg(&*op.user).arg(over).arg("");
            }
            call.key(hash).arg(&*op.user).arg(keys::field(bus.node, op.seat)).arg(value);
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

    fn beat(&mut self, bus: &Bus, channel: &str, version: u64, seats: &Seats) -> Expected {
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
        Expected::Beaten { first_reply, seats }
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
}

impl Expected {
    fn decode(self, replies: &[Value]) -> Reply {
        match self {
            Self::Done => Reply::Done,
            Self::Renewed(at) if matches!(replies.get(at), Some(Value::Nil)) => Reply::NoLease,
            Self::Renewed(_) => Reply::Done,
            Self::Listed(at) => {
                let listed = replies.get(at).and_then(|reply| redis::from_redis_value_ref(reply).ok());
                listed.map_or(Reply::Done, |listed: Vec<String>| {
                    Reply::Listed(listed.into_iter().map(Arc::from).collect())
                })
            }
            Self::Beaten { first_reply, seats } => {
                decode_beat(first_reply, &seats, replies).unwrap_or(Reply::Done)
            }
        }
    }
}

fn decode_beat(first_reply: usize, seats: &[u64], replies: &[Value]) -> Option<Reply> {
    let chunks = seats.len().div_ceil(CHUNK).max(1);
    let (mut versions, mut missing) = (HashMap::new(), Vec::new());
    for at in 0..chunks {
        let reply = replies.get(first_reply + at)?;
        let (gone, found): (Vec<usize>, Vec<(String, u64)>) = redis::from_redis_value_ref(reply).ok()?;
        missing.extend(gone.iter().filter_map(|n| seats.get(at * CHUNK + n.checked_sub(1)?)));
        versions =
            found.into_iter().filter_map(|(node, v)| Some((node.parse::<NodeId>().ok()?, v))).collect();
    }
    Some(Reply::Beaten { versions, missing })
}

/// Makes the lease last. Answers nil, and does nothing, if there is none.
fn renewal(bus: &Bus, settled: bool) -> Cmd {
    let mut set = redis::cmd("SET");
    set.arg(keys::lease(bus.node)).arg(if settled { SETTLED } else { WRITING });
    set.arg("PX").arg(bus.node_ttl.as_millis() as u64).arg("XX");
    set
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
