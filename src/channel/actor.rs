//! The channel actor: the shell around [`ChannelState`] that owns its timers and its messages.
//!
//! A change comes in from a connection of this node (`Track`, `Untrack`, `Dropped`) or from another
//! node (`Told`), goes through the state, and leaves in two directions: to the cluster at once, and
//! to the hubs as a diff when the window allows. The roster is published before the diff is sent,
//! so a viewer who starts in between finds the diff's changes in the roster and skips the diff.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{Actor, ActorContext as _, AsyncContext as _, Context, Handler, Message, SpawnHandle};

use super::state::{ChannelState, HeardAs, Output};
use super::window::window;
use super::{Fan, HubLink, Published, Registry, Shared, Update};
use crate::cluster::{Told, wall_clock};
use crate::presence::Diff;

/// How long a channel without any interest stays, in case someone comes back.
const LINGER: Duration = Duration::from_secs(5);
/// How long a channel waits for its first reading before it shows what it knows.
const LOADING: Duration = Duration::from_secs(2);
/// Diffs a hub may have unhandled. Over it, changes gather longer: the queue to a hub is bounded.
const MAX_BEHIND: usize = 2;

/// A hub (or, with no link, a caller without viewers) takes an interest in the channel.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Attach {
    pub link: Option<HubLink>,
}

/// The hub has no viewers left.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Detach {
    pub hub: usize,
}

/// A connection is present as `user` and shows `meta`.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Track {
    pub connection: u64,
    pub user: Arc<str>,
    pub meta: Arc<str>,
    /// When it arrived here.
    pub at: Instant,
}

/// A connection is present no more, by its own word.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Untrack {
    pub connection: u64,
}

/// A connection's socket has ended.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Dropped {
    pub connection: u64,
}

/// The node is going away: own members leave now.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Drain;

/// One channel on one node.
pub struct Channel {
    name: Arc<str>,
    registry: Registry,
    shared: Arc<Shared>,
    state: ChannelState,
    links: Vec<HubLink>,
    attached: u64,
    /// Whether a roster is published and hubs were told so.
    published: bool,
    /// When the last diff was sent, and how long what it cost asks to wait after it.
    last_diff: Option<(Instant, Duration)>,
    flush_timer: Option<SpawnHandle>,
    grace_timer: Option<SpawnHandle>,
    linger_timer: Option<SpawnHandle>,
    own_seats: usize,
}

impl Channel {
    pub(super) fn new(name: Arc<str>, registry: Registry) -> Self {
        let shared = Arc::clone(registry.shared());
        let state = ChannelState::new(shared.ids.clone(), shared.grace);
        Self {
            name,
            registry,
            shared,
            state,
            links: Vec::new(),
            attached: 0,
            published: false,
            last_diff: None,
            flush_timer: None,
            grace_timer: None,
            linger_timer: None,
            own_seats: 0,
        }
    }

    /// After every input: does what the state asks for.
    fn settle(&mut self, ctx: &mut Context<Self>) {
        for output in self.state.take_outputs() {
            match output {
                Output::Announce(batch) => self.shared.cluster.announce(&self.name, batch),
                Output::Read(asked) => self.shared.cluster.read(&self.name, asked, ctx.address().recipient()),
            }
        }
        let own_seats = self.state.own_seats();
        self.shared.metrics.members.inc_by(own_seats as i64 - self.own_seats as i64);
        self.own_seats = own_seats;
        if self.state.is_live() {
            if self.published {
                self.schedule_flush(ctx);
            } else {
                self.publish_first();
            }
        }
        self.schedule_grace(ctx);
        self.schedule_linger(ctx);
    }

    fn schedule_flush(&mut self, ctx: &mut Context<Self>) {
        if self.state.pending().is_empty() || self.flush_timer.is_some() {
            return;
        }
        let wait = self.wait_for_window(Instant::now());
        if wait.is_zero() {
            self.flush();
        } else {
            self.flush_timer = Some(ctx.run_later(wait, |this, ctx| {
                this.flush_timer = None;
                this.schedule_flush(ctx);
            }));
        }
    }

    /// What the pending diff would cost, as the least time between it and another.
    fn window(&self) -> Duration {
        let viewers = self.links.iter().map(|link| link.meter.viewers()).sum();
        let pending = self.state.pending();
        window(viewers, pending.len(), pending.bytes())
    }

    /// How long the pending diff must still wait.
    fn wait_for_window(&self, now: Instant) -> Duration {
        let window = self.window();
        if self.links.iter().any(|link| link.meter.behind() >= MAX_BEHIND) {
            return window;
        }
        match self.last_diff {
            Some((last, cost)) => (last + window.max(cost)).saturating_duration_since(now),
            None => Duration::ZERO,
        }
    }

    fn flush(&mut self) {
        let cost = self.window();
        let (diff, oldest) = self.state.take_diff();
        if diff.is_empty() {
            return;
        }
        self.last_diff = Some((Instant::now(), cost));
        self.count(&diff);
        self.shared.metrics.diffs.inc();
        let roster = self.publish();
        let update = Arc::new(Update::new(Arc::clone(&self.name), roster, diff, oldest));
        for link in &self.links {
            link.meter.sent();
            link.fan.do_send(Fan { update: Arc::clone(&update), meter: Arc::clone(&link.meter) });
        }
    }

    fn publish_first(&mut self) {
        let (diff, _) = self.state.take_diff();
        self.count(&diff);
        self.publish();
        self.published = true;
        for link in &self.links {
            link.go_live(&self.name);
        }
    }

    fn publish(&self) -> Arc<Published> {
        let version = self.shared.ids.number();
        let published = Arc::new(Published::new(self.state.snapshot(version)));
        self.shared.rosters.publish(&self.name, Arc::clone(&published));
        published
    }

    fn count(&self, diff: &Diff) {
        let updates = diff.joins.iter().filter(|(_, old)| old.is_some()).count() as u64;
        let metrics = &self.shared.metrics;
        metrics.joins.inc_by(diff.joins.len() as u64 - updates);
        metrics.leaves.inc_by(diff.leaves.len() as u64 - updates);
        metrics.updates.inc_by(updates);
    }

    fn schedule_grace(&mut self, ctx: &mut Context<Self>) {
        if self.grace_timer.is_some() {
            return;
        }
        let Some(next) = self.state.next_grace() else { return };
        let wait = next.saturating_duration_since(Instant::now());
        self.grace_timer = Some(ctx.run_later(wait, |this, ctx| {
            this.grace_timer = None;
            this.state.end_grace(Instant::now());
            this.settle(ctx);
        }));
    }

    /// Whether the channel may end: nobody here is interested, and Redis knows that nobody is in.
    fn is_idle(&self) -> bool {
        self.links.is_empty() && self.own_seats == 0 && self.shared.cluster.is_settled()
    }

    fn schedule_linger(&mut self, ctx: &mut Context<Self>) {
        if self.links.is_empty() && self.own_seats == 0 && self.linger_timer.is_none() {
            self.linger_timer = Some(ctx.run_later(LINGER, |this, ctx| {
                this.linger_timer = None;
                if this.is_idle() && this.registry.retire(&this.name, this.attached) {
                    ctx.stop();
                } else {
                    this.schedule_linger(ctx);
                }
            }));
        }
    }

    fn beat(&mut self, ctx: &mut Context<Self>) {
        let (version, seats) = self.state.own();
        self.shared.cluster.beat(&self.name, version, seats, ctx.address().recipient());
    }
}

impl Actor for Channel {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        if self.shared.cluster.is_local() {
            self.state.go_live();
        } else {
            self.shared.cluster.open(&self.name, ctx.address().recipient());
            ctx.run_interval(self.shared.heartbeat, Self::beat);
            ctx.run_later(LOADING, |this, ctx| {
                if !this.state.is_live() {
                    tracing::warn!(channel = %this.name, "the roster could not be read in time; showing what this node knows");
                    this.state.go_live();
                    this.settle(ctx);
                }
            });
        }
        self.settle(ctx);
    }
}

impl Handler<Attach> for Channel {
    type Result = ();

    fn handle(&mut self, Attach { link }: Attach, ctx: &mut Self::Context) {
        self.attached += 1;
        if let Some(link) = link {
            if self.published {
                link.go_live(&self.name);
            }
            self.links.push(link);
        }
        self.settle(ctx);
    }
}

impl Handler<Detach> for Channel {
    type Result = ();

    fn handle(&mut self, Detach { hub }: Detach, ctx: &mut Self::Context) {
        self.links.retain(|link| link.hub != hub);
        self.settle(ctx);
    }
}

impl Handler<Track> for Channel {
    type Result = ();

    fn handle(&mut self, track: Track, ctx: &mut Self::Context) {
        self.state.track(track.connection, &track.user, &track.meta, wall_clock(), track.at);
        self.settle(ctx);
    }
}

impl Handler<Untrack> for Channel {
    type Result = ();

    fn handle(&mut self, Untrack { connection }: Untrack, ctx: &mut Self::Context) {
        self.state.untrack(connection, Instant::now());
        self.settle(ctx);
    }
}

impl Handler<Dropped> for Channel {
    type Result = ();

    fn handle(&mut self, Dropped { connection }: Dropped, ctx: &mut Self::Context) {
        self.state.dropped(connection, Instant::now());
        self.settle(ctx);
    }
}

impl Handler<Drain> for Channel {
    type Result = ();

    fn handle(&mut self, Drain: Drain, ctx: &mut Self::Context) {
        self.state.leave_all(Instant::now());
        self.settle(ctx);
    }
}

impl Handler<Told> for Channel {
    type Result = ();

    fn handle(&mut self, told: Told, ctx: &mut Self::Context) {
        match told {
            Told::Batch { node, batch } => {
                if self.state.hear(node, batch) == HeardAs::Gap {
                    self.shared.metrics.redis_gaps.inc();
                }
            }
            Told::Read(reading) => self.state.merge(reading),
            Told::ReadAgain => self.state.read_again(),
            Told::WriteAgain => {
                let (version, seats) = self.state.own();
                self.shared.cluster.write_again(&self.name, version, seats);
            }
            Told::Away => self.state.go_live(),
            Told::NodeDown(node) => self.state.node_down(node),
            Told::Beaten { versions, missing } => {
                self.state.compare(&versions);
                if !missing.is_empty() {
                    self.shared.metrics.redis_repairs.inc_by(missing.len() as u64);
                    let version = self.state.own().0;
                    let ops = self.state.entries(&missing);
                    self.shared.cluster.repair(&self.name, version, ops);
                }
            }
        }
        self.settle(ctx);
    }
}
