//! The library face: a program that joins channels and counts them without a socket.

use std::time::{Duration, Instant};

use clap::Parser as _;
use rollcall::config::Args;
use rollcall::node::Node;
use rollcall::presence_manager::PresenceManager;
use rollcall::reject::Reject;
use serde_json::json;

fn node(args: &[&str]) -> Node {
    let config = Args::parse_from(std::iter::once(&"rollcall").chain(args)).check().unwrap();
    Node::start(config).unwrap()
}

/// Waits until `channel` has `online` members.
async fn count_becomes(presence: &PresenceManager, channel: &str, online: usize) {
    let start = Instant::now();
    loop {
        let now = presence.get_channel_online_count(channel).await.unwrap();
        if now == online {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(5), "{channel} has {now}, not {online}");
        actix::clock::sleep(Duration::from_millis(5)).await;
    }
}

#[actix::test]
async fn a_program_joins_updates_and_leaves_like_anyone() {
    let node = node(&["--grace-seconds", "0"]);
    let presence = node.presence();
    assert_eq!(presence.get_channel_online_count("room:1").await, Ok(0));
    let ada = presence.join_channel("ada", "room:1", &json!({"name": "Ada"})).unwrap();
    let tab = presence.join_channel("ada", "room:1", &json!({})).unwrap();
    let bob = presence.join_channel("bob", "room:1", &json!({})).unwrap();
    count_becomes(&presence, "room:1", 2).await;
    ada.update(&json!({"name": "Ada", "status": "busy"})).unwrap();
    assert_eq!(ada.update(&json!([])), Err(Reject::MetaNotObject));
    ada.leave();
    // Still there with the other connection; a seat that is dropped leaves after the grace.
    drop(bob);
    count_becomes(&presence, "room:1", 1).await;
    tab.leave();
    count_becomes(&presence, "room:1", 0).await;
}

#[actix::test]
async fn a_program_has_the_limits_of_a_client() {
    let presence = node(&[]).presence();
    let refused = |user: &str, channel: &str, meta| presence.join_channel(user, channel, &meta).err();
    assert_eq!(refused("__proto__", "c", json!({})), Some(Reject::UserReserved));
    assert_eq!(refused("u", "", json!({})), Some(Reject::ChannelName(200)));
    assert_eq!(refused("u", "c", json!("text")), Some(Reject::MetaNotObject));
    assert_eq!(refused("u", "c", json!({"a": "x".repeat(5000)})), Some(Reject::MetaTooLarge(4096)));
}
