//! Errors as problem documents (RFC 9457): the one shape in which a call fails.

use std::borrow::Cow;
use std::fmt;

use actix_web::http::StatusCode;
use actix_web::http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, UPGRADE, WWW_AUTHENTICATE,
};
use actix_web::{HttpResponse, ResponseError};
use actix_web_actors::ws::HandshakeError;

use crate::admission::Refusal;
use crate::cluster::Away;
use crate::json;
use crate::rate_limit::Allowances;

/// Seconds after which a call that failed for want of Redis is worth trying again.
const REDIS_RETRY: u64 = 2;
/// Seconds after which a full node is worth trying again.
const BUSY_RETRY: u64 = 5;
/// Seconds after which a node that goes away is gone, or the one after it there.
const GOING_RETRY: u64 = 1;

/// Why a call failed, as its caller is told. `type` is `about:blank`: the status says it all.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    detail: Cow<'static, str>,
    retry_after: Option<u64>,
    header: Option<Box<(HeaderName, HeaderValue)>>,
    allowances: Option<Box<Allowances>>,
    /// What Supabase's client calls it, where that knows it.
    code: Option<&'static str>,
    /// The connection is not to be used again.
    close: bool,
}

impl Problem {
    /// A problem with `status`; `detail` says what is wrong in this very call.
    pub fn new(status: StatusCode, detail: impl Into<Cow<'static, str>>) -> Self {
        let header = (status == StatusCode::UNAUTHORIZED)
            .then(|| Box::new((WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))));
        Self {
            status,
            detail: detail.into(),
            retry_after: None,
            header,
            allowances: None,
            code: None,
            close: false,
        }
    }

    /// The same, told to clients of Supabase's accounts as well: they read `error_code` and `msg`.
    #[must_use]
    pub fn coded(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    /// The caller wrote something that cannot be meant.
    pub fn bad_request(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    /// The path speaks another protocol than the caller.
    pub fn upgrade_required(detail: impl Into<Cow<'static, str>>) -> Self {
        let header = Some(Box::new((UPGRADE, HeaderValue::from_static("websocket"))));
        Self { header, ..Self::new(StatusCode::UPGRADE_REQUIRED, detail) }
    }

    /// The node is on its way out: there is another at the same address, or will be.
    pub fn going_away() -> Self {
        let problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, "this node is going away");
        Self { retry_after: Some(GOING_RETRY), close: true, ..problem }
    }

    /// There is no room just now.
    pub fn busy(detail: impl Into<Cow<'static, str>>) -> Self {
        Self { retry_after: Some(BUSY_RETRY), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, detail) }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.status, self.detail)
    }
}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        self.status
    }

    fn error_response(&self) -> HttpResponse {
        let mut body = Vec::with_capacity(128);
        body.extend_from_slice(b"{\"type\":\"about:blank\",\"title\":");
        json::string(&mut body, self.status.canonical_reason().unwrap_or("Error"));
        body.extend_from_slice(b",\"status\":");
        json::number(&mut body, self.status.as_u16());
        body.extend_from_slice(b",\"detail\":");
        json::string(&mut body, &self.detail);
        if let Some(code) = self.code {
            body.extend_from_slice(b",\"error_code\":");
            json::string(&mut body, code);
            body.extend_from_slice(b",\"msg\":");
            json::string(&mut body, &self.detail);
        }
        body.push(b'}');
        let mut response = HttpResponse::build(self.status);
        response
            .insert_header((CONTENT_TYPE, HeaderValue::from_static("application/problem+json")))
            .insert_header((CACHE_CONTROL, HeaderValue::from_static("no-store")));
        if let Some(seconds) = self.retry_after {
            response.insert_header((RETRY_AFTER, seconds));
        }
        if let Some(header) = &self.header {
            response.insert_header((**header).clone());
        }
        if self.close {
            response.force_close();
        }
        let mut response = response.body(body);
        if let Some(allowances) = &self.allowances {
            allowances.write(response.headers_mut());
        }
        response
    }
}

impl From<Away> for Problem {
    fn from(_: Away) -> Self {
        Self { retry_after: Some(REDIS_RETRY), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "Redis is away") }
    }
}

impl From<HandshakeError> for Problem {
    fn from(error: HandshakeError) -> Self {
        match error {
            HandshakeError::UnsupportedVersion => {
                let version = HeaderName::from_static("sec-websocket-version");
                let header = Some(Box::new((version, HeaderValue::from_static("13"))));
                Self {
                    header,
                    ..Self::new(StatusCode::UPGRADE_REQUIRED, "only WebSocket version 13 is spoken")
                }
            }
            other => Self::bad_request(other.to_string()),
        }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let problem = Self::new(refusal.status(), refusal.to_string());
        let allowances = match refusal {
            Refusal::AddressRate(over) => Some(Allowances { address: Some(over), user: None }),
            Refusal::UserRate(over) => Some(Allowances { address: None, user: Some(over) }),
            _ => None,
        };
        let code = matches!(refusal, Refusal::SignInRate(_)).then_some("over_request_rate_limit");
        Self { code, retry_after: refusal.retry_after(), allowances: allowances.map(Box::new), ..problem }
    }
}

impl ResponseError for Refusal {
    fn status_code(&self) -> StatusCode {
        self.status()
    }

    fn error_response(&self) -> HttpResponse {
        Problem::from(*self).error_response()
    }
}

/// Answers a path that leads nowhere.
pub async fn not_found() -> HttpResponse {
    Problem::new(StatusCode::NOT_FOUND, "there is nothing at this path").error_response()
}

/// Answers a method that a path does not have; `allow` lists those it has.
pub async fn wrong_method(allow: &'static str) -> HttpResponse {
    let problem = Problem::new(StatusCode::METHOD_NOT_ALLOWED, format!("only {allow} is allowed here"));
    Problem { header: Some(Box::new((ALLOW, HeaderValue::from_static(allow)))), ..problem }.error_response()
}
