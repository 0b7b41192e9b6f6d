//! Which protocol the clients speak: what they send, and reading what comes. Supabase's frames are Phoenix's with
//! another join; Pusher's tell users and not refs, so there a user has one place, whatever it does.

use std::borrow::Cow;

use rollcall::config::{PusherApp, Secret};
use rollcall::signature;

use crate::phoenix::{self, Message, Numbers};
use crate::view::Diff;

/// The application that a server has which was started without any.
const KEY: &str = "demo-key";
const SECRET: &str = "demo-secret";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Protocol {
    #[default]
    Phoenix,
    Supabase,
    Pusher,
}

impl Protocol {
    /// Where its sockets are.
    pub fn path(self) -> String {
        match self {
            Self::Phoenix => "/socket/websocket?vsn=2.0.0".to_owned(),
            Self::Supabase => "/realtime/v1/websocket?apikey=load&vsn=2.0.0".to_owned(),
            Self::Pusher => format!("/app/{KEY}?protocol=7&client=load"),
        }
    }

    /// What its clients call the channel called `channel`.
    pub fn topic(self, channel: String) -> String {
        match self {
            Self::Phoenix => channel,
            Self::Supabase => format!("realtime:{channel}"),
            Self::Pusher => format!("presence-{channel}"),
        }
    }

    /// Whether a client must know what the server calls it before it joins.
    pub fn needs_socket(self) -> bool {
        self == Self::Pusher
    }

    pub fn join(self, topic: &str, user: &str, meta: &str, socket: &str) -> String {
        match self {
            Self::Phoenix => phoenix::join(topic, user, meta),
            Self::Supabase => phoenix::watch(topic, user),
            Self::Pusher => {
                let data = format!(r#"{{"user_id":"{user}","user_info":{meta}}}"#);
                let secret = Secret::new(SECRET);
                let app = PusherApp { id: "demo".into(), key: KEY.into(), secret, bridged: true };
                let signed = signature::sign(&app, format!("{socket}:{topic}:{data}").as_bytes());
                let data = serde_json::Value::from(data);
                format!(
                    r#"{{"event":"pusher:subscribe","data":{{"auth":"{KEY}:{signed}","channel_data":{data},"channel":"{topic}"}}}}"#
                )
            }
        }
    }

    /// What makes present who has joined and is not by that.
    pub fn track(self, topic: &str, meta: &str) -> Option<String> {
        (self == Self::Supabase).then(|| phoenix::track(topic, meta))
    }

    /// Reads one frame's payload, which must be for `topic`.
    pub fn read(self, payload: &[u8], topic: &str, numbers: &mut impl Numbers) -> Result<Message, String> {
        match self {
            Self::Phoenix | Self::Supabase => phoenix::read(payload, topic, numbers),
            Self::Pusher => read_pusher(payload, topic, numbers),
        }
    }
}

#[derive(serde::Deserialize)]
struct Frame<'a> {
    event: &'a str,
    #[serde(borrow, default)]
    channel: Option<Cow<'a, str>>,
    #[serde(borrow)]
    data: Cow<'a, str>,
}

#[derive(serde::Deserialize)]
struct Data {
    #[serde(default)]
    socket_id: String,
    #[serde(default)]
    user_id: String,
    #[serde(default)]
    presence: Presence,
}

#[derive(Default, serde::Deserialize)]
struct Presence {
    #[serde(default)]
    count: usize,
    #[serde(default)]
    ids: Vec<String>,
}

fn read_pusher(payload: &[u8], topic: &str, numbers: &mut impl Numbers) -> Result<Message, String> {
    let frame: Frame<'_> = serde_json::from_slice(payload).map_err(|e| e.to_string())?;
    let data: Data = serde_json::from_str(&frame.data).map_err(|e| e.to_string())?;
    if frame.channel.as_deref().is_some_and(|channel| channel != topic) {
        return Err(format!("for the channel {:?} instead of {topic:?}", frame.channel));
    }
    let mut seat = |user: &str| numbers.seat(user, "");
    match frame.event {
        "pusher:connection_established" => Ok(Message::Named(data.socket_id)),
        "pusher_internal:subscription_succeeded" => {
            let Presence { count, ids } = data.presence;
            if count != ids.len() {
                return Err(format!("{count} members, of whom {} are named", ids.len()));
            }
            Ok(Message::State(ids.iter().map(|user| seat(user)).collect()))
        }
        "pusher_internal:member_added" => {
            Ok(Message::Diff(Diff { joins: vec![seat(&data.user_id)], leaves: vec![] }.into()))
        }
        "pusher_internal:member_removed" => {
            Ok(Message::Diff(Diff { joins: vec![], leaves: vec![seat(&data.user_id)] }.into()))
        }
        other => Err(format!("an event that no one asked for: {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::Seat;

    struct Plain;

    impl Numbers for Plain {
        fn seat(&mut self, user: &str, _: &str) -> Seat {
            Seat { user: user.parse().unwrap(), place: 0 }
        }
    }

    #[test]
    fn what_a_server_tells_pushers_clients() {
        let read = |text: &str| Protocol::Pusher.read(text.as_bytes(), "presence-r", &mut Plain);
        let named = r#"{"event":"pusher:connection_established","data":"{\"socket_id\":\"1.2\",\"activity_timeout\":120}"}"#;
        assert_eq!(read(named), Ok(Message::Named("1.2".into())));
        let added =
            r#"{"event":"pusher_internal:member_added","channel":"presence-r","data":"{\"user_id\":\"5\"}"}"#;
        let joins = vec![Seat { user: 5, place: 0 }];
        assert_eq!(read(added), Ok(Message::Diff(Diff { joins, leaves: vec![] }.into())));
        assert!(read(&added.replace("presence-r", "presence-s")).is_err());
        assert!(read(r#"{"event":"pusher:error","data":"{}"}"#).is_err());
    }
}
