use clap::Parser as _;
use serde_json::{Value, json};

use super::*;
use crate::dialects::SocketId;
use crate::presence::{Entry, Ids, NodeId, Roster};

fn limits() -> Limits {
    crate::config::Args::parse_from(["rollcall"]).limits
}

fn read(frame: &Frame) -> Value {
    let Frame::Text(text) = frame else { panic!("{frame:?}") };
    serde_json::from_slice(text).unwrap()
}

/// A message with its data unpacked.
fn unpack(frame: &Frame) -> Value {
    let mut message = read(frame);
    let data: Value = serde_json::from_str(message["data"].as_str().unwrap()).unwrap();
    message["data"] = data;
    message
}

fn command(text: &str) -> (String, Command) {
    let Incoming { address, command, .. } = decode_text(text).unwrap();
    (address.topic.into(), command)
}

#[test]
fn messages_of_the_clients() {
    let (topic, Command::Join(join)) = command(
        r#"{"event":"pusher:subscribe","data":{"auth":"k:s","channel_data":"{ \"user_id\":1}","channel":"presence-a"}}"#,
    ) else {
        panic!()
    };
    assert_eq!((topic.as_str(), join.roster), ("presence-a", true));
    let proof = Proof::Signed { auth: "k:s".into(), channel_data: Some(r#"{ "user_id":1}"#.into()) };
    assert_eq!(join.proof, proof);
    let (topic, Command::Join(join)) =
        command(r#"{"event":"pusher:subscribe","data":"{\"auth\":\"\",\"channel\":\"news\"}"}"#)
    else {
        panic!()
    };
    assert_eq!((topic.as_str(), join.roster), ("news", false));
    assert_eq!(command(r#"{"event":"pusher:ping","data":{}}"#).1, Command::Heartbeat);
    assert_eq!(
        command(r#"{"event":"pusher:unsubscribe","data":{"channel":"a"}}"#),
        ("a".into(), Command::Leave)
    );
    let (topic, said) = command(r#"{"event":"client-wave","channel":"private-a","data":{"t":1}}"#);
    let wave = Said { event: "wave".into(), body: Body::Json(r#"{"t":1}"#.into()) };
    assert_eq!((topic.as_str(), said), ("private-a", Command::Broadcast(Ok(wave))));
    for wrong in ["wave", "client-", &format!("client-{}", "x".repeat(200))] {
        let said = command(&json!({"event": wrong, "channel": "private-a", "data": 1}).to_string()).1;
        assert_eq!(said, Command::Broadcast(Err(Reject::ClientEventName(200))), "{wrong}");
    }
    for wrong in ["", "[]", "{}", r#"{"event":7}"#] {
        assert!(decode_text(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn whom_a_backend_names() {
    let read = |text| channel_data(text, &limits());
    let ada = read(r#"{"user_id": 7, "user_info": {"name":"Ada"}}"#).unwrap();
    assert_eq!((&*ada.user, &*ada.meta), ("7", r#"{"name":"Ada"}"#));
    assert_eq!(&*read(r#"{"user_id":"u","user_info":[]}"#).unwrap().meta, "{}");
    assert_eq!(read(r#"{"user_info":{}}"#), Err(Reject::UserInvalid));
    assert_eq!(read(r#"{"user_id":"u","user_info":"x"}"#), Err(Reject::MetaNotObject));
    assert_eq!(read("x"), Err(Reject::MalformedPayload));
    let read = |text: &str| user_data(text, &limits());
    assert_eq!(read(r#"{"id":"u1","watchlist":["u2"]}"#).unwrap().watched, [Box::from("u2")]);
    assert_eq!(read(r#"{"id":""}"#), Err(Reject::UserInvalid));
    assert_eq!(read(r#"{"id":7}"#), Err(Reject::UserInvalid));
    let many: Vec<String> = (0..101).map(|n| n.to_string()).collect();
    assert_eq!(read(&json!({"id": "u", "watchlist": many}).to_string()), Err(Reject::WatchlistTooLong(100)));
}

fn entry(ids: &Ids, user: &str, meta: &str) -> Arc<Entry> {
    Arc::new(Entry::new(user.into(), ids.r#ref(), meta.into(), 1))
}

#[test]
fn members_come_once_and_show_what_they_came_with() {
    let ids = Ids::new(NodeId::random());
    let mut roster = Roster::new(ids.node());
    let first = entry(&ids, "a\"b", r#"{"n":1}"#);
    let _ = roster.put(1, Arc::clone(&first), 1);
    let came = Diff { joins: vec![(first.clone(), None)], leaves: vec![] };
    let frames = diff("presence-r", &came, &roster.snapshot(1));
    assert_eq!(
        frames.iter().map(unpack).collect::<Vec<_>>(),
        [json!({"event": "pusher_internal:member_added", "channel": "presence-r",
                "data": {"user_id": "a\"b", "user_info": {"n": 1}}})]
    );
    // Another tab, then another meta in the first one: nothing to say, and the roster shows the first meta.
    let (second, third) = (entry(&ids, "a\"b", "{}"), entry(&ids, "a\"b", r#"{"n":2}"#));
    let _ = roster.put(2, Arc::clone(&second), 2);
    let _ = roster.put(1, Arc::clone(&third), 3);
    let more =
        Diff { joins: vec![(second.clone(), None), (third, Some(first.clone()))], leaves: vec![first] };
    assert_eq!(diff("presence-r", &more, &roster.snapshot(3)), []);
    let (head, tail) = state_envelope("presence-r");
    let payload = String::from_utf8(state_payload(&roster.snapshot(3))).unwrap();
    let state = unpack(&Frame::text(format!("{head}{payload}{tail}")));
    assert_eq!(
        state,
        json!({"event": "pusher_internal:subscription_succeeded", "channel": "presence-r",
               "data": {"presence": {"count": 1, "ids": ["a\"b"], "hash": {"a\"b": {"n": 1}}}}})
    );
    let _ = (roster.remove(1, 4), roster.remove(2, 5));
    let gone = Diff { joins: vec![], leaves: vec![second.clone(), entry(&ids, "a\"b", "{}")] };
    let frames = diff("presence-r", &gone, &roster.snapshot(5));
    assert_eq!(unpack(&frames[0])["event"], "pusher_internal:member_removed");
    assert_eq!((frames.len(), &unpack(&frames[0])["data"]), (1, &json!({"user_id": "a\"b"})));
}

#[test]
fn whoever_is_watched_comes_and_goes() {
    let ids = Ids::new(NodeId::random());
    let mut roster = Roster::new(ids.node());
    let topic = "#server-to-user-u2";
    assert_eq!(watch_envelope(topic, &roster.snapshot(1)), None);
    let one = entry(&ids, "1.1", "{}");
    let _ = roster.put(1, Arc::clone(&one), 1);
    let came = watch(topic, &Diff { joins: vec![(one.clone(), None)], leaves: vec![] }, &roster.snapshot(1))
        .unwrap();
    assert_eq!(unpack(&came)["data"], json!({"events": [{"name": "online", "user_ids": ["u2"]}]}));
    assert_eq!(
        watch_envelope(topic, &roster.snapshot(1)).unwrap().0.as_bytes(),
        match &came {
            Frame::Text(text) => &text[..],
            _ => b"",
        }
    );
    let _ = roster.remove(1, 2);
    let left = watch(topic, &Diff { joins: vec![], leaves: vec![one] }, &roster.snapshot(2)).unwrap();
    assert_eq!(unpack(&left)["data"]["events"][0]["name"], "offline");
}

#[test]
fn what_the_server_says() {
    let to = |topic: &str| Address { topic: topic.into(), ..Address::default() };
    let socket = SocketId { node: 8123, connection: 40977 };
    let first = unpack(&encode(&Event::Established { socket, activity_timeout: 120 }).unwrap());
    assert_eq!(
        first,
        json!({"event": "pusher:connection_established", "data": {"socket_id": "8123.40977", "activity_timeout": 120}})
    );
    assert_eq!("8123.40977".parse(), Ok(socket));
    assert!(["8123", "+1.2", "1.x", "1.2.3"].iter().all(|wrong| wrong.parse::<SocketId>().is_err()));
    assert_eq!(read(&encode(&Event::Ok(&to(""))).unwrap()), json!({"event": "pusher:pong", "data": "{}"}));
    assert_eq!(encode(&Event::Joined(&to("presence-a"))), None);
    assert_eq!(
        read(&encode(&Event::Joined(&to("a"))).unwrap()),
        json!({"event": "pusher_internal:subscription_succeeded", "channel": "a", "data": "{}"})
    );
    let reject = Reject::Signature("socket_id:channel");
    let error = read(&encode(&Event::Refused(&to("private-a"), &reject)).unwrap());
    assert_eq!((&error["event"], &error["data"]["code"]), (&json!("pusher:error"), &json!(null)));
    assert!(error["data"]["message"].as_str().unwrap().starts_with("Invalid signature"));
    let error = read(&encode(&Event::NotJoined(&to("private-a"), &reject)).unwrap());
    assert_eq!((&error["channel"], &error["data"]["status"]), (&json!("private-a"), &json!(401)));
    let said = |by_backend, body| Broadcast::Said {
        message: Said { event: "wave".into(), body },
        by_backend,
        user: Some("ada".into()),
        except: None,
    };
    assert_eq!(
        read(&broadcast("presence-a", &said(false, Body::Json(r#"{"a":1}"#.into()))).unwrap()),
        json!({"event": "client-wave", "channel": "presence-a", "data": {"a": 1}, "user_id": "ada"})
    );
    assert_eq!(
        read(&broadcast("a", &said(true, Body::Text("{\"a\":1}".into()))).unwrap()),
        json!({"event": "wave", "channel": "a", "data": "{\"a\":1}"})
    );
}
