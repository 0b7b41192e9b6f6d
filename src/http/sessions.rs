//! Sessions over HTTP: made and revoked by trusted backends, begun and ended by users themselves.

use std::sync::Arc;
use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, ResponseError as _, web};
use uuid::Uuid;

use super::guard::{Guest, Known, Manager};
use super::input::{self, Body};
use super::{AppState, Problem, answer};
use crate::admission::{Caller, Identity, Refusal, TokenKind};
use crate::dialects::check_user;
use crate::hub::CloseSessions;
use crate::session::{NewSession, Session, SessionError};

/// Characters in an email, a role or a tier.
const MAX_TEXT: usize = 320;
/// Accounts do not exist here. 501 and not 503: trying again later would not help.
const NO_ACCOUNTS: StatusCode = StatusCode::NOT_IMPLEMENTED;

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
    Ok(granted(StatusCode::CREATED, &token, &session))
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

/// What a visitor sends to sign up. Clients add fields of their own, which mean nothing here.
#[derive(serde::Deserialize)]
pub struct SignUp {
    email: Option<serde::de::IgnoredAny>,
    phone: Option<serde::de::IgnoredAny>,
    password: Option<serde::de::IgnoredAny>,
}

/// `POST /auth/v1/signup`: an anonymous session.
pub async fn sign_up(_: Guest, body: Body, state: web::Data<AppState>) -> Result<HttpResponse, Problem> {
    let call: SignUp = body.json()?;
    if call.email.is_some() || call.phone.is_some() || call.password.is_some() {
        return Err(Problem::new(NO_ACCOUNTS, "accounts need DATABASE_URL"));
    }
    if !state.config.anonymous {
        return Err(Problem::new(StatusCode::FORBIDDEN, "anonymous sign-up is off (ROLLCALL_ANONYMOUS)"));
    }
    let new =
        NewSession { user_id: format!("anon-{}", Uuid::new_v4()), anonymous: true, ..NewSession::default() };
    let (token, session) = state.sessions.create(new).await?;
    Ok(granted(StatusCode::OK, &token, &session))
}

/// `POST /auth/v1/token`
pub async fn sign_in(_: Guest) -> HttpResponse {
    Problem::new(NO_ACCOUNTS, "password sign-in needs DATABASE_URL").error_response()
}

/// `GET /auth/v1/user`
pub async fn whoami(caller: Known) -> Result<HttpResponse, Problem> {
    let identity = person(&caller)?;
    let user = User {
        id: &identity.user,
        email: identity.email.as_deref(),
        role: identity.role.as_deref(),
        tier: identity.tier.as_deref(),
        anonymous: identity.anonymous,
    };
    Ok(answer::value(StatusCode::OK, &user))
}

/// `POST /auth/v1/logout`
pub async fn sign_out(caller: Known, state: web::Data<AppState>) -> Result<HttpResponse, Problem> {
    match &person(&caller)?.token {
        TokenKind::Opaque(token) => {
            end_session(&state, token).await?;
            Ok(done())
        }
        TokenKind::Jwt { .. } => {
            Err(Problem::bad_request("a JWT cannot be revoked here: it is good until its exp"))
        }
    }
}

/// Revokes a session and closes its sockets here; other nodes hear of it and do the same. False if
/// there was none.
async fn end_session(state: &AppState, token: &str) -> Result<bool, SessionError> {
    let ended = state.sessions.revoke(token).await?;
    if ended {
        state.hubs.tell(CloseSessions { tokens: Arc::new([token.into()]) });
    }
    Ok(ended)
}

/// The user behind a call about oneself. The service key is nobody.
fn person(caller: &Caller) -> Result<&Identity, Problem> {
    match caller {
        Caller::User(identity) => Ok(identity),
        _ => Err(Problem::from(Refusal::NoSession)),
    }
}

/// A user, as all calls write it.
#[derive(serde::Serialize)]
struct User<'a> {
    id: &'a str,
    email: Option<&'a str>,
    role: Option<&'a str>,
    tier: Option<&'a str>,
    anonymous: bool,
}

/// A session that has begun.
#[derive(serde::Serialize)]
struct Granted<'a> {
    access_token: &'a str,
    token_type: &'static str,
    expires_in: u64,
    user: User<'a>,
}

fn granted(status: StatusCode, access_token: &str, session: &Session) -> HttpResponse {
    let user = User {
        id: &session.user_id,
        email: session.email.as_deref(),
        role: session.role.as_deref(),
        tier: session.tier.as_deref(),
        anonymous: session.anonymous,
    };
    let expires_in = session.expires_at.saturating_sub(session.created_at);
    answer::value(status, &Granted { access_token, token_type: "bearer", expires_in, user })
}

fn done() -> HttpResponse {
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
