//! The envelope in which Phoenix's and Supabase's messages come: `join_ref`, `ref`, `topic`, `event` and `payload`,
//! as an array (version 2) or an object (version 1, which has no `join_ref` on the way out). And what both say in
//! it alike: replies, and presence as a `presence_state` (the whole roster) and then `presence_diff`s, of which
//! the client applies all joins, then all leaves.

use std::borrow::Cow;
use std::fmt::Write as _;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Address, Command, Malformed, Message as Said, Wanted, meta_from};
use crate::config::Limits;
use crate::dialects::Body;
use crate::presence::{Diff, Entry, Ref, Snapshot};
use crate::reject::Reject;

/// The version of the serializer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// 1.0.0: objects.
    V1,
    /// 2.0.0: arrays.
    V2,
}

/// A message in the order of version 2. What stands behind the fifth element is ignored.
pub struct Message<'a> {
    pub join_ref: Option<Cow<'a, str>>,
    pub message_ref: Option<Cow<'a, str>>,
    pub topic: Cow<'a, str>,
    pub event: Cow<'a, str>,
    pub payload: Option<&'a RawValue>,
}

/// A string that borrows from the frame where it has no escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// Reads a message. Its version is told by what arrives.
///
/// # Errors
/// [`Malformed`].
pub fn read(text: &str) -> Result<(Message<'_>, Version), Malformed> {
    match text.trim_start().as_bytes().first() {
        Some(b'[') => Ok((array(text)?, Version::V2)),
        Some(b'{') => Ok((object(text)?, Version::V1)),
        _ => Err(Malformed("neither an array nor an object".into())),
    }
}

impl Message<'_> {
    /// Where the answer goes.
    pub fn address(&self) -> Address {
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

/// `{"type":"presence","event":"track"|"untrack"|"idle"|"active","payload":{…}}`; the event in any case of letters.
pub fn presence(payload: Option<&RawValue>, limits: &Limits) -> Command {
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

/// `{"type":"broadcast","event":"wave","payload":…}`.
pub fn said(payload: Option<&RawValue>) -> Command {
    #[derive(Deserialize)]
    struct Fields<'a> {
        #[serde(borrow)]
        event: Cow<'a, str>,
        #[serde(borrow, default)]
        payload: Option<&'a RawValue>,
    }
    let fields = payload.and_then(|raw| serde_json::from_str::<Fields<'_>>(raw.get()).ok());
    // One byte says how long the event is where it goes out in binary.
    let fields = fields.filter(|fields| (1..=usize::from(u8::MAX)).contains(&fields.event.len()));
    Command::Broadcast(fields.ok_or(Reject::MalformedPayload).map(|fields| Said {
        event: fields.event.into(),
        body: Body::Json(fields.payload.map_or("{}", RawValue::get).into()),
    }))
}

/// What a join's `config` says of broadcasts; whatever is missing or of another shape is no.
pub fn wanted(config: Option<&RawValue>) -> Wanted {
    #[derive(Deserialize, Default)]
    struct Config<'a> {
        #[serde(borrow, default)]
        broadcast: Option<&'a RawValue>,
    }
    #[derive(Deserialize, Default)]
    struct Fields<'a> {
        #[serde(borrow, default, rename = "self")]
        own: Option<&'a RawValue>,
        #[serde(borrow, default)]
        ack: Option<&'a RawValue>,
    }
    let config: Config<'_> = object_or_default(config);
    let fields: Fields<'_> = object_or_default(config.broadcast);
    Wanted { own: is_true(fields.own), answer: is_true(fields.ack) }
}

/// What `raw` says; the default where it is absent or of another shape.
pub fn object_or_default<'a, T: Deserialize<'a> + Default>(raw: Option<&'a RawValue>) -> T {
    raw.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default()
}

/// A value that stands for yes: `true`, or the string.
pub fn is_true(raw: Option<&RawValue>) -> bool {
    raw.is_some_and(|raw| matches!(raw.get(), "true" | "\"true\""))
}

/// A reply with this payload.
pub fn reply(version: Version, to: &Address, payload: &str) -> String {
    let mut out = String::with_capacity(96 + payload.len());
    match version {
        Version::V2 => {
            out.push('[');
            push_optional(&mut out, to.join_ref.as_deref());
            out.push(',');
            push_optional(&mut out, to.message_ref.as_deref());
            out.push(',');
            push_string(&mut out, &to.topic);
            out.push_str(r#","phx_reply","#);
            out.push_str(payload);
            out.push(']');
        }
        Version::V1 => {
            head_v1(&mut out, &to.topic, "phx_reply");
            out.push_str(payload);
            out.push_str(r#","ref":"#);
            push_optional(&mut out, to.message_ref.as_deref());
            out.push('}');
        }
    }
    out
}

/// What answers that all is well.
pub fn ok(version: Version, to: &Address) -> String {
    reply(version, to, r#"{"status":"ok","response":{}}"#)
}

/// What answers a call that is refused with `reason`.
pub fn refusal(version: Version, to: &Address, reject: &Reject, reason: &str) -> String {
    let mut payload = String::with_capacity(64 + reason.len());
    payload.push_str(r#"{"status":"error","response":{"reason":"#);
    push_string(&mut payload, reason);
    if let Reject::RateLimited { retry_after_ms } = reject {
        let _ = write!(payload, r#","retry_after_ms":{retry_after_ms}"#);
    }
    payload.push_str("}}");
    reply(version, to, &payload)
}

/// What ends the join named `join_ref`. In version 1 none if it is `replaced`: without a join_ref the client would
/// take it for the join that came after.
pub fn closed(version: Version, topic: &str, join_ref: &str, replaced: bool) -> Option<String> {
    let mut out = String::with_capacity(topic.len() + 64);
    if version == Version::V1 {
        out.push_str(r#"{"topic":"#);
        push_string(&mut out, topic);
        out.push_str(r#","event":"phx_close","payload":{},"ref":"#);
        push_string(&mut out, join_ref);
        out.push('}');
        return (!replaced).then_some(out);
    }
    out.push('[');
    push_string(&mut out, join_ref);
    out.push(',');
    push_string(&mut out, join_ref);
    out.push(',');
    push_string(&mut out, topic);
    out.push_str(r#","phx_close",{}]"#);
    Some(out)
}

/// A message to one join, or to all (`None`), with this payload.
pub fn push(version: Version, join_ref: Option<&str>, topic: &str, event: &str, payload: &str) -> String {
    let mut out = String::with_capacity(topic.len() + payload.len() + 64);
    match version {
        Version::V2 => {
            head_v2(&mut out, join_ref, topic, event);
            out.push_str(payload);
            out.push(']');
        }
        Version::V1 => {
            head_v1(&mut out, topic, event);
            out.push_str(payload);
            out.push_str(r#","ref":null}"#);
        }
    }
    out
}

/// `{"type":"broadcast","event":…,"payload":…}`; none where it cannot be said in JSON.
pub fn broadcast_payload(said: &Said) -> Option<String> {
    let body = said.body.as_json()?;
    let mut out = String::with_capacity(body.len() + said.event.len() + 48);
    out.push_str(r#"{"type":"broadcast","event":"#);
    push_string(&mut out, &said.event);
    out.push_str(r#","payload":"#);
    out.push_str(&body);
    out.push('}');
    Some(out)
}

/// What stands before and after the roster.
pub fn state(version: Version, topic: &str, join_ref: Option<&str>) -> (String, &'static str) {
    let mut out = String::with_capacity(topic.len() + 64);
    match version {
        Version::V1 => {
            head_v1(&mut out, topic, "presence_state");
            (out, r#","ref":null}"#)
        }
        Version::V2 => {
            head_v2(&mut out, join_ref, topic, "presence_state");
            (out, "]")
        }
    }
}

/// The roster: `{user:{"metas":[…]},…}`.
pub fn state_payload(snapshot: &Snapshot) -> String {
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

/// A diff, whole.
pub fn diff(version: Version, topic: &str, diff: &Diff) -> String {
    let mut out = String::with_capacity(size(topic, diff));
    match version {
        Version::V1 => {
            head_v1(&mut out, topic, "presence_diff");
            push_diff(&mut out, diff);
            out.push_str(r#","ref":null}"#);
        }
        Version::V2 => {
            head_v2(&mut out, None, topic, "presence_diff");
            push_diff(&mut out, diff);
            out.push(']');
        }
    }
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

fn head_v2(out: &mut String, join_ref: Option<&str>, topic: &str, event: &str) {
    out.push('[');
    push_optional(out, join_ref);
    out.push_str(",null,");
    push_string(out, topic);
    let _ = write!(out, r#","{event}","#);
}

fn head_v1(out: &mut String, topic: &str, event: &str) {
    out.push_str(r#"{"topic":"#);
    push_string(out, topic);
    let _ = write!(out, r#","event":"{event}","payload":"#);
}

fn push_optional(out: &mut String, text: Option<&str>) {
    match text {
        Some(text) => push_string(out, text),
        None => out.push_str("null"),
    }
}

/// Appends `text` as a JSON string. Most names need no escapes, and then it is one copy.
pub fn push_string(out: &mut String, text: &str) {
    if text.bytes().all(|b| b >= 0x20 && b != b'"' && b != b'\\') {
        out.push('"');
        out.push_str(text);
        out.push('"');
    } else {
        // A string always has a JSON form.
        out.push_str(&serde_json::to_string(text).unwrap_or_default());
    }
}
