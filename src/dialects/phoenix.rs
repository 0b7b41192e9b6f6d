//! The Phoenix Channels dialect, `vsn` 1.0.0 and 2.0.0, the latter with binary pushes.
//!
//! Frames are those of the npm package `phoenix` 1.8. Who joins is present, unless it only observes. A `broadcast`
//! is told in the form that Supabase gave it; a binary push is one too, of raw bytes.

use bytes::{BufMut as _, Bytes, BytesMut};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::envelope::{self, Message, Version};
use super::{
    Address, Body, Broadcast, Command, Event, Frame, Incoming, JoinRequest, Malformed, Message as Said,
    Wanted, WireFormat, meta_from, resume_from, user_from,
};
use crate::config::Limits;
use crate::reject::Dialect;

/// What a binary push must not be called.
const OWN_EVENTS: [&str; 3] = ["presence", "broadcast", "heartbeat"];

pub(super) fn decode_text(text: &str, limits: &Limits) -> Result<Incoming, Malformed> {
    let (message, version) = envelope::read(text)?;
    let format = match version {
        Version::V1 => WireFormat::PhoenixV1,
        Version::V2 => WireFormat::PhoenixV2,
    };
    let command = command(&message, limits);
    Ok(Incoming { address: message.address(), command, format })
}

/// A client's binary push (kind 0): every length is one byte, then the strings, then the data.
pub(super) fn decode_binary(data: &[u8]) -> Result<Incoming, Malformed> {
    let short = || Malformed("binary frame too short".into());
    let [0, join_ref, message_ref, topic, event, rest @ ..] = data else {
        return Err(Malformed("not a binary push".into()));
    };
    let mut rest = rest;
    let mut take = |length: &u8| {
        let (head, tail) = rest.split_at_checked(usize::from(*length)).ok_or_else(short)?;
        rest = tail;
        std::str::from_utf8(head).map_err(|_| Malformed("binary frame with a name that is not UTF-8".into()))
    };
    let (join_ref, message_ref, topic, event) =
        (take(join_ref)?, take(message_ref)?, take(topic)?, take(event)?);
    let some = |text: &str| (!text.is_empty()).then(|| text.into());
    let is_own = event.starts_with("phx_") || OWN_EVENTS.contains(&event);
    let command = if is_own {
        Command::Unknown
    } else {
        let body = Body::Raw(Dialect::Phoenix, Bytes::copy_from_slice(rest));
        Command::Broadcast(Ok(Said { event: event.into(), body }))
    };
    Ok(Incoming {
        address: Address { join_ref: some(join_ref), message_ref: some(message_ref), topic: topic.into() },
        command,
        format: WireFormat::PhoenixV2,
    })
}

fn command(message: &Message<'_>, limits: &Limits) -> Command {
    match message.event.as_ref() {
        "heartbeat" if message.topic == "phoenix" => Command::Heartbeat,
        "phx_join" => Command::Join(Box::new(join(message.payload, limits))),
        "phx_leave" => Command::Leave,
        "presence" => envelope::presence(message.payload, limits),
        "broadcast" => envelope::said(message.payload),
        _ => Command::Unknown,
    }
}

fn join(payload: Option<&RawValue>, limits: &Limits) -> JoinRequest {
    #[derive(Deserialize, Default)]
    struct Fields<'a> {
        #[serde(borrow, default)]
        user_id: Option<&'a RawValue>,
        #[serde(borrow, default)]
        meta: Option<&'a RawValue>,
        #[serde(borrow, default)]
        resume: Option<&'a RawValue>,
        #[serde(borrow, default)]
        observe: Option<&'a RawValue>,
        #[serde(borrow, default)]
        config: Option<&'a RawValue>,
    }
    // A payload that is no object claims nothing.
    let fields: Fields<'_> = payload.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default();
    JoinRequest {
        user: user_from(fields.user_id, limits),
        meta: meta_from(fields.meta, limits),
        resume: resume_from(fields.resume),
        observe: fields.observe.is_some_and(|raw| raw.get() == "true"),
        wanted: Wanted { own: envelope::wanted(fields.config).own, answer: true },
        ..JoinRequest::default()
    }
}

pub(super) fn encode(version: Version, event: &Event<'_>) -> Option<Frame> {
    let text = match event {
        Event::Ok(to) | Event::Joined(to) => envelope::ok(version, to),
        Event::Echo(to, data) => return echo(to, data),
        Event::Refused(to, reject) => {
            envelope::refusal(version, to, reject, &reject.reason(Dialect::Phoenix))
        }
        Event::Closed { topic, join_ref, replaced } => envelope::closed(version, topic, join_ref, *replaced)?,
        Event::NotJoined(..)
        | Event::System { .. }
        | Event::Established { .. }
        | Event::SignedIn { .. }
        | Event::CacheMiss { .. } => return None,
    };
    Some(Frame::text(text))
}

/// The reply (kind 1) that sends a binary push back.
fn echo(to: &Address, data: &[u8]) -> Option<Frame> {
    let names =
        [to.join_ref.as_deref().unwrap_or(""), to.message_ref.as_deref().unwrap_or(""), &to.topic, "ok"];
    binary(1, &names, data)
}

/// Kind, the names' lengths, the names, the data; none where a name is too long for it.
fn binary(kind: u8, names: &[&str], data: &[u8]) -> Option<Frame> {
    let mut out =
        BytesMut::with_capacity(1 + names.iter().map(|name| name.len() + 1).sum::<usize>() + data.len());
    out.put_u8(kind);
    for name in names {
        out.put_u8(u8::try_from(name.len()).ok()?);
    }
    names.iter().for_each(|name| out.put_slice(name.as_bytes()));
    out.put_slice(data);
    Some(Frame::Binary(out.freeze()))
}

pub(super) fn broadcast(version: Version, topic: &str, said: &Broadcast) -> Option<Frame> {
    let Broadcast::Said { message, .. } = said else { return None };
    match (&message.body, version) {
        // A broadcast (kind 2).
        (Body::Raw(Dialect::Phoenix, data), Version::V2) => binary(2, &[topic, &message.event], data),
        (Body::Raw(..), _) => None,
        _ => {
            let payload = envelope::broadcast_payload(message)?;
            Some(Frame::text(envelope::push(version, None, topic, "broadcast", &payload)))
        }
    }
}

#[cfg(test)]
#[path = "phoenix_tests.rs"]
mod tests;
