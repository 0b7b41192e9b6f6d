//! The Supabase Realtime dialect, `vsn` 1.0.0 and 2.0.0, as `@supabase/realtime-js` 2 speaks it.
//!
//! Phoenix's envelope, other joins: who joins watches, and is present only once it tracks. Broadcasts may come as
//! binary frames of its own (kinds 3 and 4); kinds 0 to 2, which its client does not understand, are never sent.

use bytes::{BufMut as _, Bytes, BytesMut};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::envelope::{self, Message, Version, is_true, object_or_default};
use super::{
    Address, Body, Broadcast, Command, Event, Frame, Incoming, JoinRequest, Malformed, Message as Said,
    Proof, WireFormat, user_from,
};
use crate::config::{Limits, Secret};
use crate::reject::{Dialect, Reject};

/// A client's broadcast, in binary.
const PUSH: u8 = 3;
/// A broadcast to clients, in binary.
const BROADCAST: u8 = 4;
/// What a payload in a binary frame is: raw bytes, or JSON.
const RAW: u8 = 0;
const JSON: u8 = 1;

pub(super) fn decode_text(text: &str, limits: &Limits) -> Result<Incoming, Malformed> {
    let (message, version) = envelope::read(text)?;
    let format = match version {
        Version::V1 => WireFormat::SupabaseV1,
        Version::V2 => WireFormat::SupabaseV2,
    };
    let command = command(&message, limits);
    Ok(Incoming { address: message.address(), command, format })
}

/// `3`, the lengths of join_ref, ref, topic, event and metadata, the encoding, and then these and the payload.
/// Lengths are bytes.
pub(super) fn decode_binary(data: &[u8]) -> Result<Incoming, Malformed> {
    let short = || Malformed("binary frame too short".into());
    let [PUSH, join_ref, message_ref, topic, event, metadata, encoding, rest @ ..] = data else {
        return Err(Malformed("not a binary broadcast".into()));
    };
    let mut rest = rest;
    let mut take = |length: &u8| {
        let (head, tail) = rest.split_at_checked(usize::from(*length)).ok_or_else(short)?;
        rest = tail;
        std::str::from_utf8(head).map_err(|_| Malformed("binary frame with a name that is not UTF-8".into()))
    };
    let (join_ref, message_ref, topic, event) =
        (take(join_ref)?, take(message_ref)?, take(topic)?, take(event)?);
    take(metadata)?;
    let body = match *encoding {
        RAW => Ok(Body::Raw(Dialect::Supabase, Bytes::copy_from_slice(rest))),
        JSON => match std::str::from_utf8(rest).ok().filter(|text| is_json(text)) {
            Some(text) => Ok(Body::Json(text.into())),
            None => Err(Reject::MalformedPayload),
        },
        _ => return Err(Malformed("binary frame of an unknown encoding".into())),
    };
    let some = |text: &str| (!text.is_empty()).then(|| text.into());
    Ok(Incoming {
        address: Address { join_ref: some(join_ref), message_ref: some(message_ref), topic: topic.into() },
        command: Command::Broadcast(body.map(|body| Said { event: event.into(), body })),
        format: WireFormat::SupabaseV2,
    })
}

fn is_json(text: &str) -> bool {
    serde_json::from_str::<&RawValue>(text).is_ok()
}

fn command(message: &Message<'_>, limits: &Limits) -> Command {
    match message.event.as_ref() {
        "heartbeat" if message.topic == "phoenix" => Command::Heartbeat,
        "phx_join" => Command::Join(Box::new(join(message.payload, limits))),
        "phx_leave" => Command::Leave,
        "presence" => envelope::presence(message.payload, limits),
        "broadcast" => envelope::said(message.payload),
        "access_token" => Command::AccessToken(token(message.payload)),
        _ => Command::Unknown,
    }
}

/// The token in a payload; none where it is missing, null or no string.
fn token(payload: Option<&RawValue>) -> Option<Secret> {
    #[derive(Deserialize, Default)]
    struct Fields {
        #[serde(default)]
        access_token: Option<String>,
    }
    let fields: Fields = object_or_default(payload);
    fields.access_token.filter(|token| !token.is_empty()).map(Secret::new)
}

/// Whatever of the configuration is missing or of another shape has its default; old clients send none.
fn join(payload: Option<&RawValue>, limits: &Limits) -> JoinRequest {
    #[derive(Deserialize, Default)]
    struct Fields<'a> {
        #[serde(borrow, default)]
        config: Option<&'a RawValue>,
    }
    #[derive(Deserialize, Default)]
    struct Config<'a> {
        #[serde(borrow, default)]
        presence: Option<&'a RawValue>,
        #[serde(borrow, default)]
        private: Option<&'a RawValue>,
        #[serde(borrow, default)]
        postgres_changes: Option<&'a RawValue>,
    }
    #[derive(Deserialize, Default)]
    struct Presence<'a> {
        #[serde(borrow, default)]
        key: Option<&'a RawValue>,
        #[serde(borrow, default)]
        enabled: Option<&'a RawValue>,
    }
    let fields: Fields<'_> = object_or_default(payload);
    let config: Config<'_> = object_or_default(fields.config);
    let presence: Presence<'_> = object_or_default(config.presence);
    let changes: Vec<&RawValue> = object_or_default(config.postgres_changes);
    let user = match presence.key.filter(|key| key.get() != "\"\"") {
        _ if !changes.is_empty() => Err(Reject::PostgresChanges),
        key => user_from(key, limits),
    };
    JoinRequest {
        user,
        observe: true,
        roster: presence.enabled.is_none() || is_true(presence.enabled),
        wanted: envelope::wanted(fields.config),
        new_name: true,
        proof: Proof::Token { token: token(payload), private: is_true(config.private) },
        ..JoinRequest::default()
    }
}

pub(super) fn encode(version: Version, event: &Event<'_>) -> Option<Frame> {
    let text = match event {
        Event::Ok(to) => envelope::ok(version, to),
        Event::Joined(to) => {
            envelope::reply(version, to, r#"{"status":"ok","response":{"postgres_changes":[]}}"#)
        }
        Event::Refused(to, reject) => {
            envelope::refusal(version, to, reject, &reject.reason(Dialect::Supabase))
        }
        Event::Closed { topic, join_ref, replaced } => envelope::closed(version, topic, join_ref, *replaced)?,
        Event::System { topic, join_ref, reject } => {
            let mut payload = r#"{"extension":"system","status":"error","message":"#.to_owned();
            envelope::push_string(&mut payload, &reject.reason(Dialect::Supabase));
            payload.push_str(r#","channel":"#);
            envelope::push_string(&mut payload, topic.strip_prefix("realtime:").unwrap_or(topic));
            payload.push('}');
            envelope::push(version, *join_ref, topic, "system", &payload)
        }
        // Never for raw bytes: its clients do not understand such a reply.
        Event::Echo(..)
        | Event::NotJoined(..)
        | Event::Established { .. }
        | Event::SignedIn { .. }
        | Event::CacheMiss { .. } => return None,
    };
    Some(Frame::text(text))
}

pub(super) fn broadcast(version: Version, topic: &str, said: &Broadcast) -> Option<Frame> {
    let Broadcast::Said { message, .. } = said else { return None };
    match (&message.body, version) {
        (Body::Raw(Dialect::Supabase, data), Version::V2) => {
            let names = [topic.as_bytes(), message.event.as_bytes(), b""];
            let mut out = BytesMut::with_capacity(8 + topic.len() + message.event.len() + data.len());
            out.put_u8(BROADCAST);
            for name in names {
                out.put_u8(u8::try_from(name.len()).ok()?);
            }
            out.put_u8(RAW);
            names.iter().for_each(|name| out.put_slice(name));
            out.put_slice(data);
            Some(Frame::Binary(out.freeze()))
        }
        (Body::Raw(..), _) => None,
        _ => {
            let payload = envelope::broadcast_payload(message)?;
            Some(Frame::text(envelope::push(version, None, topic, "broadcast", &payload)))
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use serde_json::{Value, json};

    use super::*;

    fn decode(text: &str) -> Incoming {
        decode_text(text, &crate::config::Args::parse_from(["rollcall"]).limits).unwrap()
    }

    fn joined(payload: &Value) -> JoinRequest {
        let frame = json!(["6", "6", "realtime:lobby", "phx_join", payload]).to_string();
        let Command::Join(join) = decode(&frame).command else { panic!("{frame}") };
        *join
    }

    fn text(frame: Option<Frame>) -> Value {
        let Some(Frame::Text(text)) = frame else { panic!("{frame:?}") };
        serde_json::from_slice(&text).unwrap()
    }

    #[test]
    fn every_shape_of_a_join() {
        let old = joined(&json!({}));
        assert_eq!((old.observe, old.roster, &old.user), (true, true, &Ok(None)));
        let new = joined(
            &json!({"config": {"broadcast": {"ack": "true"}, "presence": {"key": "ada", "enabled": false},
            "postgres_changes": [], "private": true}, "access_token": "t"}),
        );
        assert_eq!(new.user, Ok(Some("ada".into())));
        assert!(!new.roster && new.wanted.answer && !new.wanted.own);
        assert_eq!(new.proof, Proof::Token { token: Some(Secret::new("t")), private: true });
        let empty =
            joined(&json!({"config": {"presence": {"key": "", "enabled": "true"}}, "access_token": null}));
        assert_eq!((empty.user, empty.roster), (Ok(None), true));
        assert_eq!(joined(&json!({"config": {"presence": {"key": "ids"}}})).user, Err(Reject::UserReserved));
        let changes = joined(&json!({"config": {"postgres_changes": [{"event": "*"}]}}));
        assert_eq!(changes.user, Err(Reject::PostgresChanges));
        assert_eq!(joined(&json!("nonsense")), old);
    }

    #[test]
    fn a_binary_broadcast_is_read_and_raw_bytes_go_out_as_they_came() {
        let frame =
            [b"\x03\x01\x01\x0e\x04\x00\x0138realtime:lobbywave".as_slice(), b"{\"hi\":true}"].concat();
        let Incoming { address, command, format } = decode_binary(&frame).unwrap();
        assert_eq!(
            (&*address.topic, address.message_ref.as_deref(), format),
            ("realtime:lobby", Some("8"), WireFormat::SupabaseV2)
        );
        let Command::Broadcast(Ok(message)) = command else { panic!("{command:?}") };
        assert_eq!(message, Said { event: "wave".into(), body: Body::Json(r#"{"hi":true}"#.into()) });
        let said = |body| Broadcast::Said {
            message: Said { event: "é".into(), body },
            by_backend: false,
            user: None,
            except: None,
        };
        let raw = said(Body::Raw(Dialect::Supabase, Bytes::from_static(b"\x00\xff")));
        let sent = broadcast(Version::V2, "realtime:a", &raw);
        assert_eq!(
            sent,
            Some(Frame::Binary(Bytes::from_static(b"\x04\x0a\x02\x00\x00realtime:a\xc3\xa9\x00\xff")))
        );
        assert_eq!(broadcast(Version::V1, "realtime:a", &raw), None);
        let other = said(Body::Raw(Dialect::Phoenix, Bytes::new()));
        assert_eq!(broadcast(Version::V2, "realtime:a", &other), None);
        let sent = text(broadcast(Version::V2, "realtime:a", &said(Body::Text("{\"a\":1}".into()))));
        assert_eq!(
            sent,
            json!([null, null, "realtime:a", "broadcast", {"type": "broadcast", "event": "é", "payload": {"a": 1}}])
        );
        for damaged in
            [b"".as_slice(), b"\x03", b"\x03\x05\x00\x00\x00\x00\x01", b"\x00\x00\x00\x00\x00\x00\x00"]
        {
            assert!(decode_binary(damaged).is_err());
        }
        let not_json = decode_binary(b"\x03\x00\x00\x00\x00\x00\x01{").unwrap();
        assert_eq!(not_json.command, Command::Broadcast(Err(Reject::MalformedPayload)));
    }

    #[test]
    fn answers_are_those_the_client_knows() {
        let to =
            Address { join_ref: Some("6".into()), message_ref: Some("7".into()), topic: "realtime:a".into() };
        assert_eq!(
            text(encode(Version::V2, &Event::Joined(&to))),
            json!(["6", "7", "realtime:a", "phx_reply", {"status": "ok", "response": {"postgres_changes": []}}])
        );
        let reject = Reject::MetaNotObject;
        let refused = text(encode(Version::V1, &Event::Refused(&to, &reject)));
        assert_eq!(refused["payload"]["response"]["reason"], "Presence track payload must be a map");
        let told = Event::System { topic: "realtime:a", join_ref: Some("6"), reject: &Reject::TokenInvalid };
        let told = text(encode(Version::V2, &told));
        assert_eq!(
            (&told[3], &told[4]["channel"], &told[4]["status"]),
            (&json!("system"), &json!("a"), &json!("error"))
        );
        let token = decode(r#"["6","10","realtime:a","access_token",{"access_token":"x"}]"#).command;
        assert_eq!(token, Command::AccessToken(Some(Secret::new("x"))));
    }

    #[test]
    fn names_of_users_are_shared() {
        let user = joined(&json!({"config": {"presence": {"key": 7}}})).user;
        assert_eq!(user, Ok(Some("7".into())));
    }
}
