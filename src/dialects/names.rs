//! Names: which channel a topic is, in each dialect, and back. One to one, so that clients of all dialects meet.
//!
//! | dialect | topic | channel |
//! | --- | --- | --- |
//! | Phoenix | `room:1` | `room:1` |
//! | Supabase | `realtime:room:1` | `room:1` |
//! | Supabase, `private` | `realtime:room:1` | `realtime-private:room:1` |
//! | Pusher, first application, bridged | `presence-room:1` | `room:1` |
//! | Pusher, any other name of application `7` | `private-x` | `pusher:7:private-x` |
//!
//! So a user whom an application has signed never stands beside one who has another proof, or none, unless the
//! operator bridges them; and who has none never stands in a private channel. Channels that begin with `pusher:` or
//! `realtime-private:` are **closed**: nobody joins them by that name, and only the service key reads them.

use std::borrow::Cow;
use std::sync::Arc;

use super::WireFormat;
use crate::config::{Limits, PusherApp};
use crate::reject::{Dialect, Reject};

/// What the channels of Pusher's applications begin with.
const PUSHER_NAMES: &str = "pusher:";
/// What Supabase's private channels begin with. As there, they have nothing in common with those of the same
/// topic that are not private.
const PRIVATE_NAMES: &str = "realtime-private:";
/// What Supabase's topics begin with.
const REALTIME: &str = "realtime:";
/// What Pusher's channels with presence begin with.
const PRESENCE: &str = "presence-";
/// What the channel of one user begins with, at Pusher's.
const OF_USER: &str = "#server-to-user-";
/// Phoenix's own topic, for heartbeats: no channel.
const PHOENIX: &str = "phoenix";

/// How the topics of one socket are to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Names {
    Phoenix,
    Supabase,
    Pusher(Arc<PusherApp>),
}

impl Names {
    /// The dialect that is spoken.
    pub fn dialect(&self) -> Dialect {
        match self {
            Self::Phoenix => Dialect::Phoenix,
            Self::Supabase => Dialect::Supabase,
            Self::Pusher(_) => Dialect::Pusher,
        }
    }

    /// The channel that `topic` is, whether or not it may be joined. Two topics of one socket are never one
    /// channel. Only Supabase's clients ask for `private` ones.
    pub fn channel<'a>(&self, topic: &'a str, private: bool) -> Cow<'a, str> {
        match self {
            Self::Phoenix => topic.into(),
            Self::Supabase => match topic.strip_prefix(REALTIME).unwrap_or_default() {
                name if private => format!("{PRIVATE_NAMES}{name}").into(),
                name => name.into(),
            },
            Self::Pusher(app) => pusher_channel(app, topic),
        }
    }

    /// Checks that `topic` is one that can be joined.
    ///
    /// # Errors
    /// [`Reject::ChannelName`], [`Reject::TopicNameRequired`], [`Reject::ChannelReserved`],
    /// [`Reject::ChannelUnmappable`], or [`Reject::UnmatchedTopic`] for Phoenix's own topic.
    pub fn check(&self, topic: &str, limits: &Limits) -> Result<(), Reject> {
        let most = limits.max_channel_bytes;
        let channel = match self {
            Self::Phoenix => topic,
            Self::Supabase => match topic.strip_prefix(REALTIME) {
                Some(channel) if !channel.is_empty() => channel,
                _ => return Err(Reject::TopicNameRequired),
            },
            Self::Pusher(_) => {
                let name = topic.strip_prefix(OF_USER).filter(|user| !user.is_empty());
                if topic.is_empty() || topic.len() > most {
                    return Err(Reject::ChannelName(most));
                }
                if name.is_none() && !is_pusher_name(topic) {
                    return Err(Reject::ChannelUnmappable);
                }
                topic.strip_prefix(PRESENCE).unwrap_or(topic)
            }
        };
        if channel.is_empty() || channel.len() > most {
            return Err(Reject::ChannelName(most));
        }
        if is_closed(channel) {
            return Err(Reject::ChannelReserved);
        }
        if channel == PHOENIX {
            return Err(if *self == Self::Phoenix {
                Reject::UnmatchedTopic
            } else {
                Reject::ChannelReserved
            });
        }
        Ok(())
    }
}

/// The channel that an application's clients call `name`.
pub fn pusher_channel<'a>(app: &PusherApp, name: &'a str) -> Cow<'a, str> {
    match name.strip_prefix(PRESENCE) {
        Some(channel) if app.bridged => channel.into(),
        _ => format!("{PUSHER_NAMES}{}:{name}", app.id).into(),
    }
}

/// Whether `channel` is none that anybody may join or read by that name.
pub fn is_closed(channel: &str) -> bool {
    channel.starts_with(PUSHER_NAMES) || channel.starts_with(PRIVATE_NAMES)
}

/// Whether the members of `channel` are users: in Pusher's channels without presence each is a connection.
pub fn has_users(channel: &str) -> bool {
    let name = channel.strip_prefix(PUSHER_NAMES).and_then(|rest| rest.split_once(':'));
    name.is_none_or(|(_, name)| Kind::of(name) == Kind::Presence)
}

/// Whether Pusher's clients can say `name`: the characters of their libraries, and the colon.
fn is_pusher_name(name: &str) -> bool {
    name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-=@,.;:".contains(&b))
}

/// What the clients of `app` call `channel`; none if it is not one of theirs, or they could not say it.
pub fn pusher_name<'a>(app: &PusherApp, channel: &'a str) -> Option<Cow<'a, str>> {
    match channel.strip_prefix(PUSHER_NAMES) {
        Some(rest) => rest.strip_prefix(&*app.id)?.strip_prefix(':').map(Cow::from),
        None => {
            let is_theirs = app.bridged && is_pusher_name(channel) && !is_closed(channel);
            is_theirs.then(|| format!("{PRESENCE}{channel}").into())
        }
    }
}

/// What viewers in `format` call `channel`.
pub fn topic(format: WireFormat, channel: &str) -> Cow<'_, str> {
    match format.dialect() {
        None | Some(Dialect::Phoenix) => channel.into(),
        Some(Dialect::Supabase) => {
            format!("{REALTIME}{}", channel.strip_prefix(PRIVATE_NAMES).unwrap_or(channel)).into()
        }
        Some(Dialect::Pusher) => {
            match channel.strip_prefix(PUSHER_NAMES).and_then(|rest| rest.split_once(':')) {
                Some((_, name)) => name.into(),
                None => format!("{PRESENCE}{channel}").into(),
            }
        }
    }
}

/// What kind of channel a name is at Pusher's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind<'a> {
    Public,
    /// Who subscribes needs a signature.
    Private {
        /// What is said is encrypted, so no client event can be.
        encrypted: bool,
    },
    /// The same, and members are told of each other.
    Presence,
    /// That of one user, who has signed in.
    User(&'a str),
}

impl<'a> Kind<'a> {
    /// The kind of the channel called `name`.
    pub fn of(name: &'a str) -> Self {
        if let Some(user) = name.strip_prefix(OF_USER) {
            Self::User(user)
        } else if name.starts_with(PRESENCE) {
            Self::Presence
        } else if name.starts_with("private-") {
            Self::Private { encrypted: name.starts_with("private-encrypted-") }
        } else {
            Self::Public
        }
    }

    /// Whether the last event of the channel called `name` is kept for those who come later.
    pub fn keeps_last(name: &str) -> bool {
        ["cache-", "private-cache-", "private-encrypted-cache-", "presence-cache-"]
            .iter()
            .any(|begin| name.starts_with(begin))
    }

    /// The name of the channel of `user`.
    pub fn of_user(user: &str) -> String {
        format!("{OF_USER}{user}")
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use proptest::prelude::*;

    use super::*;
    use crate::config::Secret;

    fn app(bridged: bool) -> PusherApp {
        PusherApp { id: "7".into(), key: "k".into(), secret: Secret::new("s"), bridged }
    }

    fn limits() -> Limits {
        crate::config::Args::parse_from(["rollcall"]).limits
    }

    #[test]
    fn the_same_room_in_every_dialect() {
        let pusher = Names::Pusher(Arc::new(app(true)));
        for (names, name, format) in [
            (Names::Phoenix, "room:1", WireFormat::PhoenixV2),
            (Names::Supabase, "realtime:room:1", WireFormat::SupabaseV1),
            (pusher, "presence-room:1", WireFormat::Pusher),
        ] {
            assert_eq!(names.channel(name, false), "room:1");
            assert_eq!(names.check(name, &limits()), Ok(()));
            assert_eq!(topic(format, "room:1"), name);
        }
        assert_eq!(pusher_channel(&app(false), "presence-a"), "pusher:7:presence-a");
        assert_eq!(pusher_channel(&app(true), "private-a"), "pusher:7:private-a");
        assert_eq!(topic(WireFormat::Pusher, "pusher:7:private-a:b"), "private-a:b");
    }

    #[test]
    fn closed_channels_are_nobody_elses() {
        let private = Names::Supabase.channel("realtime:a", true);
        assert_eq!(topic(WireFormat::SupabaseV2, &private), "realtime:a");
        for closed in [&*private, "pusher:7:x"] {
            assert!(is_closed(closed));
            assert_eq!(Names::Phoenix.check(closed, &limits()), Err(Reject::ChannelReserved));
            let [realtime, presence] = [format!("realtime:{closed}"), format!("presence-{closed}")];
            assert_eq!(Names::Supabase.check(&realtime, &limits()), Err(Reject::ChannelReserved));
            let pusher = Names::Pusher(Arc::new(app(true)));
            assert_eq!(pusher.check(&presence, &limits()), Err(Reject::ChannelReserved));
        }
        for channel in [&*private, "räum", "a b"] {
            assert_eq!(pusher_name(&app(true), channel), None, "{channel}");
        }
        assert!(!is_closed("realtime:a"));
    }

    #[test]
    fn only_channels_with_presence_have_users() {
        for (channel, expected) in [
            ("room", true),
            ("pusher:7:presence-a", true),
            ("pusher:7:private-a", false),
            ("pusher:7:news", false),
            ("pusher:7:#server-to-user-ada", false),
        ] {
            assert_eq!(has_users(channel), expected, "{channel}");
        }
    }

    #[test]
    fn what_cannot_be_mapped_is_refused() {
        let pusher = Names::Pusher(Arc::new(app(true)));
        let check = |names: &Names, topic: &str| names.check(topic, &limits());
        for (names, topic, reject) in [
            (&Names::Phoenix, "", Reject::ChannelName(200)),
            (&Names::Phoenix, "pusher:7:x", Reject::ChannelReserved),
            (&Names::Phoenix, "phoenix", Reject::UnmatchedTopic),
            (&Names::Supabase, "room", Reject::TopicNameRequired),
            (&Names::Supabase, "realtime:", Reject::TopicNameRequired),
            (&Names::Supabase, "realtime:pusher:7:x", Reject::ChannelReserved),
            (&pusher, "presence-", Reject::ChannelName(200)),
            (&pusher, "presence-a b", Reject::ChannelUnmappable),
            (&pusher, "presence-pusher:7:x", Reject::ChannelReserved),
            (&pusher, "presence-phoenix", Reject::ChannelReserved),
            (&pusher, "#server-to-user-", Reject::ChannelUnmappable),
        ] {
            assert_eq!(check(names, topic), Err(reject), "{topic}");
        }
        assert_eq!(check(&pusher, "#server-to-user-ö 1"), Ok(()));
        assert_eq!(check(&Names::Phoenix, &"x".repeat(201)), Err(Reject::ChannelName(200)));
    }

    proptest! {
        #[test]
        fn a_pusher_name_comes_back_as_it_was(name in "[A-Za-z0-9_=@,.;:-]{1,30}", bridged: bool) {
            let app = app(bridged);
            let names = Names::Pusher(Arc::new(app.clone()));
            prop_assume!(names.check(&name, &limits()).is_ok());
            let channel = names.channel(&name, false).into_owned();
            prop_assert_eq!(topic(WireFormat::Pusher, &channel), name.as_str());
            let back = pusher_name(&app, &channel);
            prop_assert_eq!(back.as_deref(), Some(name.as_str()));
        }
    }
}
