use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use actix_web::App;
use actix_web::body::{BoxBody, MessageBody};
use actix_web::test::{TestRequest, call_service, init_service};
use serde_json::{Value, json};

use super::super::tests::{KEY, state};
use super::*;
use crate::channel::{Registry, Shared};
use crate::hub::Hubs;
use crate::lifecycle::Stage;
use crate::presence::Ids;

/// A node with a hub on this thread.
fn node(args: &[&str]) -> (web::Data<AppState>, Sockets) {
    let state = state(args);
    let shared = Shared {
        ids: Ids::new(state.node),
        grace: Duration::ZERO,
        heartbeat: Duration::from_secs(20),
        rosters: state.rosters.clone(),
        cluster: state.cluster.clone(),
        webhooks: state.webhooks.clone(),
        metrics: Arc::clone(&state.metrics),
    };
    let registry = Registry::new(Arc::new(shared), vec![actix::Arbiter::current()]);
    let sockets = Sockets {
        hub: Hubs::default().start_here(registry, Arc::new(|_, _| {})),
        limits: Arc::new(state.config.limits.clone()),
        metrics: Arc::clone(&state.metrics),
        services: crate::sockets::services(state.clone()),
    };
    (state, sockets)
}

/// A socket that is present in `channel`.
fn present(hub: &SharedHub, channel: &str, user: &str) -> Rc<Outbox> {
    let mut hub = hub.borrow_mut();
    let outbox = hub.connect(Line::Socket(crate::dialects::Dialect::Phoenix), 1 << 20, None);
    hub.view(outbox.id(), channel, View::new(WireFormat::PhoenixV2));
    hub.track(outbox.id(), channel, user.into(), r#"{"a":1}"#.into(), None);
    outbox
}

macro_rules! open {
    ($state:expr, $sockets:expr, $call:expr) => {{
        let (state, sockets) = ($state.clone(), $sockets.clone());
        let app =
            init_service(App::new().app_data(sockets).configure(|cfg| crate::http::configure(cfg, state)))
                .await;
        call_service(&app, $call.to_request()).await.into_parts().1
    }};
}

fn get(uri: &str) -> TestRequest {
    TestRequest::get().uri(uri)
}

const ROOM: &str = "/v1/channels/room/presence/events";

struct Reader {
    body: Pin<Box<BoxBody>>,
    text: String,
}

impl Reader {
    fn new(response: HttpResponse) -> Self {
        Self { body: Box::pin(response.into_body()), text: String::new() }
    }

    /// The next block of lines, or none at the end.
    async fn block(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.text.find("\n\n") {
                let block = self.text[..end].to_owned();
                self.text.drain(..end + 2);
                return Some(block);
            }
            let chunk = poll_fn(|cx| self.body.as_mut().poll_next(cx));
            let chunk =
                tokio::time::timeout(Duration::from_secs(5), chunk).await.expect("something comes")?;
            self.text.push_str(std::str::from_utf8(&chunk.unwrap()).unwrap());
        }
    }

    /// The next event: id, name and data.
    async fn event(&mut self) -> (String, String, Value) {
        let block = self.block().await.expect("an event");
        let field = |name: &str| {
            let found = block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            found.unwrap_or_else(|| panic!("no {name} in {block}")).to_owned()
        };
        (field("id"), field("event"), serde_json::from_str(&field("data")).unwrap())
    }
}

#[actix_web::test]
async fn a_snapshot_then_diffs_and_an_end_without_a_trace() {
    let (state, sockets) = node(&[]);
    let ada = present(&sockets.hub, "room", "ada");
    tokio::time::sleep(Duration::from_millis(50)).await;
    let response = open!(state, sockets, get(ROOM));
    assert_eq!(response.status(), 200);
    let header = |name: &str| response.headers().get(name).unwrap().to_str().unwrap().to_owned();
    let headers = ["content-type", "cache-control", "x-accel-buffering"].map(header);
    assert_eq!(headers, ["text/event-stream", "no-store", "no"]);
    let mut reader = Reader::new(response);
    assert_eq!(reader.block().await.as_deref(), Some("retry: 2000"));
    let (id, event, data) = reader.event().await;
    assert_eq!((event.as_str(), &data["version"]), ("snapshot", &json!(id)));
    assert_eq!((&data["members"][0]["user"], &data["online"]), (&json!("ada"), &json!(1)));
    let reference = data["members"][0]["refs"][0].clone();

    let _bo = present(&sockets.hub, "room", "bo");
    let (next, event, data) = reader.event().await;
    assert_eq!((event.as_str(), &data["version"], &data["online"]), ("diff", &json!(next), &json!(2)));
    assert_eq!((&data["joins"][0]["user"], &data["joins"][0]["meta"]), (&json!("bo"), &json!({"a": 1})));
    sockets.hub.borrow_mut().disconnect(ada.id());
    let (_, _, data) = reader.event().await;
    assert_eq!(data["leaves"], json!([{"user": "ada", "ref": reference}]));

    assert_eq!((state.metrics.connections.get(), state.metrics.event_streams.get()), (1, 1));
    drop(reader);
    assert_eq!((state.metrics.connections.get(), state.metrics.event_streams.get()), (1, 0));
    assert_eq!(sockets.hub.borrow().connections(), 1);
}

#[actix_web::test]
async fn a_channel_that_nobody_is_in_can_be_watched() {
    let (state, sockets) = node(&[]);
    let mut reader = Reader::new(open!(state, sockets, get(ROOM)));
    reader.block().await;
    let (_, event, data) = reader.event().await;
    assert_eq!((event.as_str(), &data["online"], &data["members"]), ("snapshot", &json!(0), &json!([])));
    let _ada = present(&sockets.hub, "room", "ada");
    assert_eq!(reader.event().await.2["joins"][0]["user"], "ada");
}

#[actix_web::test]
async fn who_has_the_roster_is_sent_only_what_comes_after_it() {
    let (state, sockets) = node(&[]);
    let _ada = present(&sockets.hub, "room", "ada");
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut reader = Reader::new(open!(state, sockets, get(ROOM)));
    reader.block().await;
    let (id, ..) = reader.event().await;

    let by_header = get(ROOM).insert_header(("last-event-id", id.clone()));
    let mut first = Reader::new(open!(state, sockets, by_header));
    let mut second = Reader::new(open!(state, sockets, get(&format!("{ROOM}?last_event_id={id}"))));
    let _bo = present(&sockets.hub, "room", "bo");
    for reader in [&mut first, &mut second] {
        assert_eq!(reader.block().await.as_deref(), Some("retry: 2000"));
        let (_, event, data) = reader.event().await;
        assert_eq!((event.as_str(), &data["joins"][0]["user"]), ("diff", &json!("bo")));
    }
    // What is old, another node's or nonsense leads to a snapshot.
    let other = format!("{}.{}", NodeId::random().short(), id.split_once('.').unwrap().1);
    for id in [id.as_str(), other.as_str(), "redis.1", ".", "x", ""] {
        let mut reader = Reader::new(open!(state, sockets, get(ROOM).insert_header(("last-event-id", id))));
        reader.block().await;
        assert_eq!(reader.event().await.1, "snapshot", "{id}");
    }
}

#[actix_web::test]
async fn a_reader_that_does_not_read_is_ended() {
    let (state, sockets) = node(&["--max-output-bytes", "65536"]);
    let ada = present(&sockets.hub, "room", "ada");
    let stalled = Reader::new(open!(state, sockets, get(ROOM)));
    let mut reader = Reader::new(open!(state, sockets, get(ROOM)));
    reader.block().await;
    reader.event().await;
    for n in 0..40 {
        let meta = format!(r#"{{"n":{n},"blob":"{}"}}"#, "x".repeat(3_000));
        sockets.hub.borrow().track(ada.id(), "room", "ada".into(), meta.into(), None);
        // Who reads gets everything.
        while reader.event().await.2["joins"][0]["meta"]["n"] != n {}
    }
    assert_eq!((state.metrics.slow_readers.get(), state.metrics.event_streams.get()), (1, 1));
    let mut stalled = stalled;
    assert_eq!(stalled.block().await, None);
}

#[actix_web::test]
async fn strangers_wrong_names_full_and_draining_nodes() {
    let (state, sockets) = node(&["--auth", "session", "--rate-ip", "4"]);
    assert_eq!(open!(state, sockets, get(ROOM)).status(), 401);
    let long = format!("/v1/channels/{}/presence/events", "x".repeat(201));
    let known = |call: TestRequest| call.insert_header(("authorization", format!("Bearer {KEY}")));
    assert_eq!(open!(state, sockets, known(get(&long))).status(), 400);
    for expected in [401, 401, 401, 429] {
        assert_eq!(open!(state, sockets, get(ROOM)).status(), expected);
    }
    let (full, hub) = node(&["--max-connections", "1"]);
    let ada = present(&hub.hub, "room", "ada");
    let refused = open!(full, hub, get(ROOM));
    assert_eq!((refused.status().as_u16(), refused.headers().get("retry-after").is_some()), (503, true));
    hub.hub.borrow_mut().disconnect(ada.id());
    assert_eq!(open!(full, hub, get(ROOM)).status(), 200);
    state.lifecycle.enter(Stage::Draining);
    let mut reader = Reader::new(open!(state, sockets, known(get(ROOM))));
    let told = reader.block().await.unwrap();
    let wait: u64 = told.strip_prefix("retry: ").unwrap().parse().unwrap();
    assert!((2_000..5_000).contains(&wait));
    assert_eq!(reader.block().await, None);
}
