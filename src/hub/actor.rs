//! The hub's shell: its mailbox, the sweep, and the list of all hubs for what concerns every socket.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use actix::{Actor, Addr, AsyncContext as _, Context, Handler, Message};

use super::drain::{slices, spread};
use super::{ConnId, Hub, SharedHub, TELL_AGAIN};
use crate::channel::{Fan, Live, Probe, Registry, Relay};
use crate::config::Config;
use crate::reject::Close;
use crate::settings::Settings;

/// A session's life is extended, and its end noticed at the latest, this often by an open socket. Mostly
/// it is one look into L1.
const SESSION_CHECK_EVERY: Duration = Duration::from_secs(5);

/// What the settings ask of every hub.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// How often a socket is pinged, in seconds.
    pub ping_every: u32,
    /// A socket from which nothing came for so many seconds is silent (guarantee G4).
    pub silent_after: u32,
    /// Channels that may be open on the node.
    pub node_channels: usize,
    /// Members that a channel may have; 0 is no limit.
    pub channel_members: usize,
    /// Without activity for so long a connection is idle; zero: never.
    pub idle_after: Duration,
}

impl Rules {
    /// The rules of a node with these settings.
    pub fn of(config: &Config) -> Self {
        Self {
            ping_every: config.ping_every,
            silent_after: config.silent_after,
            node_channels: config.limits.max_node_channels,
            channel_members: config.limits.max_channel_members,
            idle_after: config.idle_after,
        }
    }
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            ping_every: 20,
            silent_after: 60,
            node_channels: usize::MAX,
            channel_members: 0,
            idle_after: Duration::ZERO,
        }
    }
}

/// What binds a connection to a session.
#[derive(Clone, Debug)]
pub enum Tie {
    /// An opaque token: revocable, and extended by the open socket.
    Session { token: Arc<str>, checked: Instant },
    /// A JWT: ends when it says, in seconds since 1970; never if it does not say.
    Jwt { expires: Option<u64> },
}

/// Every socket of these sessions ends now.
#[derive(Message, Clone, Debug)]
#[rtype(result = "()")]
pub struct CloseSessions {
    pub tokens: Arc<[Arc<str>]>,
}

/// Sessions may have been revoked without a word: all that sockets are bound to are looked up now.
#[derive(Message, Clone, Debug)]
#[rtype(result = "()")]
pub struct CheckSessions;

/// Every socket ends, spread over `over`, told to come back elsewhere.
#[derive(Message, Clone, Debug)]
#[rtype(result = "()")]
pub struct Drain {
    pub over: Duration,
}

/// Asks whether sessions still live; what it finds out comes back as [`CloseSessions`].
pub type SessionCheck = Arc<dyn Fn(Vec<Arc<str>>, actix::Recipient<CloseSessions>) + Send + Sync>;

/// The hubs of all threads. Clones share the list.
#[derive(Clone, Default)]
pub struct Hubs {
    rules: Rules,
    settings: Option<Settings>,
    all: Arc<Mutex<Vec<Addr<HubActor>>>>,
}

impl Hubs {
    /// Hubs, none started yet, that go by `rules`, and by what is set for channels where there is a database.
    pub fn new(rules: Rules, settings: Option<Settings>) -> Self {
        Self { rules, settings, all: Arc::default() }
    }

    /// Sends `message` to every hub.
    pub fn tell<M>(&self, message: M)
    where
        M: Message<Result = ()> + Clone + Send + 'static,
        HubActor: Handler<M>,
    {
        for hub in self.all.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            hub.do_send(message.clone());
        }
    }

    /// Starts the hub of this thread, which must have an actix arbiter.
    pub fn start_here(&self, registry: Registry, session_check: SessionCheck) -> SharedHub {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = Arc::clone(registry.shared());
        let hub = Rc::new(RefCell::new(Hub {
            number: all.len(),
            address: None,
            rules: self.rules,
            rosters: shared.rosters.clone(),
            metrics: Arc::clone(&shared.metrics),
            registry,
            started: Instant::now(),
            connections: HashMap::new(),
            channels: HashMap::new(),
            settings: self.settings.clone(),
            acts: Vec::new(),
        }));
        let address = HubActor { hub: Rc::clone(&hub), session_check }.start();
        hub.borrow_mut().address = Some(address.clone());
        all.push(address);
        hub
    }
}

/// The actor around a [`Hub`].
pub struct HubActor {
    hub: SharedHub,
    session_check: SessionCheck,
}

impl Actor for HubActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(Duration::from_secs(1), |this, ctx| {
            let due = this.hub.borrow_mut().sweep();
            if !due.is_empty() {
                (this.session_check)(due, ctx.address().recipient());
            }
        });
    }
}

impl Hub {
    /// Pings, ends silent sockets and expired JWTs, lets go of what has ended. Returns the sessions
    /// whose turn it is to be checked.
    pub(super) fn sweep(&mut self) -> Vec<Arc<str>> {
        let now = self.now();
        let wall = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |passed| passed.as_secs());
        let (mut over, mut closing, mut check) = (Vec::new(), Vec::new(), Vec::new());
        for (id, connected) in &mut self.connections {
            let line = connected.line;
            if line.speaks() && now.saturating_sub(connected.outbox.heard()) >= self.rules.silent_after {
                closing.push((*id, Close::Silent));
                over.push(*id);
            } else if connected.outbox.has_ended() {
                over.push(*id);
            } else if now >= connected.next_beat {
                connected.next_beat = now + line.beat_every(&self.rules);
                let _ = connected.outbox.push(line.beat());
            }
            match &mut connected.tie {
                Some(Tie::Jwt { expires: Some(expires) }) if *expires <= wall => {
                    closing.push((*id, Close::SessionEnded));
                }
                Some(Tie::Session { token, checked }) if checked.elapsed() >= SESSION_CHECK_EVERY => {
                    *checked = Instant::now();
                    check.push(Arc::clone(token));
                }
                _ => {}
            }
        }
        for (id, why) in closing {
            if why == Close::Silent {
                self.metrics.silent_sockets.inc();
                tracing::debug!(connection = id, "closing a silent connection");
            }
            self.close(id, why);
        }
        for id in over {
            self.disconnect(id);
        }
        if self.now().is_multiple_of(TELL_AGAIN) {
            self.tell_active_again();
        }
        if !self.acts.is_empty() {
            self.registry.shared().cluster.note_active(std::mem::take(&mut self.acts));
        }
        check
    }

    /// The sessions that connections are bound to, which count as checked from now on.
    fn tied_sessions(&mut self) -> Vec<Arc<str>> {
        let mut tokens = Vec::new();
        for connected in self.connections.values_mut() {
            if let Some(Tie::Session { token, checked }) = &mut connected.tie {
                *checked = Instant::now();
                tokens.push(Arc::clone(token));
            }
        }
        tokens.sort_unstable();
        tokens.dedup();
        tokens
    }

    fn close_sessions(&mut self, tokens: &[Arc<str>]) {
        let tied = |tie: &Option<Tie>| match tie {
            Some(Tie::Session { token, .. }) => tokens.contains(token),
            _ => false,
        };
        let ids: Vec<ConnId> =
            self.connections.iter().filter(|(_, c)| tied(&c.tie)).map(|(id, _)| *id).collect();
        for id in ids {
            self.close(id, Close::SessionEnded);
        }
    }
}

impl Handler<Live> for HubActor {
    type Result = ();

    fn handle(&mut self, Live { channel, meter }: Live, _: &mut Self::Context) {
        self.hub.borrow_mut().live(&channel, &meter);
    }
}

impl Handler<Fan> for HubActor {
    type Result = ();

    fn handle(&mut self, Fan { update, meter }: Fan, _: &mut Self::Context) {
        self.hub.borrow_mut().fan(&update);
        meter.handled();
    }
}

impl Handler<Relay> for HubActor {
    type Result = ();

    fn handle(&mut self, Relay { relayed, meter }: Relay, _: &mut Self::Context) {
        self.hub.borrow_mut().relay(&relayed);
        meter.relayed();
    }
}

impl Handler<Probe> for HubActor {
    type Result = ();

    fn handle(&mut self, Probe { connection }: Probe, _: &mut Self::Context) {
        self.hub.borrow_mut().probe(connection);
    }
}

impl Handler<CloseSessions> for HubActor {
    type Result = ();

    fn handle(&mut self, CloseSessions { tokens }: CloseSessions, _: &mut Self::Context) {
        self.hub.borrow_mut().close_sessions(&tokens);
    }
}

impl Handler<CheckSessions> for HubActor {
    type Result = ();

    fn handle(&mut self, CheckSessions: CheckSessions, ctx: &mut Self::Context) {
        let tokens = self.hub.borrow_mut().tied_sessions();
        if !tokens.is_empty() {
            (self.session_check)(tokens, ctx.address().recipient());
        }
    }
}

impl Handler<Drain> for HubActor {
    type Result = ();

    fn handle(&mut self, Drain { over }: Drain, ctx: &mut Self::Context) {
        let ids: Vec<ConnId> = self.hub.borrow().connections.keys().copied().collect();
        for (after, slice) in slices(ids, over, spread()) {
            ctx.run_later(after, move |this, _| {
                let mut hub = this.hub.borrow_mut();
                for id in slice {
                    hub.close(id, Close::Restart);
                }
            });
        }
    }
}
