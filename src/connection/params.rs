//! What a client says in the query when it connects: its protocol version, and who it wants to be.

use std::borrow::Cow;
use std::sync::Arc;

use percent_encoding::percent_decode_str;
use serde_json::value::RawValue;

use crate::config::{Limits, Secret};
use crate::dialects::{WireFormat, meta_from, resume_from, user_from};
use crate::reject::Reject;

/// The parameters of a connection that Rollcall reads.
#[derive(Debug, PartialEq, Eq)]
pub struct ConnectParams {
    /// The form announced by `vsn`. Messages are answered in the form in which they come all the same.
    pub format: WireFormat,
    /// `user_id`, where it is one.
    pub user: Option<Arc<str>>,
    /// `meta`, as JSON or as `meta[name]=value` pairs.
    pub meta: Option<Arc<str>>,
    /// `resume`. A wrong one refuses the joins that have no other: who relies on it should know.
    pub resume: Result<Option<Secret>, Reject>,
}

/// `vsn` names a version that does not exist.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown protocol version; known are 1.0.0 and 2.0.0")]
pub struct UnknownVersion;

impl ConnectParams {
    /// Those of a client that says nothing of the kind when it connects.
    pub fn none() -> Self {
        Self { format: WireFormat::PhoenixV1, user: None, meta: None, resume: Ok(None) }
    }

    /// Reads the query of the connect request. A claim that is wrong counts as none: whoever
    /// connects with it can still name itself when it joins.
    ///
    /// # Errors
    /// [`UnknownVersion`].
    pub fn read(query: &str, limits: &Limits) -> Result<Self, UnknownVersion> {
        let mut params = Self::none();
        let mut fields = serde_json::Map::new();
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (decoded(name), decoded(value));
            match &*name {
                "vsn" => params.format = version(&value)?,
                "user_id" => params.user = user_from(Some(&json_string(&value)), limits).ok().flatten(),
                "resume" => params.resume = resume_from(Some(&json_string(&value))),
                "meta" => {
                    let raw = RawValue::from_string(value.into_owned()).ok();
                    params.meta = raw.and_then(|raw| meta_from(Some(&raw), limits).ok().flatten());
                }
                _ => {
                    if let Some(field) = name.strip_prefix("meta[").and_then(|n| n.strip_suffix(']')) {
                        fields.insert(field.to_owned(), value.into_owned().into());
                    }
                }
            }
        }
        if params.meta.is_none() && !fields.is_empty() {
            let raw = serde_json::value::to_raw_value(&fields).ok();
            params.meta = raw.and_then(|raw| meta_from(Some(&raw), limits).ok().flatten());
        }
        Ok(params)
    }
}

fn version(text: &str) -> Result<WireFormat, UnknownVersion> {
    if text.starts_with("1.0.") {
        Ok(WireFormat::PhoenixV1)
    } else if text.starts_with("2.0.") {
        Ok(WireFormat::PhoenixV2)
    } else {
        Err(UnknownVersion)
    }
}

/// A query's text: `+` is a space, the rest is percent-encoded.
fn decoded(text: &str) -> Cow<'_, str> {
    if !text.contains(['+', '%']) {
        return text.into();
    }
    percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned().into()
}

fn json_string(text: &str) -> Box<RawValue> {
    // A string always has a JSON form; null, which claims nothing, stands in for the impossible.
    serde_json::value::to_raw_value(text).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn read(query: &str) -> Result<ConnectParams, UnknownVersion> {
        ConnectParams::read(query, &crate::config::Args::parse_from(["rollcall"]).limits)
    }

    #[test]
    fn versions_are_told_apart_and_a_missing_one_is_the_first() {
        assert_eq!(read("").unwrap().format, WireFormat::PhoenixV1);
        assert_eq!(read("token=x&vsn=2.0.0").unwrap().format, WireFormat::PhoenixV2);
        assert_eq!(read("vsn=9.9.9"), Err(UnknownVersion));
    }

    #[test]
    fn claims_come_as_clients_encode_them() {
        let read_ok = |query| read(query).unwrap();
        assert_eq!(read_ok("user_id=ada+l%C3%A9").user, Some("ada lé".into()));
        assert_eq!(read_ok("user_id=__proto__").user, None);
        assert_eq!(read_ok("meta=%7B%22a%22%3A1%7D").meta, Some(r#"{"a":1}"#.into()));
        assert_eq!(read_ok("meta%5Bname%5D=Ada&x%5By%5D=1").meta, Some(r#"{"name":"Ada"}"#.into()));
        assert_eq!(read_ok("meta=nonsense&user_id=%FF").meta, None);
        assert_eq!(read_ok("resume=12345678").resume, Ok(Some(Secret::new("12345678"))));
        assert_eq!(read_ok("resume=short").resume, Err(Reject::ResumeInvalid));
    }
}
