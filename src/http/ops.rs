//! For operators: alive, ready, and what is counted.

use std::sync::atomic::Ordering;

use actix_web::http::StatusCode;
use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use actix_web::{HttpRequest, HttpResponse, web};

use super::{AppState, Problem, answer};
use crate::cluster::RedisState;
use crate::health::{self, Standing};
use crate::json;
use crate::lifecycle::Stage;
use crate::metrics::Count;

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
    /// Why Redis cannot be reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    node: String,
    /// Writes that wait for Redis; none without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    writes_waiting: Option<usize>,
    /// Whether users notice anything, in a sentence.
    users_affected: String,
    problems: Vec<Wrong>,
}

/// One thing that is wrong.
#[derive(serde::Serialize)]
struct Wrong {
    what: &'static str,
    since: Option<String>,
    effect: &'static str,
    users_affected: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    detail: String,
    times: u64,
}

impl From<Standing> for Wrong {
    fn from(Standing { what, since, detail, times }: Standing) -> Self {
        let (effect, users_affected) = (what.effect(), what.affects_users());
        Self { what: what.name(), since: json::rfc3339(since), effect, users_affected, detail, times }
    }
}

/// `GET /readyz`: whether this node should be sent clients. One that lost Redis should: it goes on
/// serving those it has, and says that it is degraded.
pub async fn readyz(state: web::Data<AppState>) -> HttpResponse {
    let (code, status) = match state.lifecycle.stage() {
        Stage::Starting => (StatusCode::SERVICE_UNAVAILABLE, "starting"),
        Stage::Ready => (StatusCode::OK, "ready"),
        Stage::Draining | Stage::Stopped => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
    };
    let redis = match state.cluster.state() {
        RedisState::Off => "off",
        RedisState::Up => "up",
        RedisState::Down => "down",
    };
    let degraded = redis == "down";
    let problem = state.pool.as_ref().filter(|_| degraded).and_then(|pool| pool.servers().problem());
    let standing = state.metrics.health.standing();
    let ready = Ready {
        status,
        redis,
        degraded,
        problem,
        node: state.node.to_string(),
        writes_waiting: (redis != "off").then(|| state.cluster.waiting_writes()),
        users_affected: health::users_affected(&standing),
        problems: standing.into_iter().map(Wrong::from).collect(),
    };
    let mut answer = answer::value(code, &ready);
    if code != StatusCode::OK {
        answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    answer
}

/// `GET /metrics`: open where only this machine can ask, else for holders of the service key.
pub async fn metrics(request: HttpRequest, state: web::Data<AppState>) -> Result<HttpResponse, Problem> {
    if !state.config.loopback_only {
        let caller = state.admission.caller(&request).await?;
        state.admission.service(&caller)?;
    }
    look_around(&state).await;
    Ok(HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, OPEN_METRICS))
        .insert_header((CACHE_CONTROL, HeaderValue::from_static("no-store")))
        .body(state.metrics.render()))
}

/// Takes over what is counted elsewhere.
async fn look_around(state: &AppState) {
    let metrics = &state.metrics;
    let set = |metric: &Count, value: u64| metric.inner().store(value, Ordering::Relaxed);
    set(&metrics.rate_checks_degraded, state.admission.limiter.degraded());
    metrics.redis_writes_waiting.set(state.cluster.waiting_writes() as i64);
    if let Some(pool) = &state.pool {
        // Of a Redis that is away the last that was known stays, and nobody waits for it.
        if state.cluster.state() == RedisState::Up
            && let Ok((used, may)) = pool.memory().await
        {
            metrics.redis_memory_used_bytes.set(used.try_into().unwrap_or(i64::MAX));
            metrics.redis_memory_max_bytes.set(may.try_into().unwrap_or(i64::MAX));
        }
        let pool = pool.status();
        metrics.redis_pool_size.set(pool.size as i64);
        metrics.redis_pool_available.set(pool.available as i64);
        metrics.redis_pool_waiting.set(pool.waiting as i64);
        metrics.redis_pool_max.set(pool.max as i64);
    }
}
