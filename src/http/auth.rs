//! What users do themselves, under `/auth/v1`: sign up, in and out, stay signed in, ask who they are.
//!
//! Answers and errors have what Supabase's client reads (`msg`, `error_code`) beside what all calls have.

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use uuid::Uuid;

use super::guard::{Guest, Known};
use super::input::{self, Body};
use super::sessions::{User, done, end_session, end_sessions, granted};
use super::{AppState, Problem, answer};
use crate::accounts::{Account, AccountError, Accounts, HashError, checked_email};
use crate::admission::{Caller, Identity, Refusal, TokenKind};
use crate::database::DatabaseError;
use crate::session::{NewSession, Session};

/// Accounts do not exist here. 501 and not 503: trying again later would not help.
const NO_ACCOUNTS: StatusCode = StatusCode::NOT_IMPLEMENTED;

/// What a visitor sends to sign up or in. Clients add fields of their own, which mean nothing here.
#[derive(serde::Deserialize)]
pub struct Credentials {
    email: Option<String>,
    phone: Option<serde::de::IgnoredAny>,
    password: Option<String>,
    refresh_token: Option<String>,
    /// Believed of trusted backends only.
    role: Option<String>,
    tier: Option<String>,
}

/// What `POST /auth/v1/token` is asked for.
#[derive(serde::Deserialize)]
struct Grant {
    grant_type: Option<String>,
}

/// What `POST /auth/v1/logout` ends.
#[derive(serde::Deserialize)]
struct Scope {
    scope: Option<String>,
}

/// `POST /auth/v1/signup`: an account for an e-mail address and a password, an anonymous session for neither.
pub async fn sign_up(
    caller: Guest,
    request: HttpRequest,
    body: Body,
    state: web::Data<AppState>,
) -> Result<HttpResponse, Problem> {
    let call: Credentials = body.json()?;
    if call.email.is_none() && call.phone.is_none() && call.password.is_none() {
        return anonymous(&state).await;
    }
    let accounts = accounts(&state, "accounts need DATABASE_URL")?;
    let trusted = matches!(*caller, Caller::Service);
    if !trusted && !state.config.signup {
        let problem = Problem::new(StatusCode::FORBIDDEN, "sign-up is off (ROLLCALL_SIGNUP)");
        return Err(problem.coded("signup_disabled"));
    }
    let (Some(email), Some(password)) = (call.email, call.password) else {
        return Err(Problem::bad_request("email and password are needed").coded("validation_failed"));
    };
    let (role, tier) = if trusted { (call.role, call.tier) } else { (None, None) };
    if !trusted {
        state.admission.attempt(&request, &checked_email(&email)?).await?;
    }
    let account = accounts.create(&email, password, role, tier).await?;
    begin(&state, accounts, &account, &accounts.sign_in(&account.id).await?).await
}

async fn anonymous(state: &AppState) -> Result<HttpResponse, Problem> {
    if !state.config.anonymous {
        let problem = Problem::new(StatusCode::FORBIDDEN, "anonymous sign-up is off (ROLLCALL_ANONYMOUS)");
        return Err(problem.coded("anonymous_provider_disabled"));
    }
    let user_id = format!("anon-{}", Uuid::new_v4());
    let new = NewSession { user_id, anonymous: true, ..NewSession::default() };
    let (token, session) = state.sessions.create(new).await?;
    Ok(granted(StatusCode::OK, &token, None, &session))
}

/// `POST /auth/v1/token`: with a password or, with `?grant_type=refresh_token`, with a refresh token.
pub async fn sign_in(
    _: Guest,
    request: HttpRequest,
    body: Body,
    state: web::Data<AppState>,
) -> Result<HttpResponse, Problem> {
    let accounts = accounts(&state, "password sign-in needs DATABASE_URL")?;
    let grant: Grant = input::query(&request)?;
    let call: Credentials = body.json()?;
    match grant.grant_type.as_deref() {
        None | Some("password") => {
            let (Some(email), Some(password)) = (call.email, call.password) else {
                return Err(Problem::bad_request("email and password are needed").coded("validation_failed"));
            };
            // What is no address counts against what was sent: it is answered like any other.
            let counted = checked_email(&email).unwrap_or_else(|_| email.chars().take(254).collect());
            state.admission.attempt(&request, &counted).await?;
            let account = accounts.verify(&email, password).await?;
            begin(&state, accounts, &account, &accounts.sign_in(&account.id).await?).await
        }
        Some("refresh_token") => {
            let Some(token) = call.refresh_token else {
                return Err(Problem::bad_request("refresh_token is needed").coded("validation_failed"));
            };
            match accounts.refresh(&token).await? {
                Ok(good) => begin(&state, accounts, &good.account, &good.login).await,
                Err((user, login)) => {
                    // It was exchanged long ago: somebody has stolen it.
                    end_sessions(&state, &user, |_, session| session.login.as_ref() == Some(&login)).await?;
                    Err(AccountError::BadRefresh.into())
                }
            }
        }
        Some(_) => {
            let problem = Problem::bad_request("grant_type must be password or refresh_token");
            Err(problem.coded("unsupported_grant_type"))
        }
    }
}

/// A session and a refresh token for `account`, which has signed in as `login`.
async fn begin(
    state: &AppState,
    accounts: &Accounts,
    account: &Account,
    login: &str,
) -> Result<HttpResponse, Problem> {
    let new = NewSession {
        user_id: account.id.clone(),
        email: Some(account.email.clone()),
        role: Some(account.role.clone()),
        tier: account.tier.clone(),
        login: Some(login.to_owned()),
        ..NewSession::default()
    };
    let (token, session) = state.sessions.create(new).await?;
    // After the session: whoever ends the sign-in meanwhile either finds it, or ends this.
    match accounts.issue(login).await {
        Ok(refresh_token) => Ok(granted(StatusCode::OK, &token, Some(&refresh_token), &session)),
        Err(error) => {
            // Nobody was told the token.
            let _ = state.sessions.revoke(&token).await;
            Err(error.into())
        }
    }
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

/// `POST /auth/v1/logout`: ends this sign-in, with `?scope=global` all of the user's, with `others` all but this.
pub async fn sign_out(
    caller: Known,
    request: HttpRequest,
    state: web::Data<AppState>,
) -> Result<HttpResponse, Problem> {
    let identity = person(&caller)?;
    let TokenKind::Opaque(own) = &identity.token else {
        return Err(Problem::bad_request("a JWT cannot be revoked here: it is good until its exp"));
    };
    let scope: Scope = input::query(&request)?;
    let scope = match scope.scope.as_deref() {
        None | Some("local") => Ends::This,
        Some("global") => Ends::All,
        Some("others") => Ends::Others,
        Some(_) => return Err(Problem::bad_request("scope must be local, global or others")),
    };
    // Another node may just have ended it.
    let Some(session) = state.sessions.validate_session(own).await? else { return Ok(done()) };
    forget_refresh_tokens(&state, &session, scope).await?;
    let of_this = |token: &str, other: &Session| {
        token == own || (session.login.is_some() && other.login == session.login)
    };
    match scope {
        Ends::This if session.login.is_none() => {
            end_session(&state, own).await?;
        }
        _ => {
            let which = |token: &str, other: &Session| match scope {
                Ends::All => true,
                Ends::This => of_this(token, other),
                Ends::Others => !of_this(token, other),
            };
            end_sessions(&state, &session.user_id, which).await?;
        }
    }
    Ok(done())
}

/// What a sign-out ends.
#[derive(Clone, Copy)]
enum Ends {
    This,
    All,
    Others,
}

/// First of all, since they would make new sessions.
async fn forget_refresh_tokens(state: &AppState, session: &Session, ends: Ends) -> Result<(), Problem> {
    let Some(accounts) = &state.accounts else { return Ok(()) };
    let user = &session.user_id;
    match (ends, session.login.as_deref()) {
        (Ends::All, _) => accounts.forget(user, None, false).await?,
        (Ends::This, Some(login)) => accounts.forget(user, Some(login), false).await?,
        (Ends::Others, Some(login)) => accounts.forget(user, Some(login), true).await?,
        // A session that a backend made has no refresh token.
        (Ends::Others, None) => accounts.forget(user, None, false).await?,
        (Ends::This, None) => {}
    }
    Ok(())
}

/// The user behind a call about oneself. The service key is nobody.
fn person(caller: &Caller) -> Result<&Identity, Problem> {
    match caller {
        Caller::User(identity) => Ok(identity),
        _ => Err(Problem::from(Refusal::NoSession)),
    }
}

fn accounts<'a>(state: &'a AppState, without: &'static str) -> Result<&'a Accounts, Problem> {
    state.accounts.as_ref().ok_or_else(|| Problem::new(NO_ACCOUNTS, without))
}

impl From<AccountError> for Problem {
    fn from(error: AccountError) -> Self {
        let text = error.to_string();
        match error {
            AccountError::BadEmail => Self::bad_request(text).coded("validation_failed"),
            AccountError::BadPassword => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, text).coded("weak_password")
            }
            AccountError::Taken => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, text).coded("user_already_exists")
            }
            AccountError::Wrong => Self::bad_request(text).coded("invalid_credentials"),
            AccountError::BadRefresh => Self::bad_request(text).coded("refresh_token_not_found"),
            AccountError::Hash(HashError::Busy) => Self::busy(text).coded("over_request_rate_limit"),
            AccountError::Hash(HashError::Failed) | AccountError::NoRandomness => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, text)
            }
            AccountError::Database(error) => error.into(),
        }
    }
}

impl From<DatabaseError> for Problem {
    fn from(error: DatabaseError) -> Self {
        match error {
            DatabaseError::Away => Self::busy(error.to_string()),
            DatabaseError::Taken | DatabaseError::Orphan => {
                Self::new(StatusCode::CONFLICT, error.to_string())
            }
            DatabaseError::Refused(_) => {
                tracing::warn!(%error, "the database refused a call");
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the database refused")
            }
        }
    }
}
