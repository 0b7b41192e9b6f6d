//! Sessions over HTTP, for trusted backends: made, listed, revoked.

use std::sync::Arc;
use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};

use super::guard::{Known, Manager};
use super::input::{self, Body};
use super::{AppState, Problem, answer};
use crate::admission::{Caller, Identity, Refusal, TokenKind};
use crate::dialects::check_user;
use crate::hub::CloseSessions;
use crate::json;
use crate::session::{NewSession, Session, SessionError, handle};

/// Characters in an email, a role or a tier.
const MAX_TEXT: usize = 320;

/// What a trusted backend says about the user whom it has recognised.
#[derive(serde::Deserialize)]
pub struct NewSessionCall {
    user_id: String,
    email: Option<String>,
    role: Option<String>,
    tier: Option<String>,
    ttl_seconds: Option<u64>,
}

/// `POST /v1/sessions`
pub async fn create(_: Manager, body: Body, state: web::Data<AppState>) -> Result<HttpResponse, Problem> {
    let call: NewSessionCall = body.json()?;
    check_user(&call.user_id, &state.config.limits)
        .map_err(|reject| Problem::bad_request(reject.to_string()))?;
    for (name, value) in [("email", &call.email), ("role", &call.role), ("tier", &call.tier)] {
        if value.as_ref().is_some_and(|value| value.is_empty() || value.len() > MAX_TEXT) {
            return Err(Problem::bad_request(format!("{name} must have 1 to {MAX_TEXT} bytes")));
        }
    }
    let new = NewSession {
        user_id: call.user_id,
        email: call.email,
        role: call.role,
        tier: call.tier,
        anonymous: false,
        login: None,
        ttl: call.ttl_seconds.map(Duration::from_secs),
    };
    let (token, session) = state.sessions.create(new).await?;
    Ok(granted(StatusCode::CREATED, &token, None, &session))
}

/// `DELETE /v1/sessions/{token}`
pub async fn revoke(
    caller: Known,
    request: HttpRequest,
    state: web::Data<AppState>,
) -> Result<HttpResponse, Problem> {
    let token = input::segment(&request, 3)?;
    match &*caller {
        Caller::Service => {}
        Caller::User(Identity { token: TokenKind::Opaque(own), .. }) if *own == token => {}
        _ => return Err(Refusal::NotTrusted.into()),
    }
    if end_session(&state, &token).await? {
        Ok(done())
    } else {
        Err(Problem::new(StatusCode::NOT_FOUND, "there is no such session"))
    }
}

/// A session as a trusted backend sees it: told apart by a handle, for its token would let anyone in.
#[derive(serde::Serialize)]
struct Listed<'a> {
    id: String,
    created_at: Option<String>,
    expires_at: Option<String>,
    email: Option<&'a str>,
    role: Option<&'a str>,
    tier: Option<&'a str>,
    anonymous: bool,
}

/// `GET /v1/users/{user}/sessions`
pub async fn list(
    _: Manager,
    request: HttpRequest,
    state: web::Data<AppState>,
) -> Result<HttpResponse, Problem> {
    let user = input::user(&request, &state.config.limits)?;
    let sessions = state.sessions.sessions_of(&user).await?;
    let listed: Vec<Listed<'_>> = sessions
        .iter()
        .map(|(token, session)| Listed {
            id: handle(token),
            created_at: json::rfc3339(session.created_at.saturating_mul(1_000)),
            expires_at: json::rfc3339(session.expires_at.saturating_mul(1_000)),
            email: session.email.as_deref(),
            role: session.role.as_deref(),
            tier: session.tier.as_deref(),
            anonymous: session.anonymous,
        })
        .collect();
    Ok(answer::value(StatusCode::OK, &serde_json::json!({"user": user, "sessions": listed})))
}

/// `DELETE /v1/users/{user}/sessions`: all of them, and what would make new ones of an account's sign-ins.
pub async fn revoke_all(
    _: Manager,
    request: HttpRequest,
    state: web::Data<AppState>,
) -> Result<HttpResponse, Problem> {
    let user = input::user(&request, &state.config.limits)?;
    // First: what it would make otherwise is not seen by what follows.
    if let Some(accounts) = &state.accounts {
        accounts.forget(&user, None, false).await?;
    }
    let revoked = end_sessions(&state, &user, |_, _| true).await?;
    Ok(answer::value(StatusCode::OK, &serde_json::json!({"user": user, "revoked": revoked})))
}

/// Revokes those sessions of `user` that `which` names and closes their sockets; says how many there were.
pub(super) async fn end_sessions(
    state: &AppState,
    user: &str,
    which: impl Fn(&str, &Session) -> bool,
) -> Result<usize, SessionError> {
    let ended = state.sessions.revoke_of(user, which).await?;
    if !ended.is_empty() {
        let tokens: Arc<[Arc<str>]> = ended.iter().map(|token| token.as_str().into()).collect();
        state.hubs.tell(CloseSessions { tokens });
    }
    Ok(ended.len())
}

/// Revokes a session and closes its sockets here; other nodes hear of it and do the same. False if
/// there was none.
pub(super) async fn end_session(state: &AppState, token: &str) -> Result<bool, SessionError> {
    let ended = state.sessions.revoke(token).await?;
    if ended {
        state.hubs.tell(CloseSessions { tokens: Arc::new([token.into()]) });
    }
    Ok(ended)
}

/// A user, as all calls write it.
#[derive(serde::Serialize)]
pub(super) struct User<'a> {
    pub id: &'a str,
    pub email: Option<&'a str>,
    pub role: Option<&'a str>,
    pub tier: Option<&'a str>,
    pub anonymous: bool,
}

/// A session that has begun.
#[derive(serde::Serialize)]
struct Granted<'a> {
    access_token: &'a str,
    token_type: &'static str,
    expires_in: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    refresh_token: Option<&'a str>,
    user: User<'a>,
}

pub(super) fn granted(
    status: StatusCode,
    access_token: &str,
    refresh_token: Option<&str>,
    session: &Session,
) -> HttpResponse {
    let user = User {
        id: &session.user_id,
        email: session.email.as_deref(),
        role: session.role.as_deref(),
        tier: session.tier.as_deref(),
        anonymous: session.anonymous,
    };
    let expires_in = session.expires_at.saturating_sub(session.created_at);
    answer::value(status, &Granted { access_token, token_type: "bearer", expires_in, refresh_token, user })
}

pub(super) fn done() -> HttpResponse {
    answer::json(StatusCode::NO_CONTENT, Vec::new())
}

impl From<SessionError> for Problem {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::Unavailable(_) => Refusal::StoreAway.into(),
            SessionError::BadTtl | SessionError::NoUser => Problem::bad_request(error.to_string()),
            SessionError::NoRandomness => {
                Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "no session could be made")
            }
        }
    }
}
