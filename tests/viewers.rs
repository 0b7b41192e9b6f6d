//! A viewer who leaves a channel and comes back while the channel is busy misses nothing.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use actix::Arbiter;
use clap::Parser as _;
use rollcall::channel::{Registry, Rosters, Shared};
use rollcall::cluster::{Cluster, LocalCluster};
use rollcall::config::Args;
use rollcall::dialects::WireFormat;
use rollcall::hub::{Hubs, Line, Outbox, View};
use rollcall::metrics::Metrics;
use rollcall::presence::{Ids, NodeId};
use rollcall::presence_manager::PresenceManager;
use serde_json::json;

/// What has been queued for the viewer since the last call.
fn told(outbox: &Outbox) -> String {
    let mut told = String::new();
    while let Poll::Ready(Some(chunk)) = outbox.poll_next(&mut Context::from_waker(Waker::noop())) {
        told.push_str(&String::from_utf8_lossy(&chunk));
    }
    told
}

#[actix::test]
async fn an_answer_to_an_earlier_visit_is_not_taken_for_that_to_the_next() {
    let arbiter = Arbiter::new();
    let shared = Shared {
        ids: Ids::new(NodeId::random()),
        grace: Duration::from_secs(2),
        heartbeat: Duration::from_secs(20),
        rosters: Rosters::default(),
        cluster: Cluster::Local(LocalCluster::new(Duration::from_secs(60))),
        webhooks: rollcall::webhooks::Webhooks::none(),
        metrics: Arc::new(Metrics::new()),
    };
    let registry = Registry::new(Arc::new(shared), vec![arbiter.handle()]);
    let limits = Args::parse_from(["rollcall"]).limits;
    let presence = PresenceManager::new(registry.clone(), Arc::new(limits));
    let hub = Hubs::default().start_here(registry, Arc::new(|_, _| {}));
    let _ada = presence.join_channel("ada", "c", &json!({})).unwrap();

    let outbox = hub.borrow_mut().connect(Line::Socket(rollcall::reject::Dialect::Phoenix), 1 << 20, None);
    let view = || View { join_ref: Some("1".into()), ..View::new(WireFormat::PhoenixV2) };
    hub.borrow_mut().view(outbox.id(), "c", view());
    // This thread does not yield, so the channel's answer waits. When the channel has stood still for a
    // task of ours, it has answered; the same task then keeps it busy.
    let (answered, wait) = std::sync::mpsc::channel();
    let (go_on, stand_still) = std::sync::mpsc::channel::<()>();
    arbiter.spawn(async move {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let _ = answered.send(());
        let _ = stand_still.recv();
    });
    wait.recv().unwrap();
    hub.borrow_mut().unview(outbox.id(), "c");
    let _bob = presence.join_channel("bob", "c", &json!({})).unwrap();
    hub.borrow_mut().view(outbox.id(), "c", view());
    go_on.send(()).unwrap();

    let (start, mut all) = (Instant::now(), String::new());
    while !all.contains("bob") {
        assert!(start.elapsed() < Duration::from_secs(5), "never told of bob: {all}");
        actix::clock::sleep(Duration::from_millis(5)).await;
        all.push_str(&told(&outbox));
    }
}
