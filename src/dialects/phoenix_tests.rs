use std::sync::Arc;

use clap::Parser as _;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::presence::{Diff, Entry, Ids, Member, NodeId, Seat, Snapshot};
use crate::reject::Reject;

fn limits() -> Limits {
    crate::config::Args::parse_from(["rollcall"]).limits
}

/// The text of a frame.
fn encoded(version: Version, event: &Event<'_>) -> Option<String> {
    match encode(version, event)? {
        Frame::Text(text) => Some(String::from_utf8(text.into()).unwrap()),
        other => panic!("{other:?}"),
    }
}

fn decode(text: &str) -> Result<Incoming, Malformed> {
    decode_text(text, &limits())
}

fn entry(ids: &Ids, user: &str, meta: &str) -> Arc<Entry> {
    Arc::new(Entry::new(user.into(), ids.r#ref(), meta.into(), 0))
}

#[test]
fn the_form_is_told_by_what_arrives() {
    let array =
        decode(r#"["3","3","room:7","phx_join",{"user_id":"ada","meta":{"a":1}},"ignored"]"#).unwrap();
    assert_eq!(array.format, WireFormat::PhoenixV2);
    assert_eq!(array.address.join_ref.as_deref(), Some("3"));
    let Command::Join(join) = &array.command else { panic!("{array:?}") };
    assert_eq!(join.user, Ok(Some("ada".into())));
    assert_eq!(join.meta, Ok(Some(r#"{"a":1}"#.into())));
    assert!(!join.observe);

    let object = decode(r#" {"topic":"room:7","event":"phx_leave","payload":{},"ref":"9"}"#).unwrap();
    assert_eq!(object.format, WireFormat::PhoenixV1);
    assert_eq!((object.address.join_ref.as_deref(), object.command), (None, Command::Leave));
}

#[test]
fn heartbeats_have_no_topic_joined() {
    let beat = decode(r#"[null,"12","phoenix","heartbeat",{}]"#).unwrap();
    assert_eq!(beat.command, Command::Heartbeat);
    assert_eq!(
        encoded(Version::V2, &Event::Ok(&beat.address)).unwrap(),
        r#"[null,"12","phoenix","phx_reply",{"status":"ok","response":{}}]"#
    );
}

#[test]
fn presence_calls_are_track_and_untrack_in_any_case() {
    let track = |event: &str, payload: &str| {
        let frame = format!(r#"["3","7","r","presence",{{"type":"presence","event":"{event}"{payload}}}]"#);
        decode(&frame).unwrap().command
    };
    assert_eq!(track("track", r#","payload":{"s":"busy"}"#), Command::Track(Ok(r#"{"s":"busy"}"#.into())));
    assert_eq!(track("TRACK", ""), Command::Track(Ok("{}".into())));
    assert_eq!(track("track", r#","payload":[1]"#), Command::Track(Err(Reject::MetaNotObject)));
    assert_eq!(track("Untrack", ""), Command::Untrack);
    assert_eq!(track("dance", ""), Command::Unknown);
}

#[test]
fn garbage_is_malformed_and_never_a_command() {
    for text in
        ["", "hello", "[", "[1]", r#"["3","3","r","e"]"#, r#"[{},"3","r","e",{}]"#, "{}", r#"{"topic":1}"#]
    {
        assert!(decode(text).is_err(), "{text}");
    }
}

#[test]
fn a_binary_push_is_read_to_its_address() {
    let frame = b"\x00\x01\x01\x06\x0438room:7blob\x01\x02";
    let read = decode_binary(frame).unwrap();
    let body = Body::Raw(Dialect::Phoenix, Bytes::from_static(b"\x01\x02"));
    let said = Said { event: "blob".into(), body };
    assert_eq!(read.command, Command::Broadcast(Ok(said.clone())));
    let echo = encode(Version::V2, &Event::Echo(&read.address, &Bytes::from_static(b"\x01\x02")));
    assert_eq!(echo, Some(Frame::Binary(Bytes::from_static(b"\x01\x01\x01\x06\x0238room:7ok\x01\x02"))));
    let said = Broadcast::Said { message: said, by_backend: false, user: None, except: None };
    let told = broadcast(Version::V2, "room:7", &said);
    assert_eq!(told, Some(Frame::Binary(Bytes::from_static(b"\x02\x06\x04room:7blob\x01\x02"))));
    assert_eq!(broadcast(Version::V1, "room:7", &said), None);
    assert_eq!(broadcast(Version::V2, &"x".repeat(256), &said), None, "lengths are one byte");
    let own = decode_binary(b"\x00\x00\x00\x01\x08rphx_join").unwrap();
    assert_eq!(own.command, Command::Unknown);
    assert_eq!((&*read.address.topic, read.address.message_ref.as_deref()), ("room:7", Some("8")));
    for cut in 0..frame.len() - 2 {
        assert!(decode_binary(&frame[..cut]).is_err(), "cut at {cut}");
    }
    assert!(decode_binary(b"\x01\x00\x00\x00\x00").is_err());
}

#[test]
fn refusals_are_replies_with_a_reason() {
    let to = Address { join_ref: None, message_ref: Some("5".into()), topic: "r\"".into() };
    let text =
        encoded(Version::V2, &Event::Refused(&to, &Reject::RateLimited { retry_after_ms: 40 })).unwrap();
    let value: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        value,
        json!([null, "5", "r\"", "phx_reply",
            {"status": "error", "response": {"reason": "rate limited", "retry_after_ms": 40}}])
    );
    let value: Value =
        serde_json::from_str(&encoded(Version::V1, &Event::Refused(&to, &Reject::UnknownEvent)).unwrap())
            .unwrap();
    assert_eq!(value["payload"]["response"]["reason"], "unknown event");
    assert_eq!(value["ref"], "5");
}

#[test]
fn a_broadcast_goes_out_as_it_came_in() {
    let frame = r#"["3","5","r","broadcast",{"type":"broadcast","event":"wave","payload":{"a":[1]}}]"#;
    let Command::Broadcast(Ok(message)) = decode(frame).unwrap().command else { panic!() };
    let said = Broadcast::Said { message, by_backend: false, user: None, except: None };
    let Some(Frame::Text(text)) = broadcast(Version::V2, "r", &said) else { panic!() };
    assert_eq!(
        &text[..],
        br#"[null,null,"r","broadcast",{"type":"broadcast","event":"wave","payload":{"a":[1]}}]"#
    );
    let wrong = decode(r#"["3","5","r","broadcast",{"payload":{}}]"#).unwrap().command;
    assert_eq!(wrong, Command::Broadcast(Err(Reject::MalformedPayload)));
}

#[test]
fn only_version_2_can_say_which_join_was_closed() {
    let closed = |replaced| Event::Closed { topic: "r", join_ref: "3", replaced };
    for replaced in [true, false] {
        assert_eq!(encoded(Version::V2, &closed(replaced)).unwrap(), r#"["3","3","r","phx_close",{}]"#);
    }
    assert_eq!(encoded(Version::V1, &closed(true)), None);
    let last = r#"{"topic":"r","event":"phx_close","payload":{},"ref":"3"}"#;
    assert_eq!(encoded(Version::V1, &closed(false)).unwrap(), last);
}

#[test]
fn an_update_is_a_join_that_names_the_old_ref_and_a_leave_of_it() {
    let ids = Ids::new(NodeId::random());
    let (old, new, other) =
        (entry(&ids, "u1", "{}"), entry(&ids, "u1", r#"{"at":9}"#), entry(&ids, "u1", "{}"));
    let change = Diff {
        joins: vec![(new.clone(), Some(old.clone())), (other.clone(), None)],
        leaves: vec![old.clone()],
    };
    let value: Value = serde_json::from_str(&envelope::diff(Version::V2, "room:7", &change)).unwrap();
    assert_eq!(
        value,
        json!([null, null, "room:7", "presence_diff", {
            "joins": {"u1": {"metas": [
                {"phx_ref": new.r#ref.as_str(), "phx_ref_prev": old.r#ref.as_str(), "at": 9},
                {"phx_ref": other.r#ref.as_str()}]}},
            "leaves": {"u1": {"metas": [{"phx_ref": old.r#ref.as_str()}]}}}])
    );
    let empty: Value = serde_json::from_str(&envelope::diff(Version::V1, "r", &Diff::default())).unwrap();
    assert_eq!(empty["payload"], json!({"joins": {}, "leaves": {}}));
}

#[test]
fn a_state_is_its_payload_between_two_texts() {
    let ids = Ids::new(NodeId::random());
    let first = entry(&ids, "ada \"x\"", r#"{"a":1}"#);
    let seat = Seat { node: ids.node(), number: 1 };
    let member = Member {
        user: first.user.clone(),
        first_meta: first.meta.clone(),
        seats: vec![(seat, first.clone())],
    };
    let snapshot = Snapshot { node: None, version: 1, members: vec![Arc::new(member)], connections: 1 };
    for (version, (head, tail)) in [
        (1, envelope::state(Version::V1, "room:7", None)),
        (2, envelope::state(Version::V2, "room:7", Some("3"))),
    ] {
        let value: Value =
            serde_json::from_str(&format!("{head}{}{tail}", envelope::state_payload(&snapshot))).unwrap();
        let payload = if version == 1 { &value["payload"] } else { &value[4] };
        assert_eq!(*payload, json!({"ada \"x\"": {"metas": [{"phx_ref": first.r#ref.as_str(), "a": 1}]}}));
    }
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused_without_harm(text in ".*") {
        let _ = decode(&text);
    }

    #[test]
    fn any_bytes_are_read_or_refused_without_harm(data in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _ = decode_binary(&data);
    }

    #[test]
    fn every_name_comes_back_as_it_went(topic in ".{1,40}", user in ".{1,40}") {
        let ids = Ids::new(NodeId::random());
        let change = Diff { joins: vec![(entry(&ids, &user, "{}"), None)], leaves: vec![] };
        let value: Value = serde_json::from_str(&envelope::diff(Version::V2, &topic, &change)).unwrap();
        prop_assert_eq!(value[2].as_str(), Some(topic.as_str()));
        prop_assert!(value[4]["joins"][&user]["metas"][0]["phx_ref"].is_string());
    }
}
