//! The world of one simulated run: virtual time, the nodes, the server, the net between them, the
//! clients, and the checks of the guarantees.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::client::{ClientView, Shown};
use super::node::{
    Answer, Ask, GRACE, HUBS, Line, NODE_TTL, Out, PRESENCE_TTL, SimNode, To, ToChannel, ToHub, Us, Wake,
    serve,
};
use super::scenario::{Action, CHANNELS, CLIENTS, Dice, NODES, Scenario};
use super::store::{Ms, Store};
use crate::channel::sim::Audit;
use crate::presence::{NodeId, ResumeKey};

/// G3: everything agrees this long after everything works again, and what the checks allow for delays.
const CONVERGED: Ms = 20_000 + SLACK;
/// The longest window (1 s) and the way from a socket to a viewer on another node.
const SLACK: Ms = 2_000;
/// How long it may take until all have heard of somebody's return.
const ON_ITS_WAY: Ms = 500;
/// G4: a silent socket is ended.
const SILENT: Ms = 60_000;
/// G4: a dead node's members are gone.
const DEAD: Ms = 15_000;

/// Something that happens at a moment of virtual time.
enum Event {
    Act(Action),
    /// At the server. What was sent arrives though its sender has died meanwhile.
    Serve {
        from: Place,
        node: NodeId,
        ask: Ask,
        id: u64,
    },
    Answer {
        to: Place,
        id: u64,
        answer: Answer,
    },
    Timeout {
        to: Place,
        id: u64,
    },
    Broken {
        to: Place,
        connection: u64,
    },
    Message {
        to: Place,
        connection: u64,
        topic: String,
        text: String,
    },
    Wake {
        to: Place,
        wake: Wake,
    },
    Channel {
        at: Place,
        to: To,
        message: ToChannel,
    },
    Hub {
        at: Place,
        hub: usize,
        message: ToHub,
    },
    Resume {
        node: usize,
    },
    Mend {
        node: usize,
    },
    RedisUp,
    LossyEnds,
    /// A client's word, which a paused node reads when it goes on.
    Word {
        at: Place,
        word: Word,
    },
    /// The node's last members leave, and then the node.
    LastLeave {
        at: Place,
    },
    Gone {
        at: Place,
    },
    Audit,
}

/// A node's slot and which process in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    node: usize,
    life: u32,
}

#[derive(Clone, Debug)]
enum Word {
    View { hub: usize, connection: u64, channel: Arc<str>, present: Option<Presence> },
    Track { hub: usize, connection: u64, channel: Arc<str>, present: Presence },
    Leave { hub: usize, connection: u64, channel: Arc<str> },
    Drop { hub: usize, connection: u64, channel: Arc<str> },
}

/// What a client says of itself.
#[derive(Clone, Debug)]
struct Presence {
    user: Arc<str>,
    meta: Arc<str>,
    key: Option<ResumeKey>,
}

impl Presence {
    fn word(self, connection: u64, at: Instant) -> ToChannel {
        ToChannel::Track { connection, user: self.user, meta: self.meta, resume: self.key, at }
    }
}

#[derive(Default)]
struct Slot {
    life: u32,
    /// When this life began.
    since: Ms,
    node: Option<SimNode>,
    paused: bool,
    deferred: Vec<Event>,
    cut_off: u32,
    draining: bool,
    /// Until when others may think it dead though it is not (in ms).
    trouble_until: Ms,
    /// When a mailbox is free again.
    busy: BTreeMap<String, Us>,
    pending: BTreeMap<u64, Ask>,
    connections: BTreeSet<u64>,
}

/// How a client's last presence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Left,
    Dropped,
    /// Its socket hangs: the node does not know.
    Vanished,
    Died,
}

struct Client {
    user: Arc<str>,
    /// Where it is connected: the node, its hub, the connection, the channel.
    at: Option<(Place, usize, u64, usize)>,
    /// The channel that it joined last.
    room: usize,
    /// Half of the clients have a resume key.
    key: Option<ResumeKey>,
    meta: u64,
    /// Since when it has shown that meta somewhere.
    shown_since: Ms,
    /// For each meta it has shown: when it was shown no more, why, and where.
    ended: BTreeMap<u64, (Ms, End, Place)>,
    /// If it has come back with the meta it had.
    returned: Option<Return>,
    view: ClientView,
}

/// A client that lost its socket and is back with the same meta.
#[derive(Clone, Copy, Debug)]
struct Return {
    left: Ms,
    back: Ms,
    /// Nobody may be shown anything of it.
    silent: bool,
}

impl Client {
    /// The last of the clients only watch.
    fn observes(index: usize) -> bool {
        index >= CLIENTS - 3
    }

    fn presence(&self, index: usize) -> Presence {
        let meta = format!(r#"{{"client":{index},"meta":{}}}"#, self.meta).into();
        Presence { user: Arc::clone(&self.user), meta, key: self.key }
    }
}

/// What went wrong, in words.
pub type Violation = String;

/// The worst delays that a run saw, in milliseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Worst {
    pub left: Ms,
    pub dropped: Ms,
    pub vanished: Ms,
    pub died: Ms,
}

/// One run.
pub struct World {
    start: Instant,
    now: Us,
    serial: u64,
    events: BTreeMap<(Us, u64), Event>,
    dice: Dice,
    store: Store,
    snapshot: Store,
    redis_up: bool,
    redis_frozen_until: Us,
    subscriptions: BTreeMap<u64, (Place, BTreeSet<String>, Us)>,
    lossy: Option<u64>,
    slots: Vec<Slot>,
    clients: Vec<Client>,
    faults: u32,
    last_vanished: Ms,
    healthy_since: Ms,
    pub worst: Worst,
    pub steps: u64,
    trace: bool,
}

fn channel_name(index: usize) -> Arc<str> {
    format!("room:{index}").into()
}

impl World {
    /// Runs `scenario` to its end.
    ///
    /// # Errors
    /// The first guarantee that did not hold.
    pub fn run(scenario: &Scenario, trace: bool) -> Result<Self, Violation> {
        let mut world = Self::new(scenario, trace);
        let end = scenario.actions.last().map_or(0, |(at, _)| *at) + 1_000;
        world.advance(end)?;
        world.heal();
        let end = end.max(world.last_vanished + SILENT + GRACE);
        world.advance(end + CONVERGED)?;
        world.check_agreement(false)?;
        world.advance(end + CONVERGED + PRESENCE_TTL)?;
        world.check_agreement(true)?;
        Ok(world)
    }

    /// What the nodes that live have found by comparing, and how many announcements they missed.
    pub fn audits(&self) -> Vec<(Audit, u64)> {
        self.slots.iter().filter_map(|slot| slot.node.as_ref()).map(|node| (node.audit, node.gaps)).collect()
    }

    fn new(scenario: &Scenario, trace: bool) -> Self {
        let store = Store::new(PRESENCE_TTL, NODE_TTL);
        let client = |index: usize| Client {
            // Some users have several connections.
            user: format!("user-{}", index % 4).into(),
            at: None,
            key: (index % 2 == 1).then(|| ResumeKey::new(&format!("user-{}", index % 4), &index.to_string())),
            room: 0,
            meta: 0,
            shown_since: 0,
            ended: BTreeMap::new(),
            returned: None,
            view: ClientView::default(),
        };
        let mut world = Self {
            start: Instant::now(),
            now: 0,
            serial: 0,
            events: BTreeMap::new(),
            dice: Dice::new(scenario.seed ^ 0xD1CE),
            snapshot: store.clone(),
            store,
            redis_up: true,
            redis_frozen_until: 0,
            subscriptions: BTreeMap::new(),
            lossy: None,
            slots: (0..NODES).map(|_| Slot::default()).collect(),
            clients: (0..CLIENTS).map(client).collect(),
            faults: 0,
            last_vanished: 0,
            healthy_since: 0,
            worst: Worst::default(),
            steps: 0,
            trace,
        };
        (0..NODES).for_each(|node| world.start_node(node));
        for (at, action) in &scenario.actions {
            world.schedule(at * 1_000, Event::Act(action.clone()));
        }
        world.schedule(500_000, Event::Audit);
        world
    }

    fn ms(&self) -> Ms {
        self.now / 1_000
    }

    fn schedule(&mut self, after: Us, event: Event) {
        self.serial += 1;
        self.events.insert((self.now + after, self.serial), event);
    }

    fn latency(&mut self) -> Us {
        // Mostly quick, now and then not.
        if self.dice.chance(3) { 1_000 + self.dice.below(60_000) } else { 60 + self.dice.below(1_500) }
    }

    fn advance(&mut self, until: Ms) -> Result<(), Violation> {
        while let Some(entry) = self.events.first_entry() {
            let (at, _) = *entry.key();
            if at > until * 1_000 {
                break;
            }
            let event = entry.remove();
            self.now = at;
            self.steps += 1;
            self.step(event)
                .map_err(|violation| format!("at {} ms, step {}: {violation}", self.ms(), self.steps))?;
        }
        self.now = until * 1_000;
        Ok(())
    }

    fn alive(&self, place: Place) -> bool {
        self.slots[place.node].life == place.life && self.slots[place.node].node.is_some()
    }

    /// The place an event belongs to, if it is a living process that could be stopped.
    fn place_of(event: &Event) -> Option<Place> {
        match event {
            Event::Answer { to, .. }
            | Event::Timeout { to, .. }
            | Event::Broken { to, .. }
            | Event::Message { to, .. }
            | Event::Wake { to, .. } => Some(*to),
            Event::Channel { at, .. } | Event::Hub { at, .. } | Event::Word { at, .. } => Some(*at),
            Event::LastLeave { at } | Event::Gone { at } => Some(*at),
            _ => None,
        }
    }

    fn step(&mut self, event: Event) -> Result<(), Violation> {
        if let Some(place) = Self::place_of(&event) {
            if !self.alive(place) {
                return Ok(());
            }
            if self.slots[place.node].paused {
                self.slots[place.node].deferred.push(event);
                return Ok(());
            }
        }
        let now = self.now;
        match event {
            Event::Act(action) => {
                if self.trace {
                    println!("{:>7} ms  {action:?}", self.ms());
                }
                self.act(action);
            }
            Event::Serve { from, node, ask, id } => self.serve(from, node, ask, id),
            Event::Answer { to, id, answer } => {
                if let Some(ask) = self.slots[to.node].pending.remove(&id) {
                    return self.on_node(to, |node, out| node.answered(ask, answer, now, out));
                }
            }
            Event::Timeout { to, id } => {
                if let Some(ask) = self.slots[to.node].pending.remove(&id) {
                    return self.on_node(to, |node, out| node.unanswered(ask, out, now));
                }
            }
            Event::Broken { to, connection } => {
                return self.on_node(to, |node, out| node.broken(connection, out));
            }
            Event::Message { to, connection, topic, text } => {
                return self.on_node(to, |node, out| node.hear(connection, &topic, &text, out));
            }
            Event::Wake { to, wake } => return self.on_node(to, |node, out| node.wake(wake, now, out)),
            Event::Channel { at, to, message } => {
                return self.on_node(at, |node, out| node.hear_in_channel(&to, message, now, out));
            }
            Event::Hub { at, hub, message } => {
                return self.on_node(at, |node, out| node.hear_in_hub(hub, message, out));
            }
            Event::Word { at, word } => return self.word(at, word),
            Event::Resume { node } => {
                self.slots[node].paused = false;
                self.fault_ends();
                self.trouble(node);
                for event in std::mem::take(&mut self.slots[node].deferred) {
                    self.schedule(0, event);
                }
            }
            Event::Mend { node } => {
                self.slots[node].cut_off -= 1;
                self.fault_ends();
                self.trouble(node);
            }
            Event::RedisUp => {
                self.redis_up = true;
                self.fault_ends();
            }
            Event::LossyEnds => {
                self.lossy = None;
                self.fault_ends();
            }
            Event::LastLeave { at } => {
                self.on_node(at, |node, out| node.drain(out))?;
                self.schedule(200_000, Event::Gone { at });
            }
            Event::Gone { at } => {
                let left = self.slots[at.node].node.as_ref().is_some_and(|node| node.leaving);
                if left || !self.redis_up {
                    self.end_node(at.node, End::Left);
                } else {
                    self.on_node(at, |node, out| node.leave(out))?;
                    self.schedule(2_000_000, Event::Gone { at });
                }
            }
            Event::Audit => {
                self.check_ghosts()?;
                // Now and then Redis writes what it holds to its disk.
                if self.redis_up && self.dice.chance(10) {
                    self.snapshot = self.store.clone();
                }
                self.schedule(500_000, Event::Audit);
            }
        }
        Ok(())
    }

    /// Does something on a node, and what the node then wants done.
    fn on_node(&mut self, place: Place, act: impl FnOnce(&mut SimNode, &mut Out)) -> Result<(), Violation> {
        let mut out = Out::default();
        if let Some(node) = &mut self.slots[place.node].node {
            act(node, &mut out);
        }
        self.carry_out(place, out)
    }

    fn carry_out(&mut self, place: Place, out: Out) -> Result<(), Violation> {
        let Some(node) = self.slots[place.node].node.as_ref().map(|node| node.id) else { return Ok(()) };
        for (ask, limit) in out.asks {
            if self.trace && std::env::var("ROLLCALL_SIM_ASKS").is_ok() {
                println!("{:>7} ms  node {} asks {ask:?}", self.ms(), place.node);
            }
            self.serial += 1;
            let id = self.serial;
            self.slots[place.node].pending.insert(id, ask.clone());
            self.schedule(limit * 1_000, Event::Timeout { to: place, id });
            let latency = self.latency();
            if self.slots[place.node].cut_off == 0 {
                self.schedule(latency, Event::Serve { from: place, node, ask, id });
            } else if self.dice.chance(30) {
                // Only the answers are lost: what was asked is done all the same.
                self.schedule(latency, Event::Serve { from: place, node, ask, id });
            }
        }
        for (wait, wake) in out.wakes {
            self.schedule(wait * 1_000, Event::Wake { to: place, wake });
        }
        for (to, message) in out.to_channels {
            let wait = self.mailbox(place, format!("{}/{}", to.channel, to.actor));
            self.schedule(wait, Event::Channel { at: place, to, message });
        }
        for (hub, message) in out.to_hubs {
            let wait = self.mailbox(place, format!("hub {hub}"));
            self.schedule(wait, Event::Hub { at: place, hub, message });
        }
        for (to, connection) in out.probes {
            // A socket that hangs does not answer.
            if self
                .clients
                .iter()
                .any(|client| client.at.is_some_and(|(at, _, its, _)| at == place && its == connection))
            {
                let wait = self.latency() + self.mailbox(place, format!("{}/{}", to.channel, to.actor));
                self.schedule(
                    wait,
                    Event::Channel { at: place, to, message: ToChannel::Alive { connection } },
                );
            }
        }
        out.frames.into_iter().try_for_each(|(connection, text)| self.receive(place, connection, &text))
    }

    /// Mailboxes keep the order of what is put into them, and take their time.
    fn mailbox(&mut self, place: Place, name: String) -> Us {
        let pause = self.dice.below(if self.dice.clone().chance(5) { 20_000 } else { 200 });
        let now = self.now;
        let busy = self.slots[place.node].busy.entry(name).or_default();
        *busy = (*busy).max(now) + pause;
        *busy - now
    }

    // --- the server and the net ---

    fn serve(&mut self, from: Place, node: NodeId, ask: Ask, id: u64) {
        if !self.redis_up {
            return;
        }
        if self.now < self.redis_frozen_until {
            // What waits in the server's buffers is done when it goes on, of each connection in turn.
            let after = self.redis_frozen_until - self.now + self.dice.below(3_000);
            return self.schedule(after, Event::Serve { from, node, ask, id });
        }
        let ms = self.ms();
        let (mut answer, published) = serve(&mut self.store, node, &ask, ms);
        match &ask {
            Ask::Connect(_) if !self.alive(from) => return,
            Ask::Connect(line) => {
                self.serial += 1;
                let connection = self.serial;
                if *line == Line::Subscription {
                    self.subscriptions.insert(connection, (from, BTreeSet::new(), 0));
                }
                self.slots[from.node].connections.insert(connection);
                answer = Answer::Connected(connection);
            }
            Ask::Subscribe { connection, unsubscribe, topics } => {
                let Some((_, subscribed, _)) = self.subscriptions.get_mut(connection) else { return };
                // The topic of what concerns nodes as a whole is always heard.
                subscribed.insert(crate::cluster::keys::NODES_TOPIC.to_owned());
                subscribed.retain(|topic| !unsubscribe.contains(topic));
                subscribed.extend(topics.iter().cloned());
            }
            Ask::Ping { connection } if !self.subscriptions.contains_key(connection) => return,
            Ask::Batch { connection, .. } if !self.slots[from.node].connections.contains(connection) => {
                return;
            }
            _ => {}
        }
        for (topic, text) in published {
            self.publish(&topic, &text);
        }
        let latency = self.latency();
        if self.slots[from.node].cut_off == 0 {
            self.schedule(latency, Event::Answer { to: from, id, answer });
        }
    }

    fn publish(&mut self, topic: &str, text: &str) {
        let listening: Vec<(u64, Place)> = self
            .subscriptions
            .iter()
            .filter(|(_, (place, topics, _))| topics.contains(topic) && self.slots[place.node].cut_off == 0)
            .map(|(connection, (place, ..))| (*connection, *place))
            .collect();
        for (connection, to) in listening {
            let copies = match self.lossy {
                Some(percent) if self.dice.chance(percent) => 2 * self.dice.below(2),
                _ => 1,
            };
            for _ in 0..copies {
                let mut wait = self.latency();
                let out_of_order = self.lossy.is_some() && self.dice.chance(30);
                if let Some((_, _, last)) = self.subscriptions.get_mut(&connection) {
                    if out_of_order {
                        wait += self.dice.below(400_000);
                    } else {
                        *last = (*last).max(self.now + wait);
                        wait = *last - self.now;
                    }
                }
                let (topic, text) = (topic.to_owned(), text.to_owned());
                self.schedule(wait, Event::Message { to, connection, topic, text });
            }
        }
    }

    fn close_connections(&mut self, of: impl Fn(usize) -> bool, only_subscriptions: bool) {
        for node in (0..NODES).filter(|node| of(*node)) {
            let to = Place { node, life: self.slots[node].life };
            let ended: Vec<u64> = self.slots[node].connections.iter().copied().collect();
            for connection in ended {
                if only_subscriptions && !self.subscriptions.contains_key(&connection) {
                    continue;
                }
                self.subscriptions.remove(&connection);
                self.slots[node].connections.remove(&connection);
                let wait = self.latency();
                if self.slots[node].cut_off == 0 {
                    self.schedule(wait, Event::Broken { to, connection });
                }
            }
        }
    }

    // --- what happens from outside ---

    fn fault_begins(&mut self) {
        self.faults += 1;
        // What was on its way may be lost.
        let since = self.ms().saturating_sub(ON_ITS_WAY);
        for client in &mut self.clients {
            if let Some(returned) = client.returned.as_mut().filter(|returned| returned.back > since) {
                returned.silent = false;
            }
        }
    }

    fn fault_ends(&mut self) {
        self.faults -= 1;
        self.healthy_since = self.ms();
    }

    /// From now on, and for as long as it takes to be known again, others may think `node` dead.
    fn trouble(&mut self, node: usize) {
        self.slots[node].trouble_until = self.ms() + NODE_TTL + CONVERGED;
    }

    fn heal(&mut self) {
        // What was to end later ends now; its own event then finds nothing to do.
        let ends: Vec<_> = self
            .events
            .iter()
            .filter(|(_, event)| {
                matches!(event, Event::Resume { .. } | Event::Mend { .. } | Event::RedisUp | Event::LossyEnds)
            })
            .map(|(key, _)| *key)
            .collect();
        for key in ends {
            if let Some(event) = self.events.remove(&key) {
                let _ = self.step(event);
            }
        }
        self.redis_frozen_until = self.redis_frozen_until.min(self.now);
        self.healthy_since = self.ms();
    }

    fn start_node(&mut self, node: usize) {
        let since = self.ms();
        let slot = &mut self.slots[node];
        slot.life += 1;
        slot.since = since;
        slot.draining = false;
        slot.pending.clear();
        slot.busy.clear();
        let place = Place { node, life: slot.life };
        let id = NodeId(uuid::Uuid::from_u64_pair(self.dice.next(), self.dice.next()));
        let mut out = Out::default();
        self.slots[node].node = Some(SimNode::new(id, self.start, self.now, &mut out));
        let carried = self.carry_out(place, out);
        debug_assert!(carried.is_ok());
    }

    fn end_node(&mut self, node: usize, how: End) {
        self.slots[node].node = None;
        let ms = self.ms();
        let died = Place { node, life: self.slots[node].life };
        for client in &mut self.clients {
            // What the node had not told yet, it never will.
            for (ended, why, at) in client.ended.values_mut() {
                let noticed = if *why == End::Vanished { SILENT } else { 0 };
                if how == End::Died && *at == died && *ended + noticed + GRACE + SLACK > ms {
                    (*ended, *why) = (ms, how);
                }
            }
            if client.at.is_some_and(|(place, ..)| place == died) {
                client.at = None;
                client.ended.insert(client.meta, (ms, how, died));
                client.view = ClientView::default();
            }
        }
        for connection in std::mem::take(&mut self.slots[node].connections) {
            self.subscriptions.remove(&connection);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Join { client, node, channel } => self.join(client, node, channel, false),
            Action::Leave { client } => self.leave(client),
            Action::Update { client } => self.update(client),
            Action::Drop { client } => self.drop_client(client, End::Dropped),
            Action::Reload { client, node } => {
                let Some((.., channel)) = self.clients[client].at else { return };
                self.drop_client(client, End::Dropped);
                let after = 1_000 + self.dice.below(1_900_000);
                self.schedule(after, Event::Act(Action::Return { client, node, channel }));
            }
            Action::Return { client, node, channel } => self.join(client, node, channel, true),
            Action::Vanish { client } => self.drop_client(client, End::Vanished),
            Action::Crash { node } => {
                if self.slots[node].node.is_some() && !self.slots[node].paused {
                    let lost = self.clients_of(node);
                    self.end_node(node, End::Died);
                    self.send_elsewhere(lost, node);
                }
            }
            Action::Start { node } => {
                if self.slots[node].node.is_none() {
                    self.start_node(node);
                }
            }
            Action::Drain { node } => self.drain(node),
            Action::Pause { node, ms } => {
                if !self.slots[node].paused && self.slots[node].node.is_some() {
                    self.slots[node].paused = true;
                    self.fault_begins();
                    self.slots[node].trouble_until = Ms::MAX;
                    self.schedule(ms * 1_000, Event::Resume { node });
                }
            }
            Action::CutOff { node, ms } => {
                self.slots[node].cut_off += 1;
                self.fault_begins();
                self.slots[node].trouble_until = Ms::MAX;
                self.schedule(ms * 1_000, Event::Mend { node });
            }
            Action::CutSubscription { node } => {
                self.close_connections(|other| other == node, true);
                self.healthy_since = self.ms();
            }
            Action::RedisRestart { ms, empty } => {
                if self.redis_up {
                    self.redis_up = false;
                    self.fault_begins();
                    self.close_connections(|_| true, false);
                    let snapshot = (!empty).then_some(&self.snapshot);
                    self.store.restart(snapshot);
                    self.schedule(ms * 1_000, Event::RedisUp);
                }
            }
            Action::RedisFreeze { ms } => {
                self.redis_frozen_until = self.redis_frozen_until.max(self.now + ms * 1_000);
                self.healthy_since = self.redis_frozen_until / 1_000;
            }
            Action::Flush => {
                self.store.flush();
                self.healthy_since = self.ms();
            }
            Action::Lossy { ms, percent } => {
                if self.lossy.is_none() {
                    self.lossy = Some(percent);
                    self.fault_begins();
                    self.schedule(ms * 1_000, Event::LossyEnds);
                }
            }
        }
    }

    fn join(&mut self, client: usize, node: usize, channel: usize, comes_back: bool) {
        let place = Place { node, life: self.slots[node].life };
        let free = self.slots[node].node.is_some() && !self.slots[node].draining;
        if self.clients[client].at.is_some() || !free {
            return;
        }
        let hub = self.dice.below(HUBS as u64) as usize;
        let connection = self.slots[node].node.as_ref().map_or(0, |node| node.ids.number());
        let ms = self.ms();
        let calm = self.faults == 0;
        let calm_since = if self.healthy_since == 0 { 0 } else { self.healthy_since + CONVERGED };
        let me = &mut self.clients[client];
        me.at = Some((place, hub, connection, channel));
        me.returned = None;
        // Into another channel it does not come back, it comes.
        let comes_back = comes_back && me.meta > 0 && me.room == channel;
        me.room = channel;
        let ended = me.ended.get(&me.meta).filter(|_| comes_back).copied();
        match ended {
            Some((left, how, _)) if me.key.is_some() || how == End::Dropped => {
                me.ended.remove(&me.meta);
                // Who was hardly there is not known everywhere.
                let prompt = ms < left + GRACE - 300 && me.shown_since + SLACK < left;
                let silent = me.key.is_some() && how != End::Left && prompt && calm && calm_since <= left;
                me.returned = Some(Return { left, back: ms, silent });
            }
            _ => (me.meta, me.shown_since) = (me.meta + 1, ms),
        }
        me.view = ClientView::default();
        let present = (!Client::observes(client)).then(|| me.presence(client));
        let word = Word::View { hub, connection, channel: channel_name(channel), present };
        self.schedule(0, Event::Word { at: place, word });
    }

    fn leave(&mut self, client: usize) {
        let ms = self.ms();
        let me = &mut self.clients[client];
        let Some((place, hub, connection, channel)) = me.at.take() else { return };
        me.ended.insert(me.meta, (ms, End::Left, place));
        let word = Word::Leave { hub, connection, channel: channel_name(channel) };
        self.schedule(0, Event::Word { at: place, word });
    }

    fn drop_client(&mut self, client: usize, how: End) {
        let ms = self.ms();
        let me = &mut self.clients[client];
        let Some((place, hub, connection, channel)) = me.at.take() else { return };
        me.ended.insert(me.meta, (ms, how, place));
        let word = Word::Drop { hub, connection, channel: channel_name(channel) };
        let mut noticed = 0;
        if how == End::Vanished {
            noticed = SILENT;
            self.last_vanished = ms;
        }
        self.schedule(noticed * 1_000, Event::Word { at: place, word });
    }

    fn update(&mut self, client: usize) {
        let ms = self.ms();
        let me = &mut self.clients[client];
        let Some((place, hub, connection, channel)) = me.at else { return };
        if Client::observes(client) {
            return;
        }
        me.ended.insert(me.meta, (ms, End::Left, place));
        (me.meta, me.shown_since) = (me.meta + 1, ms);
        me.returned = None;
        let present = me.presence(client);
        let word = Word::Track { hub, connection, channel: channel_name(channel), present };
        self.schedule(0, Event::Word { at: place, word });
    }

    fn clients_of(&self, node: usize) -> Vec<(usize, usize)> {
        let at =
            |client: &Client| client.at.filter(|(place, ..)| place.node == node).map(|(.., channel)| channel);
        self.clients.iter().enumerate().filter_map(|(index, client)| Some((index, at(client)?))).collect()
    }

    /// Clients whose node is gone try another.
    fn send_elsewhere(&mut self, clients: Vec<(usize, usize)>, from: usize) {
        for (client, channel) in clients {
            if self.dice.chance(70) {
                let node = (from + 1 + self.dice.below(NODES as u64 - 1) as usize) % NODES;
                let after = 100_000 + self.dice.below(1_500_000);
                self.schedule(after, Event::Act(Action::Return { client, node, channel }));
            }
        }
    }

    /// SIGTERM: as `server::drain`.
    fn drain(&mut self, node: usize) {
        if self.slots[node].node.is_none() || self.slots[node].draining || self.slots[node].paused {
            return;
        }
        self.slots[node].draining = true;
        let at = Place { node, life: self.slots[node].life };
        let told = self.clients_of(node);
        self.send_elsewhere(told, node);
        for client in 0..CLIENTS {
            if self.clients[client].at.is_some_and(|(place, ..)| place == at) {
                self.drop_client(client, End::Dropped);
            }
        }
        self.schedule((GRACE + 500) * 1_000, Event::LastLeave { at });
    }

    fn word(&mut self, at: Place, word: Word) -> Result<(), Violation> {
        let (now, start) = (self.now, self.start);
        let arrived = start + Duration::from_micros(now);
        self.on_node(at, |node, out| match word {
            Word::View { hub, connection, channel, present } => {
                node.view(hub, connection, &channel, now, out);
                if let Some(present) = present {
                    node.say(hub, &channel, present.word(connection, arrived), out);
                }
            }
            Word::Track { hub, connection, channel, present } => {
                node.say(hub, &channel, present.word(connection, arrived), out);
            }
            Word::Leave { hub, connection, channel } => {
                node.say(hub, &channel, ToChannel::Untrack { connection }, out);
                node.unview(hub, connection, &channel, out);
            }
            Word::Drop { hub, connection, channel } => {
                node.say(hub, &channel, ToChannel::Dropped { connection }, out);
                node.unview(hub, connection, &channel, out);
            }
        })
    }

    // --- the checks ---

    /// A frame reaches a client. G2 holds, and nobody is shown to leave who stayed (G5).
    fn receive(&mut self, place: Place, connection: u64, text: &str) -> Result<(), Violation> {
        let ms = self.ms();
        // One that has gone meanwhile does not read.
        let is_its =
            |client: &Client| client.at.is_some_and(|(at, _, its, _)| at == place && its == connection);
        let Some(client) = self.clients.iter().position(is_its) else { return Ok(()) };
        if self.trace {
            println!("{ms:>7} ms  client {client} at node {} reads {text}", place.node);
        }
        let seen =
            self.clients[client].view.receive(text).map_err(|what| format!("G2: client {client}: {what}"))?;
        for shown in seen.joined.iter().chain(&seen.left) {
            if self.must_be_silent(*shown) {
                return Err(format!("G5: client {client} is shown {shown:?}, who came back in time: {text}"));
            }
        }
        for shown in seen.left {
            self.note_delay(shown, place);
            let user = &self.clients[shown.client].user;
            let roster = self.clients[client].view.roster.iter().flatten();
            let still = roster.map(|(_, (other, _))| other).any(|other| **other == **user);
            if !still && self.is_present(shown) && !self.excused(shown.client, place) {
                return Err(format!(
                    "G5: client {client} at node {} is shown that {shown:?} left, who stayed",
                    place.node
                ));
            }
        }
        Ok(())
    }

    /// Whether nobody may be shown anything of this now: its client has come back within the grace.
    fn must_be_silent(&self, shown: Shown) -> bool {
        let them = &self.clients[shown.client];
        let Some(returned) = them.returned.filter(|returned| returned.silent && them.at.is_some()) else {
            return false;
        };
        let ms = self.ms();
        let calm =
            self.faults == 0 && (self.healthy_since == 0 || self.healthy_since + CONVERGED <= returned.left);
        them.meta == shown.meta && calm && ms < returned.back + GRACE + SLACK
    }

    /// Somebody is seen to have left: how long after, where nothing was broken meanwhile.
    fn note_delay(&mut self, shown: Shown, place: Place) {
        let Some((ended, how, _)) = self.clients[shown.client].ended.get(&shown.meta) else { return };
        if self.faults == 0 && (self.healthy_since == 0 || *ended > self.healthy_since + CONVERGED) {
            let worst = match how {
                End::Left => &mut self.worst.left,
                End::Dropped => &mut self.worst.dropped,
                End::Vanished => &mut self.worst.vanished,
                End::Died => &mut self.worst.died,
            };
            let alone_until = if *how == End::Died { self.slots[place.node].since } else { 0 };
            *worst = (*worst).max(self.now / 1_000 - (*ended).max(alone_until));
        }
    }

    /// Whether what is shown is what that client shows, without a break since it began to. Where it came
    /// back late, without a key or through a fault, its old seat may be seen to end first.
    fn is_present(&self, shown: Shown) -> bool {
        let them = &self.clients[shown.client];
        let unbroken = them
            .returned
            .is_none_or(|returned| returned.silent || returned.back + DEAD + CONVERGED < self.ms());
        them.at.is_some() && them.meta == shown.meta && unbroken
    }

    /// Whether a viewer at `place` may think that the node of `client` is dead.
    fn excused(&self, client: usize, place: Place) -> bool {
        self.clients[client].at.is_some_and(|(at, ..)| {
            at != place
                && (self.slots[at.node].trouble_until >= self.ms()
                    || self.slots[place.node].trouble_until == Ms::MAX)
        })
    }

    /// G4: whoever has gone is shown no longer than promised.
    fn check_ghosts(&mut self) -> Result<(), Violation> {
        if self.faults > 0 {
            return Ok(());
        }
        let ms = self.ms();
        for (viewer, me) in self.clients.iter().enumerate() {
            let Some((place, ..)) = me.at else { continue };
            let calm_since = self.healthy_since;
            for (_, (_, shown)) in me.view.roster.iter().flatten() {
                let Some((ended, how, _)) = self.clients[shown.client].ended.get(&shown.meta).copied() else {
                    continue;
                };
                let recent = ended < calm_since + NODE_TTL || calm_since + CONVERGED + DEAD > ms;
                let strict = match how {
                    End::Left => SLACK,
                    End::Dropped => GRACE + SLACK,
                    End::Vanished => SILENT + GRACE + SLACK,
                    End::Died => DEAD,
                };
                let allowed = if recent && calm_since > 0 {
                    strict.max(CONVERGED).max(NODE_TTL + DEAD)
                } else {
                    strict
                };
                // Who dies while no other node lives is gone some time after one does.
                let alone_until = if how == End::Died { self.slots[place.node].since } else { 0 };
                let lingers = ms.saturating_sub(ended.max(calm_since).max(alone_until));
                if lingers > allowed {
                    return Err(format!(
                        "G4: client {viewer} at node {} still sees {shown:?}, {how:?} {lingers} ms ago (allowed {allowed})",
                        place.node
                    ));
                }
            }
        }
        Ok(())
    }

    /// G3, G7: every node's roster, every client's view and the store are what the clients truly are.
    fn check_agreement(&mut self, with_store: bool) -> Result<(), Violation> {
        let ms = self.ms();
        for channel in 0..CHANNELS {
            let name = channel_name(channel);
            let mut truth: BTreeMap<(usize, u64), Arc<str>> = BTreeMap::new();
            for (index, client) in self.clients.iter().enumerate() {
                if client.at.is_some_and(|(.., at)| at == channel) && !Client::observes(index) {
                    truth.insert((index, client.meta), Arc::clone(&client.user));
                }
            }
            for node in self.slots.iter().filter_map(|slot| slot.node.as_ref()) {
                let Some(roster) = node.roster(&name) else { continue };
                let mut found = BTreeMap::new();
                for member in &roster.snapshot.members {
                    for (_, entry) in &member.seats {
                        let meta: serde_json::Value = serde_json::from_str(&entry.meta).expect("a meta");
                        let key = (
                            meta["client"].as_u64().unwrap_or(0) as usize,
                            meta["meta"].as_u64().unwrap_or(0),
                        );
                        if found.insert(key, Arc::clone(&member.user)).is_some() {
                            return Err(format!("G7: {:?} has {key:?} twice in {name}", node.id));
                        }
                    }
                }
                if found != truth {
                    return Err(format!(
                        "G3: {:?} has {found:?} in {name}, but there are {truth:?}",
                        node.id
                    ));
                }
            }
            for (viewer, me) in self.clients.iter().enumerate() {
                if me.at.is_none_or(|(.., at)| at != channel) {
                    continue;
                }
                let Some(roster) = &me.view.roster else {
                    return Err(format!("client {viewer} has no roster"));
                };
                let seen: BTreeMap<_, _> =
                    roster.values().map(|(u, s)| ((s.client, s.meta), Arc::from(u.as_str()))).collect();
                if seen != truth || seen.len() != roster.len() {
                    return Err(format!(
                        "G2: client {viewer} sees {roster:?} in {name}, but there are {truth:?}"
                    ));
                }
            }
            if with_store {
                let fields = self.store.fields(&name, ms);
                let mut users: Vec<&str> = fields.values().map(String::as_str).collect();
                let mut there: Vec<&str> = truth.values().map(|user| &**user).collect();
                users.sort_unstable();
                there.sort_unstable();
                if users != there {
                    return Err(format!("Redis has {fields:?} in {name}, but there are {truth:?}"));
                }
            }
        }
        Ok(())
    }
}
