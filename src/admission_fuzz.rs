//! Headers and queries of strangers: tokens.

use actix_web::http::header::HeaderValue;

use super::*;
use crate::fuzz::{damaged_text, fuzz};

#[test]
fn tokens_wherever_they_stand() {
    const PROTOCOLS: &[&[u8]] = &[
        b"phoenix, base64url.bearer.phx.c2VjcmV0LXRva2Vu",
        b"base64url.bearer.phx.c2VjcmV0LXRva2Vu==",
        b"base64url.bearer.phx.-_-_",
    ];
    let tokens_of = &[
        b"," as &[u8],
        b" ",
        b"=",
        b"base64url.bearer.phx.",
        b"phoenix",
        b"%",
        b"\x80",
        b"AAAA",
        b"-",
        b"/",
    ];
    fuzz(&damaged_text(PROTOCOLS, tokens_of), |text| {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("sec-websocket-protocol", text.clone()),
            ("authorization", format!("Bearer {text}")),
            ("cookie", format!("{COOKIE_NAME}={text}; a=b")),
        ] {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(name.parse().unwrap(), value);
            }
        }
        let query = format!("token={text}&apikey={text}");
        let found = tokens(&query, &headers, true);
        assert!(found.iter().all(|token| !token.text.is_empty()));
        let mut texts: Vec<&str> = found.iter().map(|token| &*token.text).collect();
        texts.sort_unstable();
        texts.dedup();
        assert_eq!(texts.len(), found.len(), "none is there twice");
        let _ = offers_phoenix(&headers);
    });
}

/// A token written as clients write it is found as it was, whatever it is.
#[test]
fn a_token_in_a_subprotocol_is_read_as_it_was_written() {
    fuzz(&proptest::prelude::any::<String>(), |token| {
        for encoded in [STANDARD_NO_PAD.encode(&token), URL_SAFE_NO_PAD.encode(&token)] {
            let protocol = format!("{BEARER_PROTOCOL}{encoded}");
            assert_eq!(protocol_token(&protocol), Some(token.clone()));
        }
    });
}
