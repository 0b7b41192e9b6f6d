//! Broadcasts: what somebody says to all in a channel, in no dialect.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::value::RawValue;

use crate::reject::Dialect;

/// What is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// A JSON value, as text.
    Json(Arc<str>),
    /// Text of a backend, which may or may not be JSON: Pusher's way.
    Text(Arc<str>),
    /// Raw bytes, which only clients of the same dialect understand.
    Raw(Dialect, Bytes),
}

impl Body {
    /// As a JSON value, the text of a backend as what it holds where that is JSON; none of raw bytes.
    pub fn as_json(&self) -> Option<std::borrow::Cow<'_, str>> {
        match self {
            Self::Json(json) => Some((&**json).into()),
            Self::Text(text) if serde_json::from_str::<&RawValue>(text).is_ok() => Some((&**text).into()),
            // A string always has a JSON form.
            Self::Text(text) => Some(serde_json::to_string(text).unwrap_or_default().into()),
            Self::Raw(..) => None,
        }
    }
}

/// What a client says, as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// What it is called, without what a dialect adds.
    pub event: Box<str>,
    pub body: Body,
}

/// What a client wants to be told of what it says itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Hear it like the others.
    pub own: bool,
    /// Be told that it was taken.
    pub answer: bool,
}

/// A connection, as the whole cluster knows it: `node.connection`, both as numbers, as Pusher's libraries ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SocketId {
    /// See [`crate::presence::NodeId::number`].
    pub node: u64,
    pub connection: u64,
}

impl fmt::Display for SocketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.node, self.connection)
    }
}

/// A text that is no socket id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a socket id")]
pub struct NoSocketId;

impl FromStr for SocketId {
    type Err = NoSocketId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |text: &str| match text.bytes().all(|byte| byte.is_ascii_digit()) {
            true => text.parse().map_err(|_| NoSocketId),
            false => Err(NoSocketId),
        };
        let (node, connection) = text.split_once('.').ok_or(NoSocketId)?;
        Ok(Self { node: number(node)?, connection: number(connection)? })
    }
}

/// What is told to all who view a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Broadcast {
    /// Somebody says something.
    Said {
        message: Message,
        /// By a backend, not by a client.
        by_backend: bool,
        /// Who says it, where that is proven.
        user: Option<Arc<str>>,
        /// Who is not told: mostly who says it.
        except: Option<SocketId>,
    },
    /// All who view it are to be disconnected.
    Terminate,
}
