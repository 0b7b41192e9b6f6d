//! Settings over HTTP, for trusted backends: of the project, and of single channels.

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Deserialize as _;

use super::guard::Manager;
use super::input::{self, Body};
use super::sessions::done;
use super::{AppState, Problem, answer};
use crate::settings::{Rules, Settings, SettingsError};

/// `GET /v1/settings`: of the project, and of the channels that have their own.
pub async fn all(_: Manager, state: web::Data<AppState>) -> Result<HttpResponse, Problem> {
    Ok(answer::value(StatusCode::OK, &*settings(&state)?.all().await?))
}

/// `PUT /v1/settings`: of the project, whole.
pub async fn set_project(
    _: Manager,
    body: Body,
    state: web::Data<AppState>,
) -> Result<HttpResponse, Problem> {
    set(&state, None, Some(rules(&body)?)).await
}

/// `GET /v1/channels/{channel}/settings`: what holds for it.
pub async fn of_channel(
    _: Manager,
    request: HttpRequest,
    state: web::Data<AppState>,
) -> Result<HttpResponse, Problem> {
    let channel = input::channel(&request, &state.config.limits)?;
    let all = settings(&state)?.all().await?;
    let (own, effective) = (all.channels.get(&*channel).copied().unwrap_or_default(), all.of(&channel));
    let answer = serde_json::json!({"channel": channel, "settings": own, "effective": effective});
    Ok(answer::value(StatusCode::OK, &answer))
}

/// `PUT /v1/channels/{channel}/settings`: its own, whole.
pub async fn set_channel(
    _: Manager,
    request: HttpRequest,
    body: Body,
    state: web::Data<AppState>,
) -> Result<HttpResponse, Problem> {
    let channel = input::channel(&request, &state.config.limits)?;
    set(&state, Some(&channel), Some(rules(&body)?)).await
}

/// `DELETE /v1/channels/{channel}/settings`: it has none of its own any more.
pub async fn clear_channel(
    _: Manager,
    request: HttpRequest,
    state: web::Data<AppState>,
) -> Result<HttpResponse, Problem> {
    let channel = input::channel(&request, &state.config.limits)?;
    set(&state, Some(&channel), None).await
}

/// The rules in a body: an object, and not a list of its values, which would be read as well.
fn rules(body: &Body) -> Result<Rules, Problem> {
    let fields: serde_json::Map<String, serde_json::Value> = body.json()?;
    Rules::deserialize(serde_json::Value::Object(fields))
        .map_err(|error| Problem::bad_request(format!("body: {error}")))
}

async fn set(state: &AppState, channel: Option<&str>, rules: Option<Rules>) -> Result<HttpResponse, Problem> {
    settings(state)?.set(channel, rules).await?;
    Ok(done())
}

fn settings(state: &AppState) -> Result<&Settings, Problem> {
    state
        .settings
        .as_ref()
        .ok_or_else(|| Problem::new(StatusCode::NOT_IMPLEMENTED, "settings need DATABASE_URL"))
}

impl From<SettingsError> for Problem {
    fn from(error: SettingsError) -> Self {
        match error {
            SettingsError::Database(error) => error.into(),
            SettingsError::TooMany => Self::new(StatusCode::CONFLICT, error.to_string()),
            SettingsError::Untold(_) | SettingsError::Unknown(_) => Self::busy(error.to_string()),
        }
    }
}
