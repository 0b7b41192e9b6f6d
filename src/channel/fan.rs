//! What a channel tells the hubs: that it can be shown, and what changed.
//!
//! One message goes to each thread that has viewers, not to each viewer. It carries the diff, and
//! each wire form of it is encoded once, by the first thread that has a viewer who needs it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use actix::{Message, Recipient};
use bytes::Bytes;

use super::Published;
use crate::dialects::{self, Broadcast, Frame, WireFormat};
use crate::presence::Diff;

/// Broadcasts of one channel that a hub may have unhandled. Over it they are dropped: who says something is told
/// that it was taken, not that everybody heard it.
const MAX_RELAYS: usize = 1_024;

/// A channel's roster is published and can be shown.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct Live {
    pub channel: Arc<str>,
    /// That of the link which is answered: a hub that has detached and attached again since must wait
    /// for the answer to its new link, or a diff sent between the two would pass it by.
    pub meter: Arc<Meter>,
}

/// A diff for the viewers of a channel on one thread.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct Fan {
    pub update: Arc<Update>,
    /// Counts this message out again when it has been handled.
    pub meter: Arc<Meter>,
}

/// Does this connection live? If it is the hub's, and something comes from it, [`super::Alive`] is the answer.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct Probe {
    pub connection: u64,
}

/// One diff of one channel, as told to every viewer.
#[derive(Debug)]
pub struct Update {
    pub channel: Arc<str>,
    /// The roster that it leads to.
    roster: Arc<Published>,
    diff: Diff,
    /// When the oldest change of this node's own in it happened.
    pub oldest: Option<Instant>,
    frames: [OnceLock<Bytes>; WireFormat::KINDS],
}

impl Update {
    /// `diff`, which takes `channel` to `roster`.
    pub fn new(channel: Arc<str>, roster: Arc<Published>, diff: Diff, oldest: Option<Instant>) -> Self {
        Self { channel, roster, diff, oldest, frames: Default::default() }
    }

    /// The version of the roster that it leads to.
    pub fn version(&self) -> u64 {
        self.roster.snapshot.version
    }

    /// The finished frames in `format`, one after another: none if viewers in it need not be told. `finish` turns
    /// messages into these, the first time only.
    pub fn frame(&self, format: WireFormat, finish: impl FnOnce(&[Frame]) -> Bytes) -> &Bytes {
        let make = || finish(&dialects::diff(format, &self.channel, &self.diff, &self.roster.snapshot));
        self.frames[format.index()].get_or_init(make)
    }

    /// The roster that it leads to.
    pub fn roster(&self) -> &Arc<Published> {
        &self.roster
    }
}

/// Something said to all viewers of a channel on one thread.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct Relay {
    pub relayed: Arc<Relayed>,
    /// Counts this message out again when it has been handled.
    pub meter: Arc<Meter>,
}

/// One broadcast in one channel, as told to every viewer.
#[derive(Debug)]
pub struct Relayed {
    pub channel: Arc<str>,
    pub broadcast: Arc<Broadcast>,
    frames: [OnceLock<Bytes>; WireFormat::KINDS],
}

impl Relayed {
    /// `broadcast`, for the viewers of `channel`.
    pub fn new(channel: Arc<str>, broadcast: Arc<Broadcast>) -> Self {
        Self { channel, broadcast, frames: Default::default() }
    }

    /// The finished frame in `format`; empty where the form cannot carry it. `finish` makes it, the first time only.
    pub fn frame(&self, format: WireFormat, finish: impl FnOnce(&[Frame]) -> Bytes) -> &Bytes {
        self.frames[format.index()].get_or_init(|| {
            let frame = dialects::broadcast(format, &self.channel, &self.broadcast);
            frame.map_or_else(Bytes::new, |frame| finish(&[frame]))
        })
    }
}

/// What a channel and one hub know of each other without asking.
#[derive(Debug, Default)]
pub struct Meter {
    viewers: AtomicUsize,
    behind: AtomicUsize,
    relays: AtomicUsize,
}

impl Meter {
    /// How many viewers the hub has for the channel.
    pub fn viewers(&self) -> usize {
        self.viewers.load(Ordering::Relaxed)
    }

    /// The hub has `count` viewers now.
    pub fn set_viewers(&self, count: usize) {
        self.viewers.store(count, Ordering::Relaxed);
    }

    /// How many diffs the hub was sent and has not handled.
    pub fn behind(&self) -> usize {
        self.behind.load(Ordering::Relaxed)
    }

    /// Takes room for one more broadcast, if there is any.
    pub(super) fn begin_relay(&self) -> bool {
        let has_room = self.relays.load(Ordering::Relaxed) < MAX_RELAYS;
        if has_room {
            self.relays.fetch_add(1, Ordering::Relaxed);
        }
        has_room
    }

    /// The hub has handled one broadcast.
    pub fn relayed(&self) {
        self.relays.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn sent(&self) {
        self.behind.fetch_add(1, Ordering::Relaxed);
    }

    /// The hub has handled one diff.
    pub fn handled(&self) {
        self.behind.fetch_sub(1, Ordering::Relaxed);
    }
}

impl HubLink {
    /// Tells the hub that the roster of `channel` can be shown.
    pub(super) fn go_live(&self, channel: &Arc<str>) {
        self.live.do_send(Live { channel: Arc::clone(channel), meter: Arc::clone(&self.meter) });
    }
}

/// One hub's interest in one channel.
#[derive(Clone, Debug)]
pub struct HubLink {
    /// The hub's number on this node.
    pub hub: usize,
    pub live: Recipient<Live>,
    pub fan: Recipient<Fan>,
    pub probe: Recipient<Probe>,
    pub relay: Recipient<Relay>,
    pub meter: Arc<Meter>,
}
