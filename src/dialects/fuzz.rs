//! Frames of clients: whatever comes, it is read or refused, and what is answered can be read.

use clap::Parser as _;
use serde_json::Value;
use serde_json::value::RawValue;

use super::*;
use crate::fuzz::{JSON, damaged, damaged_text, fuzz};

const FRAMES: &[&[u8]] = &[
    br#"["1","2","room:1","phx_join",{"user_id":"ada","meta":{"name":"Ada","n":[1,2,{"x":null}]},"observe":false}]"#,
    br#"["1","2","room:1","phx_join",{"user_id":"ada","resume":"a key of eight bytes or more"}]"#,
    br#"[null,"3","phoenix","heartbeat",{}]"#,
    br#"["1","4","room:1","phx_leave",{}]"#,
    br#"["1","5","room:1","presence",{"type":"presence","event":"track","payload":{"status":"busy"}}]"#,
    br#"["1","6","room:1","presence",{"type":"presence","event":"untrack"}]"#,
    br#"{"topic":"room:1","event":"phx_join","payload":{"user_id":7,"meta":null},"ref":"1","join_ref":"1"}"#,
    br#"{"topic":"phoenix","event":"heartbeat","payload":{},"ref":2}"#,
    br#"["6","6","realtime:lobby","phx_join",{"config":{"broadcast":{"ack":false,"self":true},"presence":{"key":"ada","enabled":true},"postgres_changes":[],"private":false},"access_token":"t"}]"#,
    br#"["6","8","realtime:lobby","broadcast",{"type":"broadcast","event":"wave","payload":{"hi":[1,null]}}]"#,
    br#"{"event":"pusher:subscribe","data":{"auth":"k:0f","channel_data":"{\"user_id\":\"u1\",\"user_info\":{\"name\":\"Ada\"}}","channel":"presence-room"}}"#,
    br#"{"event":"client-wave","channel":"private-room","data":{"t":1}}"#,
    br#"{"event":"pusher:signin","data":{"auth":"k:0f","user_data":"{\"id\":\"u1\",\"watchlist\":[\"u2\"]}"}}"#,
    br#"["1","2","caf\u00e9","shout",{"body":"\ud83d\ude00"},"more"]"#,
];

const PUSHES: &[&[u8]] = &[
    b"\x00\x01\x01\x06\x0512room:1shout\x00\x01\x02",
    b"\x00\x00\x00\x00\x00",
    b"\x00\x02\x02\x04\x03\xc3\xa9\xc3\xa9roomevt",
    b"\x01\x01\x01\x01\x01abcd",
    b"\x03\x01\x01\x0e\x04\x00\x0138realtime:lobbywave{\"hi\":true}",
    b"\x03\x01\x01\x0e\x04\x00\x0038realtime:lobbywave\x00\xff",
];

fn limits() -> Limits {
    crate::config::Args::parse_from(["rollcall"]).limits
}

/// What is answered is JSON in the form that was asked in, and echoes the address.
fn check_answers(incoming: &Incoming) {
    let Incoming { address, format, .. } = incoming;
    let reject = Reject::RateLimited { retry_after_ms: 7 };
    for event in [Event::Ok(address), Event::Refused(address, &reject), Event::NotJoined(address, &reject)] {
        let Some(Frame::Text(text)) = encode(*format, &event) else { continue };
        let answer: Value = serde_json::from_slice(&text).unwrap();
        let (r#ref, topic) = match format {
            // Its answers name the channel alone, if there is one.
            WireFormat::Pusher => {
                assert_eq!(answer["channel"].as_str().unwrap_or_default(), &*address.topic);
                continue;
            }
            WireFormat::PhoenixV2 | WireFormat::SupabaseV2 => (&answer[1], &answer[2]),
            _ => (&answer["ref"], &answer["topic"]),
        };
        assert_eq!(topic.as_str(), Some(&*address.topic));
        assert_eq!(r#ref.as_str(), address.message_ref.as_deref());
    }
}

/// A meta that was taken is an object within the limit, which would be taken again as it is.
fn check_meta(meta: Option<&Arc<str>>, limits: &Limits) {
    let Some(meta) = meta else { return };
    assert!(meta.len() <= limits.max_meta_bytes);
    let raw = RawValue::from_string(meta.to_string()).unwrap();
    assert_eq!(meta_from(Some(&raw), limits), Ok(Some(Arc::clone(meta))));
}

/// What somebody says is JSON for all who are told it as text.
fn check_broadcast(message: Message) {
    let said = Broadcast::Said { message, by_backend: false, user: Some("ada".into()), except: None };
    for (format, _) in WireFormat::ALL {
        if let Some(Frame::Text(text)) = broadcast(format, "room:1", &said) {
            // Numbers may be larger than any that Rust has.
            let _: &RawValue = serde_json::from_slice(&text).unwrap();
        }
    }
}

#[test]
fn text_frames() {
    let limits = limits();
    fuzz(&damaged_text(FRAMES, JSON), |text| {
        for dialect in [Dialect::Phoenix, Dialect::Supabase, Dialect::Pusher] {
            let Ok(incoming) = decode_text(dialect, &text, &limits) else { continue };
            check_answers(&incoming);
            match &incoming.command {
                Command::Track(Ok(meta)) => check_meta(Some(meta), &limits),
                Command::Join(request) => {
                    if let Ok(Some(user)) = &request.user {
                        assert_eq!(check_user(user, &limits), Ok(()));
                    }
                    if let Ok(meta) = &request.meta {
                        check_meta(meta.as_ref(), &limits);
                    }
                    if let Proof::Signed { channel_data: Some(data), .. } = &request.proof {
                        let _ = channel_data(data, &limits);
                    }
                }
                Command::SignIn { user_data: data, .. } => {
                    let _ = user_data(data, &limits);
                }
                Command::Broadcast(Ok(message)) => check_broadcast(message.clone()),
                _ => {}
            }
        }
    });
}

#[test]
fn binary_frames() {
    fuzz(
        &damaged(PUSHES, &[b"\x00", b"\x01", b"\xff", b"\x7f", b"room:1", b"\xc3\xa9", b"\xe2\x80"]),
        |data| {
            for dialect in [Dialect::Phoenix, Dialect::Supabase, Dialect::Pusher] {
                let Ok(incoming) = decode_binary(dialect, &data) else { continue };
                check_answers(&incoming);
                if let Command::Broadcast(Ok(message)) = incoming.command {
                    check_broadcast(message);
                }
            }
        },
    );
}

#[test]
fn metas_of_all_kinds() {
    let limits = Limits { max_meta_bytes: 1 << 20, ..limits() };
    fuzz(&crate::fuzz::object(), |text| {
        let raw = RawValue::from_string(text).unwrap();
        let meta = meta_from(Some(&raw), &limits).unwrap().unwrap();
        check_meta(Some(&meta), &limits);
    });
}
