use std::sync::Mutex;

use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};

use super::*;
use crate::config::Secret;

type Calls = Arc<Mutex<Vec<(String, String, String)>>>;

/// A receiver that refuses the first `refusals` calls: its address, and what it was sent.
fn receiver(refusals: usize) -> (HookAddress, Calls) {
    let calls = Calls::default();
    let seen = Arc::clone(&calls);
    let take = move |request: HttpRequest, body: String| {
        let header = |name| request.headers().get(name).unwrap().to_str().unwrap().to_owned();
        let mut seen = seen.lock().unwrap();
        seen.push((header("content-type"), header("x-pusher-signature"), body));
        let status = if seen.len() > refusals { 200 } else { 500 };
        let status = actix_web::http::StatusCode::from_u16(status).unwrap();
        async move { HttpResponse::new(status) }
    };
    let server = HttpServer::new(move || App::new().route("/hooks", web::post().to(take.clone())))
        .workers(1)
        .bind(("127.0.0.1", 0))
        .unwrap();
    let at = server.addrs()[0];
    actix_web::rt::spawn(server.run());
    (format!("http://{at}/hooks").parse().unwrap(), calls)
}

fn app() -> Arc<PusherApp> {
    Arc::new(PusherApp { id: "7".into(), key: "k".into(), secret: Secret::new("s"), bridged: true })
}

fn event(n: usize) -> HookEvent {
    HookEvent::ChannelOccupied { channel: n.to_string() }
}

async fn sent(sender: &Sender) {
    let end = Instant::now() + Duration::from_secs(10);
    while !sender.is_idle() {
        assert!(Instant::now() < end, "nothing may wait for so long");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[actix_web::test]
async fn what_is_refused_is_sent_again_and_all_in_order() {
    let (address, calls) = receiver(1);
    let (sender, queue) = Sender::new(Arc::new(Metrics::new()));
    actix::spawn(run(sender.clone(), queue, vec![address]));
    (0..250).for_each(|n| sender.tell(&app(), event(n)));
    sent(&sender).await;
    let calls = calls.lock().unwrap();
    let (first, again) = (&calls[0], &calls[1]);
    assert_eq!((first, first.0.as_str()), (again, "application/json"), "the same bytes once more");
    let mut told = Vec::new();
    for (_, signature, body) in calls.iter().skip(1) {
        assert!(signature::is_signed(&app(), body.as_bytes(), signature));
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        told.extend(
            body["events"]
                .as_array()
                .unwrap()
                .iter()
                .map(|event| event["channel"].as_str().unwrap().to_owned()),
        );
    }
    assert_eq!(told, (0..250).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[actix_web::test]
async fn an_address_that_is_away_delays_no_other_and_fills_nothing() {
    let (address, calls) = receiver(0);
    let away = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let away: HookAddress = format!("http://{away}/").parse().unwrap();
    let metrics = Arc::new(Metrics::new());
    let (sender, queue) = Sender::new(Arc::clone(&metrics));
    (0..QUEUE + 5).for_each(|n| sender.tell(&app(), event(n)));
    let dropped = || metrics.webhooks.get_or_create(&[("outcome", "dropped")]).get();
    assert_eq!(dropped(), 5, "over the bound");
    actix::spawn(run(sender.clone(), queue, vec![away, address]));
    let end = Instant::now() + Duration::from_secs(20);
    while calls.lock().unwrap().is_empty() {
        assert!(Instant::now() < end, "the other one is told");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(!sender.is_idle(), "and the one that is away is not given up");
}
