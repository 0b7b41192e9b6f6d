//! What comes in before and around messages: connect parameters, and pieces of messages.

use actix_http::ws::Item;
use bytes::Bytes;
use clap::Parser as _;
use proptest::collection::vec;
use proptest::prelude::*;

use super::assembly::{Assembly, Broken, Whole};
use super::params::ConnectParams;
use crate::dialects::check_user;
use crate::fuzz::{damaged_text, fuzz};

const QUERIES: &[&[u8]] = &[
    b"vsn=2.0.0&user_id=ada&meta=%7B%22name%22%3A%22Ada%22%7D",
    b"vsn=1.0.0&meta%5Bname%5D=Ada+L&meta%5Bn%5D=%C3%A9&token=x",
    b"apikey=anon&vsn=1.0.0&user_id=%20&meta=[]",
    b"vsn=2.0.0&resume=a-key-of-eight-bytes-or-more&user_id=ada",
    b"",
];
const TOKENS: &[&[u8]] = &[
    b"&",
    b"=",
    b"%",
    b"%00",
    b"%FF",
    b"%25",
    b"+",
    b"vsn=",
    b"2.0.0",
    b"user_id=",
    b"meta=",
    b"meta[",
    b"]",
    b"%22",
    b"{",
    b"}",
    b"__proto__",
    b"\xc3\xa9",
    b"%C3",
    b"#",
    b"?",
];

#[test]
fn connect_parameters() {
    let limits = crate::config::Args::parse_from(["rollcall"]).limits;
    fuzz(&damaged_text(QUERIES, TOKENS), |query| {
        let Ok(params) = ConnectParams::read(&query, &limits) else { return };
        assert!(params.user.is_none_or(|user| check_user(&user, &limits).is_ok()));
        if let Some(meta) = params.meta {
            assert!(meta.len() <= limits.max_meta_bytes);
            assert!(serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&meta).is_ok());
        }
    });
}

/// Pieces in any order: what is put together is what was sent since the first, and never over the limit.
#[test]
fn pieces_of_messages() {
    const LIMIT: usize = 40;
    let pieces = vec((0..4u8, vec(any::<u8>(), 0..20)), 0..40);
    fuzz(&pieces, |pieces| {
        let (mut assembly, mut begun) = (Assembly::default(), None::<Vec<u8>>);
        for (kind, piece) in pieces {
            let data = Bytes::from(piece.clone());
            let item = match kind {
                0 => Item::FirstText(data),
                1 => Item::FirstBinary(data),
                2 => Item::Continue(data),
                _ => Item::Last(data),
            };
            let result = assembly.add(item, LIMIT);
            let known = begun.take();
            if kind < 2 && known.is_some() || kind >= 2 && known.is_none() {
                assert_eq!(result, Err(Broken::Disordered));
                continue;
            }
            let all = [known.unwrap_or_default(), piece].concat();
            if all.len() > LIMIT {
                assert_eq!(result, Err(Broken::TooLarge));
            } else if kind == 3 {
                let Ok(Some(Whole::Text(whole) | Whole::Binary(whole))) = result else {
                    panic!("{result:?}")
                };
                assert_eq!(whole, all);
            } else {
                assert_eq!(result, Ok(None));
                begun = Some(all);
            }
        }
    });
}
