//! The pipeline: many writes as commands for Redis, and what its replies mean.
//!
//! Only scripts, renewals and lists are answered; the replies to all else are ignored. All of it is safe
//! to repeat, so a write that was executed though its answer was lost does no harm.

use std::collections::HashMap;
use std::sync::Arc;

use redis::{Cmd, Pipeline, Script, ScriptInvocation, Value};

use super::bus::Bus;
use super::contact::{Reply, Seats, Write};
use super::places::Location;
use super::{contact, keys, nearby, scripts, wire};
use crate::presence::{Batch, NodeId, Op};

/// Seats in one script call, so that none holds Redis up for long.
const CHUNK: usize = 500;
/// Everything own stands in Redis: what of this node is not there does not exist. The replication histories
/// in which it was written follow, so that it is not believed of a server that has another.
const SETTLED: &str = "settled";
/// This node is still writing.
const WRITING: &str = "writing";

/// What the replies to one write will be.
enum Expected {
    /// Nothing that matters.
    Done,
    Renewed(usize),
    Applied(usize),
    Beaten {
        first_reply: usize,
        seats: Vec<u64>,
    },
    Rewritten(usize),
    Listed(usize),
}

/// Many writes as one pipeline.
pub struct Encoded {
    pub pipeline: Pipeline,
    replies: usize,
    expected: Vec<Expected>,
    /// The channels that replies are about whose scripts may find a channel incomplete.
    rewritten: HashMap<usize, Arc<str>>,
}

impl Encoded {
    /// `writes` as commands.
    pub fn new(bus: &Bus, writes: &[Write]) -> Self {
        let mut pipeline = Pipeline::with_capacity(writes.len() * 3);
        pipeline.ignore_errors();
        let mut encoded = Self {
            pipeline,
            replies: 0,
            expected: Vec::with_capacity(writes.len()),
            rewritten: HashMap::new(),
        };
        for write in writes {
            let expected = encoded.write(bus, write);
            encoded.expected.push(expected);
        }
        encoded
    }

    /// The channel that is rewritten or cleared by the command with this reply.
    pub fn rewritten(&self, reply: usize) -> Option<&Arc<str>> {
        self.rewritten.get(&reply)
    }

    /// What Redis answered, one reply for each write.
    pub fn decode(self, replies: &[Value]) -> Vec<Reply> {
        self.expected.into_iter().map(|expected| expected.decode(replies)).collect()
    }

    fn write(&mut self, bus: &Bus, write: &Write) -> Expected {
        match write {
            Write::Lease { contact } => {
                let ttl = bus.node_ttl.as_millis() as u64;
                self.pipeline.pset_ex(keys::lease(bus.node), format!("{WRITING} {contact}"), ttl).ignore();
                self.list_node(bus);
            }
            Write::Renew { contact, settled } => {
                let mut call = scripts::RENEW.prepare_invoke();
                call.key(keys::lease(bus.node)).arg(*contact).arg(if *settled { SETTLED } else { WRITING });
                call.arg(bus.node_ttl.as_millis() as u64).arg(bus.histories());
                self.script(&call);
                let renewed = Expected::Renewed(self.replies - 1);
                self.list_node(bus);
                return renewed;
            }
            Write::Changes { channel, batch, digest } => return self.changes(bus, channel, batch, *digest),
            Write::Again { channel, version, digest, seats } => {
                self.rewritten.insert(self.replies, Arc::clone(channel));
                return self.rewrite(bus, channel, *version, *digest, seats);
            }
            Write::Beat { channel, version, seats } => return self.beat(bus, channel, *version, seats),
            Write::Close { channel, version } => {
                self.rewritten.insert(self.replies, Arc::clone(channel));
                self.script(&clearing(bus, bus.node, channel, *version));
                self.pipeline.cmd("SREM").arg(keys::channels(bus.node)).arg(&**channel).ignore();
            }
            Write::Clear { channel, node, version } => {
                self.script(&clearing(bus, *node, channel, *version));
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

    fn changes(&mut self, bus: &Bus, channel: &str, batch: &Batch, digest: u64) -> Expected {
        match wire::announcement(bus.node, batch) {
            Ok(message) => {
                self.apply(bus, channel, batch, digest, &message);
                let applied = Expected::Applied(self.replies - 1);
                self.list(bus, channel);
                applied
            }
            Err(error) => {
                tracing::error!(channel, %error, "a change could not be announced");
                Expected::Done
            }
        }
    }

    /// Keeps this node listed, and the list of its channels, as long as presence keys live.
    fn list_node(&mut self, bus: &Bus) {
        self.pipeline.sadd(keys::NODES, bus.node.to_string()).ignore();
        self.pipeline.expire(keys::NODES, bus.presence_ttl.as_secs() as i64).ignore();
        self.pipeline.expire(keys::channels(bus.node), bus.presence_ttl.as_secs() as i64).ignore();
    }

    /// A command whose reply matters: which of the replies it is.
    fn command(&mut self, command: &Cmd) -> usize {
        self.pipeline.add_command(command.clone());
        self.replies += 1;
        self.replies - 1
    }

    fn apply(&mut self, bus: &Bus, channel: &str, batch: &Batch, digest: u64, message: &str) {
        let mut call = scripts::APPLY.prepare_invoke();
        call.key(bus.keys.users(channel)).key(bus.keys.versions(channel));
        call.arg(bus.presence_ttl.as_secs()).arg(bus.node.to_string()).arg(batch.to);
        call.arg(bus.keys.topic(channel)).arg(message).arg(batch.from).arg(wire::digest(digest));
        for op in &batch.ops {
            let value = op.entry.as_ref().map_or(Ok(String::new()), |entry| wire::value(bus.node, entry));
            let Ok(value) = value else { continue };
            let hash = bus.keys.user(channel, &op.user);
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

    fn rewrite(&mut self, bus: &Bus, channel: &str, version: u64, digest: u64, seats: &Seats) -> Expected {
        let told = wire::announcement(bus.node, &contact::told_of_part(version, seats));
        let mut call = scripts::REWRITE.prepare_invoke();
        call.key(bus.keys.users(channel)).key(bus.keys.versions(channel));
        call.arg(bus.presence_ttl.as_secs()).arg(bus.node.to_string()).arg(version);
        call.arg(bus.keys.topic(channel)).arg(told.unwrap_or_default()).arg(bus.keys.user_prefix(channel));
        call.arg(wire::digest(digest));
        for (seat, entry) in seats {
            let Ok(value) = wire::value(bus.node, entry) else { continue };
            call.key(bus.keys.user(channel, &entry.user));
            call.arg(&*entry.user).arg(keys::field(bus.node, *seat)).arg(value);
            let op = Op { seat: *seat, user: Arc::clone(&entry.user), entry: Some(Arc::clone(entry)) };
            self.index(bus, channel, &op);
        }
        self.script(&call);
        let rewritten = Expected::Rewritten(self.replies - 1);
        self.list(bus, channel);
        rewritten
    }

    fn beat(&mut self, bus: &Bus, channel: &str, version: u64, seats: &Seats) -> Expected {
        let first_reply = self.replies;
        // At least one call, also where nobody of ours is in: it says what the others have.
        let mut chunks = seats.chunks(CHUNK);
        let mut chunk = chunks.next().unwrap_or_default();
        loop {
            let mut call = scripts::BEAT.prepare_invoke();
            call.key(bus.keys.users(channel)).key(bus.keys.versions(channel));
            call.arg(bus.presence_ttl.as_secs()).arg(bus.node.to_string());
            call.arg(version);
            for (seat, entry) in chunk {
                call.key(bus.keys.user(channel, &entry.user));
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
        self.place(bus, channel, op, &field);
        if op.entry.is_some() {
            self.pipeline.cmd("HSET").arg(&key).arg(field).arg(channel).ignore();
            self.pipeline.cmd("EXPIRE").arg(&key).arg(bus.presence_ttl.as_secs()).ignore();
        } else {
            self.pipeline.cmd("HDEL").arg(&key).arg(field).ignore();
            super::note_last_seen(&mut self.pipeline, channel, &op.user, bus.last_seen_ttl);
        }
    }

    /// Keeps the index of places in step. Costs nothing where nobody says where he is.
    fn place(&mut self, bus: &Bus, channel: &str, op: &Op, field: &str) {
        let location = op.entry.as_ref().and_then(|entry| Location::in_meta(&entry.meta));
        let mut placed = bus.placed();
        if location.is_none() && placed.is_empty() {
            return;
        }
        let key = bus.keys.places(channel);
        let place = keys::place(field, &op.user);
        match location.map(nearby::indexed) {
            Some(Location { lat, lon }) => {
                placed.entry(channel.into()).or_default().insert(op.seat);
                self.pipeline.cmd("GEOADD").arg(&key).arg(lon).arg(lat).arg(place).ignore();
                self.pipeline.cmd("EXPIRE").arg(&key).arg(bus.presence_ttl.as_secs()).ignore();
            }
            None => {
                let Some(seats) = placed.get_mut(channel) else { return };
                if seats.remove(&op.seat) {
                    self.pipeline.cmd("ZREM").arg(&key).arg(place).ignore();
                }
                if seats.is_empty() {
                    placed.remove(channel);
                }
            }
        }
    }

    /// Lists the channel among those in which this node has written.
    fn list(&mut self, bus: &Bus, channel: &str) {
        let key = keys::channels(bus.node);
        self.pipeline.cmd("SADD").arg(&key).arg(channel).ignore();
        self.pipeline.cmd("EXPIRE").arg(&key).arg(bus.presence_ttl.as_secs() as i64).ignore();
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
            Self::Renewed(at) if matches!(replies.get(at), Some(Value::Int(0))) => Reply::NoLease,
            Self::Applied(at) if matches!(replies.get(at), Some(Value::Int(-1))) => Reply::Lost,
            Self::Renewed(_) | Self::Applied(_) => Reply::Done,
            Self::Rewritten(at) => match replies.get(at) {
                Some(Value::Int(removed)) => Reply::Rewritten(u64::try_from(*removed).unwrap_or(0)),
                _ => Reply::Done,
            },
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
    let (mut stated, mut missing, mut users) = (HashMap::new(), Vec::new(), 0);
    for at in 0..chunks {
        let reply = replies.get(first_reply + at)?;
        let (gone, found, lost, online): (Vec<usize>, Vec<(String, String)>, u8, usize) =
            redis::from_redis_value_ref(reply).ok()?;
        if lost == 1 {
            return Some(Reply::Lost);
        }
        missing.extend(gone.iter().filter_map(|n| seats.get(at * CHUNK + n.checked_sub(1)?)));
        stated = wire::parse_stated(&found);
        users = online;
    }
    Some(Reply::Beaten { stated, missing, users })
}

/// Whether `lease` says that everything of its node stands in `history`.
pub fn is_settled_in(lease: Option<&str>, history: &str) -> bool {
    let mut words = lease.unwrap_or_default().split(' ');
    words.next() == Some(SETTLED) && words.nth(1).is_some_and(|all| all.split(',').any(|one| one == history))
}

/// Takes everything of `node` out of `channel`, if its part there is not newer than `version`. Answers what
/// was there: user, field, user, field, …
pub fn clearing(bus: &Bus, node: NodeId, channel: &str, version: u64) -> ScriptInvocation<'static> {
    let script: &'static Script = &scripts::CLEAR;
    let mut call = script.prepare_invoke();
    call.key(bus.keys.users(channel)).key(bus.keys.versions(channel));
    call.arg(node.to_string()).arg(version).arg(bus.keys.user_prefix(channel));
    call
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_believed_only_in_the_history_that_it_names() {
        assert!(is_settled_in(Some("settled 7 a,b"), "b"));
        for (lease, history) in [
            (None, "a"),
            (Some("writing 7 a"), "a"),
            (Some("settled 7"), ""),
            (Some("settled 7 "), "a"),
            (Some("settled 7 a,b"), "c"),
            (Some("settled 7 ab"), "a"),
        ] {
            assert!(!is_settled_in(lease, history), "{lease:?} {history}");
        }
    }
}
