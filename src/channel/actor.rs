//! The channel actor: the shell around [`ChannelCore`] that owns its timers and its messages.
//!
//! A change comes in from a connection of this node (`Track`, `Untrack`, `Dropped`) or from another
//! node (`Told`), goes through the core, and leaves in two directions: to the cluster at once, and
//! to the hubs as a diff when the window allows.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{
    Actor, ActorContext as _, AsyncContext as _, Context, Handler, Message, MessageResult, SpawnHandle,
};

use super::core::{Audience, ChannelCore, Effect, Noticed};
use super::{Fan, HubLink, Probe, Published, Registry, Relay, Relayed, Shared, Update};
use crate::cluster::{Told, today, wall_clock};
use crate::dialects::Broadcast;
use crate::logging::Seldom;
use crate::presence::{Diff, Entry, ResumeKey, Seat, Snapshot};

/// How long a channel without any interest stays, in case someone comes back.
const LINGER: Duration = Duration::from_secs(5);
/// How long a channel waits for its first reading before it shows what it knows.
const LOADING: Duration = Duration::from_secs(2);

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
    /// By what it is recognised when it comes back, beyond its user.
    pub resume: Option<ResumeKey>,
    /// When it arrived here.
    pub at: Instant,
}

/// A connection is present no more, by its own word.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Untrack {
    pub connection: u64,
}

/// A connection that is present is that of `user`, as it has proven since.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Identify {
    pub connection: u64,
    pub user: Arc<str>,
}

/// Somebody says something to all who view the channel, on all nodes.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Say(pub Arc<Broadcast>);

/// A connection's socket has ended.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Dropped {
    pub connection: u64,
}

/// Something came from a connection about which a [`Probe`] asked.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Alive {
    pub connection: u64,
}

/// Asks for the connections of `user` as they are now, those included whose socket has ended: what is
/// published says only what viewers were told.
#[derive(Message)]
#[rtype(result = "Vec<(Seat, Arc<Entry>)>")]
pub struct SeatsOf {
    pub user: Arc<str>,
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
    core: ChannelCore,
    links: Vec<HubLink>,
    attached: u64,
    /// The timer for the pending diff, and that for the next grace to end.
    diff_timer: Option<SpawnHandle>,
    grace_timer: Option<(Instant, SpawnHandle)>,
    linger_timer: Option<SpawnHandle>,
    own_seats: usize,
    /// The day on which something was counted last, and the most members that were told of it.
    counted: (u64, usize),
}

impl Channel {
    pub(super) fn new(name: Arc<str>, registry: Registry) -> Self {
        let shared = Arc::clone(registry.shared());
        let core = ChannelCore::new(shared.ids.clone(), shared.grace);
        Self {
            name,
            registry,
            shared,
            core,
            links: Vec::new(),
            attached: 0,
            diff_timer: None,
            grace_timer: None,
            linger_timer: None,
            own_seats: 0,
            counted: (0, 0),
        }
    }

    /// After every input: does what follows from it.
    fn settle(&mut self, ctx: &mut Context<Self>) {
        for effect in self.core.settle(self.audience(), Instant::now()) {
            self.carry_out(effect, ctx);
        }
        let audit = self.core.state.take_audit();
        self.shared.metrics.audit_ghosts.inc_by(audit.ghosts);
        self.shared.metrics.audit_missing.inc_by(audit.missing);
        self.shared.metrics.audit_skipped.inc_by(audit.skipped);
        let own_seats = self.core.state.own_seats();
        self.shared.metrics.members.inc_by(own_seats as i64 - self.own_seats as i64);
        self.own_seats = own_seats;
        self.count_day();
        self.schedule_diff(ctx);
        self.schedule_grace(ctx);
        self.schedule_linger(ctx);
    }

    fn carry_out(&mut self, effect: Effect, ctx: &mut Context<Self>) {
        let cluster = &self.shared.cluster;
        match effect {
            Effect::Announce(batch, digest) => cluster.announce(&self.name, batch, digest),
            Effect::Read(asked) => cluster.read(&self.name, asked, ctx.address().recipient()),
            // The one on whose thread it is knows it.
            Effect::Probe(connection) => {
                for link in &self.links {
                    link.probe.do_send(Probe { connection });
                }
            }
            Effect::WriteAgain { version, digest, seats } => {
                cluster.write_again(&self.name, version, digest, seats);
            }
            Effect::GoLive { roster, diff } => {
                self.count(&diff);
                let roster = self.publish(roster);
                self.shared.webhooks.note(&self.name, &diff, &roster.snapshot);
                for link in &self.links {
                    link.go_live(&self.name);
                }
            }
            Effect::Tell { roster, diff, oldest } => {
                self.count(&diff);
                self.shared.metrics.diffs.inc();
                let roster = self.publish(roster);
                self.shared.webhooks.note(&self.name, &diff, &roster.snapshot);
                let update = Arc::new(Update::new(Arc::clone(&self.name), roster, diff, oldest));
                for link in &self.links {
                    link.meter.sent();
                    link.fan.do_send(Fan { update: Arc::clone(&update), meter: Arc::clone(&link.meter) });
                }
            }
        }
    }

    /// Counts what has happened since. On a new day whoever is here has been here on that day.
    fn count_day(&mut self) {
        let (mut tally, today, online) = (self.core.state.take_tally(), today(), self.core.state.online());
        let (day, peak) = self.counted;
        if day != today {
            let (_, seats) = self.core.state.own();
            tally.users.extend(seats.iter().map(|(_, entry)| Arc::clone(&entry.user)));
        }
        if day != today || online > peak {
            self.counted = (today, online);
            tally.peak = online;
        }
        if !tally.is_empty() {
            self.shared.cluster.count(today, &self.name, tally);
        }
    }

    /// Tells the viewers on this node what somebody says.
    fn relay(&self, broadcast: Arc<Broadcast>) {
        self.shared.metrics.broadcasts.inc();
        let relayed = Arc::new(Relayed::new(Arc::clone(&self.name), broadcast));
        for link in &self.links {
            if link.meter.begin_relay() {
                link.relay.do_send(Relay { relayed: Arc::clone(&relayed), meter: Arc::clone(&link.meter) });
            } else {
                self.shared.metrics.broadcasts_dropped.inc();
            }
        }
    }

    fn audience(&self) -> Audience {
        Audience {
            viewers: self.links.iter().map(|link| link.meter.viewers()).sum(),
            behind: self.links.iter().map(|link| link.meter.behind()).max().unwrap_or(0),
        }
    }

    fn schedule_diff(&mut self, ctx: &mut Context<Self>) {
        if self.diff_timer.is_some() {
            return;
        }
        let now = Instant::now();
        let Some(at) = self.core.next_diff(self.audience(), now) else { return };
        self.diff_timer = Some(ctx.run_later(at.saturating_duration_since(now), |this, ctx| {
            this.diff_timer = None;
            this.settle(ctx);
        }));
    }

    fn publish(&self, roster: Snapshot) -> Arc<Published> {
        let published = Arc::new(Published::new(roster));
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
        let Some(next) = self.core.next_time() else { return };
        if let Some((at, timer)) = self.grace_timer.take() {
            if at <= next {
                self.grace_timer = Some((at, timer));
                return;
            }
            // What was waited for is further off than what has come up since.
            ctx.cancel_future(timer);
        }
        let wait = next.saturating_duration_since(Instant::now());
        let timer = ctx.run_later(wait, |this, ctx| {
            this.grace_timer = None;
            this.settle(ctx);
        });
        self.grace_timer = Some((next, timer));
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

    fn beat(&mut self, _: &mut Context<Self>) {
        self.count_day();
        let (version, seats) = self.core.state.own();
        self.shared.cluster.beat(&self.name, version, seats);
    }
}

impl Actor for Channel {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        if self.shared.cluster.is_local() {
            self.core.state.go_live();
        } else {
            self.shared.cluster.open(&self.name, ctx.address().recipient());
            ctx.run_interval(self.shared.heartbeat, Self::beat);
            ctx.run_later(LOADING, |this, ctx| {
                if !this.core.state.is_live() {
                    static LATE: Seldom = Seldom::new();
                    if let Some(times) = LATE.count() {
                        tracing::warn!(channel = %this.name, times, "the roster could not be read in time; showing what this node knows");
                    }
                    this.core.state.go_live();
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
            if self.core.is_published() {
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
        let Track { connection, user, meta, resume, at } = track;
        self.core.state.track(connection, &user, &meta, resume, wall_clock(), at);
        self.settle(ctx);
    }
}

impl Handler<Untrack> for Channel {
    type Result = ();

    fn handle(&mut self, Untrack { connection }: Untrack, ctx: &mut Self::Context) {
        self.core.state.untrack(connection, Instant::now());
        self.settle(ctx);
    }
}

impl Handler<Identify> for Channel {
    type Result = ();

    fn handle(&mut self, Identify { connection, user }: Identify, ctx: &mut Self::Context) {
        self.core.state.identify(connection, &user, wall_clock(), Instant::now());
        self.settle(ctx);
    }
}

impl Handler<Say> for Channel {
    type Result = ();

    fn handle(&mut self, Say(broadcast): Say, _: &mut Self::Context) {
        self.shared.cluster.say(&self.name, &broadcast);
        self.relay(broadcast);
    }
}

impl Handler<Dropped> for Channel {
    type Result = ();

    fn handle(&mut self, Dropped { connection }: Dropped, ctx: &mut Self::Context) {
        self.core.state.dropped(connection, wall_clock(), Instant::now());
        self.settle(ctx);
    }
}

impl Handler<Alive> for Channel {
    type Result = ();

    fn handle(&mut self, Alive { connection }: Alive, ctx: &mut Self::Context) {
        self.core.state.alive(connection, Instant::now());
        self.settle(ctx);
    }
}

impl Handler<SeatsOf> for Channel {
    type Result = MessageResult<SeatsOf>;

    fn handle(&mut self, SeatsOf { user }: SeatsOf, _: &mut Self::Context) -> Self::Result {
        let roster = self.core.state.snapshot(0);
        MessageResult(roster.member(&user).map(|member| member.seats.clone()).unwrap_or_default())
    }
}

impl Handler<Drain> for Channel {
    type Result = ();

    fn handle(&mut self, Drain: Drain, ctx: &mut Self::Context) {
        self.core.state.leave_all(Instant::now());
        self.settle(ctx);
    }
}

impl Handler<Told> for Channel {
    type Result = ();

    fn handle(&mut self, told: Told, ctx: &mut Self::Context) {
        if let Told::Said(broadcast) = told {
            return self.relay(broadcast);
        }
        match self.core.told(told, Instant::now()) {
            Noticed::Nothing => {}
            Noticed::Gap => {
                self.shared.metrics.redis_gaps.inc();
            }
            Noticed::Missing(seats) => {
                self.shared.metrics.audit_missing.inc_by(seats as u64);
            }
        }
        self.settle(ctx);
    }
}
