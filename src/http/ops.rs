//! For operators: alive, ready, and what is counted.

use actix_web::http::StatusCode;
use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use actix_web::{HttpRequest, HttpResponse, web};

use super::{AppState, Problem, answer};
use crate::cluster::RedisState;
use crate::lifecycle::Stage;

/// The form in which `Metrics::render` writes.
const OPEN_METRICS: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

/// `GET /healthz`: the process answers.
pub async fn healthz() -> HttpResponse {
    answer::json(StatusCode::OK, b"{\"status\":\"ok\"}".to_vec())
}

/// What `GET /readyz` says.
#[derive(serde::Serialize)]
struct Ready {
    status: &'static str,
    redis: &'static str,
    degraded: bool,
    node: String,
}

/// `GET /readyz`: whether this node should be sent clients. One that lost Redis should: it goes on
/// serving those it has, and says that it is degraded.
pub async fn readyz(state: web::Data<AppState>) -> HttpResponse {
    let (code, status) = match state.lifecycle.stage() {
        Stage::Starting => (StatusCode::SERVICE_UNAVAILABLE, "starting"),
        Stage::Ready => (StatusCode::OK, "ready"),
        Stage::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
    };
    let redis = match state.cluster.state() {
        RedisState::Off => "off",
        RedisState::Up => "up",
        RedisState::Down => "down",
    };
    let ready = Ready { status, redis, degraded: redis == "down", node: state.node.to_string() };
    answer::value(code, &ready)
}

/// `GET /metrics`: open where only this machine can ask, else for holders of the service key.
pub async fn metrics(request: HttpRequest, state: web::Data<AppState>) -> Result<HttpResponse, Problem> {
    if !state.config.loopback_only {
        let caller = state.admission.caller(&request).await?;
        state.admission.service(&caller)?;
    }
    Ok(HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, OPEN_METRICS))
        .insert_header((CACHE_CONTROL, HeaderValue::from_static("no-store")))
        .body(state.metrics.render()))
}
