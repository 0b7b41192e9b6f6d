//! What clients claim of themselves, a user id, a meta and a resume key: checked in shape and size.

use std::sync::Arc;

use indexmap::IndexMap;
use serde_json::value::RawValue;

use crate::config::{Limits, Secret};
use crate::reject::Reject;

/// Ids that browsers' objects or client libraries treat in their own way, so that a member called
/// so would vanish or break the client (PROTOCOLS of the clients: `ids` throws in realtime-js).
const RESERVED_USERS: [&str; 4] = ["__proto__", "constructor", "prototype", "ids"];

/// Fields of a meta that the dialects add themselves.
const RESERVED_FIELDS: [&str; 3] = ["phx_ref", "phx_ref_prev", "presence_ref"];

/// The user id that `raw`, a JSON value, stands for: a non-empty string, or a number as its text.
/// Null or absent is none.
///
/// # Errors
/// [`Reject::UserInvalid`], [`Reject::UserTooLong`] or [`Reject::UserReserved`].
pub fn user_from(raw: Option<&RawValue>, limits: &Limits) -> Result<Option<Arc<str>>, Reject> {
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Claim<'a> {
        Text(#[serde(borrow)] std::borrow::Cow<'a, str>),
        Whole(i64),
        Large(u64),
        Real(f64),
    }
    let Some(raw) = raw.filter(|r| r.get() != "null") else { return Ok(None) };
    let text = match serde_json::from_str::<Claim<'_>>(raw.get()) {
        Ok(Claim::Text(text)) => text.into_owned(),
        Ok(Claim::Whole(n)) => n.to_string(),
        Ok(Claim::Large(n)) => n.to_string(),
        Ok(Claim::Real(n)) => n.to_string(),
        Err(_) => return Err(Reject::UserInvalid),
    };
    check_user(&text, limits)?;
    Ok(Some(text.into()))
}

/// Checks a user id that came as text.
///
/// # Errors
/// As [`user_from`].
pub fn check_user(text: &str, limits: &Limits) -> Result<(), Reject> {
    if text.is_empty() {
        return Err(Reject::UserInvalid);
    }
    // The bytes bound the characters from above, so that a short id is never counted out.
    if text.len() > limits.max_user_chars && text.chars().count() > limits.max_user_chars {
        return Err(Reject::UserTooLong(limits.max_user_chars));
    }
    if RESERVED_USERS.contains(&text) {
        return Err(Reject::UserReserved);
    }
    Ok(())
}

/// The meta that `raw`, a JSON value, stands for: an object, as compact text without the fields that
/// dialects add. Null or absent is none.
///
/// # Errors
/// [`Reject::MetaNotObject`] or [`Reject::MetaTooLarge`].
pub fn meta_from(raw: Option<&RawValue>, limits: &Limits) -> Result<Option<Arc<str>>, Reject> {
    let Some(raw) = raw.filter(|r| r.get() != "null") else { return Ok(None) };
    if raw.get().len() > limits.max_meta_bytes {
        return Err(Reject::MetaTooLarge(limits.max_meta_bytes));
    }
    let mut fields: IndexMap<String, &RawValue> =
        serde_json::from_str(raw.get()).map_err(|_| Reject::MetaNotObject)?;
    fields.retain(|name, _| !RESERVED_FIELDS.contains(&name.as_str()));
    let text = serde_json::to_string(&fields).map_err(|_| Reject::MetaNotObject)?;
    Ok(Some(text.into()))
}

/// How long a resume key may be, in bytes: too short, it could be guessed.
const RESUME_BYTES: std::ops::RangeInclusive<usize> = 8..=128;

/// The resume key that `raw`, a JSON value, stands for. Null or absent is none.
///
/// # Errors
/// [`Reject::ResumeInvalid`].
pub fn resume_from(raw: Option<&RawValue>) -> Result<Option<Secret>, Reject> {
    let Some(raw) = raw.filter(|r| r.get() != "null") else { return Ok(None) };
    let key: String = serde_json::from_str(raw.get()).map_err(|_| Reject::ResumeInvalid)?;
    if RESUME_BYTES.contains(&key.len()) { Ok(Some(Secret::new(key))) } else { Err(Reject::ResumeInvalid) }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn limits() -> Limits {
        crate::config::Args::parse_from(["rollcall"]).limits
    }

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).unwrap()
    }

    fn user(text: &str) -> Result<Option<Arc<str>>, Reject> {
        user_from(Some(&raw(text)), &limits())
    }

    fn meta(text: &str) -> Result<Option<Arc<str>>, Reject> {
        meta_from(Some(&raw(text)), &limits())
    }

    #[test]
    fn users_are_text_or_numbers() {
        assert_eq!(user(r#""ada""#), Ok(Some("ada".into())));
        assert_eq!(user(r#""a\u0062""#), Ok(Some("ab".into())));
        assert_eq!(user("7"), Ok(Some("7".into())));
        assert_eq!(user("18446744073709551615"), Ok(Some("18446744073709551615".into())));
        assert_eq!(user("1.5"), Ok(Some("1.5".into())));
        assert_eq!(user("null"), Ok(None));
        for wrong in [r#""""#, "true", "{}", "[1]"] {
            assert_eq!(user(wrong), Err(Reject::UserInvalid), "{wrong}");
        }
        assert_eq!(user(r#""__proto__""#), Err(Reject::UserReserved));
        let long = format!("\"{}\"", "é".repeat(129));
        assert_eq!(user(&long), Err(Reject::UserTooLong(128)));
        assert!(user(&format!("\"{}\"", "é".repeat(128))).is_ok());
    }

    #[test]
    fn metas_are_objects_without_the_dialects_fields() {
        assert_eq!(
            meta(r#"{ "name" : "Ada", "n":[1, 2] }"#),
            Ok(Some(r#"{"name":"Ada","n":[1, 2]}"#.into()))
        );
        assert_eq!(meta(r#"{"phx_ref":"x","a":1,"phx\u005fref_prev":2}"#), Ok(Some(r#"{"a":1}"#.into())));
        assert_eq!(meta("null"), Ok(None));
        for wrong in ["[]", "7", r#""text""#] {
            assert_eq!(meta(wrong), Err(Reject::MetaNotObject), "{wrong}");
        }
        let large = format!(r#"{{"a":"{}"}}"#, "x".repeat(4096));
        assert_eq!(meta(&large), Err(Reject::MetaTooLarge(4096)));
    }

    #[test]
    fn resume_keys_are_strings_of_8_to_128_bytes() {
        let resume = |text: &str| resume_from(Some(&raw(text)));
        assert_eq!(resume(r#""\u0061bcdefgh""#), Ok(Some(Secret::new("abcdefgh"))));
        assert_eq!((resume("null"), resume_from(None)), (Ok(None), Ok(None)));
        assert!(resume(&format!("\"{}\"", "é".repeat(64))).is_ok());
        for wrong in ["7", "{}", r#""seven b""#, &format!("\"{}\"", "é".repeat(65))] {
            assert_eq!(resume(wrong), Err(Reject::ResumeInvalid), "{wrong}");
        }
    }
}
