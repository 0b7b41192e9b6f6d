//! The hub: one a worker thread, it holds the thread's outboxes and who of them views what.
//!
//! Sockets stay on the thread that accepted them, so everything here is without locks: connections
//! call [`Hub`] directly, and channels send the actor around it one message for each diff. The hub
//! also sweeps, once a second, for sockets that are silent and for sessions that have ended.

mod actor;
mod drain;
mod frames;
mod line;
mod outbox;
mod room;
mod viewers;

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::Addr;
use bytes::Bytes;

use crate::channel::{
    Alive, Channel, Detach, Dropped, HubLink, Identify, Meter, Published, Registry, Relayed, Rosters, Say,
    Track, Untrack, Update,
};
use crate::cluster::{Act, wall_clock};
use crate::dialects::{self, Broadcast, Frame, SocketId, WireFormat};
use crate::health::Trouble;
use crate::metrics::Metrics;
use crate::presence::{Ref, ResumeKey, Snapshot};
use crate::reject::Close;
use crate::settings::Settings;

pub use actor::{CheckSessions, CloseSessions, Drain, HubActor, Hubs, Rules, SessionCheck, Tie};
pub use drain::{below, spread};
pub use frames::{close, close_echo, finish, ping, pong};
pub use line::{Line, retry, retry_spread};
pub use outbox::{ConnId, Ended, Outbox};
pub use room::Room;
pub use viewers::Viewers;

/// How often it is told at most that somebody is active: so much longer may it take to be idle.
const ACTIVITY_EVERY: Duration = Duration::from_secs(30);

/// How long what is told of activity is good, and how often it is told again, in sweeps.
const TOLD_FOR: Duration = Duration::from_secs(45);
const TELL_AGAIN: u32 = 20;

/// The hub as the connections of its thread hold it.
pub type SharedHub = Rc<RefCell<Hub>>;

/// How one viewer is told about a channel.
#[derive(Clone, Debug)]
pub struct View {
    pub format: WireFormat,
    /// Echoed in the roster that the viewer is sent.
    pub join_ref: Option<Box<str>>,
    /// The version of the roster that the viewer has from before: that one is not sent again.
    pub known: Option<u64>,
    /// Whether it is told the roster and diffs, and not only what is said.
    pub roster: bool,
    /// Who must be in the roster before the viewer is told it: the viewer itself, where its dialect asks so.
    pub awaits: Option<Arc<str>>,
}

impl View {
    /// A view of the roster, as it is.
    pub fn new(format: WireFormat) -> Self {
        Self { format, join_ref: None, known: None, roster: true, awaits: None }
    }

    /// Whether `roster` is one that the viewer can be told.
    fn is_ready(&self, roster: &Snapshot) -> bool {
        self.awaits.as_ref().is_none_or(|user| roster.member(user).is_some())
    }
}

/// Where one viewer is sent to.
struct Viewer {
    outbox: Rc<Outbox>,
    view: View,
}

/// A channel that has viewers on this thread.
struct Viewed {
    channel: Addr<Channel>,
    meter: Arc<Meter>,
    viewers: Viewers<Viewer>,
}

struct Connected {
    line: Line,
    outbox: Rc<Outbox>,
    channels: Vec<Arc<str>>,
    next_beat: u32,
    tie: Option<Tie>,
    /// The users who were told to be active by it, and until when they are, in milliseconds since 1970.
    active: Vec<(Arc<str>, u64)>,
}

/// The state of one thread's hub.
pub struct Hub {
    number: usize,
    address: Option<Addr<HubActor>>,
    rules: Rules,
    registry: Registry,
    rosters: Rosters,
    metrics: Arc<Metrics>,
    started: Instant,
    connections: HashMap<ConnId, Connected>,
    channels: HashMap<Arc<str>, Viewed>,
    /// What is set for channels; none without a database.
    settings: Option<Settings>,
    /// Who has become active, or is no more, since the last sweep.
    acts: Vec<Act>,
}

impl Hub {
    /// Seconds since the hub began: its clock for liveness.
    pub fn now(&self) -> u32 {
        u32::try_from(self.started.elapsed().as_secs()).unwrap_or(u32::MAX)
    }

    /// When the hub began: the zero of [`Hub::now`].
    pub fn clock(&self) -> Instant {
        self.started
    }

    /// A ref that nothing else in the cluster has.
    pub fn fresh_ref(&self) -> Ref {
        self.registry.shared().ids.r#ref()
    }

    /// Takes a new connection in. `tie` binds it to a session.
    pub fn connect(&mut self, line: Line, output_limit: usize, tie: Option<Tie>) -> Rc<Outbox> {
        let id = self.registry.shared().ids.number();
        let now = self.now();
        let outbox = Rc::new(Outbox::new(id, output_limit, now));
        let next_beat = now + line.beat_every(&self.rules);
        let connected = Connected {
            line,
            outbox: Rc::clone(&outbox),
            channels: Vec::new(),
            next_beat,
            tie,
            active: Vec::new(),
        };
        self.connections.insert(id, connected);
        line.gauge(&self.metrics).inc();
        if line.speaks() {
            self.metrics.connections_opened.inc();
        }
        outbox
    }

    /// Lets a connection go whose socket has ended: its channels are told. Twice is once.
    pub fn disconnect(&mut self, id: ConnId) {
        let Some(connected) = self.connections.remove(&id) else { return };
        connected.line.gauge(&self.metrics).dec();
        connected.outbox.finish();
        self.acts.extend(connected.active.into_iter().map(|(user, _)| Act {
            user,
            connection: id,
            until: None,
        }));
        for channel in connected.channels {
            if connected.line.speaks()
                && let Some(viewed) = self.channels.get(&channel)
            {
                viewed.channel.do_send(Dropped { connection: id });
            }
            self.remove_viewer(id, &channel);
        }
    }

    /// `id` views `channel` from now on: it is sent the roster, now or as soon as it is known, and
    /// then every diff. Where it viewed it before, the new view replaces the old.
    pub fn view(&mut self, id: ConnId, channel: &str, view: View) {
        let Some(outbox) = self.connections.get(&id).map(|c| Rc::clone(&c.outbox)) else { return };
        let name = self.ensure_viewed(channel);
        if let Some(connected) = self.connections.get_mut(&id)
            && !connected.channels.contains(&name)
        {
            connected.channels.reserve_exact(1);
            connected.channels.push(Arc::clone(&name));
        }
        let Some(viewed) = self.channels.get_mut(&name) else { return };
        if !view.roster {
            viewed.viewers.insert_quiet(id, Viewer { outbox, view });
            viewed.meter.set_viewers(viewed.viewers.len());
            return;
        }
        let published = self.rosters.get(&name).filter(|published| view.is_ready(&published.snapshot));
        let version = published.as_ref().map(|published| published.snapshot.version);
        let sent = match (viewed.viewers.insert(id, Viewer { outbox, view }, version), published) {
            (Some(viewer), Some(published)) => send_roster(&self.metrics, &name, viewer, &published),
            _ => Ok(()),
        };
        viewed.meter.set_viewers(viewed.viewers.len());
        if sent.is_err() {
            self.overflowed(id);
        }
    }

    /// `id` views `channel` no more.
    pub fn unview(&mut self, id: ConnId, channel: &str) {
        if let Some(connected) = self.connections.get_mut(&id) {
            connected.channels.retain(|name| &**name != channel);
        }
        self.remove_viewer(id, channel);
    }

    /// `id`, who views `channel`, is present in it as `user` and shows `meta`.
    pub fn track(
        &self,
        id: ConnId,
        channel: &str,
        user: Arc<str>,
        meta: Arc<str>,
        resume: Option<ResumeKey>,
    ) {
        // A connection that was let go, but whose actor still runs, must not come back as a ghost.
        if self.connections.contains_key(&id)
            && let Some(viewed) = self.channels.get(channel)
        {
            viewed.channel.do_send(Track { connection: id, user, meta, resume, at: Instant::now() });
        }
    }

    /// `id` is present in `channel` no more, by its own word.
    pub fn untrack(&self, id: ConnId, channel: &str) {
        if let Some(viewed) = self.channels.get(channel) {
            viewed.channel.do_send(Untrack { connection: id });
        }
    }

    /// `id`, if it is present in `channel`, is so as `user` from now on.
    pub fn identify(&self, id: ConnId, channel: &str, user: Arc<str>) {
        if let Some(viewed) = self.channels.get(channel) {
            viewed.channel.do_send(Identify { connection: id, user });
        }
    }

    /// Says something to all who view `channel`, on all nodes.
    pub fn say(&self, channel: &str, broadcast: Arc<Broadcast>) {
        match self.channels.get(channel) {
            Some(viewed) => viewed.channel.do_send(Say(broadcast)),
            None => self.registry.say(channel, broadcast),
        }
    }

    /// What the cluster calls `id`.
    pub fn socket_id(&self, id: ConnId) -> SocketId {
        SocketId { node: self.registry.shared().ids.node().number(), connection: id }
    }

    /// `id` is bound to another session from now on.
    pub fn tie(&mut self, id: ConnId, tie: Tie) {
        if let Some(connected) = self.connections.get_mut(&id) {
            connected.tie = Some(tie);
        }
    }

    /// Something came from `id`, whom [`Hub::probe`] asked for a sign of life.
    pub fn alive(&self, id: ConnId) {
        let Some(connected) = self.connections.get(&id) else { return };
        for viewed in connected.channels.iter().filter_map(|channel| self.channels.get(channel)) {
            viewed.channel.do_send(Alive { connection: id });
        }
    }

    /// How often it is worth telling that somebody is active; none where nobody is told.
    pub fn activity_every(&self) -> Option<Duration> {
        (self.rules.idle_after > Duration::ZERO).then(|| (self.rules.idle_after / 4).min(ACTIVITY_EVERY))
    }

    /// `users` are active by `id` from now on, for as long as it takes to be idle; or not by it any more. Told
    /// with the next sweep.
    pub fn note_active(&mut self, id: ConnId, users: Vec<Arc<str>>, active: bool) {
        let Some(every) = self.activity_every() else { return };
        let Some(connected) = self.connections.get_mut(&id) else { return };
        let now = wall_clock();
        // What happens soon after is not told again: so nobody is idle too early.
        let until = now + (self.rules.idle_after + every).as_millis() as u64;
        for user in users {
            connected.active.retain(|(known, _)| *known != user);
            let told = active.then(|| until.min(now + TOLD_FOR.as_millis() as u64));
            self.acts.push(Act { user: Arc::clone(&user), connection: id, until: told });
            if active {
                connected.active.push((user, until));
            }
        }
    }

    /// Tells again who is still active: what stands of a node that is no more ends soon, and what Redis lost comes
    /// back.
    fn tell_active_again(&mut self) {
        let now = wall_clock();
        for (id, connected) in &mut self.connections {
            connected.active.retain(|(_, until)| *until > now);
            for (user, until) in &connected.active {
                let until = Some((*until).min(now + TOLD_FOR.as_millis() as u64));
                self.acts.push(Act { user: Arc::clone(user), connection: *id, until });
            }
        }
    }

    /// Asks `id` for a sign of life, if it is one of this thread's.
    fn probe(&mut self, id: ConnId) {
        if let Some(connected) = self.connections.get(&id) {
            let outbox = Rc::clone(&connected.outbox);
            outbox.doubt();
            self.send(&outbox, frames::ping());
        }
    }

    /// Queues a frame for one connection; a full queue ends it.
    pub fn send(&mut self, outbox: &Outbox, frame: Bytes) {
        self.metrics.frames_out.inc();
        self.metrics.bytes_out.inc_by(frame.len() as u64);
        if outbox.push(frame).is_err() {
            self.overflowed(outbox.id());
        }
    }

    /// How many connections the thread has.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    fn ensure_viewed(&mut self, channel: &str) -> Arc<str> {
        if let Some((name, _)) = self.channels.get_key_value(channel) {
            return Arc::clone(name);
        }
        let name: Arc<str> = channel.into();
        let meter = Arc::new(Meter::default());
        let link = self.address.clone().map(|address| HubLink {
            hub: self.number,
            live: address.clone().recipient(),
            fan: address.clone().recipient(),
            probe: address.clone().recipient(),
            relay: address.recipient(),
            meter: Arc::clone(&meter),
        });
        let address = self.registry.attach(&name, link);
        let viewed = Viewed { channel: address, meter, viewers: Viewers::default() };
        self.channels.insert(Arc::clone(&name), viewed);
        name
    }

    fn remove_viewer(&mut self, id: ConnId, channel: &str) {
        let Some(viewed) = self.channels.get_mut(channel) else { return };
        viewed.viewers.remove(id);
        viewed.meter.set_viewers(viewed.viewers.len());
        if viewed.viewers.is_empty() {
            viewed.channel.do_send(Detach { hub: self.number });
            self.channels.remove(channel);
        }
    }

    /// Sends the roster to the viewers who wait for it.
    fn live(&mut self, channel: &str, meter: &Arc<Meter>) {
        let Some(viewed) = self.channels.get_mut(channel) else { return };
        if !Arc::ptr_eq(&viewed.meter, meter) {
            return;
        }
        let Some(published) = self.rosters.get(channel) else { return };
        viewed.viewers.go_live();
        self.send_waiting(channel, &published);
    }

    /// Sends a roster to those who wait for it.
    fn send_waiting(&mut self, channel: &str, published: &Published) {
        let Some(viewed) = self.channels.get_mut(channel) else { return };
        let (roster, mut slow) = (&published.snapshot, Vec::new());
        for (id, viewer) in viewed.viewers.take_roster(roster.version, |viewer| viewer.view.is_ready(roster))
        {
            if send_roster(&self.metrics, channel, viewer, published).is_err() {
                slow.push(id);
            }
        }
        for id in slow {
            self.overflowed(id);
        }
    }

    /// Passes what somebody says on to every viewer but the one who says it.
    fn relay(&mut self, relayed: &Relayed) {
        let except = match &*relayed.broadcast {
            Broadcast::Terminate => return self.terminate(&relayed.channel),
            Broadcast::Said { except, .. } => *except,
        };
        let here = self.socket_id(0).node;
        let except = except.filter(|socket| socket.node == here).map(|socket| socket.connection);
        let Some(viewed) = self.channels.get(&*relayed.channel) else { return };
        let (mut sent, mut bytes, mut slow) = (0, 0, Vec::new());
        for (id, viewer, has_roster) in viewed.viewers.listeners() {
            // Who has not been told that it has joined is told nothing else before.
            let is_early = !has_roster && viewer.view.awaits.is_some();
            if Some(id) == except || is_early || viewer.outbox.has_ended() {
                continue;
            }
            let format = viewer.view.format;
            let frame = relayed.frame(format, |messages| finish_counted(&self.metrics, format, messages));
            if frame.is_empty() {
                continue;
            }
            sent += 1;
            bytes += frame.len() as u64;
            if viewer.outbox.push(frame.clone()).is_err() {
                slow.push(id);
            }
        }
        self.metrics.frames_out.inc_by(sent);
        self.metrics.bytes_out.inc_by(bytes);
        for id in slow {
            self.overflowed(id);
        }
    }

    /// Ends the connections of the user whose channel this is; not of those who only watch.
    fn terminate(&mut self, channel: &str) {
        let Some(viewed) = self.channels.get(channel) else { return };
        let is_own = |viewer: &Viewer| viewer.view.format != WireFormat::PusherWatch;
        let own = viewed.viewers.listeners().filter(|(_, viewer, _)| is_own(viewer));
        let ids: Vec<ConnId> = own.map(|(id, ..)| id).collect();
        for id in ids {
            self.close(id, Close::Terminated);
        }
    }

    /// Sends a diff to every viewer who does not have it yet.
    fn fan(&mut self, update: &Update) {
        let Some(viewed) = self.channels.get_mut(&*update.channel) else { return };
        let (mut sent, mut bytes, mut slow) = (0, 0, Vec::new());
        for (id, viewer) in viewed.viewers.take_diff(update.version()) {
            // One that is closing takes no more, and is no slow reader for that.
            if viewer.outbox.has_ended() {
                continue;
            }
            let format = viewer.view.format;
            let finish = |messages: &[Frame]| finish_counted(&self.metrics, format, messages);
            let frame = update.frame(format, finish).clone();
            if frame.is_empty() {
                continue;
            }
            sent += 1;
            bytes += frame.len() as u64;
            if viewer.outbox.push(frame).is_err() {
                slow.push(id);
            }
        }
        self.metrics.frames_out.inc_by(sent);
        self.metrics.bytes_out.inc_by(bytes);
        self.send_waiting(&update.channel, update.roster());
        if let Some(oldest) = update.oldest {
            self.metrics.join_to_visible.observe(oldest.elapsed().as_secs_f64());
        }
        for id in slow {
            self.overflowed(id);
        }
    }

    /// The outbox of `id` takes no more. If that is because its reader is slow, the connection ends
    /// here and now: its actor may stand still with the socket.
    fn overflowed(&mut self, id: ConnId) {
        if self.connections.contains_key(&id) {
            self.metrics.slow_readers.inc();
            self.metrics.health.set(Trouble::SlowReaders, "");
            tracing::debug!(connection = id, "closing a connection that does not read");
            self.disconnect(id);
        }
    }

    /// Ends a connection, which is told why if it can be.
    fn close(&mut self, id: ConnId, why: Close) {
        if let Some(connected) = self.connections.get(&id) {
            if let Some(farewell) = connected.line.farewell(why) {
                // An outbox with no room ends all the same.
                let _ = connected.outbox.push(farewell);
            }
            connected.outbox.finish();
        }
    }
}

/// Makes one piece of `messages`, and counts that they were encoded.
fn finish_counted(metrics: &Metrics, format: WireFormat, messages: &[Frame]) -> Bytes {
    let (_, name) = WireFormat::ALL[format.index()];
    metrics.encodes.get_or_create(&[("format", name)]).inc();
    frames::finish(messages)
}

/// Sends the roster, in the viewer's form, unless the viewer has that very one.
fn send_roster(
    metrics: &Metrics,
    channel: &str,
    viewer: &Viewer,
    published: &Published,
) -> Result<(), Ended> {
    let View { format, join_ref, known, .. } = &viewer.view;
    if *known == Some(published.snapshot.version) {
        return Ok(());
    }
    let around = dialects::state_envelope(*format, channel, join_ref.as_deref(), &published.snapshot);
    let Some((head, tail)) = around else { return Ok(()) };
    let parts = frames::finish_around(*format, head, published.state(*format), tail);
    metrics.frames_out.inc();
    metrics.bytes_out.inc_by(parts.iter().map(|part| part.len() as u64).sum());
    viewer.outbox.push_parts(parts)
}
