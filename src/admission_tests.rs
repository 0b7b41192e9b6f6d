use actix_web::test::TestRequest;
use clap::Parser as _;

use super::*;
use crate::config::Args;
use crate::redis_pool::test_redis::nowhere;
use crate::session::NewSession;

fn config(args: &[&str]) -> Config {
    Args::parse_from(std::iter::once("rollcall").chain(args.iter().copied())).check().unwrap()
}

fn admission(args: &[&str]) -> Admission {
    let config = Arc::new(config(args));
    Admission {
        quotas: Quotas::of(&config.limits),
        config,
        sessions: SessionManager::new(None, std::time::Duration::from_secs(3600)),
        jwt: JwtVerifier::new(None, &[]),
        limiter: RateLimiter::new(None),
        metrics: Arc::new(Metrics::new()),
    }
}

async fn session_of(admission: &Admission, user: &str) -> String {
    let new = NewSession { user_id: user.into(), ..NewSession::default() };
    admission.sessions.create(new).await.unwrap().0
}

fn get(uri: &str) -> TestRequest {
    TestRequest::get().uri(uri).insert_header(("host", "here.example"))
}

#[test]
fn origins_are_compared_as_browsers_write_them() {
    let listed = Origins::Listed(vec!["https://app.example".into()]);
    let host = Some("here.example:8000");
    assert!(origin_allowed(&Origins::Any, "null", None));
    assert!(origin_allowed(&listed, "https://APP.example", host));
    assert!(!origin_allowed(&listed, "http://app.example", host));
    assert!(!origin_allowed(&listed, "https://app.example.evil", host));
    assert!(!origin_allowed(&listed, "http://here.example:8000", host));
    assert!(origin_allowed(&Origins::Same, "http://HERE.example:8000", host));
    assert!(!origin_allowed(&Origins::Same, "http://here.example", host));
    assert!(!origin_allowed(&Origins::Same, "null", Some("null")));
    assert!(!origin_allowed(&Origins::Same, "http://here.example", None));
    assert!(origin_allowed(&Origins::Same, "https://here.example", Some("here.example:443")));
    assert!(!origin_allowed(&Origins::Same, "http://here.example", Some("here.example:443")));
}

fn found(request: TestRequest, cookies_count: bool) -> Vec<String> {
    let request = request.to_http_request();
    let found = tokens(request.query_string(), request.headers(), cookies_count);
    found.into_iter().map(|token| token.text.into_owned()).collect()
}

#[test]
fn tokens_come_in_many_ways() {
    let all = get("/?apikey=key&token=t%2Fk&access_token=acc&token=again")
        .insert_header(("authorization", "bearer  abc"))
        .insert_header(("sec-websocket-protocol", "phoenix, base64url.bearer.phx.dG9rZW4"))
        .insert_header(("cookie", "a=b; rollcall_session=crumb; c=d"));
    assert_eq!(found(all, true), ["abc", "token", "acc", "t/k", "key", "crumb"]);
    let cookie = || get("/").insert_header(("cookie", "rollcall_session=crumb"));
    assert_eq!(found(cookie(), true), ["crumb"]);
    assert!(found(cookie(), false).is_empty());
    assert!(found(get("/?token=&apikey"), true).is_empty());
    assert_eq!(found(get("/?token=same&apikey=same"), true), ["same"]);
    assert!(found(get("/").insert_header(("authorization", "Basic abc")), true).is_empty());
    assert!(found(get("/").insert_header(("cookie", "rollcall_session2=x")), true).is_empty());
}

#[test]
fn a_token_in_a_subprotocol_is_base64_of_either_alphabet() {
    let read = |encoded: &str| protocol_token(&format!("{BEARER_PROTOCOL}{encoded}"));
    assert_eq!(read("dG9rZW4").as_deref(), Some("token"));
    assert_eq!(read("dG9rZW4=").as_deref(), Some("token"));
    assert_eq!(read("Pz8/Pj4+").as_deref(), Some("???>>>"));
    assert_eq!(read("Pz8_Pj4-").as_deref(), Some("???>>>"));
    assert_eq!(read("!"), None);
    assert_eq!(read("_w"), None, "no UTF-8");
    assert_eq!(protocol_token("phoenix"), None);
}

#[test]
fn secrets_are_compared_whole() {
    assert!(same_secret(b"abc", b"abc"));
    assert!(!same_secret(b"abc", b"abd") && !same_secret(b"abc", b"ab") && !same_secret(b"", b"a"));
}

#[actix_web::test]
async fn in_open_mode_anyone_connects_and_a_session_names_its_user() {
    let admission = admission(&[]);
    let token = session_of(&admission, "ada").await;
    let admitted = admission.admit(&get("/?apikey=whatever").to_http_request()).await.unwrap();
    assert_eq!((admitted.identity, admitted.subprotocol), (None, None));
    let request =
        get(&format!("/?apikey=whatever&token={token}")).insert_header(("sec-websocket-protocol", "phoenix"));
    let admitted = admission.admit(&request.to_http_request()).await.unwrap();
    assert_eq!(admitted.subprotocol, Some("phoenix"));
    let identity = admitted.identity.unwrap();
    assert_eq!((&*identity.user, identity.token), ("ada", TokenKind::Opaque(token)));
}

#[actix_web::test]
async fn in_session_mode_a_session_is_needed() {
    let admission = admission(&["--auth", "session"]);
    let token = session_of(&admission, "ada").await;
    let refused = admission.admit(&get("/?token=wrong").to_http_request()).await.unwrap_err();
    assert_eq!((refused, refused.status().as_u16()), (Refusal::NoSession, 401));
    assert_eq!(admission.metrics.session_refusals.get(), 1);
    let admitted = admission.admit(&get(&format!("/?token={token}")).to_http_request()).await.unwrap();
    assert_eq!(&*admitted.identity.unwrap().user, "ada");
}

#[actix_web::test]
async fn a_cookie_counts_only_from_an_allowed_page() {
    let admission = admission(&["--auth", "session", "--allowed-origins", "https://app.example"]);
    let token = session_of(&admission, "ada").await;
    let with = |name: &'static str, value: &'static str| {
        get("/").insert_header(("cookie", format!("rollcall_session={token}"))).insert_header((name, value))
    };
    let user = |request: TestRequest| {
        let request = request.to_http_request();
        let admission = &admission;
        async move { admission.admit(&request).await.map(|admitted| admitted.identity.is_some()) }
    };
    assert_eq!(user(with("origin", "https://app.example")).await, Ok(true));
    assert_eq!(user(with("origin", "https://evil.example")).await, Err(Refusal::Origin));
    assert_eq!(admission.metrics.origin_refusals.get(), 1);
    assert_eq!(user(with("sec-fetch-site", "same-origin")).await, Ok(true));
    assert_eq!(user(with("sec-fetch-site", "cross-site")).await, Err(Refusal::NoSession));
}

#[actix_web::test]
async fn limits_are_by_address_and_by_user() {
    let admission = admission(&["--rate-ip", "3", "--rate-user", "2"]);
    let token = session_of(&admission, "ada").await;
    let uri = format!("/?token={token}");
    let mut answers = Vec::new();
    for _ in 0..4 {
        let request = get(&uri).peer_addr("1.2.3.4:5".parse().unwrap()).to_http_request();
        answers.push(admission.admit(&request).await.map_err(Refusal::status).err());
    }
    assert_eq!(answers.iter().filter(|answer| answer.is_some()).count(), 2);
    assert_eq!(admission.metrics.rate_refusals_user.get(), 1);
    assert_eq!(admission.metrics.rate_refusals_ip.get(), 1);
    let other = get("/").peer_addr("1.2.3.5:5".parse().unwrap()).to_http_request();
    assert!(admission.admit(&other).await.is_ok());
}

#[actix_web::test]
async fn claims_name_a_user_or_stand_for_a_project() {
    let claims = |sub: Option<&str>, role: Option<&str>| Claims {
        sub: sub.map(Into::into),
        role: role.map(Into::into),
        email: None,
        tier: None,
        exp: Some(9),
        anonymous: false,
    };
    let open = admission(&[]);
    let Caller::User(identity) = open.of_claims(&claims(Some("ada"), Some("admin"))) else {
        panic!("a sub names a user")
    };
    assert_eq!((&*identity.user, identity.token), ("ada", TokenKind::Jwt { exp: Some(9) }));
    assert_eq!(open.of_claims(&claims(None, Some("anon"))), Caller::Anonymous);
    assert_eq!(open.of_claims(&claims(None, Some("service_role"))), Caller::Nobody);
    assert_eq!(open.of_claims(&claims(Some("__proto__"), None)), Caller::Nobody);
    let closed = admission(&["--auth", "session"]);
    assert_eq!(closed.of_claims(&claims(None, Some("anon"))), Caller::Nobody);
}

#[actix_web::test]
async fn the_service_key_passes_all_limits() {
    let admission = admission(&["--rate-ip", "1", "--service-key", "a-long-service-key"]);
    let call =
        |key: &str| get("/").insert_header(("authorization", format!("Bearer {key}"))).to_http_request();
    for _ in 0..3 {
        assert_eq!(admission.caller(&call("a-long-service-key")).await, Ok(Caller::Service));
    }
    assert_eq!(admission.caller(&call("a-long-service-kez")).await, Ok(Caller::Nobody));
    let refused = admission.caller(&call("guess")).await.unwrap_err();
    assert!(matches!(refused, Refusal::AddressRate(_)) && refused.retry_after() > Some(50), "{refused:?}");
}

#[actix_web::test]
async fn while_the_store_is_away_a_token_is_neither_right_nor_wrong() {
    let with = |args: &[&str]| {
        let sessions = SessionManager::new(Some(nowhere()), std::time::Duration::from_secs(3600));
        Admission { sessions, ..admission(args) }
    };
    let (open, closed) = (with(&[]), with(&["--auth", "session"]));
    let request = |uri: &str| get(uri).to_http_request();
    for admission in [&open, &closed] {
        let refused = admission.admit(&request("/?token=whose")).await.unwrap_err();
        assert_eq!((refused, refused.status().as_u16()), (Refusal::StoreAway, 503));
        let caller = admission.caller(&request("/?token=whose")).await.unwrap();
        assert_eq!(caller, Caller::Unknown);
        assert_eq!(admission.known(caller).unwrap_err(), Refusal::StoreAway);
    }
    assert_eq!(open.may_read(&Caller::Unknown), Ok(()), "in open mode anyone may read");
    assert_eq!(closed.may_read(&Caller::Unknown), Err(Refusal::StoreAway));
    assert!(open.admit(&request("/?apikey=any")).await.is_ok(), "in open mode any key will do");
    assert_eq!(closed.admit(&request("/?apikey=any")).await.unwrap_err(), Refusal::StoreAway);
}
