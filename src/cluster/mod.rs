//! The cluster: what the nodes that share a Redis tell each other, and what they keep there.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use actix::{Message, Recipient};

use crate::presence::{Batch, Entry, NodeId, Op, Reading, Snapshot};

/// What the cluster tells a channel.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub enum Told {
    /// Another node announced changes to its part.
    Batch { node: NodeId, batch: Arc<Batch> },
    /// The reading that was asked for, or none if Redis could not be read.
    Read(Option<Reading>),
    /// Announcements may have been missed: read the channel.
    ReadAgain,
    /// Redis may have lost this node's part: write it again.
    WriteAgain,
    /// A node is dead.
    NodeDown(NodeId),
    /// What a heartbeat found in Redis: every node's version, and own seats that were missing.
    Beaten { versions: HashMap<NodeId, u64>, missing: Vec<u64> },
}

#[derive(Clone)]
pub enum Cluster {
    Local,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Occupancy {
    pub online: usize,
    pub connections: usize,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserPresence {
    pub channels: Vec<(String, usize)>,
    pub last_seen: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedisState {
    Off,
    Up,
    Down,
}

#[derive(Debug, thiserror::Error)]
#[error("Redis is away")]
pub struct Away;

impl Cluster {
    pub fn is_local(&self) -> bool { true }
    pub fn state(&self) -> RedisState { RedisState::Off }
    pub fn open(&self, _channel: &Arc<str>, _to: Recipient<Told>) {}
    pub fn close(&self, _channel: &Arc<str>) {}
    pub fn announce(&self, _channel: &Arc<str>, _batch: Batch) {}
    pub fn read(&self, _channel: &Arc<str>, _asked: HashMap<NodeId, u64>, _to: Recipient<Told>) {}
    pub fn write_again(&self, _channel: &Arc<str>, _version: u64, _seats: Vec<(u64, Arc<Entry>)>) {}
    pub fn repair(&self, _channel: &Arc<str>, _version: u64, _ops: Vec<Op>) {}
    pub fn beat(&self, _channel: &Arc<str>, _version: u64, _seats: Vec<(u64, Arc<Entry>)>, _to: Recipient<Told>) {}
    pub async fn occupancies(&self, channels: &[&str]) -> Result<Vec<Occupancy>, Away> { Ok(channels.iter().map(|_| Occupancy{online:0,connections:0}).collect()) }
    pub async fn roster(&self, _channel: &str) -> Result<Snapshot, Away> { Ok(Snapshot::default()) }
    pub async fn channels(&self) -> Result<BTreeSet<String>, Away> { Ok(BTreeSet::new()) }
    pub async fn user(&self, _user: &str) -> Result<UserPresence, Away> { Ok(UserPresence::default()) }
}
