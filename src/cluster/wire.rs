//! What nodes write for each other: announcements on Pub/Sub and the values of presence hashes. JSON,
//! since other services read it too.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::keys;
use crate::dialects::{Body, Broadcast, Message};
use crate::presence::{Batch, Entry, NodeId, Op, Origin, Seat, Stated};
use crate::reject::Dialect;

/// A message or value that is not ours, or not whole.
#[derive(Debug, thiserror::Error)]
#[error("not a message of ours: {0}")]
pub struct Foreign(String);

impl From<serde_json::Error> for Foreign {
    fn from(error: serde_json::Error) -> Self {
        Self(format!("{:?} at column {}", error.classify(), error.column()))
    }
}

#[derive(Serialize, Deserialize)]
struct Announcement<'a> {
    node: NodeId,
    from: u64,
    to: u64,
    #[serde(borrow)]
    ops: Vec<SeatChange<'a>>,
}

#[derive(Serialize, Deserialize)]
struct SeatChange<'a> {
    seat: u64,
    #[serde(borrow)]
    user: Cow<'a, str>,
    /// This and the rest are absent when the seat is free again.
    #[serde(borrow, rename = "ref", default, skip_serializing_if = "Option::is_none")]
    reference: Option<Cow<'a, str>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    meta: Option<&'a RawValue>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    first: Option<&'a RawValue>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    since: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    waiting: Option<u64>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    resume: Option<Cow<'a, str>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    origin: Option<Claim<'a>>,
}

#[derive(Serialize, Deserialize)]
struct HashValue<'a> {
    node: NodeId,
    #[serde(borrow, rename = "ref")]
    reference: Cow<'a, str>,
    #[serde(borrow)]
    meta: &'a RawValue,
    since: u64,
    /// This and the rest are absent where there is nothing to say.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    first: Option<&'a RawValue>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    waiting: Option<u64>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    resume: Option<Cow<'a, str>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    origin: Option<Claim<'a>>,
}

/// What a seat continues. Both seats are written as fields of the hash: `node:seat`.
#[derive(Serialize, Deserialize)]
struct Claim<'a> {
    #[serde(borrow)]
    seat: Cow<'a, str>,
    turn: u32,
    #[serde(borrow)]
    over: Cow<'a, str>,
}

/// The start of every announcement of `node`, by which it skips its own.
pub fn own_prefix(node: NodeId) -> String {
    format!(r#"{{"node":"{node}""#)
}

/// The announcement of a batch of `node`.
///
/// # Errors
/// [`Foreign`] if a meta is not JSON, which those of a roster always are.
pub fn announcement(node: NodeId, batch: &Batch) -> Result<String, Foreign> {
    let ops = batch.ops.iter().map(seat_change).collect::<Result<_, Foreign>>()?;
    Ok(serde_json::to_string(&Announcement { node, from: batch.from, to: batch.to, ops })?)
}

/// Reads an announcement.
///
/// # Errors
/// [`Foreign`].
pub fn parse_announcement(text: &str) -> Result<(NodeId, Batch), Foreign> {
    let Announcement { node, from, to, ops } = serde_json::from_str(text)?;
    if from > to {
        return Err(Foreign("versions out of order".to_owned()));
    }
    let ops = ops.into_iter().map(op).collect::<Result<_, Foreign>>()?;
    Ok((node, Batch { from, to, ops }))
}

/// What somebody says, on its way to the other nodes.
#[derive(Serialize, Deserialize)]
struct Relayed<'a> {
    node: NodeId,
    #[serde(borrow)]
    broadcast: Spoken<'a>,
}

#[derive(Serialize, Deserialize, Default)]
struct Spoken<'a> {
    /// Absent where all are to be disconnected.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    event: Option<Cow<'a, str>>,
    /// One of these three with an event.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    json: Option<&'a RawValue>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    text: Option<Cow<'a, str>>,
    /// Bytes in base64, and the dialect that understands them.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    raw: Option<(Cow<'a, str>, Cow<'a, str>)>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    by_backend: bool,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    user: Option<Cow<'a, str>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    except: Option<Cow<'a, str>>,
}

const RAW_DIALECTS: [(&str, Dialect); 2] = [("phoenix", Dialect::Phoenix), ("supabase", Dialect::Supabase)];

/// The message that relays `broadcast` from `node`.
pub fn broadcast(node: NodeId, broadcast: &Broadcast) -> String {
    let mut spoken = Spoken::default();
    if let Broadcast::Said { message: Message { event, body }, by_backend, user, except } = broadcast {
        spoken.event = Some((&**event).into());
        match body {
            // What was checked to be JSON is.
            Body::Json(json) => spoken.json = Some(serde_json::from_str(json).unwrap_or(RawValue::NULL)),
            Body::Text(text) => spoken.text = Some((&**text).into()),
            Body::Raw(dialect, bytes) => {
                let name =
                    RAW_DIALECTS.iter().find(|(_, known)| known == dialect).map_or("", |(name, _)| name);
                spoken.raw = Some((name.into(), STANDARD.encode(bytes).into()));
            }
        }
        spoken.by_backend = *by_backend;
        spoken.user = user.as_deref().map(Cow::from);
        spoken.except = except.map(|socket| socket.to_string().into());
    }
    // Such a structure always has a JSON form.
    serde_json::to_string(&Relayed { node, broadcast: spoken }).unwrap_or_default()
}

/// Whether a message relays a broadcast, as far as its beginning says.
pub fn is_broadcast(text: &str) -> bool {
    const NODE: usize = r#"{"node":"00000000-0000-0000-0000-000000000000""#.len();
    text.get(NODE..).is_some_and(|rest| rest.starts_with(r#","broadcast""#))
}

/// Reads a relayed broadcast.
///
/// # Errors
/// [`Foreign`].
pub fn parse_broadcast(text: &str) -> Result<Broadcast, Foreign> {
    let Relayed { broadcast: spoken, .. } = serde_json::from_str(text)?;
    let Some(event) = spoken.event else { return Ok(Broadcast::Terminate) };
    let body = match (spoken.json, spoken.text, spoken.raw) {
        (Some(json), None, None) => Body::Json(json.get().into()),
        // A null is read as nothing.
        (None, None, None) => Body::Json("null".into()),
        (None, Some(text), None) => Body::Text(text.into()),
        (None, None, Some((name, bytes))) => {
            let dialect = RAW_DIALECTS.iter().find(|(known, _)| *known == name).map(|(_, dialect)| *dialect);
            let bytes =
                STANDARD.decode(&*bytes).map_err(|_| Foreign("bytes that are not base64".to_owned()))?;
            Body::Raw(dialect.ok_or_else(|| Foreign("bytes of no dialect".to_owned()))?, bytes.into())
        }
        _ => return Err(Foreign("a broadcast without one body".to_owned())),
    };
    let except = spoken.except.map(|socket| socket.parse()).transpose();
    Ok(Broadcast::Said {
        message: Message { event: event.into(), body },
        by_backend: spoken.by_backend,
        user: spoken.user.map(Arc::from),
        except: except.map_err(|_| Foreign("no socket id".to_owned()))?,
    })
}

/// A digest as it stands beside the version: 16 hexadecimal digits, since JavaScript has no such numbers.
pub fn digest(digest: u64) -> String {
    format!("{digest:016x}")
}

/// What the nodes state of their parts, from the fields of the hash in which they do. Fields that are not
/// ours are passed over.
pub fn parse_stated(fields: &[(String, String)]) -> HashMap<NodeId, Stated> {
    let mut stated: HashMap<NodeId, Stated> = HashMap::new();
    for (field, value) in fields {
        match field.strip_suffix(":digest") {
            None => {
                if let (Ok(node), Ok(version)) = (field.parse(), value.parse()) {
                    stated.entry(node).or_default().version = version;
                }
            }
            Some(node) => {
                if let (Ok(node), Ok(digest)) = (node.parse(), u64::from_str_radix(value, 16)) {
                    stated.entry(node).or_default().digest = Some(digest);
                }
            }
        }
    }
    stated.retain(|_, stated| stated.version > 0);
    stated
}

/// The value of one seat in a user's presence hash.
///
/// # Errors
/// As [`announcement`].
pub fn value(node: NodeId, entry: &Entry) -> Result<String, Foreign> {
    Ok(serde_json::to_string(&HashValue {
        node,
        reference: entry.r#ref.as_str().into(),
        meta: serde_json::from_str(&entry.meta)?,
        first: raw(entry.first.as_deref())?,
        since: entry.since,
        waiting: entry.waiting,
        resume: entry.resume.map(|key| key.encode().into()),
        origin: entry.origin.as_deref().map(Claim::of),
    })?)
}

/// Reads one field and value of the presence hash of `user`.
///
/// # Errors
/// [`Foreign`].
pub fn parse_value(user: &Arc<str>, field: &str, text: &str) -> Result<(NodeId, u64, Entry), Foreign> {
    let (node, seat) =
        keys::parse_field(field).ok_or_else(|| Foreign("a field of another form".to_owned()))?;
    let HashValue { reference, meta, first, since, waiting, resume, origin, .. } =
        serde_json::from_str(text)?;
    let mut entry = entry(Arc::clone(user), &reference, meta, since)?;
    entry.first = first.map(object).transpose()?;
    return_to(&mut entry, waiting, resume, origin)?;
    Ok((node, seat, entry))
}

fn seat_change(op: &Op) -> Result<SeatChange<'_>, Foreign> {
    let mut change = SeatChange {
        seat: op.seat,
        user: Cow::Borrowed(&*op.user),
        reference: None,
        meta: None,
        first: None,
        since: None,
        waiting: None,
        resume: None,
        origin: None,
    };
    if let Some(entry) = &op.entry {
        change.reference = Some(entry.r#ref.as_str().into());
        change.meta = Some(serde_json::from_str(&entry.meta)?);
        change.first = raw(entry.first.as_deref())?;
        change.since = Some(entry.since);
        change.waiting = entry.waiting;
        change.resume = entry.resume.map(|key| key.encode().into());
        change.origin = entry.origin.as_deref().map(Claim::of);
    }
    Ok(change)
}

fn op(change: SeatChange<'_>) -> Result<Op, Foreign> {
    let user: Arc<str> = change.user.into();
    let shown = match (change.reference, change.meta, change.since) {
        (Some(reference), Some(meta), Some(since)) => {
            let mut entry = entry(Arc::clone(&user), &reference, meta, since)?;
            entry.first = change.first.map(object).transpose()?;
            return_to(&mut entry, change.waiting, change.resume, change.origin)?;
            Some(Arc::new(entry))
        }
        (None, None, None) => None,
        _ => return Err(Foreign("half a seat".to_owned())),
    };
    Ok(Op { seat: change.seat, user, entry: shown })
}

fn entry(user: Arc<str>, reference: &str, meta: &RawValue, since: u64) -> Result<Entry, Foreign> {
    let r#ref = reference.parse().map_err(|_| Foreign("a ref of another form".to_owned()))?;
    Ok(Entry::new(user, r#ref, object(meta)?, since))
}

/// A meta goes out to clients as it stands, so it must be an object.
fn object(meta: &RawValue) -> Result<Arc<str>, Foreign> {
    match meta.get().starts_with('{') {
        true => Ok(meta.get().into()),
        false => Err(Foreign("a meta that is no object".to_owned())),
    }
}

fn raw(meta: Option<&str>) -> Result<Option<&RawValue>, Foreign> {
    Ok(meta.map(serde_json::from_str).transpose()?)
}

/// Adds what concerns coming back.
fn return_to(
    entry: &mut Entry,
    waiting: Option<u64>,
    resume: Option<Cow<'_, str>>,
    origin: Option<Claim<'_>>,
) -> Result<(), Foreign> {
    entry.waiting = waiting;
    entry.resume =
        resume.map(|key| key.parse()).transpose().map_err(|_| Foreign("no resume key".to_owned()))?;
    entry.origin = origin.map(|claim| claim.read()).transpose()?;
    Ok(())
}

impl Claim<'_> {
    fn of(origin: &Origin) -> Self {
        let field = |seat: Seat| keys::field(seat.node, seat.number).into();
        Self { seat: field(origin.seat), turn: origin.turn, over: field(origin.over) }
    }

    fn read(&self) -> Result<Box<Origin>, Foreign> {
        let seat = |field: &str| match keys::parse_field(field) {
            Some((node, number)) => Ok(Seat { node, number }),
            None => Err(Foreign("a claim of another form".to_owned())),
        };
        Ok(Box::new(Origin { seat: seat(&self.seat)?, turn: self.turn, over: seat(&self.over)? }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::presence::{Ids, ResumeKey};

    fn entry_of(ids: &Ids, user: &str, meta: &str) -> Arc<Entry> {
        Arc::new(Entry::new(user.into(), ids.r#ref(), meta.into(), 7))
    }

    #[test]
    fn what_is_announced_is_heard() {
        let ids = Ids::new(NodeId::random());
        let joined = entry_of(&ids, "a\"b", r#"{"n":[1, 2]}"#);
        let ops = vec![
            Op { seat: 1, user: joined.user.clone(), entry: Some(joined.clone()) },
            Op { seat: 2, user: "gone".into(), entry: None },
        ];
        let batch = Batch { from: 3, to: 5, ops };
        let text = announcement(ids.node(), &batch).unwrap();
        assert!(text.starts_with(&own_prefix(ids.node())));
        assert_eq!(parse_announcement(&text).unwrap(), (ids.node(), batch));
        let value = value(ids.node(), &joined).unwrap();
        let read = parse_value(&joined.user, &keys::field(ids.node(), 9), &value).unwrap();
        assert_eq!(read, (ids.node(), 9, (*joined).clone()));
        assert!(!(text + &value).contains("null"), "what is not there is not written");
    }

    #[test]
    fn what_concerns_coming_back_is_heard_and_read_too() {
        let ids = Ids::new(NodeId::random());
        let seat = |number| Seat { node: ids.node(), number };
        let mut entry = (*entry_of(&ids, "ada", "{}")).clone();
        entry.first = Some(r#"{"n":1}"#.into());
        entry.waiting = Some(8);
        entry.resume = Some(ResumeKey::new("ada", "a key of hers"));
        entry.origin = Some(Box::new(Origin { seat: seat(3), turn: 2, over: seat(4) }));
        let op = Op { seat: 5, user: entry.user.clone(), entry: Some(Arc::new(entry.clone())) };
        let batch = Batch { from: 0, to: 9, ops: vec![op] };
        let text = announcement(ids.node(), &batch).unwrap();
        assert_eq!(parse_announcement(&text).unwrap(), (ids.node(), batch));
        let value = value(ids.node(), &entry).unwrap();
        let (field, user) = (keys::field(ids.node(), 5), entry.user.clone());
        assert_eq!(parse_value(&user, &field, &value).unwrap(), (ids.node(), 5, entry));
        for (right, wrong) in [("\"turn\":2", "\"turn\":-2"), ("\"over\":\"", "\"over\":\"x")] {
            assert!(value.contains(right));
            assert!(parse_value(&user, &field, &value.replace(right, wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_said_is_heard() {
        let ids = Ids::new(NodeId::random());
        let said = |body| Broadcast::Said {
            message: Message { event: "wa\"ve".into(), body },
            by_backend: true,
            user: Some("ada".into()),
            except: Some(crate::dialects::SocketId { node: 1, connection: 2 }),
        };
        for one in [
            said(Body::Json(r#"{"a":[1, null]}"#.into())),
            said(Body::Json("null".into())),
            said(Body::Text("plain".into())),
            said(Body::Raw(Dialect::Supabase, bytes::Bytes::from_static(b"\x00\xff"))),
            Broadcast::Terminate,
        ] {
            let text = broadcast(ids.node(), &one);
            assert!(text.starts_with(&own_prefix(ids.node())) && is_broadcast(&text), "{text}");
            assert_eq!(parse_broadcast(&text).unwrap(), one, "{text}");
        }
        let batch = Batch { from: 0, to: 1, ops: vec![] };
        assert!(!is_broadcast(&announcement(ids.node(), &batch).unwrap()));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_without_harm(text in ".*") {
            let _ = parse_announcement(&text);
            let _ = (is_broadcast(&text), parse_broadcast(&text));
            let _ = parse_value(&"u".into(), &text, &text);
        }
    }
}
