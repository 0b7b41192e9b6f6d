//! What is at the other end of an outbox: all in which a WebSocket and an event stream differ.

use bytes::Bytes;
use prometheus_client::metrics::gauge::Gauge;

use super::{Rules, below, frames, spread};
use crate::metrics::Metrics;
use crate::reject::{Close, Dialect};

/// An event stream has a comment this often, in seconds, so that no proxy takes it for dead, and a
/// reader that is gone is noticed.
const COMMENT_EVERY: u32 = 15;

/// After how long, in milliseconds, an event stream's client comes back when the stream has ended.
const RETRY: u64 = 2_000;
/// By how much more, at most, when all are told to come back at the same time.
const RETRY_JITTER: u64 = 3_000;

/// The kind of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// A WebSocket: answers pings, may be present, is told why it is closed.
    Socket(Dialect),
    /// Server-sent events: only listens. When it ends, its client comes back by itself.
    Events,
}

impl Line {
    /// How often, in seconds, something is sent to keep it open. Browsers answer a ping by themselves, in
    /// hidden tabs too.
    pub(super) fn beat_every(self, rules: &Rules) -> u32 {
        match self {
            Self::Socket(_) => rules.ping_every,
            Self::Events => COMMENT_EVERY,
        }
    }

    /// What is sent to keep it open.
    pub(super) fn beat(self) -> Bytes {
        match self {
            Self::Socket(_) => frames::ping(),
            Self::Events => Bytes::from_static(b":\n\n"),
        }
    }

    /// Whether something comes from the other end, so that silence means that it is gone, and so
    /// that it may be present in a channel.
    pub(super) fn speaks(self) -> bool {
        matches!(self, Self::Socket(_))
    }

    /// What is sent before it ends: why, or, to an event stream of a node that goes away, when to come back.
    pub(super) fn farewell(self, why: Close) -> Option<Bytes> {
        match self {
            Self::Socket(dialect) => Some(frames::close(dialect, why)),
            Self::Events if why == Close::Restart => Some(retry_spread()),
            Self::Events => None,
        }
    }

    /// Where it is counted while it is open.
    pub(super) fn gauge(self, metrics: &Metrics) -> &Gauge {
        match self {
            Self::Socket(_) => &metrics.connections,
            Self::Events => &metrics.event_streams,
        }
    }
}

/// Tells an event stream's client after how long to come back.
pub fn retry() -> Bytes {
    format!("retry: {RETRY}\n\n").into()
}

/// The same, different for each.
pub fn retry_spread() -> Bytes {
    format!("retry: {}\n\n", RETRY + below(spread()(), RETRY_JITTER)).into()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::task::{Context, Poll};
    use std::time::Duration;

    use futures_util::task::noop_waker;

    use super::super::{Hubs, Outbox, SharedHub};
    use super::*;
    use crate::channel::{Registry, Rosters, Shared};
    use crate::cluster::{Cluster, LocalCluster};
    use crate::presence::{Ids, NodeId};

    fn hub() -> (SharedHub, Arc<Metrics>) {
        let metrics = Arc::new(Metrics::new());
        let shared = Shared {
            ids: Ids::new(NodeId::random()),
            grace: Duration::ZERO,
            heartbeat: Duration::from_secs(20),
            rosters: Rosters::default(),
            cluster: Cluster::Local(LocalCluster::new(Duration::from_secs(60))),
            webhooks: crate::webhooks::Webhooks::none(),
            metrics: Arc::clone(&metrics),
        };
        let registry = Registry::new(Arc::new(shared), vec![actix::Arbiter::current()]);
        (Hubs::default().start_here(registry, Arc::new(|_, _| {})), metrics)
    }

    fn sent(outbox: &Outbox) -> Vec<Bytes> {
        let mut sent = Vec::new();
        while let Poll::Ready(Some(chunk)) = outbox.poll_next(&mut Context::from_waker(&noop_waker())) {
            sent.push(chunk);
        }
        sent
    }

    #[actix_web::test]
    async fn an_event_stream_is_kept_open_by_comments_and_never_silent() {
        let (hub, metrics) = hub();
        let mut hub = hub.borrow_mut();
        let (socket, events) = (
            hub.connect(Line::Socket(Dialect::Phoenix), 1_000, None),
            hub.connect(Line::Events, 1_000, None),
        );
        hub.started -= Duration::from_secs(15);
        hub.sweep();
        assert_eq!((sent(&socket), sent(&events)), (vec![], vec![Bytes::from_static(b":\n\n")]));
        hub.started -= Duration::from_secs(5);
        hub.sweep();
        assert_eq!((sent(&socket), sent(&events)), (vec![frames::ping()], vec![]));
        hub.started -= Duration::from_secs(45);
        hub.sweep();
        assert_eq!(
            (sent(&socket), socket.has_ended()),
            (vec![frames::close(Dialect::Phoenix, Close::Silent)], true)
        );
        assert_eq!((sent(&events).len(), events.has_ended()), (1, false));
        assert_eq!((metrics.connections.get(), metrics.event_streams.get()), (0, 1));
        hub.close(events.id(), Close::Restart);
        let told = sent(&events).concat();
        let told = std::str::from_utf8(&told).unwrap();
        let wait: u64 = told.strip_prefix("retry: ").unwrap().trim_end().parse().unwrap();
        assert!((RETRY..RETRY + RETRY_JITTER).contains(&wait) && events.has_ended());
        hub.sweep();
        assert_eq!(metrics.event_streams.get(), 0);
    }
}
