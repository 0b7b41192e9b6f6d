//! Headers and queries of strangers: addresses and tokens.

use actix_web::http::header::HeaderValue;

use super::*;
use crate::fuzz::{damaged, damaged_text, fuzz};

const HOPS: &[&[u8]] = &[
    b"203.0.113.7, 10.0.0.1",
    b"[2001:db8::1]:4711, 10.0.0.1:80",
    b"::ffff:203.0.113.7,10.0.0.2 , 10.0.0.1",
    b"unknown, _hidden, 10.0.0.1",
];
const PIECES: &[&[u8]] =
    &[b",", b" ", b":", b"[", b"]", b"::", b"10.0.0.1", b"1", b"256", b"%eth0", b"\xff", b"\t", b"10.0.0.1,"];

/// Whoever is not a proxy of ours is who it is; behind one, nobody can put words into the proxy's mouth:
/// the nearest hop that is no proxy counts, whatever stands left of it.
#[test]
fn forwarded_for() {
    let trusted: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap()];
    let stranger: SocketAddr = "198.51.100.1:5".parse().unwrap();
    let proxy: SocketAddr = "10.9.9.9:5".parse().unwrap();
    fuzz(&damaged(HOPS, PIECES), |bytes| {
        let Ok(value) = HeaderValue::from_bytes(&bytes) else { return };
        let mut headers = HeaderMap::new();
        headers.insert("x-forwarded-for".parse().unwrap(), value.clone());
        assert_eq!(client_address(Some(stranger), &headers, &trusted), stranger.ip());
        let _ = client_address(Some(proxy), &headers, &trusted);
        let Ok(text) = value.to_str() else { return };
        let honest = HeaderValue::from_str(&format!("{text}, 192.0.2.1, 10.0.0.1")).unwrap();
        headers.insert("x-forwarded-for".parse().unwrap(), honest);
        assert_eq!(client_address(Some(proxy), &headers, &trusted), "192.0.2.1".parse::<IpAddr>().unwrap());
    });
}

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
