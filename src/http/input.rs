//! What a call says: names in its path, pages in its query, JSON in its body.

use std::borrow::Cow;
use std::future::Future;
use std::pin::Pin;

use actix_web::dev::Payload;
use actix_web::http::StatusCode;
use actix_web::web::{Bytes, Query};
use actix_web::{FromRequest, HttpRequest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use percent_encoding::percent_decode_str;
use serde::de::DeserializeOwned;

use super::Problem;
use crate::config::Limits;
use crate::dialects::check_user;

/// Bytes in the body of a call.
pub const MAX_BODY: usize = 256 * 1024;
/// Items on a page unless the caller says otherwise, and at most.
const PAGE: usize = 100;
const MAX_PAGE: usize = 1_000;

/// The channel named by the path `/v1/channels/{channel}/…`.
pub fn channel<'a>(request: &'a HttpRequest, limits: &Limits) -> Result<Cow<'a, str>, Problem> {
    let name = segment(request, 3)?;
    check_channel(&name, limits)?;
    Ok(name)
}

/// Whether a channel could be called `name`.
pub fn check_channel(name: &str, limits: &Limits) -> Result<(), Problem> {
    if name.is_empty() || name.len() > limits.max_channel_bytes {
        let most = limits.max_channel_bytes;
        return Err(Problem::bad_request(format!("channel name must have 1 to {most} bytes")));
    }
    Ok(())
}

/// The user named by the path `/v1/users/{user}/…`.
pub fn user<'a>(request: &'a HttpRequest, limits: &Limits) -> Result<Cow<'a, str>, Problem> {
    let name = segment(request, 3)?;
    check_user(&name, limits).map_err(|reject| Problem::bad_request(reject.to_string()))?;
    Ok(name)
}

/// Part `index` of the path, counted from the empty one before the first slash, percent-decoded.
///
/// It is read from the path as it came: the router's own decoding leaves `%2F`, which a name may
/// contain, apart, but replaces bytes that are no UTF-8 instead of refusing them.
pub fn segment(request: &HttpRequest, index: usize) -> Result<Cow<'_, str>, Problem> {
    let raw = request.uri().path().split('/').nth(index).unwrap_or_default();
    decoded(raw).ok_or_else(|| Problem::bad_request("a name in the path is not percent-encoded UTF-8"))
}

/// What is percent-encoded in `raw`, unless it is not: a `%` stands before two hexadecimal digits only.
pub(super) fn decoded(raw: &str) -> Option<Cow<'_, str>> {
    let is_escape = |rest: &[u8]| rest.len() >= 2 && rest[..2].iter().all(u8::is_ascii_hexdigit);
    let mut escapes = raw.bytes().enumerate().filter(|(_, byte)| *byte == b'%');
    if !escapes.all(|(at, _)| is_escape(&raw.as_bytes()[at + 1..])) {
        return None;
    }
    percent_decode_str(raw).decode_utf8().ok()
}

/// The query as `T`.
pub fn query<T: DeserializeOwned>(request: &HttpRequest) -> Result<T, Problem> {
    Query::<T>::from_query(request.query_string())
        .map(Query::into_inner)
        .map_err(|error| Problem::bad_request(format!("query: {error}")))
}

/// Which part of a sorted list is asked for.
#[derive(Debug, Default, serde::Deserialize)]
pub struct Page {
    limit: Option<usize>,
    cursor: Option<String>,
    pub prefix: Option<String>,
}

impl Page {
    /// How many items the page may have.
    pub fn limit(&self) -> Result<usize, Problem> {
        match self.limit.unwrap_or(PAGE) {
            limit @ 1..=MAX_PAGE => Ok(limit),
            _ => Err(Problem::bad_request(format!("limit must be from 1 to {MAX_PAGE}"))),
        }
    }

    /// The item after which the page begins.
    pub fn after(&self) -> Result<Option<String>, Problem> {
        let Some(cursor) = &self.cursor else { return Ok(None) };
        let after = uncursor(cursor);
        let wrong = || Problem::bad_request("cursor is not one that an earlier page gave as `next`");
        after.map(Some).ok_or_else(wrong)
    }
}

/// The cursor of the page that begins after `item`.
pub fn cursor(item: &str) -> String {
    URL_SAFE_NO_PAD.encode(item)
}

/// The item that a cursor names.
pub(super) fn uncursor(cursor: &str) -> Option<String> {
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(cursor).ok()?).ok()?;
    (!text.is_empty()).then_some(text)
}

/// The body of a call, read whole. What it says is looked at by [`Body::json`], after the caller
/// has passed the guard, so that a stranger learns nothing from it.
pub struct Body(Bytes);

impl Body {
    /// The body as it came.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// The body as JSON, whatever its content type; an empty one is `{}`.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        let bytes = if self.0.trim_ascii().is_empty() { b"{}" } else { &self.0[..] };
        serde_json::from_slice(bytes).map_err(|error| Problem::bad_request(format!("body: {error}")))
    }
}

impl FromRequest for Body {
    type Error = Problem;
    type Future = Pin<Box<dyn Future<Output = Result<Self, Problem>>>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let reading = Bytes::from_request(request, payload);
        Box::pin(async move {
            reading.await.map(Self).map_err(|error| match error.as_response_error().status_code() {
                StatusCode::PAYLOAD_TOO_LARGE => Problem::new(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    format!("the body must not be larger than {MAX_BODY} bytes"),
                ),
                _ => Problem::bad_request("the body could not be read"),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_paths_are_percent_encoded() {
        assert_eq!(decoded("a%2Fb%C3%A9%25").as_deref(), Some("a/bé%"));
        assert_eq!(decoded("plain").as_deref(), Some("plain"));
        for wrong in ["100%", "%", "%2", "%zz", "a%2", "%%41", "%FF"] {
            assert_eq!(decoded(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn pages_have_bounds() {
        let page = |limit, cursor: Option<&str>| Page { limit, cursor: cursor.map(Into::into), prefix: None };
        assert_eq!(page(None, None).limit().ok(), Some(100));
        assert_eq!(page(Some(1_000), None).limit().ok(), Some(1_000));
        assert!(page(Some(0), None).limit().is_err() && page(Some(1_001), None).limit().is_err());
        assert_eq!(page(None, Some(&cursor("ünï/1"))).after().ok(), Some(Some("ünï/1".to_owned())));
        for wrong in ["", "!", "_w", "%%"] {
            assert!(page(None, Some(wrong)).after().is_err(), "{wrong}");
        }
    }
}
