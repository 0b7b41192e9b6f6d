//! The Phoenix Channels dialect, `vsn` 1.0.0 (JSON objects) and 2.0.0 (JSON arrays and binary pushes).
//!
//! Frames are those of the npm package `phoenix` 1.8. A message is `join_ref`, `ref`, `topic`, `event`
//! and `payload`; version 1 has no `join_ref` on the way out. Presence is a `presence_state` (the
//! whole roster) and then `presence_diff`s, of which the client applies all joins, then all leaves.

use std::borrow::Cow;
use std::fmt::Write as _;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    Address, Command, Event, Incoming, JoinRequest, Malformed, WireFormat, meta_from, resume_from, user_from,
};
use crate::config::Limits;
use crate::presence::{Diff, Entry, Ref, Snapshot};
use crate::reject::Reject;

/// A message in the order of version 2. What stands behind the fifth element is ignored.
struct Message<'a> {
    join_ref: Option<Cow<'a, str>>,
    message_ref: Option<Cow<'a, str>>,
    topic: Cow<'a, str>,
    event: Cow<'a, str>,
    payload: Option<&'a RawValue>,
}

/// A string that borrows from the frame where it has no escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

pub(super) fn decode_text(text: &str, limits: &Limits) -> Result<Incoming, Malformed> {
    let (message, format) = match text.trim_start().as_bytes().first() {
        Some(b'[') => (array(text)?, WireFormat::PhoenixV2),
        Some(b'{') => (object(text)?, WireFormat::PhoenixV1),
        _ => return Err(Malformed("neither an array nor an object".into())),
    };
    let command = command(&message, limits);
    Ok(Incoming { address: message.address(), command, format })
}

/// A client's binary push (kind 0): every length is one byte, then the strings, then the data. No
/// event of ours takes raw bytes, so all that is left to do is to say so to the right address.
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
    let (join_ref, message_ref, topic) = (take(join_ref)?, take(message_ref)?, take(topic)?);
    take(event)?;
    let some = |text: &str| (!text.is_empty()).then(|| text.into());
    Ok(Incoming {
        address: Address { join_ref: some(join_ref), message_ref: some(message_ref), topic: topic.into() },
        command: Command::Unknown,
        format: WireFormat::PhoenixV2,
    })
}

impl Message<'_> {
    fn address(&self) -> Address {
        let boxed = |text: &Option<Cow<'_, str>>| text.as_deref().map(Box::from);
        Address {
            join_ref: boxed(&self.join_ref),
            message_ref: boxed(&self.message_ref),
            topic: self.topic.as_ref().into(),
        }
    }
}

fn array(text: &str) -> Result<Message<'_>, Malformed> {
    let parts: Vec<&RawValue> = serde_json::from_str(text).map_err(not_json)?;
    let [join_ref, message_ref, topic, event, payload, ..] = parts.as_slice() else {
        return Err(Malformed("an array of fewer than five elements".into()));
    };
    Ok(Message {
        join_ref: reference(Some(join_ref))?,
        message_ref: reference(Some(message_ref))?,
        topic: name(Some(topic), "topic")?,
        event: name(Some(event), "event")?,
        payload: Some(payload),
    })
}

fn object(text: &str) -> Result<Message<'_>, Malformed> {
    #[derive(Deserialize)]
    struct Fields<'a> {
        #[serde(borrow, default)]
        join_ref: Option<&'a RawValue>,
        #[serde(borrow, default, rename = "ref")]
        message_ref: Option<&'a RawValue>,
        #[serde(borrow, default)]
        topic: Option<&'a RawValue>,
        #[serde(borrow, default)]
        event: Option<&'a RawValue>,
        #[serde(borrow, default)]
        payload: Option<&'a RawValue>,
    }
    let fields: Fields<'_> = serde_json::from_str(text).map_err(not_json)?;
    Ok(Message {
        join_ref: reference(fields.join_ref)?,
        message_ref: reference(fields.message_ref)?,
        topic: name(fields.topic, "topic")?,
        event: name(fields.event, "event")?,
        payload: fields.payload,
    })
}

fn not_json(error: serde_json::Error) -> Malformed {
    Malformed(format!("not JSON as expected, at column {}", error.column()).into())
}

/// A ref is a string to clients; a number is taken for its text.
fn reference(raw: Option<&RawValue>) -> Result<Option<Cow<'_, str>>, Malformed> {
    match raw.map(RawValue::get) {
        None | Some("null") => Ok(None),
        Some(number) if number.starts_with(|c: char| c.is_ascii_digit()) => Ok(Some(number.into())),
        Some(text) => match serde_json::from_str::<Text<'_>>(text) {
            Ok(Text(text)) => Ok(Some(text)),
            Err(_) => Err(Malformed("a ref that is not a string".into())),
        },
    }
}

fn name<'a>(raw: Option<&'a RawValue>, what: &str) -> Result<Cow<'a, str>, Malformed> {
    match raw.map(|raw| serde_json::from_str::<Text<'_>>(raw.get())) {
        Some(Ok(Text(text))) => Ok(text),
        _ => Err(Malformed(format!("{what} is not a string").into())),
    }
}

fn command(message: &Message<'_>, limits: &Limits) -> Command {
    match message.event.as_ref() {
        "heartbeat" if message.topic == "phoenix" => Command::Heartbeat,
        "phx_join" => Command::Join(join(message.payload, limits)),
        "phx_leave" => Command::Leave,
        "presence" => presence(message.payload, limits),
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
    }
    // A payload that is no object claims nothing.
    let fields: Fields<'_> = payload.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default();
    JoinRequest {
        user: user_from(fields.user_id, limits),
        meta: meta_from(fields.meta, limits),
        resume: resume_from(fields.resume),
        observe: fields.observe.is_some_and(|raw| raw.get() == "true"),
    }
}

/// `{"type":"presence","event":"track"|"untrack"|"idle"|"active","payload":{…}}`; the event in any case of letters.
fn presence(payload: Option<&RawValue>, limits: &Limits) -> Command {
    #[derive(Deserialize)]
    struct Fields<'a> {
        #[serde(borrow)]
        event: Cow<'a, str>,
        #[serde(borrow, default)]
        payload: Option<&'a RawValue>,
    }
    let Some(fields) = payload.and_then(|raw| serde_json::from_str::<Fields<'_>>(raw.get()).ok()) else {
        return Command::Track(Err(Reject::MalformedPayload));
    };
    if fields.event.eq_ignore_ascii_case("track") {
        Command::Track(meta_from(fields.payload, limits).map(|meta| meta.unwrap_or_else(|| "{}".into())))
    } else if fields.event.eq_ignore_ascii_case("untrack") {
        Command::Untrack
    } else if fields.event.eq_ignore_ascii_case("idle") {
        Command::Idle(true)
    } else if fields.event.eq_ignore_ascii_case("active") {
        Command::Idle(false)
    } else {
        Command::Unknown
    }
}

pub(super) fn v2(event: &Event<'_>) -> Option<String> {
    let mut out = String::with_capacity(96);
    match event {
        Event::Ok(to) => {
            reply_head_v2(&mut out, to);
            out.push_str(r#"{"status":"ok","response":{}}]"#);
        }
        Event::Refused(to, reject) => {
            reply_head_v2(&mut out, to);
            push_refusal(&mut out, reject);
            out.push(']');
        }
        Event::Closed { topic, join_ref } => {
            out.push('[');
            push_string(&mut out, join_ref);
            out.push(',');
            push_string(&mut out, join_ref);
            out.push(',');
            push_string(&mut out, topic);
            out.push_str(r#","phx_close",{}]"#);
        }
    }
    Some(out)
}

pub(super) fn v1(event: &Event<'_>) -> Option<String> {
    let mut out = String::with_capacity(128);
    match event {
        Event::Ok(to) => {
            head_v1(&mut out, &to.topic, "phx_reply");
            out.push_str(r#"{"status":"ok","response":{}},"ref":"#);
            push_optional(&mut out, to.message_ref.as_deref());
        }
        Event::Refused(to, reject) => {
            head_v1(&mut out, &to.topic, "phx_reply");
            push_refusal(&mut out, reject);
            out.push_str(r#","ref":"#);
            push_optional(&mut out, to.message_ref.as_deref());
        }
        // Without a join_ref the client would take it for the join that replaced this one.
        Event::Closed { .. } => return None,
    }
    out.push('}');
    Some(out)
}

pub(super) fn state_envelope_v1(topic: &str) -> (String, &'static str) {
    let mut out = String::with_capacity(topic.len() + 64);
    head_v1(&mut out, topic, "presence_state");
    (out, r#","ref":null}"#)
}

pub(super) fn state_envelope_v2(topic: &str, join_ref: Option<&str>) -> (String, &'static str) {
    let mut out = String::with_capacity(topic.len() + 64);
    out.push('[');
    push_optional(&mut out, join_ref);
    out.push_str(",null,");
    push_string(&mut out, topic);
    out.push_str(r#","presence_state","#);
    (out, "]")
}

pub(super) fn state_payload(snapshot: &Snapshot) -> String {
    let mut out = String::with_capacity(64 + snapshot.connections * 96);
    out.push('{');
    for (at, member) in snapshot.members.iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        push_string(&mut out, &member.user);
        out.push_str(r#":{"metas":["#);
        for (at, (_, entry)) in member.seats.iter().enumerate() {
            if at > 0 {
                out.push(',');
            }
            push_meta(&mut out, entry, None);
        }
        out.push_str("]}");
    }
    out.push('}');
    out
}

pub(super) fn diff_v1(topic: &str, diff: &Diff) -> String {
    let mut out = String::with_capacity(size(topic, diff));
    head_v1(&mut out, topic, "presence_diff");
    push_diff(&mut out, diff);
    out.push_str(r#","ref":null}"#);
    out
}

pub(super) fn diff_v2(topic: &str, diff: &Diff) -> String {
    let mut out = String::with_capacity(size(topic, diff));
    out.push_str("[null,null,");
    push_string(&mut out, topic);
    out.push_str(r#","presence_diff","#);
    push_diff(&mut out, diff);
    out.push(']');
    out
}

/// About how long the text of a diff is.
fn size(topic: &str, diff: &Diff) -> usize {
    topic.len() + 80 + (diff.joins.len() + diff.leaves.len()) * 112
}

fn push_diff(out: &mut String, diff: &Diff) {
    out.push_str(r#"{"joins":"#);
    push_by_user(out, diff.joins.iter().map(|(new, old)| (&**new, old.as_ref().map(|e| e.r#ref))));
    out.push_str(r#","leaves":"#);
    push_by_user(out, diff.leaves.iter().map(|old| (&**old, None)));
    out.push('}');
}

/// `{user:{"metas":[…]},…}`, each user once.
fn push_by_user<'a>(out: &mut String, entries: impl Iterator<Item = (&'a Entry, Option<Ref>)>) {
    let mut entries: Vec<(&Entry, Option<Ref>)> = entries.collect();
    // Stable, so that the metas of one user keep the order in which they came.
    entries.sort_by(|(a, _), (b, _)| a.user.cmp(&b.user));
    out.push('{');
    let mut last: Option<&str> = None;
    for (entry, previous) in entries {
        if last == Some(&*entry.user) {
            out.push(',');
        } else {
            if last.is_some() {
                out.push_str("]},");
            }
            push_string(out, &entry.user);
            out.push_str(r#":{"metas":["#);
        }
        push_meta(out, entry, previous);
        last = Some(&entry.user);
    }
    out.push_str(if last.is_some() { "]}}" } else { "}" });
}

/// The meta with its refs in front. Stored metas never have fields of those names.
fn push_meta(out: &mut String, entry: &Entry, previous: Option<Ref>) {
    let _ = write!(out, r#"{{"phx_ref":"{}""#, entry.r#ref.as_str());
    if let Some(previous) = previous {
        let _ = write!(out, r#","phx_ref_prev":"{}""#, previous.as_str());
    }
    let fields = entry.meta.strip_prefix('{').unwrap_or("}");
    if fields != "}" {
        out.push(',');
    }
    out.push_str(fields);
}

fn reply_head_v2(out: &mut String, to: &Address) {
    out.push('[');
    push_optional(out, to.join_ref.as_deref());
    out.push(',');
    push_optional(out, to.message_ref.as_deref());
    out.push(',');
    push_string(out, &to.topic);
    out.push_str(r#","phx_reply","#);
}

fn head_v1(out: &mut String, topic: &str, event: &str) {
    out.push_str(r#"{"topic":"#);
    push_string(out, topic);
    let _ = write!(out, r#","event":"{event}","payload":"#);
}

fn push_refusal(out: &mut String, reject: &Reject) {
    out.push_str(r#"{"status":"error","response":{"reason":"#);
    push_string(out, &reject.to_string());
    if let Reject::RateLimited { retry_after_ms } = reject {
        let _ = write!(out, r#","retry_after_ms":{retry_after_ms}"#);
    }
    out.push_str("}}");
}

fn push_optional(out: &mut String, text: Option<&str>) {
    match text {
        Some(text) => push_string(out, text),
        None => out.push_str("null"),
    }
}

/// `text` as a JSON string. Most names need no escapes, and then it is one copy.
fn push_string(out: &mut String, text: &str) {
    if text.bytes().all(|b| b >= 0x20 && b != b'"' && b != b'\\') {
        out.push('"');
        out.push_str(text);
        out.push('"');
    } else {
        // A string always has a JSON form.
        out.push_str(&serde_json::to_string(text).unwrap_or_default());
    }
}

#[cfg(test)]
#[path = "phoenix_tests.rs"]
mod tests;
