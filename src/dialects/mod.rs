//! Dialects: pure codecs between what clients put on the wire and one shared vocabulary.
//!
//! In: a frame becomes an [`Incoming`], a [`Command`] with the address its answer goes to. Out: an
//! [`Event`] becomes a [`Frame`] in one [`WireFormat`]. No dialect knows of actors, sockets or Redis, and
//! nothing outside this folder knows what a frame looks like. Adding a dialect means a file here,
//! variants of [`Dialect`] and [`WireFormat`], its names in [`names`] and a route.
//!
//! [`envelope`] is what Phoenix's and Supabase's messages have in common.

mod broadcast;
mod claims;
mod envelope;
mod events;
mod names;
mod phoenix;
mod pusher;
mod supabase;

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;

use crate::config::{Limits, Secret};
use crate::presence::{Diff, Snapshot};
pub use crate::reject::Dialect;
use crate::reject::Reject;

pub use broadcast::{Body, Broadcast, Message, SocketId, Wanted};
pub use claims::{check_user, meta_from, resume_from, user_from};
pub use events::{write_counts, write_member_fields};
pub use names::{Kind, Names, has_users, is_closed, pusher_channel, pusher_name, topic};
pub use pusher::{Identity, channel_data, is_reserved, user_data};

/// A wire form in which events are encoded. Each change is encoded once per form in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireFormat {
    /// Phoenix `vsn=1.0.0`: JSON objects.
    PhoenixV1,
    /// Phoenix `vsn=2.0.0`: JSON arrays.
    PhoenixV2,
    /// Supabase `vsn=1.0.0`: JSON objects.
    SupabaseV1,
    /// Supabase `vsn=2.0.0`: JSON arrays.
    SupabaseV2,
    /// Pusher protocol 7.
    Pusher,
    /// The same, for those who are told how many subscribers a channel has and no more.
    PusherCount,
    /// The same, for those who watch whether a user is online.
    PusherWatch,
    /// Server-sent events, which only tell.
    Events,
}

impl WireFormat {
    /// How many forms there are: the size of tables by [`WireFormat::index`].
    pub const KINDS: usize = 8;

    /// Each with its name in metrics.
    pub const ALL: [(Self, &'static str); Self::KINDS] = [
        (Self::PhoenixV1, "phoenix_v1"),
        (Self::PhoenixV2, "phoenix_v2"),
        (Self::SupabaseV1, "supabase_v1"),
        (Self::SupabaseV2, "supabase_v2"),
        (Self::Pusher, "pusher"),
        (Self::PusherCount, "pusher_count"),
        (Self::PusherWatch, "pusher_watch"),
        (Self::Events, "events"),
    ];

    /// The form's place in such a table.
    pub fn index(self) -> usize {
        self as usize
    }

    /// The dialect that it belongs to; none of those that only tell.
    pub fn dialect(self) -> Option<Dialect> {
        match self {
            Self::PhoenixV1 | Self::PhoenixV2 => Some(Dialect::Phoenix),
            Self::SupabaseV1 | Self::SupabaseV2 => Some(Dialect::Supabase),
            Self::Pusher | Self::PusherCount | Self::PusherWatch => Some(Dialect::Pusher),
            Self::Events => None,
        }
    }

    /// The first of the forms in which a roster reads the same: it is encoded once for all of them.
    #[must_use]
    pub fn of_roster(self) -> Self {
        match self {
            Self::PhoenixV1 | Self::PhoenixV2 | Self::SupabaseV1 | Self::SupabaseV2 => Self::PhoenixV1,
            other => other,
        }
    }
}

/// One message as it goes to a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    Text(Bytes),
    Binary(Bytes),
    /// Of an event stream, which has no frames around it.
    Bare(Bytes),
}

impl Frame {
    fn text(text: impl Into<Bytes>) -> Self {
        Self::Text(text.into())
    }
}

/// Where an answer goes: echoed byte for byte.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Address {
    /// Which join of the topic is meant; none means the current one.
    pub join_ref: Option<Box<str>>,
    /// Which message is answered.
    pub message_ref: Option<Box<str>>,
    pub topic: Box<str>,
}

/// What a client asks for. Claims are checked in shape and size already; a wrong one carries its refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Heartbeat,
    Join(Box<JoinRequest>),
    Leave,
    /// Be present with this meta: a join, or an update.
    Track(Result<Arc<str>, Reject>),
    /// Be present no more, and keep watching.
    Untrack,
    /// Nobody uses the client for now, or somebody does again.
    Idle(bool),
    /// Tell the others in the channel.
    Broadcast(Result<Message, Reject>),
    /// Here is a newer proof of who the client is.
    AccessToken(Option<Secret>),
    /// Pusher: prove who the client is, beyond its channels.
    SignIn {
        auth: Box<str>,
        user_data: Box<str>,
    },
    /// Says nothing but that the client lives.
    Alive,
    /// An event that the dialect does not have.
    Unknown,
}

impl Command {
    /// Whether it may make somebody present, or let somebody watch.
    pub fn takes_a_place(&self) -> bool {
        matches!(self, Self::Join(_) | Self::Track(_))
    }
}

/// What a join asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinRequest {
    /// The user the client says it is.
    pub user: Result<Option<Arc<str>>, Reject>,
    /// The meta to show; none is an empty object.
    pub meta: Result<Option<Arc<str>>, Reject>,
    /// By what to recognise the client when it comes back.
    pub resume: Result<Option<Secret>, Reject>,
    /// See the channel without being in it.
    pub observe: bool,
    /// Be told the roster and its changes.
    pub roster: bool,
    /// What of its own broadcasts the client is told.
    pub wanted: Wanted,
    /// Whoever names itself with nothing gets a name of its own for this join, not for this connection.
    pub new_name: bool,
    pub proof: Proof,
}

/// With what a join proves that its client may join.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Proof {
    /// With nothing beyond the connection's own.
    #[default]
    None,
    /// With a token. A `private` channel needs one, if the connection has proven nothing.
    Token { token: Option<Secret>, private: bool },
    /// With a signature by an application's backend.
    Signed { auth: Box<str>, channel_data: Option<Box<str>> },
}

impl Default for JoinRequest {
    fn default() -> Self {
        Self {
            user: Ok(None),
            meta: Ok(None),
            resume: Ok(None),
            observe: false,
            roster: true,
            wanted: Wanted::default(),
            new_name: false,
            proof: Proof::None,
        }
    }
}

/// One message from a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incoming {
    pub address: Address,
    pub command: Command,
    /// The form it came in, and in which it is answered.
    pub format: WireFormat,
}

/// A frame that carries no message of the dialect. The socket lives on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed frame: {0}")]
pub struct Malformed(pub Cow<'static, str>);

/// What one client is told. Rosters, diffs and broadcasts, which all viewers share, have calls of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    Ok(&'a Address),
    /// The topic is joined. Where the roster says so, nothing is said here.
    Joined(&'a Address),
    /// What was sent, sent back.
    Echo(&'a Address, &'a Bytes),
    Refused(&'a Address, &'a Reject),
    /// The topic is not joined, and why: after [`Event::Refused`], where that does not say it.
    NotJoined(&'a Address, &'a Reject),
    /// The join named here has ended; its topic may be joined again.
    Closed {
        topic: &'a str,
        join_ref: &'a str,
        /// Whether the client may have joined again meanwhile.
        replaced: bool,
    },
    /// Something about the topic that its client should know.
    System {
        topic: &'a str,
        join_ref: Option<&'a str>,
        reject: &'a Reject,
    },
    /// The socket is open.
    Established {
        socket: SocketId,
        activity_timeout: u32,
    },
    SignedIn {
        user_data: &'a str,
    },
    /// There is no last event of a channel that remembers one.
    CacheMiss {
        topic: &'a str,
    },
}

/// Reads a text frame of `dialect`. The form is told by what arrives, not by what the connection announced.
///
/// # Errors
/// [`Malformed`] if it is no message; nothing has happened then.
pub fn decode_text(dialect: Dialect, text: &str, limits: &Limits) -> Result<Incoming, Malformed> {
    match dialect {
        Dialect::Phoenix => phoenix::decode_text(text, limits),
        Dialect::Supabase => supabase::decode_text(text, limits),
        Dialect::Pusher => pusher::decode_text(text),
    }
}

/// Reads a binary frame of `dialect`.
///
/// # Errors
/// [`Malformed`] if it is no message; nothing has happened then.
pub fn decode_binary(dialect: Dialect, data: &[u8]) -> Result<Incoming, Malformed> {
    match dialect {
        Dialect::Phoenix => phoenix::decode_binary(data),
        Dialect::Supabase => supabase::decode_binary(data),
        Dialect::Pusher => Err(Malformed("binary frames are not of this protocol".into())),
    }
}

/// What tells one client `event`. `None` where the form has no way to say it, or says it in another way.
pub fn encode(format: WireFormat, event: &Event<'_>) -> Option<Frame> {
    match format {
        WireFormat::PhoenixV1 => phoenix::encode(envelope::Version::V1, event),
        WireFormat::PhoenixV2 => phoenix::encode(envelope::Version::V2, event),
        WireFormat::SupabaseV1 => supabase::encode(envelope::Version::V1, event),
        WireFormat::SupabaseV2 => supabase::encode(envelope::Version::V2, event),
        WireFormat::Pusher | WireFormat::PusherCount | WireFormat::PusherWatch => pusher::encode(event),
        WireFormat::Events => None,
    }
}

/// The text before and after a payload of [`state_payload`] that tell one client the roster; none if it is not
/// told.
pub fn state_envelope(
    format: WireFormat,
    channel: &str,
    join_ref: Option<&str>,
    roster: &Snapshot,
) -> Option<(String, &'static str)> {
    let topic = topic(format, channel);
    match format {
        WireFormat::PhoenixV1 | WireFormat::SupabaseV1 => {
            Some(envelope::state(envelope::Version::V1, &topic, join_ref))
        }
        WireFormat::PhoenixV2 | WireFormat::SupabaseV2 => {
            Some(envelope::state(envelope::Version::V2, &topic, join_ref))
        }
        WireFormat::Pusher => Some(pusher::state_envelope(&topic)),
        WireFormat::PusherCount => Some(pusher::count_envelope(&topic)),
        WireFormat::PusherWatch => pusher::watch_envelope(&topic, roster),
        WireFormat::Events => Some(events::state_envelope(channel, roster)),
    }
}

/// The roster as the payload of a state message: the same for every viewer of the channel.
pub fn state_payload(format: WireFormat, roster: &Snapshot) -> Bytes {
    match format {
        WireFormat::PhoenixV1 | WireFormat::PhoenixV2 | WireFormat::SupabaseV1 | WireFormat::SupabaseV2 => {
            envelope::state_payload(roster).into()
        }
        WireFormat::Pusher => pusher::state_payload(roster).into(),
        WireFormat::PusherCount => pusher::count_payload(roster).into(),
        WireFormat::PusherWatch => Bytes::new(),
        WireFormat::Events => events::state_payload(roster).into(),
    }
}

/// What tells every viewer of `channel` what changed, and led to `roster`. Nothing, where viewers in this form
/// need not be told.
pub fn diff(format: WireFormat, channel: &str, diff: &Diff, roster: &Snapshot) -> Vec<Frame> {
    let topic = topic(format, channel);
    match format {
        WireFormat::PhoenixV1 | WireFormat::SupabaseV1 => {
            vec![Frame::text(envelope::diff(envelope::Version::V1, &topic, diff))]
        }
        WireFormat::PhoenixV2 | WireFormat::SupabaseV2 => {
            vec![Frame::text(envelope::diff(envelope::Version::V2, &topic, diff))]
        }
        WireFormat::Pusher => pusher::diff(&topic, diff, roster),
        WireFormat::PusherCount => vec![pusher::count(&topic, roster)],
        WireFormat::PusherWatch => pusher::watch(&topic, diff, roster).into_iter().collect(),
        WireFormat::Events => vec![Frame::Bare(events::diff(channel, diff, roster).into())],
    }
}

/// What tells every viewer of `channel` what somebody said; none where the form cannot carry it.
pub fn broadcast(format: WireFormat, channel: &str, said: &Broadcast) -> Option<Frame> {
    let topic = topic(format, channel);
    match format {
        WireFormat::PhoenixV1 => phoenix::broadcast(envelope::Version::V1, &topic, said),
        WireFormat::PhoenixV2 => phoenix::broadcast(envelope::Version::V2, &topic, said),
        WireFormat::SupabaseV1 => supabase::broadcast(envelope::Version::V1, &topic, said),
        WireFormat::SupabaseV2 => supabase::broadcast(envelope::Version::V2, &topic, said),
        WireFormat::Pusher | WireFormat::PusherCount => pusher::broadcast(&topic, said),
        WireFormat::PusherWatch | WireFormat::Events => None,
    }
}

#[cfg(test)]
mod fuzz;
