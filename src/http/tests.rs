use actix_http::Request;
use actix_web::body::MessageBody;
use actix_web::dev::{Service, ServiceResponse};
use actix_web::test::{TestRequest, call_service, init_service, read_body};
use actix_web::{App, Error};
use clap::Parser as _;
use serde_json::{Value, json};

use super::*;
use crate::cache::{Caches, Hearing};
use crate::channel::Published;
use crate::cluster::{Asides, LocalCluster, RedisCluster, Ttls};
use crate::config::Args;
use crate::jwt::JwtVerifier;
use crate::lifecycle::Stage;
use crate::presence::{Entry, Ids, Roster};
use crate::quota::Quotas;
use crate::rate_limit::RateLimiter;
use crate::redis_pool::test_redis::nowhere;

pub(super) const KEY: &str = "a-long-service-key";

pub(super) fn state(args: &[&str]) -> web::Data<AppState> {
    let args = ["rollcall", "--service-key", KEY].iter().chain(args).copied();
    let config = Arc::new(Args::parse_from(args).check().unwrap());
    let metrics = Arc::new(Metrics::new());
    let sessions = SessionManager::new(None, config.session_ttl);
    let cluster = Cluster::Local(LocalCluster::new(config.last_seen_ttl));
    let node = NodeId::random();
    let rosters = Rosters::default();
    let shared = crate::channel::Shared {
        ids: Ids::new(node),
        grace: config.grace,
        heartbeat: config.presence_ttl / 3,
        rosters: rosters.clone(),
        cluster: cluster.clone(),
        webhooks: Webhooks::none(),
        metrics: Arc::clone(&metrics),
    };
    web::Data::new(AppState {
        registry: Registry::new(Arc::new(shared), vec![actix::Arbiter::current()]),
        rosters,
        remote: Remote::new(cluster.clone(), Arc::clone(&metrics)),
        cluster,
        sessions: sessions.clone(),
        accounts: None,
        settings: None,
        hubs: crate::hub::Hubs::default(),
        last_said: LastSaid::new(&Caches::new(None, Hearing::default(), Arc::clone(&metrics))),
        webhooks: Webhooks::none(),
        pool: None,
        admission: Admission {
            config: Arc::clone(&config),
            sessions,
            jwt: JwtVerifier::new(None, &[]),
            limiter: RateLimiter::new(None),
            quotas: Quotas::of(&config.limits),
            metrics: Arc::clone(&metrics),
        },
        config,
        metrics,
        lifecycle: Arc::new(Lifecycle::default()),
        node,
    })
}

/// Puts `users` into `channel`, each as often as it is named, numbered version 7.
fn fill(state: &AppState, channel: &str, users: &[&str]) {
    let ids = Ids::new(state.node);
    let mut roster = Roster::new(state.node);
    for user in users {
        let meta = r#"{"name":"Zoë"}"#.into();
        let entry = Entry::new((*user).into(), ids.r#ref(), meta, 1_700_000_000_000);
        let _ = roster.put(ids.number(), Arc::new(entry), 1);
    }
    state.rosters.publish(&channel.into(), Arc::new(Published::new(roster.snapshot(7))));
}

macro_rules! app {
    ($state:expr) => {{
        let state = $state.clone();
        init_service(App::new().configure(|cfg| configure(cfg, state))).await
    }};
}

/// The answer to a call: status and JSON.
async fn ask<S, B>(app: &S, call: TestRequest) -> (u16, Value)
where
    S: Service<Request, Response = ServiceResponse<B>, Error = Error>,
    B: MessageBody,
{
    let call = call.to_request();
    let path = call.path().to_owned();
    let response = call_service(app, call).await;
    let status = response.status();
    let header = |name| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    let kind = header("content-type").unwrap_or_default();
    assert_eq!(header("cache-control").as_deref(), Some("no-store"));
    // Only /readyz fails in words of its own.
    let fails = !status.is_success() && !path.starts_with("/readyz");
    assert_eq!(fails, kind == "application/problem+json", "{path} {status} {kind}");
    let body = read_body(response).await;
    let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() };
    if kind == "application/problem+json" {
        assert_eq!(body["type"], "about:blank");
        assert_eq!(body["status"], status.as_u16());
        assert!(body["title"].is_string() && body["detail"].is_string(), "{body}");
    }
    (status.as_u16(), body)
}

fn get(uri: &str) -> TestRequest {
    TestRequest::get().uri(uri)
}

fn post(uri: &str, body: &str) -> TestRequest {
    TestRequest::post().uri(uri).set_payload(body.to_owned())
}

fn with(call: TestRequest, token: &str) -> TestRequest {
    call.insert_header(("authorization", format!("Bearer {token}")))
}

#[actix_web::test]
async fn counts_of_channels_here_and_nowhere() {
    let state = state(&[]);
    fill(&state, "room:1", &["ada", "bob", "ada"]);
    fill(&state, "a/b \"ü%", &["ada"]);
    let app = app!(state);
    let answer = ask(&app, get("/v1/channels/room:1/presence/count")).await;
    assert_eq!(answer, (200, json!({"channel": "room:1", "online": 2, "connections": 3})));
    let answer = ask(&app, get("/v1/channels/room%3a1/presence/count")).await.1;
    assert_eq!(answer["online"], 2);
    let answer = ask(&app, get("/v1/channels/a%2Fb%20%22%C3%BC%25/presence/count")).await;
    assert_eq!(answer, (200, json!({"channel": "a/b \"ü%", "online": 1, "connections": 1})));
    let answer = ask(&app, get("/v1/channels/none/presence/count")).await;
    assert_eq!(answer, (200, json!({"channel": "none", "online": 0, "connections": 0})));
    assert_eq!((state.metrics.count_l1_hits.get(), state.metrics.count_l1_misses.get()), (3, 1));
    assert_eq!(ask(&app, get("/v1/channels/%FF/presence/count")).await.0, 400);
    let long = format!("/v1/channels/{}/presence/count", "x".repeat(201));
    assert_eq!(ask(&app, get(&long)).await.0, 400);
}

#[actix_web::test]
async fn many_counts_in_one_call() {
    let state = state(&[]);
    fill(&state, "a", &["ada"]);
    fill(&state, "b", &["ada", "ada"]);
    let app = app!(state);
    let answer = ask(&app, post("/v1/presence/counts", r#"{"channels":["b","none","a","b"]}"#)).await;
    let count = |channel: &str, online: u8, connections: u8| json!({"channel": channel, "online": online, "connections": connections});
    assert_eq!(
        answer.1,
        json!({"counts": [count("b", 1, 2), count("none", 0, 0), count("a", 1, 1), count("b", 1, 2)]})
    );
    let many = |n| json!({"channels": vec!["a"; n]}).to_string();
    assert_eq!(ask(&app, post("/v1/presence/counts", &many(1000))).await.0, 200);
    assert_eq!(ask(&app, post("/v1/presence/counts", &many(1001))).await.0, 400);
    for wrong in ["", "[]", "{", r#"{"channels":[1]}"#, r#"{"channels":[""]}"#] {
        assert_eq!(ask(&app, post("/v1/presence/counts", wrong)).await.0, 400, "{wrong}");
    }
    assert_eq!(ask(&app, post("/v1/presence/counts", &" ".repeat(300_000))).await.0, 413);
}

#[actix_web::test]
async fn members_come_in_pages() {
    let state = state(&[]);
    fill(&state, "room", &["cleo", "ada", "bob", "ada"]);
    let app = app!(state);
    let (_, first) = ask(&app, get("/v1/channels/room/presence?limit=2")).await;
    let since = "2023-11-14T22:13:20Z";
    let meta = json!({"name": "Zoë"});
    assert_eq!(
        first["members"],
        json!([
            {"user": "ada", "connections": 2, "metas": [meta, meta], "online_since": since},
            {"user": "bob", "connections": 1, "metas": [meta], "online_since": since},
        ])
    );
    assert_eq!((&first["online"], &first["connections"]), (&json!(3), &json!(4)));
    assert_eq!(first["version"], format!("{}.7", state.node.short()));
    let next = format!("/v1/channels/room/presence?limit=2&cursor={}", first["next"].as_str().unwrap());
    let (_, second) = ask(&app, get(&next)).await;
    assert_eq!(second["members"][0]["user"], "cleo");
    assert_eq!((second["members"].as_array().map(Vec::len), &second["next"]), (Some(1), &Value::Null));
    let (_, none) = ask(&app, get("/v1/channels/none/presence")).await;
    assert_eq!(
        (&none["members"], &none["next"], &none["version"]),
        (&json!([]), &Value::Null, &json!("redis.0"))
    );
    for wrong in ["limit=0", "limit=1001", "limit=x", "limit=-1", "cursor=%21"] {
        let uri = format!("/v1/channels/room/presence?{wrong}");
        assert_eq!(ask(&app, get(&uri)).await.0, 400, "{wrong}");
    }
}

#[actix_web::test]
async fn occupied_channels_come_in_pages() {
    let state = state(&[]);
    for name in ["room:2", "room:1", "hall", "room:3"] {
        fill(&state, name, &["ada"]);
    }
    fill(&state, "room:empty", &[]);
    let app = app!(state);
    let (_, first) = ask(&app, get("/v1/channels?prefix=room%3A&limit=2")).await;
    let names = |answer: &Value| -> Vec<String> {
        let all = answer["channels"].as_array().unwrap();
        all.iter().map(|one| one["channel"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&first), ["room:1", "room:2"]);
    assert_eq!(first["channels"][0], json!({"channel": "room:1", "online": 1, "connections": 1}));
    let next = format!("/v1/channels?prefix=room:&cursor={}", first["next"].as_str().unwrap());
    let (_, second) = ask(&app, get(&next)).await;
    assert_eq!((names(&second), &second["next"]), (vec!["room:3".to_owned()], &Value::Null));
    assert_eq!(names(&ask(&app, get("/v1/channels")).await.1).len(), 4);
}

#[actix_web::test]
async fn a_user_is_where_its_connections_are() {
    let state = state(&[]);
    fill(&state, "b", &["a/da", "bob"]);
    fill(&state, "a", &["a/da", "a/da"]);
    let app = app!(state);
    let answer = ask(&app, get("/v1/users/a%2Fda/presence")).await.1;
    let there =
        json!({"user": "a/da", "online": true, "connections": 3, "channels": ["a", "b"], "last_seen": null});
    assert_eq!(answer, there);
    let answer = ask(&app, get("/v1/users/eve/presence")).await.1;
    let away = json!({"user": "eve", "online": false, "connections": 0, "channels": [], "last_seen": null});
    assert_eq!(answer, away);
    assert_eq!(ask(&app, get("/v1/users/__proto__/presence")).await.0, 400);
}

#[actix_web::test]
async fn why_a_user_is_online_is_told_to_backends() {
    let state = state(&[]);
    fill(&state, "b", &["ada", "bob"]);
    fill(&state, "a", &["ada"]);
    let app = app!(state);
    assert_eq!(ask(&app, get("/v1/users/ada/presence?explain=true")).await.0, 401);
    assert_eq!(ask(&app, with(get("/v1/users/ada/presence?explain=maybe"), KEY)).await.0, 400);
    let (status, plain) = ask(&app, with(get("/v1/users/ada/presence?explain=false"), KEY)).await;
    assert_eq!((status, plain.get("explain")), (200, None));
    let (status, told) = ask(&app, with(get("/v1/users/ada/presence?explain=true"), KEY)).await;
    assert_eq!((status, &told["connections"]), (200, &json!(2)));
    let all = told["explain"].as_array().unwrap();
    let channels: Vec<&Value> = all.iter().map(|one| &one["channel"]).collect();
    assert_eq!(channels, ["a", "b"]);
    let one = all[0].as_object().unwrap();
    assert_eq!((&one["node"], &one["local"]), (&json!(state.node.to_string()), &json!(true)));
    assert_eq!((&one["since"], &one["meta"]), (&json!("2023-11-14T22:13:20Z"), &json!({"name": "Zoë"})));
    assert_eq!(one["reason"], format!("connected to this node, {}", state.node));
    for unknown in ["last_heartbeat", "waiting_since", "grace_left_ms", "lease_left_ms"] {
        assert_eq!(one[unknown], Value::Null, "{unknown}");
    }
    let (_, nobody) = ask(&app, with(get("/v1/users/eve/presence?explain=true"), KEY)).await;
    assert_eq!(nobody["explain"], json!([]));
    let session = post("/v1/sessions", r#"{"user_id":"ada"}"#);
    let token = ask(&app, with(session, KEY)).await.1["access_token"].as_str().unwrap().to_owned();
    assert_eq!(ask(&app, with(get("/v1/users/ada/presence?explain=true"), &token)).await.0, 403);
}

#[actix_web::test]
async fn head_is_answered_like_get_without_a_body() {
    let state = state(&[]);
    fill(&state, "room", &["ada"]);
    let app = app!(state);
    for path in ["/v1/channels/room/presence/count", "/v1/channels/room/presence", "/v1/channels", "/metrics"]
    {
        let head = get(path).method(actix_web::http::Method::HEAD);
        assert_eq!(call_service(&app, head.to_request()).await.status(), 200, "{path}");
    }
}

#[actix_web::test]
async fn sessions_are_made_used_and_revoked() {
    let state = state(&["--auth", "session"]);
    fill(&state, "room", &["ada"]);
    let app = app!(state);
    let count = || get("/v1/channels/room/presence/count");
    let wish = r#"{"user_id":"ada","email":"ada@x.example","role":"admin","tier":"pro","ttl_seconds":600}"#;
    assert_eq!(ask(&app, count()).await.0, 401);
    assert_eq!(ask(&app, with(count(), KEY)).await.0, 200);
    assert_eq!(ask(&app, post("/v1/sessions", wish)).await.0, 401);
    assert_eq!(ask(&app, with(post("/v1/sessions", "nonsense"), "wrong")).await.0, 401);
    let (status, made) = ask(&app, with(post("/v1/sessions", wish), KEY)).await;
    assert_eq!((status, &made["token_type"], &made["expires_in"]), (201, &json!("bearer"), &json!(600)));
    let user =
        json!({"id": "ada", "email": "ada@x.example", "role": "admin", "tier": "pro", "anonymous": false});
    assert_eq!(made["user"], user);
    let token = made["access_token"].as_str().unwrap();
    assert_eq!(ask(&app, with(count(), token)).await.0, 200);
    assert_eq!(ask(&app, with(get("/auth/v1/user"), token)).await.1, user);
    assert_eq!(ask(&app, with(post("/v1/sessions", wish), token)).await.0, 403);
    let delete = |token: &str| TestRequest::delete().uri(&format!("/v1/sessions/{token}"));
    assert_eq!(ask(&app, delete(token)).await.0, 401);
    assert_eq!(ask(&app, with(delete("another"), token)).await.0, 403);
    assert_eq!(ask(&app, with(delete(token), token)).await.0, 204);
    assert_eq!(ask(&app, with(count(), token)).await.0, 401);
    assert_eq!(ask(&app, with(delete(token), KEY)).await.0, 404);
    for wrong in [
        r#"{}"#,
        r#"{"user_id":"ids"}"#,
        r#"{"user_id":"a","ttl_seconds":0}"#,
        r#"{"user_id":"a","tier":""}"#,
    ] {
        assert_eq!(ask(&app, with(post("/v1/sessions", wrong), KEY)).await.0, 400, "{wrong}");
    }
}

#[actix_web::test]
async fn visitors_sign_up_where_that_is_allowed() {
    let state = state(&[]);
    let app = app!(state);
    for body in ["", "{}", r#"{"data":{},"gotrue_meta_security":{}}"#] {
        let (status, made) = ask(&app, post("/auth/v1/signup", body)).await;
        assert_eq!((status, &made["user"]["anonymous"]), (200, &json!(true)), "{body}");
        let token = made["access_token"].as_str().unwrap();
        assert_eq!(ask(&app, with(get("/auth/v1/user"), token)).await.1, made["user"]);
        assert_eq!(ask(&app, with(post("/auth/v1/logout", ""), token)).await.0, 204);
        assert_eq!(ask(&app, with(get("/auth/v1/user"), token)).await.0, 401);
    }
    let (status, problem) = ask(&app, post("/auth/v1/signup", r#"{"email":"a@b.c","password":"x"}"#)).await;
    assert_eq!((status, &problem["detail"]), (501, &json!("accounts need DATABASE_URL")));
    let (status, problem) = ask(&app, post("/auth/v1/token", r#"{"email":"a@b.c","password":"x"}"#)).await;
    assert_eq!((status, &problem["detail"]), (501, &json!("password sign-in needs DATABASE_URL")));
    assert_eq!(ask(&app, post("/auth/v1/logout", "")).await.0, 401);
    let closed = self::state(&["--anonymous", "off"]);
    assert_eq!(ask(&app!(closed), post("/auth/v1/signup", "")).await.0, 403);
}

#[actix_web::test]
async fn every_failure_is_a_problem_document() {
    let state = state(&["--rate-ip", "2"]);
    let app = app!(state);
    assert_eq!(ask(&app, get("/nowhere")).await.0, 404);
    assert_eq!(ask(&app, get("/v1/nowhere")).await.0, 404);
    assert_eq!(ask(&app, post("/v1/channels", "")).await.0, 405);
    let response = call_service(&app, get("/v1/presence/counts").to_request()).await;
    assert_eq!(response.headers().get("allow").unwrap(), "POST");
    for expected in [200, 200, 429] {
        assert_eq!(ask(&app, get("/v1/channels")).await.0, expected);
    }
    let response = call_service(&app, get("/v1/channels").to_request()).await;
    assert!(response.headers().contains_key("retry-after") && response.headers().contains_key("ratelimit"));
    assert_eq!(ask(&app, with(get("/v1/channels"), KEY)).await.0, 200);
    assert_eq!(ask(&app, get("/healthz")).await.0, 200);
    assert_eq!(state.metrics.rate_refusals_ip.get(), 2);
}

#[actix_web::test]
async fn operators_see_whether_it_lives() {
    let state = state(&[]);
    let app = app!(state);
    assert_eq!(ask(&app, get("/healthz")).await, (200, json!({"status": "ok"})));
    let expected = |status: &str| json!({"status": status, "redis": "off", "degraded": false, "node": state.node.to_string(), "users_affected": "no: everybody is served, and sees everybody", "problems": []});
    assert_eq!(ask(&app, get("/readyz")).await, (503, expected("starting")));
    state.lifecycle.enter(Stage::Ready);
    assert_eq!(ask(&app, get("/readyz")).await, (200, expected("ready")));
    state.lifecycle.enter(Stage::Draining);
    assert_eq!(ask(&app, get("/readyz")).await, (503, expected("draining")));
    let response = call_service(&app, get("/readyz").to_request()).await;
    assert!(response.headers().contains_key("retry-after"));
    state.metrics.health.set(Trouble::Draining, "3 connections left");
    let (_, ready) = ask(&app, get("/readyz")).await;
    let problem = &ready["problems"][0];
    assert_eq!((&problem["what"], &problem["detail"]), (&json!("draining"), &json!("3 connections left")));
    assert!(problem["since"].is_string() && problem["users_affected"] == json!(true));
    assert!(ready["users_affected"].as_str().unwrap().starts_with("yes: "));
    let response = call_service(&app, get("/metrics").to_request()).await;
    assert_eq!(response.status(), 200);
    assert!(read_body(response).await.starts_with(b"# HELP rollcall_"));
    let public = self::state(&["--listen", "0.0.0.0:8000", "--auth", "open"]);
    let app = app!(public);
    assert_eq!(ask(&app, get("/metrics")).await.0, 401);
    assert_eq!(call_service(&app, with(get("/metrics"), KEY).to_request()).await.status(), 200);
}

#[actix_web::test]
async fn pages_are_cached_by_content_and_confined() {
    let state = state(&[]);
    let app = app!(state);
    for (path, kind) in [
        ("/", "text/html"),
        ("/style.css", "text/css"),
        ("/app.js", "text/javascript"),
        ("/rollcall.js", "text/javascript"),
        ("/favicon.svg", "image/svg+xml"),
        ("/openapi.json", "application/json"),
    ] {
        let response = call_service(&app, get(path).to_request()).await;
        assert_eq!(response.status(), 200);
        let header = |name: &str| response.headers().get(name).unwrap().to_str().unwrap().to_owned();
        assert!(header("content-type").starts_with(kind));
        assert!(header("content-security-policy").contains("frame-ancestors 'none'"));
        assert_eq!(
            (header("cache-control").as_str(), header("x-content-type-options").as_str()),
            ("no-cache", "nosniff")
        );
        let again = get(path).insert_header(("if-none-match", format!("\"x\", W/{}", header("etag"))));
        let response = call_service(&app, again.to_request()).await;
        assert_eq!(response.status(), 304);
        assert!(read_body(response).await.is_empty());
    }
    assert_eq!(
        call_service(&app, TestRequest::default().method(actix_web::http::Method::HEAD).to_request())
            .await
            .status(),
        200
    );
}

#[actix_web::test]
async fn browsers_of_allowed_origins_may_look() {
    let state = state(&["--allowed-origins", "https://app.example"]);
    let app = app!(state);
    let from =
        |origin: &str, call: TestRequest| call.insert_header(("origin", origin.to_owned())).to_request();
    let response = call_service(&app, from("https://app.example", get("/v1/channels"))).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers().get("access-control-allow-origin").unwrap(), "https://app.example");
    let response = call_service(&app, from("https://evil.example", get("/v1/channels"))).await;
    assert_eq!(response.status(), 403);
    assert!(!response.headers().contains_key("access-control-allow-origin"));
    let ahead = TestRequest::with_uri("/auth/v1/signup")
        .method(actix_web::http::Method::OPTIONS)
        .insert_header(("access-control-request-method", "POST"))
        .insert_header(("access-control-request-headers", "authorization,content-type,apikey,x-client-info"));
    let response = call_service(&app, from("https://app.example", ahead)).await;
    assert_eq!(response.status(), 200);
    assert!(response.headers().contains_key("access-control-max-age"));
    let response = call_service(&app, get("/v1/channels").to_request()).await;
    assert!(!response.headers().contains_key("vary"));
}

#[actix_web::test]
async fn long_polling_is_refused_without_json() {
    let app = app!(state(&[]));
    let call = get("/socket/longpoll?vsn=2.0.0").insert_header(("origin", "https://app.example"));
    let response = call_service(&app, call.to_request()).await;
    assert_eq!(response.status(), 404);
    assert_eq!(response.headers().get("access-control-allow-origin").unwrap(), "*");
    assert!(read_body(response).await.starts_with(b"long polling"));
}

/// A cluster whose Redis cannot be reached.
fn away(state: &AppState) -> Cluster {
    let ttls = Ttls {
        presence: state.config.presence_ttl,
        node: state.config.node_ttl,
        last_seen: state.config.last_seen_ttl,
    };
    let arbiter = actix::Arbiter::new().handle();
    let metrics = Arc::clone(&state.metrics);
    let ids = Ids::new(state.node);
    Cluster::Redis(RedisCluster::start(ids, nowhere(), ttls, metrics, Asides::none(), arbiter))
}

#[actix_web::test]
async fn without_redis_only_what_is_here_is_answered() {
    let here = state(&[]);
    fill(&here, "here", &["ada"]);
    let here = web::Data::into_inner(here);
    let mut state = Arc::into_inner(here).expect("nobody else has it");
    state.cluster = away(&state);
    state.remote = Remote::new(state.cluster.clone(), Arc::clone(&state.metrics));
    state.lifecycle.enter(Stage::Ready);
    let app = app!(web::Data::new(state));
    assert_eq!(ask(&app, get("/v1/channels/here/presence/count")).await.0, 200);
    assert_eq!(ask(&app, get("/v1/channels/here/presence")).await.0, 200);
    assert_eq!(ask(&app, post("/v1/presence/counts", r#"{"channels":["here"]}"#)).await.0, 200);
    for call in [
        get("/v1/channels/there/presence/count"),
        get("/v1/channels/there/presence"),
        get("/v1/channels"),
        get("/v1/users/ada/presence"),
        post("/v1/presence/counts", r#"{"channels":["here","there"]}"#),
    ] {
        let (status, problem) = ask(&app, call).await;
        assert_eq!((status, &problem["detail"]), (503, &json!("Redis is away")));
    }
    let (status, ready) = ask(&app, get("/readyz")).await;
    assert_eq!((status, &ready["redis"], &ready["degraded"]), (200, &json!("down"), &json!(true)));
}
