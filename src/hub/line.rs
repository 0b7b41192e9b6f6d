//! What is at the other end of an outbox: all in which a WebSocket and an event stream differ.

use bytes::Bytes;
use prometheus_client::metrics::gauge::Gauge;

use super::frames;
use crate::metrics::Metrics;
use crate::reject::Close;

/// A socket is pinged this often, in seconds. Browsers answer by themselves, in hidden tabs too.
const PING_EVERY: u32 = 20;
/// An event stream has a comment this often, in seconds, so that no proxy takes it for dead, and a
/// reader that is gone is noticed.
const COMMENT_EVERY: u32 = 15;

/// The kind of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// A WebSocket: answers pings, may be present, is told why it is closed.
    Socket,
    /// Server-sent events: only listens. When it ends, its client comes back by itself.
    Events,
}

impl Line {
    /// How often, in seconds, something is sent to keep it open.
    pub(super) fn beat_every(self) -> u32 {
        match self {
            Self::Socket => PING_EVERY,
            Self::Events => COMMENT_EVERY,
        }
    }

    /// What is sent to keep it open.
    pub(super) fn beat(self) -> Bytes {
        match self {
            Self::Socket => frames::ping(),
            Self::Events => Bytes::from_static(b":\n\n"),
        }
    }

    /// Whether something comes from the other end, so that silence means that it is gone, and so
    /// that it may be present in a channel.
    pub(super) fn speaks(self) -> bool {
        self == Self::Socket
    }

    /// What is sent before it ends, if there is a way to say why.
    pub(super) fn farewell(self, why: Close) -> Option<Bytes> {
        self.speaks().then(|| frames::close(why))
    }

    /// Where it is counted while it is open.
    pub(super) fn gauge(self, metrics: &Metrics) -> &Gauge {
        match self {
            Self::Socket => &metrics.connections,
            Self::Events => &metrics.event_streams,
        }
    }
}
