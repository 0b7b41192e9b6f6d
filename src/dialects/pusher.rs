//! The Pusher dialect, protocol 7, as `pusher-js` 8 and `laravel-echo` 2 speak it.
//!
//! A message is an object with `event`, mostly `channel`, and `data`, which servers send as a string that holds
//! JSON. Who subscribes to a channel with presence is in it. Members are told of each other as users: the first
//! connection of one comes, the last one goes, each in a frame of its own. There is no update: what is shown of a
//! user is what it came with.

use std::borrow::Cow;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::names::Kind;
use super::{
    Address, Body, Broadcast, Command, Event, Frame, Incoming, JoinRequest, Malformed, Message as Said,
    Proof, WireFormat, check_user, meta_from, user_from,
};
use crate::config::Limits;
use crate::json;
use crate::presence::{Diff, Edge, Snapshot};
use crate::reject::{Dialect, Reject};

/// What the events of clients begin with.
const CLIENT: &str = "client-";
/// How long the name of an event may be, in bytes (Pusher's limit).
const MAX_EVENT: usize = 200;
/// How many users a connection may watch (Pusher's limit).
const MAX_WATCHED: usize = 100;

pub(super) fn decode_text(text: &str) -> Result<Incoming, Malformed> {
    #[derive(Deserialize)]
    struct Fields<'a> {
        #[serde(borrow)]
        event: Cow<'a, str>,
        #[serde(borrow, default)]
        channel: Option<&'a RawValue>,
        #[serde(borrow, default)]
        data: Option<&'a RawValue>,
    }
    let fields: Fields<'_> = serde_json::from_str(text).map_err(|error| {
        Malformed(format!("not a message of Pusher's, at column {}", error.column()).into())
    })?;
    let (topic, command) = match &*fields.event {
        "pusher:ping" => (String::new(), Command::Heartbeat),
        "pusher:pong" => (String::new(), Command::Alive),
        "pusher:subscribe" => subscribe(&unpacked(fields.data)),
        "pusher:unsubscribe" => match subscribe(&unpacked(fields.data)).0 {
            nowhere if nowhere.is_empty() => (nowhere, Command::Unknown),
            channel => (channel, Command::Leave),
        },
        "pusher:signin" => (String::new(), sign_in(&unpacked(fields.data))),
        event => {
            let channel = fields.channel.and_then(|raw| serde_json::from_str(raw.get()).ok());
            (channel.unwrap_or_default(), client_event(event, fields.data))
        }
    };
    let address = Address { topic: topic.into(), ..Address::default() };
    Ok(Incoming { address, command, format: WireFormat::Pusher })
}

/// The JSON in `data`, which some libraries send as a string.
fn unpacked(data: Option<&RawValue>) -> Cow<'_, str> {
    let text = data.map_or("{}", RawValue::get);
    match serde_json::from_str::<String>(text) {
        Ok(inner) => inner.into(),
        Err(_) => text.into(),
    }
}

fn subscribe(data: &str) -> (String, Command) {
    #[derive(Deserialize, Default)]
    struct Fields {
        #[serde(default)]
        channel: Option<String>,
        #[serde(default)]
        auth: Option<String>,
        #[serde(default)]
        channel_data: Option<String>,
    }
    let fields: Fields = serde_json::from_str(data).unwrap_or_default();
    let proof = Proof::Signed {
        auth: fields.auth.unwrap_or_default().into(),
        channel_data: fields.channel_data.map(Into::into),
    };
    let topic = fields.channel.unwrap_or_default();
    let roster = Kind::of(&topic) == Kind::Presence;
    (topic, Command::Join(Box::new(JoinRequest { roster, proof, ..JoinRequest::default() })))
}

fn sign_in(data: &str) -> Command {
    #[derive(Deserialize)]
    struct Fields {
        auth: String,
        user_data: String,
    }
    match serde_json::from_str::<Fields>(data) {
        Ok(Fields { auth, user_data }) => Command::SignIn { auth: auth.into(), user_data: user_data.into() },
        // A sign-in that nothing signs is refused like one that is signed wrongly.
        Err(_) => Command::SignIn { auth: "".into(), user_data: "".into() },
    }
}

fn client_event(event: &str, data: Option<&RawValue>) -> Command {
    match event.strip_prefix(CLIENT) {
        Some(name) if !name.is_empty() && event.len() <= MAX_EVENT => {
            let body = Body::Json(data.map_or("null", RawValue::get).into());
            Command::Broadcast(Ok(Said { event: name.into(), body }))
        }
        Some(_) => Command::Broadcast(Err(Reject::ClientEventName(MAX_EVENT))),
        None if event.starts_with("pusher:") || event.starts_with("pusher_internal:") => Command::Unknown,
        None => Command::Broadcast(Err(Reject::ClientEventName(MAX_EVENT))),
    }
}

/// Who a backend says that a connection is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub user: Arc<str>,
    pub meta: Arc<str>,
    /// Of which users it wants to know when they are online.
    pub watched: Vec<Box<str>>,
}

/// Reads the data of a channel with presence: `{"user_id":…,"user_info":…}`.
///
/// # Errors
/// Those of [`user_from`] and [`meta_from`], or [`Reject::MalformedPayload`].
pub fn channel_data(text: &str, limits: &Limits) -> Result<Identity, Reject> {
    #[derive(Deserialize)]
    struct Fields<'a> {
        #[serde(borrow, default)]
        user_id: Option<&'a RawValue>,
        #[serde(borrow, default)]
        user_info: Option<&'a RawValue>,
    }
    let fields: Fields<'_> = serde_json::from_str(text).map_err(|_| Reject::MalformedPayload)?;
    let user = user_from(fields.user_id, limits)?.ok_or(Reject::UserInvalid)?;
    Ok(Identity { user, meta: info(fields.user_info, limits)?, watched: Vec::new() })
}

/// Reads what a user signs in with: `{"id":…,"user_info":…,"watchlist":[…]}`.
///
/// # Errors
/// As [`channel_data`], or [`Reject::WatchlistTooLong`].
pub fn user_data(text: &str, limits: &Limits) -> Result<Identity, Reject> {
    #[derive(Deserialize)]
    struct Fields<'a> {
        id: String,
        #[serde(borrow, default)]
        user_info: Option<&'a RawValue>,
        #[serde(default)]
        watchlist: Option<Vec<String>>,
    }
    let fields: Fields<'_> = serde_json::from_str(text).map_err(|_| Reject::UserInvalid)?;
    check_user(&fields.id, limits)?;
    let watched = fields.watchlist.unwrap_or_default();
    if watched.len() > MAX_WATCHED {
        return Err(Reject::WatchlistTooLong(MAX_WATCHED));
    }
    for user in &watched {
        check_user(user, limits)?;
    }
    let watched = watched.into_iter().map(Into::into).collect();
    Ok(Identity { user: fields.id.into(), meta: info(fields.user_info, limits)?, watched })
}

/// An empty list is what PHP makes of an empty object.
fn info(raw: Option<&RawValue>, limits: &Limits) -> Result<Arc<str>, Reject> {
    let raw = raw.filter(|raw| raw.get() != "[]");
    Ok(meta_from(raw, limits)?.unwrap_or_else(|| "{}".into()))
}

pub(super) fn encode(event: &Event<'_>) -> Option<Frame> {
    Some(match event {
        Event::Ok(to) if to.topic.is_empty() => frame("pusher:pong", None, "{}"),
        // Those of channels with presence are told the roster instead.
        Event::Joined(to) if Kind::of(&to.topic) == Kind::Presence => return None,
        Event::Joined(to) => frame("pusher_internal:subscription_succeeded", Some(&to.topic), "{}"),
        Event::Refused(to, reject) => error(to, reject),
        Event::NotJoined(to, reject) => subscription_error(to, reject),
        Event::System { topic, reject, .. } => {
            let to = Address { topic: (*topic).into(), ..Address::default() };
            error(&to, reject)
        }
        Event::Established { socket, activity_timeout } => {
            let data = format!(r#"{{"socket_id":"{socket}","activity_timeout":{activity_timeout}}}"#);
            frame("pusher:connection_established", None, &data)
        }
        Event::SignedIn { user_data } => {
            let mut data = br#"{"user_data":"#.to_vec();
            json::string(&mut data, user_data);
            data.push(b'}');
            frame("pusher:signin_success", None, &String::from_utf8_lossy(&data))
        }
        Event::CacheMiss { topic } => frame("pusher:cache_miss", Some(topic), "{}"),
        Event::Ok(_) | Event::Echo(..) | Event::Closed { .. } => return None,
    })
}

/// A message whose data is a string that holds `data`.
fn frame(event: &str, channel: Option<&str>, data: &str) -> Frame {
    let mut out = head(event, channel, data.len());
    json::string(&mut out, data);
    out.push(b'}');
    Frame::text(out)
}

/// A message as far as its data.
fn head(event: &str, channel: Option<&str>, room: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(event.len() + channel.map_or(0, str::len) + room * 2 + 48);
    out.extend_from_slice(br#"{"event":"#);
    json::string(&mut out, event);
    if let Some(channel) = channel {
        out.extend_from_slice(br#","channel":"#);
        json::string(&mut out, channel);
    }
    out.extend_from_slice(br#","data":"#);
    out
}

/// `pusher:error`: its data is an object, as its clients expect.
fn error(to: &Address, reject: &Reject) -> Frame {
    let channel = Some(&*to.topic).filter(|topic| !topic.is_empty());
    let mut out = head("pusher:error", channel, 64);
    out.extend_from_slice(br#"{"code":"#);
    match reject.pusher_code() {
        Some(code) => json::number(&mut out, code),
        None => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(br#","message":"#);
    json::string(&mut out, &reject.reason(Dialect::Pusher));
    out.extend_from_slice(b"}}");
    Frame::text(out)
}

/// What applications hear that bind to `pusher:subscription_error`.
fn subscription_error(to: &Address, reject: &Reject) -> Frame {
    let status = reject.pusher_status();
    let mut out = head("pusher:subscription_error", Some(&to.topic), 64);
    out.extend_from_slice(br#"{"type":"#);
    json::string(&mut out, if status == 401 { "AuthError" } else { "SubscriptionError" });
    out.extend_from_slice(br#","error":"#);
    json::string(&mut out, &reject.reason(Dialect::Pusher));
    out.extend_from_slice(br#","status":"#);
    json::number(&mut out, status);
    out.extend_from_slice(b"}}");
    Frame::text(out)
}

pub(super) fn state_envelope(topic: &str) -> (String, &'static str) {
    (open("pusher_internal:subscription_succeeded", topic), r#""}"#)
}

pub(super) fn count_envelope(topic: &str) -> (String, &'static str) {
    (open("pusher_internal:subscription_count", topic), r#""}"#)
}

/// A message as far as the inside of the string that is its data.
fn open(event: &str, topic: &str) -> String {
    let mut out = head(event, Some(topic), 0);
    out.push(b'"');
    // Made of strings and ASCII only.
    String::from_utf8(out).unwrap_or_default()
}

/// The inside of a JSON string that holds `data`.
fn within(data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len() * 5 / 4 + 8);
    // Made of strings and ASCII only.
    json::string(&mut out, std::str::from_utf8(data).unwrap_or_default());
    out.pop();
    out.remove(0);
    out
}

/// The roster by users: how many, their ids, and with what each came. All three agree.
pub(super) fn state_payload(roster: &Snapshot) -> Vec<u8> {
    let mut data = Vec::with_capacity(64 + roster.members.len() * 96);
    data.extend_from_slice(br#"{"presence":{"count":"#);
    json::number(&mut data, roster.members.len());
    data.extend_from_slice(br#","ids":"#);
    json::list(&mut data, &roster.members, |out, member| json::string(out, &member.user));
    data.extend_from_slice(br#","hash":{"#);
    for (at, member) in roster.members.iter().enumerate() {
        if at > 0 {
            data.push(b',');
        }
        json::string(&mut data, &member.user);
        data.push(b':');
        data.extend_from_slice(member.first_meta.as_bytes());
    }
    data.extend_from_slice(b"}}}");
    within(&data)
}

pub(super) fn count_payload(roster: &Snapshot) -> Vec<u8> {
    within(format!(r#"{{"subscription_count":{}}}"#, roster.connections).as_bytes())
}

/// Each user who came or left, in a frame of its own.
pub(super) fn diff(topic: &str, diff: &Diff, roster: &Snapshot) -> Vec<Frame> {
    let frames = diff.edges(roster).into_iter().map(|edge| {
        let mut data = br#"{"user_id":"#.to_vec();
        let event = match edge {
            Edge::Came(member) => {
                json::string(&mut data, &member.user);
                data.extend_from_slice(br#","user_info":"#);
                data.extend_from_slice(member.first_meta.as_bytes());
                "pusher_internal:member_added"
            }
            Edge::Left(user) => {
                json::string(&mut data, user);
                "pusher_internal:member_removed"
            }
        };
        data.push(b'}');
        // Made of strings and ASCII only.
        frame(event, Some(topic), std::str::from_utf8(&data).unwrap_or_default())
    });
    frames.collect()
}

/// How many connections a channel has.
pub(super) fn count(topic: &str, roster: &Snapshot) -> Frame {
    let data = format!(r#"{{"subscription_count":{}}}"#, roster.connections);
    frame("pusher_internal:subscription_count", Some(topic), &data)
}

/// That the user whose channel `topic` is is online; nothing if it is not.
pub(super) fn watch_envelope(topic: &str, roster: &Snapshot) -> Option<(String, &'static str)> {
    let Kind::User(user) = Kind::of(topic) else { return None };
    let Frame::Text(text) = watched("online", user) else { return None };
    (roster.connections > 0).then(|| (String::from_utf8_lossy(&text).into_owned(), ""))
}

/// That the user whose channel `topic` is has come or left.
pub(super) fn watch(topic: &str, diff: &Diff, roster: &Snapshot) -> Option<Frame> {
    let Kind::User(user) = Kind::of(topic) else { return None };
    let (came, left) = (diff.joins.len(), diff.leaves.len());
    match ((roster.connections + left).saturating_sub(came), roster.connections) {
        (0, 1..) => Some(watched("online", user)),
        (1.., 0) => Some(watched("offline", user)),
        _ => None,
    }
}

fn watched(name: &str, user: &str) -> Frame {
    let mut data = format!(r#"{{"events":[{{"name":"{name}","user_ids":["#).into_bytes();
    json::string(&mut data, user);
    data.extend_from_slice(b"]}]}");
    frame("pusher_internal:watchlist_events", None, &String::from_utf8_lossy(&data))
}

/// Whether `event` of a backend is one that only the server itself may say.
pub fn is_reserved(event: &str) -> bool {
    event.starts_with("pusher:") || event.starts_with("pusher_internal:")
}

pub(super) fn broadcast(topic: &str, said: &Broadcast) -> Option<Frame> {
    let Broadcast::Said { message, by_backend, user, .. } = said else { return None };
    let event = match by_backend {
        true => Cow::from(&*message.event),
        false => format!("{CLIENT}{}", message.event).into(),
    };
    let mut out = head(&event, Some(topic), 0);
    match &message.body {
        Body::Json(json) => out.extend_from_slice(json.as_bytes()),
        Body::Text(text) => json::string(&mut out, text),
        Body::Raw(..) => return None,
    }
    if let Some(user) = user.as_ref().filter(|_| Kind::of(topic) == Kind::Presence) {
        out.extend_from_slice(br#","user_id":"#);
        json::string(&mut out, user);
    }
    out.push(b'}');
    Some(Frame::text(out))
}

#[cfg(test)]
#[path = "pusher_tests.rs"]
mod tests;
