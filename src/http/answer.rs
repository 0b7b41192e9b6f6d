//! Answers: JSON, and the headers that all of them have.

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};

/// An answer with a JSON body that is never kept by a cache.
pub fn json(status: StatusCode, body: Vec<u8>) -> HttpResponse {
    HttpResponse::build(status)
        .insert_header((CONTENT_TYPE, HeaderValue::from_static("application/json")))
        .insert_header((CACHE_CONTROL, HeaderValue::from_static("no-store")))
        .body(body)
}

/// `value` as such an answer.
pub fn value(status: StatusCode, value: &impl serde::Serialize) -> HttpResponse {
    // What is serialised here has string keys and finite numbers only: it cannot fail.
    json(status, serde_json::to_vec(value).unwrap_or_default())
}
