//! Phoenix frames, vsn 2.0.0: the few that are sent, and reading those that come.
//!
//! A frame that does not follow the protocol is an error with its start in it. Fields that only
//! applications read are skipped.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::rc::Rc;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::view::{Diff, Seat};

/// Every client joins once and leaves once, so all use the same refs and get the same bytes back.
const JOIN_REF: &str = "1";
const LEAVE_REF: &str = "2";
const TRACK_REF: &str = "3";

/// What a frame says.
#[derive(Debug, PartialEq, Eq)]
pub enum Message {
    Joined,
    /// What the server calls the connection, where it says so.
    Named(String),
    /// An answer to nothing that anybody waits for.
    Taken,
    Left,
    State(Vec<Seat>),
    Diff(Rc<Diff>),
    /// The server ended the channel or refused something, in its own words.
    Refused(String),
}

/// Makes numbers of names. Kept apart so that reading frames knows nothing of rooms.
pub trait Numbers {
    fn seat(&mut self, user: &str, phx_ref: &str) -> Seat;
}

pub fn join(topic: &str, user: &str, meta: &str) -> String {
    let (topic, user) = (quoted(topic), quoted(user));
    format!(r#"["{JOIN_REF}","{JOIN_REF}",{topic},"phx_join",{{"user_id":{user},"meta":{meta}}}]"#)
}

pub fn leave(topic: &str) -> String {
    format!(r#"["{JOIN_REF}","{LEAVE_REF}",{},"phx_leave",{{}}]"#, quoted(topic))
}

/// A join in Supabase's dialect, which makes nobody present.
pub fn watch(topic: &str, user: &str) -> String {
    let (topic, user) = (quoted(topic), quoted(user));
    format!(
        r#"["{JOIN_REF}","{JOIN_REF}",{topic},"phx_join",{{"config":{{"presence":{{"key":{user},"enabled":true}}}}}}]"#
    )
}

/// Makes present who has joined so.
pub fn track(topic: &str, meta: &str) -> String {
    let topic = quoted(topic);
    format!(
        r#"["{JOIN_REF}","{TRACK_REF}",{topic},"presence",{{"type":"presence","event":"track","payload":{meta}}}]"#
    )
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

type Envelope<'a> = (Option<Cow<'a, str>>, Option<Cow<'a, str>>, Cow<'a, str>, Cow<'a, str>, &'a RawValue);

/// Reads one text frame that came for `topic`.
pub fn read(payload: &[u8], topic: &str, numbers: &mut impl Numbers) -> Result<Message, String> {
    let (join_ref, reference, for_topic, event, body): Envelope<'_> =
        serde_json::from_slice(payload).map_err(|e| e.to_string())?;
    if for_topic != topic {
        return Err(format!("for the topic {for_topic:?} instead of {topic:?}"));
    }
    if join_ref.as_deref().is_some_and(|join_ref| join_ref != JOIN_REF) {
        return Err("for a join that was never made".to_owned());
    }
    match &*event {
        "presence_state" => Ok(Message::State(roster(body.get(), numbers)?)),
        "presence_diff" => {
            let Changes { joins, leaves } = parse(body.get())?;
            Ok(Message::Diff(Rc::new(Diff {
                joins: seats(joins, numbers)?,
                leaves: seats(leaves, numbers)?,
            })))
        }
        "phx_reply" => reply(reference.as_deref(), body.get()),
        "phx_close" if reference.as_deref() == Some(JOIN_REF) => Ok(Message::Left),
        "phx_error" => Ok(Message::Refused("the channel crashed".to_owned())),
        other => Err(format!("an event that no one asked for: {other:?}")),
    }
}

fn reply(reference: Option<&str>, body: &str) -> Result<Message, String> {
    let Reply { status } = parse(body)?;
    match reference {
        _ if status != "ok" => Ok(Message::Refused(body.to_owned())),
        Some(JOIN_REF) => Ok(Message::Joined),
        Some(LEAVE_REF) => Ok(Message::Left),
        Some(TRACK_REF) => Ok(Message::Taken),
        other => Err(format!("a reply to {other:?}, which was never sent")),
    }
}

fn roster(body: &str, numbers: &mut impl Numbers) -> Result<Vec<Seat>, String> {
    seats(parse(body)?, numbers)
}

fn parse<'a, T: Deserialize<'a>>(body: &'a str) -> Result<T, String> {
    serde_json::from_str(body).map_err(|e| e.to_string())
}

fn seats(roster: Roster<'_>, numbers: &mut impl Numbers) -> Result<Vec<Seat>, String> {
    let mut seats = Vec::with_capacity(roster.0.len());
    let mut users = std::collections::HashSet::with_capacity(roster.0.len());
    for (user, member) in &roster.0 {
        // A browser would keep only the last of them.
        if !users.insert(&**user) {
            return Err(format!("the user {user:?} stands there twice"));
        }
        if member.metas.is_empty() {
            return Err(format!("the user {user:?} has no metas"));
        }
        seats.extend(member.metas.iter().map(|meta| numbers.seat(user, &meta.phx_ref)));
    }
    Ok(seats)
}

#[derive(serde::Deserialize)]
struct Reply<'a> {
    #[serde(borrow)]
    status: Cow<'a, str>,
}

#[derive(serde::Deserialize)]
struct Changes<'a> {
    #[serde(borrow)]
    joins: Roster<'a>,
    #[serde(borrow)]
    leaves: Roster<'a>,
}

#[derive(serde::Deserialize)]
struct Member<'a> {
    #[serde(borrow)]
    metas: Vec<Meta<'a>>,
}

#[derive(serde::Deserialize)]
struct Meta<'a> {
    #[serde(borrow)]
    phx_ref: Cow<'a, str>,
}

/// A JSON object in its own order, with keys that stand there twice.
struct Roster<'a>(Vec<(Cow<'a, str>, Member<'a>)>);

/// A key that borrows where it can; plain `Cow` never does.
#[derive(serde::Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Roster<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<'a>(PhantomData<&'a ()>);
        impl<'de: 'a, 'a> Visitor<'de> for Entries<'a> {
            type Value = Roster<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of members")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Roster<'a>, A::Error> {
                let mut entries = Vec::new();
                while let Some((Key(user), member)) = map.next_entry()? {
                    entries.push((user, member));
                }
                Ok(Roster(entries))
            }
        }
        deserializer.deserialize_map(Entries(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Users and refs are numbers already.
    struct Plain;

    impl Numbers for Plain {
        fn seat(&mut self, user: &str, phx_ref: &str) -> Seat {
            Seat { user: user.parse().unwrap(), place: phx_ref.parse().unwrap() }
        }
    }

    fn heard(frame: &str) -> Result<Message, String> {
        read(frame.as_bytes(), "room:7", &mut Plain)
    }

    #[test]
    fn what_a_server_tells() {
        let joined = r#"["1","1","room:7","phx_reply",{"status":"ok","response":{}}]"#;
        let left = r#"["1","2","room:7","phx_reply",{"response":{},"status":"ok"}]"#;
        assert_eq!(heard(joined), Ok(Message::Joined));
        assert_eq!(heard(left), Ok(Message::Left));
        assert_eq!(heard(r#"["1","1","room:7","phx_close",{}]"#), Ok(Message::Left));
        let state = r#"["1",null,"room:7","presence_state",{"5":{"metas":[{"phx_ref":"50","a":[1]},{"phx_ref":"51"}]}}]"#;
        let seats = vec![Seat { user: 5, place: 50 }, Seat { user: 5, place: 51 }];
        assert_eq!(heard(state), Ok(Message::State(seats)));
        let diff = r#"[null,null,"room:7","presence_diff",{"joins":{},"leaves":{"5":{"metas":[{"phx_ref":"50"}]}}}]"#;
        let expected = Diff { joins: vec![], leaves: vec![Seat { user: 5, place: 50 }] };
        assert_eq!(heard(diff), Ok(Message::Diff(Rc::new(expected))));
    }

    #[test]
    fn a_refusal_keeps_its_words() {
        let refused = r#"["1","1","room:7","phx_reply",{"status":"error","response":{"reason":"full"}}]"#;
        let Ok(Message::Refused(words)) = heard(refused) else { panic!("not refused") };
        assert!(words.contains("full"));
    }

    #[test]
    fn what_does_not_follow_the_protocol_is_an_error() {
        for frame in [
            "nonsense",
            "[]",
            r#"["1","1","other","phx_reply",{"status":"ok"}]"#,
            r#"["9","1","room:7","phx_reply",{"status":"ok"}]"#,
            r#"["1","9","room:7","phx_reply",{"status":"ok"}]"#,
            r#"["1",null,"room:7","presence_state",null]"#,
            r#"["1",null,"room:7","presence_state",{"5":{"metas":[]}}]"#,
            r#"["1",null,"room:7","presence_state",{"5":{"metas":[{}]}}]"#,
            r#"["1",null,"room:7","presence_state",{"5":{"metas":[{"phx_ref":"1"}]},"5":{"metas":[{"phx_ref":"2"}]}}]"#,
            r#"[null,null,"room:7","presence_diff",{"joins":{}}]"#,
            r#"[null,null,"room:7","surprise",{}]"#,
        ] {
            assert!(heard(frame).is_err(), "{frame}");
        }
    }

    #[test]
    fn what_we_send_is_json_whatever_the_names() {
        let sent = join("ro\"om", "a\\b", "{}");
        let back: Vec<serde_json::Value> = serde_json::from_str(&sent).unwrap();
        assert_eq!((back[2].as_str(), back[4]["user_id"].as_str()), (Some("ro\"om"), Some("a\\b")));
    }
}
