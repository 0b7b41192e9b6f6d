//! The simulated store: what Redis does with the cluster's writes and questions, in virtual time.
//!
//! A stand-in for the server and for the scripts in `cluster/scripts`, key by key with their lives, so
//! that it can restart empty, forget, and be read at any moment. Values are the very text that stands
//! in Redis. `tests` holds it against a real server.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::cluster::contact::{Reply, Write, told_of_part};
use crate::cluster::reading::Found;
use crate::cluster::{keys, wire};
use crate::presence::{Batch, NodeId, Part, Stated};

/// Milliseconds of virtual time.
pub type Ms = u64;

/// A message on Pub/Sub: topic and text.
pub type Message = (String, String);

/// Something that is gone at a time of its own.
#[derive(Clone, Debug, Default)]
struct Living<T> {
    value: T,
    until: Ms,
}

#[derive(Clone, Debug, Default)]
struct Channel {
    users: Living<BTreeSet<String>>,
    hashes: BTreeMap<String, Living<BTreeMap<String, String>>>,
    versions: Living<BTreeMap<NodeId, (u64, u64)>>,
}

/// The server.
#[derive(Clone, Debug, Default)]
pub struct Store {
    presence_ttl: Ms,
    node_ttl: Ms,
    /// Which restart this is: the replication history.
    history: u64,
    /// The contact, whether it is settled, and in which history.
    leases: BTreeMap<NodeId, Living<(u64, bool, u64)>>,
    nodes: Living<BTreeSet<NodeId>>,
    lists: BTreeMap<NodeId, Living<BTreeSet<Arc<str>>>>,
    channels: BTreeMap<Arc<str>, Channel>,
    locks: BTreeMap<NodeId, Living<NodeId>>,
}

impl Store {
    /// An empty server, on which keys live as long as they are told to.
    pub fn new(presence_ttl: Ms, node_ttl: Ms) -> Self {
        Self { presence_ttl, node_ttl, ..Self::default() }
    }

    /// Everything is lost.
    pub fn flush(&mut self) {
        *self = Self { history: self.history, ..Self::new(self.presence_ttl, self.node_ttl) };
    }

    /// The server begins again, with what it held when `before` was taken, or empty.
    pub fn restart(&mut self, before: Option<&Self>) {
        let history = self.history + 1;
        *self = before.cloned().unwrap_or_else(|| Self::new(self.presence_ttl, self.node_ttl));
        self.history = history;
    }

    /// What has outlived itself goes.
    fn expire(&mut self, now: Ms) {
        self.leases.retain(|_, lease| lease.until > now);
        self.lists.retain(|_, list| list.until > now);
        self.locks.retain(|_, lock| lock.until > now);
        if self.nodes.until <= now {
            self.nodes.value.clear();
        }
        for channel in self.channels.values_mut() {
            channel.hashes.retain(|_, hash| hash.until > now && !hash.value.is_empty());
            if channel.users.until <= now {
                channel.users.value.clear();
            }
            if channel.versions.until <= now {
                channel.versions.value.clear();
            }
        }
    }

    /// Carries out a write of `node`; what it announces is published.
    pub fn carry_out(&mut self, node: NodeId, write: &Write, now: Ms) -> (Reply, Vec<Message>) {
        self.expire(now);
        match write {
            Write::Lease { contact } => {
                self.leases.insert(
                    node,
                    Living { value: (*contact, false, self.history), until: now + self.node_ttl },
                );
                self.list_node(node, now);
            }
            Write::Renew { contact, settled } => {
                self.list_node(node, now);
                match self.leases.get_mut(&node).filter(|lease| lease.value.0 == *contact) {
                    Some(lease) => {
                        *lease =
                            Living { value: (*contact, *settled, self.history), until: now + self.node_ttl }
                    }
                    None => return (Reply::NoLease, Vec::new()),
                }
            }
            Write::Changes { channel, batch, digest } => {
                let message = wire::announcement(node, batch).expect("a batch can be announced");
                let applied = self.apply(node, channel, batch, *digest, now);
                self.list(node, channel, now);
                if let Some(refusal) = applied {
                    return (refusal, Vec::new());
                }
                return (Reply::Done, vec![(keys::Keys::default().topic(channel), message)]);
            }
            Write::Again { channel, version, digest, seats } => {
                let message = wire::announcement(node, &told_of_part(*version, seats));
                let message = message.expect("a batch can be announced");
                let values = seats.iter().map(|(seat, entry)| {
                    let value = wire::value(node, entry).expect("an entry can be written");
                    (entry.user.to_string(), keys::field(node, *seat), value)
                });
                let stands = (*version, *digest);
                let done = self.rewrite(node, channel, stands, &values.collect::<Vec<_>>(), now);
                self.list(node, channel, now);
                if !done {
                    return (Reply::Done, Vec::new());
                }
                return (Reply::Done, vec![(keys::Keys::default().topic(channel), message)]);
            }
            Write::Beat { channel, version, seats } => {
                let seats: Vec<_> =
                    seats.iter().map(|(seat, entry)| (*seat, entry.user.to_string())).collect();
                return (self.beat(node, channel, *version, &seats, now), Vec::new());
            }
            Write::Close { channel, version } => {
                self.clear(node, channel, *version, now);
                if let Some(list) = self.lists.get_mut(&node) {
                    list.value.remove(channel);
                }
            }
            Write::Clear { channel, node, version } => self.clear(*node, channel, *version, now),
            Write::List { .. } => {
                let listed = self.lists.get(&node).map(|list| list.value.iter().cloned().collect());
                return (Reply::Listed(listed.unwrap_or_default()), Vec::new());
            }
            Write::Barrier { .. } => {}
        }
        (Reply::Done, Vec::new())
    }

    fn list_node(&mut self, node: NodeId, now: Ms) {
        self.nodes.value.insert(node);
        self.nodes.until = now + self.presence_ttl;
        if let Some(list) = self.lists.get_mut(&node) {
            list.until = now + self.presence_ttl;
        }
    }

    fn list(&mut self, node: NodeId, channel: &Arc<str>, now: Ms) {
        let list = self.lists.entry(node).or_default();
        list.value.insert(Arc::clone(channel));
        list.until = now + self.presence_ttl;
    }

    /// `apply.lua`
    fn apply(
        &mut self,
        node: NodeId,
        channel: &Arc<str>,
        batch: &Batch,
        digest: u64,
        now: Ms,
    ) -> Option<Reply> {
        let until = now + self.presence_ttl;
        let channel = self.channels.entry(Arc::clone(channel)).or_default();
        let stands = channel.version(node);
        if stands > batch.to {
            return Some(Reply::Done);
        }
        if stands != batch.from && stands != batch.to {
            return Some(Reply::Lost);
        }
        for op in &batch.ops {
            let field = keys::field(node, op.seat);
            match &op.entry {
                Some(entry) => {
                    if let Some(origin) = &entry.origin {
                        channel.remove(&op.user, &keys::field(origin.over.node, origin.over.number));
                    }
                    let hash = channel.hashes.entry(op.user.to_string()).or_default();
                    hash.value.insert(field, wire::value(node, entry).expect("an entry can be written"));
                    hash.until = until;
                    channel.users.value.insert(op.user.to_string());
                }
                None => channel.remove(&op.user, &field),
            }
        }
        channel.users.until = until;
        channel.versions.value.insert(node, (batch.to, digest));
        channel.versions.until = until;
        None
    }

    /// `rewrite.lua`
    fn rewrite(
        &mut self,
        node: NodeId,
        channel: &Arc<str>,
        (version, digest): (u64, u64),
        seats: &[(String, String, String)],
        now: Ms,
    ) -> bool {
        let until = now + self.presence_ttl;
        let channel = self.channels.entry(Arc::clone(channel)).or_default();
        if channel.version(node) > version {
            return false;
        }
        channel.remove_all(node, &seats.iter().map(|(_, field, _)| field.as_str()).collect());
        for (user, field, value) in seats {
            let hash = channel.hashes.entry(user.clone()).or_default();
            hash.value.insert(field.clone(), value.clone());
            hash.until = until;
            channel.users.value.insert(user.clone());
        }
        channel.users.until = until;
        channel.versions.value.insert(node, (version, digest));
        channel.versions.until = until;
        true
    }

    /// `beat.lua`
    fn beat(
        &mut self,
        node: NodeId,
        channel: &Arc<str>,
        version: u64,
        seats: &[(u64, String)],
        now: Ms,
    ) -> Reply {
        let until = now + self.presence_ttl;
        let channel_name = Arc::clone(channel);
        let channel = self.channels.entry(Arc::clone(channel)).or_default();
        let stands = channel.version(node);
        if version != 0 && stands != version {
            return if stands < version { Reply::Lost } else { Reply::Done };
        }
        let mut missing = Vec::new();
        for (seat, user) in seats {
            let hash = channel.hashes.get_mut(user);
            match hash.filter(|hash| hash.value.contains_key(&keys::field(node, *seat))) {
                Some(hash) if channel.users.value.contains(user) => hash.until = until,
                _ => missing.push(*seat),
            }
        }
        if version != 0 {
            channel.versions.until = until;
            channel.users.until = until;
        }
        let stated = |(node, (version, digest)): (&NodeId, &(u64, u64))| {
            (*node, Stated { version: *version, digest: Some(*digest) })
        };
        let stated = channel.versions.value.iter().map(stated).collect();
        let users = channel.users.value.len();
        if version != 0 {
            self.list(node, &channel_name, now);
        }
        Reply::Beaten { stated, missing, users }
    }

    /// `read.lua`, between two looks at the leases of `asked`, all at one moment.
    pub fn read(&mut self, channel: &Arc<str>, asked: &HashMap<NodeId, u64>, now: Ms) -> Found {
        self.expire(now);
        let is_settled = |node: &&NodeId| {
            self.leases.get(node).is_some_and(|lease| lease.value.1 && lease.value.2 == self.history)
        };
        let settled = asked.keys().filter(is_settled).copied().collect();
        let mut found = Found { settled, parts: HashMap::new() };
        let Some(channel) = self.channels.get(channel) else { return found };
        for (node, (version, _)) in &channel.versions.value {
            found.parts.insert(*node, Part { version: *version, ..Part::default() });
        }
        for user in &channel.users.value {
            let name: Arc<str> = user.as_str().into();
            for (field, value) in channel.hashes.get(user).iter().flat_map(|hash| &hash.value) {
                let (node, seat, entry) = wire::parse_value(&name, field, value).expect("what was written");
                if let Some(part) = found.parts.get_mut(&node) {
                    part.seats.insert(seat, Arc::new(entry));
                }
            }
        }
        found
    }

    /// Which nodes have held a lease.
    pub fn listed(&mut self, now: Ms) -> BTreeSet<NodeId> {
        self.expire(now);
        self.nodes.value.clone()
    }

    /// Which of `nodes` hold one.
    pub fn alive(&mut self, nodes: &[NodeId], now: Ms) -> BTreeSet<NodeId> {
        self.expire(now);
        nodes.iter().filter(|node| self.leases.contains_key(node)).copied().collect()
    }

    /// Keeps the lists of the channels of `nodes`, which are dead, for whoever cleans up.
    pub fn keep_lists(&mut self, nodes: &BTreeSet<NodeId>, now: Ms) {
        for (_, list) in self.lists.iter_mut().filter(|(node, _)| nodes.contains(node)) {
            list.until = now + self.presence_ttl;
        }
    }

    /// Takes the lock for the clean-up after `dead`, or keeps it.
    pub fn lock(&mut self, dead: NodeId, owner: NodeId, now: Ms) -> bool {
        self.expire(now);
        let lock = self.locks.entry(dead).or_insert(Living { value: owner, until: 0 });
        if lock.value == owner || lock.until <= now {
            *lock = Living { value: owner, until: now + 30_000 };
        }
        lock.value == owner
    }

    /// The channels in which `node` is listed to have written.
    pub fn channels_of(&mut self, node: NodeId, now: Ms) -> Vec<Arc<str>> {
        self.expire(now);
        self.lists.get(&node).map(|list| list.value.iter().cloned().collect()).unwrap_or_default()
    }

    /// `clear.lua`
    pub fn clear(&mut self, node: NodeId, channel: &Arc<str>, version: u64, now: Ms) {
        self.expire(now);
        let channel = self.channels.entry(Arc::clone(channel)).or_default();
        if channel.version(node) <= version {
            channel.remove_all(node, &BTreeSet::new());
            channel.versions.value.remove(&node);
        }
    }

    /// The version of what stands of `node` in `channel`.
    pub fn version(&mut self, node: NodeId, channel: &Arc<str>, now: Ms) -> u64 {
        self.expire(now);
        self.channels.get(channel).map_or(0, |channel| channel.version(node))
    }

    /// `node` is cleaned up after, or has left for good.
    pub fn unlist(&mut self, node: NodeId, leaves: bool) {
        self.lists.remove(&node);
        self.nodes.value.remove(&node);
        if leaves {
            self.leases.remove(&node);
        }
        self.locks.remove(&node);
    }

    /// Everyone in `channel`, by field: for comparisons.
    pub fn fields(&mut self, channel: &str, now: Ms) -> BTreeMap<String, String> {
        self.expire(now);
        let Some(channel) = self.channels.get(channel) else { return BTreeMap::new() };
        let users = channel.users.value.iter();
        let hashes = users.filter_map(|user| Some((user, channel.hashes.get(user)?)));
        hashes.flat_map(|(user, hash)| hash.value.keys().map(|field| (field.clone(), user.clone()))).collect()
    }
}

impl Channel {
    fn version(&self, node: NodeId) -> u64 {
        self.versions.value.get(&node).map_or(0, |(version, _)| *version)
    }

    /// What of `node` is not `listed` goes.
    fn remove_all(&mut self, node: NodeId, listed: &BTreeSet<&str>) {
        let own = format!("{node}:");
        for user in self.users.value.clone() {
            let fields = self.hashes.get(&user).map(|hash| hash.value.keys().cloned().collect());
            let fields: Vec<String> = fields.unwrap_or_default();
            for field in fields.iter().filter(|field| field.starts_with(&own)) {
                if !listed.contains(field.as_str()) {
                    self.remove(&user, field);
                }
            }
            if !self.hashes.contains_key(&user) {
                self.users.value.remove(&user);
            }
        }
    }

    fn remove(&mut self, user: &str, field: &str) {
        if let Some(hash) = self.hashes.get_mut(user) {
            hash.value.remove(field);
            if hash.value.is_empty() {
                self.hashes.remove(user);
            }
        }
        if !self.hashes.contains_key(user) {
            self.users.value.remove(user);
        }
    }
}
