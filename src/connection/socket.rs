//! The WebSocket itself: the upgrade, the connection actor, and the two directions joined in one
//! stream. The only file that names actix-web-actors.
//!
//! The engine polls the actor as the response's body, and only while the socket takes more output.
//! So a client that does not read is not listened to either, and [`Outgoing`] puts the outbox before
//! the actor: frames go out without it, and a full outbox ends the stream whatever the actor does.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use actix::{
    Actor, ActorContext as _, ActorFutureExt as _, AsyncContext as _, StreamHandler, WrapFuture as _,
};
use actix_http::ws::{Codec, Message, ProtocolError};
use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use actix_web_actors::ws::{self, WebsocketContext};
use bytes::Bytes;
use futures_util::Stream;
use futures_util::future::LocalBoxFuture;

use super::assembly::{Assembly, Broken, Whole};
use super::guard::Guard;
use super::params::ConnectParams;
use super::proof::Verdict;
use super::state::{Client, ConnectionState, Effect};
use crate::config::{Limits, Secret};
use crate::dialects::{self, Broadcast, Dialect, Event, Frame, Incoming, Names, WireFormat};
use crate::hub::{self, Line, Outbox, Room, SharedHub, Tie};
use crate::metrics::Metrics;
use crate::quota::Place;
use crate::reject::Close;

/// What every socket of one thread shares.
#[derive(Clone)]
pub struct Sockets {
    pub hub: SharedHub,
    pub limits: Arc<Limits>,
    pub metrics: Arc<Metrics>,
    pub services: Rc<dyn Services>,
}

/// What a connection asks of those who know more than it does.
pub trait Services {
    /// Whom a token stands for.
    fn read_token(&self, token: Secret) -> LocalBoxFuture<'static, Verdict>;
    /// What was said last in a channel that remembers it.
    fn last_said(&self, channel: &str) -> LocalBoxFuture<'static, Option<Arc<Broadcast>>>;
    /// A client of an application says something in `channel`.
    fn note_client_event(&self, channel: &str, said: &Broadcast, by: &str);
}

/// How a socket begins.
#[derive(Debug)]
pub struct Opening {
    pub names: Names,
    pub params: ConnectParams,
    /// See [`Client::strict`].
    pub strict: bool,
    /// See [`Client::proven_names`].
    pub proven_names: bool,
    /// See [`Client::counts`].
    pub counts: bool,
    /// Pusher: after how many seconds without a frame the client asks for one. It is told so first of all.
    pub activity_timeout: Option<u32>,
}

/// What the checks before the upgrade found out.
pub struct Admission {
    /// The session's user, where there is a session.
    pub user: Option<Arc<str>>,
    /// What binds the connection to the session.
    pub tie: Option<Tie>,
    /// What the connection takes up of what its user and address may.
    pub place: Place,
}

/// Answers the upgrade and starts the connection.
///
/// # Errors
/// What the client did wrong in its handshake, as the HTTP answer.
pub fn open(
    request: &HttpRequest,
    payload: web::Payload,
    sockets: &Sockets,
    opening: Opening,
    admission: Admission,
) -> Result<HttpResponse, ws::HandshakeError> {
    let Opening { names, params, strict, proven_names, counts, activity_timeout } = opening;
    let mut response = shake_hands(request)?;
    let now = Instant::now();
    let (outbox, clock, fallback, activity_every, socket) = {
        let mut hub = sockets.hub.borrow_mut();
        let line = Line::Socket(names.dialect());
        let outbox = hub.connect(line, sockets.limits.max_output_bytes, admission.tie);
        let socket = hub.socket_id(outbox.id());
        if let Some(activity_timeout) = activity_timeout {
            let hello =
                dialects::encode(WireFormat::Pusher, &Event::Established { socket, activity_timeout });
            hello.into_iter().for_each(|hello| hub.send(&outbox, hub::finish(&[hello])));
        }
        (outbox, hub.clock(), hub.fresh_ref(), hub.activity_every(), socket)
    };
    let dialect = names.dialect();
    let client = Client {
        names,
        socket,
        strict,
        proven_names,
        counts,
        session_user: admission.user,
        claimed_user: params.user,
        claimed_meta: params.meta,
        claimed_resume: params.resume,
        fallback,
    };
    let limit = sockets.limits.max_frame_bytes;
    let connection = Connection {
        dialect,
        sockets: sockets.clone(),
        outbox: Rc::clone(&outbox),
        state: ConnectionState::new(client, Arc::clone(&sockets.limits), now)
            .within(Rc::clone(&sockets.hub) as Rc<dyn Room>)
            .telling_activity(activity_every),
        assembly: Assembly::default(),
    };
    let incoming =
        Guard::new(payload, limit, dialect, Rc::clone(&outbox), clock, Arc::clone(&sockets.metrics));
    let codec = Codec::new().max_size(limit);
    let actor = WebsocketContext::with_codec(connection, incoming, codec);
    Ok(response.streaming(Outgoing { outbox, hub: Rc::clone(&sockets.hub), _place: admission.place, actor }))
}

/// Answers the upgrade and closes the socket at once: where a browser could not see an HTTP status.
///
/// # Errors
/// As [`open`].
pub fn turn_away(
    request: &HttpRequest,
    dialect: Dialect,
    why: Close,
) -> Result<HttpResponse, ws::HandshakeError> {
    let mut response = shake_hands(request)?;
    let farewell = futures_util::stream::iter([Ok::<_, actix_web::Error>(hub::close(dialect, why))]);
    Ok(response.streaming(farewell))
}

fn shake_hands(request: &HttpRequest) -> Result<actix_web::HttpResponseBuilder, ws::HandshakeError> {
    check_key(request)?;
    ws::handshake_with_protocols(request, &["phoenix"])
}

/// Whether a request asks to become a WebSocket, however well it does.
pub fn asks_for_upgrade(request: &HttpRequest) -> bool {
    let upgrade = request.headers().get(header::UPGRADE).and_then(|upgrade| upgrade.to_str().ok());
    upgrade.is_some_and(|upgrade| upgrade.to_ascii_lowercase().contains("websocket"))
}

/// The engine accepts any text as a key; RFC 6455, section 4.1 asks for 16 bytes in base64.
fn check_key(request: &HttpRequest) -> Result<(), ws::HandshakeError> {
    use base64::Engine as _;
    let key = request.headers().get(header::SEC_WEBSOCKET_KEY);
    let decoded = key.and_then(|key| base64::engine::general_purpose::STANDARD.decode(key.as_bytes()).ok());
    match decoded {
        Some(bytes) if bytes.len() == 16 => Ok(()),
        _ => Err(ws::HandshakeError::BadWebsocketKey),
    }
}

/// All that goes out of one socket. Dropped with the socket, and then the hub lets the connection go.
struct Outgoing<S> {
    outbox: Rc<Outbox>,
    hub: SharedHub,
    _place: Place,
    actor: S,
}

impl<S> Stream for Outgoing<S>
where
    S: Stream<Item = Result<Bytes, actix_web::Error>> + Unpin,
{
    type Item = Result<Bytes, actix_web::Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Poll::Ready(chunk) = self.outbox.poll_next(cx) {
            return Poll::Ready(chunk.map(Ok));
        }
        match Pin::new(&mut self.actor).poll_next(cx) {
            Poll::Ready(None) => self.outbox.finish(),
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
            // The actor itself writes nothing.
            Poll::Ready(Some(Ok(_))) => cx.waker().wake_by_ref(),
            Poll::Pending => {}
        }
        // What the actor did may have put something into the outbox.
        self.outbox.poll_next(cx).map(|chunk| chunk.map(Ok))
    }
}

impl<S> Drop for Outgoing<S> {
    fn drop(&mut self) {
        self.hub.borrow_mut().disconnect(self.outbox.id());
    }
}

/// The actor of one WebSocket.
struct Connection {
    dialect: Dialect,
    sockets: Sockets,
    outbox: Rc<Outbox>,
    state: ConnectionState,
    assembly: Assembly,
}

impl Actor for Connection {
    type Context = WebsocketContext<Self>;
}

impl StreamHandler<Result<Message, ProtocolError>> for Connection {
    fn handle(&mut self, message: Result<Message, ProtocolError>, ctx: &mut Self::Context) {
        // A close is the last sign of a life, not one that it goes on.
        if !matches!(message, Ok(Message::Close(_)) | Err(_)) && self.outbox.take_doubt() {
            self.sockets.hub.borrow().alive(self.outbox.id());
        }
        match message {
            Ok(Message::Text(text)) => self.on_text(&text, ctx),
            Ok(Message::Binary(data)) => self.on_binary(&data, ctx),
            Ok(Message::Continuation(item)) => {
                match self.assembly.add(item, self.sockets.limits.max_frame_bytes) {
                    Ok(None) => self.on_other(ctx),
                    Ok(Some(Whole::Text(text))) => match std::str::from_utf8(&text) {
                        Ok(text) => self.on_text(text, ctx),
                        Err(_) => self.end(Close::Protocol, ctx),
                    },
                    Ok(Some(Whole::Binary(data))) => self.on_binary(&data, ctx),
                    Err(Broken::TooLarge) => self.end(Close::TooLarge, ctx),
                    Err(Broken::Disordered) => self.end(Close::Protocol, ctx),
                }
            }
            Ok(Message::Ping(payload)) => {
                self.push(hub::pong(&payload));
                self.on_other(ctx);
            }
            Ok(Message::Pong(_) | Message::Nop) => self.on_other(ctx),
            Ok(Message::Close(reason)) => {
                self.push(hub::close_echo(reason));
                self.outbox.finish();
                ctx.stop();
            }
            Err(ProtocolError::Overflow) => self.end(Close::TooLarge, ctx),
            // The guard has ended it and said why.
            Err(_) if self.outbox.has_ended() => ctx.stop(),
            // Also text that is not UTF-8, which the engine reports as an I/O error. To a socket that
            // really broke it does no harm.
            Err(_) => self.end(Close::Protocol, ctx),
        }
    }
}

impl Connection {
    fn on_text(&mut self, text: &str, ctx: &mut WebsocketContext<Self>) {
        let incoming = dialects::decode_text(self.dialect, text, &self.sockets.limits);
        self.on_incoming(incoming, ctx);
    }

    fn on_binary(&mut self, data: &[u8], ctx: &mut WebsocketContext<Self>) {
        self.on_incoming(dialects::decode_binary(self.dialect, data), ctx);
    }

    fn on_incoming(
        &mut self,
        incoming: Result<Incoming, dialects::Malformed>,
        ctx: &mut WebsocketContext<Self>,
    ) {
        self.sockets.metrics.frames_in.inc();
        let now = Instant::now();
        match incoming {
            Ok(incoming) if let Some(token) = self.state.unread_token(&incoming) => {
                // Nothing else is read meanwhile: what comes after counts after.
                let reading = self.sockets.services.read_token(token.clone()).into_actor(self);
                ctx.wait(reading.map(move |verdict, this, ctx| {
                    this.state.note_token(token, verdict);
                    let effects = this.state.on_message(incoming, Instant::now());
                    this.carry_out(effects, ctx);
                }));
            }
            Ok(incoming) => {
                let effects = self.state.on_message(incoming, now);
                self.carry_out(effects, ctx);
            }
            Err(malformed) => {
                self.sockets.metrics.frames_malformed.inc();
                tracing::debug!(connection = self.outbox.id(), %malformed, "ignored a frame");
                self.on_other(ctx);
            }
        }
    }

    /// What is no message counts against the same rate.
    fn on_other(&mut self, ctx: &mut WebsocketContext<Self>) {
        let effects = self.state.on_other(Instant::now());
        self.carry_out(effects, ctx);
    }

    fn carry_out(&mut self, effects: Vec<Effect>, ctx: &mut WebsocketContext<Self>) {
        let id = self.outbox.id();
        for effect in effects {
            let mut hub = self.sockets.hub.borrow_mut();
            match effect {
                Effect::Send(message) => hub.send(&self.outbox, hub::finish(&[message])),
                Effect::Identify { channel, user } => hub.identify(id, &channel, user),
                Effect::Bind(tie) => hub.tie(id, tie),
                Effect::Say { channel, broadcast } => {
                    if self.dialect == Dialect::Pusher {
                        let by = hub.socket_id(id).to_string();
                        self.sockets.services.note_client_event(&channel, &broadcast, &by);
                    }
                    hub.say(&channel, broadcast);
                }
                Effect::TellLast { channel, topic } => self.tell_last(&channel, topic, ctx),
                Effect::View { channel, view } => hub.view(id, &channel, view),
                Effect::Unview { channel } => hub.unview(id, &channel),
                Effect::Track { channel, user, meta, resume } => hub.track(id, &channel, user, meta, resume),
                Effect::Untrack { channel } => hub.untrack(id, &channel),
                Effect::Active { users, active } => hub.note_active(id, users, active),
                Effect::Slow(wait) => self.outbox.listen_later(wait),
                Effect::Wake(wait) => {
                    self.sockets.metrics.presence_calls_held.inc();
                    ctx.run_later(wait, |this, ctx| {
                        let effects = this.state.wake(Instant::now());
                        this.carry_out(effects, ctx);
                    });
                }
            }
        }
    }

    /// Sends what was said last in a channel, or that there is nothing.
    fn tell_last(&self, channel: &str, topic: Box<str>, ctx: &mut WebsocketContext<Self>) {
        let channel: Box<str> = channel.into();
        let reading = self.sockets.services.last_said(&channel).into_actor(self);
        ctx.spawn(reading.map(move |said, this, _| {
            let message: Option<Frame> = match said {
                Some(said) => dialects::broadcast(WireFormat::Pusher, &channel, &said),
                None => dialects::encode(WireFormat::Pusher, &Event::CacheMiss { topic: &topic }),
            };
            message.into_iter().for_each(|message| this.push(hub::finish(&[message])));
        }));
    }

    fn push(&mut self, frame: Bytes) {
        self.sockets.hub.borrow_mut().send(&self.outbox, frame);
    }

    fn end(&mut self, why: Close, ctx: &mut WebsocketContext<Self>) {
        self.push(hub::close(self.dialect, why));
        self.outbox.finish();
        ctx.stop();
    }
}
