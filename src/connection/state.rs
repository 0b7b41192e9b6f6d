//! What a connection does with what its client says: the logic of the connection actor, without it.
//!
//! Plain data: a command comes in with the time, [`Effect`]s come out. It knows which topics are
//! joined and under which ref, who the client is, and the client's rates.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::bucket::Bucket;
use super::proof::Verdict;
use crate::config::{Limits, Secret};
use crate::dialects::{
    Address, Body, Broadcast, Command, Dialect, Event, Frame, Identity as Signed, Incoming, JoinRequest,
    Kind, Message, Names, Proof, SocketId, Wanted, WireFormat, encode, topic,
};
use crate::hub::{Room, Tie, View};
use crate::presence::{Ref, ResumeKey, anonymous};
use crate::reject::Reject;

/// Something that must be done outside, in this order.
#[derive(Debug)]
pub enum Effect {
    /// Send this.
    Send(Frame),
    /// View a channel.
    View { channel: Box<str>, view: View },
    /// View a channel no more.
    Unview { channel: Box<str> },
    /// Be present in a channel that is viewed.
    Track { channel: Box<str>, user: Arc<str>, meta: Arc<str>, resume: Option<ResumeKey> },
    /// Be present in a channel no more.
    Untrack { channel: Box<str> },
    /// Whoever is present in a channel by this connection is this user, as is proven now.
    Identify { channel: Box<str>, user: Arc<str> },
    /// The connection is bound to this session from now on.
    Bind(Tie),
    /// Tell all who view a channel.
    Say { channel: Box<str>, broadcast: Arc<Broadcast> },
    /// Send what was said last in a channel that remembers it.
    TellLast { channel: Box<str>, topic: Box<str> },
    /// These users are active by this connection from now on, or not by it any more.
    Active { users: Vec<Arc<str>>, active: bool },
    /// Call [`ConnectionState::wake`] after this long.
    Wake(Duration),
    /// Read on only after this long: the client sends more than it may.
    Slow(Duration),
}

/// One topic that is joined.
#[derive(Debug)]
pub(super) struct Joined {
    pub channel: Box<str>,
    pub join_ref: Option<Box<str>>,
    format: WireFormat,
    pub user: Arc<str>,
    /// By what the client is recognised when it comes back.
    resume: Option<ResumeKey>,
    /// Whether the connection is present, or only watches.
    pub present: bool,
    /// The newest meta, waiting until the rate allows it.
    held: Option<Arc<str>>,
    wanted: Wanted,
}

/// Who a join makes present.
pub(super) struct Identity {
    pub user: Arc<str>,
    pub meta: Arc<str>,
    pub resume: Option<ResumeKey>,
}

/// Who the client is, as known when it connected.
#[derive(Clone, Debug)]
pub struct Client {
    /// The session's user: then claims do not count.
    pub session_user: Option<Arc<str>>,
    /// The user claimed when connecting, for joins that claim none.
    pub claimed_user: Option<Arc<str>>,
    /// The meta claimed when connecting, likewise.
    pub claimed_meta: Option<Arc<str>>,
    /// The resume key sent when connecting, likewise.
    pub claimed_resume: Result<Option<Secret>, Reject>,
    /// Makes the user for a client that names none and has no resume key: `anon-` and this.
    pub fallback: Ref,
    /// How its topics are to be read.
    pub names: Names,
    /// What the cluster calls the connection.
    pub socket: SocketId,
    /// Whether tokens must be valid: they prove what nothing else does.
    pub strict: bool,
    /// Whether a name must be proven, since users whom an application has signed may be in the same channels.
    pub proven_names: bool,
    /// Pusher: whether those who are in channels without presence are told how many they are.
    pub counts: bool,
}

/// One connection's state.
#[derive(Debug)]
pub struct ConnectionState {
    pub(super) client: Client,
    pub(super) limits: Arc<Limits>,
    pub(super) joined: Vec<Joined>,
    presence_rate: Bucket,
    message_rate: Bucket,
    waking: bool,
    pub(super) room: AnyRoom,
    activity: Activity,
    /// The last token that came in a message, and whom it stands for.
    pub(super) token: Option<Box<(Secret, Verdict)>>,
    /// Pusher: whom the connection has signed in.
    pub(super) signed_in: Option<Box<Signed>>,
    /// Pusher: the rate of client events; none before the first.
    event_rate: Option<Box<Bucket>>,
}

/// Client events a second (Pusher's limit).
const CLIENT_EVENTS: u32 = 10;

/// What is told of whether somebody uses the client.
#[derive(Debug, Default)]
struct Activity {
    /// How often it is told while somebody does; none: never.
    every: Option<Duration>,
    told: Option<Instant>,
    /// The client has said that nobody does.
    idle: bool,
}

/// Where to ask whether there is room; nowhere means that there is.
#[derive(Default)]
pub(super) struct AnyRoom(Option<Rc<dyn Room>>);

impl AnyRoom {
    pub fn check(&self, channel: &str, user: Option<&str>, proven: bool) -> Result<(), Reject> {
        self.0.as_ref().map_or(Ok(()), |room| room.check(channel, user, proven))
    }
}

impl std::fmt::Debug for AnyRoom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AnyRoom")
    }
}

impl ConnectionState {
    /// A connection that has joined nothing.
    pub fn new(client: Client, limits: Arc<Limits>, now: Instant) -> Self {
        let presence_rate = Bucket::new(limits.max_presence_rate, limits.max_presence_burst, now);
        // A client that comes back joins all its channels at once and must be let do so.
        let burst = limits.max_message_rate.max(limits.max_channels.try_into().unwrap_or(u32::MAX));
        let message_rate = Bucket::new(limits.max_message_rate, burst.saturating_mul(2), now);
        Self {
            client,
            limits,
            joined: Vec::new(),
            presence_rate,
            message_rate,
            waking: false,
            room: AnyRoom::default(),
            activity: Activity::default(),
            token: None,
            signed_in: None,
            event_rate: None,
        }
    }

    /// The same, which tells that its users are active as often as `every`, while they are.
    #[must_use]
    pub fn telling_activity(mut self, every: Option<Duration>) -> Self {
        self.activity.every = every;
        self
    }

    /// The same, which joins only where `room` says that there is some.
    #[must_use]
    pub fn within(mut self, room: Rc<dyn Room>) -> Self {
        self.room = AnyRoom(Some(room));
        self
    }

    /// Takes in one message of the client.
    #[must_use]
    pub fn on_message(&mut self, incoming: Incoming, now: Instant) -> Vec<Effect> {
        let Incoming { address, command, format } = incoming;
        let over = self.message_rate.take(now).err();
        // Presence calls have a rate of their own, and over that nothing is lost. The others are said once, and
        // clients go on as if they had been heard. (Any answer to a heartbeat will do.)
        let is_heard_always = matches!(
            command,
            Command::Track(_) | Command::Untrack | Command::Leave | Command::AccessToken(_) | Command::Alive
        );
        let kind = Usage::of(&command);
        let before = if kind.may_leave() { self.present_users() } else { Vec::new() };
        let mut effects = match over {
            Some(wait) if !is_heard_always => {
                let reject = Reject::RateLimited { retry_after_ms: wait.as_millis() as u64 + 1 };
                let mut effects = refuse(format, &address, &reject);
                if matches!(command, Command::Join(_)) {
                    effects.extend(encode(format, &Event::NotJoined(&address, &reject)).map(Effect::Send));
                }
                effects
            }
            _ => self.obey(address, command, format, now),
        };
        effects.extend(self.note_activity(kind, now));
        effects.extend(self.note_gone(before));
        effects.extend(over.map(Effect::Slow));
        effects
    }

    /// Takes in what is no message, which counts like one.
    #[must_use]
    pub fn on_other(&mut self, now: Instant) -> Vec<Effect> {
        self.message_rate.take(now).err().map(Effect::Slow).into_iter().collect()
    }

    fn obey(&mut self, address: Address, command: Command, format: WireFormat, now: Instant) -> Vec<Effect> {
        match command {
            Command::Heartbeat => ok(format, &address),
            Command::Alive => Vec::new(),
            Command::Join(request) => self.join(address, &request, format),
            Command::Broadcast(message) => self.broadcast(&address, message, format, now),
            Command::AccessToken(token) => self.renew(&address, token.as_ref(), format),
            Command::SignIn { auth, user_data } => self.sign_in(&address, &auth, &user_data, format),
            Command::Leave => self.leave(&address, format),
            Command::Track(meta) => self.track(&address, meta, format, now),
            Command::Untrack => self.untrack(&address, format),
            Command::Idle(_) => match self.find(&address) {
                Found::Current(_) => ok(format, &address),
                Found::Stale => Vec::new(),
                Found::None => refuse(format, &address, &Reject::UnmatchedTopic),
            },
            Command::Unknown => match self.find(&address) {
                Found::Current(_) => refuse(format, &address, &Reject::UnknownEvent),
                Found::Stale => Vec::new(),
                Found::None if &*address.topic == "phoenix" => {
                    refuse(format, &address, &Reject::UnknownEvent)
                }
                Found::None => refuse(format, &address, &Reject::UnmatchedTopic),
            },
        }
    }

    /// What a message says of whether somebody uses the client.
    fn note_activity(&mut self, kind: Usage, now: Instant) -> Option<Effect> {
        let every = self.activity.every?;
        let recently = self.activity.told.is_some_and(|told| now.saturating_duration_since(told) < every);
        let active = match kind {
            Usage::Heartbeat => return None,
            Usage::Idle(true) if self.activity.idle => return None,
            Usage::Idle(idle) => !idle,
            // Who comes, or shows something else, is there; also as another user than before.
            Usage::Place => true,
            Usage::Other | Usage::Away if recently || self.activity.idle => return None,
            Usage::Other | Usage::Away => true,
        };
        self.activity.idle = !active;
        let users = self.present_users();
        if users.is_empty() {
            return None;
        }
        self.activity.told = active.then_some(now);
        Some(Effect::Active { users, active })
    }

    /// Of the users who were present by this connection, those who are no more are not active by it either.
    fn note_gone(&self, mut before: Vec<Arc<str>>) -> Option<Effect> {
        self.activity.every?;
        let now = self.present_users();
        before.retain(|user| !now.contains(user));
        (!before.is_empty()).then_some(Effect::Active { users: before, active: false })
    }

    /// Who is present by this connection; who only watches is not.
    fn present_users(&self) -> Vec<Arc<str>> {
        let mut users: Vec<Arc<str>> = Vec::new();
        for joined in self.joined.iter().filter(|joined| joined.present) {
            if !users.contains(&joined.user) {
                users.push(Arc::clone(&joined.user));
            }
        }
        users
    }

    /// Applies held metas as far as the rate allows now.
    #[must_use]
    pub fn wake(&mut self, now: Instant) -> Vec<Effect> {
        self.waking = false;
        let mut effects = Vec::new();
        for at in 0..self.joined.len() {
            if self.joined[at].held.is_none() {
                continue;
            }
            match self.presence_rate.take(now) {
                Ok(()) => {
                    if let Some(meta) = self.joined[at].held.take() {
                        effects.push(self.joined[at].show(meta));
                    }
                }
                Err(wait) => {
                    self.wake_after(wait, &mut effects);
                    break;
                }
            }
        }
        effects
    }

    fn join(&mut self, address: Address, request: &JoinRequest, format: WireFormat) -> Vec<Effect> {
        let is_private = matches!(request.proof, Proof::Token { private: true, .. });
        let channel: Box<str> = self.client.names.channel(&address.topic, is_private).into();
        let mut effects = Vec::new();
        if let Some(other) = self.joined_as(&address.topic).filter(|at| self.joined[*at].channel != channel) {
            // The same topic, once private and once not: the client knows one join of it.
            let other = self.joined[other].channel.clone();
            effects.extend(self.end(&other));
        }
        let checked = self.check_proof(&address.topic, &request.proof, &mut effects);
        let Identity { user, meta, resume } =
            match checked.and_then(|signed| self.check_join(&channel, request, signed)) {
                Ok(checked) => checked,
                Err(reject) => {
                    // The client holds the topic for not joined now, so it must not be.
                    effects.extend(self.end(&channel));
                    effects.extend(refuse(format, &address, &reject));
                    effects.extend(encode(format, &Event::NotJoined(&address, &reject)).map(Effect::Send));
                    return effects;
                }
            };
        if self.is_own(&channel) {
            // That of the user who has signed in: viewed already.
            effects.extend(encode(format, &Event::Joined(&address)).map(Effect::Send));
            return effects;
        }
        if let Some(at) = self.position(&channel) {
            self.replace(at, &user, request.observe, &mut effects);
        }
        effects.extend(encode(format, &Event::Joined(&address)).map(Effect::Send));
        let join_ref = address.join_ref.or(address.message_ref);
        let is_presence = matches!(request.proof, Proof::Signed { .. }) && request.roster;
        let view = View {
            join_ref: join_ref.clone(),
            roster: request.roster || self.client.counts,
            awaits: is_presence.then(|| Arc::clone(&user)),
            ..View::new(if self.client.counts && !request.roster { WireFormat::PusherCount } else { format })
        };
        effects.push(Effect::View { channel: channel.clone(), view });
        if self.client.names.dialect() == Dialect::Pusher && Kind::keeps_last(&address.topic) {
            effects.push(Effect::TellLast { channel: channel.clone(), topic: address.topic });
        }
        let wanted = request.wanted;
        let mut joined =
            Joined { channel, join_ref, format, user, resume, present: false, held: None, wanted };
        if !request.observe {
            effects.push(joined.show(meta));
        }
        // Most connections join one channel: no room is kept for others.
        self.joined.reserve_exact(1);
        self.joined.push(joined);
        effects
    }

    /// Ends the join of `channel`, if there is one.
    pub(super) fn end(&mut self, channel: &str) -> Vec<Effect> {
        let Some(at) = self.position(channel) else { return Vec::new() };
        let old = self.joined.swap_remove(at);
        let mut effects = Vec::new();
        if old.present {
            effects.push(Effect::Untrack { channel: old.channel.clone() });
        }
        effects.push(Effect::Unview { channel: old.channel });
        effects
    }

    fn broadcast(
        &mut self,
        address: &Address,
        message: Result<Message, Reject>,
        format: WireFormat,
        now: Instant,
    ) -> Vec<Effect> {
        let is_pusher = self.client.names.dialect() == Dialect::Pusher;
        let at = match self.find(address) {
            Found::Current(at) => at,
            Found::Stale => return Vec::new(),
            Found::None if is_pusher => return refuse(format, address, &Reject::ClientEventChannel),
            Found::None => return refuse(format, address, &Reject::UnmatchedTopic),
        };
        let message = match message {
            Ok(message) => message,
            Err(reject) => return refuse(format, address, &reject),
        };
        if is_pusher {
            if !matches!(Kind::of(&address.topic), Kind::Private { encrypted: false } | Kind::Presence) {
                return refuse(format, address, &Reject::ClientEventChannel);
            }
            let rate = || Box::new(Bucket::new(CLIENT_EVENTS, CLIENT_EVENTS, now));
            if self.event_rate.get_or_insert_with(rate).take(now).is_err() {
                return refuse(format, address, &Reject::ClientEventRate(CLIENT_EVENTS));
            }
        }
        let joined = &self.joined[at];
        let answer = match &message.body {
            Body::Raw(Dialect::Phoenix, bytes) => encode(format, &Event::Echo(address, bytes)),
            _ if joined.wanted.answer => encode(format, &Event::Ok(address)),
            _ => None,
        };
        let is_proven = joined.present && (is_pusher || self.client.session_user.is_some());
        let said = Broadcast::Said {
            message,
            by_backend: false,
            user: is_proven.then(|| Arc::clone(&joined.user)),
            except: (!joined.wanted.own).then_some(self.client.socket),
        };
        let mut effects = vec![Effect::Say { channel: joined.channel.clone(), broadcast: Arc::new(said) }];
        effects.extend(answer.map(Effect::Send));
        effects
    }

    fn check_join(
        &self,
        channel: &str,
        request: &JoinRequest,
        signed: Option<Identity>,
    ) -> Result<Identity, Reject> {
        if self.joined.len() >= self.limits.max_channels && self.position(channel).is_none() {
            return Err(Reject::TooManyChannels);
        }
        let client = &self.client;
        let proven = client.session_user.is_some() || signed.is_some();
        if let Some(signed) = signed {
            let user = request.roster.then_some(&*signed.user);
            self.room.check(channel, user, proven)?;
            return Ok(signed);
        }
        let key = match request.resume.as_ref().map_err(Reject::clone)? {
            None => client.claimed_resume.as_ref().map_err(Reject::clone)?.as_ref(),
            sent => sent.as_ref(),
        };
        let claimed = request.user.clone()?;
        let user = match &client.session_user {
            Some(user) => Arc::clone(user),
            None => match (claimed.or_else(|| client.claimed_user.clone()), key) {
                (Some(_), _) if client.proven_names => return Err(Reject::NameUnproven),
                (Some(user), _) => user,
                (None, Some(key)) => anonymous(key.expose()).into(),
                (None, None) if request.new_name => uuid::Uuid::new_v4().to_string().into(),
                (None, None) => format!("anon-{}", client.fallback.as_str()).into(),
            },
        };
        let resume = key.map(|key| ResumeKey::new(&user, key.expose()));
        let meta = request.meta.as_ref().map_err(Reject::clone)?;
        self.room.check(channel, Some(&*user).filter(|_| !request.observe), proven)?;
        let meta = meta.clone().or_else(|| client.claimed_meta.clone()).unwrap_or_else(|| "{}".into());
        Ok(Identity { user, meta, resume })
    }

    /// The topic is joined already: the old join ends, but a seat that the new one takes over stays.
    fn replace(&mut self, at: usize, user: &Arc<str>, observe: bool, effects: &mut Vec<Effect>) {
        let old = self.joined.swap_remove(at);
        if old.present && (observe || old.user != *user) {
            effects.push(Effect::Untrack { channel: old.channel.clone() });
        }
        if let Some(join_ref) = &old.join_ref {
            let name = topic(old.format, &old.channel);
            let closed = encode(old.format, &Event::Closed { topic: &name, join_ref, replaced: true });
            effects.extend(closed.map(Effect::Send));
        }
    }

    fn leave(&mut self, address: &Address, format: WireFormat) -> Vec<Effect> {
        let at = match self.find(address) {
            Found::Current(at) => at,
            Found::Stale => return Vec::new(),
            Found::None => return ok(format, address),
        };
        let (old_format, join_ref) = (self.joined[at].format, self.joined[at].join_ref.clone());
        let channel = self.joined[at].channel.clone();
        let mut effects = self.end(&channel);
        effects.extend(ok(format, address));
        if let Some(join_ref) = &join_ref {
            let closed =
                encode(old_format, &Event::Closed { topic: &address.topic, join_ref, replaced: true });
            effects.extend(closed.map(Effect::Send));
        }
        effects
    }

    fn track(
        &mut self,
        address: &Address,
        meta: Result<Arc<str>, Reject>,
        format: WireFormat,
        now: Instant,
    ) -> Vec<Effect> {
        let at = match self.find(address) {
            Found::Current(at) => at,
            Found::Stale => return Vec::new(),
            Found::None => return refuse(format, address, &Reject::UnmatchedTopic),
        };
        let meta = match meta {
            Ok(meta) => meta,
            Err(reject) => return refuse(format, address, &reject),
        };
        if !self.joined[at].present
            && let Err(reject) = self.room.check(
                &self.joined[at].channel,
                Some(&self.joined[at].user),
                self.client.session_user.is_some(),
            )
        {
            return refuse(format, address, &reject);
        }
        let mut effects = Vec::new();
        match self.presence_rate.take(now) {
            Ok(()) => {
                self.joined[at].held = None;
                effects.push(self.joined[at].show(meta));
            }
            Err(wait) => {
                self.joined[at].held = Some(meta);
                self.wake_after(wait, &mut effects);
            }
        }
        effects.extend(ok(format, address));
        effects
    }

    /// Never waits: leaving is always immediate.
    fn untrack(&mut self, address: &Address, format: WireFormat) -> Vec<Effect> {
        let at = match self.find(address) {
            Found::Current(at) => at,
            Found::Stale => return Vec::new(),
            Found::None => return refuse(format, address, &Reject::UnmatchedTopic),
        };
        let joined = &mut self.joined[at];
        joined.held = None;
        let mut effects = Vec::new();
        if std::mem::take(&mut joined.present) {
            effects.push(Effect::Untrack { channel: joined.channel.clone() });
        }
        effects.extend(ok(format, address));
        effects
    }

    fn wake_after(&mut self, wait: Duration, effects: &mut Vec<Effect>) {
        if !std::mem::replace(&mut self.waking, true) {
            effects.push(Effect::Wake(wait));
        }
    }

    fn position(&self, channel: &str) -> Option<usize> {
        self.joined.iter().position(|joined| &*joined.channel == channel)
    }

    /// The join of `topic`, private or not.
    fn joined_as(&self, topic: &str) -> Option<usize> {
        let names = &self.client.names;
        let public = self.position(&names.channel(topic, false));
        public.or_else(|| match names {
            Names::Supabase => self.position(&names.channel(topic, true)),
            _ => None,
        })
    }

    pub(super) fn find(&self, address: &Address) -> Found {
        match self.joined_as(&address.topic) {
            None => Found::None,
            // No join ref at all means the current join.
            Some(at) if address.join_ref.is_none() || self.joined[at].join_ref == address.join_ref => {
                Found::Current(at)
            }
            Some(_) => Found::Stale,
        }
    }
}

/// What a command says of whether somebody uses the client.
#[derive(Clone, Copy)]
enum Usage {
    /// Clients send these by themselves.
    Heartbeat,
    Idle(bool),
    Place,
    /// Leaving, or being present no more.
    Away,
    Other,
}

impl Usage {
    /// Whether somebody may be present no more after it; also a join, which may be as another user.
    fn may_leave(self) -> bool {
        matches!(self, Self::Away | Self::Place)
    }

    fn of(command: &Command) -> Self {
        match command {
            Command::Heartbeat | Command::Alive | Command::AccessToken(_) => Self::Heartbeat,
            Command::Idle(idle) => Self::Idle(*idle),
            Command::Leave | Command::Untrack => Self::Away,
            command if command.takes_a_place() => Self::Place,
            _ => Self::Other,
        }
    }
}

/// Whether the join that an address means is the current one.
pub(super) enum Found {
    Current(usize),
    /// A word of a join that has ended: to be ignored, or it would undo its successor.
    Stale,
    None,
}

impl Joined {
    fn show(&mut self, meta: Arc<str>) -> Effect {
        self.present = true;
        Effect::Track {
            channel: self.channel.clone(),
            user: Arc::clone(&self.user),
            meta,
            resume: self.resume,
        }
    }
}

fn ok(format: WireFormat, address: &Address) -> Vec<Effect> {
    encode(format, &Event::Ok(address)).map(Effect::Send).into_iter().collect()
}

pub(super) fn refuse(format: WireFormat, address: &Address, reject: &Reject) -> Vec<Effect> {
    encode(format, &Event::Refused(address, reject)).map(Effect::Send).into_iter().collect()
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
