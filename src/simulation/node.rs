//! A simulated node: the product's own pure parts, and around them what its tasks and actors do, in
//! virtual time and without I/O.
//!
//! What stands here mirrors the shells only: `cluster/{writer,subscriber,lease}.rs`, `channel/actor.rs`,
//! `channel/registry.rs` and `hub/mod.rs`. Every decision is the product's code.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::store::{Ms, Store};

use crate::channel::Published;
use crate::channel::sim::{Audience, Audit, ChannelCore, Effect, Noticed};
use crate::cluster::Told;
use crate::cluster::contact::{Contact, Reply, Write};
use crate::cluster::nodes::{Nodes, Verdict};
use crate::cluster::reading::{Found, Unchecked};
use crate::cluster::topics::{Interest, Topics};
use crate::cluster::{keys, wire};
use crate::dialects::{self, WireFormat};
use crate::hub::Viewers;
use crate::presence::{Diff, Ids, NodeId, Reading, ResumeKey};

/// Microseconds of virtual time.
pub type Us = u64;

pub const GRACE: Ms = 2_000;
pub const PRESENCE_TTL: Ms = 60_000;
pub const NODE_TTL: Ms = 10_000;
const HEARTBEAT: Ms = PRESENCE_TTL / 3;
const TICK: Ms = 1_000;
const LINGER: Ms = 5_000;
const LOADING: Ms = 2_000;
const PATIENCE: Ms = 2_000;
const POOL_LIMIT: Ms = 1_000;
const READ_TRIES: u32 = 3;
/// Threads with sockets.
pub const HUBS: usize = 2;

/// A question to the server, and what it is asked for.
#[derive(Clone, Debug)]
pub enum Ask {
    /// A connection, for writes or for a subscription.
    Connect(Line),
    Batch {
        connection: u64,
        writes: Vec<Write>,
    },
    /// First unsubscribes, then subscribes.
    Subscribe {
        connection: u64,
        unsubscribe: Vec<String>,
        topics: Vec<String>,
    },
    Ping {
        connection: u64,
    },
    Listed,
    Alive {
        listed: BTreeSet<NodeId>,
        nodes: Vec<NodeId>,
        /// The asker's contact, if it was settled when it asked.
        settled: Option<u64>,
    },
    Read {
        to: To,
        asked: HashMap<NodeId, u64>,
        attempt: u32,
    },
    /// Whether the strangers of a reading live.
    Check {
        to: To,
        found: Found,
        asked: HashMap<NodeId, u64>,
        attempt: u32,
    },
    Lock {
        dead: NodeId,
    },
    ChannelsOf {
        dead: NodeId,
    },
    /// What stands of the dead node in a channel, and then whether it is dead still.
    Version {
        dead: NodeId,
        channel: Arc<str>,
        left: Vec<Arc<str>>,
    },
    IsDead {
        dead: NodeId,
        channel: Arc<str>,
        version: u64,
        left: Vec<Arc<str>>,
    },
    Clear {
        dead: NodeId,
        channel: Arc<str>,
        version: u64,
        left: Vec<Arc<str>>,
    },
    IsDeadStill {
        dead: NodeId,
    },
    Unlist {
        dead: NodeId,
    },
    /// The end of a node's life.
    GiveBack,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    Writes,
    Subscription,
}

/// What the server answers.
#[derive(Clone, Debug)]
pub enum Answer {
    Connected(u64),
    Replies(Vec<Reply>),
    Done,
    Nodes(BTreeSet<NodeId>),
    Found(Found),
    Locked(bool),
    Version(u64),
    Channels(Vec<Arc<str>>),
}

/// One actor of a channel: a name, and which of those that have borne it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct To {
    pub channel: Arc<str>,
    pub actor: u64,
}

/// A message in a channel's mailbox.
#[derive(Debug)]
pub enum ToChannel {
    Attach { hub: usize, link: u64 },
    Detach { hub: usize },
    Track { connection: u64, user: Arc<str>, meta: Arc<str>, resume: Option<ResumeKey>, at: Instant },
    Untrack { connection: u64 },
    Dropped { connection: u64 },
    Alive { connection: u64 },
    Drain,
    Told(Told),
}

/// A message in a hub's mailbox.
#[derive(Clone, Debug)]
pub enum ToHub {
    Live { channel: Arc<str>, link: u64 },
    Fan { channel: Arc<str>, link: u64, roster: Arc<Published>, diff: Arc<Diff> },
}

/// Something that happens on a node at a time of its own choice.
#[derive(Clone, Debug)]
pub enum Wake {
    ConnectWriter,
    ConnectSubscriber,
    Watchdog { connection: u64 },
    Tick,
    Settle(To),
    Beat(To),
    Loaded(To),
    Linger(To),
    ReadAgain { to: To, asked: HashMap<NodeId, u64>, attempt: u32 },
}

/// What a node wants done.
#[derive(Debug, Default)]
pub struct Out {
    pub asks: Vec<(Ask, Ms)>,
    pub wakes: Vec<(Ms, Wake)>,
    pub to_channels: Vec<(To, ToChannel)>,
    pub to_hubs: Vec<(usize, ToHub)>,
    /// Connections to be asked for a sign of life, and by whom.
    pub probes: Vec<(To, u64)>,
    /// To which connection, and what.
    pub frames: Vec<(u64, String)>,
}

struct Channel {
    actor: u64,
    core: ChannelCore,
    links: Vec<(usize, u64)>,
    /// How many interests were registered, and how many have arrived.
    registered: u64,
    attached: u64,
    settle_at: Option<Instant>,
    lingers: bool,
}

#[derive(Default)]
struct Link {
    viewers: usize,
    behind: usize,
}

struct Viewed {
    to: To,
    link: u64,
    viewers: Viewers<u64>,
}

/// One node.
pub struct SimNode {
    pub id: NodeId,
    pub ids: Ids,
    start: Instant,
    contact: Contact,
    nodes: Nodes,
    topics: Topics,
    channels: BTreeMap<Arc<str>, Channel>,
    rosters: BTreeMap<Arc<str>, Arc<Published>>,
    hubs: [BTreeMap<Arc<str>, Viewed>; HUBS],
    links: BTreeMap<u64, Link>,
    writer: Option<u64>,
    writing: bool,
    subscriber: Option<u64>,
    subscribing: bool,
    /// Whether it is known if Redis is there.
    tried: bool,
    cleaning: BTreeSet<NodeId>,
    pub leaving: bool,
    /// What comparing has found, and how often an announcement was missed.
    pub audit: Audit,
    pub gaps: u64,
    /// When the writer and the subscriber may try again.
    pauses: [u32; 2],
}

impl SimNode {
    /// A node that begins its life.
    pub fn new(id: NodeId, start: Instant, now: Us, out: &mut Out) -> Self {
        let at = start + Duration::from_micros(now);
        out.wakes.push((0, Wake::ConnectWriter));
        out.wakes.push((0, Wake::ConnectSubscriber));
        out.wakes.push((0, Wake::Tick));
        let ids = Ids::new(id);
        Self {
            id,
            ids: ids.clone(),
            start,
            contact: Contact::new(ids.clone()),
            nodes: Nodes::new(id, Duration::from_millis(NODE_TTL), at),
            topics: Topics::default(),
            channels: BTreeMap::new(),
            rosters: BTreeMap::new(),
            hubs: Default::default(),
            links: BTreeMap::new(),
            writer: None,
            writing: false,
            subscriber: None,
            subscribing: false,
            tried: false,
            cleaning: BTreeSet::new(),
            leaving: false,
            audit: Audit::default(),
            gaps: 0,
            pauses: [0; 2],
        }
    }

    fn at(&self, now: Us) -> Instant {
        self.start + Duration::from_micros(now)
    }

    // --- clients: what `hub/mod.rs` does when a connection calls it ---

    /// `connection` views `channel` on `hub`.
    pub fn view(&mut self, hub: usize, connection: u64, channel: &Arc<str>, now: Us, out: &mut Out) {
        if !self.hubs[hub].contains_key(channel) {
            let link = self.ids.number();
            let to = self.attach(channel, now, out);
            out.to_channels.push((to.clone(), ToChannel::Attach { hub, link }));
            self.links.insert(link, Link::default());
            self.hubs[hub].insert(Arc::clone(channel), Viewed { to, link, viewers: Viewers::default() });
        }
        let Some(viewed) = self.hubs[hub].get_mut(channel) else { return };
        let published = self.rosters.get(channel);
        let version = published.map(|published| published.snapshot.version);
        if let (Some(connection), Some(published)) =
            (viewed.viewers.insert(connection, connection, version), published)
        {
            out.frames.push((*connection, state_frame(channel, published)));
        }
        self.links.entry(viewed.link).or_default().viewers = viewed.viewers.len();
    }

    /// `connection` views `channel` no more.
    pub fn unview(&mut self, hub: usize, connection: u64, channel: &Arc<str>, out: &mut Out) {
        let Some(viewed) = self.hubs[hub].get_mut(channel) else { return };
        viewed.viewers.remove(connection);
        self.links.entry(viewed.link).or_default().viewers = viewed.viewers.len();
        if viewed.viewers.is_empty() {
            out.to_channels.push((viewed.to.clone(), ToChannel::Detach { hub }));
            self.hubs[hub].remove(channel);
        }
    }

    /// A word of a connection of `hub` for `channel`.
    pub fn say(&mut self, hub: usize, channel: &Arc<str>, word: ToChannel, out: &mut Out) {
        if let Some(viewed) = self.hubs[hub].get(channel) {
            out.to_channels.push((viewed.to.clone(), word));
        }
    }

    pub fn hear_in_hub(&mut self, hub: usize, message: ToHub, out: &mut Out) {
        match message {
            ToHub::Live { channel, link } => {
                let Some(viewed) = self.hubs[hub].get_mut(&channel) else { return };
                if viewed.link != link {
                    return;
                }
                let Some(published) = self.rosters.get(&channel) else { return };
                viewed.viewers.go_live();
                for (_, connection) in viewed.viewers.take_roster(published.snapshot.version, |_| true) {
                    out.frames.push((*connection, state_frame(&channel, published)));
                }
            }
            ToHub::Fan { channel, link, roster, diff } => {
                if let Some(viewed) = self.hubs[hub].get_mut(&channel) {
                    let mut frame = None;
                    for (_, connection) in viewed.viewers.take_diff(roster.snapshot.version) {
                        let frame = frame.get_or_insert_with(|| diff_frame(&channel, &diff, &roster));
                        out.frames.push((*connection, frame.clone()));
                    }
                }
                if let Some(link) = self.links.get_mut(&link) {
                    link.behind -= 1;
                }
            }
        }
    }

    // --- channels: what `channel/registry.rs` and `channel/actor.rs` do ---

    fn attach(&mut self, channel: &Arc<str>, now: Us, out: &mut Out) -> To {
        if !self.channels.contains_key(channel) {
            let actor = self.ids.number();
            let to = To { channel: Arc::clone(channel), actor };
            let core = ChannelCore::new(self.ids.clone(), Duration::from_millis(GRACE));
            let fresh = Channel {
                actor,
                core,
                links: Vec::new(),
                registered: 0,
                attached: 0,
                settle_at: None,
                lingers: false,
            };
            self.channels.insert(Arc::clone(channel), fresh);
            if !self.is_up() && self.tried {
                out.to_channels.push((to.clone(), ToChannel::Told(Told::Away)));
            }
            self.contact.open(channel);
            self.topics.open(keys::Keys::default().topic(channel), channel);
            out.wakes.push((HEARTBEAT, Wake::Beat(to.clone())));
            out.wakes.push((LOADING, Wake::Loaded(to.clone())));
            self.follow_interest(out);
            self.settle(&to, now, out);
        }
        let channel_entry = self.channels.get_mut(channel).expect("it is there now");
        channel_entry.registered += 1;
        To { channel: Arc::clone(channel), actor: channel_entry.actor }
    }

    fn channel(&mut self, to: &To) -> Option<&mut Channel> {
        self.channels.get_mut(&to.channel).filter(|channel| channel.actor == to.actor)
    }

    pub fn hear_in_channel(&mut self, to: &To, message: ToChannel, now: Us, out: &mut Out) {
        let at = self.at(now);
        let Some(channel) = self.channel(to) else { return };
        let state = &mut channel.core.state;
        match message {
            ToChannel::Attach { hub, link } => {
                channel.attached += 1;
                if channel.core.is_published() {
                    out.to_hubs.push((hub, ToHub::Live { channel: Arc::clone(&to.channel), link }));
                }
                channel.links.push((hub, link));
            }
            ToChannel::Detach { hub } => channel.links.retain(|(other, _)| *other != hub),
            ToChannel::Track { connection, user, meta, resume, at } => {
                state.track(connection, &user, &meta, resume, now / 1_000, at);
            }
            ToChannel::Untrack { connection } => state.untrack(connection, at),
            ToChannel::Dropped { connection } => state.dropped(connection, now / 1_000, at),
            ToChannel::Alive { connection } => state.alive(connection, at),
            ToChannel::Drain => state.leave_all(at),
            ToChannel::Told(told) => match channel.core.told(told, at) {
                Noticed::Missing(missing) => self.audit.missing += missing as u64,
                Noticed::Gap => self.gaps += 1,
                Noticed::Nothing => {}
            },
        }
        self.settle(to, now, out);
    }

    fn settle(&mut self, to: &To, now: Us, out: &mut Out) {
        let at = self.at(now);
        let Some(channel) = self.channels.get_mut(&to.channel).filter(|c| c.actor == to.actor) else {
            return;
        };
        let audience = Audience {
            viewers: channel
                .links
                .iter()
                .filter_map(|(_, link)| self.links.get(link))
                .map(|l| l.viewers)
                .sum(),
            behind: channel
                .links
                .iter()
                .filter_map(|(_, l)| self.links.get(l))
                .map(|l| l.behind)
                .max()
                .unwrap_or(0),
        };
        let name = Arc::clone(&to.channel);
        let found = channel.core.state.take_audit();
        self.audit.ghosts += found.ghosts;
        self.audit.missing += found.missing;
        self.audit.skipped += found.skipped;
        for effect in channel.core.settle(audience, at) {
            match effect {
                Effect::Announce(batch, digest) => {
                    self.contact.write(Write::Changes { channel: Arc::clone(&name), batch, digest });
                }
                Effect::Read(asked) => {
                    out.asks.push((Ask::Read { to: to.clone(), asked, attempt: 1 }, POOL_LIMIT));
                }
                Effect::WriteAgain { version, digest, seats } => {
                    self.contact.write(Write::Again { channel: Arc::clone(&name), version, digest, seats });
                }
                Effect::Probe(connection) => out.probes.push((to.clone(), connection)),
                Effect::GoLive { roster, .. } => {
                    self.rosters.insert(Arc::clone(&name), Arc::new(Published::new(roster)));
                    for (hub, link) in &channel.links {
                        out.to_hubs.push((*hub, ToHub::Live { channel: Arc::clone(&name), link: *link }));
                    }
                }
                Effect::Tell { roster, diff, .. } => {
                    let (roster, diff) = (Arc::new(Published::new(roster)), Arc::new(diff));
                    self.rosters.insert(Arc::clone(&name), Arc::clone(&roster));
                    for (hub, link) in &channel.links {
                        self.links.entry(*link).or_default().behind += 1;
                        let (channel, roster, diff) =
                            (Arc::clone(&name), Arc::clone(&roster), Arc::clone(&diff));
                        out.to_hubs.push((*hub, ToHub::Fan { channel, link: *link, roster, diff }));
                    }
                }
            }
        }
        let next = channel.core.next_diff(audience, at).into_iter().chain(channel.core.next_time()).min();
        if let Some(next) = next
            && channel.settle_at.is_none_or(|set| set > next || set <= at)
        {
            channel.settle_at = Some(next);
            let wait = next.saturating_duration_since(at).as_micros() as u64;
            out.wakes.push((wait.div_ceil(1_000), Wake::Settle(to.clone())));
        }
        if channel.links.is_empty() && channel.core.state.own_seats() == 0 && !channel.lingers {
            channel.lingers = true;
            out.wakes.push((LINGER, Wake::Linger(to.clone())));
        }
        self.pass_on(out);
    }

    fn linger(&mut self, to: &To, now: Us, out: &mut Out) {
        let settled = self.contact.is_settled();
        let Some(channel) = self.channel(to) else { return };
        channel.lingers = false;
        let idle = channel.links.is_empty() && channel.core.state.own_seats() == 0 && settled;
        if !idle || channel.registered != channel.attached {
            return self.settle(to, now, out);
        }
        self.channels.remove(&to.channel);
        self.rosters.remove(&to.channel);
        self.contact.close(&to.channel);
        self.topics.close(keys::Keys::default().topic(&to.channel));
        self.follow_interest(out);
        self.pass_on(out);
    }

    // --- cluster: what `cluster/{bus,writer,subscriber,lease,mod}.rs` do ---

    fn is_up(&self) -> bool {
        self.writer.is_some() && self.subscriber.is_some()
    }

    fn tell(&self, channel: &Arc<str>, told: Told, out: &mut Out) {
        if let Some(open) = self.channels.get(channel) {
            let to = To { channel: Arc::clone(channel), actor: open.actor };
            out.to_channels.push((to, ToChannel::Told(told)));
        }
    }

    fn tell_all(&self, told: impl Fn() -> Told, out: &mut Out) {
        self.channels.keys().for_each(|channel| self.tell(channel, told(), out));
    }

    /// Passes on what the contact says, and carries out what is queued.
    fn pass_on(&mut self, out: &mut Out) {
        for (channel, told) in self.contact.take_told() {
            self.tell(&channel, told, out);
        }
        if let Some(connection) = self.writer
            && !self.writing
        {
            let writes = self.contact.next_batch();
            if !writes.is_empty() {
                self.writing = true;
                out.asks.push((Ask::Batch { connection, writes }, PATIENCE));
            }
            for (channel, told) in self.contact.take_told() {
                self.tell(&channel, told, out);
            }
        }
    }

    fn follow_interest(&mut self, out: &mut Out) {
        let Some(connection) = self.subscriber.filter(|_| !self.subscribing) else { return };
        let Interest { subscribe: topics, unsubscribe } = self.topics.next();
        if !unsubscribe.is_empty() || !topics.is_empty() {
            self.subscribing = true;
            out.asks.push((Ask::Subscribe { connection, unsubscribe, topics }, PATIENCE));
        }
    }

    /// A connection that the server or its death has closed, or that does not answer.
    pub fn broken(&mut self, connection: u64, out: &mut Out) {
        self.note_tried(true, out);
        if self.writer == Some(connection) {
            self.writer = None;
            self.writing = false;
            self.contact.failed();
            out.wakes.push((self.pause(Line::Writes), Wake::ConnectWriter));
        }
        if self.subscriber == Some(connection) {
            self.subscriber = None;
            self.subscribing = false;
            out.wakes.push((self.pause(Line::Subscription), Wake::ConnectSubscriber));
        }
    }

    fn note_tried(&mut self, in_vain: bool, out: &mut Out) {
        if !std::mem::replace(&mut self.tried, true) && in_vain {
            self.tell_all(|| Told::Away, out);
        }
    }

    fn pause(&mut self, line: Line) -> Ms {
        let tries = &mut self.pauses[line as usize];
        let pause = (50 << (*tries).min(5)).min(1_000);
        *tries += 1;
        pause
    }

    pub fn wake(&mut self, wake: Wake, now: Us, out: &mut Out) {
        match wake {
            Wake::ConnectWriter => out.asks.push((Ask::Connect(Line::Writes), POOL_LIMIT)),
            Wake::ConnectSubscriber => out.asks.push((Ask::Connect(Line::Subscription), POOL_LIMIT)),
            Wake::Watchdog { connection } if self.subscriber == Some(connection) => {
                out.asks.push((Ask::Ping { connection }, PATIENCE));
            }
            Wake::Watchdog { .. } => {}
            Wake::Tick => {
                if !self.contact.has_left() {
                    self.contact.renew();
                    out.asks.push((Ask::Listed, POOL_LIMIT));
                    self.pass_on(out);
                }
            }
            Wake::Settle(to) => {
                if let Some(channel) = self.channel(&to) {
                    channel.settle_at = None;
                }
                self.settle(&to, now, out);
            }
            Wake::Beat(to) => {
                let Some(channel) = self.channel(&to) else { return };
                let (version, seats) = channel.core.state.own();
                self.contact.write(Write::Beat { channel: Arc::clone(&to.channel), version, seats });
                self.pass_on(out);
                out.wakes.push((HEARTBEAT, Wake::Beat(to)));
            }
            Wake::Loaded(to) => {
                if let Some(channel) = self.channel(&to)
                    && !channel.core.state.is_live()
                {
                    channel.core.state.go_live();
                    self.settle(&to, now, out);
                }
            }
            Wake::Linger(to) => self.linger(&to, now, out),
            Wake::ReadAgain { to, asked, attempt } => {
                out.asks.push((Ask::Read { to, asked, attempt }, POOL_LIMIT));
            }
        }
    }

    /// A message that the subscription brought.
    pub fn hear(&mut self, connection: u64, topic: &str, text: &str, out: &mut Out) {
        if self.subscriber != Some(connection) || text.starts_with(&wire::own_prefix(self.id)) {
            return;
        }
        if topic == keys::NODES_TOPIC {
            let node = text.parse().expect("a node id");
            if self.nodes.left(node) {
                self.tell_all(|| Told::NodeDown(node), out);
            }
            return;
        }
        let (node, batch) = wire::parse_announcement(text).expect("an announcement");
        self.nodes.note(node);
        if !self.nodes.is_buried(node)
            && let Some(channel) = self.topics.channel(topic).cloned()
        {
            self.tell(&channel, Told::Batch { node, batch: Arc::new(batch) }, out);
        }
    }

    /// The server's answer to a question of this node.
    pub fn answered(&mut self, ask: Ask, answer: Answer, now: Us, out: &mut Out) {
        match (ask, answer) {
            (Ask::Connect(Line::Writes), Answer::Connected(connection)) => {
                self.writer = Some(connection);
                self.writing = false;
                self.contact.connected();
                self.pass_on(out);
            }
            (Ask::Connect(Line::Subscription), Answer::Connected(connection)) => {
                self.subscriber = Some(connection);
                self.subscribing = false;
                self.pauses[Line::Subscription as usize] = 0;
                self.topics.begin();
                self.follow_interest(out);
                out.wakes.push((TICK, Wake::Watchdog { connection }));
            }
            (Ask::Batch { connection, writes }, Answer::Replies(replies))
                if self.writer == Some(connection) =>
            {
                self.writing = false;
                self.pauses[Line::Writes as usize] = 0;
                self.contact.replied(writes, replies);
                self.pass_on(out);
                if self.leaving && self.contact.has_left() && self.contact.is_settled() {
                    out.asks.push((Ask::GiveBack, POOL_LIMIT));
                }
            }
            (Ask::Subscribe { connection, topics, .. }, _) if self.subscriber == Some(connection) => {
                self.subscribing = false;
                if self.is_up() {
                    self.note_tried(false, out);
                }
                for channel in self.topics.subscribed(&topics) {
                    self.tell(&channel, Told::ReadAgain, out);
                }
                self.follow_interest(out);
            }
            (Ask::Ping { connection }, _) => out.wakes.push((TICK, Wake::Watchdog { connection })),
            (Ask::Listed, Answer::Nodes(listed)) => {
                let nodes = self.nodes.to_ask(&listed);
                let settled = self.contact.settled();
                out.asks.push((Ask::Alive { listed, nodes, settled }, POOL_LIMIT));
            }
            (Ask::Alive { listed, nodes, settled }, Answer::Nodes(alive)) => {
                out.wakes.push((TICK, Wake::Tick));
                self.judge((&listed, &nodes, settled), alive, now, out);
            }
            (Ask::Read { to, asked, attempt }, Answer::Found(found)) => {
                let unchecked = self.unchecked(&asked, &found);
                if unchecked.doubtful().is_empty() {
                    let (reading, dead) = unchecked.check(&BTreeSet::new());
                    self.was_read(to, reading, dead, out);
                } else {
                    out.asks.push((Ask::Check { to, found, asked, attempt }, POOL_LIMIT));
                }
            }
            (Ask::Check { to, found, asked, .. }, Answer::Nodes(alive)) => {
                let (reading, dead) = self.unchecked(&asked, &found).check(&alive);
                self.was_read(to, reading, dead, out);
            }
            (Ask::Lock { dead }, Answer::Locked(true)) => {
                out.asks.push((Ask::ChannelsOf { dead }, POOL_LIMIT));
            }
            (Ask::ChannelsOf { dead }, Answer::Channels(left)) => self.clean_on(dead, left, out),
            (Ask::Version { dead, channel, left }, Answer::Version(version)) => {
                out.asks.push((Ask::IsDead { dead, channel, version, left }, POOL_LIMIT));
            }
            (Ask::IsDead { dead, channel, version, left }, Answer::Locked(true)) => {
                out.asks.push((Ask::Clear { dead, channel, version, left }, POOL_LIMIT));
            }
            (Ask::Clear { dead, left, .. }, _) => self.clean_on(dead, left, out),
            (Ask::IsDeadStill { dead }, Answer::Locked(true)) => {
                out.asks.push((Ask::Unlist { dead }, POOL_LIMIT));
            }
            (
                Ask::Lock { dead }
                | Ask::Unlist { dead }
                | Ask::IsDead { dead, .. }
                | Ask::IsDeadStill { dead },
                _,
            ) => {
                self.cleaning.remove(&dead);
            }
            _ => {}
        }
    }

    /// No answer came in time.
    pub fn unanswered(&mut self, ask: Ask, out: &mut Out, now: Us) {
        match ask {
            Ask::Connect(line) => {
                self.note_tried(true, out);
                let wake = if line == Line::Writes { Wake::ConnectWriter } else { Wake::ConnectSubscriber };
                out.wakes.push((self.pause(line), wake));
            }
            Ask::Batch { connection, .. } | Ask::Subscribe { connection, .. } | Ask::Ping { connection } => {
                self.broken(connection, out)
            }
            Ask::Listed | Ask::Alive { .. } => {
                self.nodes.rest(self.at(now));
                out.wakes.push((TICK, Wake::Tick));
            }
            Ask::Read { to, asked, attempt } | Ask::Check { to, asked, attempt, .. } => {
                if attempt < READ_TRIES {
                    out.wakes.push((100, Wake::ReadAgain { to, asked, attempt: attempt + 1 }));
                } else {
                    out.to_channels.push((to, ToChannel::Told(Told::Read(None))));
                }
            }
            Ask::Lock { dead }
            | Ask::ChannelsOf { dead }
            | Ask::Version { dead, .. }
            | Ask::IsDead { dead, .. }
            | Ask::Clear { dead, .. }
            | Ask::IsDeadStill { dead }
            | Ask::Unlist { dead } => {
                self.cleaning.remove(&dead);
            }
            Ask::GiveBack => {}
        }
    }

    fn was_read(&mut self, to: To, reading: Reading, dead: Vec<(NodeId, u64)>, out: &mut Out) {
        for (node, version) in dead {
            self.contact.write(Write::Clear { channel: Arc::clone(&to.channel), node, version });
        }
        self.pass_on(out);
        reading.parts.keys().for_each(|node| self.nodes.note(*node));
        out.to_channels.push((to, ToChannel::Told(Told::Read(Some(reading)))));
    }

    fn unchecked(&self, asked: &HashMap<NodeId, u64>, found: &Found) -> Unchecked {
        Unchecked::new(self.id, asked.clone(), found.clone(), |node| self.nodes.is_buried(node))
    }

    fn judge(
        &mut self,
        (listed, asked, settled): (&BTreeSet<NodeId>, &[NodeId], Option<u64>),
        alive: BTreeSet<NodeId>,
        now: Us,
        out: &mut Out,
    ) {
        let (contact, at) = (self.contact.standing(), self.at(now));
        for verdict in self.nodes.judge(listed, asked, alive, contact, at) {
            match verdict {
                Verdict::Doubt => {
                    self.contact.doubt(settled);
                    self.pass_on(out);
                }
                Verdict::Back(_) => self.tell_all(|| Told::ReadAgain, out),
                Verdict::Gone(node) | Verdict::Left(node) => self.tell_all(|| Told::NodeDown(node), out),
                Verdict::CleanUp(dead) => {
                    if self.cleaning.insert(dead) {
                        out.asks.push((Ask::Lock { dead }, POOL_LIMIT));
                    }
                }
            }
        }
    }

    fn clean_on(&mut self, dead: NodeId, mut left: Vec<Arc<str>>, out: &mut Out) {
        let ask = match left.pop() {
            Some(channel) => Ask::Version { dead, channel, left },
            None => Ask::IsDeadStill { dead },
        };
        out.asks.push((ask, POOL_LIMIT));
    }

    /// The node's own members leave: `Registry::drain`.
    pub fn drain(&mut self, out: &mut Out) {
        for (channel, open) in &self.channels {
            let to = To { channel: Arc::clone(channel), actor: open.actor };
            out.to_channels.push((to, ToChannel::Drain));
        }
    }

    /// `lease::leave`
    pub fn leave(&mut self, out: &mut Out) {
        self.leaving = true;
        self.contact.leave();
        self.pass_on(out);
    }

    // --- for the checks ---

    /// The roster that is published for `channel`, if it lives here.
    pub fn roster(&self, channel: &str) -> Option<&Published> {
        self.rosters.get(channel).map(|published| &**published)
    }
}

/// Does at the server what was asked.
pub fn serve(store: &mut Store, node: NodeId, ask: &Ask, now: Ms) -> (Answer, Vec<(String, String)>) {
    let answer = match ask {
        Ask::Batch { writes, .. } => {
            let mut published = Vec::new();
            let replies = writes.iter().map(|write| {
                let (reply, messages) = store.carry_out(node, write, now);
                published.extend(messages);
                reply
            });
            return (Answer::Replies(replies.collect()), published);
        }
        Ask::Listed => Answer::Nodes(store.listed(now)),
        Ask::Alive { listed, nodes, .. } => {
            let alive = store.alive(nodes, now);
            store.keep_lists(&listed.difference(&alive).copied().collect(), now);
            Answer::Nodes(alive)
        }
        Ask::Read { to, asked, .. } => Answer::Found(store.read(&to.channel, asked, now)),
        Ask::Check { found, .. } => {
            let nodes: Vec<NodeId> = found.parts.keys().copied().collect();
            Answer::Nodes(store.alive(&nodes, now))
        }
        Ask::Lock { dead } => {
            let locked = store.lock(*dead, node, now);
            let told = locked.then(|| (keys::NODES_TOPIC.to_owned(), dead.to_string()));
            return (Answer::Locked(locked), told.into_iter().collect());
        }
        Ask::ChannelsOf { dead } => Answer::Channels(store.channels_of(*dead, now)),
        Ask::Version { dead, channel, .. } => Answer::Version(store.version(*dead, channel, now)),
        Ask::IsDead { dead, .. } => {
            Answer::Locked(store.alive(&[*dead], now).is_empty() && store.lock(*dead, node, now))
        }
        Ask::IsDeadStill { dead } => Answer::Locked(store.alive(&[*dead], now).is_empty()),
        Ask::Clear { dead, channel, version, .. } => {
            store.clear(*dead, channel, *version, now);
            Answer::Done
        }
        Ask::Unlist { dead } => {
            store.unlist(*dead, false);
            Answer::Done
        }
        Ask::GiveBack => {
            store.unlist(node, true);
            return (Answer::Done, vec![(keys::NODES_TOPIC.to_owned(), node.to_string())]);
        }
        Ask::Connect(_) | Ask::Subscribe { .. } | Ask::Ping { .. } => Answer::Done,
    };
    (answer, Vec::new())
}

fn state_frame(channel: &str, published: &Published) -> String {
    let form = WireFormat::PhoenixV2;
    let around = dialects::state_envelope(form, channel, Some("1"), &published.snapshot);
    let (head, tail) = around.expect("a roster is told in this form");
    let payload = published.state(form);
    format!("{head}{}{tail}", std::str::from_utf8(&payload).expect("text"))
}

fn diff_frame(channel: &str, diff: &Diff, roster: &Published) -> String {
    let frames = dialects::diff(WireFormat::PhoenixV2, channel, diff, &roster.snapshot);
    let [dialects::Frame::Text(frame)] = &frames[..] else { panic!("one text: {frames:?}") };
    std::str::from_utf8(frame).expect("text").to_owned()
}
