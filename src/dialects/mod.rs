//! Dialects: pure codecs between what clients put on the wire and one shared vocabulary.
//!
//! In: a frame becomes an [`Incoming`], a [`Command`] with the address its answer goes to. Out: an
//! [`Event`] becomes text in one [`WireFormat`]. No dialect knows of actors, sockets or Redis, and
//! nothing outside this folder knows what a frame looks like. Adding a dialect means a file here, a
//! variant of [`WireFormat`] and a route.

mod claims;
mod events;
mod phoenix;

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;

use crate::config::{Limits, Secret};
use crate::presence::{Diff, Snapshot};
use crate::reject::Reject;

pub use claims::{check_user, meta_from, resume_from, user_from};
pub use events::{write_counts, write_member_fields};

/// A wire form in which events are encoded. Each change is encoded once per form in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireFormat {
    /// Phoenix `vsn=1.0.0`: JSON objects.
    PhoenixV1,
    /// Phoenix `vsn=2.0.0`: JSON arrays.
    PhoenixV2,
    /// Server-sent events, which only tell.
    Events,
}

impl WireFormat {
    /// How many forms there are: the size of tables by [`WireFormat::index`].
    pub const KINDS: usize = 3;

    /// The form's place in such a table.
    pub fn index(self) -> usize {
        self as usize
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
    Join(JoinRequest),
    Leave,
    /// Be present with this meta: a join, or an update.
    Track(Result<Arc<str>, Reject>),
    /// Be present no more, and keep watching.
    Untrack,
    /// Nobody uses the client for now, or somebody does again.
    Idle(bool),
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
    /// See the roster without being in it.
    pub observe: bool,
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

/// What one client is told. Rosters and diffs, which all viewers share, are [`state`] and [`diff`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    Ok(&'a Address),
    Refused(&'a Address, &'a Reject),
    /// The join named here has ended; its topic may be joined again.
    Closed {
        topic: &'a str,
        join_ref: &'a str,
    },
}

/// Reads a text frame. The form is told by what arrives, not by what the connection announced.
///
/// # Errors
/// [`Malformed`] if it is no message; nothing has happened then.
pub fn decode_text(text: &str, limits: &Limits) -> Result<Incoming, Malformed> {
    phoenix::decode_text(text, limits)
}

/// Reads a binary frame.
///
/// # Errors
/// [`Malformed`] if it is no message; nothing has happened then.
pub fn decode_binary(data: &[u8]) -> Result<Incoming, Malformed> {
    phoenix::decode_binary(data)
}

/// The text that tells one client `event`. `None` where the form has no way to say it safely.
pub fn encode(format: WireFormat, event: &Event<'_>) -> Option<String> {
    match format {
        WireFormat::PhoenixV1 => phoenix::v1(event),
        WireFormat::PhoenixV2 => phoenix::v2(event),
        WireFormat::Events => None,
    }
}

/// The text before and after a payload of [`state_payload`] that tell one client the roster.
pub fn state_envelope(
    format: WireFormat,
    topic: &str,
    join_ref: Option<&str>,
    roster: &Snapshot,
) -> (String, &'static str) {
    match format {
        WireFormat::PhoenixV1 => phoenix::state_envelope_v1(topic),
        WireFormat::PhoenixV2 => phoenix::state_envelope_v2(topic, join_ref),
        WireFormat::Events => events::state_envelope(topic, roster),
    }
}

/// The roster as the payload of a state message: the same for every viewer of the channel.
pub fn state_payload(format: WireFormat, roster: &Snapshot) -> Bytes {
    match format {
        WireFormat::PhoenixV1 | WireFormat::PhoenixV2 => phoenix::state_payload(roster).into(),
        WireFormat::Events => events::state_payload(roster).into(),
    }
}

/// The text that tells every viewer of `topic` what changed, and led to `roster`.
pub fn diff(format: WireFormat, topic: &str, diff: &Diff, roster: &Snapshot) -> Bytes {
    match format {
        WireFormat::PhoenixV1 => phoenix::diff_v1(topic, diff).into(),
        WireFormat::PhoenixV2 => phoenix::diff_v2(topic, diff).into(),
        WireFormat::Events => events::diff(topic, diff, roster).into(),
    }
}

#[cfg(test)]
mod fuzz;
